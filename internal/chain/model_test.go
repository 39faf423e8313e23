package chain_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/internal/chain"
)

// history is one volume's points under random creates, deletes and applies,
// changed only as the package says.
type history struct {
	points []chain.Point
	size   int64
	max    int
	clock  time.Time
	live   string // oracle: the point that the live data descends from, "" if unknown
}

func (h *history) head() *chain.Point {
	for i := range h.points {
		if h.points[i].IsHead {
			return &h.points[i]
		}
	}
	return nil
}

func (h *history) chainOf(root string) []chain.Point {
	return slices.DeleteFunc(slices.Clone(h.points), func(p chain.Point) bool { return p.RootID != root })
}

func (h *history) moveHead(id string) {
	for i := range h.points {
		h.points[i].IsHead = h.points[i].ID == id
	}
}

func (h *history) create(t *rapid.T) {
	in := chain.PlanInput{ResourceID: "vol-A", WantFull: rapid.Bool().Draw(t, "full"), Head: h.head(), VolumeSize: h.size, MaxPoints: h.max}
	if in.Head != nil {
		in.Chain = h.chainOf(in.Head.RootID)
	}
	plan := chain.PlanPoint(in)
	if in.WantFull && (!plan.Full || plan.Unasked) {
		t.Fatalf("a full was asked for: %+v", plan)
	}
	h.clock = h.clock.Add(time.Duration(rapid.IntRange(-1, 3).Draw(t, "clock")) * time.Hour)
	p := chain.Point{
		ID: fmt.Sprintf("ss-%03d", len(h.points)), ResourceID: "vol-A", Full: plan.Full, ParentID: plan.ParentID,
		RootID: plan.RootID, Status: chain.Available, VirtualSize: h.size, SizeBytes: 1, SnapshotTime: h.clock,
	}
	if p.Full {
		p.RootID = p.ID
	}
	h.points = append(h.points, p)
	h.moveHead(chain.HeadAfterCreate(p))
	h.live = p.ID
}

func (h *history) pick(t *rapid.T) (chain.Point, bool) {
	live := slices.DeleteFunc(slices.Clone(h.points), func(p chain.Point) bool { return !p.Live() })
	if len(live) == 0 {
		return chain.Point{}, false
	}
	return rapid.SampledFrom(live).Draw(t, "point"), true
}

func (h *history) apply(t *rapid.T) {
	if p, ok := h.pick(t); ok && p.VirtualSize <= h.size {
		h.moveHead(chain.HeadAfterApply(p))
		h.live = p.ID
	}
}

func (h *history) delete(t *rapid.T) {
	p, ok := h.pick(t)
	if !ok {
		return
	}
	before := h.head()
	plan := chain.PlanDelete(h.chainOf(p.RootID), []string{p.ID})
	if !slices.Contains(plan.IDs, p.ID) {
		t.Fatalf("the point itself is not taken: %+v", plan)
	}
	if p.Full && len(plan.IDs) != chain.TotalsOf(h.chainOf(p.RootID)).Count {
		t.Fatalf("a full takes its chain: %+v", plan)
	}
	for i := range h.points {
		if slices.Contains(plan.IDs, h.points[i].ID) {
			h.points[i].Status = chain.Deleted
		}
	}
	switch {
	case plan.HeadMoves:
		if before == nil || !slices.Contains(plan.IDs, before.ID) {
			t.Fatalf("the head moved without need: %+v", plan)
		}
		h.moveHead(plan.NewHead)
	case before != nil && slices.Contains(plan.IDs, before.ID):
		t.Fatalf("the head %s was deleted and stayed: %+v", before.ID, plan)
	}
}

func (h *history) grow(*rapid.T) { h.size += 1 << 20 }

// check holds after every step.
func (h *history) check(t *rapid.T) {
	byID := map[string]chain.Point{}
	heads := 0
	for _, p := range h.points {
		byID[p.ID] = p
		if p.IsHead {
			heads++
			if !p.Live() {
				t.Fatalf("the head %s is %s", p.ID, p.Status)
			}
		}
	}
	if heads > 1 {
		t.Fatalf("%d heads", heads)
	}
	for _, p := range h.points {
		if !p.Live() {
			continue
		}
		if p.Full != (p.ParentID == "") || p.Full != (p.RootID == p.ID) {
			t.Fatalf("full, parent and root disagree: %+v", p)
		}
		if parent := byID[p.ParentID]; !p.Full && (!parent.Live() || parent.RootID != p.RootID || parent.VirtualSize != p.VirtualSize) {
			t.Fatalf("%s hangs from %+v", p.ID, parent)
		}
		if n := chain.TotalsOf(h.chainOf(p.RootID)).Count; n > h.max {
			t.Fatalf("the chain of %s has %d points", p.RootID, n)
		}
	}
	// The head is the nearest living ancestor of what the live data is.
	want := h.live
	for want != "" && !byID[want].Live() {
		want = byID[want].ParentID
	}
	got := ""
	if p := h.head(); p != nil {
		got = p.ID
	}
	if got != want {
		t.Fatalf("the head is %q, the live data descends from %q", got, want)
	}
}

func TestHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &history{size: 1 << 30, max: rapid.IntRange(1, 6).Draw(t, "max"), clock: t0}
		t.Repeat(map[string]func(*rapid.T){
			"create": h.create, "again": h.create, "apply": h.apply, "delete": h.delete, "grow": h.grow, "": h.check,
		})
	})
}
