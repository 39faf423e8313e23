package collectmodel

// drain tells what would be kept for ever from here, or be in the way of
// collections: everybody stops, what is in flight lands, open sessions are
// aborted, and a collector works alone, twice.
func (w *world) drain(s state) flaw {
	q := &world{off: w.off, cancels: true, collections: 255, collectorTerms: 255, mayAbort: true}
	all := func(steps func(*state, emitFunc)) {
		for q.first(&s, steps) {
		}
	}
	all(q.land)
	for i := range s.sessions {
		if s.sessions[i].point != 0 {
			q.first(&s, func(s *state, emit emitFunc) { q.cancelSession(s, i, emit) })
		}
	}
	s.reader = reader{}
	s.fenced = session{}
	q.first(&s, q.claimCollector)
	s.collectors[1] = collector{}
	for range 2 {
		for _, act := range []func(*state, int, emitFunc){q.begin, q.list, q.readRows, q.condemn} {
			q.first(&s, func(s *state, emit emitFunc) { act(s, 0, emit) })
			if s.collectors[0].phase == idle {
				return flawed(stuck, "no collection can come to its end any more")
			}
		}
		all(func(s *state, emit emitFunc) { q.takeStrays(s, 0, emit) })
		all(func(s *state, emit emitFunc) { q.deletePacks(s, 0, emit) })
		all(q.erase)
		q.first(&s, func(s *state, emit emitFunc) { q.finish(s, 0, emit) })
	}
	return q.leftover(&s)
}

// first makes the first step that is offered, if there is one.
func (w *world) first(s *state, steps func(*state, emitFunc)) bool {
	var next *state
	steps(s, func(_ step, n *state) {
		if next == nil {
			copied := *n
			next = &copied
		}
	})
	if next == nil {
		return false
	}
	w.tidy(next)
	*s = *next
	return true
}

// leftover names a pack that is there although no root needs it, or that is
// needed and not LIVE.
func (w *world) leftover(s *state) flaw {
	var listed packSet
	for id := packID(1); id <= maxPacks; id++ {
		if s.packs[id].blob {
			listed = listed.with(id)
		}
	}
	m := w.mark(s, listed, false)
	for id := packID(1); id <= maxPacks; id++ {
		switch p := &s.packs[id]; {
		case p.present() && m.marks[id] == 0:
			return flawed(leak, "pack %d is kept for ever", id)
		case m.marks[id] != 0 && p.row != live:
			return flawed(loss, "pack %d is needed and not LIVE", id)
		}
	}
	return w.check(s)
}
