package crash_test

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/file"
)

// loss says what a power cut does to what was not synced.
type loss int

const (
	dropped loss = 0    // it is lost
	sector  loss = 512  // it is torn at that many bytes: some are there, some not
	page    loss = 4096 // likewise
	late    loss = -1   // a blob comes when the next process has done all that was left
)

func (l loss) String() string {
	switch l {
	case dropped:
		return "dropped"
	case late:
		return "late"
	}
	return fmt.Sprintf("torn at %d", int(l))
}

// TestCrash cuts the power before every durable operation of every history,
// and after the last. All states are kept while the history is carried out
// once; then another process starts on each of them. On some, it dies as well,
// before any of its own operations.
func TestCrash(t *testing.T) {
	var ops, trials, twice atomic.Int64
	t.Run("histories", func(t *testing.T) {
		for _, hist := range histories() {
			t.Run(hist.name, func(t *testing.T) {
				t.Parallel()
				states := record(t, hist)
				n, again := int64(0), int64(0)
				for i := range states {
					for _, l := range losses(states, i) {
						for seed := range seeds(l) {
							crash(t, states, i, l, seed)
							n++
						}
					}
					if i%12 == 5 || long() {
						again += crashTwice(t, states, i)
					}
				}
				t.Logf("%d durable operations, %d crashes, %d double ones", len(states)-1, n, again)
				ops.Add(int64(len(states) - 1))
				trials.Add(n)
				twice.Add(again)
			})
		}
	})
	t.Logf("%d histories, %d durable operations, %d crashes, %d double ones", len(histories()), ops.Load(), trials.Load(), twice.Load())
}

// seeds is how often a loss is drawn.
func seeds(l loss) int {
	if l > 0 && long() {
		return 2
	}
	return 1
}

// losses chooses how the i-th state is lost.
func losses(states []*state, i int) []loss {
	s := states[i]
	switch {
	case i == len(states)-1 || s.kind == onDisk && !s.disk.unsynced() || s.kind == onBlobs && s.put == nil:
		return []loss{dropped} // nothing is on its way that could be torn
	case long() && s.isPack():
		return []loss{dropped, sector, page, late}
	case long():
		return []loss{dropped, sector, page}
	case i%3 == 0 && s.isPack():
		return []loss{dropped, late}
	case i%2 == 0:
		return []loss{dropped, sector}
	}
	return []loss{dropped, page}
}

// record carries out a history and returns the states before each durable
// operation and after the last.
func record(t *testing.T, hist history) []*state {
	t.Helper()
	w := newWorld(t)
	w.disk.reflink = hist.reflink
	h := &hand{t: t, story: newStory(), strict: true}
	h.base(w, hist)
	h.rec = &recorder{w: w, story: h.story}
	h.start(w)
	hist.act(h)
	h.settle()
	return h.recorded()
}

// recorded stops the process and returns the states that were kept.
func (h *hand) recorded() []*state {
	h.t.Helper()
	h.rec.quietly(func() { h.rec.capture(onDisk, "nothing", nil) })
	h.p.stop()
	if h.rec.err != nil {
		h.t.Fatalf("keep the states: %v", h.rec.err)
	}
	if h.t.Failed() {
		h.t.FailNow()
	}
	return h.rec.states
}

// base brings a new world into the state in which the history begins.
func (h *hand) base(w *world, hist history) {
	h.t.Helper()
	if hist.base == nil {
		return
	}
	h.start(w)
	hist.base(h)
	h.settle()
	h.check()
	h.p.stop()
	if h.t.Failed() {
		h.t.FailNow()
	}
}

// start starts a process on the world.
func (h *hand) start(w *world) {
	h.t.Helper()
	w.t = h.t
	h.calm.Store(false)
	h.seen.Store(nil)
	var err error
	if h.p, err = w.start(h.rec); err != nil {
		h.t.Fatalf("start: %v\nlog:\n%s", err, h.p.log)
	}
}

// crash starts a process on what a power cut at the i-th state leaves.
func crash(t *testing.T, states []*state, i int, l loss, seed int) {
	t.Helper()
	t.Run(fmt.Sprintf("before op %d, %s", i, l), func(t *testing.T) {
		s := states[i]
		h := &hand{t: t, story: s.story.clone()}
		h.start(cut(t, states, i, l, seed))
		defer func() { h.p.stop() }()
		h.settle()
		if l == late {
			err := h.p.w.blobs.Put(ctx, s.next[len("put "):], s.put)
			if err != nil && !errors.Is(err, blobstore.ErrExists) { // a heal puts the same bytes under the same name again
				t.Fatal(err)
			}
		}
		h.afterCrash(s)
		if !t.Failed() {
			h.check()
			h.readBack(i)
			if l <= 0 || i%4 == 0 || long() {
				h.work(i + seed)
				h.clear()
				h.check()
			}
		}
		if t.Failed() {
			t.Logf("the power was cut before operation %d: %s (%s)", i, s.next, l)
		}
	})
}

// cut makes a world of what a power cut at the i-th state leaves.
func cut(t *testing.T, states []*state, i int, l loss, seed int) *world {
	t.Helper()
	name := fnv.New64a()
	fmt.Fprint(name, t.Name())
	rng := rand.New(rand.NewPCG(name.Sum64(), uint64(seed)))
	w, s := newWorld(t), *states[i]
	if l > 0 {
		// The index may be lost at any time, or older than all else.
		s.index = []map[string][]byte{s.index, states[0].index, nil}[rng.IntN(3)]
	}
	if err := s.lay(w); err != nil {
		t.Fatal(err)
	}
	w.disk.lose(max(int(l), 0), rng)
	if l > 0 && i+1 < len(states) {
		if err := tear(w, &s, states[i+1], int(l), rng); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// crashTwice lets the process that starts after a power cut die as well, before
// each of its operations in turn or before one of them.
func crashTwice(t *testing.T, states []*state, i int) (n int64) {
	t.Helper()
	t.Run(fmt.Sprintf("before op %d, and again", i), func(t *testing.T) {
		w := cut(t, states, i, dropped, 0)
		h := &hand{t: t, story: states[i].story.clone()}
		h.rec = &recorder{w: w, story: h.story}
		h.start(w)
		h.settle()
		second := h.recorded()
		for j := range second {
			if long() && (i+j)%4 == 0 || j == i*len(second)/len(states) {
				crash(t, second, j, dropped, 0)
				n++
			}
		}
	})
	return n
}

// afterCrash: a crash makes no job fail but those that could fail anyway, and
// no point a full that was to be none.
func (h *hand) afterCrash(s *state) {
	h.t.Helper()
	r, ok := h.look()
	if !ok {
		return
	}
	for _, d := range s.story.unfinished() {
		if j := r.asked[d.request]; j != nil && !d.mayFail && !good(j) {
			h.failed("%s failed because of the crash: %s", d, j.Info)
		}
	}
	for id, p := range r.points {
		if strings.Contains(p.Reason, "cannot be read") {
			h.failed("point %s is a full, because %s; but it can", id, p.Reason)
		}
	}
}

// tear makes of a world in state s, whose next operation leads to after, one
// in which that operation was cut off in the middle.
func tear(w *world, s, after *state, unit int, rng *rand.Rand) error {
	switch s.kind {
	case onRows:
		return tearRows(w, s, after, unit, rng)
	case onBlobs:
		return tearBlobs(w, s, unit, rng)
	}
	return nil // the disk's own loss is what was torn
}

// tearRows writes a part of what a transaction changed of the database's
// files. A log that is not whole leaves the database itself alone, and while
// that is written the log is whole.
func tearRows(w *world, s, after *state, unit int, rng *rand.Rand) error {
	db, wal := s.db, after.wal
	if bytes.Equal(s.db, after.db) || rng.IntN(2) == 0 {
		wal = tornBytes(s.wal, after.wal, unit, rng)
	} else {
		db = tornBytes(s.db, after.db, unit, rng)
	}
	for path, b := range map[string][]byte{w.database(): db, w.database() + "-wal": wal} {
		if b == nil {
			continue
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// tornBytes is old with some units of now in it; it may also end early.
func tornBytes(old, now []byte, unit int, rng *rand.Rand) []byte {
	out := make([]byte, max(len(old), len(now)))
	copy(out, old)
	end := len(old)
	for at := 0; at < len(now); at += unit {
		to := min(at+unit, len(now))
		if rng.IntN(3) > 0 && !bytes.Equal(out[at:to], now[at:to]) {
			copy(out[at:to], now[at:to])
			end = max(end, to)
		}
	}
	if rng.IntN(2) == 0 {
		end = len(out)
	}
	return out[:end]
}

// tearBlobs puts the blobs into a folder, as the file driver leaves it in the
// middle of a Put: a part of the bytes under a temp name or, when they are
// whole, under both names.
func tearBlobs(w *world, s *state, unit int, rng *rand.Rand) error {
	dir := filepath.Join(w.dir, "repo")
	store, err := file.Open(dir)
	if err != nil {
		return err
	}
	if err := s.copyBlobs(store); err != nil {
		return err
	}
	if err := store.Close(); err != nil {
		return err
	}
	if s.put != nil {
		temp, name := filepath.Join(dir, ".tmp", "put-1"), filepath.Join(dir, s.next[len("put "):])
		bytes, whole := tornBytes(nil, s.put, unit, rng), rng.IntN(3) == 0
		if whole {
			bytes = s.put
		}
		if err := os.WriteFile(temp, bytes, 0o600); err != nil {
			return err
		}
		if whole {
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				return err
			}
			if err := os.Link(temp, name); err != nil {
				return err
			}
		}
	}
	if store, err = file.Open(dir); err != nil {
		return err
	}
	w.t.Cleanup(func() { store.Close() })
	w.blobs = store
	return nil
}
