package compute

import (
	"context"
	"log/slog"
	"time"

	"cairn/internal/errs"
)

const (
	// insistFor is how long a guest is told to go on that does not hear: its machine
	// may be paused, or its agent still busy with coming to rest.
	insistFor  = 10 * time.Minute
	firstRetry = 200 * time.Millisecond
	lastRetry  = 5 * time.Second
	// leaveAfter is how much of that a driver's Close waits for.
	leaveAfter = 20 * time.Second
)

// Insist tells a guest whose filesystems are at rest to go on, until it does:
// nobody else will, and it would hang. thaw tells it once; gone: there is none
// any more that could be told. closing ends it early, but not at once.
func Insist(log *slog.Logger, machine string, closing <-chan struct{}, thaw func(context.Context) (gone bool, err error)) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), insistFor, errs.New(errs.Unavailable, "it does not answer"))
	defer cancel()
	go func() {
		select {
		case <-closing:
			time.AfterFunc(leaveAfter, cancel)
		case <-ctx.Done():
		}
	}()
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		gone, err := thaw(ctx)
		switch {
		case err == nil || gone:
			log.Info("a guest that was left at rest goes on", "machine", machine, "gone", gone)
			return
		case ctx.Err() != nil:
			log.Error("a guest may still be at rest and hang; let it go on (its agent's guest-fsfreeze-thaw, virsh domfsthaw) or restart it", "machine", machine, "error", err)
			return
		case wait == firstRetry:
			log.Warn("a guest that was left at rest does not hear that it may go on, and is told again", "machine", machine, "error", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}
