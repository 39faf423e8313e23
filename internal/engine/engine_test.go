package engine

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/repo"
)

// fill writes pseudo-random text or noise.
func fill(r *rand.Rand, b []byte) {
	mask := byte(0xff)
	if r.IntN(2) == 0 {
		mask = 3
	}
	for i := range b {
		b[i] = byte(r.Uint32()) & mask
	}
}

// After any history, every point reads back equal by restore onto anything and
// by export, an increment has the root of a full scan, and scrub is clean.
func TestOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		size := rapid.SampledFrom([]int64{1, 4095, 65536, 65537, 1 << 20, 2<<20 + 512, 5<<20 + 3000, 70 << 20}).Draw(rt, "size")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		v := newVolume(size)
		type kept struct {
			c    Captured
			want []byte
		}
		var points []kept
		for range rapid.IntRange(1, 6).Draw(rt, "steps") {
			for range rapid.IntRange(0, 12).Draw(rt, "writes") {
				off := rapid.Int64Range(0, size-1).Draw(rt, "off")
				n := min(size-off, rapid.SampledFrom([]int64{1, 512, 4096, 65536, 300000}).Draw(rt, "len"))
				b := make([]byte, n)
				switch rapid.IntRange(0, 3).Draw(rt, "what") {
				case 0:
					if err := v.Zero(t.Context(), off, n); err != nil {
						rt.Fatal(err)
					}
					continue
				case 1: // written zeros
				default:
					fill(rng, b)
				}
				if err := v.WriteAt(t.Context(), b, off); err != nil {
					rt.Fatal(err)
				}
			}
			var parent *PointRef
			if len(points) > 0 && rapid.Bool().Draw(rt, "incremental") {
				parent = &points[rapid.IntRange(0, len(points)-1).Draw(rt, "parent")].c.Ref
			}
			if rapid.Bool().Draw(rt, "reopen") {
				r.reopen()
			}
			points = append(points, kept{r.take(v, parent), v.bytes()})
		}
		var refs []PointRef
		for _, p := range points {
			refs = append(refs, p.c.Ref)
			got, err := r.export(p.c.Ref)
			if err != nil || !bytes.Equal(got, p.want) {
				rt.Fatalf("%s exports wrong (%v)", p.c.Ref.Snapshot, err)
			}
			for _, target := range []*memVolume{newVolume(size), v.clone(), newVolume(size + 70000)} {
				if target.size > size {
					if err := target.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 70000), size); err != nil {
						rt.Fatal(err)
					}
				}
				if _, err := r.e.Restore(t.Context(), p.c.Ref, target, nil); err != nil {
					rt.Fatal(err)
				}
				want := append(bytes.Clone(p.want), make([]byte, target.size-size)...)
				if !bytes.Equal(target.bytes(), want) {
					rt.Fatalf("%s restores wrong", p.c.Ref.Snapshot)
				}
			}
		}
		full, last := r.take(v, nil), points[len(points)-1]
		a, err := r.e.manifest(t.Context(), full.Ref)
		if err != nil {
			rt.Fatal(err)
		}
		b, err := r.e.manifest(t.Context(), last.c.Ref)
		if err != nil || a.Root.Ref.ID != b.Root.Ref.ID {
			rt.Fatalf("an increment's root differs from a scan's (%v)", err)
		}
		r.scrub(append(refs, full.Ref)...)
	})
}

// Nothing changed: the same root, nothing but a manifest, twice.
func TestUnchangedIncrementIsSmall(t *testing.T) {
	r := newRig(t)
	v := newVolume(8 << 20)
	b := make([]byte, 6<<20)
	fill(rand.New(rand.NewPCG(1, 1)), b)
	if err := v.WriteAt(t.Context(), b, 100000); err != nil {
		t.Fatal(err)
	}
	full := r.take(v, nil)
	inc := r.take(v, &full.Ref)
	if inc.AddedBytes >= 4096 || inc.NewChunks != 0 {
		t.Errorf("an unchanged increment added %d bytes and %d chunks", inc.AddedBytes, inc.NewChunks)
	}
	other := r.take(v, nil)
	if other.NewChunks != 0 {
		t.Errorf("a second full stored %d chunks again", other.NewChunks)
	}
	r.scrub(full.Ref, inc.Ref, other.Ref)
}

// Only pages that differ are written by a rollback.
func TestRollbackWritesOnlyDifferingPages(t *testing.T) {
	r := newRig(t)
	v := newVolume(16 << 20)
	b := make([]byte, 16<<20)
	fill(rand.New(rand.NewPCG(2, 1)), b)
	if err := v.WriteAt(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	p := r.take(v, nil)
	for _, page := range []int64{0, 17, 18, 1000, 4095} {
		if err := v.WriteAt(t.Context(), []byte{^b[page*pageSize]}, page*pageSize); err != nil {
			t.Fatal(err)
		}
	}
	v.written, v.zeroed = 0, 0
	got, err := r.e.Restore(t.Context(), p.Ref, v, nil)
	if err != nil || v.written != 5*pageSize || v.zeroed != 0 || got.WrittenBytes != v.written || !bytes.Equal(v.bytes(), b) {
		t.Fatalf("wrote %d, zeroed %d, %+v, %v", v.written, v.zeroed, got, err)
	}
}

func TestRestoreRefusesASmallerTarget(t *testing.T) {
	r := newRig(t)
	p := r.take(newVolume(2<<20), nil)
	v := newVolume(1 << 20)
	if _, err := r.e.Restore(t.Context(), p.Ref, v, nil); !errs.Is(err, errs.Conflict) {
		t.Errorf("got %v", err)
	}
}

// A discarded session leaves no blob behind.
func TestDiscard(t *testing.T) {
	r := newRig(t)
	v := newVolume(4 << 20)
	b := make([]byte, 4<<20)
	fill(rand.New(rand.NewPCG(4, 1)), b)
	if err := v.WriteAt(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	reg := newRegistry()
	s, err := r.e.OpenSession(t.Context(), "job", 1, reg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Capture(t.Context(), r.spec(v, nil), nil); err != nil {
		t.Fatal(err)
	}
	packs, err := reg.SessionPacks(t.Context())
	if err != nil || len(packs) < 2 {
		t.Fatalf("%d packs, %v", len(packs), err)
	}
	for range 2 {
		if err := r.e.DiscardSession(t.Context(), packs); err != nil {
			t.Fatal(err)
		}
	}
	count := 0
	if err := r.e.r.Blobs(t.Context(), countBlobs(&count)); err != nil || count != 2 {
		t.Fatalf("%d blobs are left, %v", count, err)
	}
	// What was discarded is no dedup hit for the next.
	c := r.take(v, nil)
	if got, err := r.export(c.Ref); err != nil || !bytes.Equal(got, b) {
		t.Fatal("wrong after a discard", err)
	}
}

// Points of one session share chunks, but never through a point pack.
func TestGroup(t *testing.T) {
	r := newRig(t)
	a, b := newVolume(1<<20), newVolume(1<<20)
	small := make([]byte, 64<<10)
	fill(rand.New(rand.NewPCG(5, 1)), small)
	for _, v := range []*memVolume{a, b} {
		if err := v.WriteAt(t.Context(), small, 0); err != nil {
			t.Fatal(err)
		}
	}
	reg := newRegistry()
	s, err := r.e.OpenSession(t.Context(), "job", 1, reg)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := s.Capture(t.Context(), r.spec(a, nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	cb, err := s.Capture(t.Context(), r.spec(b, nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.commit(s, reg)
	pr, err := reg.packs[ca.Ref.Pack].repo()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.e.r.DeletePacks(t.Context(), []repo.PackRecord{pr}); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	if got, err := r.export(cb.Ref); err != nil || !bytes.Equal(got, b.bytes()) {
		t.Fatal("a point lives in another point's pack:", err)
	}
}

func TestFreedBytes(t *testing.T) {
	r := newRig(t)
	rng := rand.New(rand.NewPCG(6, 1))
	v := newVolume(8 << 20)
	write := func(off int64, n int) {
		b := make([]byte, n)
		fill(rng, b)
		if err := v.WriteAt(t.Context(), b, off); err != nil {
			t.Fatal(err)
		}
	}
	write(0, 4<<20)
	one := r.take(v, nil)
	write(1<<20, 1<<20)
	two := r.take(v, &one.Ref)
	three := r.take(v, &two.Ref)
	all, err := r.e.FreedBytes(t.Context(), r.rows(), []PointRef{one.Ref, two.Ref, three.Ref}, nil)
	if err != nil {
		t.Fatal(err)
	}
	added := one.AddedBytes + two.AddedBytes + three.AddedBytes
	// Pack headers, directories and footers are the difference.
	if all > added || all < added*95/100 {
		t.Errorf("all three free %d of %d bytes", all, added)
	}
	last, err := r.e.FreedBytes(t.Context(), r.rows(), []PointRef{three.Ref}, []PointRef{one.Ref, two.Ref})
	if err != nil || last != three.AddedBytes {
		t.Errorf("the unchanged point frees %d, added %d, %v", last, three.AddedBytes, err)
	}
	none, err := r.e.FreedBytes(t.Context(), r.rows(), []PointRef{one.Ref}, []PointRef{two.Ref, three.Ref})
	if err != nil || none <= 0 || none > one.AddedBytes/2 {
		t.Errorf("the full frees %d of %d bytes, %v", none, one.AddedBytes, err)
	}
}

func TestImport(t *testing.T) {
	r := newRig(t)
	want := make([]byte, 5<<20+100)
	fill(rand.New(rand.NewPCG(7, 1)), want[1<<20:2<<20])
	v := newVolume(int64(len(want)))
	if err := r.e.ImportTo(t.Context(), Flat(bytes.NewReader(want), v.size), v.size, v, nil); err != nil || !bytes.Equal(v.bytes(), want) {
		t.Fatal("wrong import", err)
	}
	if v.written > 1<<20 {
		t.Errorf("zeros were written: %d bytes", v.written)
	}
	for _, n := range []int64{v.size - 1, v.size + 1} {
		if err := r.e.ImportTo(t.Context(), Flat(bytes.NewReader(want), n), n, newVolume(n), nil); !errs.Is(err, errs.Invalid) {
			t.Errorf("%d bytes announced, %d sent: %v", n, len(want), err)
		}
	}
}

// parts is an inflow with holes.
type parts struct {
	ranges       []extent.Range
	at           int
	bytes.Reader // of the present range
	content      []byte
	err          error // instead of the end
}

func (p *parts) Next() (extent.Range, error) {
	if p.at == len(p.ranges) {
		return extent.Range{}, p.err
	}
	r := p.ranges[p.at]
	p.at++
	if r.Off >= 0 && r.Len > 0 && r.Off <= int64(len(p.content))-r.Len {
		p.Reset(p.content[r.Off:r.End()])
	}
	return r, nil
}

func TestImportRanges(t *testing.T) {
	r := newRig(t)
	const size = 9<<20 + 77
	noise := make([]byte, size)
	fill(rand.New(rand.NewPCG(9, 1)), noise)
	ranges := []extent.Range{{Off: 3, Len: 5}, {Off: 65536, Len: 131072}, {Off: 2<<20 - 1, Len: 5 << 20}, {Off: size - 70000, Len: 70000}}
	want := make([]byte, size)
	for _, x := range ranges {
		copy(want[x.Off:x.End()], noise[x.Off:x.End()])
	}
	v := newVolume(size)
	var last int64
	progress := func(done, total int64) {
		last = done
		if total != size {
			t.Errorf("progress of %d bytes", total)
		}
	}
	if err := r.e.ImportTo(t.Context(), &parts{ranges: ranges, content: noise}, size, v, progress); err != nil || !bytes.Equal(v.bytes(), want) {
		t.Fatal("wrong import", err)
	}
	if last != size || v.written != extent.Total(ranges) {
		t.Errorf("%d bytes were written of %d, the last progress was %d", v.written, extent.Total(ranges), last)
	}
	broken := errs.New(errs.Invalid, "cut")
	for says, in := range map[string]*parts{
		"backwards":        {ranges: []extent.Range{{Off: 10, Len: 10}, {Off: 19, Len: 1}}},
		"past the end":     {ranges: []extent.Range{{Off: size - 1, Len: 2}}},
		"before the start": {ranges: []extent.Range{{Off: -1, Len: 2}}},
		"negative":         {ranges: []extent.Range{{Off: 10, Len: -1}}},
		"far":              {ranges: []extent.Range{{Off: 1<<63 - 1, Len: 1<<63 - 1}}},
		"no end":           {ranges: ranges, err: broken},
	} {
		in.content = noise
		if err := r.e.ImportTo(t.Context(), in, size, newVolume(size), nil); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", says, err)
		}
	}
	empty := newVolume(size)
	if err := r.e.ImportTo(t.Context(), &parts{}, size, empty, nil); err != nil || empty.written != 0 {
		t.Errorf("all zeros: %d bytes written, %v", empty.written, err)
	}
}

func TestExportQcow2(t *testing.T) {
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("qemu-img is not installed (make setup)")
	}
	r := newRig(t)
	v := newVolume(3<<20 + 512)
	b := make([]byte, 1<<20)
	fill(rand.New(rand.NewPCG(8, 1)), b)
	if err := v.WriteAt(t.Context(), b, 700000); err != nil {
		t.Fatal(err)
	}
	c := r.take(v, nil)
	im, err := r.e.OpenImage(t.Context(), c.Ref)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	raw, q := filepath.Join(dir, "raw"), filepath.Join(dir, "q")
	if err := os.WriteFile(raw, v.bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(q)
	if err != nil {
		t.Fatal(err)
	}
	if err := im.WriteTo(t.Context(), f, FormatQcow2); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), tool, "compare", "-f", "raw", "-F", "qcow2", raw, q)
	cmd.WaitDelay = time.Minute
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("qemu-img compare: %v\n%s", err, out)
	}
}

// Behind the last byte there is no data, even if the last chunk goes on.
func TestNoDataBehindTheEnd(t *testing.T) {
	r := newRig(t)
	v := newVolume(chunkSize + 100)
	if err := v.WriteAt(t.Context(), []byte{1}, chunkSize+99); err != nil {
		t.Fatal(err)
	}
	m, err := r.e.manifest(t.Context(), r.take(v, nil).Ref)
	if err != nil {
		t.Fatal(err)
	}
	p := &point{e: r.e, m: m}
	for off, want := range map[int64]extent.Range{0: {Off: chunkSize, Len: 100}, chunkSize + 40: {Off: chunkSize + 40, Len: 60}} {
		if got, err := p.Data(t.Context(), off); err != nil || got != want {
			t.Errorf("at %d: %+v, %v", off, got, err)
		}
	}
	for _, off := range []int64{chunkSize + 100, chunkSize + 101, 1 << 40} {
		if got, err := p.Data(t.Context(), off); !errors.Is(err, io.EOF) {
			t.Errorf("at %d: %+v, %v", off, got, err)
		}
	}
}
