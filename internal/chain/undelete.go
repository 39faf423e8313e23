package chain

import (
	"slices"

	"cairn/internal/errs"
)

// PlanUndelete decides what bringing ids back out of the recycle bin takes:
// they and their deleted ancestors, never descendants, ancestors first. points
// are all of one chain that have not ceased. errs.Conflict: an ancestor has
// ceased, or the chain would have more than maxPoints members (0:
// DefaultMaxPoints).
func PlanUndelete(points []Point, ids []ID, maxPoints int) ([]ID, error) {
	if maxPoints <= 0 {
		maxPoints = DefaultMaxPoints
	}
	byID := map[ID]Point{}
	for _, p := range points {
		byID[p.ID] = p
	}
	var back []ID
	for _, id := range ids {
		var line []ID
		// Bounded by the number of points, so that rows that form a cycle
		// cannot hang it.
		for next := id; next != "" && len(line) <= len(points); {
			p, ok := byID[next]
			if !ok {
				return nil, errs.New(errs.Conflict, "snapshot %s needs %s, which has ceased; it cannot be brought back", id, next)
			}
			if p.Status == Deleted && !slices.Contains(back, p.ID) {
				line = append(line, p.ID)
			}
			next = p.ParentID
		}
		slices.Reverse(line)
		back = append(back, line...)
	}
	if n := countLive(points) + len(back); n > maxPoints && len(back) > 0 {
		return nil, errs.New(errs.Conflict, "the chain of %s would have %d snapshots, above its limit of %d; delete others of it first", byID[back[0]].RootID, n, maxPoints)
	}
	return back, nil
}
