package job

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

// ErrFenced says that the job or session was taken over or ended meanwhile:
// stop at once and change nothing more.
var ErrFenced = errors.New("the job was taken over or ended")

// Outcome ends a job.
type Outcome struct {
	Status       Status // Successful or Failed
	Info         string
	Extra        string
	ErrorCode    int
	ErrorMessage string
	Time         time.Time
}

// Store is what the workers need of the database. Every call is one
// transaction of its own.
type Store interface {
	// ClaimJob gives owner the oldest claimable job: a pending one, or a
	// working one of an owner that is not among alive. It sets working,
	// owner, term+1 and, the first time, BeginTime. ok=false: none.
	ClaimJob(ctx context.Context, owner string, alive []string, now time.Time) (j Job, ok bool, err error)
	// SaveProgress writes progress; ErrFenced if term is not the row's. It
	// also reports whether somebody asked to cancel.
	SaveProgress(ctx context.Context, id string, term int64, p Progress) (cancel bool, err error)
	// SaveState writes the handler's notes; noCancel only ever goes to true,
	// and going there fails with ErrCancelled if a cancel was asked for first.
	SaveState(ctx context.Context, id string, term int64, state json.RawMessage, noCancel bool) error
	// RequestCancel marks a job that has not ended. ErrNoCancel: it is past
	// its point of no return; ErrEnded: it has ended; errs.NotFound: unknown.
	RequestCancel(ctx context.Context, id string) (Job, error)
}

// ErrCancelled says that a cancel was asked for before this step.
var ErrCancelled = errors.New("the job was cancelled")

// ErrNoCancel says that the job cannot be cancelled any more.
var ErrNoCancel = errors.New("the job can no longer be cancelled")

// ErrEnded says that the job has ended already.
var ErrEnded = errors.New("the job has ended")
