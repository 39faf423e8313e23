package chain

import "fmt"

// DefaultMaxPoints is how many points a chain may have (API.md §1).
const DefaultMaxPoints = 30

// PlanInput is what decides whether a new point is full or incremental.
type PlanInput struct {
	ResourceID ID
	WantFull   bool    // the caller asked for a full; false: the rules decide
	Head       *Point  // nil: the resource has none
	Chain      []Point // the points of the head's chain, the head among them
	VolumeSize int64   // bytes of the volume now
	MaxPoints  int     // 0: DefaultMaxPoints
}

// PlanOutput is the decision.
type PlanOutput struct {
	Full     bool
	ParentID ID // "" on a full
	RootID   ID // "" on a full: it becomes its own root
	// Reason says in one sentence why, for people.
	Reason string
	// Unasked says that the rules made a full although the caller left the
	// choice to them: the job must say so.
	Unasked bool
}

// PlanPoint decides what kind of point comes next.
func PlanPoint(in PlanInput) PlanOutput {
	if in.WantFull {
		return PlanOutput{Full: true, Reason: "a full snapshot was asked for"}
	}
	if why := whyFull(in); why != "" {
		return PlanOutput{Full: true, Reason: why, Unasked: true}
	}
	return PlanOutput{
		ParentID: in.Head.ID,
		RootID:   in.Head.RootID,
		Reason:   fmt.Sprintf("incremental on %s, the point that %s descends from", in.Head.ID, in.ResourceID),
	}
}

// FullBecause is the decision for a full for a reason that shows only while
// the point is taken, like a parent that cannot be read.
func FullBecause(reason string) PlanOutput {
	return PlanOutput{Full: true, Reason: reason, Unasked: true}
}

// whyFull is the reason why the head cannot serve as parent, or "".
func whyFull(in PlanInput) string {
	head, limit := in.Head, in.MaxPoints
	if limit <= 0 {
		limit = DefaultMaxPoints
	}
	switch {
	case head == nil:
		return fmt.Sprintf("%s has no snapshot to build on", in.ResourceID)
	case head.Status != Available:
		return fmt.Sprintf("its parent %s is %s", head.ID, head.Status)
	case head.Damaged:
		return fmt.Sprintf("its parent %s is damaged", head.ID)
	case head.VirtualSize != in.VolumeSize:
		return fmt.Sprintf("the size of %s changed from %d to %d bytes since its parent %s was taken",
			in.ResourceID, head.VirtualSize, in.VolumeSize, head.ID)
	}
	if n := countLive(in.Chain); n >= limit {
		return fmt.Sprintf("the chain of %s has reached its limit of %d snapshots", head.RootID, limit)
	}
	return ""
}

// countLive counts points that are members now. A point in the recycle bin
// is none: bringing it back is what has to respect the limit then.
func countLive(points []Point) int {
	n := 0
	for _, p := range points {
		if p.Live() {
			n++
		}
	}
	return n
}
