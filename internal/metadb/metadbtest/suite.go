// Package metadbtest is the suite that every service.Store passes.
//
// Run checks each sentence of the contract in service.Store, service.Tx and
// job.Store; RunDurable what must outlive a closed and reopened database.
package metadbtest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

// Run runs the suite. open gives an empty store; Run closes it.
func Run(t *testing.T, open func(t *testing.T) service.Store) {
	tests := []struct {
		name string
		run  func(t *testing.T, s service.Store)
	}{
		{"transactions roll back on error", testRollback},
		{"transactions are serializable", testSerializable},
		{"views see one snapshot", testViewSnapshot},
		{"times keep microseconds", testTimes},
		{"volumes", testVolumes},
		{"volume lists", testVolumeList},
		{"machines", testMachines},
		{"images", testImages},
		{"snapshots", testSnapshots},
		{"snapshot lists", testSnapshotList},
		{"snapshot search", testSnapshotSearch},
		{"chains and heads", testChainsAndHeads},
		{"live points", testLivePoints},
		{"snapshot lists against a model", testListModel},
		{"jobs", testJobs},
		{"job lists", testJobList},
		{"job claims", testClaims},
		{"job fencing", testFencing},
		{"job cancel", testCancel},
		{"job state in a transaction", testSaveJobState},
		{"job ends", testFinish},
		{"locks", testLocks},
		{"pins", testPins},
		{"sessions", testSessions},
		{"packs", testPacks},
		{"recycle bin", testRecycleBin},
		{"settings", testSettings},
		{"changes for the journal", testChanges},
		{"fields that the journal keeps", testChangedFields},
		{"rows by id", testRowsAfter},
		{"many at once", testConcurrent},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			tt.run(t, s)
		})
	}
}

// base is the moment that the tests' times count from.
var base = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

func at(seconds int) time.Time { return base.Add(time.Duration(seconds) * time.Second) }

func update(t testing.TB, s service.Store, fn func(tx service.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatalf("update: %v", err)
	}
}

func view(t testing.TB, s service.Store, fn func(tx service.Tx) error) {
	t.Helper()
	if err := s.View(t.Context(), fn); err != nil {
		t.Fatalf("view: %v", err)
	}
}

func equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// kind checks an error's kind and that its sentence names the object.
func kind(t testing.TB, err error, k errs.Kind, name string) {
	t.Helper()
	if !errs.Is(err, k) {
		t.Errorf("got error %v, want kind %v", err, k)
		return
	}
	if msg := errs.Message(err); !contains(msg, name) {
		t.Errorf("message %q does not name %q", msg, name)
	}
}

func is(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
}

func volume(id string, created int) service.Volume {
	return service.Volume{
		ID: id, Zone: "ac1", Name: "name of " + id, Driver: "managed", SizeBytes: 1 << 30,
		Status: service.VolumeAvailable, CreateTime: at(created), StatusTime: at(created),
	}
}

func snapshot(id string, created int) service.Snapshot {
	return service.Snapshot{
		Point: chain.Point{
			ID: id, ResourceID: "vol-A", RootID: id, Full: true, Status: chain.Available,
			VirtualSize: 1 << 30, SizeBytes: 4096, SnapshotTime: at(created),
		},
		Zone: "ac1", Name: "name of " + id, CreateTime: at(created), StatusTime: at(created),
	}
}

func pendingJob(id string, created int) job.Job {
	return job.Job{ID: id, Action: job.CreateSnapshots, Zone: "ac1", Status: job.Pending, CreateTime: at(created)}
}

var errTest = errors.New("the test's own error")

func testRollback(t *testing.T, s service.Store) {
	err := s.Update(t.Context(), func(tx service.Tx) error {
		must(t, tx.InsertVolume(volume("vol-A", 0)))
		must(t, tx.InsertSnapshot(snapshot("ss-A", 0)))
		must(t, tx.InsertJob(pendingJob("job-A", 0)))
		must(t, tx.Lock("job-A", "vol-A"))
		must(t, tx.Pin("job-A", "ss-A"))
		must(t, tx.PutSession(service.Session{ID: "job-A", Term: 1, State: service.SessionActive}))
		must(t, tx.SetSetting("k", "v"))
		return errTest
	})
	if err != errTest {
		t.Errorf("Update returned %v, want fn's error as it is", err)
	}
	assertEmpty(t, s)

	func() {
		defer func() {
			if recover() == nil {
				t.Error("Update swallowed a panic")
			}
		}()
		_ = s.Update(t.Context(), func(tx service.Tx) error {
			must(t, tx.InsertVolume(volume("vol-A", 0)))
			panic("the test's own panic")
		})
	}()
	assertEmpty(t, s)
}

// assertEmpty checks that nothing is there, and that the store still works.
func assertEmpty(t *testing.T, s service.Store) {
	t.Helper()
	view(t, s, func(tx service.Tx) error {
		_, err := tx.Volume("", "vol-A")
		kind(t, err, errs.NotFound, "vol-A")
		_, err = tx.Snapshot("", "ss-A")
		kind(t, err, errs.NotFound, "ss-A")
		_, err = tx.Job("job-A")
		kind(t, err, errs.NotFound, "job-A")
		_, total, err := tx.Snapshots(service.SnapshotFilter{Zone: "ac1", Limit: 10})
		must(t, err)
		equal(t, "snapshots", total, 0)
		holders, err := tx.Holders()
		must(t, err)
		equal(t, "holders", len(holders), 0)
		_, ok, err := tx.Session("job-A")
		must(t, err)
		equal(t, "session there", ok, false)
		v, err := tx.Setting("k")
		must(t, err)
		equal(t, "setting", v, "")
		return nil
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testSerializable lets writers read and then write one value: a lost update
// would show as a number too small.
func testSerializable(t *testing.T, s service.Store) {
	const writers, rounds = 4, 20
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range rounds {
				err := s.Update(t.Context(), func(tx service.Tx) error {
					v, err := tx.Setting("n")
					if err != nil {
						return err
					}
					n := 0
					if v != "" {
						if _, err := fmt.Sscan(v, &n); err != nil {
							return err
						}
					}
					return tx.SetSetting("n", fmt.Sprint(n+1))
				})
				if err != nil {
					t.Errorf("update: %v", err)
				}
			}
		})
	}
	wg.Wait()
	view(t, s, func(tx service.Tx) error {
		v, err := tx.Setting("n")
		equal(t, "sum of all updates", v, fmt.Sprint(writers*rounds))
		return err
	})
}

func testViewSnapshot(t *testing.T, s service.Store) {
	update(t, s, func(tx service.Tx) error { return tx.SetSetting("k", "old") })
	view(t, s, func(tx service.Tx) error {
		before, err := tx.Setting("k")
		must(t, err)
		// A writer is neither held up by the View nor seen by it.
		update(t, s, func(tx service.Tx) error { return tx.SetSetting("k", "new") })
		after, err := tx.Setting("k")
		must(t, err)
		equal(t, "values in one view", []string{before, after}, []string{"old", "old"})
		return nil
	})
	if err := s.View(t.Context(), func(service.Tx) error { return errTest }); err != errTest {
		t.Errorf("View returned %v, want fn's error as it is", err)
	}
}

func testTimes(t *testing.T, s service.Store) {
	local := time.FixedZone("elsewhere", 3600)
	v := volume("vol-A", 0)
	v.CreateTime = base.Add(789 * time.Nanosecond).In(local)
	v.StatusTime = time.Time{}
	update(t, s, func(tx service.Tx) error { return tx.InsertVolume(v) })
	view(t, s, func(tx service.Tx) error {
		got, err := tx.Volume("ac1", "vol-A")
		must(t, err)
		if !got.CreateTime.Equal(base) || got.CreateTime.Location() != time.UTC {
			t.Errorf("create time %v, want %v in UTC", got.CreateTime, base)
		}
		if !got.StatusTime.IsZero() {
			t.Errorf("unset time became %v", got.StatusTime)
		}
		return nil
	})
}

func testSettings(t *testing.T, s service.Store) {
	read := func() (v string) {
		view(t, s, func(tx service.Tx) (err error) { v, err = tx.Setting("key"); return err })
		return v
	}
	equal(t, "never set", read(), "")
	for _, v := range []string{"one", "two 'quoted' ä", ""} {
		update(t, s, func(tx service.Tx) error { return tx.SetSetting("key", v) })
		equal(t, "set", read(), v)
	}
}

// testConcurrent mixes readers and writers; every Update must get its turn.
func testConcurrent(t *testing.T, s service.Store) {
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 10 {
				id := fmt.Sprintf("ss-%d-%d", w, i)
				if err := s.Update(t.Context(), func(tx service.Tx) error {
					return tx.InsertSnapshot(snapshot(id, i))
				}); err != nil {
					t.Errorf("insert %s: %v", id, err)
				}
				if err := s.View(t.Context(), func(tx service.Tx) error {
					rows, total, err := tx.Snapshots(service.SnapshotFilter{Zone: "ac1", Limit: 1000})
					if err == nil && len(rows) != total {
						t.Errorf("%d rows but a total of %d in one view", len(rows), total)
					}
					return err
				}); err != nil {
					t.Errorf("list: %v", err)
				}
			}
		})
	}
	wg.Wait()
	view(t, s, func(tx service.Tx) error {
		_, total, err := tx.Snapshots(service.SnapshotFilter{Zone: "ac1"})
		equal(t, "snapshots", total, 80)
		return err
	})
}
