package job

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"cairn/internal/errs"
)

// Options of a Runner. Zero values mean the defaults.
type Options struct {
	// Owner is this process: a random id made at each start. Each claim adds a
	// number. Required.
	Owner string
	// Load reads a job's row. Required.
	Load func(ctx context.Context, id string) (Job, error)
	// OutcomeOf turns what stopped a job into how it ends. Required.
	OutcomeOf func(j Job, cause error) Outcome

	Workers     int           // jobs that run at once; 4
	Poll        time.Duration // looks for jobs even if nobody calls Wake; 2 s
	Flush       time.Duration // between two writes of a job's progress; 500 ms
	UndoBackoff time.Duration // before the second try of an Undo; doubles up to 64 times this; 500 ms
	Clock       func() time.Time
	Log         *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Workers <= 0 {
		o.Workers = 4
	}
	if o.Poll <= 0 {
		o.Poll = 2 * time.Second
	}
	if o.Flush <= 0 {
		o.Flush = 500 * time.Millisecond
	}
	if o.UndoBackoff <= 0 {
		o.UndoBackoff = 500 * time.Millisecond
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

var (
	errShutdown = errors.New("the server is stopping")
	errNoEnd    = errors.New("the handler returned without ending its job")
)

// Runner claims jobs and runs their handlers. Its methods may be called by
// any number of goroutines; Run only once.
type Runner struct {
	store    Store
	handlers map[Action]Handler
	opts     Options
	broker   *Broker

	slots chan struct{} // one token per job that works now
	wake  chan struct{} // of length 1: look for jobs
	wg    sync.WaitGroup

	// gate keeps the order of what is published: a job is claimed only after
	// the Enqueue that committed it has published it as pending.
	gate sync.RWMutex

	mu      sync.Mutex // guards the rest
	running map[string]*current
	claims  int
	owners  map[string]bool // names under which a job is, or may get to be, ours
	stopped bool
}

// current is a job that this process has now.
type current struct {
	run    *Run
	cancel context.CancelCauseFunc // of Do
	stop   context.CancelCauseFunc // of Do and Undo: the process ends
}

// NewRunner makes a runner that does nothing until Run.
func NewRunner(store Store, handlers map[Action]Handler, opts Options) *Runner {
	opts = opts.withDefaults()
	return &Runner{
		store: store, handlers: handlers, opts: opts, broker: NewBroker(),
		slots: make(chan struct{}, opts.Workers), wake: make(chan struct{}, 1),
		running: map[string]*current{}, owners: map[string]bool{},
	}
}

// own makes a name to own one job under, until disown. As no two jobs have the
// same, one that became ours without our hearing of it, because the answer was
// lost, belongs to nobody who lives, and is claimed again.
func (r *Runner) own() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claims++
	name := fmt.Sprintf("%s/%d", r.opts.Owner, r.claims)
	r.owners[name] = true
	return name
}

func (r *Runner) disown(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.owners, name)
}

// alive lists all owners of this process.
func (r *Runner) alive() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.owners))
}

// Subscribe is the runner's feed of status changes; see Broker.Subscribe.
func (r *Runner) Subscribe(ctx context.Context) <-chan Job { return r.broker.Subscribe(ctx) }

// Enqueue publishes the job that commit has committed, and wakes a worker.
func (r *Runner) Enqueue(commit func() (Job, error)) (Job, error) {
	r.gate.RLock()
	j, err := commit()
	if err == nil {
		r.broker.Publish(j)
	}
	r.gate.RUnlock()
	if err == nil {
		r.Wake()
	}
	return j, err
}

// Wake makes the runner look for jobs now.
func (r *Runner) Wake() {
	select {
	case r.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Live is the progress of a job that runs in this process.
func (r *Runner) Live(id string) (Progress, bool) {
	r.mu.Lock()
	c, ok := r.running[id]
	r.mu.Unlock()
	if !ok {
		return Progress{}, false
	}
	return c.run.live(), true
}

// Cancel stops a job of this process whose row says that a cancel was asked
// for. Others notice when they are claimed or save their progress.
func (r *Runner) Cancel(id string) {
	r.mu.Lock()
	c, ok := r.running[id]
	r.mu.Unlock()
	if ok {
		c.cancel(ErrCancelled)
	}
	r.Wake()
}

// Run works until ctx ends, then stops all jobs and waits for them. Their
// rows stay working, and the next process claims them.
func (r *Runner) Run(ctx context.Context) {
	defer r.wg.Wait()
	defer func() {
		r.mu.Lock()
		r.stopped = true
		for _, c := range r.running {
			c.stop(errShutdown)
		}
		r.mu.Unlock()
	}()
	poll := time.NewTicker(r.opts.Poll)
	defer poll.Stop()
	for {
		for r.claimOne(ctx) {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-poll.C:
		}
	}
}

// claimOne starts one job if there is a free slot and a claimable job; false
// means to wait for a wake.
func (r *Runner) claimOne(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case r.slots <- struct{}{}:
	}
	owner := r.own()
	r.gate.Lock()
	j, ok, err := r.store.ClaimJob(ctx, owner, r.alive(), r.opts.Clock())
	r.gate.Unlock()
	if err != nil || !ok {
		r.disown(owner)
		if err != nil && ctx.Err() == nil {
			r.opts.Log.Error("claim a job", "error", err)
		}
		<-r.slots
		return false
	}
	r.broker.Publish(j)
	t, ok := r.admit(ctx, j)
	if !ok {
		r.disown(owner)
		<-r.slots
		return false
	}
	t.run.slot = func() func() { <-r.slots; return func() { r.slots <- struct{}{} } }
	go func() { //nolint:contextcheck // the task carries its contexts, which end at different times
		defer r.wg.Done()
		r.execute(t)
		<-r.slots
	}()
	return true
}

// Inline runs the job that insert has inserted as working, in its first term
// and owned by owner, with do in place of its handler's Do, in a goroutine that
// Run waits for. It returns when do, and the first try to undo it if it failed,
// are through. do stops when ctx ends. A job that was inserted although insert
// failed is left to its handler.
func (r *Runner) Inline(ctx context.Context, insert func(owner string) (Job, error), do func(ctx context.Context, run *Run) error) (Job, error) {
	owner := r.own()
	j, err := insert(owner)
	if err != nil {
		r.disown(owner)
		r.Wake()
		return Job{}, err
	}
	r.broker.Publish(j)
	t, ok := r.admit(context.WithoutCancel(ctx), j)
	if !ok {
		r.disown(owner)
		return Job{}, errs.Wrap(errs.Unavailable, errShutdown, "the server is stopping; try again when it is back")
	}
	vanished := func() {
		t.cancel(errs.Wrap(errs.Invalid, context.Cause(ctx), "the client went away before everything was stored; send it again"))
	}
	t.do = func(doCtx context.Context, run *Run) error {
		err := do(doCtx, run)
		if err != nil && ctx.Err() != nil {
			vanished() // do may see the end of the stream before we see ctx's
		}
		return err
	}
	stop := context.AfterFunc(ctx, vanished)
	defer stop()
	go func() { //nolint:contextcheck // the task carries its contexts, which end at different times
		defer r.wg.Done()
		r.execute(t)
	}()
	<-t.first
	return j, nil
}

// task is one admitted job on its way through execute.
type task struct {
	*current
	root  context.Context                           // of Undo: ends with the process
	ctx   context.Context                           // of Do: ends also on cancel and fence
	do    func(ctx context.Context, run *Run) error // nil: the handler's
	first chan struct{}                             // closed after Do and the first Undo, if any
	bad   error                                     // the row cannot be read: go back at once
}

// admit enters j among the running ones, for a goroutine that will call
// wg.Done; false after the stop.
func (r *Runner) admit(ctx context.Context, j Job) (*task, bool) {
	log := r.opts.Log.With("job", j.ID, "action", j.Action, "request", j.RequestID, "resources", j.ResourceIDs, "term", j.Term)
	run, err := newRun(r.store, j, log)
	root, stop := context.WithCancelCause(ctx)
	doCtx, cancel := context.WithCancelCause(root)
	t := &task{
		current: &current{run: run, cancel: cancel, stop: stop},
		root:    root, ctx: doCtx, first: make(chan struct{}), bad: err,
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		stop(errShutdown)
		return nil, false
	}
	r.wg.Add(1)
	r.running[j.ID] = t.current
	return t, true
}

// failure is what stopped a job, with the cancel's cause put in front of what
// the handler made of its cancelled context.
func failure(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, ErrFenced) {
		return fmt.Errorf("%w (%w)", cause, err)
	}
	return err
}
