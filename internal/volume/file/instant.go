package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// instant is one moment of some volumes: reflinks, or the volumes themselves
// with guards on them.
type instant struct {
	disks   *disks
	hold    string
	at      time.Time
	durable bool
	sources []*source
	once    sync.Once
}

// begin claims a hold's name in this process; settle gives it to in, or back
// if in is nil.
func (d *disks) begin(hold string) error {
	if !nameOK(hold) {
		return errs.New(errs.Internal, "%q cannot name a hold", hold)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, taken := d.live[hold]; taken {
		return errs.New(errs.Conflict, "an instant is open under hold %s already", hold)
	}
	d.live[hold] = nil
	return nil
}

func (d *disks) settle(hold string, in *instant) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if in == nil {
		delete(d.live, hold)
		return
	}
	d.live[hold] = in
}

// Freeze holds one instant of all specs: by reflink if every one can be
// cloned into our folder, else by locks that last until Close. What an
// earlier process left under the same hold is dropped first.
func (d *disks) Freeze(ctx context.Context, hold string, specs []volume.Spec, within func(context.Context) error) (volume.Instant, error) {
	if err := d.begin(hold); err != nil {
		return nil, err
	}
	in, err := d.freeze(ctx, hold, specs, within)
	d.settle(hold, in)
	if err != nil {
		return nil, err
	}
	return in, nil
}

func (d *disks) freeze(ctx context.Context, hold string, specs []volume.Spec, within func(context.Context) error) (*instant, error) {
	if len(specs) == 0 {
		return nil, errs.New(errs.Internal, "hold %s names no volume", hold)
	}
	if err := d.removeHold(hold); err != nil {
		return nil, err
	}
	var guards []*guard
	release := func() error {
		var err error
		for _, g := range guards {
			err = errors.Join(err, g.release())
		}
		return err
	}
	for _, s := range specs {
		p, err := locate(s)
		if err != nil {
			return nil, errors.Join(err, release())
		}
		g, err := d.acquire(ctx, p, false)
		if err != nil {
			return nil, errors.Join(err, release())
		}
		guards = append(guards, g)
	}
	// From here to the clones, or to Close, nobody can have written unseen.
	in := &instant{disks: d, hold: hold, at: time.Now().UTC()}
	if within != nil {
		if err := within(ctx); err != nil {
			return nil, errors.Join(err, release())
		}
	}
	files, err := d.clone(hold, guards)
	if errors.Is(err, errNoReflink) {
		for _, g := range guards {
			in.sources = append(in.sources, newSource(g.id, g.f, isDevice(&g.st), g.size, g))
		}
		return in, nil
	}
	err = errors.Join(err, release())
	if err == nil {
		err = d.finish(in, guards, files)
	}
	if err != nil {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
		return nil, errors.Join(err, d.removeHold(hold))
	}
	return in, nil
}

// finish makes a durable instant of fresh reflinks.
func (d *disks) finish(in *instant, guards []*guard, files []*os.File) error {
	r := record{Version: 1, Time: in.at}
	for i, g := range guards {
		if err := in.add(g.id, files[i]); err != nil {
			return holdFailure("store", in.hold, err)
		}
		r.Volumes = append(r.Volumes, g.id)
	}
	in.durable = true
	return d.seal(in.hold, r, files)
}

// add makes the reflink f the instant's next source.
func (in *instant) add(id string, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("examine reflink of volume %s: %w", id, err)
	}
	in.sources = append(in.sources, newSource(id, f, false, info.Size(), nil))
	return nil
}

func newSource(id string, f *os.File, device bool, size int64, g *guard) *source {
	sequential(f)
	return &source{reader: reader{id: id, f: f, device: device, size: size}, guard: g}
}

func (in *instant) Time() time.Time { return in.at }

func (in *instant) Durable() bool { return in.durable }

func (in *instant) Source(i int) volume.Source { return in.sources[i] }

func (in *instant) Check(ctx context.Context) error {
	for _, s := range in.sources {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.guard == nil {
			continue
		}
		if err := s.guard.unchanged(); err != nil {
			return err
		}
	}
	return nil
}

// Settle lets go of the volumes once commit is through: changes are not
// tracked. Who comes for one of them before waits in claim.
func (in *instant) Settle(_ context.Context, _ []volume.Checkpoint, commit func() error) error {
	if err := commit(); err != nil {
		return err
	}
	return in.free()
}

func (in *instant) Close() error {
	d := in.disks
	d.mu.Lock()
	if d.live[in.hold] == in {
		delete(d.live, in.hold)
	}
	d.mu.Unlock()
	return in.free()
}

// free closes every descriptor, once.
func (in *instant) free() error {
	var err error
	in.once.Do(func() {
		for _, s := range in.sources {
			if s.guard != nil {
				err = errors.Join(err, s.guard.release())
			} else {
				err = errors.Join(err, s.f.Close())
			}
		}
	})
	return err
}

// Drop lets go of a hold. If this process has the instant open it is closed:
// its sources fail from then on.
func (d *disks) Drop(ctx context.Context, hold string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !nameOK(hold) {
		return errs.New(errs.Internal, "%q cannot name a hold", hold)
	}
	d.mu.Lock()
	in, taken := d.live[hold]
	if taken && in != nil {
		delete(d.live, hold)
	}
	d.mu.Unlock()
	if taken && in == nil {
		return errs.New(errs.Busy, "an instant is being made under hold %s; please try later", hold)
	}
	var err error
	if in != nil {
		err = in.free()
	}
	return errors.Join(err, d.removeHold(hold))
}
