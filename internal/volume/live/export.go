package live

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// exportName is what clients ask for. It changes only with the generation,
// which a forced rollback moves on, so that a client which reconnects cannot
// repeat writes to what it wrote before.
func exportName(id string, generation uint64) string {
	if generation == 0 {
		return id
	}
	return fmt.Sprintf("%s@%d", id, generation)
}

// Serve lets clients connect to a volume. Serving it twice is harmless.
func (d *Driver) Serve(ctx context.Context, s volume.Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	v, err := d.vol(s.ID)
	if err != nil {
		return err
	}
	v.op.Lock()
	defer v.op.Unlock()
	return v.serve()
}

func (v *vol) serve() error {
	resume, err := v.serveSuspended()
	if err == nil {
		resume()
	}
	return err
}

// serveSuspended lets clients connect, who wait until resume.
func (v *vol) serveSuspended() (resume func(), err error) {
	if v.served.Load() != nil || v.closed || v.d.cfg.Server == nil {
		return func() {}, nil
	}
	name := exportName(v.id, v.generation)
	e, resume, err := v.d.cfg.Server.AddSuspended(nbd.ExportConfig{
		Name: name, Size: v.view.Load().size,
		MultiConn: true, CanTrim: true, CanZero: true, CanFastZero: true, CanCache: true,
		Contexts: []string{nbd.BaseAllocation}, BlockSize: nbd.BlockSize{Preferred: pageSize},
	}, backend{v})
	if err != nil {
		return nil, err
	}
	v.served.Store(&served{e, name})
	return resume, nil
}

// unserve ends all connections to a volume and takes no new ones.
func (d *Driver) unserve(ctx context.Context, s volume.Spec) error {
	o := d.opened(s.ID)
	if o == nil || o.v == nil {
		return nil
	}
	v := o.v
	v.op.Lock()
	e := v.served.Swap(nil)
	v.op.Unlock()
	if e == nil {
		return nil
	}
	return e.Remove(ctx)
}

// Exported tells how a volume is served.
func (d *Driver) Exported(ctx context.Context, s volume.Spec) (e volume.Export, err error) {
	if err := ctx.Err(); err != nil {
		return e, err
	}
	v, err := d.vol(s.ID)
	if err != nil {
		return e, err
	}
	if w := v.view.Load(); w.base != nil {
		// Until the base is let go of, durably, something is missing.
		e.Missing = min(max(w.tree.count(), 1)*clusterSize, w.size)
	}
	if s := v.served.Load(); s != nil {
		e.URIs, e.Clients = d.cfg.URIs(s.name), s.Connections()
	}
	return e, nil
}

// leaveLimit is how long a client that has hung up may still count as connected
// when somebody wants its volume: who disconnects and then deletes shall not be
// told that he is there.
const leaveLimit = time.Second

// Clients is how many clients use a volume, without those that have hung up. It
// may wait a moment for them to be gone.
func (d *Driver) Clients(ctx context.Context, s volume.Spec) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	v, err := d.vol(s.ID)
	if err != nil {
		return 0, err
	}
	if s := v.served.Load(); s != nil {
		return s.AwaitDetached(ctx, leaveLimit), nil
	}
	return 0, nil
}

// backend does what NBD clients ask for.
type backend struct{ v *vol }

var _ nbd.Backend = backend{}

func (b backend) ReadAt(ctx context.Context, p []byte, off int64) error { return b.v.read(ctx, p, off) }

func (b backend) WriteAt(ctx context.Context, p []byte, off int64, flags nbd.Flags) error {
	return b.change(ctx, change{p: p, off: off, n: int64(len(p))}, flags)
}

func (b backend) change(ctx context.Context, c change, flags nbd.Flags) error {
	if err := b.v.write(ctx, c); err != nil {
		return err
	}
	if flags&nbd.FUA != 0 {
		return b.v.flush()
	}
	return nil
}

func (b backend) Flush(context.Context) error { return b.v.flush() }

// Trim makes zeros of it: a later point is the smaller for it.
func (b backend) Trim(ctx context.Context, off, length int64, flags nbd.Flags) error {
	return b.change(ctx, change{off: off, n: length}, flags)
}

func (b backend) Zero(ctx context.Context, off, length int64, flags nbd.Flags) error {
	c := change{off: off, n: length, keep: flags&nbd.NoHole != 0}
	if flags&nbd.FastZero != 0 {
		if _, slow := b.v.view.Load().foreignEdge(c); slow {
			return unix.EOPNOTSUPP
		}
	}
	return b.change(ctx, c, flags)
}

// Cache fetches what is the tree's.
func (b backend) Cache(ctx context.Context, off, length int64) error {
	w := b.v.view.Load()
	if w.base == nil {
		return nil
	}
	for at := w.tree.next(off / clusterSize); at*clusterSize < off+length && at < w.tree.n; at = w.tree.next(at + 1) {
		if err := b.v.localize(ctx, w, at); err != nil {
			if b.v.view.Load() != w {
				return nil // its base is closed; this is advice
			}
			return err
		}
	}
	return nil
}

func (b backend) Status(ctx context.Context, into []nbd.Extent, name string, off, length int64, limit int) ([]nbd.Extent, error) {
	if name != nbd.BaseAllocation {
		return into, errs.New(errs.Invalid, "volume %s has no context %q", b.v.id, name)
	}
	w := b.v.view.Load()
	return allocation(into, off, min(off+length, w.size), limit, func(off int64) (extent.Range, error) {
		return b.v.data(ctx, w, off)
	})
}

// allocation tells what of a range is data by what next finds: the first range
// from off on that may hold anything but zeros, io.EOF if there is none.
func allocation(into []nbd.Extent, off, end int64, limit int, next func(off int64) (extent.Range, error)) ([]nbd.Extent, error) {
	for n := 0; off < end && n < limit; n++ {
		d, err := next(off)
		if errors.Is(err, io.EOF) {
			return append(into, nbd.Extent{Off: off, Len: end - off, Flags: nbd.Hole | nbd.Zero}), nil
		}
		if err != nil {
			return into, err
		}
		if d.Off > off {
			into = append(into, nbd.Extent{Off: off, Len: min(d.Off, end) - off, Flags: nbd.Hole | nbd.Zero})
			off = d.Off
			continue
		}
		into = append(into, nbd.Extent{Off: off, Len: d.End() - off})
		off = d.End()
	}
	return into, nil
}
