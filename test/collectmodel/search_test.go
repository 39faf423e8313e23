package collectmodel

import (
	"fmt"
	"hash/maphash"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// step names a transition, for people.
type step struct {
	text  string // has a verb for each of args
	args  [3]int
	wrong flaw // what is wrong with making this step at all
}

func say(text string, args ...int) step {
	st := step{text: text}
	copy(st.args[:], args)
	return st
}

func (st step) String() string {
	args := []any{st.args[0], st.args[1], st.args[2]}
	return fmt.Sprintf(st.text, args[:strings.Count(st.text, "%")]...)
}

// emitFunc takes a step and the state that it leads to, which it may change.
type emitFunc func(step, *state)

// next gives all steps that can be made in a state. Every step is atomic, and
// every process may stop for good at any moment by not being chosen again.
func (w *world) next(s *state, emit emitFunc) {
	tidied := func(st step, n *state) {
		w.tidy(n)
		emit(st, n)
	}
	w.sessionSteps(s, tidied)
	w.collectorSteps(s, tidied)
	w.pointSteps(s, tidied)
}

// found is a search's result.
type found struct {
	states int
	steps  int // transitions
	depth  int // of the last new state; of a violation, its number of steps
	wrong  flaw
	trace  []string
	full   bool // every state within the bounds was visited
}

// log prints how it came to this.
func (f *found) log(t *testing.T) {
	t.Helper()
	for i, st := range f.trace {
		t.Logf("  %2d %s", i+1, st)
	}
}

// search visits every state breadth first, so that the first violation is one
// of the shortest. It stops there, or after limit states. States are told
// apart by 64 bits of their hash: with n states the odds that one was missed
// are about n²/2⁶⁵.
func (w *world) search(limit int) found {
	x := &searcher{w: w, seen: newTable(), limit: limit}
	first := w.start()
	w.tidy(&first)
	x.first = first
	if wrong := w.check(&first); wrong.kind != harmless {
		return found{wrong: wrong}
	}
	x.seen.add(hashOf(&first), 0)
	level := []state{first}
	depth := 0
	for ; len(level) > 0; depth++ {
		level = x.level(level)
		if bad := x.bad.Load(); bad != nil {
			return found{
				states: x.seen.len(), steps: int(x.steps.Load()), depth: depth + 1, wrong: bad.wrong,
				trace: append(x.trace(bad.from), bad.last.String()),
			}
		}
		if x.seen.len() > limit {
			return found{states: x.seen.len(), steps: int(x.steps.Load()), depth: depth + 1}
		}
	}
	return found{states: x.seen.len(), steps: int(x.steps.Load()), depth: depth - 1, full: true}
}

type searcher struct {
	w     *world
	first state
	seen  *table
	steps atomic.Int64
	limit int
	bad   atomic.Pointer[violation]
}

// violation is a step that leads to a bad state.
type violation struct {
	from  uint64 // hash of the state before
	last  step
	wrong flaw
}

// level expands all states of one depth and returns those of the next.
func (x *searcher) level(states []state) []state {
	const batch = 256
	var (
		wg    sync.WaitGroup
		taken atomic.Int64
		mu    sync.Mutex
		out   []state
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			var mine []state
			for x.bad.Load() == nil && x.seen.len() <= x.limit {
				end := int(taken.Add(batch))
				begin := end - batch
				if begin >= len(states) {
					break
				}
				for i := begin; i < min(end, len(states)); i++ {
					mine = x.expand(&states[i], mine)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, mine...)
		})
	}
	wg.Wait()
	return out
}

func (x *searcher) expand(s *state, out []state) []state {
	from := hashOf(s)
	x.w.next(s, func(st step, n *state) {
		x.steps.Add(1)
		h := hashOf(n)
		wrong := st.wrong
		if s.cameBack(n) {
			wrong = flawed(broken, "a ceased point came back")
		}
		if wrong.kind == harmless {
			if !x.seen.add(h, from) {
				return
			}
			wrong = x.w.check(n)
		}
		if wrong.kind == harmless && x.w.drainEvery > 0 && h%x.w.drainEvery == 0 {
			wrong = x.w.drain(*n)
		}
		if wrong.kind != harmless {
			x.bad.CompareAndSwap(nil, &violation{from: from, last: st, wrong: wrong})
			return
		}
		out = append(out, *n)
	})
	return out
}

// trace finds the steps that led to a state by replaying its ancestors.
func (x *searcher) trace(h uint64) []string {
	var line []uint64
	for ; h != hashOf(&x.first); h = x.seen.parent(h) {
		line = append(line, h)
	}
	var steps []string
	at := x.first
	for i := len(line) - 1; i >= 0; i-- {
		want, here := line[i], at
		x.w.next(&here, func(st step, n *state) {
			if hashOf(n) == want && at == here {
				at = *n
				steps = append(steps, st.String())
			}
		})
	}
	return steps
}

var seed = maphash.MakeSeed()

func hashOf(s *state) uint64 {
	if h := maphash.Comparable(seed, *s); h != 0 {
		return h
	}
	return 1
}

// table is a set of hashes, each with the hash that it was reached from.
type table struct {
	shards [256]shard
	n      atomic.Int64
}

type shard struct {
	mu    sync.Mutex
	used  int
	slots [][2]uint64
}

func newTable() *table {
	t := &table{}
	for i := range t.shards {
		t.shards[i].slots = make([][2]uint64, 64)
	}
	return t
}

func (t *table) len() int { return int(t.n.Load()) }

// add tells whether h is new.
func (t *table) add(h, from uint64) bool {
	s := &t.shards[h>>56]
	s.mu.Lock()
	defer s.mu.Unlock()
	slot := s.find(h)
	if slot[0] == h {
		return false
	}
	*slot = [2]uint64{h, from}
	s.used++
	t.n.Add(1)
	if s.used*4 > len(s.slots)*3 {
		old := s.slots
		s.slots = make([][2]uint64, 2*len(old))
		for _, e := range old {
			if e[0] != 0 {
				*s.find(e[0]) = e
			}
		}
	}
	return true
}

func (t *table) parent(h uint64) uint64 {
	s := &t.shards[h>>56]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.find(h)[1]
}

func (s *shard) find(h uint64) *[2]uint64 {
	mask := uint64(len(s.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		if e := &s.slots[i]; e[0] == h || e[0] == 0 {
			return e
		}
	}
}
