package journal

import (
	"context"
	"sync"
)

// ticket stands for one transaction that changed something for the journal.
type ticket struct {
	committed bool          // the transaction has ended
	done      chan struct{} // closed when the journal has it, or could not be written
}

// gate holds callers back until the journal has what they saw or did.
type gate struct {
	wake chan struct{} // of length 1: a ticket was committed

	mu      sync.Mutex // guards tickets; a leaf of the lock order
	tickets map[*ticket]struct{}
}

func newGate() gate {
	return gate{wake: make(chan struct{}, 1), tickets: make(map[*ticket]struct{})}
}

// open makes a ticket for a transaction that is about to be committed.
func (g *gate) open() *ticket {
	t := &ticket{done: make(chan struct{})}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tickets[t] = struct{}{}
	return t
}

// commit says that the transaction has ended.
func (g *gate) commit(t *ticket) {
	g.mu.Lock()
	t.committed = true
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default: // the writer will look anyway
	}
}

// take lists the committed tickets: what they stand for is in every View that
// begins from now on.
func (g *gate) take() []*ticket {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []*ticket
	for t := range g.tickets {
		if t.committed {
			out = append(out, t)
		}
	}
	return out
}

// settle lets go of everybody who waits for these tickets.
func (g *gate) settle(ts []*ticket) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, t := range ts {
		delete(g.tickets, t)
		close(t.done)
	}
}

// wait returns when all tickets of now are settled.
func (g *gate) wait(ctx context.Context) error {
	g.mu.Lock()
	open := make([]*ticket, 0, len(g.tickets))
	for t := range g.tickets {
		open = append(open, t)
	}
	g.mu.Unlock()
	for _, t := range open {
		select {
		case <-t.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
