package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"cairn/internal/blobstore/faulty"
	"cairn/internal/blobstore/mem"
	"cairn/internal/errs"
	"cairn/internal/repo"
	"cairn/internal/repo/pack"
)

// salvage reads what is left of a point into w.
func (r *rig) salvage(ref PointRef, w io.Writer) (Salvaged, error) {
	s, err := r.e.OpenSalvage(r.t.Context(), ref)
	if err != nil {
		return Salvaged{}, err
	}
	defer s.Close()
	return s.WriteTo(r.t.Context(), w)
}

// sieve compares a stream with what it must be: zeros in the bad ranges.
type sieve struct {
	want  []byte
	bad   []BadRange
	at    int64
	wrong bool
}

func (s *sieve) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		for len(s.bad) > 0 && s.bad[0].Offset+s.bad[0].Length <= s.at {
			s.bad = s.bad[1:]
		}
		n, lost := int64(len(p)), false
		if len(s.bad) > 0 {
			if b := s.bad[0]; b.Offset <= s.at {
				n, lost = min(n, b.Offset+b.Length-s.at), true
			} else {
				n = min(n, b.Offset-s.at)
			}
		}
		n = min(n, int64(len(s.want))-s.at)
		if n == 0 {
			s.wrong = true // longer than the volume
			break
		}
		if lost {
			s.wrong = s.wrong || !repo.AllZero(p[:n])
		} else {
			s.wrong = s.wrong || !bytes.Equal(p[:n], s.want[s.at:s.at+n])
		}
		p, s.at = p[n:], s.at+n
	}
	return total, nil
}

// wantSalvage checks every byte and that exactly the bad ranges are told.
func (r *rig) wantSalvage(what string, ref PointRef, want []byte, bad ...BadRange) {
	r.t.Helper()
	s := &sieve{want: want, bad: bad}
	left, err := r.salvage(ref, s)
	if err != nil {
		r.t.Errorf("%s: %v", what, err)
		return
	}
	if !slices.Equal(left.Bad, bad) || left.Joined {
		r.t.Errorf("%s: bad ranges %+v (joined=%t), want %+v", what, left.Bad, left.Joined, bad)
	}
	if s.wrong || s.at != int64(len(want)) {
		r.t.Errorf("%s: wrong bytes, or %d instead of %d", what, s.at, len(want))
	}
}

// damaged merges ranges of chunks, in order, to what a salvage tells.
func damagedChunks(size int64, chunks []int64) []BadRange {
	slices.Sort(chunks)
	var out []BadRange
	for _, c := range slices.Compact(chunks) {
		off := c * chunkSize
		n := min(chunkSize, size-off)
		if k := len(out); k > 0 && out[k-1].Offset+out[k-1].Length == off {
			out[k-1].Length += n
		} else {
			out = append(out, BadRange{Offset: off, Length: n, Damaged: true})
		}
	}
	return out
}

// layout is what a point's tree looks like: found leaf by leaf, when all is
// whole.
type layout struct {
	size   int64
	chunks map[repo.Loc][]int64 // without Sub: numbers of the chunks in a frame
	nodes  []placedNode
}

type placedNode struct {
	loc         repo.Loc
	first, last int64 // chunks below it
}

func (r *rig) layout(ref PointRef) layout {
	r.t.Helper()
	m, err := r.e.manifest(r.t.Context(), ref)
	if err != nil {
		r.t.Fatal(err)
	}
	l := layout{size: m.SizeBytes, chunks: map[repo.Loc][]int64{}}
	all := repo.Chunks(m.SizeBytes)
	err = r.e.r.Walk(r.t.Context(), m.Root, 0, all,
		func(ref repo.Ref, level uint8, idx int64) (bool, error) {
			span := repo.Span(level)
			l.nodes = append(l.nodes, placedNode{ref.Loc, idx * span, min((idx+1)*span, all)})
			return true, nil
		},
		func(idx int64, n *repo.Node) error {
			for i := range n.Slots {
				if at := n.Slots[i].Loc; !n.Slots[i].IsZero() {
					at.Sub = 0
					l.chunks[at] = append(l.chunks[at], idx*fanout+int64(i))
				}
			}
			return nil
		})
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

func (l *layout) span(n placedNode) []BadRange {
	var chunks []int64
	for c := n.first; c < n.last; c++ {
		chunks = append(chunks, c)
	}
	return damagedChunks(l.size, chunks)
}

// hurt runs do with blobs of the store changed, and nothing remembered.
func (r *rig) hurt(change map[string]func([]byte) []byte, do func()) {
	r.t.Helper()
	whole := r.store
	clone := whole.(*mem.Store).Clone()
	for name, f := range change {
		var err error
		if f == nil {
			err = clone.Delete(r.t.Context(), name)
		} else {
			err = clone.Damage(name, f)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	r.store = clone
	r.reopen()
	do()
	r.store = whole
}

func flipAt(off int) func([]byte) []byte {
	return func(b []byte) []byte {
		b[off] ^= 0x40
		return b
	}
}

// salvageRig holds a full and an increment of a volume of three levels with an
// odd size: chunks in a data pack and in a point pack, nodes in point packs.
func salvageRig(t *testing.T) (r *rig, one, two Captured, wantOne, wantTwo []byte) {
	t.Helper()
	r = newRig(t)
	rng := rand.New(rand.NewPCG(21, 1))
	v := newVolume(70<<20 + 700)
	b := make([]byte, 1<<20)
	fill(rng, b)
	for _, off := range []int64{0, 5<<20 + 100, 66 << 20, 70<<20 - 300_000} {
		if err := v.WriteAt(t.Context(), b[:300_000+off%1000], off); err != nil {
			t.Fatal(err)
		}
		fill(rng, b)
	}
	one, wantOne = r.take(v, nil), v.bytes()
	if err := v.WriteAt(t.Context(), b[:90_000], 6<<20); err != nil {
		t.Fatal(err)
	}
	two, wantTwo = r.take(v, &one.Ref), v.bytes()
	return r, one, two, wantOne, wantTwo
}

func TestSalvageOfAWholePoint(t *testing.T) {
	r, one, two, wantOne, wantTwo := salvageRig(t)
	r.wantSalvage("full", one.Ref, wantOne)
	r.wantSalvage("increment", two.Ref, wantTwo)
	zeros := newVolume(5 << 20)
	r.wantSalvage("zeros", r.take(zeros, nil).Ref, zeros.bytes())
}

// Each record that holds chunks is damaged, the data pack is cut, beheaded or
// removed: exactly the chunks concerned are lost.
func TestSalvageAroundChunks(t *testing.T) {
	r, one, two, wantOne, wantTwo := salvageRig(t)
	l, l2 := r.layout(one.Ref), r.layout(two.Ref)
	cases := 0
	check := func(what string, change map[string]func([]byte) []byte, lost func(repo.Loc) bool) {
		t.Helper()
		cases++
		var bad, bad2 []int64
		for at, chunks := range l.chunks {
			if lost(at) {
				bad = append(bad, chunks...)
			}
		}
		for at, chunks := range l2.chunks {
			if lost(at) {
				bad2 = append(bad2, chunks...)
			}
		}
		r.hurt(change, func() {
			r.wantSalvage(what+", full", one.Ref, wantOne, damagedChunks(l.size, bad)...)
			r.wantSalvage(what+", increment", two.Ref, wantTwo, damagedChunks(l2.size, bad2)...)
		})
	}
	var data repo.Pack
	for at := range l2.chunks {
		both := map[string]func([]byte) []byte{}
		for _, name := range at.Pack.Copies() {
			both[name] = flipAt(int(at.Off) + int(at.Len)/2)
		}
		check(fmt.Sprintf("%s record at %d", at.Pack.Kind, at.Off), both, func(o repo.Loc) bool { return o == at })
		if len(both) == 1 {
			data = at.Pack
			name := data.Blob()
			check("cut", map[string]func([]byte) []byte{name: func(b []byte) []byte { return b[:at.Off+10] }}, func(o repo.Loc) bool {
				return o.Pack == data && o.Off >= at.Off
			})
			continue
		}
		for _, name := range at.Pack.Copies() { // the other copy serves
			check("one copy", map[string]func([]byte) []byte{name: both[name]}, func(repo.Loc) bool { return false })
		}
	}
	inData := func(o repo.Loc) bool { return o.Pack == data }
	check("missing", map[string]func([]byte) []byte{data.Blob(): nil}, inData)
	check("header", map[string]func([]byte) []byte{data.Blob(): flipAt(70)}, inData)
	check("footer", map[string]func([]byte) []byte{data.Blob(): func(b []byte) []byte { return flipAt(len(b) - 1)(b) }}, func(repo.Loc) bool { return false })
	t.Logf("%d damages", cases)
}

// Each node is damaged in both copies: exactly its span is lost. In one copy,
// or in one copy's header and the other's record: nothing.
func TestSalvageAroundNodes(t *testing.T) {
	r, one, _, wantOne, _ := salvageRig(t)
	l := r.layout(one.Ref)
	for _, n := range l.nodes {
		what := fmt.Sprintf("node of chunks %d to %d", n.first, n.last)
		a, b := n.loc.Pack.Blob()+".a", n.loc.Pack.Blob()+".b"
		record := flipAt(int(n.loc.Off) + int(n.loc.Len) - 5)
		r.hurt(map[string]func([]byte) []byte{a: record, b: record}, func() { r.wantSalvage(what, one.Ref, wantOne, l.span(n)...) })
		for name, change := range map[string]map[string]func([]byte) []byte{
			"first copy": {a: record}, "second copy": {b: record}, "record and header": {a: record, b: flipAt(60)}, "header and record": {a: flipAt(60), b: record},
		} {
			r.hurt(change, func() { r.wantSalvage(what+", "+name, one.Ref, wantOne) })
		}
	}
	t.Logf("%d nodes", len(l.nodes))
}

// Nodes that fill packs of their own.
func TestSalvageAroundNodePacks(t *testing.T) {
	r := newRig(t)
	v := newVolume(110 << 20)
	chunk := make([]byte, chunkSize)
	fill(rand.New(rand.NewPCG(22, 1)), chunk)
	for off := int64(0); off < v.size; off += chunkSize {
		if off%leafSize == 0 { // no two leaves are equal
			chunk[0], chunk[1] = byte(off/leafSize), 1
		}
		if err := v.WriteAt(t.Context(), chunk, off); err != nil {
			t.Fatal(err)
		}
	}
	c := r.take(v, nil)
	l := r.layout(c.Ref)
	want := v.bytes()
	tried := 0
	for i, n := range l.nodes {
		if n.loc.Pack.Kind.String() != "node" || i%20 != 0 {
			continue
		}
		tried++
		record := flipAt(int(n.loc.Off) + 30)
		a, b := n.loc.Pack.Blob()+".a", n.loc.Pack.Blob()+".b"
		r.hurt(map[string]func([]byte) []byte{a: record, b: record}, func() { r.wantSalvage("node pack", c.Ref, want, l.span(n)...) })
		r.hurt(map[string]func([]byte) []byte{a: nil, b: record}, func() { r.wantSalvage("node pack, one missing", c.Ref, want, l.span(n)...) })
		r.hurt(map[string]func([]byte) []byte{b: nil}, func() { r.wantSalvage("node pack, the other missing", c.Ref, want) })
	}
	if tried < 2 {
		t.Fatalf("only %d of %d nodes lie in node packs", tried, len(l.nodes))
	}
	t.Logf("%d damages", 3*tried)
}

// A manifest that is damaged in one copy, or in both but not at the same
// place, loses nothing; without any there is nothing to be had.
func TestSalvageWithoutAWholeManifest(t *testing.T) {
	r, one, _, wantOne, _ := salvageRig(t)
	pk, _, err := one.Ref.pack()
	if err != nil {
		t.Fatal(err)
	}
	a, b := pk.Copies()[0], pk.Copies()[1]
	copies, err := r.e.r.InspectPack(t.Context(), pk)
	if err != nil {
		t.Fatal(err)
	}
	manifest := copies[0].Records[len(copies[0].Records)-1]
	if manifest.Kind != pack.Manifest {
		t.Fatalf("the last record is %+v", manifest)
	}
	body := flipAt(int(manifest.Off) + 100)
	tail := func(b []byte) []byte { return flipAt(len(b) - 30)(b) }
	for name, change := range map[string]map[string]func([]byte) []byte{
		"first": {a: body}, "second": {b: body}, "first missing": {a: nil}, "header and record": {a: flipAt(3), b: body},
		"record and footer": {a: body, b: tail}, "both footers": {a: tail, b: tail}, "empty and directory": {a: func([]byte) []byte { return nil }, b: func(b []byte) []byte { return flipAt(len(b) - 90)(b) }},
	} {
		r.hurt(change, func() { r.wantSalvage(name, one.Ref, wantOne) })
	}
	for name, change := range map[string]map[string]func([]byte) []byte{
		"both records": {a: body, b: body}, "both headers": {a: flipAt(3), b: flipAt(9)}, "both missing": {a: nil, b: nil},
	} {
		r.hurt(change, func() {
			if _, err := r.salvage(one.Ref, io.Discard); !errs.Is(err, errs.Corrupt) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// What the store does not give is told apart from what is damaged, and the end
// of the context is neither.
func TestSalvageOfAStoreThatFails(t *testing.T) {
	f := faulty.New(mem.New(), nil)
	r := newRigOn(t, f)
	v := newVolume(3 << 20)
	b := make([]byte, 1<<20)
	fill(rand.New(rand.NewPCG(23, 1)), b)
	if err := v.WriteAt(t.Context(), b, 1<<20); err != nil {
		t.Fatal(err)
	}
	c := r.take(v, nil)
	r.reopen()
	f.SetPlan(func(c faulty.Call) (faulty.Outcome, error) {
		if c.Op == faulty.ReadAt && len(c.Name) > 5 && c.Name[:5] == "data/" {
			return faulty.FailBefore, nil
		}
		return faulty.Pass, nil
	})
	r.wantSalvage("no data pack can be read", c.Ref, v.bytes(), BadRange{Offset: 1 << 20, Length: 1 << 20})
	s, err := r.e.OpenSalvage(t.Context(), c.Ref)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.WriteTo(ctx, &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A chunk that lies elsewhere too is taken from there.
func TestSalvageFromAnotherPlace(t *testing.T) {
	r := newRig(t)
	v := newVolume(1 << 20)
	b := make([]byte, 500_000)
	fill(rand.New(rand.NewPCG(24, 1)), b)
	if err := v.WriteAt(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	one := r.take(v, nil)
	l := r.layout(one.Ref)
	r.index = t.TempDir() // forgets the chunks, so they are stored again
	r.reopen()
	two := r.take(v, nil)
	for at := range l.chunks {
		r.hurt(map[string]func([]byte) []byte{at.Pack.Blob(): nil}, func() {
			r.wantSalvage("from the second pack", one.Ref, v.bytes())
			r.wantSalvage("untouched", two.Ref, v.bytes())
		})
	}
}

// The list of bad ranges, with random ranges in random order: exact as long as
// there is room, and never too small nor too long.
func TestBadListIsBounded(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(25, seed))
		const units = 600
		limit := 4 << rng.IntN(8)
		var truth [units]int8 // 0 good, 1 unreadable, 2 damaged
		l := badList{limit: limit}
		for _, i := range rng.Perm(units) {
			if rng.IntN(4) == 0 {
				truth[i] = int8(1 + rng.IntN(2))
				l.add(BadRange{Offset: int64(i), Length: 1, Damaged: truth[i] == 2})
			}
		}
		l.normalize()
		if len(l.ranges) > limit {
			t.Fatalf("seed %d: %d ranges, limit %d", seed, len(l.ranges), limit)
		}
		var got [units]int8
		end := int64(0)
		for _, b := range l.ranges {
			if b.Offset < end || b.Length <= 0 {
				t.Fatalf("seed %d: %+v", seed, l.ranges)
			}
			end = b.Offset + b.Length
			for i := b.Offset; i < end; i++ {
				got[i] = 1
				if b.Damaged {
					got[i] = 2
				}
			}
		}
		for i := range truth {
			if got[i] < truth[i] || !l.joined && got[i] != truth[i] {
				t.Fatalf("seed %d, joined=%t: unit %d is %d, told %d", seed, l.joined, i, truth[i], got[i])
			}
		}
	}
}
