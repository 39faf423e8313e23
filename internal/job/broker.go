package job

import (
	"context"
	"sync"
)

// feedBuffer is how many changes a subscriber may lag behind.
const feedBuffer = 64

// Broker hands status changes to whoever listens. Any number of goroutines
// may use it at once.
type Broker struct {
	mu    sync.Mutex // guards feeds and every send, so that a closed feed is never sent to
	feeds map[chan Job]struct{}
}

// NewBroker makes a broker without listeners.
func NewBroker() *Broker { return &Broker{feeds: map[chan Job]struct{}{}} }

// Subscribe returns a feed of the jobs as they were after each status change
// from now on. It is closed when ctx ends. A reader that lags loses the
// oldest changes, never the newest.
func (b *Broker) Subscribe(ctx context.Context) <-chan Job {
	feed := make(chan Job, feedBuffer)
	b.mu.Lock()
	b.feeds[feed] = struct{}{}
	b.mu.Unlock()
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.feeds, feed)
		close(feed)
	})
	return feed
}

// Publish tells all listeners of a committed status change. It never waits.
func (b *Broker) Publish(j Job) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for feed := range b.feeds {
		for sent := false; !sent; {
			select {
			case feed <- j:
				sent = true
			default:
				// Full: drop the oldest. The reader may have been quicker.
				select {
				case <-feed:
				default:
				}
			}
		}
	}
}
