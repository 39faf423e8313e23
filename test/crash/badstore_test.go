package crash_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"cairn/internal/blobstore/faulty"
	"cairn/internal/job"
	"cairn/internal/service"
)

// rowsPlan decides what happens to the n-th call of the database. Its error is
// what the caller gets.
type rowsPlan func(n int, what string) (faulty.Outcome, error)

// badStore is a database whose calls fail by plan, as faulty.Store is for
// blobs. A call that fails before never begins; one that fails after was
// committed, and its answer is lost.
type badStore struct {
	below service.Store

	mu    sync.Mutex // guards what follows
	plan  rowsPlan
	calls int
	names []string
}

func (s *badStore) setPlan(plan rowsPlan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan, s.calls, s.names = plan, 0, nil
}

func (s *badStore) call(what string, fn func() error) error {
	s.mu.Lock()
	s.calls++
	n := s.calls
	s.names = append(s.names, what)
	o, cause := faulty.Pass, error(nil)
	if s.plan != nil {
		o, cause = s.plan(n, what)
	}
	s.mu.Unlock()
	switch o {
	case faulty.FailBefore:
		return fmt.Errorf("%s, call %d, not done: %w", what, n, cause)
	case faulty.FailAfter:
		if err := fn(); err != nil {
			return err
		}
		return fmt.Errorf("%s, call %d, done: %w", what, n, cause)
	}
	return fn()
}

func (s *badStore) View(ctx context.Context, fn func(tx service.Tx) error) error {
	return s.call("View", func() error { return s.below.View(ctx, fn) })
}

func (s *badStore) Update(ctx context.Context, fn func(tx service.Tx) error) error {
	return s.call("Update", func() error { return s.below.Update(ctx, fn) })
}

func (s *badStore) ClaimJob(ctx context.Context, owner string, alive []string, now time.Time) (j job.Job, ok bool, err error) {
	err = s.call("ClaimJob", func() error {
		j, ok, err = s.below.ClaimJob(ctx, owner, alive, now)
		return err
	})
	return j, ok, err
}

func (s *badStore) SaveProgress(ctx context.Context, id string, term int64, p job.Progress) (cancel bool, err error) {
	err = s.call("SaveProgress", func() error {
		cancel, err = s.below.SaveProgress(ctx, id, term, p)
		return err
	})
	return cancel, err
}

func (s *badStore) SaveState(ctx context.Context, id string, term int64, state json.RawMessage, noCancel bool) error {
	return s.call("SaveState", func() error { return s.below.SaveState(ctx, id, term, state, noCancel) })
}

func (s *badStore) RequestCancel(ctx context.Context, id string) (j job.Job, err error) {
	err = s.call("RequestCancel", func() error {
		j, err = s.below.RequestCancel(ctx, id)
		return err
	})
	return j, err
}

func (s *badStore) Close() error { return s.below.Close() }
