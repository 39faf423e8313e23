package metadbtest

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/internal/chain"
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

	testPackStates(t, s)
	update(t, s, func(tx service.Tx) error { return tx.DeletePacks("ee", "unknown", "aa") })
	update(t, s, func(tx service.Tx) error { return tx.DeletePacks() })
	equal(t, "deleted", len(of("job-B")), 0)
	equal(t, "the others stay", all(), []string{"bb", "dd"})
}

// testPackStates knows the packs of testPacks: aa, bb, dd of a committed
// session, ee of an aborted one.
func testPackStates(t *testing.T, s service.Store) {
	states := func() map[string]string {
		got := map[string]string{}
		view(t, s, func(tx service.Tx) error {
			return tx.AllPacks(func(p service.Pack, session service.SessionState) error {
				got[p.ID] = string(p.State) + " " + string(session)
				_, err := tx.Setting("k") // fn may use the transaction
				return err
			})
		})
		return got
	}
	equal(t, "all packs", states(), map[string]string{
		"aa": "LIVE COMMITTED", "bb": "LIVE COMMITTED", "dd": "LIVE COMMITTED", "ee": "LIVE ABORTED"})
	change := func(id string, fn func(p *service.Pack)) {
		update(t, s, func(tx service.Tx) error {
			p, ok, err := tx.Pack(id)
			equal(t, "pack "+id+" is there", ok, true)
			must(t, err)
			fn(&p)
			return tx.UpdatePack(p)
		})
	}
	at := time.Unix(1700000000, 5000).UTC()
	change("bb", func(p *service.Pack) {
		p.State, p.Condemned, p.Stamped, p.Damaged, p.Verified = service.PackCondemned, 7, 8, true, at
	})
	change("dd", func(p *service.Pack) { p.State = service.PackDeleting })
	view(t, s, func(tx service.Tx) error {
		p, _, err := tx.Pack("bb")
		must(t, err)
		equal(t, "every column", []any{p.State, p.Condemned, p.Stamped, p.Damaged, p.Verified, p.Bytes},
			[]any{service.PackCondemned, int64(7), int64(8), true, at, int64(1 << 25)})
		_, ok, err := tx.Pack("zz")
		equal(t, "an unknown pack", ok, false)
		must(t, err)
		leaving, err := tx.LeavingPacks()
		must(t, err)
		equal(t, "leaving", []string{leaving[0].ID, leaving[1].ID}, []string{"bb", "dd"})
		verify, err := tx.PacksToVerify(10)
		must(t, err)
		var ids []string
		for _, p := range verify {
			ids = append(ids, p.ID)
		}
		equal(t, "longest not verified first, none that is being deleted or was never committed", ids, []string{"aa", "bb"})
		return nil
	})
	err := s.Update(t.Context(), func(tx service.Tx) error { return tx.UpdatePack(service.Pack{ID: "zz", Session: "job-A"}) })
	kind(t, err, errs.NotFound, "zz")
	stray := service.Pack{ID: "st", Kind: "data", Name: "data/st", Session: "job-A", State: service.PackDeleting}
	update(t, s, func(tx service.Tx) error { return tx.PutLeavingPack(stray) })
	err = s.Update(t.Context(), func(tx service.Tx) error { return tx.PutLeavingPack(stray) })
	kind(t, err, errs.Exists, "st")
	live := stray
	live.ID, live.State = "li", service.PackLive
	if err := s.Update(t.Context(), func(tx service.Tx) error { return tx.PutLeavingPack(live) }); err == nil {
		t.Error("a LIVE pack was taken in without a session")
	}
	update(t, s, func(tx service.Tx) error {
		must(t, tx.DeletePacks("st"))
		return tx.PutSession(service.Session{ID: "job-open", Term: 4, State: service.SessionActive})
	})
	view(t, s, func(tx service.Tx) error {
		open, err := tx.ActiveSessions()
		equal(t, "active sessions", open, []service.Session{{ID: "job-open", Term: 4, State: service.SessionActive}})
		return err
	})
	change("bb", func(p *service.Pack) { p.State = service.PackLive })
	change("dd", func(p *service.Pack) { p.State = service.PackLive })
}

func testRecycleBin(t *testing.T, s service.Store) {
	for i, id := range []string{"ss-A", "ss-B", "ss-C", "ss-D"} {
		p := service.Snapshot{Zone: "ac1", Name: id, BinClock: int64(10 * i)}
		p.ID, p.ResourceID, p.RootID, p.Status, p.Full = id, "vol-A", id, chain.Deleted, true
		if id == "ss-D" {
			p.Status = chain.Available
		}
		update(t, s, func(tx service.Tx) error { return tx.InsertSnapshot(p) })
	}
	expired := func(clock int64, limit int) (ids []string) {
		view(t, s, func(tx service.Tx) error {
			rows, err := tx.ExpiredPoints(clock, limit)
			for _, r := range rows {
				ids = append(ids, r.ID)
			}
			return err
		})
		return ids
	}
	equal(t, "longest deleted first", expired(10, 10), []string{"ss-A", "ss-B"})
	equal(t, "limit", expired(99, 1), []string{"ss-A"})
	equal(t, "only deleted ones", expired(99, 10), []string{"ss-A", "ss-B", "ss-C"})
	equal(t, "none yet", len(expired(-1, 10)), 0)
	update(t, s, func(tx service.Tx) error {
		must(t, tx.SetUnique("ss-D", 12345))
		return tx.SetUnique("ss-GONE", 1) // one that is gone is passed over
	})
	view(t, s, func(tx service.Tx) error {
		p, err := tx.Snapshot("", "ss-D")
		equal(t, "unique bytes", []any{p.UniqueBytes, p.UniqueKnown}, []any{int64(12345), true})
		return err
	})
}
