package virtvolume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/internal/errs"
	"cairn/internal/libvirt"
	"cairn/internal/volume"
)

// instant is one moment of disks of some machines.
type instant struct {
	d       *Driver
	hold    string
	at      time.Time
	backups []*backup
	sources []*source // in the order of the specs

	over    context.Context // ends with the instant, or with what it fails with
	fail    context.CancelCauseFunc
	watcher sync.WaitGroup
	once    sync.Once
	err     error // of free
}

// Freeze begins a backup of each machine. Where their moment must be that of
// others, too, machines that run are paused for it.
func (d *Driver) Freeze(ctx context.Context, hold string, specs []volume.Spec, within func(context.Context) error) (volume.Instant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(specs) == 0 || !plainName(hold) {
		return nil, errs.New(errs.Internal, "hold %q names no volume", hold)
	}
	d.mu.Lock()
	if _, taken := d.held[hold]; taken {
		d.mu.Unlock()
		return nil, errs.New(errs.Conflict, "an instant is open under hold %s already", hold)
	}
	d.held[hold] = nil
	d.mu.Unlock()
	in := &instant{d: d, hold: hold}
	in.over, in.fail = context.WithCancelCause(context.Background())
	err := in.freeze(ctx, specs, within)
	if err != nil {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
		err = errors.Join(err, in.free(ending, true))
		cancel()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		delete(d.held, hold)
		return nil, err
	}
	d.held[hold] = in
	in.watcher.Go(in.watch)
	return in, nil
}

func (in *instant) freeze(ctx context.Context, specs []volume.Spec, within func(context.Context) error) (err error) {
	if err := in.gather(ctx, specs); err != nil {
		return err
	}
	if within != nil || len(in.backups) > 1 {
		defer func() { err = errors.Join(err, in.resume(ctx)) }()
		if err := in.pause(ctx); err != nil {
			return err
		}
	}
	var g errgroup.Group
	for _, b := range in.backups {
		g.Go(func() error { return b.begin(ctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	in.at = time.Now().UTC()
	for _, s := range in.sources {
		if err := s.connect(ctx); err != nil {
			return err
		}
	}
	if within != nil {
		return within(ctx)
	}
	return nil
}

// gather claims all machines and makes everything ready.
func (in *instant) gather(ctx context.Context, specs []volume.Spec) error {
	d := in.d
	all, err := d.cfg.Daemon.Domains(ctx)
	if err != nil {
		return err
	}
	for _, spec := range specs {
		p, err := locate(spec)
		if err != nil {
			return err
		}
		b, err := in.backupOf(ctx, all, p)
		if err != nil {
			return err
		}
		k, err := p.disk(b.dom)
		if err != nil {
			return err
		}
		s := &source{at: p, b: b, file: identify(k.Path)}
		if b.source(p.target) != nil {
			return errs.New(errs.Internal, "hold %s names volume %s twice", in.hold, p.id)
		}
		if tracked(k) {
			if s.since, err = d.readRecord(p.id); err != nil {
				return err
			}
		}
		// In another file the bitmap of that name tells of another disk, or of
		// another time.
		if s.since.Path != spec.Path || s.since.File == "" || s.since.File != s.file {
			s.since = record{}
		}
		b.sources = append(b.sources, s)
		in.sources = append(in.sources, s)
	}
	return nil
}

// backupOf is the backup of a machine, made ready at its first disk.
func (in *instant) backupOf(ctx context.Context, all []libvirt.Domain, p place) (*backup, error) {
	d := in.d
	for _, b := range in.backups {
		if b.dom.UUID == p.domain {
			return b, nil
		}
	}
	dom, err := p.among(all)
	if err != nil {
		return nil, err
	}
	b := &backup{d: d, in: in, dom: dom, dir: filepath.Join(d.holdDir(in.hold), domainDir(dom.UUID)), mark: d.mark(in.hold, dom.UUID)}
	if err := d.claim(ctx, dom, in.hold, ""); err != nil {
		return nil, err
	}
	in.backups = append(in.backups, b)
	if err := d.endLeft(ctx, dom.UUID, b.dir); err != nil {
		return nil, err
	}
	// libvirt would wait for another's to end, half a minute.
	switch text, err := d.backupOf(ctx, dom); {
	case err != nil:
		return nil, err
	case text != "":
		return nil, errs.New(errs.Busy, "domain %s has a backup already, which somebody else makes; try again when that has ended, or end it (virsh domjobabort)", dom.Name)
	}
	keep, err := d.marksOf(b.prefix())
	if err != nil {
		return nil, err
	}
	if err := d.dropMarks(ctx, dom, keep); err != nil { // of jobs that were cut
		return nil, err
	}
	// QEMU's own user makes its socket there, and removes nobody else's.
	if err := os.MkdirAll(b.dir, 0o711); err != nil {
		return nil, err
	}
	return b, os.Chmod(b.dir, 0o733|os.ModeSticky)
}

func (in *instant) Time() time.Time { return in.at }

// Durable is always false: a backup ends with its machine.
func (in *instant) Durable() bool { return false }

func (in *instant) Source(i int) volume.Source { return in.sources[i] }

// Check asks whether all backups are still at it.
func (in *instant) Check(ctx context.Context) error {
	if in.over.Err() != nil {
		return context.Cause(in.over)
	}
	for _, b := range in.backups {
		if err := b.running(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Settle makes the checkpoints that began with the backups those from which
// changes are told, and removes the ones before.
func (in *instant) Settle(ctx context.Context, checkpoints []volume.Checkpoint, commit func() error) error {
	if len(checkpoints) != len(in.sources) {
		return errs.New(errs.Internal, "hold %s: %d checkpoints for %d volumes", in.hold, len(checkpoints), len(in.sources))
	}
	in.d.claims.end(in.hold, true)
	if err := commit(); err != nil {
		in.d.claims.end(in.hold, false)
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
	defer cancel()
	var all error
	for i, s := range in.sources {
		all = errors.Join(all, in.d.writeRecord(s.at.id, s.settled(checkpoints[i])))
	}
	return errors.Join(all, in.free(ctx, false))
}

func (in *instant) Close() error {
	in.d.mu.Lock()
	if in.d.held[in.hold] == in {
		delete(in.d.held, in.hold)
	}
	in.d.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	return in.free(ctx, true)
}

// free ends all backups, once; forget: as if there had been no instant. Else the
// checkpoints that no record has any more are removed.
func (in *instant) free(ctx context.Context, forget bool) error {
	in.once.Do(func() {
		in.fail(errs.New(errs.Internal, "the instant under hold %s is not held any more", in.hold))
		in.watcher.Wait()
		for _, s := range in.sources {
			if s.client != nil && s.srv == nil {
				in.err = errors.Join(in.err, s.client.Close())
			}
		}
		for _, b := range in.backups {
			in.err = errors.Join(in.err, b.end(ctx, forget))
		}
		if in.err == nil {
			in.err = os.RemoveAll(in.d.holdDir(in.hold))
		}
		if !forget {
			in.err = errors.Join(in.err, in.dropOldMarks(ctx))
		}
		in.d.claims.release(in.hold, "") // the last: who is next makes marks of its own
	})
	return in.err
}

func (in *instant) dropOldMarks(ctx context.Context) (all error) {
	for _, b := range in.backups {
		keep, err := in.d.marksOf(b.prefix())
		if err == nil {
			err = in.d.dropMarks(ctx, b.dom, keep)
		}
		all = errors.Join(all, err)
		for _, s := range b.sources {
			if s.srv == nil || err != nil {
				continue
			}
			// The machine may have been started since, and have the file.
			if err := in.d.dropBitmaps(ctx, s.disk, keep); err != nil {
				in.d.log.Info("a bitmap that tells nothing any more stays in a disk until its machine is stopped again", "volume", s.at.id, "error", err)
			}
		}
	}
	return all
}
