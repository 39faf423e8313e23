package nbdvolume

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// qcow is a qcow2 image of 8 MiB that QEMU's programs serve and write.
type qcow struct {
	t            *testing.T
	file, socket string
	stop         func()
}

func newQcow(t *testing.T, bitmap ...string) *qcow {
	t.Helper()
	needs(t, "qemu-img", "qemu-nbd", "qemu-io")
	dir := shortDir(t)
	q := &qcow{t: t, file: filepath.Join(dir, "disk.qcow2"), socket: filepath.Join(dir, "s")}
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", q.file, "8M")
	for _, name := range bitmap {
		q.bitmap("--add", name)
	}
	return q
}

// bitmap changes a bitmap of the image while nobody serves it.
func (q *qcow) bitmap(args ...string) {
	q.t.Helper()
	run(q.t, "qemu-img", append(append([]string{"bitmap"}, args[:1]...), q.file, args[1])...)
}

// serve starts qemu-nbd in place of the one before.
func (q *qcow) serve(args ...string) {
	q.t.Helper()
	q.end()
	q.stop = start(q.t, q.socket, "qemu-nbd", append([]string{"-t", "-e", "8", "-k", q.socket, "-f", "qcow2", q.file}, args...)...)
}

func (q *qcow) end() {
	if q.stop != nil {
		q.stop()
	}
}

func (q *qcow) uri() string { return nbd.URI{Network: "unix", Address: q.socket}.String() }

// write lets another client write, through the server that runs.
func (q *qcow) write(pattern byte, off, length int64) {
	q.t.Helper()
	run(q.t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P %d %d %d", pattern, off, length), "-c", "flush", q.uri())
}

// writeBetween serves the image for writing and writes, as a machine would that
// runs between two points.
func (q *qcow) writeBetween(pattern byte, off, length int64) {
	q.t.Helper()
	q.serve()
	q.write(pattern, off, length)
	q.end()
}

// The way that docs/nbd-driver.md shows: a persistent bitmap, served read-only
// while a point is taken. The second point reads what changed, and no more.
func TestQEMUBitmaps(t *testing.T) {
	q := newQcow(t, "cairn-x")
	want := make([]byte, 8*mib)
	write := func(pattern byte, off, length int64) {
		t.Helper()
		q.writeBetween(pattern, off, length)
		copy(want[off:], letter(pattern, int(length)))
	}
	q.serve("-r", "-B", "cairn-x")
	c := &scene{t: t, d: newDriver(t, t.TempDir())}
	c.spec = register(t, c.d, "vol-1", q.uri()+trusted)
	known := want // what the last point holds
	point := func(base, next volume.Checkpoint, chunks ...int64) {
		t.Helper()
		c.wantChanges(base, chunks...)
		in := freeze(t, c.d, c.spec)
		got := contentOf(t, in.Source(0))
		if !bytes.Equal(got, want) {
			t.Fatal("the source differs from what was written")
		}
		if len(chunks) > 0 {
			changed, err := changedOf(t, in.Source(0), base)
			ok(t, err)
			followed := bytes.Clone(known)
			for _, r := range changed {
				ok(t, in.Source(0).ReadAt(t.Context(), followed[r.Off:r.End()], r.Off))
			}
			if !bytes.Equal(followed, want) {
				t.Fatal("the changes do not lead to what was written")
			}
		}
		ok(t, in.Check(t.Context()))
		ok(t, in.Settle(t.Context(), []volume.Checkpoint{next}, committed))
		ok(t, in.Close())
		known = bytes.Clone(want)
	}
	point("", "p1")
	write(7, 3*mib+100, 1000)
	write(8, 5*mib, 130<<10)
	q.serve("-r", "-B", "cairn-x")
	point("p1", "p2", 48, 80, 81, 82)
	q.serve("-r", "-B", "cairn-x") // nothing was written: marks stay
	point("p2", "p3", 48, 80, 81, 82)

	// The owner takes a new bitmap: a point with both, then without the old.
	q.end()
	q.bitmap("--add", "cairn-y")
	q.serve("-r", "-B", "cairn-x", "-B", "cairn-y")
	point("p3", "p4", 48, 80, 81, 82)
	q.end()
	q.bitmap("--remove", "cairn-x")
	write(9, mib, 1)
	q.serve("-r", "-B", "cairn-y")
	point("p4", "p5", 16)

	// A bitmap that was cleared is not believed.
	q.end()
	q.bitmap("--clear", "cairn-y")
	write(1, 2*mib, 1)
	q.serve("-r", "-B", "cairn-y")
	point("p5", "p6")
	// One that was made anew neither, and one that is not served is none.
	q.end()
	q.bitmap("--remove", "cairn-y")
	q.bitmap("--add", "cairn-y")
	q.serve("-r", "-B", "cairn-y")
	point("p6", "p7")
	q.serve("-r")
	c.wantNoBase("p7")
}

// A live export for writing: what another client does shows in the bitmap, or
// in what is allocated.
func TestQEMUWriterIsNoticed(t *testing.T) {
	for _, args := range [][]string{nil, {"-B", "any"}} {
		q := newQcow(t, "any")
		q.serve(args...)
		q.write(1, 0, 4*mib)
		q.serve(args...)
		d := newDriver(t, t.TempDir())
		in := freeze(t, d, register(t, d, "vol-1", q.uri()))
		q.write(2, 6*mib, 512)
		wantChanged(t, in.Check(t.Context()), "vol-1")
	}
}

// A server that was started anew while a point was taken changes nothing; one
// that lost its bitmap does.
func TestQEMUServerStartsAnew(t *testing.T) {
	q := newQcow(t, "cairn-x")
	q.writeBetween(5, mib, mib)
	q.serve("-r", "-B", "cairn-x")
	d := newDriver(t, t.TempDir())
	in := freeze(t, d, register(t, d, "vol-1", q.uri()))
	buf := make([]byte, 4096)
	ok(t, in.Source(0).ReadAt(t.Context(), buf, mib))
	q.serve("-r", "-B", "cairn-x")
	ok(t, in.Source(0).ReadAt(t.Context(), buf, 2*mib-4096))
	if !bytes.Equal(buf, letter(5, 4096)) {
		t.Error("other bytes")
	}
	ok(t, in.Check(t.Context()))
	q.serve("-r")
	wantChanged(t, in.Check(t.Context()), "vol-1")
}

// The file of an image instead of the disk in it is refused, and no server
// either.
func TestQEMURefused(t *testing.T) {
	q := newQcow(t)
	q.stop = start(t, q.socket, "qemu-nbd", "-t", "-r", "-e", "8", "-k", q.socket, "-f", "raw", q.file)
	d := hasty(t)
	_, err := d.Probe(t.Context(), q.uri())
	wantKind(t, err, errs.Invalid, "qemu-nbd -f qcow2")
	q.serve("-r", "-x", "disk")
	_, err = d.Probe(t.Context(), q.uri())
	wantKind(t, err, errs.NotFound, "correct the name of the export")
	at := nbd.URI{Network: "unix", Address: q.socket, Export: "disk"}.String()
	spec := register(t, d, "vol-1", at)
	_, err = d.OpenTarget(t.Context(), spec)
	wantKind(t, err, errs.Conflict, "volume vol-1", "serve it for writing")
	q.end()
	_, err = d.Probe(t.Context(), at)
	wantKind(t, err, errs.NotFound, "start it, or correct the URI")
}

// A server that was killed, and another that takes its place.
func TestNbdkitDies(t *testing.T) {
	dir := shortDir(t)
	file, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "s")
	ok(t, errors.Join(os.WriteFile(file, letter('a', 4*mib), 0o600), os.Truncate(file, 8*mib)))
	args := []string{"-f", "-r", "-U", socket, "file", file}
	kill := start(t, socket, "nbdkit", args...)
	d := newDriver(t, t.TempDir())
	in := freeze(t, d, register(t, d, "vol-1", nbd.URI{Network: "unix", Address: socket}.String()))
	kill()
	ok(t, os.Remove(socket))
	start(t, socket, "nbdkit", args...)
	got := make([]byte, 8*mib)
	ok(t, in.Source(0).ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got, append(letter('a', 4*mib), make([]byte, 4*mib)...)) {
		t.Error("other bytes")
	}
	ok(t, in.Check(t.Context()))
}
