package collectmodel

import "fmt"

// This file says what must hold in every state that can be reached.

// outcome is what a history comes to.
type outcome int

const (
	harmless outcome = iota
	loss             // something that must be readable is not
	stuck            // a collection finds something unreadable in an undamaged repository
	broken           // a point is available below one that is not, or came back
	leak             // something that nobody needs is never deleted
)

func (o outcome) String() string {
	return [...]string{"harmless", "loss", "stuck", "broken line", "leak"}[o]
}

// flaw is what is wrong with a state or a step. The zero flaw is none.
type flaw struct {
	kind outcome
	text string
}

func flawed(kind outcome, format string, args ...any) flaw {
	return flaw{kind, fmt.Sprintf(format, args...)}
}

// check tells what is wrong with a state.
func (w *world) check(s *state) flaw {
	for id := pointID(1); id <= maxPoints; id++ {
		p := &s.points[id]
		kept := p.state == available || p.state == deleted || p.state == unknown
		if !kept && s.image != id && s.reader.point != id && !s.pinnedAsParent(id) {
			continue
		}
		if !s.packs[p.manifest].blob {
			return flawed(loss, "point %d: manifest %d is lost", id, p.manifest)
		}
		for c, hint := range s.packs[p.manifest].hints {
			if p.want>>c&1 == 1 && !s.readable(hint, c) && !s.excused(hint, c) {
				return flawed(loss, "point %d: %c is lost", id, letter(c))
			}
		}
		if q := p.parent; p.state == available && q != 0 && s.points[q].state != available && !w.bytesOnly {
			return flawed(broken, "point %d is available below point %d, which is not", id, q)
		}
	}
	if s.reader.failed {
		return flawed(loss, "the restore of point %d found nothing", s.reader.point)
	}
	return flaw{}
}

// cameBack tells whether a step brought a ceased point back.
func (s *state) cameBack(after *state) bool {
	for id := range s.points {
		if s.points[id].state == ceased && after.points[id].state != ceased {
			return true
		}
	}
	return false
}

// readable tells whether a record can be read: where the hint says, or where
// relocation blobs lead. No row and no index is asked.
func (s *state) readable(id packID, c int) bool {
	if s.packs[id].good(c) {
		return true
	}
	for r := packID(1); r <= maxPacks; r++ {
		if p := &s.packs[r]; p.blob && p.moves(id, c) && s.readable(p.to, c) {
			return true
		}
	}
	return false
}

// excused tells whether a record was damaged by the disk and not healed.
func (s *state) excused(id packID, c int) bool {
	if p := &s.packs[id]; p.mourn>>c&1 == 1 {
		return true
	}
	for r := packID(1); r <= maxPacks; r++ {
		if p := &s.packs[r]; p.blob && p.moves(id, c) && s.excused(p.to, c) {
			return true
		}
	}
	return false
}
