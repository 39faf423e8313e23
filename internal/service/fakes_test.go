package service_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"sync"
	"time"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/service"
	"cairn/internal/volume"
)

// errLost is the answer of a call whose own answer was lost.
var errLost = errors.New("the answer was lost")

// errDead is what every call answers once the process is dead.
var errDead = errors.New("the process is dead")

// fuse kills the process at its at-th call, before or after the call has
// taken effect. at 0: never.
type fuse struct {
	mu    sync.Mutex
	calls int
	at    int
	after bool
	dead  bool
	made  map[string]int   // by call: how often it was made
	fails map[string]error // by call: errors that do not kill
	lost  string           // the call whose next answer is lost, which does not kill
	late  time.Duration    // after which the caller learns of that
}

func (f *fuse) do(name string, fn func() error) error {
	f.mu.Lock()
	if f.dead {
		f.mu.Unlock()
		return errDead
	}
	if f.made == nil {
		f.made = map[string]int{}
	}
	f.made[name]++
	if err := f.fails[name]; err != nil {
		f.mu.Unlock()
		return err
	}
	if f.lost == name {
		f.lost = ""
		late := f.late
		f.mu.Unlock()
		_ = fn()
		time.Sleep(late)
		return errLost
	}
	f.calls++
	blown := f.calls == f.at
	f.dead = blown
	f.mu.Unlock()
	if !blown {
		return fn()
	}
	if f.after {
		_ = fn() // its answer is lost
	}
	return errDead
}

func (f *fuse) isDead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead
}

// fail makes every call of that name answer err; nil heals it.
func (f *fuse) fail(name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails == nil {
		f.fails = map[string]error{}
	}
	f.fails[name] = err
}

// count is how often a call was made.
func (f *fuse) count(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.made[name]
}

// lose loses the answer of the next call of that name; the caller learns of
// that late.
func (f *fuse) lose(name string, late time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost, f.late = name, late
}

// mixed is the content of a volume whose overwriting is not through.
const mixed = "a mixture"

// disk is what outlives processes: volumes, held instants and the repository.
// A content is a word, a blob is a point's content.
type disk struct {
	mu      sync.Mutex
	content map[string]string            // by volume id or registered path
	size    map[string]int64             // the same keys
	holds   map[string]map[string]string // durable instants: hold → key → content
	blobs   map[string]string            // blob name → content
	busy    map[string]bool              // somebody else has it open
	plugged map[string]bool              // a machine is its client
	reflink bool                         // instants are durable
	base    map[string]string            // of live volumes: the point that their content comes from
	tracked map[string]volume.Checkpoint // what changes are tracked from, by the same keys
	order   []string                     // when which driver's freeze began and ended
	settle  func(commit func() error) error
	// atInstant is called while volumes are held still.
	atInstant func()
	// atSize is called before the size of a volume is told.
	atSize func(key string)
	// atCheck is what is wrong with overwriting a volume that others use; nil:
	// nothing.
	atCheck func(key string) error
	// marked are volumes in whose machines points have left something.
	marked map[string]bool
}

func newDisk() *disk {
	return &disk{
		content: map[string]string{}, size: map[string]int64{}, holds: map[string]map[string]string{},
		blobs: map[string]string{}, busy: map[string]bool{}, plugged: map[string]bool{}, base: map[string]string{}, tracked: map[string]volume.Checkpoint{},
	}
}

func (d *disk) clone() *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := newDisk()
	c.content, c.size, c.blobs, c.busy = maps.Clone(d.content), maps.Clone(d.size), maps.Clone(d.blobs), maps.Clone(d.busy)
	maps.Copy(c.holds, d.holds)
	maps.Copy(c.tracked, d.tracked)
	c.plugged = maps.Clone(d.plugged)
	c.reflink, c.base = d.reflink, maps.Clone(d.base)
	return c
}

// put writes to a volume behind the service's back, or as its owner.
func (d *disk) put(key, content string, size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.content[key], d.size[key] = content, size
}

func (d *disk) get(key string) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, ok := d.content[key]
	return c, ok
}

// driver serves the disk to one process.
type driver struct {
	*disk
	f     *fuse
	kind  string // service.DriverManaged …
	clock func() time.Time
}

func (d *driver) key(s volume.Spec) string {
	if d.kind == service.DriverManaged {
		return s.ID
	}
	return s.Path
}

func (d *driver) Capabilities() volume.Capabilities { return volume.Capabilities{} }

func (d *driver) Probe(_ context.Context, path string) (p volume.Probe, err error) {
	err = d.f.do("Probe", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		size, ok := d.size[path]
		if !ok {
			return errs.New(errs.NotFound, "there is nothing at %s", path)
		}
		p = volume.Probe{Path: path, Identity: "file:" + path, SizeBytes: size}
		return nil
	})
	return p, err
}

func (d *driver) Create(_ context.Context, s volume.Spec) error {
	return d.f.do("Create", func() error { d.put(d.key(s), "", s.SizeBytes); return nil })
}

func (d *driver) Grow(_ context.Context, s volume.Spec, size int64) error {
	return d.f.do("Grow", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.size[d.key(s)] = size
		return nil
	})
}

func (d *driver) Remove(_ context.Context, s volume.Spec) error {
	return d.f.do("Remove", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.content, d.key(s))
		delete(d.size, d.key(s))
		delete(d.base, d.key(s))
		return nil
	})
}

func (d *driver) Size(_ context.Context, s volume.Spec) (size int64, err error) {
	d.mu.Lock()
	atSize := d.atSize
	d.mu.Unlock()
	if atSize != nil {
		atSize(d.key(s))
	}
	err = d.f.do("Size", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		var ok bool
		if size, ok = d.size[d.key(s)]; !ok {
			return errs.New(errs.NotFound, "volume %s has no data", s.ID)
		}
		return nil
	})
	return size, err
}

func (d *driver) Freeze(ctx context.Context, hold string, specs []volume.Spec, within func(context.Context) error) (in volume.Instant, err error) {
	err = d.f.do("Freeze", func() error {
		shot, err := d.shoot(specs)
		if err != nil {
			return err
		}
		if d.atInstant != nil {
			d.atInstant()
		}
		if within != nil {
			if err := within(ctx); err != nil {
				return err
			}
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.reflink {
			kept := map[string]string{}
			for _, s := range shot.sources {
				kept[s.key] = s.content
			}
			d.holds[d.holdKey(hold)] = kept
		}
		d.order = append(d.order, d.kind+" end")
		in = shot
		return nil
	})
	return in, err
}

// shoot takes what the volumes hold now.
func (d *driver) shoot(specs []volume.Spec) (*instant, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	shot := &instant{d: d, at: d.clock(), durable: d.reflink}
	for _, s := range specs {
		key := d.key(s)
		content, ok := d.content[key]
		if !ok {
			return nil, errs.New(errs.Unavailable, "volume %s has vanished", s.ID)
		}
		if d.busy[key] {
			return nil, errs.New(errs.Busy, "volume %s is open for writing elsewhere; please try later", s.ID)
		}
		shot.sources = append(shot.sources, &source{key: key, id: s.ID, content: content, size: d.size[key], durable: d.reflink})
	}
	d.order = append(d.order, d.kind+" begin")
	return shot, nil
}

func (d *driver) holdKey(hold string) string { return d.kind + "/" + hold }

func (d *driver) Reopen(_ context.Context, hold string, specs []volume.Spec) (in volume.Instant, err error) {
	err = d.f.do("Reopen", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		kept, ok := d.holds[d.holdKey(hold)]
		if !ok {
			return volume.ErrNoInstant
		}
		shot := &instant{d: d, at: d.clock(), durable: true}
		for _, s := range specs {
			key := d.key(s)
			shot.sources = append(shot.sources, &source{key: key, id: s.ID, content: kept[key], size: d.size[key], durable: true})
		}
		in = shot
		return nil
	})
	return in, err
}

func (d *driver) Drop(_ context.Context, hold string) error {
	return d.f.do("Drop", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.holds, d.holdKey(hold))
		return nil
	})
}

func (d *driver) OpenTarget(_ context.Context, s volume.Spec) (t volume.Target, err error) {
	err = d.f.do("OpenTarget", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		key := d.key(s)
		size, ok := d.size[key]
		if !ok {
			return errs.New(errs.Unavailable, "volume %s has vanished", s.ID)
		}
		if d.busy[key] {
			return errs.New(errs.Busy, "volume %s is open elsewhere; please try later", s.ID)
		}
		t = &target{source: source{key: key, size: size}, d: d}
		return nil
	})
	return t, err
}

type instant struct {
	d       *driver
	at      time.Time
	durable bool
	sources []*source
}

func (i *instant) Time() time.Time             { return i.at }
func (i *instant) Durable() bool               { return i.durable }
func (i *instant) Source(n int) volume.Source  { return i.sources[n] }
func (i *instant) Close() error                { return nil }
func (i *instant) Check(context.Context) error { return i.d.f.do("Check", i.check) }

func (i *instant) Settle(_ context.Context, checkpoints []volume.Checkpoint, commit func() error) error {
	if settle := i.d.settle; settle != nil {
		inner := commit
		commit = func() error { return settle(inner) }
	}
	if err := commit(); err != nil {
		return err
	}
	return i.d.f.do("Settle", func() error {
		i.d.mu.Lock()
		defer i.d.mu.Unlock()
		for n, s := range i.sources {
			i.d.tracked[s.key] = checkpoints[n]
		}
		return nil
	})
}

func (i *instant) check() error {
	for _, s := range i.sources {
		if now, _ := i.d.get(s.key); now != s.content {
			return errs.Wrap(errs.Conflict, volume.ErrChanged, "volume %s changed while it was read", s.id)
		}
	}
	return nil
}

// source carries its content to the fake engine; nobody reads its bytes.
type source struct {
	key, id, content string
	size             int64
	durable          bool
	released         bool
}

func (s *source) Size() int64                                 { return s.size }
func (s *source) ReadAt(context.Context, []byte, int64) error { return errors.ErrUnsupported }
func (s *source) Data(context.Context, int64) (extent.Range, error) {
	return extent.Range{}, io.EOF
}
func (s *source) Changed(context.Context, volume.Checkpoint, int64) (extent.Range, error) {
	return extent.Range{}, volume.ErrNoBase
}
func (s *source) Release(context.Context, int64, int64) error {
	s.released = !s.durable
	return nil
}

func (s *source) Audit(context.Context, volume.Checkpoint) ([]extent.Range, error) { return nil, nil }

type target struct {
	source
	d *driver
}

func (t *target) WriteAt(context.Context, []byte, int64) error      { return errors.ErrUnsupported }
func (t *target) Zero(context.Context, int64, int64) error          { return errors.ErrUnsupported }
func (t *target) Sync(context.Context) error                        { return nil }
func (t *target) Close() error                                      { return nil }
func (t *target) Data(context.Context, int64) (extent.Range, error) { return extent.Range{}, io.EOF }

// ReadAt gives the whole content, which is as long as the volume.
func (t *target) ReadAt(_ context.Context, buf []byte, _ int64) error {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	copy(buf, t.d.content[t.key])
	return nil
}

func (t *target) write(content string) {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	t.d.content[t.key] = content
}
