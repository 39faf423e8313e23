package nbd

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// loadSpan is how long a look at the load lasts at least.
	loadSpan = 20 * time.Millisecond
	// Clients that send so many requests a second, or move so many bytes, or have
	// requests under way all the time, need the machine for themselves. They are
	// what keeps about one processor busy.
	loadRequests = 10000
	loadBytes    = 1e9
	// longestRest bounds one rest: clients may be gone at its end.
	longestRest = 100 * time.Millisecond
)

// load counts what clients asked for. It is added to by all connections.
type load struct {
	requests, bytes, nanos atomic.Int64

	mu    sync.Mutex // guards what follows
	at    time.Time  // of the last look
	seen  [3]int64   // what it saw
	share float64    // what it found
}

func (l *load) add(bytes uint32, took time.Duration) {
	l.requests.Add(1)
	l.bytes.Add(int64(bytes))
	l.nanos.Add(int64(took))
}

// now is how much of the machine clients have had use for of late: 0, none, to 1.
func (l *load) now() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	span := time.Since(l.at)
	if span < loadSpan {
		return l.share
	}
	now := [3]int64{l.requests.Load(), l.bytes.Load(), l.nanos.Load()}
	if l.at.IsZero() {
		span = time.Hour // nothing is known of the time before
	}
	l.share = min(1,
		float64(now[0]-l.seen[0])/span.Seconds()/loadRequests+
			float64(now[1]-l.seen[1])/span.Seconds()/loadBytes+
			float64(now[2]-l.seen[2])/float64(span))
	l.at, l.seen = time.Now(), now
	return l.share
}

// Yield makes somebody rest who has worked on something that can wait, so that
// clients who are busy get the processors: up to most times as long as the work
// took, the less the clients ask for. It fails with ctx. Any number of
// goroutines may call it.
func (s *Server) Yield(ctx context.Context, worked time.Duration, most float64) error {
	rest := min(time.Duration(float64(worked)*most*s.load.now()), longestRest)
	if rest <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(rest)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
