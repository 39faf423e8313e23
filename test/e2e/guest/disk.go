package guest

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The disk that a machine boots from: a boot sector, a FAT partition with
// SYSLINUX, the kernel and the initramfs, and an ext4 partition for data, which
// the guest mounts at /mnt.
const (
	sector    = 512
	mib       = 1 << 20
	bootBegin = 1 * mib
	bootSize  = 47 * mib
	dataBegin = bootBegin + bootSize
	// DiskSize is a disk's size in bytes.
	DiskSize = 128 * mib
)

// DataOffset is where the filesystem for data begins on a disk.
const DataOffset = dataBegin

// DiskConfig is what a guest that is run from a disk needs at least.
func DiskConfig() Config {
	return Config{
		Modules:  []string{"ext4", "evdev", "button"},
		Programs: []string{"qemu-ga", "mkfs.ext4"},
		Packages: []string{"qemu-guest-agent", "liburing2"},
	}
}

// Disk makes a disk for a test, which is skipped where that cannot be.
func Disk(t testing.TB, config Config) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.raw")
	p := find(t, config, diskTools)
	if err := p.disk(name, config); err != nil {
		t.Fatalf("make the disk of a guest: %v", err)
	}
	return name
}

// WriteDisk makes a disk.
func WriteDisk(name string, config Config) error {
	p, err := gather(config, diskTools)
	if err != nil {
		return err
	}
	return p.disk(name, config)
}

// diskTools are packages that make a disk bootable. None is installed.
var diskTools = []string{"syslinux", "syslinux-common", "mtools"}

func (p parts) disk(name string, config Config) error {
	work, err := os.MkdirTemp("", "cairn-guest-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	initramfs := filepath.Join(work, "initrd")
	if err := p.pack(initramfs, config); err != nil {
		return err
	}
	menu := filepath.Join(work, "syslinux.cfg")
	text := "DEFAULT linux\nPROMPT 0\nTIMEOUT 0\nLABEL linux\n KERNEL linux\n INITRD initrd\n" +
		" APPEND console=ttyS0 control=ttyS0 quiet panic=-1 no_timer_check\n"
	if err := os.WriteFile(menu, []byte(text), 0o600); err != nil {
		return err
	}
	if err := p.partition(name); err != nil {
		return err
	}
	boot := fmt.Sprintf("%s@@%d", name, bootBegin)
	for _, command := range [][]string{
		{"mformat", "-i", boot, "-T", fmt.Sprint(bootSize / sector), "-h", "64", "-s", "32", "-H", fmt.Sprint(bootBegin / sector), "::"},
		{"mcopy", "-i", boot, p.kernel.image, "::linux"},
		{"mcopy", "-i", boot, initramfs, "::initrd"},
		{"mcopy", "-i", boot, menu, "::syslinux.cfg"},
		{"syslinux", "--install", "--offset", fmt.Sprint(bootBegin), name},
		{"mkfs.ext4", "-q", "-F", "-E", fmt.Sprintf("offset=%d,lazy_itable_init=0,lazy_journal_init=0", dataBegin), name, fmt.Sprintf("%dk", (DiskSize-dataBegin)/1024)},
	} {
		if err := p.tool(command); err != nil {
			return err
		}
	}
	return nil
}

// partition writes the boot sector with its table.
func (p parts) partition(name string) (err error) {
	code, err := os.ReadFile(p.file("usr/lib/syslinux/mbr/mbr.bin"))
	if err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	if err := f.Truncate(DiskSize); err != nil {
		return err
	}
	b := make([]byte, sector)
	copy(b[:440], code)
	entry := func(n int, active, kind byte, begin, size int64) {
		e := b[446+16*n:]
		e[0], e[4] = active, kind
		copy(e[1:4], []byte{0xfe, 0xff, 0xff}) // beyond what cylinders can say
		copy(e[5:8], []byte{0xfe, 0xff, 0xff})
		binary.LittleEndian.PutUint32(e[8:], uint32(begin/sector))
		binary.LittleEndian.PutUint32(e[12:], uint32(size/sector))
	}
	entry(0, 0x80, 0x0e, bootBegin, bootSize)
	entry(1, 0, 0x83, dataBegin, DiskSize-dataBegin)
	b[510], b[511] = 0x55, 0xaa
	_, err = f.WriteAt(b, 0)
	return err
}

// file finds a file of the packages.
func (p parts) file(path string) string {
	for _, root := range p.roots {
		if _, err := os.Stat(filepath.Join(root, path)); err == nil {
			return filepath.Join(root, path)
		}
	}
	return filepath.Join("/", path)
}

// tool runs a program of the packages or of the host.
func (p parts) tool(command []string) error {
	program, err := p.program(command[0])
	if err != nil {
		return err
	}
	// SYSLINUX runs the mtools by their names.
	var path []string
	for _, root := range p.roots {
		path = append(path, filepath.Join(root, "usr/bin"))
	}
	path = append(path, os.Getenv("PATH"))
	_, err = outputWith([]string{"PATH=" + strings.Join(path, ":"), "MTOOLS_SKIP_CHECK=1"}, "", program, command[1:]...)
	return err
}
