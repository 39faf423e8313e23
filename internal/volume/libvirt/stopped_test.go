package virtvolume

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"testing"

	rpc "github.com/digitalocean/go-libvirt"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

func (m *machine) stop() {
	m.t.Helper()
	m.call(func(l *rpc.Libvirt) error { return l.DomainDestroy(m.dom.Handle()) })
}

// point takes one of both disks and settles it.
func (r *rig) point(t *testing.T, m *machine, hold string, checkpoints ...volume.Checkpoint) {
	t.Helper()
	in, err := r.d.Freeze(t.Context(), hold, []volume.Spec{m.spec(0), m.spec(1)}, nil)
	ok(t, err)
	for i := range checkpoints {
		shows(t, hold, in.Source(i), m.disks[i])
	}
	ok(t, in.Check(t.Context()))
	ok(t, in.Settle(t.Context(), checkpoints, func() error { return nil }))
	ok(t, in.Close())
}

// bitmaps are the names of those in the file of a disk of a stopped machine.
func (m *machine) bitmaps(disk int) []string {
	m.t.Helper()
	out, err := exec.Command("qemu-img", "info", "--output=json", m.dom.Disks[disk].Path).Output()
	ok(m.t, err)
	names, err := bitmapNames(out)
	ok(m.t, err)
	return names
}

// The disks of a machine that is stopped are read as well. Nothing tells what
// changes after such a point: no bitmap can begin with it.
func TestStopped(t *testing.T) {
	r := newRig(t, "one")
	ctx, m := t.Context(), r.machines[0]
	m.write(0, 1, block, 3*block)
	m.write(1, 2, 0, block)
	r.point(t, m, "running", "a0", "a1")
	m.write(0, 3, 0, block)
	m.stop()
	if names := m.bitmaps(0); len(names) != 1 {
		t.Errorf("after a point of a running machine there are bitmaps %v", names)
	}
	r.point(t, m, "stopped", "b0", "b1")
	if names, c := m.bitmaps(0), m.checkpoints(); len(names)+len(c) > 0 {
		t.Errorf("after a point of a stopped machine there are bitmaps %v, checkpoints %v", names, c)
	}
	m.start()
	m.write(0, 4, 8*block, block)
	in, err := r.d.Freeze(ctx, "again", []volume.Spec{m.spec(0)}, func(context.Context) error { return nil })
	ok(t, err)
	shows(t, "after a stopped point", in.Source(0), m.disks[0])
	for _, base := range []volume.Checkpoint{"a0", "b0"} {
		if _, err := in.Source(0).Changed(ctx, base, 0); !errors.Is(err, volume.ErrNoBase) {
			t.Errorf("after a stopped point changes are told since %s: %v", base, err)
		}
	}
	ok(t, in.Close())
	if size, err := r.d.Size(ctx, m.spec(0)); err != nil || size != diskSize {
		t.Errorf("the disk of a running machine has %d bytes, %v", size, err)
	}
	m.stop()
	if size, err := r.d.Size(ctx, m.spec(0)); err != nil || size != diskSize {
		t.Errorf("the disk of a stopped machine has %d bytes, %v", size, err)
	}

	// A machine that is started meanwhile may write.
	for disk := range 2 {
		in, err = r.d.Freeze(ctx, "started", []volume.Spec{m.spec(disk)}, nil)
		ok(t, err)
		shows(t, "a stopped machine", in.Source(0), m.disks[disk])
		ok(t, in.Check(ctx))
		m.call(func(l *rpc.Libvirt) error { _ = l.DomainCreate(m.dom.Handle()); return nil }) // it may be locked
		m.call(func(l *rpc.Libvirt) error { _ = l.DomainDestroy(m.dom.Handle()); return nil })
		if err := in.Check(ctx); !errors.Is(err, volume.ErrChanged) {
			t.Errorf("disk %d: a machine was started and stopped while it was read: %v", disk, err)
		}
		ok(t, in.Close())
	}
}

// A stopped machine's disks are overwritten in place, and nothing tells of changes
// since before.
func TestTarget(t *testing.T) {
	r := newRig(t, "one")
	ctx, m := t.Context(), r.machines[0]
	m.write(0, 1, 0, diskSize)
	m.write(1, 2, 0, diskSize)
	r.point(t, m, "before", "a0", "a1")
	_, err := r.d.OpenTarget(ctx, m.spec(0))
	refused(t, err, errs.Busy, "one", "stopped")
	m.stop()
	for disk := range 2 {
		target, err := r.d.OpenTarget(ctx, m.spec(disk))
		ok(t, err)
		if target.Size() != diskSize {
			t.Fatalf("a target of %d bytes", target.Size())
		}
		_, err = r.d.OpenTarget(ctx, m.spec(disk))
		refused(t, err, errs.Busy, "one")
		if err := r.Do(ctx, func(l *rpc.Libvirt) error { return l.DomainCreate(m.dom.Handle()) }); err == nil {
			t.Error("a machine starts whose disk is being overwritten")
		}
		ok(t, target.WriteAt(ctx, bytes.Repeat([]byte{7}, 3*block), block))
		ok(t, target.Zero(ctx, 8*block, diskSize-8*block))
		ok(t, target.Sync(ctx))
		copy(m.disks[disk][block:], bytes.Repeat([]byte{7}, 3*block))
		clear(m.disks[disk][8*block:])
		got := make([]byte, diskSize)
		ok(t, target.ReadAt(ctx, got, 0))
		if !bytes.Equal(got, m.disks[disk]) {
			t.Error("the target does not hold what was written")
		}
		if r, err := target.Data(ctx, 8*block); !errors.Is(err, io.EOF) {
			t.Errorf("data at %v, %v, where zeros are", r, err)
		}
		refused(t, target.WriteAt(ctx, got[:1024], diskSize), errs.Invalid)
		ok(t, target.Sync(ctx))
		ok(t, target.Close())
		ok(t, target.Close())
	}
	// All of a machine's at once, as an apply has them.
	both := make([]volume.Target, len(m.disks))
	for disk := range both {
		both[disk], err = r.d.OpenTarget(ctx, m.spec(disk))
		ok(t, err)
	}
	_, err = r.d.Freeze(ctx, "meanwhile", []volume.Spec{m.spec(0)}, nil)
	refused(t, err, errs.Busy, "one")
	for _, target := range both {
		ok(t, target.Close())
	}
	// One whose memory is saved would go on with another disk.
	m.start()
	m.call(func(l *rpc.Libvirt) error { return l.DomainManagedSave(m.dom.Handle(), 0) })
	_, err = r.d.OpenTarget(ctx, m.spec(0))
	refused(t, err, errs.Conflict, "one", "managedsave-remove")
	m.call(func(l *rpc.Libvirt) error { return l.DomainManagedSaveRemove(m.dom.Handle(), 0) })
	if c := m.checkpoints(); len(c) > 0 {
		t.Errorf("checkpoints %v stayed", c)
	}
	m.start()
	in, err := r.d.Freeze(ctx, "after", []volume.Spec{m.spec(0), m.spec(1)}, nil)
	ok(t, err)
	for disk := range 2 {
		shows(t, "after it was overwritten", in.Source(disk), m.disks[disk])
		if _, err := in.Source(disk).Changed(ctx, "a0", 0); !errors.Is(err, volume.ErrNoBase) {
			t.Errorf("changes are told since before it was overwritten: %v", err)
		}
	}
	ok(t, in.Settle(ctx, []volume.Checkpoint{"c0", "c1"}, func() error { return nil }))
	ok(t, in.Close())
}

// What is no disk of libvirt's, and what libvirt's disks are never asked for.
func TestRefusals(t *testing.T) {
	r := newRig(t, "one")
	ctx, m := t.Context(), r.machines[0]
	s := m.spec(0)
	for _, err := range []error{r.d.Create(ctx, s), r.d.Grow(ctx, s, 2*diskSize), r.d.Remove(ctx, s)} {
		refused(t, err, errs.Conflict, s.ID)
	}
	_, err := r.d.Probe(ctx, "/dev/null")
	refused(t, err, errs.Invalid)
	for what, spoil := range map[string]func(*volume.Spec){
		"no machine": func(s *volume.Spec) { s.Path = "libvirt:00000000-0000-4000-8000-000000000000/vda" },
		"no disk":    func(s *volume.Spec) { s.Path += "x" },
	} {
		bad := s
		spoil(&bad)
		bad.Identity = bad.Path
		_, err := r.d.Size(ctx, bad)
		refused(t, err, errs.NotFound)
		_, err = r.d.OpenTarget(ctx, bad)
		refused(t, err, errs.NotFound)
		if _, err = r.d.Freeze(ctx, "x", []volume.Spec{bad}, nil); !errs.Is(err, errs.NotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, path := range []string{"", "libvirt:", "libvirt:x/vda", "/etc/passwd", s.Path + "/..", s.Path + "\"/>"} {
		bad := s
		bad.Path, bad.Identity = path, path
		if _, err := r.d.Freeze(ctx, "x", []volume.Spec{bad}, nil); !errs.Is(err, errs.Internal) {
			t.Errorf("%q is taken: %v", path, err)
		}
	}
	_, err = r.d.Freeze(ctx, "x", []volume.Spec{s, s}, nil)
	refused(t, err, errs.Internal, "twice")
	_, err = r.d.Freeze(ctx, "../x", []volume.Spec{s}, nil)
	refused(t, err, errs.Internal)
	in, err := r.d.Freeze(ctx, "x", []volume.Spec{s}, nil)
	ok(t, err)
	_, err = r.d.Freeze(ctx, "x", []volume.Spec{s}, nil)
	refused(t, err, errs.Conflict)
	_, err = r.d.Freeze(ctx, "y", []volume.Spec{m.spec(1)}, nil)
	refused(t, err, errs.Busy, "one")
	ok(t, in.Close())
	if _, err := r.d.Reopen(ctx, "x", []volume.Spec{s}); !errors.Is(err, volume.ErrNoInstant) {
		t.Errorf("Reopen: %v", err)
	}
}
