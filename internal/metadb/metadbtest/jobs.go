package metadbtest

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

func insertJobs(t testing.TB, s service.Store, jobs ...job.Job) {
	t.Helper()
	update(t, s, func(tx service.Tx) error {
		for _, j := range jobs {
			if err := tx.InsertJob(j); err != nil {
				return err
			}
		}
		return nil
	})
}

func readJob(t testing.TB, s service.Store, id string) (j job.Job) {
	t.Helper()
	view(t, s, func(tx service.Tx) (err error) { j, err = tx.Job(id); return err })
	return j
}

func testJobs(t *testing.T, s service.Store) {
	full := job.Job{
		ID: "job-A", Action: job.ImportVolume, Zone: "ac1", RequestID: "req", Status: job.Working,
		CreateTime: at(1), BeginTime: at(2), FinishedTime: at(3), Info: "i'nfo", Extra: "extra",
		ResourceIDs: []string{"vol-B", "vol-A"}, Progress: job.Progress{DoneBytes: 5, TotalBytes: 9},
		ErrorCode: 5000, ErrorMessage: "em", Params: json.RawMessage(`{"b": 1,"a":"ä'"}`), State: json.RawMessage(`[1]`),
		CancelRequested: true, NoCancel: true, Owner: "me", Term: 7,
	}
	plain := pendingJob("job-B", 0)
	insertJobs(t, s, full, plain)
	equal(t, "stored job", readJob(t, s, "job-A"), full)
	got := readJob(t, s, "job-B")
	equal(t, "no resources", len(got.ResourceIDs), 0)
	if got.Params != nil || got.State != nil {
		t.Errorf("no JSON became %q and %q", got.Params, got.State)
	}
	kind(t, s.Update(t.Context(), func(tx service.Tx) error { return tx.InsertJob(plain) }), errs.Exists, "job-B")
	err := s.View(t.Context(), func(tx service.Tx) error { _, err := tx.Job("job-X"); return err })
	kind(t, err, errs.NotFound, "job-X")
}

func testJobList(t *testing.T, s service.Store) {
	mk := func(id string, created int, st job.Status, resources ...string) job.Job {
		j := pendingJob(id, created)
		j.Status, j.ResourceIDs = st, resources
		return j
	}
	other := mk("Z", 9, job.Pending)
	other.Zone = "ac2"
	insertJobs(t, s, mk("A", 0, job.Successful, "vol-A", "vol-B"), mk("B", 1, job.Failed, "vol-B"),
		mk("D", 2, job.Pending, "vol-A"), mk("C", 2, job.Working), other)
	unfinished := []job.Status{job.Pending, job.Working}
	for _, tt := range []struct {
		name  string
		f     service.JobFilter
		want  string
		total int
	}{
		{"every zone, newest first, then id", service.JobFilter{}, "Z C D B A", 5},
		{"zone", service.JobFilter{Zone: "ac1"}, "C D B A", 4},
		{"page", service.JobFilter{Zone: "ac1", Offset: 1, Limit: 2}, "D B", 4},
		{"past the end", service.JobFilter{Offset: 5}, "", 5},
		{"unfinished", service.JobFilter{Statuses: unfinished}, "Z C D", 3},
		{"unfinished of a zone", service.JobFilter{Zone: "ac1", Statuses: unfinished}, "C D", 2},
		{"one status", service.JobFilter{Statuses: []job.Status{job.Failed}}, "B", 1},
		{"mixed statuses", service.JobFilter{Statuses: []job.Status{job.Failed, job.Working}}, "C B", 2},
		{"resource", service.JobFilter{Resource: "vol-A"}, "D A", 2},
		{"resource and status", service.JobFilter{Resource: "vol-B", Statuses: []job.Status{job.Failed}}, "B", 1},
		{"unknown resource", service.JobFilter{Resource: "vol-X"}, "", 0},
	} {
		if tt.f.Limit == 0 {
			tt.f.Limit = 10
		}
		view(t, s, func(tx service.Tx) error {
			rows, total, err := tx.Jobs(tt.f)
			ids := make([]string, len(rows))
			for i, r := range rows {
				ids[i] = r.ID
			}
			equal(t, tt.name, strings.Join(ids, " "), tt.want)
			equal(t, tt.name+": total", total, tt.total)
			return err
		})
	}
}

func claim(t testing.TB, s service.Store, owner string, now int, alive ...string) (job.Job, bool) {
	t.Helper()
	j, ok, err := s.ClaimJob(t.Context(), owner, alive, at(now))
	must(t, err)
	return j, ok
}

func testClaims(t *testing.T, s service.Store) {
	if j, ok := claim(t, s, "p1", 0, "p1"); ok {
		t.Errorf("claimed %s out of nothing", j.ID)
	}
	ended := pendingJob("job-0", 0)
	ended.Status = job.Successful
	first := pendingJob("job-2", 1)
	first.ResourceIDs = []string{"vol-A"}
	insertJobs(t, s, pendingJob("job-1", 2), pendingJob("job-3", 1), first, ended)

	j, ok := claim(t, s, "p1", 10, "p1")
	want := first
	want.Status, want.Owner, want.Term, want.BeginTime = job.Working, "p1", 1, at(10)
	equal(t, "found", ok, true)
	equal(t, "the oldest, then by id", j, want)
	equal(t, "as stored", readJob(t, s, "job-2"), want)
	j, _ = claim(t, s, "p2", 11, "p1", "p2")
	equal(t, "the next", j.ID, "job-3")
	j, _ = claim(t, s, "p2", 11, "p1", "p2")
	equal(t, "the newest last", j.ID, "job-1")

	if j, ok = claim(t, s, "p1", 12, "p1", "p2"); ok {
		t.Errorf("claimed %s although its owner lives", j.ID)
	}
	// p1 is gone: its job goes on under a new term, the begin time stays.
	j, ok = claim(t, s, "p2", 20, "p2")
	want.Owner, want.Term = "p2", 2
	equal(t, "found", ok, true)
	equal(t, "taken over", j, want)
	if j, ok = claim(t, s, "p2", 21); ok {
		t.Errorf("claimed %s from itself", j.ID)
	}
	testClaimRace(t, s)
}

// testClaimRace: a job is claimed once, whoever asks at the same time.
func testClaimRace(t *testing.T, s service.Store) {
	insertJobs(t, s, pendingJob("race-1", 30), pendingJob("race-2", 31), pendingJob("race-3", 32))
	var mu sync.Mutex
	got := make(map[string]int)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			j, ok, err := s.ClaimJob(t.Context(), "racer", []string{"p2"}, at(40))
			if err != nil {
				t.Errorf("claim: %v", err)
			}
			if ok {
				mu.Lock()
				defer mu.Unlock()
				got[j.ID]++
			}
		})
	}
	wg.Wait()
	equal(t, "claims", got, map[string]int{"race-1": 1, "race-2": 1, "race-3": 1})
}

func testFencing(t *testing.T, s service.Store) {
	ctx := t.Context()
	insertJobs(t, s, pendingJob("job-A", 0))
	_, err := s.SaveProgress(ctx, "job-X", 1, job.Progress{})
	kind(t, err, errs.NotFound, "job-X")
	kind(t, s.SaveState(ctx, "job-X", 1, nil, false), errs.NotFound, "job-X")

	claim(t, s, "p1", 1, "p1")
	cancel, err := s.SaveProgress(ctx, "job-A", 1, job.Progress{DoneBytes: 1, TotalBytes: 2})
	must(t, err)
	equal(t, "cancel", cancel, false)
	must(t, s.SaveState(ctx, "job-A", 1, json.RawMessage(`{"step":1}`), false))
	j := readJob(t, s, "job-A")
	equal(t, "progress", j.Progress, job.Progress{DoneBytes: 1, TotalBytes: 2})
	equal(t, "state", string(j.State), `{"step":1}`)

	claim(t, s, "p2", 2, "p2")
	_, err = s.SaveProgress(ctx, "job-A", 1, job.Progress{DoneBytes: 2, TotalBytes: 2})
	is(t, err, job.ErrFenced)
	is(t, s.SaveState(ctx, "job-A", 1, json.RawMessage(`{}`), true), job.ErrFenced)
	finish := func(term int64) error {
		return s.Update(ctx, func(tx service.Tx) error {
			must(t, tx.SetSetting("end", "seen"))
			return tx.FinishJob("job-A", term, job.Outcome{Status: job.Successful, Time: at(3)})
		})
	}
	is(t, finish(1), job.ErrFenced)
	is(t, finish(-1), job.ErrFenced)
	after := readJob(t, s, "job-A")
	equal(t, "a fenced worker changes nothing", []any{after.Progress, string(after.State), after.NoCancel, after.Status},
		[]any{j.Progress, string(j.State), false, job.Working})
	view(t, s, func(tx service.Tx) error {
		v, err := tx.Setting("end")
		equal(t, "nothing of its transaction stays", v, "")
		return err
	})

	must(t, finish(2))
	is(t, finish(2), job.ErrFenced)
	_, err = s.SaveProgress(ctx, "job-A", 2, job.Progress{})
	is(t, err, job.ErrFenced)
	is(t, s.SaveState(ctx, "job-A", 2, nil, false), job.ErrFenced)
}

func testCancel(t *testing.T, s service.Store) {
	ctx := t.Context()
	_, err := s.RequestCancel(ctx, "job-X")
	kind(t, err, errs.NotFound, "job-X")

	insertJobs(t, s, pendingJob("job-A", 0))
	j, err := s.RequestCancel(ctx, "job-A")
	must(t, err)
	equal(t, "pending job", []any{j.Status, j.CancelRequested}, []any{job.Pending, true})
	_, err = s.RequestCancel(ctx, "job-A")
	must(t, err)
	j, _ = claim(t, s, "p1", 1, "p1")
	equal(t, "a cancelled job is still claimed, to be undone", []any{j.ID, j.CancelRequested}, []any{"job-A", true})
	cancel, err := s.SaveProgress(ctx, "job-A", 1, job.Progress{})
	must(t, err)
	equal(t, "the worker hears of it", cancel, true)
	must(t, s.SaveState(ctx, "job-A", 1, json.RawMessage(`1`), false))
	is(t, s.SaveState(ctx, "job-A", 1, json.RawMessage(`2`), true), job.ErrCancelled)
	j = readJob(t, s, "job-A")
	equal(t, "refused step", []any{string(j.State), j.NoCancel}, []any{"1", false})
	update(t, s, func(tx service.Tx) error {
		return tx.FinishJob("job-A", 1, job.Outcome{Status: job.Failed, Time: at(2)})
	})
	_, err = s.RequestCancel(ctx, "job-A")
	is(t, err, job.ErrEnded)

	insertJobs(t, s, pendingJob("job-B", 0))
	claim(t, s, "p1", 1, "p1")
	must(t, s.SaveState(ctx, "job-B", 1, nil, true))
	must(t, s.SaveState(ctx, "job-B", 1, nil, false))
	equal(t, "noCancel never goes back", readJob(t, s, "job-B").NoCancel, true)
	_, err = s.RequestCancel(ctx, "job-B")
	is(t, err, job.ErrNoCancel)
	equal(t, "no cancel", readJob(t, s, "job-B").CancelRequested, false)
	testCancelRace(t, s)
}

// testCancelRace: of a cancel and the step past the point of no return that
// come together, exactly one is taken.
func testCancelRace(t *testing.T, s service.Store) {
	for range 10 {
		id := "race-" + strings.Repeat("x", 1+len(mustList(t, s)))
		j := pendingJob(id, 5)
		j.Status, j.Owner, j.Term = job.Working, "p1", 1
		insertJobs(t, s, j)
		var stepErr, cancelErr error
		var wg sync.WaitGroup
		wg.Go(func() { stepErr = s.SaveState(t.Context(), id, 1, nil, true) })
		wg.Go(func() { _, cancelErr = s.RequestCancel(t.Context(), id) })
		wg.Wait()
		if (stepErr == nil) == (cancelErr == nil) {
			t.Fatalf("step: %v, cancel: %v; want exactly one to be taken", stepErr, cancelErr)
		}
		got := readJob(t, s, id)
		equal(t, "stored", []bool{got.NoCancel, got.CancelRequested}, []bool{stepErr == nil, cancelErr == nil})
	}
}

func mustList(t testing.TB, s service.Store) (js []job.Job) {
	t.Helper()
	view(t, s, func(tx service.Tx) (err error) {
		js, _, err = tx.Jobs(service.JobFilter{Limit: 1000})
		return err
	})
	return js
}

func testFinish(t *testing.T, s service.Store) {
	finish := func(id string, term int64, out job.Outcome) error {
		return s.Update(t.Context(), func(tx service.Tx) error { return tx.FinishJob(id, term, out) })
	}
	out := job.Outcome{Status: job.Failed, Info: "why", Extra: "{}", ErrorCode: 5000, ErrorMessage: "m", Time: at(9)}
	kind(t, finish("job-X", 1, out), errs.NotFound, "job-X")

	waiting := pendingJob("job-A", 0)
	insertJobs(t, s, waiting)
	is(t, finish("job-A", 1, out), job.ErrFenced)
	if err := finish("job-A", -1, job.Outcome{Status: job.Working}); err == nil {
		t.Error("a job ended as working")
	}
	must(t, finish("job-A", -1, out))
	waiting.Status, waiting.Info, waiting.Extra, waiting.ErrorCode, waiting.ErrorMessage = job.Failed, "why", "{}", 5000, "m"
	waiting.FinishedTime = at(9)
	equal(t, "ended unclaimed", readJob(t, s, "job-A"), waiting)
	if j, ok := claim(t, s, "p1", 1, "p1"); ok {
		t.Errorf("an ended job %s was claimed", j.ID)
	}
	is(t, finish("job-A", -1, out), job.ErrFenced)
}
