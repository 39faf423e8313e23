package nbdvolume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// instant is one moment of some volumes, as long as nobody writes to them.
type instant struct {
	d       *Driver
	hold    string
	at      time.Time
	sources []*source
	once    sync.Once
}

// begin claims a hold's name in this process; settled gives it to in, or back
// if in is nil.
func (d *Driver) begin(hold string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, taken := d.held[hold]; taken {
		return errs.New(errs.Conflict, "an instant is open under hold %s already", hold)
	}
	d.held[hold] = nil
	return nil
}

func (d *Driver) begun(hold string, in *instant) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if in == nil {
		delete(d.held, hold)
		return
	}
	d.held[hold] = in
}

// Freeze looks at all volumes, and what it saw is what Check compares with.
// The moment comes after the last look, so that what is written from it on is
// a change.
func (d *Driver) Freeze(ctx context.Context, hold string, specs []volume.Spec, within func(context.Context) error) (volume.Instant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(specs) == 0 {
		return nil, errs.New(errs.Internal, "hold %s names no volume", hold)
	}
	if err := d.begin(hold); err != nil {
		return nil, err
	}
	in := &instant{d: d, hold: hold}
	if err := in.freeze(ctx, specs, within); err != nil {
		err = errors.Join(err, in.free())
		d.begun(hold, nil)
		return nil, err
	}
	d.begun(hold, in)
	return in, nil
}

func (in *instant) freeze(ctx context.Context, specs []volume.Spec, within func(context.Context) error) error {
	for _, s := range specs {
		src, err := in.d.openSource(ctx, s)
		if err != nil {
			return err
		}
		in.sources = append(in.sources, src)
	}
	in.at = time.Now().UTC()
	if within != nil {
		return within(ctx)
	}
	return nil
}

func (in *instant) Time() time.Time { return in.at }

// Durable is always false: nothing here can hold another server's data.
func (in *instant) Durable() bool { return false }

func (in *instant) Source(i int) volume.Source { return in.sources[i] }

// Check looks at all volumes once more, over new connections: an old one may
// keep the size that it was told.
func (in *instant) Check(ctx context.Context) error {
	for _, s := range in.sources {
		if err := s.check(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Settle writes down which bitmaps count from the new points on, of volumes
// whose bitmaps may be believed, and lets go of all. Who comes for one of them
// before waits in claim.
func (in *instant) Settle(_ context.Context, checkpoints []volume.Checkpoint, commit func() error) error {
	if len(checkpoints) != len(in.sources) {
		return errs.New(errs.Internal, "hold %s: %d checkpoints for %d volumes", in.hold, len(checkpoints), len(in.sources))
	}
	if err := commit(); err != nil {
		return err
	}
	var all error
	for i, s := range in.sources {
		all = errors.Join(all, s.settle(checkpoints[i]))
	}
	return errors.Join(all, in.free())
}

func (in *instant) Close() error {
	in.d.mu.Lock()
	if in.d.held[in.hold] == in {
		delete(in.d.held, in.hold)
	}
	in.d.mu.Unlock()
	return in.free()
}

// free ends all connections, once.
func (in *instant) free() (err error) {
	in.once.Do(func() {
		for _, s := range in.sources {
			err = errors.Join(err, s.conn.close())
			in.d.unclaim(s.conn.p)
		}
	})
	return err
}

// Reopen never finds anything: no instant is durable.
func (d *Driver) Reopen(ctx context.Context, hold string, _ []volume.Spec) (volume.Instant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("hold %s: %w", hold, volume.ErrNoInstant)
}

// Drop lets go of a hold. If its instant is open its sources fail from then on.
func (d *Driver) Drop(ctx context.Context, hold string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	in, taken := d.held[hold]
	d.mu.Unlock()
	switch {
	case !taken:
		return nil
	case in == nil:
		return errs.New(errs.Busy, "an instant is being made under hold %s; please try later", hold)
	}
	return in.Close()
}
