package engine

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/internal/extent"
	"cairn/internal/volume"
)

// trackedVolume knows its changes since checkpoints, in units as a driver's
// bitmap has them.
type trackedVolume struct {
	*memVolume
	unit  int64
	marks map[volume.Checkpoint][]extent.Range
	read  int64
}

func newTracked(size, unit int64) *trackedVolume {
	return &trackedVolume{memVolume: newVolume(size), unit: unit, marks: map[volume.Checkpoint][]extent.Range{}}
}

// mark begins to note changes since a checkpoint.
func (v *trackedVolume) mark(c volume.Checkpoint) { v.marks[c] = nil }

// dirty says that a range changed, or that the driver thinks so.
func (v *trackedVolume) dirty(off, length int64) {
	for c, rs := range v.marks {
		v.marks[c] = extent.Align(append(rs, extent.Range{Off: off, Len: length}), v.unit, v.size)
	}
}

func (v *trackedVolume) WriteAt(ctx context.Context, b []byte, off int64) error {
	v.dirty(off, int64(len(b)))
	return v.memVolume.WriteAt(ctx, b, off)
}

func (v *trackedVolume) Zero(ctx context.Context, off, length int64) error {
	v.dirty(off, length)
	return v.memVolume.Zero(ctx, off, length)
}

func (v *trackedVolume) ReadAt(ctx context.Context, b []byte, off int64) error {
	v.read += int64(len(b))
	return v.memVolume.ReadAt(ctx, b, off)
}

func (v *trackedVolume) Changed(_ context.Context, base volume.Checkpoint, off int64) (extent.Range, error) {
	rs, ok := v.marks[base]
	if !ok {
		return extent.Range{}, volume.ErrNoBase
	}
	for _, r := range rs {
		if r.End() > off {
			start := max(off, r.Off)
			return extent.Range{Off: start, Len: r.End() - start}, nil
		}
	}
	return extent.Range{}, io.EOF
}

// A capture that reads only the driver's changes gives the root that a scan
// gives, after any history, and reads nothing else.
func TestTrackedIsAScan(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		size := rapid.SampledFrom([]int64{1, 65535, 65536, 65537, 2<<20 - 1, 2 << 20, 2<<20 + 1, 5<<20 + 3000, 64<<20 + 70000}).Draw(rt, "size")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		v := newTracked(size, rapid.SampledFrom([]int64{1, 512, 4096, 65536, 1 << 20}).Draw(rt, "unit"))
		// The edges of what the engine works in, and anywhere else.
		edges := []int64{0, chunkSize, leafSize, fanout * leafSize, size &^ (chunkSize - 1), size}
		change := func() {
			n := min(size, rapid.SampledFrom([]int64{1, 512, 4096, 65536, 300000, 5 << 20}).Draw(rt, "len"))
			off := rapid.Int64Range(0, size-n).Draw(rt, "off")
			if rapid.Bool().Draw(rt, "edge") {
				off = rapid.SampledFrom(edges).Draw(rt, "at") + rapid.Int64Range(-n-1, 1).Draw(rt, "by")
				off = max(0, min(off, size-n))
			}
			b := make([]byte, n)
			switch rapid.IntRange(0, 4).Draw(rt, "what") {
			case 0:
				if err := v.Zero(t.Context(), off, n); err != nil {
					rt.Fatal(err)
				}
				return
			case 1: // written zeros
			case 2: // said to be changed, but is not
				v.dirty(off, n)
				return
			default:
				fill(rng, b[:min(n, 70000)])
			}
			if err := v.WriteAt(t.Context(), b, off); err != nil {
				rt.Fatal(err)
			}
		}
		for range rapid.IntRange(0, 6).Draw(rt, "writes") {
			change()
		}
		last := r.take(v, nil)
		v.mark(last.Checkpoint)
		for step := range rapid.IntRange(1, 4).Draw(rt, "steps") {
			base := last.Checkpoint
			for range rapid.IntRange(0, 6).Draw(rt, "changes") {
				change()
			}
			changed := extent.Align(slices.Clone(v.marks[base]), chunkSize, size)
			want := CBTTracked
			if rapid.IntRange(0, 7).Draw(rt, "lost") == 0 {
				delete(v.marks, base)
				want = CBTScan
			}
			v.read = 0
			inc := r.take(v, &last.Ref)
			v.mark(inc.Checkpoint)
			if inc.CBT != want || inc.ReadBytes != v.read {
				rt.Fatalf("found by %q, %d bytes read and %d reported; want %q", inc.CBT, v.read, inc.ReadBytes, want)
			}
			if m, err := r.e.manifest(t.Context(), inc.Ref); err != nil || m.CBT != want {
				rt.Fatalf("the manifest says %q (%v)", m.CBT, err)
			}
			if want == CBTTracked && v.read > extent.Total(changed) {
				rt.Fatalf("%d bytes were read, %d changed", v.read, extent.Total(changed))
			}
			scan := r.take(v, nil)
			if a, b := r.root(inc.Ref), r.root(scan.Ref); a != b {
				rt.Fatalf("step %d: the tracked root is %s, a scan's %s", step, a, b)
			}
			last = inc
		}
		got, err := r.export(last.Ref)
		if err != nil || !bytes.Equal(got, v.bytes()) {
			rt.Fatalf("the last point exports wrong (%v)", err)
		}
		r.scrub(last.Ref)
	})
}

// root is the hash of a point's tree.
func (r *rig) root(ref PointRef) string {
	r.t.Helper()
	m, err := r.e.manifest(r.t.Context(), ref)
	if err != nil {
		r.t.Fatal(err)
	}
	return m.Root.Ref.ID.String()
}

// Nothing changed: nothing is read, and what is stored is one small blob twice.
func TestTrackedUnchanged(t *testing.T) {
	r := newRig(t)
	v := newTracked(100<<30, 65536)
	b := make([]byte, 3<<20)
	fill(rand.New(rand.NewPCG(1, 1)), b)
	if err := v.WriteAt(t.Context(), b, 50<<30); err != nil {
		t.Fatal(err)
	}
	full := r.take(v, nil)
	v.mark(full.Checkpoint)
	v.read = 0
	inc := r.take(v, &full.Ref)
	if v.read != 0 || inc.ReadBytes != 0 || inc.AddedBytes >= 4096 || r.root(inc.Ref) != r.root(full.Ref) {
		t.Errorf("%d bytes were read, %d stored; roots %s and %s", v.read, inc.AddedBytes, r.root(inc.Ref), r.root(full.Ref))
	}
}

// A driver that answers nonsense fails the point; it does not hang it.
func TestTrackedNonsense(t *testing.T) {
	r := newRig(t)
	v := newVolume(1 << 20)
	full := r.take(v, nil)
	for _, bad := range []extent.Range{{Off: 5, Len: 0}, {Off: 0, Len: -1}, {Off: -65536, Len: 10}} {
		reg := newRegistry()
		s, err := r.e.OpenSession(t.Context(), "job", 1, reg)
		if err != nil {
			t.Fatal(err)
		}
		spec := r.spec(nonsense{v, bad}, &full.Ref)
		if _, err := s.Capture(t.Context(), spec, nil); err == nil {
			t.Errorf("%+v was taken for an answer", bad)
		}
		s.Close()
	}
}

type nonsense struct {
	*memVolume
	answer extent.Range
}

func (n nonsense) Changed(context.Context, volume.Checkpoint, int64) (extent.Range, error) {
	return n.answer, nil
}

// manyExtents is a source of very many extents that nobody reads.
type manyExtents struct {
	*memVolume
	n int64
}

func (m manyExtents) Data(_ context.Context, off int64) (extent.Range, error) {
	const every = 16 << 20
	i := (off + every - pageSize) / every // the first that ends behind off
	if i >= m.n {
		return extent.Range{}, io.EOF
	}
	return extent.Range{Off: max(off, i*every), Len: min(pageSize, (i*every+pageSize)-max(off, i*every))}, nil
}

// A million extents are counted and planned without being remembered.
func TestPlanKeepsNoList(t *testing.T) {
	src := manyExtents{newVolume(16 << 40), 1 << 20}
	p := plan{src: src}
	allocs := testing.AllocsPerRun(1, func() {
		total, err := p.begin(t.Context())
		if err != nil || total != src.n*chunkSize {
			t.Errorf("%d bytes, %v", total, err)
		}
		n := int64(0)
		err = p.each(t.Context(), func(extent.Range, bool) error {
			n++
			return nil
		})
		if err != nil || n != src.n {
			t.Errorf("%d ranges, %v", n, err)
		}
	})
	if allocs > 100 {
		t.Errorf("%.0f allocations for %d extents", allocs, src.n)
	}
}
