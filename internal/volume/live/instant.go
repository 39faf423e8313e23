package live

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// instant is one moment of some volumes.
type instant struct {
	d     *Driver
	name  string
	at    time.Time
	vols  []*vol
	holds []*hold
	audit []int64 // where each volume's next audit begins
	once  sync.Once
}

// Freeze holds one instant of all specs. Writers wait until all gates were
// closed and opened again, and for nothing that takes long.
func (d *Driver) Freeze(ctx context.Context, name string, specs []volume.Spec, within func(context.Context) error) (volume.Instant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(specs) == 0 {
		return nil, errs.New(errs.Internal, "hold %s names no volume", name)
	}
	in := &instant{d: d, name: name, audit: make([]int64, len(specs))}
	if err := d.claim(in); err != nil {
		return nil, err
	}
	if err := in.freeze(ctx, specs, within); err != nil {
		d.unclaim(in)
		return nil, err
	}
	return in, nil
}

func (in *instant) freeze(ctx context.Context, specs []volume.Spec, within func(context.Context) error) error {
	for _, s := range specs {
		v, err := in.d.vol(s.ID)
		if err != nil {
			return err
		}
		if slices.Contains(in.vols, v) {
			return errs.New(errs.Internal, "hold %s names volume %s twice", in.name, s.ID)
		}
		in.vols = append(in.vols, v)
	}
	order := slices.SortedFunc(slices.Values(in.vols), func(a, b *vol) int { return strings.Compare(a.id, b.id) })
	for _, v := range order {
		v.op.Lock()
		defer v.op.Unlock()
		if err := v.free(); err != nil {
			return err
		}
	}
	for _, v := range in.vols {
		f, err := in.d.newScratch(v.id)
		if err != nil {
			return errors.Join(err, in.closeScratch())
		}
		in.holds = append(in.holds, &hold{scratch: f})
	}
	begin := time.Now()
	for _, v := range order {
		v.gate.Lock()
	}
	in.at = time.Now().UTC()
	var err error
	if within != nil {
		err = within(ctx)
	}
	if err == nil {
		for i, v := range in.vols {
			v.flip(in.holds[i])
		}
	}
	for _, v := range order {
		v.gate.Unlock()
	}
	if err != nil {
		return errors.Join(err, in.closeScratch())
	}
	in.d.log.Info("volumes frozen", "hold", in.name, "volumes", len(specs), "pause", time.Since(begin))
	return nil
}

func (in *instant) closeScratch() (err error) {
	for _, h := range in.holds {
		err = errors.Join(err, h.scratch.Close())
	}
	return err
}

func (in *instant) Time() time.Time { return in.at }

// Durable is always false: scratch is not synced, so that writers need not
// wait for a disk.
func (in *instant) Durable() bool { return false }

func (in *instant) Source(i int) volume.Source { return &source{in: in, i: i, h: in.holds[i]} }

func (in *instant) Check(context.Context) error {
	for _, h := range in.holds {
		if err := h.failure(); err != nil {
			return err
		}
		if err := h.written(1); err != nil {
			return h.v.d.scratchFailure(h.v.id, err)
		}
	}
	return nil
}

// Settle makes the instant the one from which changes are counted.
func (in *instant) Settle(_ context.Context, checkpoints []volume.Checkpoint, commit func() error) error {
	if len(checkpoints) != len(in.vols) {
		return errs.New(errs.Internal, "hold %s: %d checkpoints for %d volumes", in.name, len(checkpoints), len(in.vols))
	}
	order := make([]int, len(in.vols))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return strings.Compare(in.vols[a].id, in.vols[b].id) })
	for _, i := range order {
		in.vols[i].op.Lock()
	}
	refused := commit()
	var all error
	for _, i := range order {
		v := in.vols[i]
		if refused == nil {
			all = errors.Join(all, v.settle(in.holds[i], checkpoints[i], in.audit[i]))
		}
		v.op.Unlock()
	}
	return cmp.Or(refused, all)
}

// Close gives up what was not settled.
func (in *instant) Close() error {
	in.once.Do(func() {
		for i, v := range in.vols {
			v.op.Lock()
			v.gate.Lock()
			mine := v.hold == in.holds[i]
			if mine {
				v.rejoin()
			}
			v.gate.Unlock()
			v.op.Unlock()
			if mine {
				in.d.freeScratch(in.holds[i])
			}
		}
		in.d.unclaim(in)
	})
	return nil
}

// Reopen never finds anything: no instant is durable.
func (d *Driver) Reopen(ctx context.Context, name string, _ []volume.Spec) (volume.Instant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("hold %s: %w", name, volume.ErrNoInstant)
}

// Drop gives up what is held under a name.
func (d *Driver) Drop(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	in := d.instants[name]
	d.mu.Unlock()
	if in == nil {
		return nil
	}
	return in.Close()
}

func (d *Driver) claim(in *instant) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.instants[in.name] != nil {
		return errs.New(errs.Conflict, "an instant is open under hold %s already", in.name)
	}
	d.instants[in.name] = in
	return nil
}

func (d *Driver) unclaim(in *instant) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.instants[in.name] == in {
		delete(d.instants, in.name)
	}
}
