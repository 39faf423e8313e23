package collectmodel

// This file is the collector: what it does with a mark. Its steps after the
// mark may come in any order, and any of them may be left out.

func (w *world) collectorSteps(s *state, emit emitFunc) {
	fenced := func(st step, n *state) {
		st.text = "fenced " + st.text
		emit(st, n)
	}
	w.claimCollector(s, emit)
	w.erase(s, emit)
	w.runCollector(s, 0, emit)
	w.runCollector(s, 1, fenced)
}

// runCollector makes the steps of one process.
func (w *world) runCollector(s *state, i int, emit emitFunc) {
	switch k := &s.collectors[i]; k.phase {
	case idle:
		w.begin(s, i, emit)
	case begun:
		w.list(s, i, emit)
	case listed:
		w.readRows(s, i, emit)
	case raising:
		n := *s
		n.epoch = max(n.epoch, k.gen)
		n.collectors[i].phase = marked
		emit(say("collector: the epoch is raised late"), &n)
	case marked:
		w.condemn(s, i, emit)
		w.compact(s, i, emit)
		w.deletePacks(s, i, emit)
		w.takeStrays(s, i, emit)
		w.finish(s, i, emit)
	}
}

// begin is a transaction: E ← E+1 = G.
func (w *world) begin(s *state, i int, emit emitFunc) {
	if i != 0 || s.epoch == w.collections {
		return
	}
	n := *s
	k := &n.collectors[i]
	k.phase, k.gen = begun, s.epoch+1
	if w.has(epochFirst) {
		n.epoch++
	}
	emit(say("collector: collection %d begins", int(k.gen)), &n)
}

func (w *world) list(s *state, i int, emit emitFunc) {
	n := *s
	k := &n.collectors[i]
	k.phase = listed
	for id := packID(1); id <= maxPacks; id++ {
		// Without listBeforeRows the rows come first, and this remembers
		// which packs had one.
		if p := &s.packs[id]; w.has(listBeforeRows) && p.blob || !w.has(listBeforeRows) && p.row != noRow {
			k.listed = k.listed.with(id)
		}
	}
	if !w.has(oneRead) {
		k.lived = s.livePacks()
	}
	text := "collector: lists the blobs"
	if !w.has(listBeforeRows) {
		text = "collector: reads the rows, too early"
	}
	emit(say(text), &n)
}

// readRows reads the rows once and marks. Walking takes long in the product,
// but all it reads is immutable, and only this job deletes what roots need.
func (w *world) readRows(s *state, i int, emit emitFunc) {
	list := s.collectors[i].listed
	var lateStrays packSet
	if !w.has(listBeforeRows) {
		hadRow := list
		list = 0
		for id := packID(1); id <= maxPacks; id++ {
			if s.packs[id].blob {
				list = list.with(id)
			}
		}
		lateStrays = list &^ hadRow
	}
	m := w.mark(s, list, false)
	w.useMark(s, i, m, lateStrays, emit)
	if m.resolved {
		if other := w.mark(s, list, true); other.marks != m.marks {
			w.useMark(s, i, other, lateStrays, emit)
		}
	}
	if !w.has(abortUnreadable) {
		w.skipRoot(s, i, list, emit)
	}
}

func (w *world) useMark(s *state, i int, m *marking, lateStrays packSet, emit emitFunc) {
	n := *s
	k := &n.collectors[i]
	if m.unread && w.has(abortUnreadable) {
		*k = collector{}
		w.see(markAborted)
		st := say("collector: something is unreadable, the collection is aborted")
		if !w.mayAbort {
			st.wrong = flawed(stuck, "a collection is aborted although nothing is damaged")
		}
		emit(st, &n)
		return
	}
	k.phase, k.listed, k.lived = marked, 0, 0
	if !w.has(epochFirst) {
		k.phase = raising
	}
	k.marks, k.strays = m.marks, m.strays()|lateStrays&^m.hinted
	emit(say("collector: reads the rows and marks"), &n)
}

// skipRoot: a root is passed over because reading it failed, be it for a
// moment. With abortUnreadable that is an aborted collection, which changes
// nothing and needs no step here.
func (w *world) skipRoot(s *state, i int, list packSet, emit emitFunc) {
	for id := packID(1); id <= maxPacks; id++ {
		if s.packs[id].kind != pointPack || !s.packs[id].blob {
			continue
		}
		blind := *s
		blind.packs[id].hints = [numContents]packID{}
		m := w.mark(&blind, list, false)
		w.useMark(s, i, m, 0, emit)
	}
}

// condemn is a transaction: LIVE packs of which no root needs anything become
// CONDEMNED. A commit since (1) has stamped what it relies on.
func (w *world) condemn(s *state, i int, emit emitFunc) {
	k := &s.collectors[i]
	all := *s
	count := 0
	for id := packID(1); id <= maxPacks; id++ {
		if !w.isGarbage(k, id, &s.packs[id]) {
			continue
		}
		count++
		all.packs[id].row, all.packs[id].doomed = condemned, k.gen
		if w.onePack {
			n := *s
			n.packs[id].row, n.packs[id].doomed = condemned, k.gen
			emit(say("collector: condemns pack %d", int(id)), &n)
		}
	}
	if count > 0 && !w.onePack {
		emit(say("collector: condemns %d packs", count), &all)
	}
}

func (w *world) isGarbage(k *collector, id packID, p *pack) bool {
	return p.row == live && k.marks[id] == 0 && p.owner != ofCollector &&
		!(w.has(spareNewborn) && p.born >= k.gen) &&
		!(w.has(spareStamped) && p.stamped >= k.gen) &&
		!(w.has(spareActive) && (p.owner == ofSession1 || p.owner == ofSession2))
}

// deletePacks is a transaction: CONDEMNED → DELETING, from where there is no
// way back.
func (w *world) deletePacks(s *state, i int, emit emitFunc) {
	k := &s.collectors[i]
	for id := packID(1); id <= maxPacks; id++ {
		p := &s.packs[id]
		stale := !w.has(checkCondemned) && p.row == live && p.doomed != 0
		if p.row != condemned && !stale {
			continue
		}
		if p.doomed >= k.gen && w.has(deleteLater) && s.anyActive() {
			continue
		}
		n := *s
		n.packs[id].row = deleting
		emit(say("collector: pack %d is DELETING", int(id)), &n)
	}
}

// erase: the blob of a DELETING pack goes, then its row. Whoever does it, and
// in whatever term, does no harm. Where no Put is flying, nobody can tell a
// DELETING row without a blob from no row, so both go in one step; and as
// nobody relies on DELETING packs, one order of them stands for all.
func (w *world) erase(s *state, emit emitFunc) {
	for id := packID(1); id <= maxPacks; id++ {
		p := &s.packs[id]
		if !w.has(recordDelete) && p.row == condemned && p.blob {
			n := *s
			n.packs[id].blob = false
			emit(say("collector: blob of pack %d deleted, its row is CONDEMNED", int(id)), &n)
			continue
		}
		if p.row != deleting {
			continue
		}
		n := *s
		if p.blob {
			w.see(deletedEvent(s, id))
			n.packs[id].blob = false
			if !p.flying {
				n.packs[id].row = noRow
			}
			emit(say("collector: blob of pack %d deleted", int(id)), &n)
			return
		}
		n.packs[id].row = noRow
		emit(say("collector: row of pack %d removed", int(id)), &n)
		return
	}
}

// takeStrays is a transaction: a stray gets a row that says DELETING.
func (w *world) takeStrays(s *state, i int, emit emitFunc) {
	k := &s.collectors[i]
	for id := packID(1); id <= maxPacks; id++ {
		if !k.strays.has(id) || s.packs[id].row != noRow && w.has(listBeforeRows) {
			continue
		}
		n := *s
		n.collectors[i].strays = k.strays.minus(id)
		n.packs[id].row = deleting
		w.see(strayTaken)
		emit(say("collector: stray pack %d gets a DELETING row", int(id)), &n)
	}
}

func (w *world) finish(s *state, i int, emit emitFunc) {
	if s.collectors[i].step != noCompaction {
		return
	}
	n := *s
	n.collectors[i] = collector{}
	emit(say("collector: done"), &n)
}

// claimCollector: another process takes the collector's job in a new term;
// the compaction under way is aborted. The old process's transactions fail
// from now on, its Puts and Deletes may still arrive.
func (w *world) claimCollector(s *state, emit emitFunc) {
	k := &s.collectors[0]
	if k.phase == idle || s.spent.collectorTerms == w.collectorTerms || s.collectors[1].phase != idle {
		return
	}
	n := *s
	n.spent.collectorTerms++
	if w.has(collectorTerm) {
		for id := range n.packs {
			if p := &n.packs[id]; p.kind != noPack && p.owner == ofCollector {
				p.owner = ofAborted
			}
		}
	} else {
		n.collectors[1] = *k
	}
	n.collectors[0] = collector{}
	emit(say("collector: a new term takes over"), &n)
}
