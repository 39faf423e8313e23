package libvirt

import (
	"context"
	"sync"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"cairn/internal/compute"
	"cairn/internal/errs"
	"cairn/internal/libvirt"
)

// thawLimit is how long one try to let a guest go on may take.
const thawLimit = 15 * time.Second

// frozen is a guest at rest.
type frozen struct {
	d     *Driver
	dom   libvirt.Domain
	timer *time.Timer

	mu   sync.Mutex // guards what follows
	over bool       // it was told to go on, or is until it does
	err  error      // what is not known of the time until then
}

var _ compute.Frozen = (*frozen)(nil)

// Freeze asks the guest's agent through libvirt, which gives one that is silent
// five seconds, and needs no more than ctx has.
func (d *Driver) Freeze(ctx context.Context, id string, limit time.Duration) (compute.Frozen, error) {
	dom, err := d.daemon.Find(ctx, id)
	if err != nil {
		return nil, err
	}
	switch {
	case !dom.Active || !dom.Agent:
		return nil, errs.New(errs.Unavailable, "domain %s is not running with the channel of a guest agent", dom.Name)
	case !dom.AgentListens:
		return nil, errs.New(errs.Unavailable, "the guest of domain %s has no agent that listens", dom.Name)
	}
	f := &frozen{d: d, dom: dom}
	err = d.daemon.Do(ctx, func(l *rpc.Libvirt) error {
		_, err := l.DomainFsfreeze(dom.Handle(), nil, 0)
		return err
	})
	if err != nil {
		d.chores.Go(f.insist)
		return nil, errs.Wrap(errs.Unavailable, err, "the guest of domain %s cannot freeze its filesystems", dom.Name)
	}
	d.chores.Add(1)
	f.timer = time.AfterFunc(limit, func() {
		defer d.chores.Done()
		f.watchdog()
	})
	return f, nil
}

// Thaw lets the guest go on. If it does not hear that, as while its machine is
// paused, it is told again until it does.
func (f *frozen) Thaw(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return f.err
	}
	if f.timer.Stop() {
		f.d.chores.Done()
	}
	f.over = true
	n, err := f.thaw(ctx)
	switch {
	case err != nil:
		f.err = errs.Wrap(errs.Unavailable, err, "the guest of domain %s does not hear that its filesystems may go on, and is told again", f.dom.Name)
		f.d.chores.Go(f.insist)
	case n == 0: // somebody else thawed it
		f.err = errs.New(errs.Unavailable, "the guest of domain %s did not stay frozen", f.dom.Name)
	}
	return f.err
}

// thaw tells how many filesystems were frozen until now.
func (f *frozen) thaw(ctx context.Context) (n int32, err error) {
	ctx, cancel := context.WithTimeout(ctx, thawLimit)
	defer cancel()
	err = f.d.daemon.Do(ctx, func(l *rpc.Libvirt) (err error) {
		n, err = l.DomainFsthaw(f.dom.Handle(), nil, 0)
		return err
	})
	return n, err
}

// watchdog thaws a guest whose Thaw did not come in time.
func (f *frozen) watchdog() {
	f.mu.Lock()
	if f.over {
		f.mu.Unlock()
		return
	}
	f.d.log.Warn("a guest is at rest for too long, and goes on", "machine", f.dom.Name)
	f.over = true
	f.err = errs.New(errs.Unavailable, "the guest of domain %s was at rest for too long and was thawed by the watchdog", f.dom.Name)
	f.mu.Unlock()
	f.insist()
}

// insist thaws a guest that may be at rest: also one whose freeze failed, which
// may be at it still, or have frozen some.
func (f *frozen) insist() {
	compute.Insist(f.d.log, f.dom.Name, f.d.ending, func(ctx context.Context) (gone bool, err error) {
		if _, err = f.thaw(ctx); err == nil {
			return false, nil
		}
		now, found := f.d.daemon.Find(ctx, f.dom.InstanceID())
		return errs.Is(found, errs.NotFound) || found == nil && !now.Active, err
	})
}
