package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"cairn/internal/errs"
	"cairn/internal/job"
)

// submit writes a job and what build changes in one transaction, and wakes a
// worker. build returns the job's parameters.
func (s *Service) submit(ctx context.Context, o Origin, action job.Action, build func(tx Tx, j *job.Job) (params any, err error)) (job.Job, error) {
	j, err := s.runner.Enqueue(func() (job.Job, error) { return s.insertJob(ctx, s.newJob(o, action), build) })
	if err == nil {
		s.log.Info("job accepted", "job", j.ID, "action", j.Action, "request", j.RequestID, "resources", j.ResourceIDs)
	}
	return j, err
}

func (s *Service) newJob(o Origin, action job.Action) job.Job {
	return job.Job{
		ID: newUUID(), Action: action, Zone: o.Zone, RequestID: o.RequestID,
		Status: job.Pending, CreateTime: s.now(),
	}
}

func (s *Service) insertJob(ctx context.Context, j job.Job, build func(tx Tx, j *job.Job) (any, error)) (job.Job, error) {
	err := s.store.Update(ctx, func(tx Tx) error {
		params, err := build(tx, &j)
		if err != nil {
			return err
		}
		if j.Params, err = json.Marshal(params); err != nil {
			return fmt.Errorf("write the parameters of job %s: %w", j.ID, err)
		}
		return tx.InsertJob(j)
	})
	return j, err
}

// finish ends a job in the transaction of its last change, and releases all
// that it locked and pinned.
func (s *Service) finish(tx Tx, run *job.Run, out job.Outcome) error {
	if err := release(tx, run.ID()); err != nil {
		return err
	}
	if out.Time.IsZero() {
		out.Time = s.now()
	}
	return tx.FinishJob(run.ID(), run.Term(), out)
}

// outcomeOf is how a job ends that was stopped by cause.
func outcomeOf(_ job.Job, cause error) job.Outcome {
	if errors.Is(cause, job.ErrCancelled) {
		return failed(errs.Conflict, "the job was cancelled; what it had begun was undone")
	}
	return failed(errs.KindOf(cause), errs.Message(cause))
}

// failed ends a job with a sentence, and the error that the wire makes of it.
func failed(k errs.Kind, info string) job.Outcome {
	return job.Outcome{
		Status: job.Failed, Info: info,
		ErrorCode: wireCode(k), ErrorMessage: fmt.Sprintf("%s, %s", k, info),
	}
}

// wireCode is the code of API.md §5 that a failed job shows.
func wireCode(k errs.Kind) int {
	switch k {
	case errs.Invalid, errs.TooLarge:
		return 1100
	case errs.Denied, errs.Conflict, errs.Busy:
		return 1400
	case errs.NotFound:
		return 2100
	case errs.Exists:
		return 2110
	case errs.Quota:
		return 2500
	case errs.Unavailable, errs.Full:
		return 5100
	case errs.Depends:
		return 5400
	default: // Internal, Corrupt
		return 5000
	}
}

// loadJob reads a job's row.
func (s *Service) loadJob(ctx context.Context, id string) (j job.Job, err error) {
	err = s.store.View(ctx, func(tx Tx) error {
		j, err = tx.Job(id)
		return err
	})
	return j, err
}

// Job reads a job, whatever its zone, with its progress of this moment.
func (s *Service) Job(ctx context.Context, id string) (job.Job, error) {
	j, err := s.loadJob(ctx, id)
	return s.live(j), err
}

// live puts the progress of this moment into a job that runs here.
func (s *Service) live(j job.Job) job.Job {
	if j.Status == job.Working {
		if p, ok := s.runner.Live(j.ID); ok {
			j.Progress = p
		}
	}
	return j
}

// Jobs lists jobs, newest first.
func (s *Service) Jobs(ctx context.Context, f JobFilter) (JobPage, error) {
	var page JobPage
	err := s.store.View(ctx, func(tx Tx) (err error) {
		page.Jobs, page.Total, err = tx.Jobs(f)
		return err
	})
	for i := range page.Jobs {
		page.Jobs[i] = s.live(page.Jobs[i])
	}
	return page, err
}

// UnfinishedJobs lists all pending and working jobs of a zone, newest first.
func (s *Service) UnfinishedJobs(ctx context.Context, zone string) ([]job.Job, error) {
	if err := s.checkZone(zone); err != nil {
		return nil, err
	}
	const step = 500
	jobs := []job.Job{}
	err := s.store.View(ctx, func(tx Tx) error {
		f := JobFilter{Zone: zone, Statuses: []job.Status{job.Pending, job.Working}, Limit: step}
		for {
			rows, _, err := tx.Jobs(f)
			if err != nil {
				return err
			}
			jobs = append(jobs, rows...)
			if len(rows) < step {
				return nil
			}
			f.Offset += step
		}
	})
	for i := range jobs {
		jobs[i] = s.live(jobs[i])
	}
	return jobs, err
}

// CancelJob asks a job to stop. It is undone, and ends as failed, soon after.
func (s *Service) CancelJob(ctx context.Context, id string) (job.Job, error) {
	j, err := s.store.RequestCancel(ctx, id)
	switch {
	case errors.Is(err, job.ErrEnded):
		return j, errs.Wrap(errs.Conflict, err, "job %s has ended already; there is nothing to cancel", id)
	case errors.Is(err, job.ErrNoCancel):
		return j, errs.Wrap(errs.Conflict, err, "job %s can no longer be cancelled, because it has begun to change data that it could not put back", id)
	case err != nil:
		return j, err
	}
	s.log.Info("cancel requested", "job", id)
	s.runner.Cancel(id)
	return s.live(j), nil
}

// Subscribe is a feed of jobs as they were after each status change. It is
// closed when ctx ends; a reader that lags loses the oldest changes.
func (s *Service) Subscribe(ctx context.Context) <-chan job.Job { return s.runner.Subscribe(ctx) }
