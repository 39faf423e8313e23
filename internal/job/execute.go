package job

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"cairn/internal/errs"
)

// execute takes one job through Do and, if that fails, Undo.
func (r *Runner) execute(t *task) {
	run := t.run
	defer func() {
		r.mu.Lock()
		delete(r.running, run.ID())
		delete(r.owners, run.Job().Owner)
		r.mu.Unlock()
		t.stop(nil)
	}()
	firstDone := func() {
		select {
		case <-t.first:
		default:
			close(t.first)
		}
	}
	defer firstDone()

	out := run.undoing()
	if out == nil {
		cause := r.do(t)
		if cause == nil || r.over(t, cause) {
			return
		}
		run.Log.Warn("job stopped; undoing it", "error", cause)
		o := r.opts.OutcomeOf(run.Job(), cause)
		out = &o
	} else {
		run.Log.Info("going on undoing the job")
	}
	wait := r.opts.UndoBackoff
	for {
		err := r.undo(t, *out)
		if err == nil || r.over(t, err) {
			return
		}
		firstDone()
		run.Log.Error("undo a job; will try again", "error", err, "after", wait)
		if !r.pause(t, wait) {
			return
		}
		wait = min(2*wait, 64*r.opts.UndoBackoff)
	}
}

// do runs the handler and returns what stopped it. nil: the job has ended.
func (r *Runner) do(t *task) error {
	run := t.run
	j := run.Job()
	handler := r.handlers[j.Action]
	switch {
	case t.bad != nil:
		return t.bad
	case handler == nil:
		return errs.New(errs.Internal, "this server does not know how to carry out %s", j.Action)
	case j.CancelRequested && !j.NoCancel:
		return ErrCancelled
	}
	do := handler.Do
	if t.do != nil {
		do = t.do
	}
	run.Log.Info("job begins")
	stop := r.watch(t)
	err := guard(func() error { return do(t.ctx, run) })
	stop()
	if err != nil {
		return failure(t.ctx, err)
	}
	return r.ended(context.WithoutCancel(t.ctx), t)
}

// ended publishes the end of a job whose handler says it has ended.
func (r *Runner) ended(ctx context.Context, t *task) error {
	j, err := r.opts.Load(ctx, t.run.ID())
	if err != nil {
		// It has ended as far as we know. Only the news is lost, unless the
		// row says otherwise: then the next claim finds it working.
		t.run.Log.Error("read the ended job", "error", err)
		return nil
	}
	if !j.Status.Ended() {
		return errNoEnd
	}
	t.run.Log.Info("job ended", "status", j.Status, "info", j.Info, "took", j.FinishedTime.Sub(j.BeginTime))
	r.broker.Publish(j)
	return nil
}

// over reports whether err means that this run has nothing more to do with
// the job: the process stops, somebody else has it, or it has ended.
func (r *Runner) over(t *task, err error) bool {
	if t.root.Err() != nil || errors.Is(err, errShutdown) {
		t.run.Log.Info("job interrupted by the stop; it goes on after the next start")
		return true
	}
	if !errors.Is(err, ErrFenced) {
		return false
	}
	// An unknown outcome of the last transaction looks like a fence, too: the
	// row tells which it is.
	j, loadErr := r.opts.Load(t.root, t.run.ID())
	switch {
	case loadErr != nil:
		t.run.Log.Error("read the job after it was fenced", "error", loadErr)
		return false
	case j.Status.Ended():
		t.run.Log.Info("job had ended", "status", j.Status)
		r.broker.Publish(j)
		return true
	case j.Owner != t.run.Job().Owner || j.Term != t.run.Term():
		t.run.Log.Warn("job was taken over", "by", j.Owner, "at", j.Term)
		return true
	}
	return false // still ours: what is left of it is to be undone
}

// undo makes one try to take the job back.
func (r *Runner) undo(t *task, out Outcome) error {
	handler := r.handlers[t.run.Job().Action]
	if handler == nil {
		return fmt.Errorf("no handler for %s", t.run.Job().Action)
	}
	if t.run.undoing() == nil {
		if err := t.run.saveUndoing(t.root, out); err != nil {
			return fmt.Errorf("note that the job goes back: %w", err)
		}
	}
	out.Time = r.opts.Clock()
	if err := guard(func() error { return handler.Undo(t.root, t.run, out) }); err != nil {
		return err
	}
	return r.ended(context.WithoutCancel(t.root), t)
}

// pause waits without holding a slot; false: the process stops.
func (r *Runner) pause(t *task, wait time.Duration) bool {
	err := t.run.Aside(func() error {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-t.root.Done():
			return t.root.Err()
		case <-timer.C:
			return nil
		}
	})
	return err == nil
}

// watch writes the progress down until stop is called, and cancels the run
// when the row says so.
func (r *Runner) watch(t *task) (stop func()) {
	const pollEvery = 4 // ticks between two looks at the row of a job that does not move
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(r.opts.Flush)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			cancel, err := t.run.flush(context.WithoutCancel(t.ctx), n%pollEvery == 0)
			switch {
			case errors.Is(err, ErrFenced):
				t.cancel(ErrFenced)
			case err != nil:
				t.run.Log.Warn("save progress", "error", err)
			case cancel:
				t.cancel(ErrCancelled)
			}
		}
	}()
	return func() { close(quit); <-done }
}

// guard turns a handler's panic into an error, so that one bad job leaves the
// process and the other jobs alone.
func guard(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errs.Wrap(errs.Internal, fmt.Errorf("panic: %v\n%s", p, debug.Stack()),
				"the server hit a fault of its own while doing this; its log has the details under the job's id")
		}
	}()
	return fn()
}
