// Package chain holds the rules of snapshot chains: pure functions over
// values, no I/O, no clock. The service loads points, asks here, and does
// what the answer says.
//
// A chain is a tree of points: one full (its root) and the increments below
// it. Storage knows nothing of chains; they are rules of the API (API.md §1).
package chain

import "time"

// ID names a snapshot (ss-…), a volume (vol-…) or an instance (ins-…).
type ID = string

// Self is what a full reports as its parent on the wire.
const Self = "self"

// Status is a snapshot's state (API.md §1).
type Status string

// The five states of a snapshot.
const (
	Pending   Status = "pending"   // being created
	Available Status = "available" // restorable
	Suspended Status = "suspended" // blocked by the operator
	Deleted   Status = "deleted"   // in the recycle bin
	Ceased    Status = "ceased"    // gone for good
)

// Point is what the rules need to know of one snapshot.
type Point struct {
	ID           ID
	ResourceID   ID
	ParentID     ID // "" on a full
	RootID       ID // own ID on a full
	Full         bool
	Status       Status
	Damaged      bool // scrub or a read found bytes of it missing or wrong
	IsHead       bool
	VirtualSize  int64 // bytes of the volume at that instant
	SizeBytes    int64 // bytes this point added when it was taken
	SnapshotTime time.Time
}

// Live reports whether the point counts as a member of its chain: being
// created, available or suspended.
func (p Point) Live() bool {
	return p.Status == Pending || p.Status == Available || p.Status == Suspended
}
