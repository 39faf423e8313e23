package e2e

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
)

// A history is all that clients did to some volumes: when each request was
// sent and answered, and what it changed. It judges points.
//
// Every sector that is written holds the number of its write, so a point tells
// for each sector whose bytes it has. The moments at which a sector may have
// held write v are known: later than v was sent, and earlier than the answer of
// any write that was sent after v's answer (when such an answer has come, v is
// overwritten for sure). Zeros do not say whose they are: there the moments of
// all zeroings count. A point is one moment if there is a moment between the
// begin and the end of its create call that all sectors of all its volumes
// have in common.
//
// The order of each connection is in that: if write n+1 was sent after the
// answer of write n, then a point with n+1 is later than that, and a point
// without n, or what came over it, is earlier. So a point that has a write of
// such a chain has all before it, on whatever volumes they were.
//
// Moments are counts of a clock that ticks at each event. Two events of which
// one ended before the other began have ascending counts, more is not needed;
// the moment of a point lies between two counts.
type history struct {
	mu    sync.Mutex // guards what follows while clients write
	clock int64
	log   []request

	// Of each volume and sector: what a point from now on may show, in the
	// order of the log. What a judged point shows to be overwritten is gone:
	// no later one may have it again.
	volumes [][][]int32
	indexed int // requests of the log that are in volumes
}

// request is one change of one volume. The first of a log stands for the
// zeros of a new volume.
type request struct {
	volume, first, sectors int // first: of its sectors
	zeros                  bool
	sent, answered         int64
}

// span is the moments after from and before to, both counts of the clock.
type span struct{ from, to int64 }

const (
	wordBits    = 20 // of a word of a stamped sector: where it lies
	maxSectors  = 1 << wordBits
	neverCame   = math.MaxInt64
	sectorWords = sector / 8
)

func newHistory() *history { return &history{log: []request{{zeros: true, sent: -1}}} }

// addVolume adds a volume that has content, as a point had it, or zeros (nil).
func (h *history) addVolume(sectors int, content []byte) (volume int, err error) {
	h.volumes = append(h.volumes, make([][]int32, sectors))
	volume = len(h.volumes) - 1
	return volume, h.reset(volume, content)
}

// reset is addVolume for a volume that got another content. Nobody writes.
func (h *history) reset(volume int, content []byte) error {
	if len(h.volumes[volume]) > maxSectors || content != nil && len(content) != len(h.volumes[volume])*sector {
		return fmt.Errorf("a volume of %d sectors and a content of %d bytes", len(h.volumes[volume]), len(content))
	}
	h.index(math.MaxInt64)
	for at := range h.volumes[volume] {
		var holds int32
		if content != nil {
			n, err := stampOf(content[at*sector:][:sector], at)
			if err != nil {
				return err
			}
			holds = n
		}
		h.volumes[volume][at] = []int32{holds}
	}
	return nil
}

func (h *history) tick() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	return h.clock
}

// send notes a request that is about to be sent, and gives its number.
func (h *history) send(volume, first, sectors int, zeros bool) int32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	h.log = append(h.log, request{volume: volume, first: first, sectors: sectors, zeros: zeros, sent: h.clock, answered: neverCame})
	return int32(len(h.log) - 1)
}

func (h *history) answer(n int32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	h.log[n].answered = h.clock
}

// stamp fills sectors with the number of their write.
func stamp(p []byte, n int32, first int) {
	for i := range len(p) / 8 {
		binary.LittleEndian.PutUint64(p[i*8:], uint64(n)<<wordBits|uint64(first+i/sectorWords))
	}
}

// stampOf tells whose a sector is. 0: it is zeros.
func stampOf(p []byte, at int) (int32, error) {
	word := binary.LittleEndian.Uint64(p)
	for i := 8; i < sector; i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != word {
			return 0, fmt.Errorf("sector %d is torn at byte %d: %#x and %#x", at, i, word, binary.LittleEndian.Uint64(p[i:]))
		}
	}
	if word == 0 {
		return 0, nil
	}
	if word&(maxSectors-1) != uint64(at) || word>>wordBits > math.MaxInt32 {
		return 0, fmt.Errorf("sector %d holds %#x, which nobody wrote there", at, word)
	}
	return int32(word >> wordBits), nil
}

// index notes the requests that were sent before a moment at their sectors.
func (h *history) index(before int64) {
	for ; h.indexed < len(h.log) && h.log[h.indexed].sent < before; h.indexed++ {
		r := h.log[h.indexed]
		if h.indexed == 0 {
			continue
		}
		for at := r.first; at < r.first+r.sectors; at++ {
			h.volumes[r.volume][at] = append(h.volumes[r.volume][at], int32(h.indexed))
		}
	}
}

// judge fails unless the contents of some volumes, by their number, are of one
// moment between begin and end. Nobody writes any more; points are judged in
// the order in which they were taken.
func (h *history) judge(begin, end int64, contents map[int][]byte) error {
	h.index(end)
	possible := []span{{begin, end}}
	for _, volume := range slices.Sorted(maps.Keys(contents)) {
		content := contents[volume]
		if len(content) != len(h.volumes[volume])*sector {
			return fmt.Errorf("volume %d has %d bytes in the point, want %d", volume, len(content), len(h.volumes[volume])*sector)
		}
		for at, candidates := range h.volumes[volume] {
			holds, err := stampOf(content[at*sector:][:sector], at)
			if err != nil {
				return fmt.Errorf("volume %d: %w", volume, err)
			}
			mine := h.moments(candidates, holds)
			left := both(possible, mine)
			if len(left) == 0 {
				return fmt.Errorf("volume %d sector %d holds write %d, which it held at %v of the clock; the sectors before it are of %v. What may be there: %s",
					volume, at, holds, mine, possible, h.tell(candidates))
			}
			possible = left
		}
	}
	for volume, content := range contents {
		h.forget(volume, content, possible[0].from)
	}
	return nil
}

// moments are when a sector may have held a write; 0: zeros.
func (h *history) moments(candidates []int32, holds int32) []span {
	// The earliest answer of each and those after it: as the log is in the
	// order of sending, those sent after some moment are the last ones.
	until := make([]int64, len(candidates)+1)
	until[len(candidates)] = neverCame
	for i := len(candidates) - 1; i >= 0; i-- {
		until[i] = min(until[i+1], h.log[candidates[i]].answered)
	}
	var out []span
	for _, n := range candidates {
		if !h.shows(n, holds) {
			continue
		}
		r := h.log[n]
		later, _ := slices.BinarySearchFunc(candidates, r.answered, func(m int32, moment int64) int {
			return cmp.Compare(h.log[m].sent, moment)
		})
		if s := (span{r.sent, until[later]}); s.from < s.to {
			out = append(out, s)
		}
	}
	return joined(out)
}

// shows reports whether write n looks as what a sector holds.
func (h *history) shows(n, holds int32) bool {
	return n == holds && !h.log[n].zeros || holds == 0 && h.log[n].zeros
}

// forget strikes out what cannot be seen again after a point that was later
// than a moment: what was overwritten for sure by then, and what was answered
// by then although the point shows something else.
func (h *history) forget(volume int, content []byte, moment int64) {
	for at, candidates := range h.volumes[volume] {
		holds, err := stampOf(content[at*sector:][:sector], at)
		if err != nil {
			continue // judged before
		}
		overwritten := int64(-2) // the last sending of one that was answered by then
		for _, n := range candidates {
			if r := h.log[n]; r.answered <= moment {
				overwritten = max(overwritten, r.sent)
			}
		}
		h.volumes[volume][at] = slices.DeleteFunc(candidates, func(n int32) bool {
			r := h.log[n]
			return r.answered < overwritten || r.answered <= moment && !h.shows(n, holds)
		})
	}
}

func (h *history) tell(candidates []int32) string {
	var out string
	for _, n := range candidates {
		r := h.log[n]
		out += fmt.Sprintf("[write %d, zeros %t, sent %d, answered %d]", n, r.zeros, r.sent, r.answered)
	}
	return out
}

// joined is spans in order, with those that overlap made one.
func joined(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && s.from <= out[n-1].to {
			out[n-1].to = max(out[n-1].to, s.to)
		} else {
			out = append(out, s)
		}
	}
	return out
}

// both is what two lists of spans have in common.
func both(a, b []span) []span {
	var out []span
	for i, k := 0, 0; i < len(a) && k < len(b); {
		if s := (span{max(a[i].from, b[k].from), min(a[i].to, b[k].to)}); s.from < s.to {
			out = append(out, s)
		}
		if a[i].to < b[k].to {
			i++
		} else {
			k++
		}
	}
	return out
}
