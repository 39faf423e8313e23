package client

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// Bounds of WaitJob and WaitFilled.
const (
	pollFill  = 100 * time.Millisecond // of WaitFilled, which has no events
	pollBusy  = 500 * time.Millisecond // while somebody watches, or without events
	pollQuiet = 5 * time.Second        // beside events: only in case one was lost
	patience  = 60 * time.Second       // how long an unreachable server is asked again
)

// WaitJob returns the job once it has ended; whether well tells its Err. It
// listens to the server's event stream and polls beside it, and by polling
// alone where there is no stream. watch, if not nil, is called with the states
// it learns of, by this goroutine, the final one included.
//
// A server that restarts goes on with its jobs, so one that cannot be reached
// is asked again for a minute. Ending ctx stops the waiting, not the job.
func (c *Client) WaitJob(ctx context.Context, id string, watch func(Job)) (Job, error) {
	quiet := pollBusy
	if watch == nil {
		watch, quiet = func(Job) {}, pollQuiet
	}
	// The first look comes before the stream: most mistyped ids end here.
	j, err := c.Job(ctx, id)
	if err != nil {
		return Job{}, err
	}
	watch(j)
	if j.Ended() {
		return j, nil
	}
	ctx, stop := context.WithCancel(ctx)
	events := make(chan Job)
	live := make(chan bool)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.follow(ctx, id, events, live)
	}()
	defer func() { stop(); <-done }()
	w := waiting{client: c, id: id, last: j, watch: watch, quiet: quiet, events: events, live: live}
	return w.end(ctx)
}

// waiting is the state of one WaitJob.
type waiting struct {
	client *Client
	id     string
	last   Job
	watch  func(Job)
	quiet  time.Duration // between polls while events come
	events <-chan Job
	live   <-chan bool // whether events come, at each change
}

// end takes states from events and from polls until one is final.
func (w *waiting) end(ctx context.Context) (Job, error) {
	pace := pollBusy
	poll := time.NewTimer(pace)
	defer poll.Stop()
	var silentSince time.Time // zero while the server answers
	for {
		var j Job
		var err error
		select {
		case <-ctx.Done():
			return w.last, ctx.Err()
		case up := <-w.live:
			if pace = pollBusy; up {
				pace = w.quiet
			}
			// What changed while the stream was away.
			j, err = w.client.Job(ctx, w.id)
		case j = <-w.events:
		case <-poll.C:
			j, err = w.client.Job(ctx, w.id)
		}
		poll.Reset(pace)
		switch {
		case err == nil:
			silentSince = time.Time{}
			w.last = j
			w.watch(j)
			if j.Ended() {
				return j, nil
			}
		case ctx.Err() != nil:
			return w.last, ctx.Err()
		case !maybeRestarting(err):
			return w.last, err
		case silentSince.IsZero():
			silentSince = time.Now()
		case time.Since(silentSince) > patience:
			return w.last, err
		}
	}
}

// ErrOnDemand says that a volume is not being filled, before FillVolumes.
var ErrOnDemand = errors.New("it is read on demand and nobody fills it")

// WaitFilled returns the volume once it needs nothing of the repository any
// more: all of its bytes are its own, durably. watch, if not nil, is called
// with the states it learns of. A server that cannot be reached is asked again
// for a minute. Ending ctx stops the waiting, not the filling. ErrOnDemand:
// nobody fills it.
func (c *Client) WaitFilled(ctx context.Context, id string, watch func(Volume)) (Volume, error) {
	var last Volume
	var silentSince time.Time // zero while the server answers
	for {
		v, err := c.Volume(ctx, id)
		switch {
		case err == nil:
			last, silentSince = v, time.Time{}
			if watch != nil {
				watch(v)
			}
			switch {
			case v.MissingBytes == 0:
				return v, nil
			case bool(v.OnDemand):
				return v, ErrOnDemand
			}
		case ctx.Err() != nil:
			return last, ctx.Err()
		case last.ID == "" || !maybeRestarting(err):
			return last, err
		case silentSince.IsZero():
			silentSince = time.Now()
		case time.Since(silentSince) > patience:
			return last, err
		}
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-time.After(pollFill):
		}
	}
}

// maybeRestarting reports whether a restart of the server explains the error.
func maybeRestarting(err error) bool {
	return errors.Is(err, ErrUnreachable) || IsStatus(err, http.StatusServiceUnavailable)
}

// follow hands the job's events over until ctx ends or the server has no
// stream. A broken stream is opened again, at the pace of the polls.
func (c *Client) follow(ctx context.Context, id string, events chan<- Job, live chan<- bool) {
	for ctx.Err() == nil {
		err := c.Watch(ctx, func() { hand(ctx, live, true) }, func(j Job) error {
			if j.ID == id {
				hand(ctx, events, j)
			}
			return ctx.Err()
		})
		hand(ctx, live, false)
		if !maybeRestarting(err) {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollBusy):
		}
	}
}

// hand gives v to the waiting goroutine unless that has stopped waiting.
func hand[T any](ctx context.Context, to chan<- T, v T) {
	select {
	case to <- v:
	case <-ctx.Done():
	}
}
