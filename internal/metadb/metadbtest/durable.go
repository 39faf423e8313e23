package metadbtest

import (
	"testing"

	"cairn/internal/job"
	"cairn/internal/service"
)

// RunDurable checks that what an Update answered for is there after the store
// was closed and opened again. open opens what lies in dir, empty at first.
func RunDurable(t *testing.T, open func(t *testing.T, dir string) service.Store) {
	dir := t.TempDir()
	s := open(t, dir)
	j := pendingJob("job-A", 0)
	update(t, s, func(tx service.Tx) error {
		must(t, tx.InsertVolume(volume("vol-A", 0)))
		must(t, tx.InsertSnapshot(snapshot("ss-A", 0)))
		must(t, tx.InsertJob(j))
		must(t, tx.Lock("job-A", "vol-A"))
		must(t, tx.Pin("job-A", "ss-A"))
		must(t, tx.PutSession(service.Session{ID: "job-A", Term: 1, State: service.SessionActive}))
		must(t, tx.InsertPack(service.Pack{ID: "aa", Session: "job-A", Term: 1, State: service.PackLive}))
		return tx.SetSetting("k", "v")
	})
	left, last := changes(t, s), lastChange(t, s)
	claimed, _ := claim(t, s, "p1", 1, "p1")
	if err := s.Update(t.Context(), func(tx service.Tx) error {
		must(t, tx.SetSetting("k", "rolled back"))
		return errTest
	}); err != errTest {
		t.Fatalf("update: %v", err)
	}
	for range 2 { // the second time nothing may have come or gone
		must(t, s.Close())
		s = open(t, dir)
		view(t, s, func(tx service.Tx) error {
			v, err := tx.Volume("ac1", "vol-A")
			must(t, err)
			equal(t, "volume", v, volume("vol-A", 0))
			p, err := tx.Snapshot("ac1", "ss-A")
			must(t, err)
			equal(t, "snapshot", p, snapshot("ss-A", 0))
			rows, total, err := tx.Snapshots(service.SnapshotFilter{Zone: "ac1", Limit: 10, Search: "ss-a"})
			must(t, err)
			equal(t, "list", []int{len(rows), total}, []int{1, 1})
			holder, _, err := tx.LockedBy("vol-A")
			must(t, err)
			equal(t, "lock", holder, "job-A")
			_, holder, _, err = tx.Pinned("ss-A")
			must(t, err)
			equal(t, "pin", holder, "job-A")
			ps, err := tx.PacksOf("job-A")
			must(t, err)
			equal(t, "packs", len(ps), 1)
			set, err := tx.Setting("k")
			must(t, err)
			equal(t, "setting", set, "v")
			return nil
		})
		equal(t, "changes for the journal", names(changes(t, s)), []string{"2 vol-A", "1 ss-A"})
		equal(t, "their numbers", changes(t, s), left)
		equal(t, "the last number", lastChange(t, s), last)
		equal(t, "job", readJob(t, s, "job-A"), claimed)
	}
	// A new process takes over what the old one left working.
	next, ok := claim(t, s, "p2", 2, "p2")
	equal(t, "found", ok, true)
	equal(t, "taken over", []any{next.ID, next.Term, next.Owner, next.Status}, []any{"job-A", int64(2), "p2", job.Working})
	must(t, s.Close())
}
