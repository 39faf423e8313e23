package nbdvolume

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"cairn/internal/extent"
	"cairn/internal/volume"
)

// Audits go round: within as many points as the data needs, every byte of it
// that is not marked is looked at, and nothing else ever is.
func TestAuditGoesRound(t *testing.T) {
	const size = 64 * mib
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	disk := newDisk(size)
	for off := int64(0); off < size; off += 64 << 10 * (1 + r.Int64N(40)) {
		disk.put(letter('a', 1+r.IntN(mib)), min(off+r.Int64N(64<<10), size-mib))
	}
	disk.bitmap("cairn-a")
	for range 20 {
		disk.dirty(r.Int64N(size), 1+r.Int64N(100<<10))
	}
	c := newScene(t, disk, nil)
	c.spec = register(t, c.d, "vol-1", c.s.uri("x")+trusted)
	c.point("p0")

	unmarked := c.unmarked("p0")
	runs := int((extent.Total(unmarked)+auditLess-1)/auditLess) + 1 // the last one may end in the midst of it
	if runs > auditRuns {
		t.Fatalf("%d runs for %d bytes", runs, extent.Total(unmarked))
	}
	for round := range 2 { // and round again
		var seen []extent.Range
		for i := range runs {
			base := volume.Checkpoint(fmt.Sprintf("p%d", round*runs+i))
			in := freeze(t, c.d, c.spec)
			if rs, err := in.Source(0).Audit(t.Context(), "other"); err != nil || rs != nil {
				t.Fatalf("Audit against another point: %v, %v", rs, err)
			}
			rs, err := in.Source(0).Audit(t.Context(), base)
			ok(t, err)
			again, err := in.Source(0).Audit(t.Context(), base)
			ok(t, err)
			if !slices.Equal(rs, again) {
				t.Fatalf("one instant has two audits: %v, %v", rs, again)
			}
			if n := extent.Total(rs); n == 0 || n > auditLess {
				t.Fatalf("%d bytes are to be looked at", n)
			}
			if got := without(rs, unmarked); len(got) > 0 {
				t.Fatalf("%v are marked or zeros", got)
			}
			seen = append(seen, rs...)
			ok(t, in.Close())
			// Who captures again meets the same: nothing moves without Settle.
			in = freeze(t, c.d, c.spec)
			again, err = in.Source(0).Audit(t.Context(), base)
			ok(t, err)
			if !slices.Equal(rs, again) {
				t.Fatalf("another instant has another audit: %v, %v", rs, again)
			}
			ok(t, in.Settle(t.Context(), []volume.Checkpoint{volume.Checkpoint(fmt.Sprintf("p%d", round*runs+i+1))}, committed))
			ok(t, in.Close())
			if i == 2 {
				c.d = newDriver(t, c.d.cfg.Dir)
			}
		}
		if left := without(unmarked, extent.Normalize(seen)); len(left) > 0 {
			t.Fatalf("never looked at in %d points: %v", runs, left)
		}
	}
}

// unmarked is the data that a bitmap calls unchanged since a checkpoint.
func (c *scene) unmarked(base volume.Checkpoint) []extent.Range {
	c.t.Helper()
	in := freeze(c.t, c.d, c.spec)
	defer func() { ok(c.t, in.Close()) }()
	src := in.Source(0).(*source)
	marks, err := changedOf(c.t, src, base)
	ok(c.t, err)
	var data []extent.Range
	for i := 0; i < len(src.before.data.edges); i += 2 {
		data = append(data, extent.Range{Off: src.before.data.edges[i], Len: src.before.data.edges[i+1] - src.before.data.edges[i]})
	}
	return without(data, marks)
}

// without is what of normal ranges is in none of others, byte by byte of 512.
func without(ranges, others []extent.Range) []extent.Range {
	var out []extent.Range
	for _, r := range ranges {
		for off := r.Off; off < r.End(); off += 512 {
			n := min(512, r.End()-off)
			if !slices.ContainsFunc(others, func(o extent.Range) bool { return o.Off <= off && off+n <= o.End() }) {
				out = append(out, extent.Range{Off: off, Len: n})
			}
		}
	}
	return extent.Normalize(out)
}

// Up to 64 GiB of data are seen within 256 points; of more, one point never
// looks at more than 256 MiB.
func TestAuditBytes(t *testing.T) {
	for _, data := range []int64{0, 1, mib, 4 * mib * auditRuns, 4*mib*auditRuns + 1, 10<<30 + 12345, 64 << 30} {
		n := auditBytes(data)
		if n*auditRuns < data || n < auditLess || n > max(auditLess, data/auditRuns+1) {
			t.Errorf("%d bytes of %d", n, data)
		}
	}
	if n := auditBytes(16 << 40); n != auditMost {
		t.Errorf("%d bytes of 16 TiB", n)
	}
}

// An audit finds what an untrue bitmap leaves out.
func TestAuditFindsAnUntruth(t *testing.T) {
	c := newTracked(t, "cairn-a")
	c.point("p1")
	c.write(5)
	c.disk.bitmap("cairn-a") // no witness: nothing was marked at the point
	in := freeze(t, c.d, c.spec)
	src := in.Source(0)
	if got, err := changedOf(t, src, "p1"); err != nil || len(got) > 0 {
		t.Fatalf("changed %v, %v", got, err)
	}
	rs, err := src.Audit(t.Context(), "p1")
	ok(t, err)
	if len(rs) != 1 || rs[0] != (extent.Range{Len: 4 * mib}) {
		t.Errorf("audit of %v, want all data", rs)
	}
}
