package file

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// registeredLoop makes a driver and a registered loop device.
func registeredLoop(t *testing.T, size int64, flags ...string) (r *Registered, s volume.Spec, backing string) {
	t.Helper()
	backing = sparse(t, t.TempDir(), size)
	r, err := NewRegistered(t.TempDir())
	ok(t, err)
	return r, register(t, r, attach(t, backing, flags...)), backing
}

func wantBusy(t *testing.T, r *Registered, s volume.Spec, why string) {
	t.Helper()
	_, err := r.Freeze(t.Context(), "busy", []volume.Spec{s}, nil)
	wantKind(t, err, errs.Busy, s)
	if !strings.Contains(errs.Message(err), why) {
		t.Fatalf("message %q does not say “%s”", errs.Message(err), why)
	}
	_, err = r.OpenTarget(t.Context(), s)
	wantKind(t, err, errs.Busy, s)
}

func TestMountedDevice(t *testing.T) {
	r, s, _ := registeredLoop(t, 16<<20)
	need(t, "mkfs.ext4")
	mustRun(t, "mkfs.ext4", "-q", "-F", s.Path)
	for _, options := range []string{"rw", "ro"} {
		t.Run(options, func(t *testing.T) {
			mountAt(t, t.TempDir(), "-o", options, s.Path)
			wantBusy(t, r, s, "is mounted")
		})
	}
	ok(t, freeze(t, r, s).Close())
}

// TestMountedPartition: a mounted partition makes its whole disk busy, and
// the other way round a claimed disk its partitions.
func TestMountedPartition(t *testing.T) {
	need(t, "mkfs.ext4", "partx")
	backing := sparse(t, t.TempDir(), 32<<20)
	change(t, backing, onePartition(2048, 32<<11-2048), 0)
	r, err := NewRegistered(t.TempDir())
	ok(t, err)
	whole := register(t, r, attach(t, backing))
	mustRun(t, "partx", "--add", whole.Path) // not every kernel reads the table itself
	t.Cleanup(func() { mustRun(t, "partx", "--delete", whole.Path) })
	if _, err := os.Stat(whole.Path + "p1"); err != nil {
		t.Skipf("skipped: no node appears for a partition: %v", err)
	}
	part := register(t, r, whole.Path+"p1")
	part.ID = "vol-TESTPART"
	mustRun(t, "mkfs.ext4", "-q", "-F", part.Path)
	t.Run("mounted", func(t *testing.T) {
		mountAt(t, t.TempDir(), part.Path)
		wantBusy(t, r, whole, "is mounted")
		wantBusy(t, r, part, "is mounted")
	})
	in := freeze(t, r, whole)
	wantBusy(t, r, part, "in use by the system")
	ok(t, in.Check(t.Context()))
	ok(t, in.Close())

	in, err = r.Freeze(t.Context(), "part", []volume.Spec{part}, nil)
	ok(t, err)
	defer func() { ok(t, in.Close()) }()
	change(t, part.Path, []byte("x"), 5000)
	wantChanged(t, in.Check(t.Context()), part)
}

// onePartition is an MBR with one Linux partition; start and count in sectors.
func onePartition(start, count uint32) []byte {
	mbr := make([]byte, 512)
	mbr[446+4] = 0x83
	binary.LittleEndian.PutUint32(mbr[446+8:], start)
	binary.LittleEndian.PutUint32(mbr[446+12:], count)
	mbr[510], mbr[511] = 0x55, 0xaa
	return mbr
}

// TestLoopBacked: a file or device under a loop device.
func TestLoopBacked(t *testing.T) {
	r, file := registered(t)
	t.Run("writable", func(t *testing.T) {
		attach(t, file.Path)
		wantBusy(t, r, file, "loop device")
	})
	t.Run("read-only", func(t *testing.T) {
		attach(t, file.Path, "--read-only")
		ok(t, freeze(t, r, file).Close())
		_, err := r.OpenTarget(t.Context(), file)
		wantKind(t, err, errs.Busy, file)
	})
	t.Run("device", func(t *testing.T) {
		r, s, _ := registeredLoop(t, 1<<20)
		attach(t, s.Path)
		wantBusy(t, r, s, "loop device")
	})
	ok(t, freeze(t, r, file).Close())
}

// TestDeviceWriterIsCounted: somebody who heeds no lock writes to a device.
// Buffered bytes count too, though they have not reached it yet.
func TestDeviceWriterIsCounted(t *testing.T) {
	for _, how := range []string{"buffered", "open", "discard"} {
		t.Run(how, func(t *testing.T) {
			r, s, _ := registeredLoop(t, 1<<20)
			in := freeze(t, r, s)
			ok(t, in.Source(0).ReadAt(t.Context(), make([]byte, 1<<20), 0))
			ok(t, in.Check(t.Context())) // reading is no change
			ok(t, in.Check(t.Context()))
			switch how {
			case "buffered":
				change(t, s.Path, []byte("x"), 5000)
			case "open":
				a := start(t, "writer", s.Path) // a device tells nobody of that,
				change(t, s.Path, []byte("x"), 0)
				a.stop(t)
			case "discard":
				if out, err := run(t, "blkdiscard", "--force", s.Path); err != nil {
					t.Skipf("skipped: blkdiscard: %v: %s", err, out)
				}
			}
			wantChanged(t, in.Check(t.Context()), s)
		})
	}
}

func TestDeviceGrewWhileRead(t *testing.T) {
	r, s, backing := registeredLoop(t, 1<<20)
	in := freeze(t, r, s)
	ok(t, os.Truncate(backing, 2<<20))
	mustRun(t, "losetup", "--set-capacity", s.Path)
	wantChanged(t, in.Check(t.Context()), s)
}

// TestDeviceError: a loop device whose backing file lost its tail gives EIO.
func TestDeviceError(t *testing.T) {
	r, s, backing := registeredLoop(t, 1<<20)
	in := freeze(t, r, s)
	ok(t, os.Truncate(backing, 64<<10))
	buf := make([]byte, 4096)
	ok(t, in.Source(0).ReadAt(t.Context(), buf, 0))
	wantKind(t, in.Source(0).ReadAt(t.Context(), buf, 512<<10), errs.Unavailable, s)
}

func TestReadOnlyDevice(t *testing.T) {
	r, s, _ := registeredLoop(t, 1<<20, "--read-only")
	ok(t, freeze(t, r, s).Close())
	_, err := r.OpenTarget(t.Context(), s)
	wantKind(t, err, errs.Denied, s)
}

// TestZeroBothWays: a device whose size is no multiple of a page, on which the
// aligned part is zeroed by the device and the edges are written; and both
// kinds of volume where all zeros must be written.
func TestZeroBothWays(t *testing.T) {
	for _, c := range []struct{ device, noPunch bool }{{true, false}, {true, true}, {false, true}} {
		t.Run(fmt.Sprintf("device=%v,written=%v", c.device, c.noPunch), func(t *testing.T) {
			r, s := registered(t)
			if c.device {
				r, s, _ = registeredLoop(t, 3<<20+512)
			}
			ctx := t.Context()
			g, err := r.OpenTarget(ctx, s)
			ok(t, err)
			defer func() { ok(t, g.Close()) }()
			g.(*target).noPunch.Store(c.noPunch)
			n := g.Size()
			want := bytes.Repeat([]byte{1}, int(n))
			ok(t, g.WriteAt(ctx, want, 0))
			ok(t, g.Zero(ctx, 100, n-100))
			ok(t, g.Sync(ctx))
			clear(want[100:])
			got := make([]byte, n)
			ok(t, g.ReadAt(ctx, got, 0))
			if !bytes.Equal(got, want) {
				t.Fatal("bytes differ after Zero up to an odd end")
			}
		})
	}
}

// TestFullFilesystem: no space while a sparse volume is filled.
func TestFullFilesystem(t *testing.T) {
	dir := filesystem(t, "tmpfs") // 64 MiB
	r, err := NewRegistered(t.TempDir())
	ok(t, err)
	s := register(t, r, sparse(t, dir, 128<<20))
	g, err := r.OpenTarget(t.Context(), s)
	ok(t, err)
	defer func() { ok(t, g.Close()) }()
	buf := make([]byte, 1<<20)
	buf[0] = 1
	err = nil
	for off := int64(0); err == nil && off < s.SizeBytes; off += 1 << 20 {
		err = g.WriteAt(t.Context(), buf, off)
	}
	wantFull(t, err)
	wantFull(t, g.Sync(t.Context()))
}

func wantFull(t *testing.T, err error) {
	t.Helper()
	if !errs.Is(err, errs.Full) {
		t.Fatalf("got %v, want errs.Full", err)
	}
}
