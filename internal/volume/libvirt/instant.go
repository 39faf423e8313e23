package virtvolume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"cairn/internal/durable"
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
		err = errors.Join(err, in.free(context.WithoutCancel(ctx), true))
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

func (in *instant) freeze(ctx context.Context, specs []volume.Spec, within func(context.Context) error) error {
	if err := in.gather(ctx, specs); err != nil {
		return err
	}
	if within != nil || len(in.backups) > 1 {
		resume, err := in.pause(ctx)
		defer resume()
		if err != nil {
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
		s := &source{at: p, b: b}
		if b.source(p.target) != nil {
			return errs.New(errs.Internal, "hold %s names volume %s twice", in.hold, p.id)
		}
		if tracked(k) {
			if s.since, err = d.readRecord(p.id); err != nil {
				return err
			}
		}
		if s.since.Path != spec.Path {
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
	b := &backup{d: d, dom: dom, dir: filepath.Join(d.holdDir(in.hold), domainDir(dom.UUID)), mark: d.markPrefix() + in.hold}
	if err := d.claim(ctx, dom, in.hold, ""); err != nil {
		return nil, err
	}
	in.backups = append(in.backups, b)
	// libvirt would wait for another's to end, half a minute.
	switch text, err := d.backupOf(ctx, dom); {
	case err != nil:
		return nil, err
	case text != "":
		return nil, errs.New(errs.Busy, "domain %s has a backup already, of a job that was cut or somebody else's; try again, or end it (virsh domjobabort)", dom.Name)
	}
	keep, err := d.marksOf(b.prefix())
	if err != nil {
		return nil, err
	}
	if err := d.dropMarks(ctx, dom, keep); err != nil { // of jobs that were cut
		return nil, err
	}
	// QEMU's own user makes its socket there.
	if err := os.MkdirAll(b.dir, 0o711); err != nil {
		return nil, err
	}
	return b, os.Chmod(b.dir, 0o733)
}

// pausedNote is in the folder of a machine that is paused by us.
const pausedNote = "paused"

// pause stops the processors of all machines that run. resume lets them go on.
func (in *instant) pause(ctx context.Context) (resume func(), err error) {
	var paused []*backup
	resume = func() {
		for _, b := range paused {
			if err := in.d.resume(context.WithoutCancel(ctx), b.dom, b.dir); err != nil {
				in.d.log.Error("a machine that was paused for a snapshot does not go on; resume it (virsh resume)", "machine", b.dom.Name, "error", err)
			}
		}
	}
	for _, b := range in.backups {
		if b.dom.State != rpc.DomainRunning && b.dom.State != rpc.DomainBlocked {
			continue
		}
		if err := durable.Write(filepath.Join(b.dir, pausedNote), nil); err != nil {
			return resume, err
		}
		paused = append(paused, b)
		if err := in.d.suspend(ctx, b.dom); err != nil {
			return resume, err
		}
	}
	return resume, nil
}

// suspend is not given up with ctx: the machine could be paused after resume has
// looked.
func (d *Driver) suspend(ctx context.Context, dom libvirt.Domain) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
	defer cancel()
	return d.cfg.Daemon.Do(ctx, func(l *rpc.Libvirt) error { return l.DomainSuspend(dom.Handle()) })
}

func (d *Driver) resume(ctx context.Context, dom libvirt.Domain, dir string) error {
	err := d.cfg.Daemon.Do(ctx, func(l *rpc.Libvirt) error {
		state, _, err := l.DomainGetState(dom.Handle(), 0)
		if err != nil || rpc.DomainState(state) != rpc.DomainPaused {
			return err
		}
		return l.DomainResume(dom.Handle())
	})
	if err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	return os.RemoveAll(filepath.Join(dir, pausedNote))
}

// watchEvery is how often the room that scratch takes is looked at.
const watchEvery = 200 * time.Millisecond

// watch gives the instant up before its scratch takes more than it may: a guest
// whose overwritten data QEMU cannot keep would not be let write.
func (in *instant) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-in.over.Done():
			return
		case <-tick.C:
		}
		if err := in.room(); err != nil {
			in.fail(err)
			for _, b := range in.backups {
				if err := in.d.abort(context.Background(), b.dom, b.dir); err != nil {
					in.d.log.Error("a backup whose scratch is full cannot be ended", "machine", b.dom.Name, "error", err)
				}
			}
			return
		}
	}
}

// room fails if scratch takes too much. Each instant may take all there is: two
// of them are ended later than one.
func (in *instant) room() error {
	var used int64
	for _, b := range in.backups {
		used += b.used()
	}
	if used > in.d.cfg.ScratchBytes {
		return errs.New(errs.Full, "domain %s: so much was overwritten during the snapshot that the scratch space of %d MiB is full, and the snapshot is given up; take it when less is written, or raise --scratch", in.backups[0].dom.Name, in.d.cfg.ScratchBytes>>20)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(in.d.cfg.Dir, &st); err == nil && used > 0 && int64(st.Bavail)*st.Bsize < freeFloor {
		return errs.New(errs.Full, "domain %s: the server's disk is nearly full, so what is overwritten during the snapshot cannot be kept, and the snapshot is given up; free some space and try again", in.backups[0].dom.Name)
	}
	return nil
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
	}
	return all
}

// Drop lets go of a hold, also of one that an earlier process left.
func (d *Driver) Drop(ctx context.Context, hold string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	in, taken := d.held[hold]
	d.mu.Unlock()
	switch {
	case taken && in == nil:
		return errs.New(errs.Busy, "an instant is being made under hold %s; please try later", hold)
	case taken:
		return in.Close()
	case !plainName(hold):
		return nil
	}
	d.claims.release(hold, "")
	return d.dropLeft(ctx, hold)
}

// dropLeft ends what an earlier process began under a hold.
func (d *Driver) dropLeft(ctx context.Context, hold string) error {
	dir := d.holdDir(hold)
	left, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range left {
		id, ok := domainOf(e.Name())
		if !ok {
			continue
		}
		dom, at := libvirt.Domain{UUID: id}, filepath.Join(dir, e.Name())
		if err := d.abort(ctx, dom, at); err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(at, pausedNote)); err == nil {
			if err := d.resume(ctx, dom, at); err != nil {
				return err
			}
		}
		keep, err := d.marksOf(libvirt.DiskScheme + id.String() + "/")
		if err == nil && !keep[d.markPrefix()+hold] {
			err = d.dropMark(ctx, dom, d.markPrefix()+hold)
		}
		if err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}
