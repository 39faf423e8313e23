package e2e

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"

	"cairn/test/e2e/harness"
	"cairn/test/e2e/powercut"
)

// sectorSize is what a disk writes as a whole at least.
const sectorSize = 512

// powerStamp fills p, whole sectors from the given one on, with the number of the
// write that it belongs to, so that each sector says what it is.
func powerStamp(p []byte, sector, n uint32) {
	for at := 0; at < len(p); at += 8 {
		binary.LittleEndian.PutUint32(p[at:], n)
		binary.LittleEndian.PutUint32(p[at+4:], sector+uint32(at/sectorSize))
	}
}

// numbers tells of each sector which write it holds; 0 is zeros.
func numbers(content []byte) ([]uint32, error) {
	out := make([]uint32, len(content)/sectorSize)
	want := make([]byte, sectorSize)
	for s := range out {
		got := content[s*sectorSize:][:sectorSize]
		n := binary.LittleEndian.Uint32(got)
		clear(want)
		if n != 0 {
			powerStamp(want, uint32(s), n)
		}
		if string(got) != string(want) {
			return nil, fmt.Errorf("sector %d (page %d, cluster %d) is of no write: %x…", s, s/8, s/128, got[:16])
		}
		out[s] = n
	}
	return out, nil
}

// notInLog is a flush that no log has.
const notInLog = math.MaxInt

// sent is a write, or the zeroing, of some sectors by a client.
type sent struct {
	n        uint32            // what its sectors hold
	at       powercut.Position // before it nothing of it was anywhere
	answered int               // as the so-manieth of its volume; 0: never
	safe     powercut.Position // when a flush or itself was answered that makes it durable; 0: never
	flush    int               // flushes of the log by then; set by resolve
}

// flushed is an answered flush.
type flushed struct {
	upTo int // writes that had been answered when it was sent
	safe powercut.Position
}

// liveLife is a volume between two rollbacks.
type liveLife struct {
	asked, accepted powercut.Position // of the job that began it
	from            []uint32          // what its sectors held then
	writes          [][]*sent         // of each sector, as they were sent, one after the other
	all             []*sent
	flushes         []flushed

	mustBe int // flushes of the log by which it must have begun; set by resolve
}

// liveVolume is what clients know of a volume. Each sector belongs to one
// client, which waits for an answer before it writes there again.
type liveVolume struct {
	id   string
	disk *powercut.Disk

	mu       sync.Mutex // guards what follows
	answered int
	rounds   int // of all clients
	lives    []*liveLife
}

func (v *liveVolume) sectors() int { return len(v.now().from) }

// now is the present life.
func (v *liveVolume) now() *liveLife { return v.lives[len(v.lives)-1] }

// begin is a new life of the volume, from what a point holds.
func (v *liveVolume) begin(s liveStep, from []uint32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lives = append(v.lives, &liveLife{asked: s.asked, accepted: s.accepted, from: from, writes: make([][]*sent, len(from))})
}

// send notes a write before it is sent.
func (v *liveVolume) send(first, count int, n uint32) (*sent, error) {
	at, err := v.disk.Now()
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	l, w := v.now(), &sent{n: n, at: at, flush: notInLog}
	l.all = append(l.all, w)
	for s := first; s < first+count; s++ {
		l.writes[s] = append(l.writes[s], w)
	}
	return w, nil
}

// answer notes that a write was answered. durable: it promised to be.
func (v *liveVolume) answer(w *sent, durable bool) error {
	at, err := v.disk.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.answered++
	w.answered = v.answered
	if durable {
		w.safe = at
	}
	return err
}

// flush notes one that do carries out.
func (v *liveVolume) flush(do func() error) error {
	v.mu.Lock()
	l, upTo := v.now(), v.answered
	v.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	at, err := v.disk.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	l.flushes = append(l.flushes, flushed{upTo, at})
	return err
}

// round counts what clients did.
func (v *liveVolume) round() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rounds++
}

func (v *liveVolume) roundsDone() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.rounds
}

// resolve says in flushes of the finished log when writes were durable.
func (v *liveVolume) resolve(h *powercut.History) {
	for _, l := range v.lives {
		l.mustBe = h.FlushesBefore(l.accepted)
		for _, w := range l.all {
			for _, f := range l.flushes {
				if w.answered > 0 && w.answered <= f.upTo && (w.safe == 0 || f.safe < w.safe) {
					w.safe = f.safe
				}
			}
			if w.safe > 0 {
				w.flush = h.FlushesBefore(w.safe)
			}
		}
	}
}

// liveCut is a cut, in terms of what clients know.
type liveCut struct {
	flushes int               // what was durable by then is there
	reached powercut.Position // what was sent from then on is not
}

// may says why sector s cannot hold write n after a cut: it must be the last
// one that was durable, or one sent later.
func (l *liveLife) may(s int, n uint32, c liveCut) error {
	ws, safe := l.writes[s], -1
	for i := len(ws) - 1; i >= 0 && safe < 0; i-- {
		if ws[i].flush <= c.flushes {
			safe = i
		}
	}
	last := l.from[s]
	if safe >= 0 {
		last = ws[safe].n
	}
	if n == last {
		return nil
	}
	for _, w := range ws[safe+1:] {
		if w.n == n && w.at < c.reached {
			return nil
		}
	}
	was := "of somebody else"
	for i, w := range ws {
		switch {
		case w.n != n:
		case i < safe:
			was = "older"
		default:
			was = "sent after the cut"
		}
	}
	if safe >= 0 && n == l.from[s] {
		was = "what the volume began with"
	}
	return fmt.Errorf("sector %d (page %d, cluster %d) holds write %d, which is %s; %d was durable", s, s/8, s/128, n, was, last)
}

// holds says what is wrong with a whole content after a cut.
func (l *liveLife) holds(got []uint32, c liveCut) error {
	if len(got) != len(l.from) {
		return fmt.Errorf("%d sectors, want %d", len(got), len(l.from))
	}
	var first error
	bad := 0
	for s, n := range got {
		if err := l.may(s, n, c); err != nil {
			if bad++; first == nil {
				first = err
			}
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d sectors are wrong: %w", bad, first)
	}
	return nil
}

// shows says what is wrong with a content that was taken while clients wrote:
// answered writes had been answered before, and must be in it.
func (l *liveLife) shows(got []uint32, answered int) error {
	for s, n := range got {
		ok := false
		for i := len(l.writes[s]) - 1; i >= 0 && !ok; i-- {
			w := l.writes[s][i]
			if ok = w.n == n; !ok && w.answered > 0 && w.answered <= answered {
				return fmt.Errorf("sector %d holds write %d, but %d had been answered", s, n, w.n)
			}
		}
		if !ok && n != l.from[s] {
			return fmt.Errorf("sector %d holds write %d, which nobody sent", s, n)
		}
	}
	return nil
}

// at are the lives in which the volume may be after a cut; none if it need not
// be there.
func (v *liveVolume) at(c liveCut) []*liveLife {
	must := -1
	for i, l := range v.lives {
		if l.mustBe <= c.flushes {
			must = i
		}
	}
	switch next := must + 1; {
	case must < 0:
		return nil
	case next < len(v.lives) && v.lives[next].asked < c.reached:
		return v.lives[must : next+1]
	}
	return v.lives[must : must+1]
}

// op is one request of a client.
type op struct {
	kind         opKind
	first, count int // sectors
	fua          bool
}

type opKind int

const (
	opWrite opKind = iota
	opZero
	opTrim
)

const (
	// liveClientCount clients write to a volume: the first large runs to the
	// last third of it, the others pages and parts of pages that lie between
	// each other's.
	liveClientCount = 4
	pageSectors     = 8
)

// largeOp draws what the first client does.
func largeOp(r *rand.Rand, sectors int) op {
	from := sectors / 3 * 2 / pageSectors * pageSectors
	o := op{first: from + r.IntN(sectors-from), fua: r.IntN(8) == 0}
	if r.IntN(3) > 0 {
		o.first = o.first / pageSectors * pageSectors
	}
	o.count = min(1+r.IntN(80*pageSectors), sectors-o.first)
	o.kind = []opKind{opWrite, opWrite, opWrite, opZero, opTrim}[r.IntN(5)]
	return o
}

// smallOps draws what one of the others does at once, to different pages.
func smallOps(r *rand.Rand, sectors, client int) []op {
	pages := sectors / 3 * 2 / pageSectors
	taken := map[int]bool{}
	var out []op
	for range 1 + r.IntN(6) {
		page := r.IntN(pages)
		if r.IntN(2) == 0 { // some are written to again and again
			page = r.IntN(min(pages, 96)) * (pages / min(pages, 96))
		}
		page = page/(liveClientCount-1)*(liveClientCount-1) + client - 1
		if page >= pages || taken[page] {
			continue
		}
		taken[page] = true
		o := op{first: page * pageSectors, count: pageSectors, fua: r.IntN(10) == 0}
		switch r.IntN(10) {
		case 0:
			o.kind = opZero
		case 1, 2:
			in := r.IntN(pageSectors)
			o.first, o.count = o.first+in, 1+r.IntN(pageSectors-in)
		}
		out = append(out, o)
	}
	return out
}

// livePoint is a point that was asked for.
type livePoint struct {
	liveStep
	id    string
	v     *liveVolume
	holds []uint32

	mustBe, wasDone int // flushes of the log; set by play
}

// liveStep is one thing that was asked for.
type liveStep struct {
	what                  string
	asked, accepted, done powercut.Position
	job                   harness.Job
}
