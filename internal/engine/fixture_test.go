package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/mem"
	"cairn/internal/extent"
	"cairn/internal/foldertest"
	"cairn/internal/repo"
	"cairn/internal/volume"
)

// memVolume is a volume in memory: Source and Target at once. Pages that were
// never written, or were zeroed, are holes.
type memVolume struct {
	mu    sync.Mutex
	size  int64
	pages map[int64][]byte

	written, zeroed int64 // bytes handed to WriteAt and Zero
}

func newVolume(size int64) *memVolume { return &memVolume{size: size, pages: map[int64][]byte{}} }

func (v *memVolume) clone() *memVolume {
	c := newVolume(v.size)
	for i, p := range v.pages {
		c.pages[i] = bytes.Clone(p)
	}
	return c
}

func (v *memVolume) bytes() []byte {
	b := make([]byte, v.size)
	for i, p := range v.pages {
		copy(b[i*pageSize:], p)
	}
	return b
}

func (v *memVolume) Size() int64 { return v.size }

func (v *memVolume) check(n int, off int64) error {
	if off < 0 || off+int64(n) > v.size {
		return fmt.Errorf("%d bytes at %d are outside of a volume of %d", n, off, v.size)
	}
	return nil
}

func (v *memVolume) ReadAt(_ context.Context, buf []byte, off int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.check(len(buf), off); err != nil {
		return err
	}
	for len(buf) > 0 {
		n := min(pageSize-off%pageSize, int64(len(buf)))
		if p := v.pages[off/pageSize]; p != nil {
			copy(buf[:n], p[off%pageSize:])
		} else {
			clear(buf[:n])
		}
		buf, off = buf[n:], off+n
	}
	return nil
}

func (v *memVolume) Data(_ context.Context, off int64) (extent.Range, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	last := (v.size + pageSize - 1) / pageSize
	for i := off / pageSize; i < last; i++ {
		if v.pages[i] == nil {
			continue
		}
		end := i + 1
		for end < last && v.pages[end] != nil {
			end++
		}
		start := max(off, i*pageSize)
		return extent.Range{Off: start, Len: min(end*pageSize, v.size) - start}, nil
	}
	return extent.Range{}, io.EOF
}

func (v *memVolume) Changed(context.Context, volume.Checkpoint, int64) (extent.Range, error) {
	return extent.Range{}, volume.ErrNoBase
}

func (v *memVolume) Release(context.Context, int64, int64) error { return nil }

func (v *memVolume) Audit(context.Context, volume.Checkpoint) ([]extent.Range, error) {
	return nil, nil
}

func (v *memVolume) WriteAt(_ context.Context, buf []byte, off int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.written += int64(len(buf))
	return v.put(buf, off)
}

func (v *memVolume) put(buf []byte, off int64) error {
	if err := v.check(len(buf), off); err != nil {
		return err
	}
	for len(buf) > 0 {
		n := min(pageSize-off%pageSize, int64(len(buf)))
		p := v.pages[off/pageSize]
		if p == nil {
			p = make([]byte, pageSize)
			v.pages[off/pageSize] = p
		}
		copy(p[off%pageSize:], buf[:n])
		buf, off = buf[n:], off+n
	}
	return nil
}

func (v *memVolume) Zero(_ context.Context, off, length int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.zeroed += length
	if err := v.put(make([]byte, length), off); err != nil {
		return err
	}
	for i := (off + pageSize - 1) / pageSize; (i+1)*pageSize <= off+length; i++ {
		delete(v.pages, i)
	}
	return nil
}

func (v *memVolume) Sync(context.Context) error { return nil }
func (v *memVolume) Close() error               { return nil }

// registry is the database's part, in memory.
type registry struct {
	mu    sync.Mutex
	packs map[string]PackRecord
	fail  error
	// unusable are packs that must not be referred to.
	unusable map[string]bool
}

func newRegistry() *registry { return &registry{packs: map[string]PackRecord{}} }

func (r *registry) RegisterPack(_ context.Context, p PackRecord) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	r.packs[p.ID] = p
	return nil
}

func (r *registry) SessionPacks(context.Context) ([]PackRecord, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.packs)), nil
}

func (r *registry) PackUsable(_ context.Context, id string) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.unusable[id], nil
}

func (r *registry) DropPacks(_ context.Context, ids []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	for _, id := range ids {
		delete(r.packs, id)
	}
	return nil
}

func (r *registry) ForgetPacks(_ context.Context, ids []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		delete(r.packs, id)
	}
	return nil
}

// rig is an engine on a repository, with what a database would know.
type rig struct {
	t     testing.TB
	store blobstore.Store
	key   repo.Key
	index string
	e     *Engine
	packs map[string]PackRecord // of committed sessions
	hits  []string              // packs that the last committed session found chunks in
	n     int
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigOn(t, mem.New())
}

func newRigOn(t testing.TB, store blobstore.Store) *rig {
	t.Helper()
	r := &rig{t: t, store: store, key: repo.NewKey(), index: foldertest.InMemory(t), packs: map[string]PackRecord{}}
	if err := repo.Init(t.Context(), store, r.key, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	return r
}

// reopen forgets everything that only memory holds.
func (r *rig) reopen() {
	r.t.Helper()
	rp, err := repo.Open(context.Background(), r.store, r.key, r.index)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { rp.Close() })
	r.e = New(rp, Config{Workers: 2})
}

func (r *rig) spec(src volume.Source, parent *PointRef) CaptureSpec {
	r.n++
	m := PointMeta{
		Snapshot: fmt.Sprintf("ss-%08d", r.n), Resource: "vol-TEST0001", Name: "näme", Full: parent == nil,
		CreateTime: time.Unix(1, 0).UTC(), SnapshotTime: time.Unix(2, 0).UTC(), CBT: CBTScan, Reason: "because",
	}
	if parent != nil {
		m.Parent = parent.Snapshot
	}
	return CaptureSpec{Meta: m, Source: src, Parent: parent}
}

// take captures and commits one point.
func (r *rig) take(src volume.Source, parent *PointRef) Captured {
	r.t.Helper()
	reg := newRegistry()
	s, err := r.e.OpenSession(r.t.Context(), "job", 1, reg)
	if err != nil {
		r.t.Fatal(err)
	}
	defer s.Close()
	c, err := s.Capture(r.t.Context(), r.spec(src, parent), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.commit(s, reg)
	return c
}

func (r *rig) commit(s Session, reg *registry) {
	r.t.Helper()
	maps.Copy(r.packs, reg.packs)
	r.hits = s.Hits()
	if err := s.Committed(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// rows are those of all packs, which are LIVE.
func (r *rig) rows() []PackRow {
	var rows []PackRow
	for _, p := range r.packs {
		rows = append(rows, PackRow{PackRecord: p, Live: true})
	}
	return rows
}

// scrub fails the test if anything is wrong with the repository.
func (r *rig) scrub(points ...PointRef) ScrubReport {
	r.t.Helper()
	rep, err := r.e.Scrub(r.t.Context(), points, slices.Collect(maps.Values(r.packs)), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, d := range rep.Damage {
		r.t.Errorf("scrub: %+v", d)
	}
	return rep
}

// export reads a point back as a raw stream.
func (r *rig) export(ref PointRef) ([]byte, error) {
	im, err := r.e.OpenImage(r.t.Context(), ref)
	if err != nil {
		return nil, err
	}
	defer im.Close()
	var b bytes.Buffer
	err = im.WriteTo(r.t.Context(), &b, FormatRaw)
	return b.Bytes(), err
}
