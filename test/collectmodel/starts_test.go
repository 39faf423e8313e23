package collectmodel

// The states here are those that quiet histories lead to; searches begin with
// one, so that their steps are spent on what can go wrong.

// committedPoint adds a point whose chunks lie where hints say.
func (s *state) committedPoint(parent pointID, st pointState, hints [numContents]packID) pointID {
	var want contents
	for c, hint := range hints {
		if hint != 0 {
			want |= 1 << c
		}
	}
	p := s.newPoint(point{state: st, parent: parent, want: want})
	m := s.newPack(pack{kind: pointPack, row: live, blob: true, point: p, hints: hints})
	s.points[p].manifest = m
	return p
}

func (s *state) committedPack(holds contents) packID {
	return s.newPack(pack{kind: dataPack, row: live, blob: true, holds: holds})
}

func emptyRepository() (s state) { return s }

// onePoint: a full with both contents in one pack.
func onePoint() (s state) {
	a := s.committedPack(bothXY)
	s.committedPoint(0, available, [2]packID{a, a})
	return s
}

// sharedPack: a full with one of the two contents that its pack holds.
func sharedPack() (s state) {
	a := s.committedPack(bothXY)
	s.committedPoint(0, available, [2]packID{a})
	return s
}

// twoPacks: a full with both contents, in two packs.
func twoPacks() (s state) {
	a := s.committedPack(contentX)
	b := s.committedPack(contentY)
	s.committedPoint(0, available, [2]packID{a, b})
	return s
}

// parentAndChild: a full with X, and a point below it that inherited X and
// added Y.
func parentAndChild() (s state) {
	a := s.committedPack(contentX)
	p := s.committedPoint(0, available, [2]packID{a})
	b := s.committedPack(contentY)
	s.committedPoint(p, available, [2]packID{a, b})
	return s
}

// twoCopies: the same content in two packs, each with a full of its own.
func twoCopies() (s state) {
	for range 2 {
		a := s.committedPack(contentX)
		s.committedPoint(0, available, [2]packID{a})
	}
	return s
}

// relocated: the pack of a full was compacted into another one. Its row is
// CONDEMNED.
func relocated() (s state) {
	a := s.committedPack(contentX)
	s.committedPoint(0, available, [2]packID{a})
	b := s.committedPack(contentX)
	s.newPack(pack{kind: relocation, row: live, blob: true, from: [2]packID{a}, moved: [2]contents{contentX}, to: b})
	s.packs[a].row = condemned
	return s
}

// rescued: as relocated, but then a commit made the old pack LIVE again.
func rescued() (s state) {
	s = relocated()
	s.packs[1].row = live
	return s
}

// olderDatabase: the database knows the first point, and not the second, which
// was taken later and shares its pack.
func olderDatabase() (s state) {
	a := s.committedPack(contentX)
	s.committedPoint(0, available, [2]packID{a})
	p := s.committedPoint(0, unknown, [2]packID{a})
	s.packs[s.points[p].manifest].row = noRow
	return s
}

// unknownPack: as olderDatabase, but the second point has a pack of its own
// that the database does not know either.
func unknownPack() (s state) {
	s = olderDatabase()
	b := s.newPack(pack{kind: dataPack, blob: true, holds: contentY})
	s.packs[s.points[2].manifest].hints[1] = b
	s.points[2].want = bothXY
	return s
}
