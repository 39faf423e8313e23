package collectmodel

// This file is the backup session: open, find or store chunks, manifest,
// commit; and what ends it otherwise: a newer term, or a cancel.

func (w *world) sessionSteps(s *state, emit emitFunc) {
	for i := range s.sessions {
		if s.sessions[i].point == 0 {
			w.openSession(s, i, emit)
			continue
		}
		w.findChunks(s, i, emit)
		w.storeChunks(s, i, emit)
		w.putManifest(s, i, emit)
		w.commitSession(s, i, emit)
		w.newTerm(s, i, emit)
		w.dropLeftovers(s, i, emit)
		w.cancelSession(s, i, emit)
	}
	w.commitFenced(s, emit)
	w.cleanAborted(s, emit)
	w.land(s, emit)
}

// openSession: one transaction makes the point pending, the session ACTIVE
// and pins the parent, which must be available.
func (w *world) openSession(s *state, i int, emit emitFunc) {
	if int(s.spent.sessions) == len(w.sessions) {
		return
	}
	for j := range i {
		if s.sessions[j].point == 0 {
			return // the lowest free slot, so that slots do not multiply states
		}
	}
	spec := w.sessions[s.spent.sessions]
	for parent := pointID(0); parent <= maxPoints; parent++ {
		if parent == 0 && spec.childOnly || parent != 0 && (spec.fullOnly || s.points[parent].state != available) {
			continue
		}
		n := *s
		n.spent.sessions++
		p := n.newPoint(point{state: pending, parent: parent, want: spec.want})
		n.sessions[i] = session{point: p, parent: parent, term: 1}
		text := "session %d opens for point %d, a full"
		if parent != 0 {
			text = "session %d opens for point %d, against point %d"
		}
		emit(say(text, i+1, int(p), int(parent)), &n)
	}
}

// findChunks: for its next chunk the session takes the parent's hint, or a
// pack that its own job made durable in an earlier term, or a hit of the dedup
// index. The index is not in the model: it may name every pack that committed
// once, however stale it is.
func (w *world) findChunks(s *state, i int, emit emitFunc) {
	se := &s.sessions[i]
	c := s.nextChunk(se)
	if c < 0 {
		return
	}
	if se.parent != 0 {
		if hint := s.tree(se.parent)[c]; hint != 0 {
			n := *s
			n.sessions[i].hints[c] = hint
			emit(say("session %d inherits from its parent: %c is in pack %d", i+1, letter(c), int(hint)), &n)
		}
	}
	for id := packID(1); id <= maxPacks; id++ {
		p := &s.packs[id]
		if p.kind != dataPack || !p.has(c) {
			continue
		}
		if p.owner == ofSession1+owner(i) && p.row == live && p.blob && (p.dropped == 0 || p.dropped != se.term) {
			n := *s
			n.sessions[i].hints[c] = id
			emit(say("session %d finds %c in its own pack %d", i+1, letter(c), int(id)), &n)
		}
		if w.isHit(p) {
			n := *s
			n.sessions[i].hints[c] = id
			n.sessions[i].hits = n.sessions[i].hits.with(id)
			emit(say("session %d: the index finds %c in pack %d", i+1, letter(c), int(id)), &n)
		}
	}
}

// letter is what traces call a content.
func letter(c int) int { return 'X' + c }

func (w *world) isHit(p *pack) bool {
	if w.has(hitLiveRow) && p.row != live {
		return false
	}
	return p.owner == ofCommitted || !w.has(hitCommitted) && p.owner >= ofCollector
}

// nextChunk is the first content that has no place yet, or -1.
func (s *state) nextChunk(se *session) int {
	for c := range numContents {
		if s.points[se.point].want>>c&1 == 1 && se.hints[c] == 0 && se.manifest == 0 {
			return c
		}
	}
	return -1
}

var storeText = [...]string{
	contentX: "session %d registers X in pack %d", contentY: "session %d registers Y in pack %d",
	bothXY: "session %d registers X and Y in pack %d",
}

// storeChunks: a transaction that needs the session ACTIVE in this term
// registers a pack; its Put is flying from then on. A small point keeps a
// chunk in its point pack instead.
func (w *world) storeChunks(s *state, i int, emit emitFunc) {
	se := &s.sessions[i]
	next := s.nextChunk(se)
	if next < 0 {
		return
	}
	var open contents
	for c := range numContents {
		if s.points[se.point].want>>c&1 == 1 && se.hints[c] == 0 {
			open |= 1 << c
		}
	}
	for cs := contents(1); cs <= bothXY; cs++ {
		if cs&^open != 0 || cs>>next&1 == 0 {
			continue
		}
		n := *s
		id := n.newPack(pack{kind: dataPack, owner: ofSession1 + owner(i), born: s.epoch, flying: true, holds: cs})
		w.register(&n, id)
		cs.each(func(c int) { n.sessions[i].hints[c] = id })
		emit(say(storeText[cs], i+1, int(id)), &n)
	}
	if w.inline {
		n := *s
		n.sessions[i].hints[next] = inline
		emit(say("session %d keeps %c in its point pack", i+1, letter(next)), &n)
	}
}

// register gives a new pack its row. Without registerFirst the row comes with
// the commit.
func (w *world) register(s *state, id packID) {
	if w.has(registerFirst) {
		s.packs[id].row = live
	}
}

// land: a Put arrives, for its process or late.
func (w *world) land(s *state, emit emitFunc) {
	for id := packID(1); id <= maxPacks; id++ {
		if !s.packs[id].flying {
			continue
		}
		n := *s
		n.packs[id].flying, n.packs[id].blob = false, true
		emit(say("the Put of pack %d lands", int(id)), &n)
	}
}

// putManifest: when all chunks are durable, the manifest's pack is registered
// and its Put begins.
func (w *world) putManifest(s *state, i int, emit emitFunc) {
	se := &s.sessions[i]
	if se.manifest != 0 || s.nextChunk(se) >= 0 {
		return
	}
	m := pack{kind: pointPack, owner: ofSession1 + owner(i), born: s.epoch, flying: true, point: se.point, hints: se.hints}
	for c, hint := range se.hints {
		switch {
		case hint == inline:
			m.holds |= 1 << c
		case s.packs[hint].flying && s.packs[hint].owner == m.owner:
			return
		}
	}
	n := *s
	id := n.newPack(m)
	w.register(&n, id)
	for c, hint := range se.hints {
		if hint == inline {
			n.packs[id].hints[c] = id
		}
	}
	n.sessions[i].manifest = id
	emit(say("session %d registers manifest %d", i+1, int(id)), &n)
}

func (w *world) commitSession(s *state, i int, emit emitFunc) {
	se := &s.sessions[i]
	if se.manifest == 0 || s.packs[se.manifest].flying {
		return
	}
	n := *s
	if lost := w.lostHits(s, se); lost != 0 {
		if s.spent.refusals == maxRefusals {
			return
		}
		n.spent.refusals++
		n.refuse(&n.sessions[i], lost)
		w.see(commitRefused)
		emit(say("session %d: commit refused", i+1), &n)
		return
	}
	w.commit(&n, &n.sessions[i], ofSession1+owner(i))
	n.sessions[i] = session{}
	emit(say("session %d commits point %d, manifest %d", i+1, int(se.point), int(se.manifest)), &n)
}

// lostHits are packs that the index gave and that are given up since.
func (w *world) lostHits(s *state, se *session) (lost packSet) {
	if !w.has(refuseDeleting) {
		return 0
	}
	for id := packID(1); id <= maxPacks; id++ {
		if se.hits.has(id) && s.packs[id].row != live && s.packs[id].row != condemned {
			lost = lost.with(id)
		}
	}
	return lost
}

// refuse makes a session look for the chunks of lost packs again, and write
// another manifest. The old one stays behind as a registered pack.
func (s *state) refuse(se *session, lost packSet) {
	for c, hint := range se.hints {
		if hint != inline && lost.has(hint) {
			se.hints[c] = 0
		}
	}
	se.hits &^= lost
	se.manifest = 0
}

// commit is the transaction ACTIVE → COMMITTED, when it succeeds.
func (w *world) commit(s *state, se *session, own owner) {
	for id := packID(1); id <= maxPacks; id++ {
		p := &s.packs[id]
		if p.kind == noPack {
			continue
		}
		if p.owner == own {
			p.owner = ofCommitted
			if p.row == noRow && (p.blob || p.flying) && !w.has(registerFirst) {
				p.row = live
			}
			if w.has(stampOwn) {
				p.stamped = s.epoch
			}
			if p.row == condemned {
				p.row = live
			}
			continue
		}
		if !se.hits.has(id) {
			continue
		}
		if w.has(stampHits) && (w.has(stampLiveHits) || p.row == condemned) {
			p.stamped = s.epoch
		}
		if p.row == condemned && w.has(rescue) {
			w.see(packRescued)
			p.row = live
		}
	}
	s.points[se.point].state, s.points[se.point].manifest = available, se.manifest
}

// newTerm: the process of the session is taken for dead, the job claims it
// again. What the old one had in memory is lost; what it had in flight is not.
func (w *world) newTerm(s *state, i int, emit emitFunc) {
	se := &s.sessions[i]
	if se.term >= max(w.sessionTerms, 1) {
		return
	}
	n := *s
	n.sessions[i] = session{point: se.point, parent: se.parent, term: se.term + 1}
	if !w.has(sessionTerm) && se.manifest != 0 {
		n.fenced = *se
	}
	emit(say("session %d: term %d takes over", i+1, int(se.term+1)), &n)
}

// commitFenced is what the term check prevents.
func (w *world) commitFenced(s *state, emit emitFunc) {
	if s.fenced.point == 0 || s.packs[s.fenced.manifest].flying {
		return
	}
	for i := range s.sessions {
		if s.sessions[i].point != s.fenced.point {
			continue
		}
		n := *s
		w.commit(&n, &n.fenced, ofSession1+owner(i))
		n.sessions[i], n.fenced = session{}, session{}
		emit(say("session %d: the fenced process commits point %d", i+1, int(s.fenced.point)), &n)
	}
}

// dropLeftovers: a new term keeps the data packs that are durable and lets go
// of the rest: of manifests, because it writes its own, and of packs that it
// finds without a blob. The row says so before the blob is touched; the blob
// may still land.
func (w *world) dropLeftovers(s *state, i int, emit emitFunc) {
	se := &s.sessions[i]
	if se.term == 1 {
		return
	}
	for id := packID(1); id <= maxPacks; id++ {
		p := &s.packs[id]
		if p.owner != ofSession1+owner(i) || p.row != live || p.dropped != 0 || id == se.manifest ||
			p.kind == dataPack && (p.blob || se.hints[0] == id || se.hints[1] == id) {
			continue
		}
		n := *s
		if w.has(recordDrop) {
			n.packs[id].row = deleting
		} else {
			n.packs[id].dropped = se.term
		}
		emit(say("session %d drops pack %d of an earlier term", i+1, int(id)), &n)
	}
}

// cancelSession is the compare-and-set ACTIVE → ABORTED, by any term's
// process that has the newest one. The point ceases, the parent is free.
func (w *world) cancelSession(s *state, i int, emit emitFunc) {
	if !w.cancels {
		return
	}
	n := *s
	se := &n.sessions[i]
	if !w.has(abortFirst) {
		if !se.gone {
			se.gone = true
			emit(say("session %d is cancelled, unconfirmed", i+1), &n)
		}
		return
	}
	n.points[se.point].state = ceased
	n.points[se.point].want = 0
	for id := range n.packs {
		if p := &n.packs[id]; p.kind != noPack && p.owner == ofSession1+owner(i) {
			p.owner = ofAborted
		}
	}
	*se = session{}
	emit(say("session %d is aborted", i+1), &n)
}

// cleanAborted: of an aborted session the blobs are deleted at once, one after
// the other, then the rows in one transaction. A Put that is still flying
// lands as a stray.
func (w *world) cleanAborted(s *state, emit emitFunc) {
	rows := false
	for id := packID(1); id <= maxPacks; id++ {
		p := &s.packs[id]
		gone := p.owner == ofAborted || p.owner >= ofSession1 && p.owner <= ofSession2 && s.sessions[p.owner-ofSession1].gone
		if p.blob && (gone && p.row != noRow || p.dropped != 0) {
			n := *s
			n.packs[id].blob = false
			emit(say("the blob of pack %d is deleted for its session", int(id)), &n)
			return
		}
		rows = rows || p.owner == ofAborted && p.row != noRow
	}
	if !rows {
		return
	}
	n := *s
	for id := range n.packs {
		if p := &n.packs[id]; p.owner == ofAborted {
			p.row = noRow
		}
	}
	emit(say("the rows of an aborted session are removed"), &n)
}
