package metadbtest

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

func testLocks(t *testing.T, s service.Store) {
	lock := func(holder string, resources ...string) error {
		return s.Update(t.Context(), func(tx service.Tx) error { return tx.Lock(holder, resources...) })
	}
	holder := func(resource string) (h string) {
		view(t, s, func(tx service.Tx) error {
			got, ok, err := tx.LockedBy(resource)
			equal(t, "ok and holder agree", ok, got != "")
			h = got
			return err
		})
		return h
	}
	must(t, lock("j1", "vol-A", "ss-A"))
	equal(t, "held", holder("vol-A")+" "+holder("ss-A")+" "+holder("vol-B"), "j1 j1 ")
	must(t, lock("j1", "vol-A", "vol-C"))
	must(t, lock("j1"))

	err := lock("j2", "vol-B", "ss-A", "vol-A")
	kind(t, err, errs.Busy, "ss-A")
	if msg := errs.Message(err); !strings.HasSuffix(msg, "please try later") {
		t.Errorf("message %q does not end in %q", msg, "please try later")
	}
	// All or none, even in a transaction that goes on after the refusal.
	update(t, s, func(tx service.Tx) error {
		kind(t, tx.Lock("j2", "vol-B", "ss-A"), errs.Busy, "ss-A")
		return nil
	})
	equal(t, "none was taken", holder("vol-B"), "")

	update(t, s, func(tx service.Tx) error { return tx.Unlock("j1") })
	equal(t, "free", holder("vol-A")+holder("ss-A")+holder("vol-C"), "")
	update(t, s, func(tx service.Tx) error { return tx.Unlock("nobody") })
	must(t, lock("j2", "vol-B", "ss-A", "vol-A"))

	var wg sync.WaitGroup
	won := make([]bool, 6)
	for i := range won {
		wg.Go(func() { won[i] = lock(fmt.Sprintf("racer-%d", i), "vol-R1", "vol-R2") == nil })
	}
	wg.Wait()
	n := 0
	for _, w := range won {
		if w {
			n++
		}
	}
	equal(t, "winners of a race", n, 1)
	equal(t, "one holder of all", holder("vol-R1"), holder("vol-R2"))
}

func testPins(t *testing.T, s service.Store) {
	pinned := func(ids ...string) (out string) {
		view(t, s, func(tx service.Tx) error {
			id, holder, ok, err := tx.Pinned(ids...)
			if ok {
				out = id + " by " + holder
			}
			return err
		})
		return out
	}
	update(t, s, func(tx service.Tx) error {
		must(t, tx.Pin("j1", "ss-A", "ss-B"))
		must(t, tx.Pin("j1", "ss-A")) // again
		must(t, tx.Pin("j2", "ss-B", "ss-C"))
		return tx.Lock("j3", "vol-A")
	})
	equal(t, "none asked", pinned(), "")
	equal(t, "not pinned", pinned("ss-X"), "")
	equal(t, "pinned", pinned("ss-A"), "ss-A by j1")
	equal(t, "the first of those asked", pinned("ss-X", "ss-C", "ss-A"), "ss-C by j2")
	var many []string
	for i := range 2000 {
		many = append(many, fmt.Sprintf("ss-%d", i))
	}
	equal(t, "among many", pinned(append(many, "ss-C")...), "ss-C by j2")
	view(t, s, func(tx service.Tx) error {
		hs, err := tx.Holders()
		equal(t, "holders of locks and pins", hs, []string{"j1", "j2", "j3"})
		return err
	})
	update(t, s, func(tx service.Tx) error { return tx.Unpin("j1") })
	equal(t, "unpinned", pinned("ss-A"), "")
	equal(t, "pinned by another still", pinned("ss-B"), "ss-B by j2")
	update(t, s, func(tx service.Tx) error {
		must(t, tx.Unpin("j2"))
		return tx.Unlock("j3")
	})
	view(t, s, func(tx service.Tx) error {
		hs, err := tx.Holders()
		equal(t, "nobody holds anything", len(hs), 0)
		return err
	})
}

func testSessions(t *testing.T, s service.Store) {
	put := func(id string, term int64) error {
		return s.Update(t.Context(), func(tx service.Tx) error {
			return tx.PutSession(service.Session{ID: id, Term: term, State: service.SessionActive})
		})
	}
	cas := func(id string, term int64, to service.SessionState) (swapped bool) {
		update(t, s, func(tx service.Tx) (err error) { swapped, err = tx.CASSession(id, term, to); return err })
		return swapped
	}
	read := func(id string) (got service.Session) {
		view(t, s, func(tx service.Tx) error {
			var ok bool
			var err error
			got, ok, err = tx.Session(id)
			equal(t, "there", ok, got.ID != "")
			return err
		})
		return got
	}
	equal(t, "unknown", read("job-X"), service.Session{})
	equal(t, "swap of an unknown one", cas("job-X", 1, service.SessionCommitted), false)

	must(t, put("job-A", 1))
	must(t, put("job-A", 1)) // the same again
	must(t, put("job-A", 3))
	is(t, put("job-A", 2), job.ErrFenced)
	equal(t, "taken over", read("job-A"), service.Session{ID: "job-A", Term: 3, State: service.SessionActive})

	equal(t, "swap under an old term", cas("job-A", 1, service.SessionCommitted), false)
	equal(t, "swap", cas("job-A", 3, service.SessionCommitted), true)
	equal(t, "committed is final", cas("job-A", 3, service.SessionAborted), false)
	equal(t, "state", read("job-A").State, service.SessionCommitted)
	is(t, put("job-A", 4), job.ErrFenced)

	for i := range 5 {
		id := fmt.Sprintf("race-%d", i)
		must(t, put(id, 1))
		var committed, aborted bool
		var wg sync.WaitGroup
		wg.Go(func() { committed = cas(id, 1, service.SessionCommitted) })
		wg.Go(func() { aborted = cas(id, 1, service.SessionAborted) })
		wg.Wait()
		equal(t, "one way out", committed != aborted, true)
		want := service.SessionAborted
		if committed {
			want = service.SessionCommitted
		}
		equal(t, "state after the race", read(id).State, want)
	}
	must(t, put("job-B", 1))
	err := s.Update(t.Context(), func(tx service.Tx) error {
		_, err := tx.CASSession("job-B", 1, service.SessionActive)
		return err
	})
	if err == nil {
		t.Error("a session was moved to ACTIVE")
	}
}

func testPacks(t *testing.T, s service.Store) {
	pack := func(id, session string, term int64) service.Pack {
		return service.Pack{ID: id, Kind: "data", Name: "packs/" + id, Session: session, Term: term,
			State: service.PackLive, Born: 3, Stamped: 4, Bytes: 1 << 25}
	}
	insert := func(p service.Pack) error {
		return s.Update(t.Context(), func(tx service.Tx) error { return tx.InsertPack(p) })
	}
	session := func(id string, term int64) {
		update(t, s, func(tx service.Tx) error {
			return tx.PutSession(service.Session{ID: id, Term: term, State: service.SessionActive})
		})
	}
	end := func(id string, term int64, to service.SessionState) {
		update(t, s, func(tx service.Tx) error { _, err := tx.CASSession(id, term, to); return err })
	}
	of := func(session string) (ps []service.Pack) {
		view(t, s, func(tx service.Tx) (err error) { ps, err = tx.PacksOf(session); return err })
		return ps
	}
	all := func() (ids []string) {
		view(t, s, func(tx service.Tx) error {
			return tx.Packs(func(p service.Pack) error {
				ids = append(ids, p.ID)
				_, err := tx.Setting("k") // fn may use the transaction
				return err
			})
		})
		return ids
	}

	is(t, insert(pack("aa", "job-A", 1)), job.ErrFenced)
	session("job-A", 1)
	must(t, insert(pack("bb", "job-A", 1)))
	must(t, insert(pack("aa", "job-A", 1)))
	kind(t, insert(pack("aa", "job-A", 1)), errs.Exists, "aa")
	session("job-A", 2)
	is(t, insert(pack("cc", "job-A", 1)), job.ErrFenced)
	must(t, insert(pack("dd", "job-A", 2)))
	equal(t, "packs of all terms", of("job-A"), []service.Pack{pack("aa", "job-A", 1), pack("bb", "job-A", 1), pack("dd", "job-A", 2)})
	equal(t, "an open session's do not count", len(all()), 0)

	session("job-B", 1)
	must(t, insert(pack("ee", "job-B", 1)))
	end("job-A", 2, service.SessionCommitted)
	end("job-B", 1, service.SessionAborted)
	is(t, insert(pack("ff", "job-A", 2)), job.ErrFenced)
	is(t, insert(pack("ff", "job-B", 1)), job.ErrFenced)
	equal(t, "committed only", all(), []string{"aa", "bb", "dd"})
	err := s.View(t.Context(), func(tx service.Tx) error {
		return tx.Packs(func(service.Pack) error { return errTest })
	})
	if err != errTest {
		t.Errorf("Packs returned %v, want fn's error as it is", err)
	}

	update(t, s, func(tx service.Tx) error { return tx.DeletePacks("ee", "unknown", "aa") })
	update(t, s, func(tx service.Tx) error { return tx.DeletePacks() })
	equal(t, "deleted", len(of("job-B")), 0)
	equal(t, "the others stay", all(), []string{"bb", "dd"})
}
