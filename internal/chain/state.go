package chain

import "time"

// Totals are what a full says of its whole chain.
type Totals struct {
	Bytes  int64     // summed over the chain's committed live points
	Count  int       // how many these are
	Latest time.Time // snapshot_time of the youngest of them
}

// TotalsOf sums up the points of one chain.
func TotalsOf(points []Point) Totals {
	var t Totals
	for _, p := range points {
		t.Add(p)
	}
	return t
}

// Add counts one more point of the chain. A pending one counts only once it is
// committed: until then it has neither size nor instant to speak of.
func (t *Totals) Add(p Point) {
	if !p.Live() || p.Status == Pending {
		return
	}
	t.Bytes += p.SizeBytes
	t.Count++
	if p.SnapshotTime.After(t.Latest) {
		t.Latest = p.SnapshotTime
	}
}

// HeadChain tells whether p is the full of the chain that the next
// incremental joins. head is the resource's head, nil if it has none.
func HeadChain(p Point, head *Point) bool {
	return p.Full && head != nil && head.RootID == p.ID
}

// HeadAfterCreate is where the head is after a point was committed: there,
// because the live data is what the point holds.
func HeadAfterCreate(created Point) ID { return created.ID }

// HeadAfterApply is where the head is after a point was applied: there, as
// the live data descends from it now. Younger points stay in the tree.
func HeadAfterApply(applied Point) ID { return applied.ID }

// MB is the wire's unit: bytes in 2^20, rounded up.
func MB(bytes int64) int {
	const mb = 1 << 20
	if bytes <= 0 {
		return 0
	}
	return int((bytes-1)/mb + 1)
}
