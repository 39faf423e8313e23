package live

import (
	"context"
	"io"
	"sync"

	"cairn/internal/extent"
	"cairn/internal/volume"
)

// exclusive keeps everybody else from a volume until release: jobs that would
// read or overwrite it, and clients, who cannot connect.
type exclusive struct {
	v      *vol
	resume func() // lets clients in again
	once   sync.Once
}

// end; see volume.Roller.End. If commit fails the volume stays excluded.
func (x *exclusive) end(commit func() error) error {
	v := x.v
	v.op.Lock()
	defer v.op.Unlock()
	if v.served.Load() == nil {
		resume, err := v.serveSuspended()
		if err != nil {
			v.d.log.Error("serve a volume; clients cannot connect to it", "volume", v.id, "error", err)
		} else {
			x.resume = resume
		}
	}
	if err := commit(); err != nil {
		return err
	}
	x.giveBack()
	return nil
}

// giveBack is called with op held.
func (x *exclusive) giveBack() {
	x.once.Do(func() {
		x.v.taken = false
		x.resume()
	})
}

// exclude waits for nobody. errs.Busy: a job reads or overwrites the volume;
// errs.Conflict: a client is connected, whose connection force ends.
func (d *Driver) exclude(ctx context.Context, s volume.Spec, force bool) (*exclusive, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	v, err := d.vol(s.ID)
	if err != nil {
		return nil, err
	}
	v.op.Lock()
	defer v.op.Unlock()
	if err := v.free(); err != nil {
		return nil, err
	}
	x := &exclusive{v: v, resume: func() {}}
	if e := v.served.Load(); e != nil {
		if x.resume, err = e.Suspend(ctx, force); err != nil {
			return nil, err
		}
	}
	v.taken = true
	return x, nil
}

// Close may be called more than once.
func (x *exclusive) Close() error {
	x.v.op.Lock()
	defer x.v.op.Unlock()
	x.giveBack()
	return nil
}

// target is a volume that is being overwritten by a job. It is written like a
// client writes, so tracking and map are right at any moment.
type target struct {
	*exclusive
	w      *view
	mu     sync.Mutex // guards failed
	failed error      // of a Sync; the content is unknown since
}

// OpenTarget opens a volume for being overwritten. errs.Busy: a job reads or
// overwrites it; errs.Conflict: a client is connected.
func (d *Driver) OpenTarget(ctx context.Context, s volume.Spec) (volume.Target, error) {
	x, err := d.exclude(ctx, s, false)
	if err != nil {
		return nil, err
	}
	return &target{exclusive: x, w: x.v.view.Load()}, nil
}

func (t *target) Size() int64 { return t.w.size }

func (t *target) inside(ctx context.Context, off, length int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return t.w.inside(t.v.id, off, length)
}

func (t *target) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := t.inside(ctx, off, int64(len(p))); err != nil {
		return err
	}
	return t.v.read(ctx, p, off)
}

func (t *target) Data(ctx context.Context, off int64) (extent.Range, error) {
	if off >= t.w.size {
		return extent.Range{}, io.EOF
	}
	if err := t.inside(ctx, off, 0); err != nil {
		return extent.Range{}, err
	}
	return t.v.data(ctx, t.w, off)
}

func (t *target) WriteAt(ctx context.Context, p []byte, off int64) error {
	return t.change(ctx, change{p: p, off: off, n: int64(len(p))})
}

func (t *target) Zero(ctx context.Context, off, length int64) error {
	return t.change(ctx, change{off: off, n: length})
}

func (t *target) change(ctx context.Context, c change) error {
	if err := t.inside(ctx, c.off, c.n); err != nil {
		return err
	}
	return t.v.write(ctx, c)
}

func (t *target) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed == nil {
		t.failed = t.v.flush()
	}
	return t.failed
}
