package collectmodel

// This file is the mark: which blobs the roots need, as seen from one list of
// blobs and the rows that were read after it.

// marking is one run of the mark.
type marking struct {
	w      *world
	s      *state // rows and blobs now
	listed packSet
	lived  packSet // packs whose rows were LIVE
	// youngest makes resolve try relocations from the other end: which of
	// several it takes is nobody's promise, so both are searched.
	youngest bool

	marks    [maxPacks + 1]uint8
	hinted   packSet // packs that roots name, wherever that leads
	unread   bool    // something could not be read
	resolved bool    // a choice between relocations was made
}

// mark walks all roots.
func (w *world) mark(s *state, listed packSet, youngest bool) *marking {
	m := &marking{w: w, s: s, listed: listed, lived: s.livePacks(), youngest: youngest}
	if !w.has(oneRead) {
		m.lived = s.collectors[0].lived
	}
	for id := packID(1); id <= maxPacks; id++ {
		if m.isRoot(id) {
			m.walk(id)
		}
	}
	return m
}

func (s *state) livePacks() (ps packSet) {
	for id := packID(1); id <= maxPacks; id++ {
		if s.packs[id].row == live {
			ps = ps.with(id)
		}
	}
	return ps
}

// isRoot tells whether a manifest is walked.
func (m *marking) isRoot(id packID) bool {
	p := &m.s.packs[id]
	if p.kind != pointPack {
		return false
	}
	row := &m.s.points[p.point]
	switch {
	case row.state == unknown:
		return m.listed.has(id) && m.w.has(unknownIsRoot)
	case row.manifest == id && m.isNeeded(p.point):
		return m.listed.has(id) || m.w.has(rowsAreRoots)
	case !m.w.has(rowNamesManifest):
		// The rule of the first draft: what is listed is a root unless its
		// row says that its point ceased.
		return m.listed.has(id) && row.state != ceased
	}
	return false
}

// isNeeded tells whether rows keep a point: it is available, in the bin, or
// pinned. (Points that are read and parents are available, as their pins
// keep them from being deleted.)
func (m *marking) isNeeded(p pointID) bool {
	switch m.s.points[p].state {
	case available:
		return true
	case deleted:
		return m.w.has(binIsRoot) || m.pinned(p)
	case ceased:
		return m.pinned(p)
	}
	return false
}

func (m *marking) pinned(p pointID) bool {
	return m.s.image == p && m.w.has(pinImage) ||
		m.s.reader.point == p && m.w.has(pinReader) ||
		m.s.pinnedAsParent(p) && m.w.has(pinParent)
}

// walk marks what one manifest needs.
func (m *marking) walk(id packID) {
	p := &m.s.packs[id]
	if !p.blob {
		m.unread = true
		return
	}
	m.marks[id] |= usedMark
	for c, hint := range p.hints {
		if hint == 0 {
			continue
		}
		m.hinted = m.hinted.with(hint)
		if !m.resolve(hint, c, maxPacks) {
			m.unread = true
		}
	}
}

// resolve finds the record that a hint means, and marks it and every
// relocation on the way there.
func (m *marking) resolve(id packID, c, depth int) bool {
	if m.w.has(liveRowFirst) && m.itself(id, c) {
		return true
	}
	for i := packID(1); i <= maxPacks && depth > 0; i++ {
		r := i
		if m.youngest {
			r = maxPacks + 1 - i
		}
		p := &m.s.packs[r]
		if !p.moves(id, c) || !m.listed.has(r) || !m.lived.has(r) || p.owner != ofCommitted && m.w.has(relocationCommitted) {
			continue
		}
		m.resolved = true
		if m.resolve(p.to, c, depth-1) {
			if m.w.has(keepRelocations) {
				m.marks[r] |= usedMark
			}
			return true
		}
		if !m.w.has(tryAll) {
			break
		}
	}
	return !m.w.has(liveRowFirst) && m.itself(id, c)
}

// itself marks a record if its pack's row is LIVE.
func (m *marking) itself(id packID, c int) bool {
	if !m.lived.has(id) {
		return false
	}
	m.marks[id] |= 1 << c
	return true
}

// strays are listed blobs that had no row when the rows were read afterwards.
// A Put begins after its row was made, so the row is gone for good, and ids
// are never used again: nobody can come to need them.
func (m *marking) strays() (strays packSet) {
	for id := packID(1); id <= maxPacks; id++ {
		p := &m.s.packs[id]
		if !m.listed.has(id) || p.row != noRow || m.hinted.has(id) {
			continue
		}
		if p.kind != dataPack && !m.w.has(strayKinds) {
			continue
		}
		if p.kind == pointPack && (m.marks[id] != 0 || m.s.points[p.point].state == unknown) {
			continue
		}
		strays = strays.with(id)
	}
	return strays
}
