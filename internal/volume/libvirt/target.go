package virtvolume

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"

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
	dir  string
	srv  *server
	data *nbd.StatusMap
	once sync.Once

	mu     sync.Mutex // guards failed
	failed error      // what the disk holds is not known since
}

var _ volume.Target = (*target)(nil)

// overwriting has the domains of all targets; no hold can have its name.
const overwriting = "a target's"

// OpenTarget opens the disk of a stopped machine. What tells of its changes is
// dropped first, durably: what is written now shows in no bitmap.
func (d *Driver) OpenTarget(ctx context.Context, s volume.Spec) (volume.Target, error) {
	p, err := locate(s)
	if err != nil {
		return nil, err
	}
	dom, err := d.domain(ctx, p)
	if err != nil {
		return nil, err
	}
	k, err := p.disk(dom)
	if err != nil {
		return nil, err
	}
	if dom.Active {
		return nil, errs.New(errs.Busy, "volume %s: domain %s runs; it must be stopped before its disk is overwritten", p.id, dom.Name)
	}
	if err := d.refuseSaved(ctx, dom, p); err != nil {
		return nil, err
	}
	if err := d.claim(ctx, dom, overwriting, p.id); err != nil {
		return nil, err
	}
	t := &target{d: d, p: p, dir: d.holdDir("target-" + p.id)}
	if err := t.open(ctx, dom, k); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
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

func (t *target) open(ctx context.Context, dom libvirt.Domain, k libvirt.Disk) error {
	if err := t.d.writeRecord(t.p.id, record{}); err != nil {
		return err
	}
	if err := t.d.dropMarks(ctx, dom, nil); err != nil {
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
	return nil
}

// dropBitmaps removes this driver's bitmaps that are not to be kept from the file
// of a stopped machine's disk: libvirt forgets them only, and the machine would
// keep them up for nobody.
func (d *Driver) dropBitmaps(ctx context.Context, k libvirt.Disk, keep map[string]bool) error {
	if !tracked(k) {
		return nil
	}
	info, err := qemuImg(ctx, "info", "--output=json", "-f", k.Format, fileName(k.Path))
	if err != nil {
		return err
	}
	names, err := bitmapNames(info)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, d.markPrefix()) || keep[name] {
			continue
		}
		if _, err := qemuImg(ctx, "bitmap", "--remove", "-f", k.Format, fileName(k.Path), name); err != nil {
			return err
		}
	}
	return nil
}

// bitmapNames are the names that stand in what qemu-img tells of a file.
func bitmapNames(info []byte) (names []string, err error) {
	var x imageInfo
	if err := json.Unmarshal(info, &x); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "qemu-img describes a disk in a way that cannot be read")
	}
	for _, b := range x.Specific.Data.Bitmaps {
		names = append(names, b.Name)
	}
	return names, nil
}

type imageInfo struct {
	Specific struct {
		Data struct {
			Bitmaps []struct {
				Name string `json:"name"`
			} `json:"bitmaps"`
		} `json:"data"`
	} `json:"format-specific"`
}

func qemuImg(ctx context.Context, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "qemu-img", args...).Output()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = errors.Join(err, errors.New(strings.TrimSpace(string(exit.Stderr))))
	}
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "qemu-img cannot examine a disk of libvirt's; see the server's log")
	}
	return out, nil
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
	return t.change(ctx, "flush", func() error { return t.srv.client.Flush(ctx) })
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
		if t.srv != nil {
			err = t.srv.close()
		}
		err = errors.Join(err, os.RemoveAll(t.dir))
		t.d.claims.release(overwriting, t.p.id)
	})
	return err
}
