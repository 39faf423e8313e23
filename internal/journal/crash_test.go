package journal_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"testing"
	"time"

	"cairn/internal/blobstore/faulty"
)

// seeds of the histories that are crashed at every operation.
func crashSeeds(t *testing.T) []uint64 {
	seeds := []uint64{rand.Uint64()}
	if os.Getenv("CAIRN_LONG") == "1" {
		seeds = append(seeds, 1, 2, 3)
	}
	t.Logf("seeds %v", seeds)
	return seeds
}

// lived is one history of updates, with the rows after each.
type lived struct {
	states []state // states[0]: before the first update
	safe   int     // index of the last state that was answered while the journal worked
}

// live runs a history of steps until the store is dead or the end.
func (w *world) live(h *history, steps int, dead func() bool) lived {
	w.t.Helper()
	l := lived{states: []state{w.rows()}}
	for range steps {
		w.update(h.step)
		l.states = append(l.states, w.rows())
		if !dead() {
			l.safe = len(l.states) - 1
		}
	}
	return l
}

// among fails the test unless got is a state from the last safe one on.
func (l lived) among(w *world, what string, got state) {
	w.t.Helper()
	for _, s := range l.states[l.safe:] {
		if reflect.DeepEqual(got, s) {
			return
		}
	}
	w.same(what, got, l.states[l.safe])
}

// At whichever Put or Delete the power goes, done or not: the journal holds a
// state of the database, and none older than what was answered. The next
// process goes on from there and leaves no blob behind that counts for nothing.
func TestCrashes(t *testing.T) {
	t.Parallel() // it mostly waits for the disk
	const steps = 16
	runs := 0
	for _, seed := range crashSeeds(t) {
		for n := 1; ; n++ {
			alive := 0
			for _, whole := range []bool{false, true} {
				runs++
				t.Run(fmt.Sprintf("seed %d, call %d, done %v", seed, n, whole), func(t *testing.T) {
					if !crashAt(t, seed, steps, n, whole) {
						alive++
					}
				})
				if t.Failed() {
					return
				}
			}
			if alive == 2 {
				break
			}
		}
	}
	t.Logf("%d crashes", runs)
}

// crashAt reports whether the history came as far as the n-th durable call.
func crashAt(t *testing.T, seed uint64, steps, n int, whole bool) bool {
	w := newWorld(t)
	w.conf.RetryDelay = time.Hour // the dead stay dead
	crash := faulty.Crash(n, whole)
	died := make(chan struct{})
	w.store = faulty.New(w.mem, func(c faulty.Call) (faulty.Outcome, error) {
		o, err := crash(c)
		if o != faulty.Pass {
			select {
			case <-died:
			default:
				close(died)
			}
		}
		return o, err
	})
	dead := func() bool {
		select {
		case <-died:
			return true
		default:
			return false
		}
	}
	w.open()
	h := newHistory(seed)
	l := w.live(h, steps, dead)
	l.among(w, "right after the crash", w.replay())
	l.among(w, "recovered right after the crash", w.recover(false).undamaged())
	w.close()
	l.among(w, "after the end of the process", w.replay())
	// The machine is back.
	hit := dead()
	w.store, w.conf.RetryDelay = w.mem, time.Millisecond
	w.open()
	w.same("after the next start", w.replay(), w.rows())
	for range 3 {
		w.update(h.step)
		w.same("and after a change", w.replay(), w.rows())
	}
	w.close()
	w.tidy()
	return hit
}

// An error at any one call, also one after the call was done, is overcome.
func TestErrors(t *testing.T) {
	t.Parallel()
	const steps = 16
	runs := 0
	for _, seed := range crashSeeds(t) {
		for n := 1; ; n++ {
			calls := 0
			for _, o := range []faulty.Outcome{faulty.FailBefore, faulty.FailAfter} {
				runs++
				t.Run(fmt.Sprintf("seed %d, call %d, done %v", seed, n, o == faulty.FailAfter), func(t *testing.T) {
					calls = errorAt(t, seed, steps, n, o)
				})
				if t.Failed() {
					return
				}
			}
			if n > calls {
				break
			}
		}
	}
	t.Logf("%d errors", runs)
}

func errorAt(t *testing.T, seed uint64, steps, n int, o faulty.Outcome) (calls int) {
	w := newWorld(t)
	f := faulty.New(w.mem, faulty.Once(n, faulty.Any, o))
	w.store = f
	err := w.tryOpen()
	if errors.Is(err, faulty.ErrInjected) {
		// What cannot be read cannot be compared; the operator tries again.
		err = w.tryOpen()
	}
	if err != nil {
		t.Fatal(err)
	}
	h := newHistory(seed)
	for range steps {
		w.update(h.step)
	}
	for end := time.Now().Add(time.Minute); !reflect.DeepEqual(w.replay(), w.rows()) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	// A blob whose Put failed may be there all the same, and make it equal before
	// the journal is written again; while it is, the log is behind once more.
	rows := w.rows()
	w.close()
	w.same("in the end", w.replay(), rows)
	calls = f.Counts().Calls
	w.store = w.mem
	w.open()
	w.close()
	w.tidy()
	return calls
}
