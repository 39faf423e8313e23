package journal_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/journal"
	"cairn/internal/service"
)

// After every change, every restart and through many summaries the journal
// holds what the database does.
func TestJournalFollowsTheDatabase(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newWorld(t)
	w.open()
	h, r := newHistory(seed), rand.New(rand.NewPCG(seed, 2))
	for range 150 {
		w.update(h.step)
		w.same("after an update", w.replay(), w.rows())
		if r.IntN(12) == 0 {
			w.close()
			w.tidy()
			w.open()
			w.same("after a restart", w.replay(), w.rows())
		}
	}
	w.close()
	w.tidy()
	// A part holds three rows; the log is cut at six blobs, or soon after.
	if n, rows := len(w.blobs()), h.n; n > rows/3+30 {
		t.Errorf("%d blobs for at most %d rows: the log was not cut", n, rows)
	}
}

// A change that no row keeps writes nothing.
func TestNothingToKeep(t *testing.T) {
	w := newWorld(t)
	var b *blocking
	w.wrap = func(l journal.Log) journal.Log { b = &blocking{Log: l}; return b }
	w.open()
	defer w.close()
	w.update(func(tx service.Tx) error {
		if err := tx.SetSetting("k", "v"); err != nil {
			return err
		}
		return tx.InsertSnapshot(point("ss-P"))
	})
	errTest := errors.New("the test's own")
	if err := w.s.Update(t.Context(), func(tx service.Tx) error {
		if err := tx.InsertVolume(volumeRow("vol-A")); err != nil {
			return err
		}
		return errTest
	}); err != errTest {
		t.Errorf("got %v", err)
	}
	if n := b.count(); n != 0 {
		t.Errorf("%d blobs were put", n)
	}
}

// Neither the answer to a change nor a look at it comes before the change is
// in the repository.
func TestNothingIsShownBeforeItIsSafe(t *testing.T) {
	w := newWorld(t)
	var b *blocking
	w.wrap = func(l journal.Log) journal.Log { b = &blocking{Log: l, began: make(chan struct{}, 1)}; return b }
	w.open()
	defer w.close()
	let := make(chan struct{})
	b.set(let, nil)
	updated, seen := make(chan error, 1), make(chan error, 1)
	go func() {
		updated <- w.s.Update(context.Background(), func(tx service.Tx) error { return tx.InsertVolume(volumeRow("vol-A")) })
	}()
	<-b.began // committed, and on its way to the repository
	go func() {
		seen <- w.s.View(context.Background(), func(tx service.Tx) error {
			_, err := tx.Volume("", "vol-A")
			return err
		})
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := w.s.View(ctx, func(service.Tx) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a look that gave up: %v", err)
	}
	select {
	case err := <-updated:
		t.Errorf("answered too early: %v", err)
	case err := <-seen:
		t.Errorf("shown too early: %v", err)
	default:
	}
	close(let)
	if err := errors.Join(<-updated, <-seen); err != nil {
		t.Error(err)
	}
	w.same("at the answer", w.replay(), w.rows())
}

// Changes that come while a blob is being put go into the next one together.
func TestChangesShareABlob(t *testing.T) {
	w := newWorld(t)
	w.conf.PageRows, w.conf.SummaryBlobs = 1000, 1000
	var b *blocking
	w.wrap = func(l journal.Log) journal.Log { b = &blocking{Log: l, began: make(chan struct{}, 1)}; return b }
	w.open()
	defer w.close()
	let := make(chan struct{})
	b.set(let, nil)
	const n = 50
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := w.s.Update(context.Background(), func(tx service.Tx) error { return tx.InsertVolume(volumeRow(fmt.Sprint("vol-", i))) }); err != nil {
				t.Error(err)
			}
		})
	}
	<-b.began
	for w.committed() < n {
		time.Sleep(time.Millisecond)
	}
	close(let)
	wg.Wait()
	w.same("in the end", w.replay(), w.rows())
	if puts := b.count(); puts > 2 {
		t.Errorf("%d changes took %d blobs", n, puts)
	}
}

// A repository that cannot be written delays nothing but the journal, which
// catches up by itself, and with the next change.
func TestARepositoryThatFails(t *testing.T) {
	w := newWorld(t)
	w.conf.RetryDelay = time.Hour
	var b *blocking
	w.wrap = func(l journal.Log) journal.Log { b = &blocking{Log: l}; return b }
	w.open()
	b.set(nil, errs.New(errs.Full, "no space"))
	for i := range 3 {
		w.update(func(tx service.Tx) error { return tx.InsertVolume(volumeRow(fmt.Sprint("vol-", i))) })
	}
	if got := w.replay(); len(got) != 0 {
		t.Errorf("the journal has %v", ids(got))
	}
	b.set(nil, nil)
	w.update(func(tx service.Tx) error { return tx.InsertVolume(volumeRow("vol-next")) })
	w.same("with the next change", w.replay(), w.rows())

	// Not even at the end, and then at the next start.
	b.set(nil, errs.New(errs.Full, "no space"))
	w.update(func(tx service.Tx) error { return tx.InsertVolume(volumeRow("vol-last")) })
	w.close()
	w.open()
	w.same("at the start", w.replay(), w.rows())
	w.close()

	// By itself.
	w.conf.RetryDelay = time.Millisecond
	w.open()
	defer w.close()
	b.set(nil, errs.New(errs.Full, "no space"))
	w.update(func(tx service.Tx) error { return tx.InsertVolume(volumeRow("vol-late")) })
	b.set(nil, nil)
	for len(w.replay()) < len(w.rows()) {
		time.Sleep(time.Millisecond)
	}
	w.same("by itself", w.replay(), w.rows())
}

// A server that starts beside a full repository serves all the same.
func TestARepositoryThatFailsAtTheStart(t *testing.T) {
	w := newWorld(t)
	w.open()
	w.update(func(tx service.Tx) error { return tx.InsertVolume(volumeRow("vol-A")) })
	w.close()
	w.bare(func(s service.Store) {
		// As an earlier program left it: rows that no journal knows of.
		if err := s.Update(t.Context(), func(tx service.Tx) error {
			if err := tx.InsertVolume(volumeRow("vol-B")); err != nil {
				return err
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
	w.conf.RetryDelay = time.Hour
	var b *blocking
	w.wrap = func(l journal.Log) journal.Log {
		b = &blocking{Log: l, fail: errs.New(errs.Full, "no space")}
		return b
	}
	w.open()
	defer w.close()
	if w.s.Refusal() != "" {
		t.Error(w.s.Refusal())
	}
	b.set(nil, nil)
	w.update(func(tx service.Tx) error { return tx.InsertVolume(volumeRow("vol-C")) })
	w.same("later", w.replay(), w.rows())
}

// A database from before there was a journal is written to it whole.
func TestADatabaseWithoutAJournal(t *testing.T) {
	w := newWorld(t)
	w.bare(func(s service.Store) {
		h := newHistory(1)
		for range 40 {
			if err := s.Update(t.Context(), h.step); err != nil {
				t.Fatal(err)
			}
		}
		// It left no changes then.
		if err := s.Update(t.Context(), func(tx service.Tx) error {
			n, err := tx.LastChange()
			if err != nil {
				return err
			}
			return tx.ForgetChanges(n)
		}); err != nil {
			t.Fatal(err)
		}
	})
	w.open()
	w.same("after the first start", w.replay(), w.rows())
	w.update(func(tx service.Tx) error { return tx.InsertVolume(volumeRow("vol-next")) })
	w.same("after a change", w.replay(), w.rows())
	w.close()
	w.tidy()
}
