package service_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"
	"strings"

	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/volume"
)

// mover is an engine whose chunks are words.
type mover struct {
	*disk
	f       *fuse
	damaged map[string]bool // snapshots that cannot be read
	deep    map[string]bool // the same, but VerifyReadable does not notice
	during  func()          // called in the middle of a capture and of a restore
	hits    []string        // packs that every capture refers to
	retaken [][]string      // packs of which Retake was told
	marked  func()          // called after a mark
	listed  []string        // blobs at the last listing
	// hitsFixed: hits are reported even if they are not usable any more, as a
	// session that found them before does. hitsNeeded: the mark needs them.
	hitsFixed, hitsNeeded bool
	// audit is what came of comparing what tracking calls unchanged; nil:
	// nothing is tracked.
	audit map[string]engine.Audit // by resource
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
	src, err := sourceOf(ctx, spec.Source)
	if err != nil {
		return engine.Captured{}, err
	}
	if src.released {
		return engine.Captured{}, errs.New(errs.Internal, "the instant of %s was captured before", src.id)
	}
	if spec.Parent != nil && (s.m.deep[spec.Parent.Snapshot] || s.m.damaged[spec.Parent.Snapshot]) {
		return engine.Captured{}, errs.New(errs.Corrupt, "a node of %s is damaged", spec.Parent.Snapshot)
	}
	if err := s.forget(ctx, spec.Meta.Snapshot); err != nil {
		return engine.Captured{}, err
	}
	// A real pack id is new in every term, so is this one.
	h := fnv.New128a()
	fmt.Fprintf(h, "%s-%d-%d", spec.Meta.Snapshot, s.term, len(s.m.retaken))
	pack := hex.EncodeToString(h.Sum(nil))
	name := "point/" + spec.Meta.Snapshot + "." + pack
	err = s.reg.RegisterPack(ctx, engine.PackRecord{ID: pack, Kind: "point", Name: name, Bytes: 1})
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
	err = errors.Join(err, src.Release(ctx, 0, src.size))
	got := engine.Captured{
		Ref:        engine.PointRef{Snapshot: spec.Meta.Snapshot, Pack: pack, Hash: "hash-" + src.content},
		AddedBytes: int64(len(src.content)) + 1, SourceBytes: src.size,
		CBT: spec.Meta.CBT, Reason: spec.Meta.Reason, Checkpoint: volume.Checkpoint(src.content),
	}
	if audit, ok := s.m.audit[spec.Meta.Resource]; ok && spec.Parent != nil {
		got.Audit, got.CBT = audit, engine.CBTTracked
		if finding := audit.Finding(spec.Meta.Resource); finding != "" {
			got.CBT, got.Reason = engine.CBTScan, got.Reason+"; "+finding
		}
	}
	return got, err
}

// sourceOf is what a source holds: ours carries it, another is read.
func sourceOf(ctx context.Context, from volume.Source) (*source, error) {
	if src, ok := from.(*source); ok {
		return src, nil
	}
	b := make([]byte, from.Size())
	err := from.ReadAt(ctx, b, 0)
	return &source{content: string(b), size: from.Size()}, err
}

// Copy is a capture of a point's content.
func (s *session) Copy(ctx context.Context, meta engine.PointMeta, of engine.PointRef) (engine.Captured, error) {
	content, err := s.m.read(of)
	if err != nil {
		return engine.Captured{}, err
	}
	spec := engine.CaptureSpec{Meta: meta, Source: &source{content: content, size: meta.SizeBytes}}
	return s.Capture(ctx, spec, func(int64, int64) {})
}

// forget throws away what earlier terms stored for the point.
func (s *session) forget(ctx context.Context, snapshot string) error {
	packs, err := s.reg.SessionPacks(ctx)
	if err != nil {
		return err
	}
	for _, p := range packs {
		if !strings.HasPrefix(p.Name, "point/"+snapshot+".") {
			continue
		}
		if err := s.reg.DropPacks(ctx, []string{p.ID}); err != nil {
			return err
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

func (s *session) Hits() []string {
	var hits []string
	for _, id := range s.m.hits {
		if usable, err := s.reg.PackUsable(context.Background(), id); err == nil && usable {
			hits = append(hits, id)
		}
	}
	if s.m.hitsFixed {
		return s.m.hits
	}
	return hits
}

func (s *session) Retake(ctx context.Context, gone []string, took []engine.Captured) error {
	s.m.retaken = append(s.m.retaken, gone)
	s.m.hitsFixed = false
	for _, c := range took {
		if err := s.forget(ctx, c.Ref.Snapshot); err != nil {
			return err
		}
	}
	return nil
}

// Evacuate is never reached: no pack of this engine is worth it.
func (s *session) Evacuate(context.Context, engine.Marks, []string) (engine.Evacuated, error) {
	return engine.Evacuated{}, fmt.Errorf("the words of this repository do not move")
}

func (m *mover) Stored(context.Context) (*engine.Stored, error) {
	listed := engine.NewStored()
	return listed, m.f.do("Stored", func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.listed = slices.Sorted(maps.Keys(m.blobs))
		for _, name := range m.listed {
			listed.Add(name+".a", 1)
		}
		return nil
	})
}

// fakeMarks are those of points that share nothing.
type fakeMarks struct {
	needed map[string]bool
	strays []engine.PackRecord
	unique map[string]int64
}

func (k *fakeMarks) Needed(pack string) bool            { return k.needed[pack] }
func (k *fakeMarks) Strays() []engine.PackRecord        { return k.strays }
func (k *fakeMarks) Unique() map[string]int64           { return k.unique }
func (k *fakeMarks) StoredBytes() int64                 { return int64(len(k.needed)) }
func (k *fakeMarks) Waste(pack string) engine.PackWaste { return engine.PackWaste{ID: pack} }

func (m *mover) Mark(_ context.Context, spec engine.MarkSpec) (engine.Marks, error) {
	k := &fakeMarks{needed: map[string]bool{}, unique: map[string]int64{}}
	rows := map[string]bool{}
	for _, p := range spec.Packs {
		rows[p.ID] = true
	}
	for _, p := range append(slices.Clone(spec.Points), spec.Bin...) {
		if _, err := m.read(p); err != nil {
			return nil, err
		}
		k.needed[p.Pack] = true
	}
	for _, p := range spec.Points {
		k.unique[p.Snapshot] = 7
	}
	for _, p := range spec.Unknown {
		k.needed[p.Pack] = true
	}
	for _, name := range m.listed {
		id := name[strings.LastIndexByte(name, '.')+1:]
		if !rows[id] && !k.needed[id] {
			k.strays = append(k.strays, engine.PackRecord{ID: id, Kind: "point", Name: name, Bytes: 1})
		}
	}
	for _, id := range m.hits {
		k.needed[id] = k.needed[id] || m.hitsNeeded
	}
	if m.marked != nil {
		m.marked()
	}
	return k, m.f.do("Mark", func() error { return nil })
}

func (m *mover) DeletePacks(ctx context.Context, packs []engine.PackRecord) error {
	return m.DiscardSession(ctx, packs)
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

func (m *mover) OpenTree(_ context.Context, ref engine.PointRef) (t volume.Tree, err error) {
	err = m.f.do("OpenTree", func() error {
		content, err := m.read(ref)
		// Without the hash, which is no real one here.
		t = tree{ref: engine.PointRef{Snapshot: ref.Snapshot, Pack: ref.Pack}.String(), content: content}
		return err
	})
	return t, err
}

func (m *mover) OpenImage(_ context.Context, ref engine.PointRef) (engine.Image, error) {
	content, err := m.read(ref)
	return &image{content: content}, err
}

func (m *mover) OpenSalvage(_ context.Context, ref engine.PointRef) (engine.Salvage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	content, ok := m.blobs["point/"+ref.Snapshot+"."+ref.Pack]
	if !ok {
		return nil, errs.New(errs.Corrupt, "nothing of %s can be salvaged", ref.Snapshot)
	}
	return &salvage{content: content, damaged: m.damaged[ref.Snapshot]}, nil
}

// salvage has lost its first byte if its point is damaged.
type salvage struct {
	content string
	damaged bool
}

func (s *salvage) SizeBytes() int64 { return int64(len(s.content)) }
func (s *salvage) Close() error     { return nil }
func (s *salvage) WriteTo(_ context.Context, w io.Writer) (engine.Salvaged, error) {
	if !s.damaged {
		_, err := io.WriteString(w, s.content)
		return engine.Salvaged{}, err
	}
	_, err := io.WriteString(w, "\x00"+s.content[1:])
	return engine.Salvaged{Bad: []engine.BadRange{{Length: 1, Damaged: true}}}, err
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

func (m *mover) ImportTo(ctx context.Context, in engine.Inflow, size int64, t volume.Target, progress engine.Progress) error {
	t.(*target).write(mixed)
	_, err := in.Next()
	if err != nil {
		return err
	}
	b, err := io.ReadAll(in)
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

func (m *mover) FreedBytes(_ context.Context, _ []engine.PackRow, doomed, survivors []engine.PointRef) (int64, error) {
	return int64(1000*len(doomed) + len(survivors)), nil
}

func (m *mover) RebuildIndex(context.Context) error {
	return m.f.do("RebuildIndex", func() error { return nil })
}

func (m *mover) HealCopies(_ context.Context, blobs []string) ([]string, error) {
	return blobs, m.f.do("HealCopies", func() error { return nil })
}

func (m *mover) CheckPacks(_ context.Context, packs []engine.PackRecord) (v engine.Verified, err error) {
	for _, p := range packs {
		if m.damaged[strings.TrimPrefix(p.Name[:strings.LastIndexByte(p.Name, '.')], "point/")] {
			v.Damage = append(v.Damage, engine.Damage{Blob: p.Name, What: "damaged"})
		} else {
			v.Whole = append(v.Whole, p.ID)
		}
		v.BytesRead += p.Bytes
	}
	return v, m.f.do("CheckPacks", func() error { return nil })
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
