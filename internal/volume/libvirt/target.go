package virtvolume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/libvirt"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// targetWindow is how much is asked about at a time; it is asked anew behind each
// write.
const targetWindow = 64 << 20

// target is the disk of a stopped machine, opened for being overwritten.
type target struct {
	d    *Driver
	p    place
	dom  libvirt.Domain
	dir  string
	srv  *server
	data *nbd.StatusMap
	once sync.Once

	stop    context.CancelFunc // of watcher; may be nil
	watcher sync.WaitGroup

	mu     sync.Mutex // guards failed
	failed error      // what the disk holds is not known since
}

var _ volume.Target = (*target)(nil)

// overwriting has the domains of all targets; no hold can have its name.
const overwriting = "a target's"

// OpenTarget opens the disk of a stopped machine. What tells of its changes is
// dropped first, durably: what is written now shows in no bitmap.
func (d *Driver) OpenTarget(ctx context.Context, s volume.Spec) (volume.Target, error) {
	p, dom, k, err := d.writable(ctx, s)
	if err != nil {
		return nil, err
	}
	if dom.Active {
		return nil, errs.New(errs.Busy, "volume %s: domain %s runs; it must be stopped before its disk is overwritten", p.id, dom.Name)
	}
	if err := d.claim(ctx, dom, overwriting, p.id); err != nil {
		return nil, err
	}
	t := &target{d: d, p: p, dom: dom, dir: filepath.Join(d.cfg.Dir, "targets", filepath.Base(d.holdDir(p.id)))}
	if err := t.open(ctx, k); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// CheckTarget says what OpenTarget would say if the machine were stopped.
func (d *Driver) CheckTarget(ctx context.Context, s volume.Spec) error {
	p, dom, k, err := d.writable(ctx, s)
	if err != nil || !dom.Active {
		return err
	}
	next, err := d.cfg.Daemon.Defined(ctx, dom)
	if err != nil {
		return err
	}
	for _, n := range next.Disks {
		if n.Target == k.Target && n.Path == k.Path && n.Format == k.Format {
			return nil
		}
	}
	return errs.New(errs.Conflict, "%s: disk %s of domain %s is %s as it runs, but its definition says otherwise (virsh dumpxml --inactive), so its next start would be with another disk; make both the same, or restart it, and try again", p.id, k.Target, dom.Name, k.Path)
}

// writable finds the disk that is to be overwritten. errs.Conflict: others would
// be harmed by that.
func (d *Driver) writable(ctx context.Context, s volume.Spec) (p place, dom libvirt.Domain, k libvirt.Disk, err error) {
	if p, err = locate(s); err != nil {
		return p, dom, k, err
	}
	all, err := d.cfg.Daemon.Domains(ctx)
	if err != nil {
		return p, dom, k, err
	}
	if dom, err = p.among(all); err != nil {
		return p, dom, k, err
	}
	if k, err = p.disk(dom); err != nil {
		return p, dom, k, err
	}
	if other, disk, found := builtOn(all, k.Path); found {
		return p, dom, k, errs.New(errs.Conflict, "%s: disk %s of domain %s is built on its file %s and would be broken; make that one whole first (virsh blockpull)", p.id, disk.Target, other.Name, k.Path)
	}
	return p, dom, k, d.refuseSaved(ctx, dom, p)
}

// refuseSaved refuses a machine whose memory libvirt has saved: when it is started
// its guest would go on with another disk than it knows.
func (d *Driver) refuseSaved(ctx context.Context, dom libvirt.Domain, p place) error {
	saved := int32(0)
	err := d.cfg.Daemon.Do(ctx, func(l *rpc.Libvirt) (err error) {
		saved, err = l.DomainHasManagedSaveImage(dom.Handle(), 0)
		return err
	})
	if err == nil && saved != 0 {
		err = errs.New(errs.Conflict, "%s: the memory of domain %s is saved, and its guest would go on with a disk that it does not know; start it, or give that memory up (virsh managedsave-remove %s), and try again", p.id, dom.Name, dom.Name)
	}
	return err
}

func (t *target) open(ctx context.Context, k libvirt.Disk) error {
	if err := t.d.writeRecord(t.p.id, record{}); err != nil {
		return err
	}
	if err := t.d.dropMarks(ctx, t.dom, nil); err != nil {
		return err
	}
	if err := t.d.dropBitmaps(ctx, k, nil); err != nil {
		return err
	}
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	srv, err := t.d.serve(ctx, t.p, k, t.dir, true)
	if err != nil {
		return err
	}
	t.srv = srv
	t.data = nbd.NewStatusMap(t.Size(), targetWindow, func(ctx context.Context, off, length int64) ([]nbd.Extent, error) {
		return srv.client.Status(ctx, nbd.BaseAllocation, off, length)
	})
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	t.stop = stop
	t.watcher.Go(func() { t.watch(watching) })
	return nil
}

// activeEvery is how often it is looked whether the machine was started.
const activeEvery = 500 * time.Millisecond

// watch fails the target if the machine is started: of a disk that is a device no
// lock keeps it from that, and its guest writes, too.
func (t *target) watch(ctx context.Context) {
	tick := time.NewTicker(activeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if t.started(ctx) != nil {
			return
		}
	}
}

// started fails the target if the machine has been started. A daemon that does
// not answer now is asked again.
func (t *target) started(ctx context.Context) error {
	active := int32(0)
	err := t.d.cfg.Daemon.Do(ctx, func(l *rpc.Libvirt) (err error) {
		active, err = l.DomainIsActive(t.dom.Handle())
		return err
	})
	if err != nil || active == 0 {
		return err
	}
	err = errs.New(errs.Conflict, "volume %s: domain %s was started while its disk %s was overwritten, so what it holds is not known; stop it and apply the snapshot again", t.p.id, t.dom.Name, t.p.target)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed == nil {
		t.failed = err
	}
	return t.failed
}

func (t *target) Size() int64 { return t.srv.client.Size() }

func (t *target) ReadAt(ctx context.Context, buf []byte, off int64) error {
	if err := t.srv.client.ReadAt(ctx, buf, off); err != nil {
		return t.failure(ctx, "read", err)
	}
	return nil
}

func (t *target) Data(ctx context.Context, off int64) (extent.Range, error) {
	r, err := t.data.Next(ctx, off, nbd.HoldsData)
	if err != nil && !isEOF(err) {
		err = t.failure(ctx, "examine", err)
	}
	return r, err
}

func (t *target) WriteAt(ctx context.Context, buf []byte, off int64) error {
	defer t.data.Written(off + int64(len(buf)))
	return t.change(ctx, "write", func() error { return t.srv.client.WriteAt(ctx, buf, off, 0) })
}

func (t *target) Zero(ctx context.Context, off, length int64) error {
	defer t.data.Written(off + length)
	return t.change(ctx, "zero", func() error { return t.srv.client.Zero(ctx, off, length, 0) })
}

func (t *target) Sync(ctx context.Context) error {
	if err := t.change(ctx, "flush", func() error { return t.srv.client.Flush(ctx) }); err != nil {
		return err
	}
	return t.started(ctx)
}

// change does what makes the content unknown if it fails: then no later Sync may
// succeed.
func (t *target) change(ctx context.Context, doing string, do func() error) error {
	t.mu.Lock()
	failed := t.failed
	t.mu.Unlock()
	if failed != nil {
		return failed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err := do()
	if err == nil || errs.Is(err, errs.Invalid) { // what is outside was not tried
		return err
	}
	err = t.failure(ctx, doing, err)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed == nil {
		t.failed = errs.Wrap(errs.Unavailable, err, "volume %s: a write to it failed halfway, so what it holds is not known; overwrite it again", t.p.id)
	}
	return err
}

func (t *target) failure(ctx context.Context, doing string, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errs.Is(err, errs.Invalid):
		return err
	case errs.Is(err, errs.Full):
		return errs.Wrap(errs.Full, err, "volume %s: no space is left where its disk %s lies; free some and try again", t.p.id, t.p.target)
	}
	return errs.Wrap(errs.Unavailable, err, "volume %s: its disk %s failed to %s; see the server's log", t.p.id, t.p.target, doing)
}

func (t *target) Close() (err error) {
	t.once.Do(func() {
		if t.stop != nil {
			t.stop()
		}
		t.watcher.Wait()
		if t.srv != nil {
			err = t.srv.close()
		}
		err = errors.Join(err, os.RemoveAll(t.dir))
		t.d.claims.release(overwriting, t.p.id)
	})
	return err
}
