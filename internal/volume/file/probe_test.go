package file

import (
	"bytes"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"cairn/internal/errs"
)

func TestProbeRefuses(t *testing.T) {
	dir := t.TempDir()
	data := join(dir, "data")
	ok(t, os.Mkdir(data, 0o700))
	r, err := NewRegistered(join(data, "holds"), data)
	ok(t, err)
	file := func(name, content string) string {
		path := join(dir, name)
		ok(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	// An image with its mark at off, of 1 MiB.
	image := func(name, mark string, off int) string {
		b := make([]byte, 1<<20)
		copy(b[off:], mark)
		return file(name, string(b))
	}
	ours := join(data, "vol-X.raw")
	ok(t, os.WriteFile(ours, []byte("ours"), 0o600))
	ok(t, os.Link(ours, join(dir, "hardlink")))
	ok(t, os.Symlink(ours, join(dir, "symlink")))
	ok(t, os.Symlink(join(dir, "loop"), join(dir, "loop")))
	ok(t, syscall.Mkfifo(join(dir, "fifo"), 0o600))
	l, err := net.Listen("unix", join(dir, "socket"))
	ok(t, err)
	defer func() { ok(t, l.Close()) }()

	for _, c := range []struct {
		name, path string
		kind       errs.Kind
		says       string
	}{
		{"empty path", "", errs.Invalid, "absolute"},
		{"relative", "disk.raw", errs.Invalid, "absolute"},
		{"NUL", dir + "/a\x00b", errs.Invalid, "absolute"},
		{"absent", join(dir, "none"), errs.NotFound, "nothing is at"},
		{"below a file", file("plain", "x") + "/y", errs.NotFound, "nothing is at"},
		{"symlink loop", join(dir, "loop"), errs.Invalid, "cannot be read"},
		{"folder", dir, errs.Invalid, "a folder"},
		{"character device", "/dev/zero", errs.Invalid, "a character device"},
		{"fifo", join(dir, "fifo"), errs.Invalid, "a fifo"},
		{"socket", join(dir, "socket"), errs.Invalid, "a socket"},
		{"empty file", file("empty", ""), errs.Invalid, "is empty"},
		{"proc", "/proc/self/status", errs.Invalid, "a file of the kernel's"},
		{"sysfs", "/sys/kernel/notes", errs.Invalid, "a file of the kernel's"},
		{"ours", ours, errs.Invalid, "own data"},
		{"ours by hard link", join(dir, "hardlink"), errs.Invalid, "own data"},
		{"ours by symlink", join(dir, "symlink"), errs.Invalid, "own data"},
		{"ours by dots", data + "/../data/vol-X.raw", errs.Invalid, "own data"},
		{"qcow2", image("a.qcow2", "QFI\xfb", 0), errs.Invalid, "qcow2"},
		{"vmdk", image("a.vmdk", "KDMV", 0), errs.Invalid, "VMDK"},
		{"vmdk text", file("b.vmdk", "# Disk DescriptorFile\nversion=1\n"), errs.Invalid, "VMDK"},
		{"vdi", image("a.vdi", "\x7f\x10\xda\xbe", 64), errs.Invalid, "VDI"},
		{"vhdx", image("a.vhdx", "vhdxfile", 0), errs.Invalid, "VHDX"},
		{"vhd dynamic", image("a.vhd", "conectix", 0), errs.Invalid, "VHD"},
		{"vhd fixed", image("b.vhd", "conectix", 1<<20-512), errs.Invalid, "VHD"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := r.Probe(t.Context(), c.path)
			if errs.KindOf(err) != c.kind || !strings.Contains(errs.Message(err), c.says) {
				t.Fatalf("got %v: %v; want %v and “%s”", errs.KindOf(err), err, c.kind, c.says)
			}
		})
	}
	entries, err := os.ReadDir(join(data, "holds"))
	ok(t, err)
	if len(entries) != 0 {
		t.Fatal("a refused probe left something")
	}
}

// TestProbeNames: one file, however it is called, has one identity.
func TestProbeNames(t *testing.T) {
	dir := t.TempDir()
	r, err := NewRegistered(t.TempDir())
	ok(t, err)
	path := join(dir, "disk")
	ok(t, os.WriteFile(path, []byte("a volume of odd size"), 0o600))
	ok(t, os.Link(path, join(dir, "hard")))
	ok(t, os.Symlink("disk", join(dir, "soft")))
	a := register(t, r, path)
	if b := register(t, r, join(dir, "hard")); b.Identity != a.Identity {
		t.Fatalf("identity %s by its name, %s by a hard link", a.Identity, b.Identity)
	}
	if b := register(t, r, join(dir, "soft")); b != a {
		t.Fatalf("%+v by its name, %+v by a symbolic link", a, b)
	}
	if a.SizeBytes != 20 {
		t.Fatalf("size %d, want 20", a.SizeBytes)
	}
}

// TestProbeOursElsewhere: our folder by another path, and devices on it.
func TestProbeOursElsewhere(t *testing.T) {
	need(t, "losetup", "mount")
	data := t.TempDir()
	r, err := NewRegistered(join(data, "holds"), data)
	ok(t, err)
	ours := sparse(t, data, 1<<20)
	bind := t.TempDir()
	mountAt(t, bind, "--bind", data)
	name := ours[len(data):]
	for _, path := range []string{bind + name, attach(t, ours)} {
		if _, err := r.Probe(t.Context(), path); errs.KindOf(err) != errs.Invalid || !strings.Contains(errs.Message(err), "own data") {
			t.Fatalf("%s: %v; want it refused as our own data", path, err)
		}
	}
}

func TestProbeDevice(t *testing.T) {
	need(t, "losetup")
	r, err := NewRegistered(t.TempDir())
	ok(t, err)
	path := attach(t, sparse(t, t.TempDir(), 1<<20))
	p, err := r.Probe(t.Context(), path)
	ok(t, err)
	if !p.Device || p.SizeBytes != 1<<20 || !strings.HasPrefix(p.Identity, "block:7:") {
		t.Fatalf("%+v", p)
	}
}

func FuzzImageFormat(f *testing.F) {
	for _, s := range []string{"", "x", "QFI\xfb", "KDMV", "vhdxfile", strings.Repeat("\x00", 64) + "\x7f\x10\xda\xbe", "conectix" + strings.Repeat("\x00", 504)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		format, err := imageFormat(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if format != "" && len(bytes.Trim(b, "\x00")) == 0 {
			t.Fatalf("zeros are taken for %s", format)
		}
	})
}

func TestMountedAt(t *testing.T) {
	const table = `22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
broken line
31 22 0:45 /sub /mnt/b\040c rw - btrfs /dev/sdb1 rw,space_cache=v2
40 22 0:5 / /dev rw master:2 propagate_from:1 - devtmpfs devtmpfs rw
`
	for _, c := range []struct {
		source string
		dev    uint64
		want   string
	}{
		{"", parseDevice("8:2"), "/"},
		{"/dev/sdb1", 1, `/mnt/b\040c`},
		{"/dev/sdc", parseDevice("8:3"), ""},
	} {
		got, err := mountedAt(strings.NewReader(table), func(source string, dev uint64) bool {
			return source == c.source || dev == c.dev
		})
		ok(t, err)
		if got != c.want {
			t.Errorf("%+v: got %q", c, got)
		}
	}
	for _, bad := range []string{"", "8", "8:", ":1", "a:b", "8:1:2", "-1:2"} {
		if d := parseDevice(bad); d != 0 {
			t.Errorf("parseDevice(%q) = %d", bad, d)
		}
	}
}

func TestListHolds(t *testing.T) {
	dir := join(t.TempDir(), "holds")
	if got, err := ListHolds(dir); err != nil || len(got) != 0 {
		t.Errorf("an absent folder: %v, %v", got, err)
	}
	ok(t, os.MkdirAll(join(dir, "job-1"), 0o700))
	ok(t, os.WriteFile(join(dir, "note.txt"), nil, 0o600))
	if got, err := ListHolds(dir); err != nil || len(got) != 1 || got[0] != "job-1" {
		t.Errorf("got %v, %v", got, err)
	}
}
