package crash_test

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/volume"
)

// vol is one volume's bytes: what a power cut leaves, and what a reader sees.
type vol struct {
	durable *image
	cache   *image
	changes int // counts what anybody changed
}

// frozen is an instant that a driver gave out: what a point of that moment
// must hold.
type frozen struct {
	hold, volume string
	at           time.Time
	content      *image
}

// disk is all that outlives processes besides blobs, database and index: the
// volumes, their held instants and the clock. Both drivers serve it.
type disk struct {
	mu      sync.Mutex
	vols    map[string]*vol              // by volume id or registered path
	holds   map[string]map[string]*image // durable instants: hold → volume → content
	ledger  []frozen                     // every instant that was ever given out
	now     time.Time
	reflink bool // instants are durable
	changes int  // counts what changed of all that a power cut leaves

	// What a history does in the middle of an operation. Not part of the state.
	onRead  func(volume string)              // before a frozen volume is read
	onCheck func(hold string)                // before an instant is checked
	onWrite func(volume string) error        // before a target is written; its error is the write's
	do      func(string, func() error) error // carries out every change
}

func newDisk() *disk {
	return &disk{vols: map[string]*vol{}, holds: map[string]map[string]*image{}, now: time.Now(), do: plainly}
}

func plainly(_ string, fn func() error) error { return fn() }

// tick is a clock that never stands still and outlives processes.
func (d *disk) tick() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now = d.now.Add(time.Millisecond)
	return d.now
}

// clone is the disk as it is, unsynced bytes and all. The caller sees to it
// that nothing changes meanwhile.
func (d *disk) clone() *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := newDisk()
	c.ledger, c.now, c.reflink, c.changes = slices.Clone(d.ledger), d.now, d.reflink, d.changes
	for key, v := range d.vols {
		n := &vol{durable: v.durable.clone(), changes: v.changes}
		if n.cache = n.durable; v.cache != v.durable {
			n.cache = v.cache.clone()
		}
		c.vols[key] = n
	}
	for hold, kept := range d.holds {
		c.holds[hold] = maps.Clone(kept)
	}
	return c
}

// lose makes of the disk what a power cut leaves. unit 0: all that was not
// synced is lost; else what was not synced is torn at that many bytes.
func (d *disk) lose(unit int, rng *rand.Rand) {
	for _, v := range d.vols {
		if v.cache == v.durable {
			continue
		}
		if unit > 0 {
			v.durable = torn(v.durable, v.cache, unit, rng)
		}
		v.cache = v.durable
	}
}

// unsynced reports whether a power cut would lose anything.
func (d *disk) unsynced() bool {
	for _, v := range d.vols {
		if v.cache != v.durable {
			return true
		}
	}
	return false
}

// put writes a volume as its owner does, durably.
func (d *disk) put(key string, content *image) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.vols[key]
	if v == nil {
		v = &vol{}
		d.vols[key] = v
	}
	v.durable = content.clone()
	v.cache = v.durable
	v.changes++
	d.changes++
}

// content is what a reader of the volume sees; nil: there is none.
func (d *disk) content(key string) *image {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v := d.vols[key]; v != nil {
		return v.cache.clone()
	}
	return nil
}

// shown is what a volume held at the instant that a point says it shows.
func (d *disk) shown(hold, volumeID string, at time.Time) *image {
	d.mu.Lock()
	defer d.mu.Unlock()
	var found *image
	for _, f := range d.ledger {
		// The volumes of two drivers are frozen one after the other, and the
		// point has the later time.
		if f.hold == hold && f.volume == volumeID && !f.at.Truncate(time.Microsecond).After(at) {
			found = f.content
		}
	}
	return found
}

// driver serves the disk to one process.
type driver struct {
	*disk
	registered bool
	opened     sync.Map // keys of open targets
}

func (d *driver) key(s volume.Spec) string {
	if d.registered {
		return s.Path
	}
	return s.ID
}

// change carries out something that a power cut leaves done or not done.
func (d *driver) change(what string, s volume.Spec, fn func() error) error {
	return d.do(what+" "+s.ID, func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.changes++
		return fn()
	})
}

// volume is a volume that is there; the caller holds mu.
func (d *driver) volume(s volume.Spec) (*vol, error) {
	if v := d.vols[d.key(s)]; v != nil {
		return v, nil
	}
	return nil, errs.New(errs.NotFound, "volume %s has vanished", s.ID)
}

func (d *driver) Capabilities() volume.Capabilities {
	return volume.Capabilities{CreateVolumes: !d.registered, Register: d.registered}
}

func (d *driver) Probe(_ context.Context, path string) (volume.Probe, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.vols[path]
	if v == nil {
		return volume.Probe{}, errs.Wrap(errs.NotFound, fs.ErrNotExist, "there is nothing at %s", path)
	}
	return volume.Probe{Path: path, Identity: "file:" + path, SizeBytes: v.cache.size}, nil
}

func (d *driver) Create(_ context.Context, s volume.Spec) error {
	return d.change("create", s, func() error {
		empty := newImage(s.SizeBytes)
		d.vols[d.key(s)] = &vol{durable: empty, cache: empty}
		return nil
	})
}

func (d *driver) Grow(_ context.Context, s volume.Spec, size int64) error {
	return d.change("grow", s, func() error {
		v, err := d.volume(s)
		if err != nil {
			return err
		}
		v.durable = v.durable.resized(max(size, v.durable.size))
		v.cache = v.durable
		return nil
	})
}

func (d *driver) Remove(_ context.Context, s volume.Spec) error {
	return d.change("remove", s, func() error { delete(d.vols, d.key(s)); return nil })
}

func (d *driver) Size(_ context.Context, s volume.Spec) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, err := d.volume(s)
	if err != nil {
		return 0, err
	}
	return v.cache.size, nil
}

func (d *driver) holdKey(hold string) string { return fmt.Sprintf("%v/%s", d.registered, hold) }

// Freeze holds the volumes at one moment. Nobody writes to them while it runs,
// so they are held still before and after within.
func (d *driver) Freeze(ctx context.Context, hold string, specs []volume.Spec, within func(context.Context) error) (volume.Instant, error) {
	at := d.tick()
	if within != nil {
		if err := within(ctx); err != nil {
			return nil, err
		}
	}
	shot := &instant{d: d, hold: hold, at: at}
	err := d.change("freeze", specs[0], func() error {
		shot.durable = d.reflink
		kept := map[string]*image{}
		for _, s := range specs {
			v, err := d.volume(s)
			if err != nil {
				return err
			}
			content := v.cache.clone()
			kept[s.ID] = content
			d.ledger = append(d.ledger, frozen{hold: hold, volume: s.ID, at: at, content: content})
			shot.sources = append(shot.sources, &source{d: d, key: d.key(s), id: s.ID, changes: v.changes, size: content.size})
			if shot.durable {
				shot.sources[len(shot.sources)-1].held = content
			}
		}
		if shot.durable {
			d.holds[d.holdKey(hold)] = kept
		}
		return nil
	})
	return shot, err
}

func (d *driver) Reopen(_ context.Context, hold string, specs []volume.Spec) (volume.Instant, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	kept := d.holds[d.holdKey(hold)]
	if kept == nil {
		return nil, volume.ErrNoInstant
	}
	shot := &instant{d: d, hold: hold, at: d.now, durable: true}
	for _, s := range specs {
		shot.sources = append(shot.sources, &source{d: d, id: s.ID, held: kept[s.ID], size: kept[s.ID].size})
	}
	return shot, nil
}

func (d *driver) Drop(_ context.Context, hold string) error {
	return d.change("drop", volume.Spec{ID: hold}, func() error { delete(d.holds, d.holdKey(hold)); return nil })
}

func (d *driver) OpenTarget(_ context.Context, s volume.Spec) (volume.Target, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, err := d.volume(s)
	if err != nil {
		return nil, err
	}
	if _, busy := d.opened.LoadOrStore(d.key(s), true); busy {
		return nil, errs.New(errs.Busy, "volume %s is open for writing; please try later", s.ID)
	}
	return &target{source: source{d: d, key: d.key(s), id: s.ID, size: v.cache.size}}, nil
}

// instant is one moment. Without reflinks its sources read the volumes as
// they are, and only Check tells whether that was one moment.
type instant struct {
	d       *driver
	hold    string
	at      time.Time
	durable bool
	sources []*source
}

func (i *instant) Time() time.Time            { return i.at }
func (i *instant) Durable() bool              { return i.durable }
func (i *instant) Source(n int) volume.Source { return i.sources[n] }
func (i *instant) Close() error               { return nil }

func (i *instant) Settle(_ context.Context, _ []volume.Checkpoint, commit func() error) error {
	return commit()
}

func (i *instant) Check(context.Context) error {
	if hook := i.d.onCheck; hook != nil {
		hook(i.hold)
	}
	i.d.mu.Lock()
	defer i.d.mu.Unlock()
	for _, s := range i.sources {
		if v := i.d.vols[s.key]; s.held == nil && (v == nil || v.changes != s.changes) {
			return errs.Wrap(errs.Conflict, volume.ErrChanged, "volume %s changed while it was read; try again", s.id)
		}
	}
	return nil
}

// source is a frozen volume.
type source struct {
	d       *driver
	key, id string
	held    *image // of a durable instant; else the volume is read as it is
	changes int    // of the volume when it was frozen
	size    int64
}

// with runs fn on the content; nobody changes it meanwhile.
func (s *source) with(fn func(m *image) error) error {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	m := s.held
	if m == nil {
		v := s.d.vols[s.key]
		if v == nil {
			return errs.New(errs.NotFound, "volume %s has vanished", s.id)
		}
		m = v.cache
	}
	return fn(m)
}

func (s *source) Size() int64 { return s.size }

func (s *source) ReadAt(_ context.Context, buf []byte, off int64) error {
	if hook := s.d.onRead; hook != nil {
		hook(s.id)
	}
	return s.with(func(m *image) error { return m.read(buf, off) })
}

func (s *source) Data(_ context.Context, off int64) (r extent.Range, err error) {
	err = s.with(func(m *image) error { r, err = m.data(off); return err })
	return r, err
}

func (s *source) Changed(context.Context, volume.Checkpoint, int64) (extent.Range, error) {
	return extent.Range{}, volume.ErrNoBase
}

func (s *source) Release(context.Context, int64, int64) error { return nil }

func (s *source) Audit(context.Context, volume.Checkpoint) ([]extent.Range, error) { return nil, nil }

// target is a volume that is being overwritten.
type target struct{ source }

func (t *target) ReadAt(_ context.Context, buf []byte, off int64) error {
	return t.with(func(m *image) error { return m.read(buf, off) })
}

// overwrite changes the cache, which parts from the durable bytes first.
func (t *target) overwrite(what string, fn func(m *image) error) error {
	if hook := t.d.onWrite; hook != nil {
		if err := hook(t.id); err != nil {
			return err
		}
	}
	return t.d.change(what, volume.Spec{ID: t.id}, func() error {
		v := t.d.vols[t.key]
		if v == nil {
			return errs.New(errs.NotFound, "volume %s has vanished", t.id)
		}
		if v.cache == v.durable {
			v.cache = v.durable.clone()
		}
		v.changes++
		return fn(v.cache)
	})
}

func (t *target) WriteAt(_ context.Context, buf []byte, off int64) error {
	return t.overwrite("write", func(m *image) error { return m.write(buf, off) })
}

func (t *target) Zero(_ context.Context, off, length int64) error {
	return t.overwrite("zero", func(m *image) error { return m.zero(off, length) })
}

func (t *target) Sync(context.Context) error {
	return t.d.change("sync", volume.Spec{ID: t.id}, func() error {
		if v := t.d.vols[t.key]; v != nil {
			v.durable = v.cache
		}
		return nil
	})
}

func (t *target) Close() error {
	t.d.opened.Delete(t.key)
	return nil
}
