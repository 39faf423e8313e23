package nbd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// Who yields rests the longer the more clients ask for, and not at all without
// clients.
func TestYield(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(Limits{}, nil)
		const worked = 10 * time.Millisecond
		rests := func() time.Duration {
			t.Helper()
			began := time.Now()
			if err := s.Yield(t.Context(), worked, 3); err != nil {
				t.Fatal(err)
			}
			return time.Since(began)
		}
		s.load.add(1<<20, time.Second) // long ago, for all that is known
		if got := rests(); got > worked/1000 {
			t.Errorf("rested %v before anything is known", got)
		}
		for _, c := range []struct {
			what        string
			requests    int
			bytes       uint32
			took, least time.Duration
			most        time.Duration
		}{
			{"nobody", 0, 0, 0, 0, 0},
			{"a few requests", 100, 4096, 0, 2 * time.Millisecond, 4 * time.Millisecond},
			{"many requests", 1000, 4096, 0, 3 * worked, 3 * worked},
			{"large requests", 100, 1 << 20, 0, 3 * worked, 3 * worked},
			{"one that waits for its disk", 1, 4096, 100 * time.Millisecond, 3 * worked, 3 * worked},
			{"nobody any more", 0, 0, 0, 0, 0},
		} {
			for range c.requests {
				s.load.add(c.bytes, c.took)
			}
			time.Sleep(100 * time.Millisecond)
			if got := rests(); got < c.least || got > c.most {
				t.Errorf("%s: rested %v, want %v to %v", c.what, got, c.least, c.most)
			}
			time.Sleep(loadSpan)
			rests() // what came meanwhile is seen
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		cancel(gone)
		s.load.add(1<<30, time.Second)
		time.Sleep(100 * time.Millisecond)
		if err := s.Yield(ctx, time.Hour, 1); !errors.Is(err, gone) {
			t.Errorf("Yield of a job that has ended: %v", err)
		}
	})
}
