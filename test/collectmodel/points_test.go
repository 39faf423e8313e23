package collectmodel

// This file is what happens to points, by transactions alone; the two readers,
// a restore and an image; and what happens to the disk.

func (w *world) pointSteps(s *state, emit emitFunc) {
	for p := pointID(1); p <= maxPoints; p++ {
		switch s.points[p].state {
		case available:
			w.deletePoint(s, p, emit)
			w.pinByImage(s, p, emit)
			w.startReader(s, p, emit)
		case deleted:
			n := *s
			n.points[p].state = ceased
			emit(say("point %d expires in the bin: ceased", int(p)), &n)
			w.undelete(s, p, emit)
		}
	}
	if s.image != 0 {
		n := *s
		n.image = 0
		emit(say("the image of point %d is let go", int(s.image)), &n)
	}
	w.readerSteps(s, emit)
	w.rot(s, emit)
}

// deletePoint takes a point and all below it into the bin. Pinned ones are
// refused; an image's pin alone does not refuse.
func (w *world) deletePoint(s *state, p pointID, emit emitFunc) {
	if s.spent.deletes == w.deletes {
		return
	}
	n := *s
	n.spent.deletes++
	for q := pointID(1); q <= maxPoints; q++ {
		if s.points[q].state != available || !s.below(q, p) {
			continue
		}
		if s.pinnedAsParent(q) && w.has(pinParent) || s.reader.point == q && w.has(pinReader) {
			return
		}
		n.points[q].state = deleted
	}
	emit(say("point %d is deleted", int(p)), &n)
}

// below tells whether q is p or descends from it.
func (s *state) below(q, p pointID) bool {
	for ; q != 0; q = s.points[q].parent {
		if q == p {
			return true
		}
	}
	return false
}

// undelete brings a point back with its deleted ancestors; it is refused when
// one of them has ceased.
func (w *world) undelete(s *state, p pointID, emit emitFunc) {
	if s.spent.undeletes == w.undeletes {
		return
	}
	n := *s
	n.spent.undeletes++
	n.points[p].state = available
	for q := s.points[p].parent; q != 0 && w.has(wholeLine); q = s.points[q].parent {
		if s.points[q].state == ceased {
			return
		}
		n.points[q].state = available
	}
	emit(say("point %d is undeleted", int(p)), &n)
}

// pinByImage: an image pins a tree, durably, and outlives the point.
func (w *world) pinByImage(s *state, p pointID, emit emitFunc) {
	if s.spent.images == w.images {
		return
	}
	n := *s
	n.spent.images++
	n.image = p
	emit(say("an image pins the tree of point %d", int(p)), &n)
}

func (w *world) startReader(s *state, p pointID, emit emitFunc) {
	if s.spent.readers == w.readers {
		return
	}
	n := *s
	n.spent.readers++
	n.reader = reader{point: p, left: s.points[p].want}
	emit(say("a restore pins point %d", int(p)), &n)
}

// readerSteps: a restore reads each chunk at its hint; if it is not there, it
// lists the relocations and tries where they lead. If all of that is gone,
// too, it lists them again.
func (w *world) readerSteps(s *state, emit emitFunc) {
	r := &s.reader
	if r.point == 0 || r.failed {
		return
	}
	n := *s
	if r.left == 0 {
		n.reader = reader{}
		emit(say("the restore of point %d is done", int(r.point)), &n)
		return
	}
	c := 0
	if r.left&contentX == 0 {
		c = 1
	}
	hint := s.tree(r.point)[c]
	switch {
	case r.tries == 0 && s.packs[hint].good(c):
		n.reader.left &^= 1 << c
		emit(say("the restore reads %c in pack %d", letter(c), int(hint)), &n)
	case r.tries == 0:
		n.reader.tries = s.reached(hint, c)
		n.reader.failed = n.reader.tries == 0 && !s.excused(hint, c)
		emit(say("the restore does not find %c in pack %d and lists the relocations", letter(c), int(hint)), &n)
	default:
		w.tryPlace(s, c, emit)
	}
}

// reached are the places that relocations give for a record, over all steps.
func (s *state) reached(id packID, c int) (to packSet) {
	for r := packID(1); r <= maxPacks; r++ {
		if p := &s.packs[r]; p.blob && p.moves(id, c) {
			to |= packSet(0).with(p.to) | s.reached(p.to, c)
		}
	}
	return to
}

func (w *world) tryPlace(s *state, c int, emit emitFunc) {
	for id := packID(1); id <= maxPacks; id++ {
		if !s.reader.tries.has(id) {
			continue
		}
		n := *s
		if s.packs[id].good(c) {
			n.reader.left &^= 1 << c
			n.reader.tries = 0
			emit(say("the restore reads %c in pack %d", letter(c), int(id)), &n)
			continue
		}
		n.reader.tries = s.reader.tries.minus(id)
		n.reader.failed = n.reader.tries == 0 && !w.has(readerRereads)
		emit(say("the restore does not find %c in pack %d either", letter(c), int(id)), &n)
	}
}

// rot damages a record of which there is another good one.
func (w *world) rot(s *state, emit emitFunc) {
	if s.spent.rots == w.rots {
		return
	}
	for id := packID(1); id <= maxPacks; id++ {
		p := &s.packs[id]
		for c := range numContents {
			if p.kind != dataPack || !p.good(c) || !s.healthy(id, c) {
				continue
			}
			n := *s
			n.spent.rots++
			n.packs[id].rotten |= 1 << c
			n.packs[id].mourn |= 1 << c
			emit(say("the disk damages %c in pack %d", letter(c), int(id)), &n)
		}
	}
}
