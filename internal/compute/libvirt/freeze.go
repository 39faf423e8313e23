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

// thawLimit is how long it is tried to let a guest go on.
const thawLimit = time.Minute

// frozen is a guest at rest.
type frozen struct {
	d     *Driver
	dom   libvirt.Domain
	timer *time.Timer

	mu   sync.Mutex // guards what follows
	done bool
	err  error // of the thaw
}

var _ compute.Frozen = (*frozen)(nil)

// Freeze asks the guest's agent through libvirt, which gives one that is silent
// five seconds, and needs no more than ctx has.
func (d *Driver) Freeze(ctx context.Context, id string, limit time.Duration) (compute.Frozen, error) {
	dom, err := d.daemon.Find(ctx, id)
	if err != nil {
		return nil, err
	}
	if !dom.Agent || !dom.Active {
		return nil, errs.New(errs.Unavailable, "domain %s is not running with the channel of a guest agent", dom.Name)
	}
	f := &frozen{d: d, dom: dom}
	err = d.daemon.Do(ctx, func(l *rpc.Libvirt) error {
		_, err := l.DomainFsfreeze(dom.Handle(), nil, 0)
		return err
	})
	if err != nil {
		d.chores.Go(f.giveUp)
		return nil, errs.Wrap(errs.Unavailable, err, "the guest of domain %s cannot freeze its filesystems", dom.Name)
	}
	d.chores.Add(1)
	f.timer = time.AfterFunc(limit, func() {
		defer d.chores.Done()
		f.watchdog()
	})
	return f, nil
}

// Thaw lets the guest go on.
func (f *frozen) Thaw(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done {
		return f.err
	}
	if f.timer.Stop() {
		f.d.chores.Done()
	}
	f.done = true
	n, err := f.thaw(ctx)
	if err != nil {
		// Once more, on a connection that does not end with the caller.
		_, again := f.thaw(context.WithoutCancel(ctx))
		if again == nil {
			f.d.log.Info("thawed a guest at the second attempt", "machine", f.dom.Name, "error", err)
		}
	}
	f.err = err
	if err == nil && n == 0 {
		f.err = errs.New(errs.Unavailable, "the guest of domain %s did not stay frozen", f.dom.Name)
	}
	return f.err
}

// thaw tells how many filesystems were frozen until now: none, if somebody else
// thawed them.
func (f *frozen) thaw(ctx context.Context) (n int32, err error) {
	ctx, cancel := context.WithTimeout(ctx, thawLimit)
	defer cancel()
	err = f.d.daemon.Do(ctx, func(l *rpc.Libvirt) (err error) {
		n, err = l.DomainFsthaw(f.dom.Handle(), nil, 0)
		return err
	})
	return n, err
}

// watchdog thaws a guest whose Thaw did not come in time, or that did not answer.
func (f *frozen) watchdog() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done {
		return
	}
	f.done = true
	_, err := f.thaw(context.Background())
	f.err = errs.Wrap(errs.Unavailable, err, "the guest of domain %s was frozen for too long and has been thawed", f.dom.Name)
	f.d.log.Warn("thawed a guest that was frozen for too long", "machine", f.dom.Name, "error", err)
}

// giveUp tells a guest whose freeze failed to go on: it may be at it, or have
// frozen some, or will when it gets to it. Nobody waits for that.
func (f *frozen) giveUp() {
	if n, err := f.thaw(context.Background()); err != nil || n > 0 {
		f.d.log.Info("a guest that was not frozen was told to go on", "machine", f.dom.Name, "filesystems", n, "error", err)
	}
}
