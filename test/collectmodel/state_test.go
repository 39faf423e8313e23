package collectmodel

import "math/bits"

// contents is a set of chunk contents. There are two; a pack has at most one
// record of each, so that (pack, content) names a record as (pack, slot) does.
type contents uint8

const (
	contentX contents = 1 << iota
	contentY

	numContents = 2
	bothXY      = contentX | contentY
)

// packID names a pack in state.packs; 0 is none. A slot is used again only
// when nothing knows of its pack any more (see tidy), so that in the model as
// in the product an id never means two packs.
type packID uint8

// packSet is a set of packs.
type packSet uint16

func (ps packSet) has(p packID) bool      { return ps>>p&1 == 1 }
func (ps packSet) with(p packID) packSet  { return ps | 1<<p }
func (ps packSet) minus(p packID) packSet { return ps &^ (1 << p) }

// inline stands in a session's hints for "in my point pack, which has no id
// yet".
const inline packID = 255

const (
	maxPacks    = 13 // never the bound of a search: running out of slots is a failure
	maxPoints   = 4
	maxSessions = 2
	maxRefusals = 2 // of commits; only reached with hitLiveRow off, which could go on for ever
)

type packKind uint8

const (
	noPack     packKind = iota
	dataPack            // records of contents
	pointPack           // a manifest with its tree, and perhaps records of its own
	relocation          // old place → new place
)

type rowState uint8

const (
	noRow rowState = iota
	live
	condemned // nothing needs it; a commit can still rescue it
	deleting  // final: the blob may be gone at any moment
)

// owner is the session that a pack was registered for, as far as it matters.
type owner uint8

const (
	ofCommitted owner = iota // its session committed
	ofSession1               // a backup session that is ACTIVE: ofSession1+i
	ofSession2
	ofCollector // the compaction under way
	ofAborted   // its session aborted
)

// pack is a blob, its row in the database, or both.
type pack struct {
	kind packKind

	row     rowState
	owner   owner
	born    uint8 // epoch of the registration
	stamped uint8 // epoch of the last commit that relied on it
	doomed  uint8 // collection that condemned it

	blob    bool
	flying  bool  // a Put of it was begun and may still land, whoever waits
	dropped uint8 // only with recordDrop off: the term that began a Delete, which may still arrive

	holds  contents // records
	rotten contents // of these, the damaged ones
	mourn  contents // damaged and not healed yet: nobody can be asked for them

	point pointID             // of a point pack
	hints [numContents]packID // of a point pack: where each content of the tree lies

	from  [2]packID   // of a relocation: places in these packs …
	moved [2]contents // … of these contents …
	to    packID      // … are now in this pack
}

func (p *pack) has(c int) bool  { return p.holds>>c&1 == 1 }
func (p *pack) good(c int) bool { return p.blob && (p.holds&^p.rotten)>>c&1 == 1 }

// moves tells whether p, a relocation, has an entry for a record.
func (p *pack) moves(id packID, c int) bool {
	return p.kind == relocation &&
		(p.from[0] == id && p.moved[0]>>c&1 == 1 || p.from[1] == id && p.moved[1]>>c&1 == 1)
}

// pointID names a point in state.points; 0 is none.
type pointID uint8

type pointState uint8

const (
	noPoint pointState = iota
	pending
	available
	deleted // in the recycle bin
	ceased
	unknown // an older database was put back: there is a manifest, and no row
)

// point is a point's row, with what its tree must hold as the oracle.
type point struct {
	state    pointState
	parent   pointID
	want     contents
	manifest packID // the point pack that the row names; set by the commit
}

// session is a backup session that is ACTIVE, with the memory of the process
// of its newest term. point is 0 while there is none.
type session struct {
	point  pointID
	parent pointID // pinned
	term   uint8

	hints    [numContents]packID
	hits     packSet // packs that the dedup index gave
	manifest packID  // registered
	gone     bool    // only with abortFirst off: cancelled without a read-back
}

type phase uint8

const (
	idle phase = iota
	begun
	listed
	marked
	raising // only with epochFirst off
)

type compactStep uint8

const (
	noCompaction compactStep = iota
	copying                  // the new pack is registered
	publishing               // the relocation is registered
	publishLate              // only with relocateFirst off: condemned, but the relocation is not there
)

// collector is the memory of one process that runs the collector's job.
type collector struct {
	phase  phase
	gen    uint8   // G, the epoch that this collection began
	listed packSet // blobs that were listed, until the rows are read
	strays packSet
	lived  packSet // only with oneRead off: packs that were LIVE when blobs were listed

	// marks says what roots need of each pack: contents, and usedMark for
	// a pack that is needed as it is (a manifest, a relocation).
	marks [maxPacks + 1]uint8

	step  compactStep
	heal  bool
	from  [2]packID
	moved [2]contents
	into  packID
	reloc packID
}

const usedMark = 1 << numContents

func (k *collector) needs(p packID) contents { return contents(k.marks[p]) & bothXY }

// reader is a restore that is under way. point is 0 while there is none.
type reader struct {
	point  pointID
	left   contents // not read yet
	failed bool     // what it knows of did not have the chunk
	tries  packSet  // places that the relocations gave
}

// spent counts what a world limits.
type spent struct {
	sessions, deletes, undeletes, images, readers, rots, compactions, collectorTerms, refusals uint8
}

// state is everything: database, blob store, and the memory of all
// processes. It has no pointers, so that == and hashing take it whole.
type state struct {
	epoch    uint8
	packs    [maxPacks + 1]pack
	points   [maxPoints + 1]point
	sessions [maxSessions]session
	// collectors[0] has the job's newest term. collectors[1] is a process
	// that was fenced and goes on; see collectorTerm.
	collectors [2]collector
	// fenced is only used with sessionTerm off: a process whose session has
	// a newer term, about to commit.
	fenced session
	reader reader
	image  pointID // the image's pin
	spent  spent
}

// newPack takes a free slot.
func (s *state) newPack(p pack) packID {
	for id := packID(1); id <= maxPacks; id++ {
		if s.packs[id].kind == noPack {
			s.packs[id] = p
			return id
		}
	}
	panic("the model has too few pack slots: raise maxPacks")
}

func (s *state) newPoint(p point) pointID {
	for id := pointID(1); id <= maxPoints; id++ {
		if s.points[id].state == noPoint {
			s.points[id] = p
			return id
		}
	}
	panic("the model has too few point slots: raise maxPoints")
}

// tree is where the chunks of a committed point lie, by its manifest.
func (s *state) tree(p pointID) [numContents]packID { return s.packs[s.points[p].manifest].hints }

func (s *state) anyActive() bool {
	for i := range s.sessions {
		if s.sessions[i].point != 0 {
			return true
		}
	}
	return false
}

// pinnedAsParent tells whether an open session was taken against p.
func (s *state) pinnedAsParent(p pointID) bool {
	for i := range s.sessions {
		if s.sessions[i].point != 0 && s.sessions[i].parent == p {
			return true
		}
	}
	return false
}

// each calls fn for the members of a set of contents.
func (cs contents) each(fn func(c int)) {
	for rest := cs; rest != 0; rest &= rest - 1 {
		fn(bits.TrailingZeros8(uint8(rest)))
	}
}
