package virtvolume

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/internal/libvirt"
)

// fileName is a path as QEMU takes it: it is absolute, so no option; a colon
// would make it a protocol.
func fileName(path string) string {
	if strings.Contains(path, ":") {
		return "file:" + path
	}
	return path
}

// sharedOptions opens a disk for reading beside whoever has it.
func sharedOptions(k libvirt.Disk) string {
	driver := "file"
	if st, err := os.Stat(k.Path); err == nil && st.Mode()&os.ModeDevice != 0 {
		driver = "host_device"
	}
	return fmt.Sprintf("driver=%s,force-share=on,file.driver=%s,file.filename=%s", k.Format, driver, strings.ReplaceAll(k.Path, ",", ",,"))
}

// print tells whether anybody wrote to a file: all times and sizes of it. Writes
// to a device show in none of these, and are counted.
type print struct {
	ino, size, blocks uint64
	mtime, ctime      unix.Timespec
	written           string
}

func printOf(path string) (print, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return print{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return print{st.Ino, uint64(st.Size), uint64(st.Blocks), st.Mtim, st.Ctim, ""}, nil
	}
	written, err := writtenTo(st.Rdev)
	return print{ino: st.Rdev, written: written}, err
}

// writtenTo is how much was written to and discarded of a device since it is
// there. https://docs.kernel.org/block/stat.html
func writtenTo(rdev uint64) (string, error) {
	path := fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(rdev), unix.Minor(rdev))
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	f := strings.Fields(string(b))
	if len(f) < 7 {
		return "", fmt.Errorf("%s has %d fields", path, len(f))
	}
	written := []string{f[4], f[6]} // write I/Os, and their sectors
	if len(f) > 13 {
		written = append(written, f[11], f[13]) // of discards
	}
	return strings.Join(written, " "), nil
}

// identify tells one file from another that has its name later; "": it cannot.
// The number of its filesystem is not in it: that is another after a reboot.
func identify(path string) string {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, real, 0, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return ""
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return "device " + path // its node is made anew at each boot, and its number is any
	}
	return fmt.Sprintf("%d %d.%d %s", st.Ino, st.Btime.Sec, st.Btime.Nsec, real)
}

// tracked reports whether a disk can have dirty bitmaps that outlive its machine:
// raw cannot, and qcow2 of the first version that there was (compat=0.10). Of one
// that cannot be read here libvirt will tell.
func tracked(k libvirt.Disk) bool {
	if k.Format != "qcow2" {
		return false
	}
	h, err := readHead(k.Path)
	return err != nil || h.version > 2
}

// head is the beginning of a qcow2 file.
// https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.txt
type head struct {
	version uint32
	backing string // the file that it is the difference to; "": none
}

func readHead(path string) (head, error) {
	f, err := os.Open(path)
	if err != nil {
		return head{}, err
	}
	defer f.Close()
	b := make([]byte, 20)
	if _, err := f.ReadAt(b, 0); err != nil {
		return head{}, err
	}
	if !bytes.HasPrefix(b, []byte("QFI\xfb")) {
		return head{}, fmt.Errorf("%s is no qcow2", path)
	}
	h := head{version: binary.BigEndian.Uint32(b[4:])}
	at, n := binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:])
	if at == 0 || at > 1<<20 || n > 1023 { // the format's limit
		return h, nil
	}
	name := make([]byte, n)
	if _, err := f.ReadAt(name, int64(at)); err != nil {
		return head{}, err
	}
	h.backing = string(name)
	return h, nil
}

// chainLimit ends chains that have no end.
const chainLimit = 200

// builtOn finds another disk whose content is the difference to a file, or to one
// that is, so that what is written to the file changes it.
func builtOn(all []libvirt.Domain, path string) (dom libvirt.Domain, k libvirt.Disk, found bool) {
	mine, err := os.Stat(path)
	if err != nil {
		return dom, k, false
	}
	for _, dom = range all {
		for _, k = range dom.Disks {
			at := k.Path
			for range chainLimit {
				h, err := readHead(at)
				if err != nil || h.backing == "" {
					break
				}
				name := strings.TrimPrefix(h.backing, "file:")
				if !filepath.IsAbs(name) {
					name = filepath.Join(filepath.Dir(at), name)
				}
				at = name
				if st, err := os.Stat(at); err == nil && os.SameFile(st, mine) {
					return dom, k, true
				}
			}
		}
	}
	return dom, k, false
}
