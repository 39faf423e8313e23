package chain

import (
	"cmp"
	"slices"
	"time"
)

// DeletePlan is what a delete takes out of one chain.
type DeletePlan struct {
	// IDs are the points asked for and all their live descendants, newest
	// first, so that a child always comes before its parent.
	IDs []ID
	// NewHead is where the head is afterwards; "" when none is left.
	NewHead ID
	// HeadMoves says that the head is among IDs, so that NewHead is new.
	HeadMoves bool
}

// PlanDelete decides what deleting ids takes out of the chain whose points
// are given: every descendant goes too, so a full takes its chain. Points that
// are deleted or ceased already are not taken again, and ids of other chains
// are ignored.
func PlanDelete(points []Point, ids []ID) DeletePlan {
	children := map[ID][]Point{}
	byID := map[ID]Point{}
	for _, p := range points {
		byID[p.ID] = p
		if p.ParentID != "" {
			children[p.ParentID] = append(children[p.ParentID], p)
		}
	}
	doomed := map[ID]bool{}
	var order []Point
	var take func(p Point)
	take = func(p Point) {
		if doomed[p.ID] {
			return
		}
		doomed[p.ID] = true
		if p.Live() {
			order = append(order, p)
		}
		for _, c := range children[p.ID] {
			take(c)
		}
	}
	for _, id := range ids {
		if p, ok := byID[id]; ok {
			take(p)
		}
	}
	slices.SortFunc(order, newestFirst(byID))
	plan := DeletePlan{}
	for _, p := range order {
		plan.IDs = append(plan.IDs, p.ID)
	}
	plan.NewHead, plan.HeadMoves = HeadAfterDelete(points, plan.IDs)
	return plan
}

// HeadAfterDelete tells where the head of these points goes when the doomed
// ones are gone: to the nearest surviving ancestor. moves is false when the
// head is not among the doomed, or not among the points at all; then head is
// where it was.
func HeadAfterDelete(points []Point, doomed []ID) (head ID, moves bool) {
	byID := map[ID]Point{}
	for _, p := range points {
		byID[p.ID] = p
		if p.IsHead {
			head = p.ID
		}
	}
	if head == "" || !slices.Contains(doomed, head) {
		return head, false
	}
	// The walk is bounded by the number of points, so that rows that form a
	// cycle cannot hang it.
	next := byID[head].ParentID
	for range points {
		p, ok := byID[next]
		if !ok {
			break
		}
		if p.Live() && !slices.Contains(doomed, p.ID) {
			return p.ID, true
		}
		next = p.ParentID
	}
	return "", true
}

// newestFirst orders by instant, then depth, then id. A point counts as at
// least as young as its parent, so that a clock that was set back never puts a
// parent before its child.
func newestFirst(byID map[ID]Point) func(a, b Point) int {
	age := func(p Point) (instant time.Time, depth int) {
		instant = p.SnapshotTime
		for p.ParentID != "" && depth < len(byID) {
			p = byID[p.ParentID]
			if p.SnapshotTime.After(instant) {
				instant = p.SnapshotTime
			}
			depth++
		}
		return instant, depth
	}
	return func(a, b Point) int {
		aTime, aDepth := age(a)
		bTime, bDepth := age(b)
		return cmp.Or(bTime.Compare(aTime), cmp.Compare(bDepth, aDepth), cmp.Compare(a.ID, b.ID))
	}
}
