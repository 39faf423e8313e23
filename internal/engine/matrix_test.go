package engine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/mem"
	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/repo"
	"cairn/internal/repo/pack"
)

// This file enumerates damage: every byte that has a meaning of its own in
// every blob of two small repositories, and samples of the rest. After each one
// the repository is opened, scrubbed and read in every way.

// matrixMasks is how many different bits are flipped at each place.
func matrixMasks() int {
	if os.Getenv("CAIRN_LONG") == "1" {
		return 4
	}
	return 1
}

// matrixStride passes over cases where all of them are ten times as slow.
func matrixStride() int {
	if raceDetector {
		return 41
	}
	return 1
}

// damageCase is one way in which the repository may be damaged.
type damageCase struct {
	kind  string // of the count that it belongs to
	what  string
	blobs map[string]func([]byte) []byte // nil: removed
}

// matrixRepo is a small repository and what its points read as.
type matrixRepo struct {
	t      *testing.T
	key    repo.Key
	store  *mem.Store
	index  string
	packs  []PackRecord
	points []PointRef
	want   map[string]*memVolume
	bytes  map[string][]byte // the same
	wide   bool              // its volumes are mostly holes
	buf    []byte
}

func freeze(r *rig, wide bool, want map[PointRef]*memVolume) *matrixRepo {
	m := &matrixRepo{
		t: r.t.(*testing.T), key: r.key, store: r.store.(*mem.Store), index: r.t.TempDir(), wide: wide,
		packs: slices.Collect(maps.Values(r.packs)), want: map[string]*memVolume{}, bytes: map[string][]byte{},
	}
	for ref, v := range want {
		m.points = append(m.points, ref)
		m.want[ref.Snapshot], m.bytes[ref.Snapshot] = v, v.bytes()
	}
	slices.SortFunc(m.points, func(a, b PointRef) int { return cmp.Compare(a.Snapshot, b.Snapshot) })
	return m
}

// narrowRepo has two data packs with stored and zstd frames, and a chain of
// three: a full, an increment within its point pack, and a larger one.
func narrowRepo(t *testing.T) *matrixRepo {
	r := newRig(t)
	rng := rand.New(rand.NewPCG(31, 1))
	v := newVolume(6*chunkSize + 100)
	put := func(b []byte, off int64) {
		if err := v.WriteAt(t.Context(), b, off); err != nil {
			t.Fatal(err)
		}
	}
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	put(random(3*chunkSize), 0)
	put(bytes.Repeat([]byte("compresses well "), 2048), 3*chunkSize)
	one := r.take(v, nil)
	want := map[PointRef]*memVolume{one.Ref: v.clone()}
	put([]byte("a few bytes"), 100_000)
	two := r.take(v, &one.Ref)
	want[two.Ref] = v.clone()
	put(random(2*chunkSize+100), 4*chunkSize)
	three := r.take(v, &two.Ref)
	want[three.Ref] = v.clone()
	return freeze(r, false, want)
}

// wideRepo has a node pack: as many leaves as fill one, no two of them equal,
// over one chunk.
func wideRepo(t *testing.T) *matrixRepo {
	r := newRig(t)
	v := newVolume(44 * leafSize)
	for i := range int64(44) {
		for _, slot := range []int64{i % fanout, (i + i/fanout) % fanout} {
			if err := v.WriteAt(t.Context(), []byte("the same"), i*leafSize+slot*chunkSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	return freeze(r, true, map[PointRef]*memVolume{r.take(v, nil).Ref: v})
}

// open opens the repository on a store.
func (m *matrixRepo) open(store blobstore.Store) (*Engine, func(), error) {
	rp, err := repo.Open(m.t.Context(), store, m.key, m.index)
	if err != nil {
		return nil, nil, err
	}
	return New(rp, Config{Workers: 1}), func() { rp.Close() }, nil
}

// blobs is the content of every blob.
func (m *matrixRepo) blobs() map[string][]byte {
	out := map[string][]byte{}
	err := m.store.List(m.t.Context(), "", func(i blobstore.Info) error {
		b := make([]byte, i.Size)
		_, err := m.store.ReadAt(m.t.Context(), i.Name, b, 0)
		out[i.Name] = b
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// kindOf is the first part of a blob's name.
func kindOf(name string) string {
	kind, _, _ := strings.Cut(name, "/")
	return kind
}

// part is a range of a blob's bytes with one meaning.
type part struct {
	kind     string
	from, to int
	sample   bool // bytes without a meaning of their own
}

// parts cuts a blob into its structures.
func (m *matrixRepo) parts(e *Engine, name string, b []byte) []part {
	p, header, _ := repo.ParseBlob(name)
	if header {
		return []part{{"header blob", 0, len(b), false}}
	}
	copies, err := e.r.InspectPack(m.t.Context(), p)
	if err != nil {
		m.t.Fatal(err)
	}
	c := copies[slices.IndexFunc(copies, func(c repo.PackCopy) bool { return c.Name == name })]
	if !c.Whole() {
		m.t.Fatalf("%s is not whole before it is damaged", name)
	}
	out := []part{{"pack header", 0, pack.HeaderSize, false}}
	for _, r := range c.Records {
		body := int(r.Off) + pack.RecordLen(len(r.IDs), 0) - 16
		end := int(r.Off + r.Len)
		out = append(out, part{"record header", int(r.Off), body, false}, part{"record body", body, end - 16, true}, part{"record tag", end - 16, end, false})
	}
	dir := int(c.Footer.DirOff)
	return append(out, part{"directory", dir, len(b) - pack.FooterSize, false}, part{"footer", len(b) - pack.FooterSize, len(b), false})
}

// cases lists all damage of one blob at a time. others has blobs of the same
// kinds, of this and of another repository.
func (m *matrixRepo) cases(e *Engine, others map[string][]byte) []damageCase {
	rng := rand.New(rand.NewPCG(33, 1))
	var out []damageCase
	add := func(kind, what, name string, f func([]byte) []byte) {
		out = append(out, damageCase{kind, name + " " + what, map[string]func([]byte) []byte{name: f}})
	}
	blobs := m.blobs()
	for _, name := range slices.Sorted(maps.Keys(blobs)) {
		b := blobs[name]
		cut := map[int]string{0: "cut at a boundary"}
		for _, p := range m.parts(e, name, b) {
			for _, at := range places(rng, p) {
				for range matrixMasks() {
					mask := byte(1) << rng.IntN(8)
					add("flipped, "+p.kind, fmt.Sprintf("byte %d ^ %#x", at, mask), name, func(b []byte) []byte {
						b[at] ^= mask
						return b
					})
				}
			}
			cut[p.from], cut[p.to-1] = "cut at a boundary", "cut at a boundary"
			for range 2 {
				cut[p.from+rng.IntN(p.to-p.from)] = "cut elsewhere"
			}
		}
		for _, n := range slices.Sorted(maps.Keys(cut)) {
			add(cut[n], fmt.Sprintf("cut to %d", n), name, func(b []byte) []byte { return b[:n] })
		}
		for _, n := range []int{1, pack.FooterSize, 5000} {
			add("lengthened", fmt.Sprintf("longer by %d zeros", n), name, func(b []byte) []byte { return append(b, make([]byte, n)...) })
			add("lengthened", fmt.Sprintf("longer by its own last %d", n), name, func(b []byte) []byte { return append(b, b[max(0, len(b)-n):]...) })
		}
		add("removed", "removed", name, nil)
		for _, other := range slices.Sorted(maps.Keys(others)) {
			if with := others[other]; kindOf(other) == kindOf(name) && !bytes.Equal(with, b) {
				add("swapped", "swapped with "+other, name, func([]byte) []byte { return bytes.Clone(with) })
			}
		}
	}
	return append(out, m.twice(out)...)
}

// places are the bytes of a part that are flipped: each, or a sample.
func places(rng *rand.Rand, p part) []int {
	var out []int
	if p.sample {
		for range min(8, p.to-p.from) {
			out = append(out, p.from+rng.IntN(p.to-p.from))
		}
		return append(out, p.from, p.to-1)
	}
	for at := p.from; at < p.to; at++ {
		out = append(out, at)
	}
	return out
}

// twice does to both copies of a blob what a sample of the cases does to one,
// and what two different cases do.
func (m *matrixRepo) twice(single []damageCase) []damageCase {
	rng := rand.New(rand.NewPCG(34, 1))
	byBlob := map[string][]damageCase{}
	for _, c := range single {
		for name := range c.blobs {
			byBlob[name] = append(byBlob[name], c)
		}
	}
	var out []damageCase
	for _, a := range slices.Sorted(maps.Keys(byBlob)) {
		base, isCopy := strings.CutSuffix(a, ".a")
		if !isCopy {
			continue
		}
		b := base + ".b"
		for i, c := range byBlob[a] {
			special := c.kind == "removed" || c.kind == "swapped" || c.kind == "cut at a boundary"
			if !special && i%11 != 0 {
				continue
			}
			out = append(out, damageCase{"both copies alike", c.what + ", both", map[string]func([]byte) []byte{a: c.blobs[a], b: c.blobs[a]}})
			d := byBlob[b][rng.IntN(len(byBlob[b]))]
			out = append(out, damageCase{"both copies differently", c.what + "; " + d.what, map[string]func([]byte) []byte{a: c.blobs[a], b: d.blobs[b]}})
		}
	}
	return out
}

// TestDamageMatrix runs through the cases of both repositories. Damage is
// always found by scrub, and named; every read gives the right bytes or says
// that it cannot; and one whole copy is always enough.
func TestDamageMatrix(t *testing.T) {
	narrow, wide := narrowRepo(t), wideRepo(t)
	others := narrow.blobs()
	maps.Copy(others, wide.blobs())
	counts := map[string]int{}
	for _, m := range []*matrixRepo{narrow, wide} {
		e, done, err := m.open(m.store)
		if err != nil {
			t.Fatal(err)
		}
		cases := m.cases(e, others)
		done()
		m.run(damageCase{kind: "none", what: "no damage"}, 0)
		for i, c := range cases {
			if i%matrixStride() != 0 {
				continue
			}
			counts[c.kind]++
			m.run(c, i)
			if t.Failed() && i%1000 == 999 {
				t.Fatal("the rest is left out")
			}
		}
	}
	total := 0
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%6d %s", counts[kind], kind)
		total += counts[kind]
	}
	t.Logf("%6d damages in all", total)
}

// run damages a copy of the repository and checks everything. nth decides
// which of the slow checks are made of a wide repository.
func (m *matrixRepo) run(c damageCase, nth int) {
	t := m.t
	store := m.store.Clone()
	for name, f := range c.blobs {
		var err error
		if f == nil {
			err = store.Delete(t.Context(), name)
		} else {
			err = store.Damage(name, f)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	e, done, err := m.open(store)
	if err != nil {
		// Without a header nothing is read, and nothing wrongly.
		_, one := c.blobs["header/0000000000000001.a"]
		_, two := c.blobs["header/0000000000000001.b"]
		if !one || !two || !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.Denied) {
			t.Errorf("%s: open: %v", c.what, err)
		}
		return
	}
	defer done()
	m.check(c, e, nth)
}

func (m *matrixRepo) check(c damageCase, e *Engine, nth int) {
	t := m.t
	failed := []string{}
	lost := map[string][]extent.Range{}
	for _, ref := range m.points {
		if !m.reads(c, e, ref, nth) {
			failed = append(failed, ref.Snapshot)
		}
		if !m.wide || m.everyWay(nth) {
			lost[ref.Snapshot] = m.salvages(c, e, ref)
		}
	}
	if len(failed) > 0 && len(c.blobs) == 1 && kindOf(slices.Collect(maps.Keys(c.blobs))[0]) != "data" {
		t.Errorf("%s: %v cannot be read, but a second copy is there", c.what, failed)
	}
	report, err := e.Scrub(t.Context(), m.points, m.packs, nil)
	if err != nil {
		t.Errorf("%s: scrub: %v", c.what, err)
		return
	}
	for name, f := range c.blobs {
		if kindOf(name) == "header" && f == nil {
			continue // written anew when the repository was opened
		}
		if !slices.ContainsFunc(report.Damage, func(d Damage) bool { return d.Blob == name }) {
			t.Errorf("%s: scrub does not name %s: %+v", c.what, name, report.Damage)
		}
	}
	if len(c.blobs) == 0 && len(report.Damage) > 0 {
		t.Errorf("%s: scrub finds %+v", c.what, report.Damage)
	}
	if !slices.Equal(report.DamagedPoint, failed) && len(report.DamagedPoint)+len(failed) > 0 {
		t.Errorf("%s: scrub calls %v damaged, %v cannot be read", c.what, report.DamagedPoint, failed)
	}
	for snapshot, bad := range lost {
		if told := scrubbed(report, snapshot); bad != nil && !slices.Equal(told, bad) {
			t.Errorf("%s: scrub tells that %v of %s are lost, a salvage %v", c.what, told, snapshot, bad)
		}
	}
}

// scrubbed is what a report tells of a point's bytes.
func scrubbed(r ScrubReport, snapshot string) []extent.Range {
	var out []extent.Range
	for _, d := range r.Damage {
		if d.Snapshot == snapshot {
			out = append(out, extent.Range{Off: d.Offset, Len: d.Length})
		}
	}
	return extent.Normalize(out)
}

// everyWay reports whether a case is read in every way, not only in those that
// are quick.
func (m *matrixRepo) everyWay(nth int) bool {
	switch {
	case m.wide:
		return nth%40 == 0
	case os.Getenv("CAIRN_LONG") == "1":
		return true
	}
	return nth%4 == 0
}

// reads reads a point range by range, as a stream, and into a volume that holds
// something else. All say the same: right, or damaged.
func (m *matrixRepo) reads(c damageCase, e *Engine, ref PointRef, nth int) (ok bool) {
	all := []func(*Engine, PointRef) error{m.readRanges}
	if m.everyWay(nth) {
		all = append(all, m.readStream, m.readRestore)
	}
	for i, read := range all {
		err := read(e, ref)
		if err != nil && !errs.Is(err, errs.Corrupt) {
			m.t.Errorf("%s: read %d of %s: %v", c.what, i, ref.Snapshot, err)
		}
		if i > 0 && ok != (err == nil) {
			m.t.Errorf("%s: read %d of %s differs from the first: %v", c.what, i, ref.Snapshot, err)
		}
		ok = err == nil
	}
	return ok
}

var errWrongBytes = errors.New("wrong bytes without an error")

// judge compares a stream with what it must be, but for ranges that are known
// only at its end: it notes where they differ.
type judge struct {
	want  []byte
	at    int
	wrong []extent.Range
}

func (j *judge) Write(p []byte) (int, error) {
	n := min(len(p), len(j.want)-j.at)
	for i := 0; i < n; i += chunkSize {
		end := min(i+chunkSize, n)
		if !bytes.Equal(p[i:end], j.want[j.at+i:j.at+end]) {
			j.wrong = append(j.wrong, extent.Range{Off: int64(j.at + i), Len: int64(end - i)})
		}
	}
	if j.at += len(p); n < len(p) {
		j.wrong = append(j.wrong, extent.Range{Off: int64(j.at), Len: 1})
	}
	return len(p), nil
}

// whole reports whether everything came and was right.
func (j *judge) whole() bool { return len(j.wrong) == 0 && j.at == len(j.want) }

func (m *matrixRepo) readStream(e *Engine, ref PointRef) error {
	im, err := e.OpenImage(m.t.Context(), ref)
	if err != nil {
		return err
	}
	defer im.Close()
	j := &judge{want: m.bytes[ref.Snapshot]}
	if err := im.WriteTo(m.t.Context(), j, FormatRaw); err != nil {
		return err
	}
	if !j.whole() {
		return errWrongBytes
	}
	return nil
}

func (m *matrixRepo) readRestore(e *Engine, ref PointRef) error {
	target := newVolume(int64(len(m.bytes[ref.Snapshot])))
	if err := target.WriteAt(m.t.Context(), bytes.Repeat([]byte{0xe7}, 90_000), target.size/3); err != nil {
		return err
	}
	if _, err := e.Restore(m.t.Context(), ref, target, nil); err != nil {
		return err
	}
	if !bytes.Equal(target.bytes(), m.bytes[ref.Snapshot]) {
		return errWrongBytes
	}
	return nil
}

// readRanges reads what the tree calls data; the rest must be zeros.
func (m *matrixRepo) readRanges(e *Engine, ref PointRef) error {
	ctx, want := m.t.Context(), m.want[ref.Snapshot]
	man, err := e.manifest(ctx, ref)
	if err != nil {
		return err
	}
	x, err := e.r.NewReader()
	if err != nil {
		return err
	}
	defer x.Close()
	p := &point{e: e, m: man, x: x}
	if p.Size() != want.size {
		return errWrongBytes
	}
	end := int64(0)
	for {
		r, err := p.Data(ctx, end)
		if errors.Is(err, io.EOF) {
			return m.wantZeros(ctx, want, end, want.size)
		}
		if err != nil {
			return err
		}
		m.buf = slices.Grow(m.buf[:0], int(r.Len))[:r.Len]
		if err := p.ReadAt(ctx, m.buf, r.Off); err != nil {
			return err
		}
		if err := m.wantZeros(ctx, want, end, r.Off); err != nil {
			return err
		}
		if !bytes.Equal(m.buf, m.bytes[ref.Snapshot][r.Off:r.End()]) {
			return errWrongBytes
		}
		end = r.End()
	}
}

// wantZeros fails if the volume holds anything between from and to.
func (m *matrixRepo) wantZeros(ctx context.Context, v *memVolume, from, to int64) error {
	r, err := v.Data(ctx, from)
	if errors.Is(err, io.EOF) || err == nil && r.Off >= to {
		return nil
	}
	// A page that begins before the range may have its bytes there.
	b := make([]byte, to-from)
	if err := v.ReadAt(ctx, b, from); err != nil {
		return err
	}
	if !repo.AllZero(b) {
		return errWrongBytes
	}
	return nil
}

// salvages checks that a salvage gives the right bytes but for what it tells,
// and returns that; nil if there is nothing to salvage.
func (m *matrixRepo) salvages(c damageCase, e *Engine, ref PointRef) []extent.Range {
	s, err := e.OpenSalvage(m.t.Context(), ref)
	if errs.Is(err, errs.Corrupt) {
		return nil
	}
	j := &judge{want: m.bytes[ref.Snapshot]}
	var left Salvaged
	if err == nil {
		left, err = s.WriteTo(m.t.Context(), j)
	}
	if err != nil || j.at != len(j.want) {
		m.t.Errorf("%s: salvage %s: %d bytes, %v", c.what, ref.Snapshot, j.at, err)
		return nil
	}
	bad := []extent.Range{}
	for _, b := range left.Bad {
		bad = append(bad, extent.Range{Off: b.Offset, Len: b.Length})
		if !b.Damaged {
			m.t.Errorf("%s: salvage %s: %+v is not called damaged", c.what, ref.Snapshot, b)
		}
	}
	if bad = extent.Normalize(bad); !covers(bad, j.wrong) {
		m.t.Errorf("%s: salvage %s: wrong bytes at %v, told are %v", c.what, ref.Snapshot, j.wrong, bad)
	}
	return bad
}

// covers reports whether each of parts lies within one of ranges.
func covers(ranges, parts []extent.Range) bool {
	for _, p := range parts {
		if !slices.ContainsFunc(ranges, func(r extent.Range) bool { return r.Off <= p.Off && p.End() <= r.End() }) {
			return false
		}
	}
	return true
}
