package virtvolume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"golang.org/x/sync/errgroup"

	"cairn/internal/durable"
	"cairn/internal/errs"
	"cairn/internal/libvirt"
)

// pausedNote is in the folder of a machine that is paused by us.
const pausedNote = "paused"

// pause stops the processors of all machines that run. resume lets them go on,
// also after an error.
func (in *instant) pause(ctx context.Context) error {
	for _, b := range in.backups {
		if b.dom.State != rpc.DomainRunning && b.dom.State != rpc.DomainBlocked {
			continue
		}
		if err := durable.Write(filepath.Join(b.dir, pausedNote), nil); err != nil {
			return err
		}
		b.paused = true
		if err := in.d.suspend(ctx, b.dom); err != nil {
			return err
		}
	}
	return nil
}

// resume lets all machines that were paused go on. One that does not is still
// noted, for whoever ends the backup.
func (in *instant) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
	defer cancel()
	var g errgroup.Group
	for _, b := range in.backups {
		g.Go(func() error { return b.resume(ctx) })
	}
	return g.Wait()
}

func (b *backup) resume(ctx context.Context) error {
	if !b.paused {
		return nil
	}
	err := b.d.resume(ctx, b.dom, b.dir)
	b.paused = err != nil
	return err
}

// suspend is not given up with ctx: the machine could be paused after resume has
// looked.
func (d *Driver) suspend(ctx context.Context, dom libvirt.Domain) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
	defer cancel()
	return d.cfg.Daemon.Do(ctx, func(l *rpc.Libvirt) error { return l.DomainSuspend(dom.Handle()) })
}

// resumeRetry is how soon a machine is told again that it may go on.
const resumeRetry = 50 * time.Millisecond

// resume lets a machine go on whose folder says that it was paused by us, and
// tries that until ctx ends.
func (d *Driver) resume(ctx context.Context, dom libvirt.Domain, dir string) error {
	note := filepath.Join(dir, pausedNote)
	if _, err := os.Stat(note); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for wait := resumeRetry; ; wait = min(2*wait, time.Second) {
		err := d.cfg.Daemon.Do(ctx, func(l *rpc.Libvirt) error {
			state, _, err := l.DomainGetState(dom.Handle(), 0)
			if err != nil || rpc.DomainState(state) != rpc.DomainPaused {
				return err
			}
			return l.DomainResume(dom.Handle())
		})
		if err == nil || errs.Is(err, errs.NotFound) {
			return os.Remove(note)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return errs.Wrap(errs.Unavailable, err, "domain %s was paused for a snapshot and could not be let go on yet; that is tried again, or do it (virsh resume)", named(dom))
		}
	}
}

// named is a domain for people, of which only the UUID may be known.
func named(dom libvirt.Domain) string {
	if dom.Name != "" {
		return dom.Name
	}
	return dom.UUID.String()
}
