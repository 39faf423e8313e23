package collectmodel

import "sync/atomic"

// world is what one search begins with, and its bounds.
type world struct {
	name  string
	start func() state
	off   ruleSet

	sessions       []sessionSpec // the backups that may be taken, in this order
	sessionTerms   uint8         // terms that one session may have; 0 is 1
	collections    uint8
	collectorTerms uint8 // how often a newer term may take the collector's job
	compactions    uint8
	merge          bool // two packs at once
	onePack        bool // packs are condemned one by one, not in one transaction
	inline         bool // points may keep chunks in their point pack
	cancels        bool
	deletes        uint8
	undeletes      uint8
	images         uint8
	readers        uint8
	rots           uint8  // damaged records
	bytesOnly      bool   // look for lost bytes, not for broken lines of points
	mayAbort       bool   // a collection may find something unreadable
	drainEvery     uint64 // of so many states, one is drained; 0: none

	seen uint32 // events; atomic
}

// sessionSpec says what one backup wants.
type sessionSpec struct {
	want      contents
	fullOnly  bool // takes no parent
	childOnly bool // takes one
}

func (w *world) has(r rule) bool { return w.off>>r&1 == 0 }

// event is something that must be seen to happen, so that a search that
// finds nothing wrong is not one in which nothing goes on.
type event uint8

const (
	dataDeleted event = iota
	pointDeleted
	relocationDeleted
	strayTaken
	packRescued
	commitRefused
	packCompacted
	compactionRefused
	packHealed
	markAborted
	numEvents
)

var eventNames = [numEvents]string{
	dataDeleted: "data pack deleted", pointDeleted: "point pack deleted", relocationDeleted: "relocation deleted",
	strayTaken: "stray taken", packRescued: "condemned pack rescued", commitRefused: "commit refused",
	packCompacted: "pack compacted", compactionRefused: "compaction refused", packHealed: "pack healed",
	markAborted: "collection aborted",
}

func (e event) String() string { return eventNames[e] }

func (w *world) see(e event) {
	if bit := uint32(1) << e; atomic.LoadUint32(&w.seen)&bit == 0 {
		atomic.OrUint32(&w.seen, bit)
	}
}

func (w *world) saw(e event) bool { return atomic.LoadUint32(&w.seen)>>e&1 == 1 }

func deletedEvent(s *state, id packID) event {
	switch s.packs[id].kind {
	case pointPack:
		return pointDeleted
	case relocation:
		return relocationDeleted
	}
	return dataDeleted
}
