package engine

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/internal/extent"
	"cairn/internal/volume"
)

// liar is a volume whose tracking misses what lie changes.
type liar struct {
	*trackedVolume
	audit []extent.Range
	fail  error
	asked int // for audits
}

func newLiar(size, unit int64) *liar { return &liar{trackedVolume: newTracked(size, unit)} }

func (l *liar) lie(t testing.TB, off int64, b []byte) {
	t.Helper()
	if err := l.memVolume.WriteAt(t.Context(), b, off); err != nil {
		t.Fatal(err)
	}
}

func (l *liar) Audit(context.Context, volume.Checkpoint) ([]extent.Range, error) {
	l.asked++
	return l.audit, l.fail
}

// newLiarWithAFull is a volume of noise with its full, tracked since.
func newLiarWithAFull(t *testing.T, r *rig, size, unit int64) (*liar, Captured) {
	t.Helper()
	v := newLiar(size, unit)
	b := make([]byte, size)
	fill(rand.New(rand.NewPCG(uint64(size), 9)), b)
	v.lie(t, 0, b)
	full := r.take(v, nil)
	v.mark(full.Checkpoint)
	return v, full
}

// An audit that meets a lie makes the point a scan: it has the scan's root, it
// says so, and nothing of another attempt is stored.
func TestAuditFindsALie(t *testing.T) {
	r := newRig(t)
	v, full := newLiarWithAFull(t, r, 5<<20+3000, 65536)
	if err := v.WriteAt(t.Context(), []byte("told"), 100_000); err != nil {
		t.Fatal(err)
	}
	v.lie(t, 4<<20+5, []byte("not told"))
	v.audit = []extent.Range{{Off: 5 << 20, Len: 3000}, {Off: 4<<20 + 7000, Len: 1}, {Off: 2<<20 - 10, Len: 20}}
	v.read = 0
	inc := r.take(v, &full.Ref)
	want := Audit{Bytes: 3*chunkSize + 3000, Wrong: []extent.Range{{Off: 4 << 20, Len: chunkSize}}}
	if inc.Audit.Bytes != want.Bytes || !slices.Equal(inc.Audit.Wrong, want.Wrong) {
		t.Errorf("audit %+v, want %+v", inc.Audit, want)
	}
	if inc.CBT != CBTScan || inc.ReadBytes != v.size || v.read != inc.ReadBytes+inc.Audit.Bytes {
		t.Errorf("found by %s, %d bytes read, %d reported", inc.CBT, v.read, inc.ReadBytes)
	}
	m, err := r.e.manifest(t.Context(), inc.Ref)
	if err != nil || m.CBT != CBTScan || m.Reason != inc.Reason || !strings.HasPrefix(m.Reason, "because; the change tracking of vol-TEST0001 was wrong (of 199608 bytes") {
		t.Errorf("the manifest says %q and %q, the capture %q (%v)", m.CBT, m.Reason, inc.Reason, err)
	}
	scan := r.take(v.memVolume, &full.Ref)
	if r.root(scan.Ref) != r.root(inc.Ref) || scan.Checkpoint != inc.Checkpoint || scan.NewChunks != 0 || inc.NewChunks != 2 {
		t.Errorf("a scan stores %d chunks after %d and has the root %s, not %s", scan.NewChunks, inc.NewChunks, r.root(scan.Ref), r.root(inc.Ref))
	}
	if got, err := r.export(inc.Ref); err != nil || !bytes.Equal(got, v.bytes()) {
		t.Error("the point exports wrong", err)
	}
	r.scrub(full.Ref, inc.Ref, scan.Ref)
}

// Who captures again in the same session is not lied to again, though the
// driver may have other chunks compared then.
func TestALieIsRemembered(t *testing.T) {
	r := newRig(t)
	v, full := newLiarWithAFull(t, r, 4<<20, 65536)
	v.lie(t, 3<<20, []byte("not told"))
	v.audit = []extent.Range{{Off: 3 << 20, Len: 1}}
	reg := newRegistry()
	s, err := r.e.OpenSession(t.Context(), "job", 1, reg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	spec := r.spec(v, &full.Ref)
	first, err := s.Capture(t.Context(), spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Retake(t.Context(), nil, []Captured{first}); err != nil {
		t.Fatal(err)
	}
	v.audit = []extent.Range{{Off: 1 << 20, Len: 1}}
	again, err := s.Capture(t.Context(), spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.CBT != CBTScan || again.Checkpoint != first.Checkpoint || again.Reason != first.Reason || !slices.Equal(again.Audit.Wrong, first.Audit.Wrong) || v.asked != 1 {
		t.Errorf("first %+v, then %+v; %d audits", first, again, v.asked)
	}
	r.commit(s, reg)
	if got, err := r.export(again.Ref); err != nil || !bytes.Equal(got, v.bytes()) {
		t.Error("the point exports wrong", err)
	}
}

// A driver whose audit fails, or asks for what is not there, fails the point.
func TestAuditFails(t *testing.T) {
	r := newRig(t)
	v, full := newLiarWithAFull(t, r, 3<<20, 4096)
	broken := errors.New("broken")
	for _, c := range []struct {
		audit []extent.Range
		fail  error
	}{
		{fail: broken},
		{audit: []extent.Range{{Off: -1, Len: 10}}},
		{audit: []extent.Range{{Off: 3<<20 - 1, Len: 2}}},
		{audit: []extent.Range{{Off: 5, Len: -1}}},
		{audit: []extent.Range{{Off: 1 << 62, Len: 1 << 62}}},
	} {
		v.audit, v.fail = c.audit, c.fail
		s, err := r.e.OpenSession(t.Context(), "job", 1, newRegistry())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Capture(t.Context(), r.spec(v, &full.Ref), nil); err == nil || c.fail != nil && !errors.Is(err, c.fail) {
			t.Errorf("%+v: %v", c, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Whatever changes and is or is not told, and whatever is compared: chunks that
// were told to have changed are never called wrong, a lie in the others that are
// compared always is, and then the point equals the volume.
func TestAuditOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		size := rapid.SampledFrom([]int64{1, 65536, 65537, 2<<20 - 1, 4<<20 + 70000}).Draw(rt, "size")
		unit := rapid.SampledFrom([]int64{512, 4096, 65536, 1 << 20}).Draw(rt, "unit")
		v, full := newLiarWithAFull(t, r, size, unit)
		before := v.bytes()
		span := func(name string) extent.Range {
			off := rapid.Int64Range(0, size-1).Draw(rt, name)
			return extent.Range{Off: off, Len: rapid.Int64Range(1, min(size-off, 200_000)).Draw(rt, name+" length")}
		}
		for i := range rapid.IntRange(0, 5).Draw(rt, "changes") {
			at, b := span("change"), bytes.Repeat([]byte{byte(17 * (i + 1))}, 200_000)
			if rapid.Bool().Draw(rt, "a lie") {
				v.lie(t, at.Off, b[:at.Len])
			} else if err := v.WriteAt(t.Context(), b[:at.Len], at.Off); err != nil {
				rt.Fatal(err)
			}
		}
		for range rapid.IntRange(0, 4).Draw(rt, "audits") {
			v.audit = append(v.audit, span("audit"))
		}
		told := extent.Align(slices.Clone(v.marks[full.Checkpoint]), chunkSize, size)
		now := v.bytes()
		var compared int64
		var wrong []extent.Range
		for _, a := range extent.Align(v.audit, chunkSize, size) {
			for off := a.Off; off < a.End(); off += chunkSize {
				c := extent.Range{Off: off, Len: min(chunkSize, size-off)}
				if covers(told, []extent.Range{c}) {
					continue
				}
				compared += c.Len
				if !bytes.Equal(now[c.Off:c.End()], before[c.Off:c.End()]) {
					wrong = append(wrong, c)
				}
			}
		}
		wrong = extent.Normalize(wrong)
		inc := r.take(v, &full.Ref)
		if inc.Audit.Bytes != compared || !slices.Equal(inc.Audit.Wrong, wrong) {
			rt.Fatalf("audit %+v, want %d bytes and %v", inc.Audit, compared, wrong)
		}
		if (len(wrong) > 0) != (inc.CBT == CBTScan) || (inc.CBT == CBTTracked) != (inc.Reason == "because") {
			rt.Fatalf("%s, %q with %v wrong", inc.CBT, inc.Reason, wrong)
		}
		got, err := r.export(inc.Ref)
		if err != nil {
			rt.Fatal(err)
		}
		if len(wrong) > 0 && !bytes.Equal(got, now) {
			rt.Fatal("the lie was found, but the point is not what the volume holds")
		}
		r.scrub(full.Ref, inc.Ref)
	})
}
