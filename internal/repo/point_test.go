package repo

import (
	"context"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/internal/blobstore/mem"
	"cairn/internal/repo/addr"
	"cairn/internal/repo/pack"
	"cairn/internal/repo/tree"
)

// rows is a Recorder in memory.
type rows struct {
	mu   sync.Mutex
	all  []PackRecord
	gone []PackID
}

func (r *rows) Register(_ context.Context, p PackRecord) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, p)
	return nil
}

func (r *rows) Registered(context.Context) ([]PackRecord, error) { return nil, nil }

func (r *rows) Drop(context.Context, []PackID) error { return nil }

func (r *rows) Usable(context.Context, PackID) (bool, error) { return true, nil }

func (r *rows) Forget(_ context.Context, packs []PackID) error {
	r.gone = append(r.gone, packs...)
	return nil
}

func newTestSession(t *testing.T) (*Session, *rows) {
	t.Helper()
	store, key := mem.New(), NewKey()
	if err := Init(t.Context(), store, key, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), store, key, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	rec := &rows{}
	s, err := r.NewSession(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	return s, rec
}

// Chunks that compress to nothing do not make a pack whose directory is huge:
// its frames are counted. All places are right whoever sealed them.
func TestPackHasBoundedDirectory(t *testing.T) {
	s, rec := newTestSession(t)
	const frames = packRecords + 100
	w, err := s.NewPoint(t.Context(), PointConfig{Snapshot: "ss-1", SizeBytes: frames * ChunkSize})
	if err != nil {
		t.Fatal(err)
	}
	places := make([]*tree.Place, frames)
	var g errgroup.Group
	for first := range 4 {
		g.Go(func() error {
			for i := first; i < frames; i += 4 {
				f := &frame{place: &tree.Place{}, ids: []ID{numbered(i)}, encoding: pack.Zstd, encoded: []byte("tiny")}
				places[i] = f.place
				if err := w.addFrames(t.Context(), []*frame{f}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	p, err := w.Finish(t.Context(), &Manifest{Snapshot: "ss-1", SizeBytes: frames * ChunkSize})
	if err != nil {
		t.Fatal(err)
	}
	found, added := 0, int64(0)
	for _, p := range rec.all {
		added += p.Bytes
		if p.Pack.Kind != addr.Data {
			continue
		}
		_, entries, err := s.r.directory(t.Context(), p.Pack, p.Pack.Blob())
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) > packRecords {
			t.Errorf("a pack has %d frames", len(entries))
		}
		for _, e := range entries {
			i := int(binary.BigEndian.Uint32(e.IDs[0][:]))
			if want := places[i].Loc; want.Pack != p.Pack || want.Off != e.Off || want.Len != e.Len {
				t.Fatalf("chunk %d lies at %d of %s, its place says %+v", i, e.Off, p.Pack.ID, want)
			}
			found++
		}
	}
	if found != frames || p.AddedBytes != added {
		t.Errorf("%d frames in %d bytes; want %d in %d", found, p.AddedBytes, frames, added)
	}
}

// numbered is an id that tells its number.
func numbered(i int) (id ID) {
	binary.BigEndian.PutUint32(id[:], uint32(i))
	id[31] = 1
	return id
}
