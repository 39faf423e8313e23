package virtvolume

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"cairn/internal/errs"
	"cairn/internal/libvirt/libvirttest"
	"cairn/internal/volume"
)

// A process that is gone leaves a backup and a machine that is paused; the next
// one ends the one and lets the other go on.
func TestDropsWhatWasLeft(t *testing.T) {
	r := newRig(t, "one")
	ctx, m := t.Context(), r.machines[0]
	m.write(0, 1, 0, block)
	in, err := r.d.Freeze(ctx, "cut", []volume.Spec{m.spec(0), m.spec(1)}, nil)
	ok(t, err)
	b := in.(*instant).backups[0]
	m.call(func(l *rpc.Libvirt) error { return l.DomainSuspend(m.dom.Handle()) })
	ok(t, os.WriteFile(filepath.Join(b.dir, pausedNote), nil, 0o600))

	next := r.open(t)
	for range 2 {
		ok(t, next.Drop(ctx, "cut"))
	}
	r.clean(t)
	refused(t, in.Check(ctx), errs.Unavailable, "one")
	ok(t, in.Close())
	in, err = next.Freeze(ctx, "next", []volume.Spec{m.spec(0)}, nil)
	ok(t, err)
	shows(t, "the next point", in.Source(0), m.disks[0])
	ok(t, in.Close())
}

// What a process left is also ended when nobody asks for its hold: by the next
// point of the machine, and by the tidying.
func TestEndsWhatWasLeft(t *testing.T) {
	r := newRig(t, "one")
	ctx, m := t.Context(), r.machines[0]
	for _, how := range []string{"the next point", "the tidying"} {
		t.Run(how, func(t *testing.T) {
			in, err := r.d.Freeze(ctx, "cut", []volume.Spec{m.spec(0)}, nil)
			ok(t, err)
			m.call(func(l *rpc.Libvirt) error { return l.DomainSuspend(m.dom.Handle()) })
			ok(t, os.WriteFile(filepath.Join(in.(*instant).backups[0].dir, pausedNote), nil, 0o600))
			ok(t, r.d.Tidy(ctx)) // it has one that holds it
			ok(t, in.Check(ctx))
			next := r.open(t)
			if how == "the tidying" {
				ok(t, next.Tidy(ctx))
			} else {
				point, err := next.Freeze(ctx, "next", []volume.Spec{m.spec(0)}, nil)
				ok(t, err)
				shows(t, how, point.Source(0), m.disks[0])
				ok(t, point.Close())
			}
			r.clean(t)
			refused(t, in.Check(ctx), errs.Unavailable, "one")
			ok(t, in.Close())
		})
	}
}

// A daemon that does not do what it is told is told again: nothing stays paused
// and no backup goes on for good.
func TestDaemonFails(t *testing.T) {
	r := newRig(t, "one")
	ctx, m := t.Context(), r.machines[0]
	wire := r.Wire(t)
	r.config.Daemon = wire.Daemon
	d := r.open(t)
	within := func(context.Context) error { return nil }

	wire.Break(libvirttest.DomainResume, 3)
	in, err := d.Freeze(ctx, "resume", []volume.Spec{m.spec(0)}, within)
	ok(t, err)
	shows(t, "a machine that went on late", in.Source(0), m.disks[0])
	ok(t, in.Close())
	r.clean(t)

	wire.Break(libvirttest.DomainSuspend, 1)
	_, err = d.Freeze(ctx, "suspend", []volume.Spec{m.spec(0)}, within)
	refused(t, err, errs.Unavailable)
	r.clean(t)

	wire.Break(libvirttest.DomainAbortJob, 1)
	in, err = d.Freeze(ctx, "abort", []volume.Spec{m.spec(0)}, nil)
	ok(t, err)
	refused(t, in.Close(), errs.Unavailable)
	ok(t, d.Tidy(ctx))
	r.clean(t)

	// It hangs when a machine is paused: who waits for it leaves.
	in, err = d.Freeze(ctx, "hang", []volume.Spec{m.spec(0)}, nil)
	ok(t, err)
	m.call(func(l *rpc.Libvirt) error { return l.DomainSuspend(m.dom.Handle()) })
	dir := in.(*instant).backups[0].dir
	ok(t, os.WriteFile(filepath.Join(dir, pausedNote), nil, 0o600))
	wire.Hang(true)
	soon, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	refused(t, d.endOne(soon, m.dom.UUID, dir), errs.Unavailable, m.dom.UUID.String(), "virsh resume")
	wire.Hang(false)
	ok(t, d.endOne(ctx, m.dom.UUID, dir))
	ok(t, in.Close())
	r.clean(t)
}
