package job

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
)

// Handler carries out one kind of job. One handler serves any number of jobs
// at once.
type Handler interface {
	// Do carries the job out from the top; what an earlier term has done
	// already is in the run's state and in the rows. Its last transaction
	// changes the objects and ends the job (FinishJob) together. After an
	// error nothing may have been ended: Undo follows. ctx ends on cancel,
	// on shutdown and when the job was taken over.
	Do(ctx context.Context, run *Run) error

	// Undo takes back what Do, in this term or an earlier one, has begun,
	// and ends the job with out in the transaction that says so. It is tried
	// until it succeeds, across restarts, because a half-undone job must not
	// look ended. If it finds the job ended already it returns ErrFenced.
	Undo(ctx context.Context, run *Run, out Outcome) error
}

// notes is what the State column holds: the handler's own notes and whether
// the job is on its way back.
type notes struct {
	Notes   json.RawMessage `json:"notes,omitempty"`
	Undoing *Outcome        `json:"undoing,omitempty"`
}

// Run is one term of one job, as its handler sees it. Any number of
// goroutines may use it.
type Run struct {
	Log *slog.Logger // carries the job's ids

	store Store
	slot  func() (retake func()) // gives the worker's slot back; nil: has none

	mu       sync.Mutex // guards the rest
	job      Job        // as claimed, with the state as saved since
	state    notes
	progress Progress
	saved    Progress // the row's
}

func newRun(store Store, j Job, log *slog.Logger) (*Run, error) {
	r := &Run{store: store, job: j, Log: log, saved: j.Progress}
	var err error
	r.state, err = j.notes()
	return r, err
}

// Job is the job as it was claimed.
func (r *Run) Job() Job {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.job
}

// Aside lets other jobs be worked on in this one's place while wait does nothing
// but wait for somebody. It may return later than wait, when a place is free.
func (r *Run) Aside(wait func() error) error {
	if r.slot != nil {
		retake := r.slot()
		defer retake()
	}
	return wait()
}

// ID is the job's id.
func (r *Run) ID() string { return r.Job().ID }

// Term is the claim under which this run may write.
func (r *Run) Term() int64 { return r.Job().Term }

// Params decodes the use case's input.
func (r *Run) Params(v any) error {
	if err := json.Unmarshal(r.Job().Params, v); err != nil {
		return fmt.Errorf("read the parameters of job %s: %w", r.ID(), err)
	}
	return nil
}

// Progress notes durable bytes. It is cheap: a ticker writes it down. Done
// never falls and never passes total.
func (r *Run) Progress(done, total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if done > total {
		done = total
	}
	r.progress.TotalBytes = total
	r.progress.DoneBytes = min(max(r.progress.DoneBytes, done), total)
}

// LoadState decodes the handler's notes into v, which stays as it is if there
// are none yet.
func (r *Run) LoadState(v any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.decode(r.job.ID, v)
}

func (n notes) decode(id string, v any) error {
	if len(n.Notes) == 0 {
		return nil
	}
	if err := json.Unmarshal(n.Notes, v); err != nil {
		return fmt.Errorf("read the notes of job %s: %w", id, err)
	}
	return nil
}

func (j Job) notes() (n notes, err error) {
	if len(j.State) > 0 {
		if err := json.Unmarshal(j.State, &n); err != nil {
			return n, fmt.Errorf("read the state of job %s: %w", j.ID, err)
		}
	}
	return n, nil
}

// SaveState makes the handler's notes durable. With noCancel the job is past
// its point of no return; ErrCancelled says that a cancel came first, and
// ErrFenced that the job is not ours any more.
func (r *Run) SaveState(ctx context.Context, v any, noCancel bool) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write the notes of job %s: %w", r.ID(), err)
	}
	r.mu.Lock()
	next := r.state
	r.mu.Unlock()
	next.Notes = raw
	return r.save(ctx, next, noCancel)
}

// SaveStateWith makes the handler's notes durable in a transaction of the
// caller's, which commit runs: it stores raw for the job and whatever belongs to
// that. The job must be past its point of no return.
func (r *Run) SaveStateWith(v any, commit func(id string, term int64, raw json.RawMessage) error) error {
	notes, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write the notes of job %s: %w", r.ID(), err)
	}
	r.mu.Lock()
	next, j := r.state, r.job
	r.mu.Unlock()
	next.Notes = notes
	raw, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("write the state of job %s: %w", j.ID, err)
	}
	if err := commit(j.ID, j.Term, raw); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state, r.job.State = next, raw
	return nil
}

// saveUndoing makes durable that the job goes back, and how it will end.
func (r *Run) saveUndoing(ctx context.Context, out Outcome) error {
	r.mu.Lock()
	next := r.state
	r.mu.Unlock()
	next.Undoing = &out
	return r.save(ctx, next, false)
}

func (r *Run) save(ctx context.Context, next notes, noCancel bool) error {
	raw, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("write the state of job %s: %w", r.ID(), err)
	}
	j := r.Job()
	if err := r.store.SaveState(ctx, j.ID, j.Term, raw, noCancel); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state, r.job.State = next, raw
	r.job.NoCancel = r.job.NoCancel || noCancel
	return nil
}

func (r *Run) undoing() *Outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.Undoing
}

func (r *Run) live() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.progress
}

// Flush makes the progress durable before the job's last transaction, after
// which nothing more can be written.
func (r *Run) Flush(ctx context.Context) error {
	_, err := r.flush(ctx, false)
	return err
}

// flush writes the progress if it changed, or anyway if poll is set, and
// reports whether a cancel was asked for.
func (r *Run) flush(ctx context.Context, poll bool) (cancel bool, err error) {
	r.mu.Lock()
	p, same, j := r.progress, r.progress == r.saved, r.job
	r.mu.Unlock()
	if same && !poll {
		return false, nil
	}
	cancel, err = r.store.SaveProgress(ctx, j.ID, j.Term, p)
	if err == nil {
		r.mu.Lock()
		r.saved = p
		r.mu.Unlock()
	}
	return cancel, err
}
