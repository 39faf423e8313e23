package collectmodel

// This file makes states canonical. It is no part of the protocol: it only
// keeps a search from visiting what is the same in all that matters.

// tidy makes a state canonical: what can play no part any more becomes zero,
// so that histories that only differ in it meet.
func (w *world) tidy(s *state) {
	for id := pointID(1); id <= maxPoints; id++ {
		if p := &s.points[id]; p.state == ceased {
			p.parent = 0
			if s.image != id && s.reader.point != id && !s.pinnedAsParent(id) {
				p.want, p.manifest = 0, 0
			}
		}
	}
	for w.freePacks(s) {
	}
	w.foldEpochs(s)
	w.foldMarks(s)
}

// freePacks frees slots of packs that left no trace, and tells whether it
// freed one, which may leave others without a trace.
func (w *world) freePacks(s *state) bool {
	var used packSet // by id, in something that is still there
	use := func(ids ...packID) {
		for _, id := range ids {
			if id != inline {
				used = used.with(id)
			}
		}
	}
	for id := range s.packs {
		if p := &s.packs[id]; p.present() {
			use(p.hints[:]...)
			use(p.from[0], p.from[1], p.to)
		}
	}
	for id := range s.points {
		use(s.points[id].manifest)
	}
	for i := range s.sessions {
		use(s.sessions[i].hints[:]...)
		use(s.sessions[i].manifest)
		used |= s.sessions[i].hits
	}
	use(s.fenced.hints[:]...)
	use(s.fenced.manifest)
	used |= s.fenced.hits | s.reader.tries
	for i := range s.collectors {
		k := &s.collectors[i]
		use(k.from[0], k.from[1], k.into, k.reloc)
	}
	freed := false
	for id := packID(1); id <= maxPacks; id++ {
		p := &s.packs[id]
		if p.kind == noPack || p.present() {
			continue
		}
		for i := range s.collectors {
			k := &s.collectors[i]
			k.marks[id] = 0
			k.listed, k.strays, k.lived = k.listed.minus(id), k.strays.minus(id), k.lived.minus(id)
		}
		if used.has(id) {
			*p = pack{kind: p.kind, holds: p.holds} // a name that something still says
			continue
		}
		*p = pack{}
		freed = true
	}
	return freed
}

func (p *pack) present() bool { return p.row != noRow || p.blob || p.flying }

// foldEpochs forgets how old an epoch is once it is older than every
// collection that can still ask.
func (w *world) foldEpochs(s *state) {
	first := s.epoch + 1
	for i := range s.collectors {
		if k := &s.collectors[i]; k.phase != idle {
			first = min(first, k.gen)
		}
	}
	fold := func(e *uint8) {
		if *e < first {
			*e = 0
		}
	}
	for id := range s.packs {
		p := &s.packs[id]
		fold(&p.born)
		fold(&p.stamped)
		fold(&p.doomed)
		if p.row == noRow && w.has(registerFirst) || p.row == deleting {
			p.born, p.stamped, p.doomed = 0, 0, 0
		}
		if p.row == noRow && w.has(registerFirst) {
			p.owner = ofCommitted
		}
	}
}

// foldMarks forgets marks that nothing asks for any more: of packs that this
// collection can neither condemn nor compact. One that is rescued from now on
// is stamped, and so spared.
func (w *world) foldMarks(s *state) {
	if w.off&without(spareNewborn, spareStamped, stampHits, stampLiveHits, stampOwn, checkStamp) != 0 {
		return
	}
	for i := range s.collectors {
		k := &s.collectors[i]
		if k.phase != marked {
			continue
		}
		for id := range s.packs {
			switch p := &s.packs[id]; {
			case p.row != live || p.born >= k.gen || p.stamped >= k.gen:
				k.marks[id] = 0
			case s.spent.compactions == w.compactions && k.marks[id] != 0:
				k.marks[id] = usedMark
			}
		}
	}
}
