package compute

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// A guest is told until it hears, is gone, or nobody has the time any more.
func TestInsist(t *testing.T) {
	deaf := errors.New("deaf")
	for name, c := range map[string]struct {
		hears, gone time.Duration // after which it does; 0: never
		closes      time.Duration
		least, most time.Duration
	}{
		"at once":           {hears: 1, most: time.Second},
		"after minutes":     {hears: 5 * time.Minute, least: 5 * time.Minute, most: 5*time.Minute + lastRetry},
		"gone":              {gone: time.Minute, least: time.Minute, most: time.Minute + lastRetry},
		"never":             {least: insistFor, most: insistFor},
		"closed":            {closes: time.Minute, least: time.Minute + leaveAfter, most: time.Minute + leaveAfter},
		"heard when closed": {hears: 70 * time.Second, closes: time.Minute, least: 70 * time.Second, most: 70*time.Second + lastRetry},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				closing := make(chan struct{})
				if c.closes > 0 {
					time.AfterFunc(c.closes, func() { close(closing) })
				}
				Insist(slog.New(slog.DiscardHandler), "ins-A", closing, func(ctx context.Context) (bool, error) {
					switch at := time.Since(begun); {
					case c.hears > 0 && at >= c.hears, c.hears == 1:
						return false, nil
					case c.gone > 0 && at >= c.gone:
						return true, deaf
					}
					return false, errors.Join(deaf, ctx.Err())
				})
				if took := time.Since(begun); took < c.least || took > c.most {
					t.Errorf("it took %v, not %v to %v", took, c.least, c.most)
				}
			})
		})
	}
}
