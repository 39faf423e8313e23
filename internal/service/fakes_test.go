package service_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"
	"time"

	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/volume"
)

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
	fails map[string]error // by call: errors that do not kill
}

func (f *fuse) do(name string, fn func() error) error {
	f.mu.Lock()
	if f.dead {
		f.mu.Unlock()
		return errDead
	}
	if err := f.fails[name]; err != nil {
		f.mu.Unlock()
		return err
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
	reflink bool                         // instants are durable
}

func newDisk() *disk {
	return &disk{
		content: map[string]string{}, size: map[string]int64{}, holds: map[string]map[string]string{},
		blobs: map[string]string{}, busy: map[string]bool{},
	}
}

func (d *disk) clone() *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := newDisk()
	c.content, c.size, c.blobs, c.busy = maps.Clone(d.content), maps.Clone(d.size), maps.Clone(d.blobs), maps.Clone(d.busy)
	maps.Copy(c.holds, d.holds)
	c.reflink = d.reflink
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
	f          *fuse
	registered bool
	clock      func() time.Time
}

func (d *driver) key(s volume.Spec) string {
	if d.registered {
		return s.Path
	}
	return s.ID
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
		return nil
	})
}

func (d *driver) Size(_ context.Context, s volume.Spec) (size int64, err error) {
	err = d.f.do("Size", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		size = d.size[d.key(s)]
		return nil
	})
	return size, err
}

func (d *driver) Freeze(_ context.Context, hold string, specs []volume.Spec) (in volume.Instant, err error) {
	err = d.f.do("Freeze", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		shot := &instant{d: d, at: d.clock(), durable: d.reflink}
		kept := map[string]string{}
		for _, s := range specs {
			key := d.key(s)
			content, ok := d.content[key]
			if !ok {
				return errs.New(errs.Unavailable, "volume %s has vanished", s.ID)
			}
			if d.busy[key] {
				return errs.New(errs.Busy, "volume %s is open for writing elsewhere; please try later", s.ID)
			}
			kept[key] = content
			shot.sources = append(shot.sources, &source{key: key, id: s.ID, content: content, size: d.size[key]})
		}
		if d.reflink {
			d.holds[d.holdKey(hold)] = kept
		}
		in = shot
		return nil
	})
	return in, err
}

func (d *driver) holdKey(hold string) string { return fmt.Sprintf("%v/%s", d.registered, hold) }

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
			shot.sources = append(shot.sources, &source{key: key, id: s.ID, content: kept[key], size: d.size[key]})
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
}

func (s *source) Size() int64                                 { return s.size }
func (s *source) ReadAt(context.Context, []byte, int64) error { return errors.ErrUnsupported }
func (s *source) Data(context.Context, int64) (extent.Range, error) {
	return extent.Range{}, io.EOF
}
func (s *source) Changed(context.Context, volume.Checkpoint) ([]extent.Range, error) {
	return nil, volume.ErrNoBase
}

type target struct {
	source
	d *driver
}

func (t *target) WriteAt(context.Context, []byte, int64) error      { return errors.ErrUnsupported }
func (t *target) Zero(context.Context, int64, int64) error          { return errors.ErrUnsupported }
func (t *target) Sync(context.Context) error                        { return nil }
func (t *target) Close() error                                      { return nil }
func (t *target) Data(context.Context, int64) (extent.Range, error) { return extent.Range{}, io.EOF }

func (t *target) write(content string) {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	t.d.content[t.key] = content
}

// mover is an engine whose chunks are words.
type mover struct {
	*disk
	f       *fuse
	damaged map[string]bool // snapshots that cannot be read
	deep    map[string]bool // the same, but VerifyReadable does not notice
	during  func()          // called in the middle of a capture and of a restore
	// published is called in the middle of Session.Committed.
	published func(ctx context.Context)
}

func (m *mover) pause() {
	if m.during != nil {
		m.during()
	}
}

func (m *mover) OpenSession(_ context.Context, id string, term int64, reg engine.Registry) (s engine.Session, err error) {
	err = m.f.do("OpenSession", func() error { s = &session{m, id, term, reg}; return nil })
	return s, err
}

type session struct {
	m    *mover
	id   string
	term int64
	reg  engine.Registry
}

func (s *session) Close() error { return nil }

func (s *session) Committed(ctx context.Context) error {
	if s.m.published != nil {
		s.m.published(ctx)
	}
	return s.m.f.do("Committed", func() error { return nil })
}

func (s *session) Capture(ctx context.Context, spec engine.CaptureSpec, progress engine.Progress) (engine.Captured, error) {
	src := spec.Source.(*source)
	if spec.Parent != nil && (s.m.deep[spec.Parent.Snapshot] || s.m.damaged[spec.Parent.Snapshot]) {
		return engine.Captured{}, errs.New(errs.Corrupt, "a node of %s is damaged", spec.Parent.Snapshot)
	}
	if err := s.forget(ctx, spec.Meta.Snapshot); err != nil {
		return engine.Captured{}, err
	}
	// A real pack id is new in every term, so is this one.
	pack := fmt.Sprintf("%s-%d", spec.Meta.Snapshot, s.term)
	name := "point/" + spec.Meta.Snapshot + "." + pack
	err := s.reg.RegisterPack(ctx, engine.PackRecord{ID: pack, Kind: "point", Name: name, Bytes: 1})
	if err != nil && !errs.Is(err, errs.Exists) {
		return engine.Captured{}, err
	}
	progress(1, src.size)
	s.m.pause()
	if err := ctx.Err(); err != nil {
		return engine.Captured{}, context.Cause(ctx)
	}
	err = s.m.f.do("Put", func() error {
		s.m.mu.Lock()
		defer s.m.mu.Unlock()
		s.m.blobs[name] = src.content
		return nil
	})
	progress(src.size, src.size)
	return engine.Captured{
		Ref:        engine.PointRef{Snapshot: spec.Meta.Snapshot, Pack: pack, Hash: "hash-" + src.content},
		AddedBytes: int64(len(src.content)) + 1, SourceBytes: src.size,
	}, err
}

// forget throws away what earlier terms stored for the point.
func (s *session) forget(ctx context.Context, snapshot string) error {
	packs, err := s.reg.SessionPacks(ctx)
	if err != nil {
		return err
	}
	for _, p := range packs {
		if !strings.HasPrefix(p.ID, snapshot) {
			continue
		}
		if err := s.m.DiscardSession(ctx, []engine.PackRecord{p}); err != nil {
			return err
		}
		if err := s.reg.ForgetPacks(ctx, []string{p.ID}); err != nil {
			return err
		}
	}
	return nil
}

func (m *mover) DiscardSession(_ context.Context, packs []engine.PackRecord) error {
	return m.f.do("DiscardSession", func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, p := range packs {
			delete(m.blobs, p.Name)
		}
		return nil
	})
}

// read is the content of a point.
func (m *mover) read(ref engine.PointRef) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	content, ok := m.blobs["point/"+ref.Snapshot+"."+ref.Pack]
	if !ok || m.damaged[ref.Snapshot] {
		return "", errs.New(errs.Corrupt, "the manifest of %s is damaged", ref.Snapshot)
	}
	return content, nil
}

func (m *mover) Restore(ctx context.Context, ref engine.PointRef, t volume.Target, progress engine.Progress) (engine.Restored, error) {
	content, err := m.read(ref)
	if err != nil {
		return engine.Restored{}, err
	}
	to := t.(*target)
	err = m.f.do("RestoreBegin", func() error { to.write(mixed); return nil })
	if err != nil {
		return engine.Restored{}, err
	}
	progress(to.size/2, to.size)
	m.pause()
	if ctx.Err() != nil {
		return engine.Restored{}, context.Cause(ctx)
	}
	err = m.f.do("RestoreEnd", func() error { to.write(content); return nil })
	if err == nil {
		progress(to.size, to.size)
	}
	return engine.Restored{}, err
}

func (m *mover) VerifyReadable(_ context.Context, ref engine.PointRef) error {
	return m.f.do("VerifyReadable", func() error { _, err := m.read(ref); return err })
}

func (m *mover) OpenImage(_ context.Context, ref engine.PointRef) (engine.Image, error) {
	content, err := m.read(ref)
	return &image{content: content}, err
}

func (m *mover) SourceImage(_ context.Context, src volume.Source) (engine.Image, error) {
	return &image{content: src.(*source).content, during: m.during}, nil
}

type image struct {
	content string
	during  func()
}

func (i *image) SizeBytes() int64 { return int64(len(i.content)) }
func (i *image) Close() error     { return nil }
func (i *image) WriteTo(_ context.Context, w io.Writer, _ engine.Format) error {
	if i.during != nil {
		i.during()
	}
	_, err := io.WriteString(w, i.content)
	return err
}

func (m *mover) ImportTo(ctx context.Context, r io.Reader, size int64, t volume.Target, progress engine.Progress) error {
	t.(*target).write(mixed)
	b, err := io.ReadAll(r)
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil && int64(len(b)) != size {
		err = errs.New(errs.Invalid, "the stream ended after %d of %d bytes", len(b), size)
	}
	if err != nil {
		return err
	}
	progress(size, size)
	return m.f.do("ImportTo", func() error { t.(*target).write(string(b)); return nil })
}

func (m *mover) FreedBytes(_ context.Context, doomed, survivors []engine.PointRef) (int64, error) {
	return int64(1000*len(doomed) + len(survivors)), nil
}

func (m *mover) Scrub(_ context.Context, points []engine.PointRef, packs []engine.PackRecord, progress engine.Progress) (engine.ScrubReport, error) {
	r := engine.ScrubReport{Points: len(points), Blobs: len(packs)}
	for _, p := range points {
		if _, err := m.read(p); err != nil {
			r.DamagedPoint = append(r.DamagedPoint, p.Snapshot)
			r.Damage = append(r.Damage, engine.Damage{What: "the manifest is damaged", Snapshot: p.Snapshot})
		}
	}
	progress(1, 1)
	return r, m.f.do("Scrub", func() error { return nil })
}
