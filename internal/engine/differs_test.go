package engine

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/internal/blobstore/faulty"
	"cairn/internal/blobstore/mem"
	"cairn/internal/extent"
)

// differences lists what Differs gives, from every chunk on.
func differences(r *rig, a, b PointRef) []extent.Range {
	r.t.Helper()
	one, two := r.tree(a), r.tree(b)
	return extent.Normalize(dataRanges(r.t, func(ctx context.Context, off int64) (extent.Range, error) {
		return one.Differs(ctx, two, off)
	}))
}

// Differs lists exactly the chunks that differ before the end of the smaller
// point, from both sides, whatever sizes, levels and histories the points have.
func TestDiffersOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		v := patches(t, drawSize(rt, "size"), rapid.Uint64().Draw(rt, "seed"))
		w := v.clone()
		switch rapid.IntRange(0, 3).Draw(rt, "other") {
		case 0:
			w = patches(t, drawSize(rt, "other size"), rapid.Uint64().Draw(rt, "other seed"))
		case 1:
			w.size += rapid.SampledFrom([]int64{1, 65536, 2 << 20, 64 << 20, 3 << 30, 200 << 30}).Draw(rt, "grown")
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "changes"), 1))
		for range rapid.IntRange(0, 6).Draw(rt, "writes") {
			n := min(w.size, 1+rng.Int64N(200_000))
			off := rng.Int64N(w.size - n + 1)
			b := make([]byte, n)
			if rng.IntN(3) > 0 {
				fill(rng, b)
			}
			if err := w.put(b, off); err != nil {
				rt.Fatal(err)
			}
		}
		one, two := r.take(v, nil).Ref, r.take(w, nil).Ref
		size := min(v.size, w.size)
		var want []extent.Range
		a, b := make([]byte, chunkSize), make([]byte, chunkSize)
		for off := int64(0); off < size; off += chunkSize {
			clear(a)
			clear(b)
			if err := v.ReadAt(t.Context(), a[:min(chunkSize, v.size-off)], off); err != nil {
				rt.Fatal(err)
			}
			if err := w.ReadAt(t.Context(), b[:min(chunkSize, w.size-off)], off); err != nil {
				rt.Fatal(err)
			}
			if !bytes.Equal(a, b) {
				want = append(want, extent.Range{Off: off, Len: min(chunkSize, size-off)})
			}
		}
		want = extent.Normalize(want)
		there, back := differences(r, one, two), differences(r, two, one)
		if !slices.Equal(there, want) || !slices.Equal(back, want) {
			rt.Fatalf("differences %v and back %v, want %v", there, back, want)
		}
		// From the middle of a chunk on.
		off := rapid.Int64Range(0, size-1).Draw(rt, "from")
		got, err := r.tree(one).Differs(t.Context(), r.tree(two), off)
		for _, w := range want {
			if w.End() > off {
				if start := max(off, w.Off); err != nil || got.Off != start || got.End() > w.End() {
					rt.Fatalf("from %d: %+v, %v; want %+v", off, got, err, w)
				}
				return
			}
		}
		if err == nil {
			rt.Fatalf("from %d: %+v, want none", off, got)
		}
	})
}

// Only what differs is loaded, in both trees, and nothing that lies behind the
// end of the smaller one.
func TestDiffersLoadsLittle(t *testing.T) {
	store := faulty.New(mem.New(), nil)
	r := newRigOn(t, store)
	v := mixed(t, 100<<20, 4)
	one := r.take(v, nil)
	if err := v.WriteAt(t.Context(), []byte("changed"), 90<<20); err != nil {
		t.Fatal(err)
	}
	two := r.take(v, &one.Ref)
	v.size = 900 << 20
	for off := int64(100 << 20); off < v.size; off += leafSize {
		if err := v.WriteAt(t.Context(), []byte("behind"), off); err != nil {
			t.Fatal(err)
		}
	}
	grown := r.take(v, nil)
	differs := func(what string, a, b PointRef, most int, want ...extent.Range) {
		t.Helper()
		r.reopen()
		one, two := r.tree(a), r.tree(b)
		reads := 0
		store.SetPlan(func(c faulty.Call) (faulty.Outcome, error) {
			if c.Op == faulty.ReadAt {
				reads++
			}
			return faulty.Pass, nil
		})
		got := dataRanges(t, func(ctx context.Context, off int64) (extent.Range, error) { return one.Differs(ctx, two, off) })
		if !slices.Equal(got, want) || reads > most {
			t.Errorf("%s: %v after %d reads", what, got, reads)
		}
	}
	changed := extent.Range{Off: 90 << 20, Len: chunkSize}
	// Of each tree the root, a child and the leaf, if it is not behind the end,
	// and the header of a pack.
	differs("an increment", one.Ref, two.Ref, 8, changed)
	differs("nothing", two.Ref, two.Ref, 0)
	differs("a grown one", two.Ref, grown.Ref, 6)
	differs("a grown and changed one", grown.Ref, one.Ref, 8, changed)
}
