package job_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cairn/internal/errs"
	"cairn/internal/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rows is the queue's table in memory, with the contract's checks.
type rows struct {
	mu        sync.Mutex
	jobs      map[string]*job.Job
	order     []string
	saves     int                // of progress
	fail      func(string) error // per call, by its name; nil: none fails
	elsewhere string             // an owner that lives, in another process
	lose      map[string]int     // of how many next calls the answer is lost, by name
}

func newRows(jobs ...job.Job) *rows {
	s := &rows{jobs: map[string]*job.Job{}}
	for _, j := range jobs {
		s.insert(j)
	}
	return s
}

func (s *rows) insert(j job.Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.Status == "" {
		j.Status = job.Pending
	}
	s.jobs[j.ID] = &j
	s.order = append(s.order, j.ID)
}

func (s *rows) try(call string) error {
	if s.fail == nil {
		return nil
	}
	return s.fail(call)
}

func (s *rows) Load(_ context.Context, id string) (job.Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, ok := s.jobs[id]
	if !ok {
		return job.Job{}, errs.New(errs.NotFound, "job %s does not exist", id)
	}
	return *j, nil
}

func (s *rows) ClaimJob(_ context.Context, owner string, alive []string, now time.Time) (job.Job, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.try("claim"); err != nil {
		return job.Job{}, false, err
	}
	for _, id := range s.order {
		j := s.jobs[id]
		if j.Status == job.Pending || j.Status == job.Working && !slices.Contains(append(alive, s.elsewhere), j.Owner) {
			j.Status, j.Owner, j.Term = job.Working, owner, j.Term+1
			if j.BeginTime.IsZero() {
				j.BeginTime = now
			}
			if s.lose["claim"] > 0 {
				s.lose["claim"]--
				return job.Job{}, false, errors.New("connection reset")
			}
			return *j, true, nil
		}
	}
	return job.Job{}, false, nil
}

// own is the row if it is still term's.
func (s *rows) own(call, id string, term int64) (*job.Job, error) {
	if err := s.try(call); err != nil {
		return nil, err
	}
	if j := s.jobs[id]; j != nil && j.Term == term && !j.Status.Ended() {
		return j, nil
	}
	return nil, job.ErrFenced
}

func (s *rows) SaveProgress(_ context.Context, id string, term int64, p job.Progress) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, err := s.own("progress", id, term)
	if err != nil {
		return false, err
	}
	s.saves++
	j.Progress = p
	return j.CancelRequested, nil
}

func (s *rows) SaveState(_ context.Context, id string, term int64, state json.RawMessage, noCancel bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, err := s.own("state", id, term)
	if err != nil {
		return err
	}
	if noCancel && j.CancelRequested && !j.NoCancel {
		return job.ErrCancelled
	}
	j.State, j.NoCancel = state, j.NoCancel || noCancel
	return nil
}

func (s *rows) RequestCancel(_ context.Context, id string) (job.Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch j := s.jobs[id]; {
	case j == nil:
		return job.Job{}, errs.New(errs.NotFound, "job %s does not exist", id)
	case j.Status.Ended():
		return *j, job.ErrEnded
	case j.NoCancel:
		return *j, job.ErrNoCancel
	default:
		j.CancelRequested = true
		return *j, nil
	}
}

// finish is the end of a handler's last transaction.
func (s *rows) finish(id string, term int64, out job.Outcome) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, err := s.own("finish", id, term)
	if err != nil {
		return err
	}
	j.Status, j.Info, j.ErrorMessage, j.FinishedTime = out.Status, out.Info, out.ErrorMessage, out.Time
	return nil
}
