package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/faulty"
	"cairn/internal/blobstore/mem"
	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/repo"
	"cairn/internal/volume"
)

func (r *rig) tree(ref PointRef) volume.Tree {
	r.t.Helper()
	back, err := ParsePointRef(ref.String())
	if err != nil || back != ref {
		r.t.Fatalf("%q reads back as %+v, %v", ref.String(), back, err)
	}
	t, err := r.e.OpenTree(r.t.Context(), back)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := t.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return t
}

// dataRanges lists what Data gives.
func dataRanges(t testing.TB, from ask) (out []extent.Range) {
	t.Helper()
	for off := int64(0); ; {
		r, err := from(t.Context(), off)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil || r.Off < off || r.Len <= 0 {
			t.Fatalf("from %d: %+v, %v", off, r, err)
		}
		out = append(out, r)
		off = r.End()
	}
}

// drawSize draws a size around an edge of what the engine works in.
func drawSize(t *rapid.T, name string) int64 {
	sizes := []int64{1, 4095, 65535, 65536, 65537, 2<<20 - 1, 2 << 20, 2<<20 + 1, 5<<20 + 3000}
	if !raceDetector { // it finds nothing more in the large ones
		sizes = append(sizes, 64<<20, 64<<20+70000)
	}
	return rapid.SampledFrom(sizes).Draw(t, name)
}

// A tree gives the bytes of its point wherever it is read, and its Data leaves
// out nothing but zeros.
func TestTreeOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		size := drawSize(rt, "size")
		v := patches(t, size, rapid.Uint64().Draw(rt, "seed"))
		point := r.take(v, nil)
		if rapid.Bool().Draw(rt, "increment") { // then frames are shared by old and new leaves
			if err := v.WriteAt(t.Context(), []byte("new"), rapid.Int64Range(0, max(0, size-3)).Draw(rt, "at")); err != nil && size >= 3 {
				rt.Fatal(err)
			}
			point = r.take(v, &point.Ref)
		}
		want := v.bytes()
		tr := r.tree(point.Ref)
		edges := []int64{0, chunkSize, frameBytes, leafSize, fanout * leafSize, size &^ (chunkSize - 1), size}
		for range 40 {
			n := min(size, rapid.SampledFrom([]int64{0, 1, 512, 4096, 65535, 65536, 65537, 131072, 262144, 300000, 2 << 20, 5 << 20}).Draw(rt, "len"))
			off := rapid.Int64Range(0, size-n).Draw(rt, "off")
			if rapid.Bool().Draw(rt, "edge") {
				off = rapid.SampledFrom(edges).Draw(rt, "at") + rapid.SampledFrom([]int64{-n - 1, -n, -n + 1, -512, -1, 0, 1, 512}).Draw(rt, "by")
				off = max(0, min(off, size-n))
			}
			buf := bytes.Repeat([]byte{0xee}, int(n))
			if err := tr.ReadAt(t.Context(), buf, off); err != nil || !bytes.Equal(buf, want[off:off+n]) {
				rt.Fatalf("%d bytes at %d are wrong (%v)", n, off, err)
			}
		}
		end := int64(0)
		for _, d := range append(dataRanges(t, tr.Data), extent.Range{Off: size}) {
			if d.End() > size || len(bytes.TrimLeft(want[end:d.Off], "\x00")) > 0 {
				rt.Fatalf("data at %+v of %d bytes, after %d", d, size, end)
			}
			end = d.End()
		}
	})
}

// patches is a volume with data around the edges of what the engine works in.
func patches(t *testing.T, size int64, seed uint64) *memVolume {
	t.Helper()
	v := newVolume(size)
	for i, edge := range []int64{0, chunkSize, leafSize, 2 * leafSize, fanout * leafSize, size &^ (chunkSize - 1), size} {
		if edge > size {
			continue
		}
		piece := mixed(t, 700_000, seed+uint64(i))
		start := max(0, min(edge-350_000, size-piece.size))
		if err := v.put(piece.bytes()[:min(piece.size, size)], start); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

const frameBytes = 4 * chunkSize // what writers put into a frame

// noisy is a volume of one point, stored in frames of four chunks.
func noisy(t *testing.T, r *rig, size int64) (want []byte, ref PointRef) {
	t.Helper()
	v := newVolume(size)
	want = make([]byte, size)
	fill(rand.New(rand.NewPCG(uint64(size), 3)), want)
	if err := v.WriteAt(t.Context(), want, 0); err != nil {
		t.Fatal(err)
	}
	return want, r.take(v, nil).Ref
}

// A reader of small pieces reads each frame once: also one chunk after the
// other, and many readers at the same place.
func TestTreeReadsAFrameOnce(t *testing.T) {
	const size = 3 << 20
	store := faulty.New(mem.New(), nil)
	r := newRigOn(t, store)
	want, ref := noisy(t, r, size)
	reads := func(fn func(tr volume.Tree)) int {
		r.reopen()
		n := 0
		var mu sync.Mutex
		store.SetPlan(func(c faulty.Call) (faulty.Outcome, error) {
			mu.Lock()
			defer mu.Unlock()
			if c.Op == faulty.ReadAt && strings.HasPrefix(c.Name, "data/") {
				n++
			}
			return faulty.Pass, nil
		})
		fn(r.tree(ref))
		return n
	}
	const headers = 1 // of the pack
	for _, step := range []int64{4096, 65536, 131072, 70000} {
		n := reads(func(tr volume.Tree) {
			for off := int64(0); off < size; off += step {
				buf := make([]byte, min(step, size-off))
				if err := tr.ReadAt(t.Context(), buf, off); err != nil || !bytes.Equal(buf, want[off:off+int64(len(buf))]) {
					t.Fatalf("%d bytes at %d: %v", len(buf), off, err)
				}
			}
		})
		if frames := size / frameBytes; n != headers+frames {
			t.Errorf("pieces of %d bytes: %d reads of %d frames", step, n, frames)
		}
	}
	n := reads(func(tr volume.Tree) {
		var all sync.WaitGroup
		for i := range 16 {
			all.Go(func() {
				buf := make([]byte, 4096)
				off := frameBytes + int64(i)*16384
				if err := tr.ReadAt(t.Context(), buf, off); err != nil || !bytes.Equal(buf, want[off:off+4096]) {
					t.Errorf("4096 bytes at %d: %v", off, err)
				}
			})
		}
		all.Wait()
	})
	if n != headers+1 {
		t.Errorf("16 readers of one frame made %d reads", n)
	}
	if n := reads(func(tr volume.Tree) {
		buf := make([]byte, size)
		if err := tr.ReadAt(t.Context(), buf, 0); err != nil || !bytes.Equal(buf, want) {
			t.Error("all at once:", err)
		}
		if n := tr.(*tree).chunks.order.Len(); n != 0 {
			t.Errorf("%d chunks are kept of what was wanted whole", n)
		}
	}); n > headers+size/(1<<20)+2 { // the last frame of each MiB may not fit
		t.Errorf("all at once took %d reads", n)
	}
}

// Opening a tree and reading a page of it costs a handful of small reads.
func TestTreeFirstRead(t *testing.T) {
	store := faulty.New(mem.New(), nil)
	r := newRigOn(t, store)
	want, ref := noisy(t, r, 70<<20)
	r.reopen()
	store.SetPlan(nil)
	tr := r.tree(ref)
	buf := make([]byte, 4096)
	if err := tr.ReadAt(t.Context(), buf, 66<<20); err != nil || !bytes.Equal(buf, want[66<<20:66<<20+4096]) {
		t.Fatal(err)
	}
	// The point pack; two nodes and a frame, and the headers of their packs.
	if c := store.Counts(); c.Calls > 8 {
		t.Errorf("the first read took %+v", c)
	}
}

// Memory for chunks is bounded, and what is forgotten is read again right.
func TestTreeCacheIsBounded(t *testing.T) {
	r := newRig(t)
	want, ref := noisy(t, r, 20<<20)
	tr := r.tree(ref)
	rng := rand.New(rand.NewPCG(5, 5))
	for range 2000 {
		buf := make([]byte, 1+rng.IntN(5000))
		off := rng.Int64N(20<<20 - 5000)
		if err := tr.ReadAt(t.Context(), buf, off); err != nil || !bytes.Equal(buf, want[off:off+int64(len(buf))]) {
			t.Fatalf("%d bytes at %d: %v", len(buf), off, err)
		}
		c := tr.(*tree).chunks
		if c.order.Len() > cachedChunks || len(c.held) != c.order.Len() || len(c.loading) != 0 {
			t.Fatalf("%d chunks, %d by id, %d loading", c.order.Len(), len(c.held), len(c.loading))
		}
	}
	if err := tr.Close(); err != nil || tr.(*tree).chunks.order.Len() != 0 {
		t.Error("Close keeps chunks:", err)
	}
}

// Many goroutines read one tree in all ways at once.
func TestTreeInParallel(t *testing.T) {
	r := newRig(t)
	v := mixed(t, 40<<20, 11)
	want := v.bytes()
	one, two := r.tree(r.take(v, nil).Ref), r.tree(r.take(v.clone(), nil).Ref)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 12))
			for range 150 {
				buf := make([]byte, []int{1, 4096, 65536, 300_000, 2 << 20}[rng.IntN(5)])
				off := rng.Int64N(int64(len(want) - len(buf)))
				if i%2 == 0 {
					off &^= 4095
				}
				if err := one.ReadAt(t.Context(), buf, off); err != nil || !bytes.Equal(buf, want[off:off+int64(len(buf))]) {
					t.Errorf("%d bytes at %d: %v", len(buf), off, err)
					return
				}
				if _, err := one.Data(t.Context(), off); err != nil && !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				if got, err := one.Differs(t.Context(), two, off); !errors.Is(err, io.EOF) {
					t.Errorf("equal trees differ at %+v, %v", got, err)
				}
			}
		})
	}
	all.Wait()
}

// slowStore answers reads of data packs only when their ctx ends, while slow.
type slowStore struct {
	blobstore.Store
	slow    atomic.Bool
	entered chan struct{}
}

func (s *slowStore) ReadAt(ctx context.Context, name string, buf []byte, off int64) (int, error) {
	if s.slow.Load() && strings.HasPrefix(name, "data/") {
		s.entered <- struct{}{}
		<-ctx.Done()
		return 0, context.Cause(ctx)
	}
	return s.Store.ReadAt(ctx, name, buf, off)
}

// A reader that gives up does not take along those who wait for the same frame.
func TestTreeReaderGivesUp(t *testing.T) { synctest.Test(t, treeReaderGivesUp) }

func treeReaderGivesUp(t *testing.T) {
	below := &slowStore{Store: mem.New(), entered: make(chan struct{})}
	r := newRigOn(t, below)
	want, ref := noisy(t, r, 1<<20)
	r.reopen()
	tr := r.tree(ref)
	below.slow.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- tr.ReadAt(ctx, make([]byte, 512), 0) }()
	<-below.entered
	buf := make([]byte, 512)
	go func() { done <- tr.ReadAt(t.Context(), buf, 70_000) }()
	synctest.Wait() // until it waits for the first one
	below.slow.Store(false)
	cancel()
	var canceled int
	for range 2 {
		if err := <-done; errors.Is(err, context.Canceled) {
			canceled++
		} else if err != nil {
			t.Error(err)
		}
	}
	if canceled != 1 || !bytes.Equal(buf, want[70_000:70_512]) {
		t.Errorf("%d readers gave up", canceled)
	}
}

func TestTreeRefuses(t *testing.T) {
	r, other := newRig(t), newRig(t)
	_, ref := noisy(t, r, chunkSize+100)
	_, far := noisy(t, other, chunkSize+100)
	tr, ctx := r.tree(ref), t.Context()
	for _, c := range []struct{ off, n int64 }{{-1, 10}, {chunkSize + 100, 1}, {chunkSize + 91, 10}, {1<<63 - 5, 10}} {
		if err := tr.ReadAt(ctx, make([]byte, c.n), c.off); err == nil {
			t.Errorf("%d bytes at %d were read", c.n, c.off)
		}
	}
	for _, off := range []int64{chunkSize + 100, chunkSize + 101, 1 << 62} {
		if got, err := tr.Data(ctx, off); !errors.Is(err, io.EOF) {
			t.Errorf("data at %d: %+v, %v", off, got, err)
		}
		if got, err := tr.Differs(ctx, tr, off); !errors.Is(err, io.EOF) {
			t.Errorf("difference at %d: %+v, %v", off, got, err)
		}
	}
	if _, err := tr.Data(ctx, -1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("data at -1: %v", err)
	}
	if _, err := tr.Differs(ctx, tr, -1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("difference at -1: %v", err)
	}
	if _, err := tr.Differs(ctx, other.tree(far), 0); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("trees of two repositories were compared: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_, dataErr := tr.Data(gone, 0)
	_, differErr := tr.Differs(gone, tr, 0)
	for _, err := range []error{tr.ReadAt(gone, make([]byte, 1), 0), dataErr, differErr} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
}

// The checkpoint names bytes and size, whatever way they were stored.
func TestCheckpoint(t *testing.T) {
	seen := map[volume.Checkpoint]string{}
	r := newRig(t)
	for _, size := range []int64{1, 65536, 65537, 2 << 20, 2<<20 + 1} {
		for _, first := range []string{"", "a", "b"} {
			v := newVolume(size)
			if first != "" {
				if err := v.WriteAt(t.Context(), []byte(first), 0); err != nil {
					t.Fatal(err)
				}
			}
			what := fmt.Sprintf("%d bytes with %q", size, first)
			c := r.take(v, nil)
			if other, ok := seen[c.Checkpoint]; ok {
				t.Errorf("%s has the checkpoint of %s", what, other)
			}
			seen[c.Checkpoint] = what
			if again := r.take(v, &c.Ref); again.Checkpoint != c.Checkpoint {
				t.Errorf("%s: %s, then %s", what, c.Checkpoint, again.Checkpoint)
			}
			tr, err := r.e.OpenTree(t.Context(), c.Ref)
			if err != nil {
				t.Fatal(err)
			}
			if tr.Checkpoint() != c.Checkpoint || tr.Size() != size || tr.Ref() != c.Ref.String() {
				t.Errorf("%s: the tree says %s, %d bytes, %s", what, tr.Checkpoint(), tr.Size(), tr.Ref())
			}
		}
	}
}

func TestParsePointRef(t *testing.T) {
	pack, hash := strings.Repeat("0a", 16), strings.Repeat("b1", 32)
	for _, p := range []PointRef{{"ss-1", pack, hash}, {"ss-1", pack, ""}} {
		if got, err := ParsePointRef(p.String()); err != nil || got != p {
			t.Errorf("%q reads back as %+v, %v", p.String(), got, err)
		}
	}
	for _, s := range []string{
		"", ".", "..", "ss-1", "ss-1.", "ss-1." + pack + ".", "ss-1." + pack[1:], "ss-1." + strings.ToUpper(pack), "." + pack,
		"ss/1." + pack, "-1." + pack, "ss-1." + pack + "." + hash[1:], "ss-1." + pack + "." + strings.ToUpper(hash),
		"ss-1." + pack + "." + hash + ".", "ss-1\n." + pack, strings.Repeat("s", 65) + "." + pack,
	} {
		if got, err := ParsePointRef(s); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q reads as %+v, %v", s, got, err)
		}
	}
}

// Whatever blob of a point is damaged or lost, a tree gives the right bytes or
// errs.Corrupt; whatever does not answer, the right bytes or errs.Unavailable.
func TestTreeOfDamage(t *testing.T) {
	below := mem.New()
	store := faulty.New(below, nil)
	r := newRigOn(t, store)
	want, ref := noisy(t, r, 4<<20+100)
	var names []string
	if err := r.e.r.Blobs(t.Context(), func(b repo.Blob) error { names = append(names, b.Name); return nil }); err != nil {
		t.Fatal(err)
	}
	corrupt := 0
	for _, name := range names {
		if strings.HasPrefix(name, "header/") {
			continue
		}
		single := strings.HasPrefix(name, "data/")
		for _, at := range []int{20, 300, 200_000, -1} { // of a pack's header, in records, all
			damaged := below.Clone()
			if at < 0 {
				if err := damaged.Delete(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			} else if err := damaged.Damage(name, func(b []byte) []byte { b[at%len(b)] ^= 4; return b }); err != nil {
				t.Fatal(err)
			}
			bad := *r
			bad.store = damaged
			bad.reopen()
			err := readTree(t, bad.e, ref, want)
			if err != nil && (!errs.Is(err, errs.Corrupt) || errs.Is(err, errs.Unavailable)) || err != nil && !single {
				t.Errorf("%s damaged at %d: %v", name, at, err)
			}
			if err != nil {
				corrupt++
			}
		}
		r.reopen()
		store.SetPlan(unreachable(strings.TrimSuffix(strings.TrimSuffix(name, ".a"), ".b")))
		if err := readTree(t, r.e, ref, want); !errs.Is(err, errs.Unavailable) || errs.Is(err, errs.Corrupt) {
			t.Errorf("%s does not answer: %v", name, err)
		}
		store.SetPlan(nil)
	}
	if corrupt == 0 {
		t.Error("no damage was met")
	}
}

// readTree reads a point in small and in large pieces and compares.
func readTree(t *testing.T, e *Engine, ref PointRef, want []byte) error {
	t.Helper()
	tr, err := e.OpenTree(t.Context(), ref)
	if err != nil {
		return err
	}
	defer tr.Close()
	var first error
	for _, step := range []int{100_000, 2 << 20} {
		for off := 0; off < len(want); off += step {
			buf := make([]byte, min(step, len(want)-off))
			err := tr.ReadAt(t.Context(), buf, int64(off))
			if err == nil && !bytes.Equal(buf, want[off:off+len(buf)]) {
				t.Fatalf("wrong bytes at %d without an error", off)
			}
			if first == nil {
				first = err
			}
		}
	}
	return first
}
