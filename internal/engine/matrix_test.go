package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/repo"
)

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

// reads reads a point range by range, as a stream, on demand, and into a volume
// that holds something else. All say the same: right, or damaged.
func (m *matrixRepo) reads(c damageCase, e *Engine, ref PointRef, nth int) (ok bool) {
	all := []func(*Engine, PointRef) error{m.readRanges}
	if m.everyWay(nth) {
		all = append(all, m.readStream, m.readTree, m.readRestore)
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

func (m *matrixRepo) readTree(e *Engine, ref PointRef) error {
	tr, err := e.OpenTree(m.t.Context(), ref)
	if err != nil {
		return err
	}
	defer tr.Close()
	want := m.bytes[ref.Snapshot]
	buf := make([]byte, 96<<10) // cuts every other chunk
	for off := 0; off < len(want); off += len(buf) {
		buf = buf[:min(len(buf), len(want)-off)]
		if err := tr.ReadAt(m.t.Context(), buf, int64(off)); err != nil {
			return err
		}
		if !bytes.Equal(buf, want[off:off+len(buf)]) {
			return errWrongBytes
		}
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
