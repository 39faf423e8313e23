package nbdvolume

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// target is a volume that is being overwritten.
type target struct {
	conn   *conn
	size   int64
	unit   int64 // what the server wants writes to be multiples of
	data   *nbd.StatusMap
	noZero atomic.Bool // the server zeroes nothing: zeros are written
	once   sync.Once

	part sync.Mutex // held while a part of a unit is read, changed and written

	mu     sync.Mutex // guards what follows
	failed error      // the first failed change; the content is unknown since
}

var _ volume.Target = (*target)(nil)

// OpenTarget opens a volume for being overwritten. NBD has no way to keep
// other clients of the server out.
func (d *Driver) OpenTarget(ctx context.Context, spec volume.Spec) (volume.Target, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := locate(spec)
	if err != nil {
		return nil, err
	}
	if err := d.claim(ctx, p); err != nil {
		return nil, err
	}
	t, err := d.openTarget(ctx, p)
	if err != nil {
		d.unclaim(p)
		return nil, err
	}
	return t, nil
}

func (d *Driver) openTarget(ctx context.Context, p place) (*target, error) {
	k, err := d.connect(ctx, p, baseAllocation)
	if err != nil {
		return nil, err
	}
	t := &target{conn: k, size: k.size(), unit: k.client().BlockSize().Min}
	t.data = k.allocation(t.size, targetWindow)
	err = nil
	if k.readOnly() {
		err = errs.New(errs.Conflict, "volume %s: its NBD server gives it for reading only; let its owner serve it for writing, then try again", p.id)
	} else if ferr := k.client().Flush(ctx); errors.Is(ferr, nbd.ENOTSUP) {
		// Then no write could ever be called durable.
		err = errs.Wrap(errs.Conflict, ferr, "volume %s: its NBD server cannot make writes durable (it has no flush), so nothing is written to it", p.id)
	} else if ferr != nil {
		err = failure(ctx, p.id, "flush", ferr)
	}
	if err == nil {
		err = d.dropRecord(p.id) // what is written may show in no bitmap
	}
	if err != nil {
		return nil, errors.Join(err, k.close())
	}
	return t, nil
}

func (t *target) Size() int64 { return t.size }

// may says why a change must not be tried.
func (t *target) may(ctx context.Context, off, length int64) error {
	if err := inside(t.conn.p.id, t.size, off, length); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}

// fail latches err: after it nothing may be said about the content, so no
// later Sync may succeed.
func (t *target) fail(ctx context.Context, doing string, err error) error {
	err = failure(ctx, t.conn.p.id, doing, err)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.failed != nil:
	case ctx.Err() != nil: // the server may do it later
		t.failed = errs.Wrap(errs.Unavailable, err, "volume %s: a write to it was given up halfway, so what it holds is not known; overwrite it again", t.conn.p.id)
	default:
		t.failed = err
	}
	return err
}

func (t *target) ReadAt(ctx context.Context, buf []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := inside(t.conn.p.id, t.size, off, int64(len(buf))); err != nil {
		return err
	}
	return t.conn.read(ctx, buf, off)
}

func (t *target) Data(ctx context.Context, off int64) (extent.Range, error) {
	if err := ctx.Err(); err != nil {
		return extent.Range{}, err
	}
	if off < 0 {
		return extent.Range{}, inside(t.conn.p.id, t.size, off, 0)
	}
	return t.data.Next(ctx, off, nbd.HoldsData)
}

func (t *target) WriteAt(ctx context.Context, buf []byte, off int64) error {
	if err := t.may(ctx, off, int64(len(buf))); err != nil {
		return err
	}
	end := off + int64(len(buf))
	defer t.data.Written(end)
	return t.units(off, end,
		func(off, end int64) error { return t.partly(ctx, buf[:end-off], off) },
		func(off2, end2 int64) error { return t.write(ctx, buf[off2-off:end2-off], off2) },
		func(off2, _ int64) error { return t.partly(ctx, buf[off2-off:], off2) })
}

// units splits [off, end) into a part of a unit, whole units, and a part of a
// unit, where they are.
func (t *target) units(off, end int64, head, whole, tail func(off, end int64) error) error {
	first, last := (off+t.unit-1)&^(t.unit-1), end&^(t.unit-1)
	if off < min(first, end) {
		stop := min(first, end)
		if err := head(off, stop); err != nil {
			return err
		}
		off = stop
	}
	if off < last {
		if err := whole(off, last); err != nil {
			return err
		}
		off = last
	}
	if off < end {
		return tail(off, end)
	}
	return nil
}

// partly writes within one unit and leaves the rest of it.
func (t *target) partly(ctx context.Context, buf []byte, off int64) error {
	t.part.Lock()
	defer t.part.Unlock()
	at := off &^ (t.unit - 1)
	unit := make([]byte, t.unit) // the size is a multiple of it
	// What was asked for may be written in part already, so this counts too.
	if err := t.conn.use(func(c *nbd.Client) error { return c.ReadAt(ctx, unit, at) }); err != nil {
		return t.fail(ctx, "read", err)
	}
	copy(unit[off-at:], buf)
	return t.write(ctx, unit, at)
}

func (t *target) write(ctx context.Context, buf []byte, off int64) error {
	err := t.conn.use(func(c *nbd.Client) error { return c.WriteAt(ctx, buf, off, 0) })
	if err != nil {
		return t.fail(ctx, "write", err)
	}
	return nil
}

// Zero lets the server zero: a bare trim promises nothing.
func (t *target) Zero(ctx context.Context, off, length int64) error {
	if err := t.may(ctx, off, length); err != nil {
		return err
	}
	defer t.data.Written(off + length)
	zeros := func(off, end int64) error { return t.partly(ctx, make([]byte, end-off), off) }
	return t.units(off, off+length, zeros, func(off, end int64) error { return t.zero(ctx, off, end) }, zeros)
}

func (t *target) zero(ctx context.Context, off, end int64) error {
	if !t.noZero.Load() {
		err := t.conn.use(func(c *nbd.Client) error { return c.Zero(ctx, off, end-off, 0) })
		if err == nil {
			return nil
		}
		if !errors.Is(err, nbd.ENOTSUP) && !errors.Is(err, nbd.EINVAL) {
			return t.fail(ctx, "zero", err)
		}
		t.noZero.Store(true)
	}
	buf := make([]byte, min(end-off, 1<<20))
	for off < end {
		n := min(end-off, int64(len(buf)))
		if err := t.write(ctx, buf[:n], off); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// Sync lets the server flush. It fails if a connection was lost that had
// carried writes since the last one.
func (t *target) Sync(ctx context.Context) error {
	if err := t.may(ctx, 0, 0); err != nil {
		return err
	}
	err := t.conn.use(func(c *nbd.Client) error { return c.Flush(ctx) })
	if err != nil {
		return t.fail(ctx, "flush", err)
	}
	return nil
}

func (t *target) Close() (err error) {
	t.once.Do(func() {
		err = t.conn.close()
		t.conn.d.unclaim(t.conn.p)
	})
	return err
}
