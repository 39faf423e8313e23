package repo

import (
	"context"
	"fmt"
	"slices"
)

// JournalState says which blobs of the journal make its state.
type JournalState struct {
	Newest    JournalHead  // of the chain; Number 0: there is no journal
	NewestPos JournalPos   // of Newest
	Order     []JournalPos // blobs whose entries make the state, in order
	Leftovers []uint64     // blobs that are no part of it
	Problems  []JournalProblem
}

// JournalProblem is damage of the journal: what the blob held is not known.
type JournalProblem struct {
	Number uint64
	What   string // one sentence
}

// Blob names the blob without its copy suffix.
func (p JournalProblem) Blob() string { return journalPack(p.Number).Blob() }

// Whole reports whether the state is all that was ever written.
func (s *JournalState) Whole() bool { return len(s.Problems) == 0 }

// JournalState reads every head of the journal and finds its chain
// (FORMAT.md §11). Damage is in Problems; then Order holds what can be read.
// err says that it could not be told.
func (r *Repo) JournalState(ctx context.Context) (JournalState, error) {
	w := journalWalk{heads: make(map[uint64]JournalContent), bad: make(map[uint64]error)}
	blobs, err := r.JournalBlobs(ctx)
	if err != nil {
		return w.JournalState, err
	}
	for _, b := range blobs {
		c, err := r.ReadJournal(ctx, b.Number)
		switch {
		case err == nil:
			c.Entries = nil
			w.heads[b.Number] = c
		case isDamage(err):
			w.bad[b.Number] = err
		default:
			return w.JournalState, err
		}
		w.numbers = append(w.numbers, b.Number)
	}
	w.find()
	return w.JournalState, nil
}

// journalWalk looks for the chain among the heads.
type journalWalk struct {
	JournalState
	numbers []uint64 // ascending
	heads   map[uint64]JournalContent
	bad     map[uint64]error
	summary *JournalContent
}

func (w *journalWalk) problem(number uint64, format string, args ...any) {
	w.Problems = append(w.Problems, JournalProblem{number, fmt.Sprintf(format, args...)})
}

func (w *journalWalk) find() {
	if len(w.numbers) == 0 {
		return
	}
	tail, ok := w.below(w.numbers[len(w.numbers)-1] + 1)
	for _, n := range w.numbers {
		if w.bad[n] != nil && (!ok || n > tail.Pos.Number) {
			w.problem(n, "journal blob %d, newer than all that can be read, is missing or damaged in every copy", n)
		}
	}
	if !ok {
		if w.Whole() {
			w.problem(w.numbers[0], "the journal has only parts of summaries")
		}
		return
	}
	w.Newest, w.NewestPos = tail.Head, tail.Pos
	chain := w.walk(tail)
	used := map[uint64]bool{}
	if w.summary != nil {
		used[w.summary.Pos.Number] = true
		for _, p := range w.summary.Head.Parts {
			used[p.Number] = true
			if w.link(p, w.summary.Pos.Number, "has as a part") {
				w.Order = append(w.Order, p)
			}
		}
	}
	for _, c := range chain {
		used[c.Pos.Number] = true
		if c.Head.Kind == JournalChanges {
			w.Order = append(w.Order, c.Pos)
		}
	}
	for _, n := range w.numbers {
		if !used[n] && w.bad[n] == nil {
			w.Leftovers = append(w.Leftovers, n)
		}
	}
}

// walk follows the chain from its newest blob and returns it in order, without
// a batch at its end that is not complete.
func (w *journalWalk) walk(c JournalContent) []JournalContent {
	var chain []JournalContent // newest first
	for ok := true; ok; {
		chain = append(chain, c)
		if c.Head.Kind == JournalSummary && w.summary == nil {
			ck := c
			w.summary = &ck
		}
		c, ok = w.next(c)
	}
	for w.Whole() && len(chain) > 0 && chain[0].Head.More {
		chain = chain[1:]
	}
	slices.Reverse(chain)
	return chain
}

// next is the blob before c on the chain; false at its end. Where a link is
// broken it goes on with what is older.
func (w *journalWalk) next(c JournalContent) (JournalContent, bool) {
	prev := c.Head.Prev
	base := JournalPos{}
	if w.summary != nil {
		base = w.summary.Head.Base
	}
	switch {
	case prev == base && (w.summary != nil || prev.IsZero()):
		return c, false
	case prev.IsZero() || prev.Number >= c.Pos.Number || prev.Number <= base.Number:
		w.problem(c.Pos.Number, "journal blob %d goes on from %d, which cannot be right", c.Pos.Number, prev.Number)
		return c, false
	case w.link(prev, c.Pos.Number, "goes on from"):
		return w.heads[prev.Number], true
	}
	older, ok := w.below(prev.Number)
	return older, ok && older.Pos.Number > base.Number
}

// below is the newest readable changes or summary blob under a number.
func (w *journalWalk) below(number uint64) (JournalContent, bool) {
	for _, n := range slices.Backward(w.numbers) {
		if c, ok := w.heads[n]; ok && n < number && c.Head.Kind != JournalPart {
			return c, true
		}
	}
	return JournalContent{}, false
}

// link checks that the blob at p is there, and is the one that from means.
func (w *journalWalk) link(p JournalPos, from uint64, how string) bool {
	c, ok := w.heads[p.Number]
	switch {
	case w.bad[p.Number] != nil:
		w.problem(p.Number, "journal blob %d, which blob %d %s, is missing or damaged in every copy", p.Number, from, how)
	case !ok:
		w.problem(p.Number, "journal blob %d, which blob %d %s, is missing", p.Number, from, how)
	case c.Pos != p:
		w.problem(p.Number, "journal blob %d is not the one that blob %d %s", p.Number, from, how)
	default:
		return true
	}
	return false
}
