package nbd

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"cairn/internal/errs"
)

// Export is a Backend under a name, from Server.Add until Remove.
type Export struct {
	server  *Server
	backend Backend
	cfg     ExportConfig // Size excepted, fixed

	mu      sync.Mutex // guards what follows; last in the lock order
	size    int64
	conns   map[*conn]struct{}
	resumed chan struct{} // while suspended: closed by resume; else nil
	removed chan struct{} // closed by Remove
}

// suspend is called with mu held, or before anybody knows the export.
func (e *Export) suspend() (resume func()) {
	resumed := make(chan struct{})
	e.resumed = resumed
	return sync.OnceFunc(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.resumed = nil
		close(resumed)
	})
}

// gone reports whether the export was removed.
func (e *Export) gone() bool {
	select {
	case <-e.removed:
		return true
	default:
		return false
	}
}

// Connections is how many clients are attached. Each of them may write, unless
// the export is read-only.
func (e *Export) Connections() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
}

// AwaitDetached is Connections once those have ended that are about to: a client
// that has just hung up is attached until the server has noticed. It waits for
// limit at most.
func (e *Export) AwaitDetached(ctx context.Context, limit time.Duration) int {
	e.mu.Lock()
	conns := slices.Collect(maps.Keys(e.conns))
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, c := range conns {
		select {
		case <-c.finished:
		case <-ctx.Done():
		}
	}
	return e.Connections()
}

// SetSize changes the size that clients are told when they attach. The
// protocol has no notice for those that are attached: they keep the old one,
// so a Backend that shrinks must answer for what lies beyond.
func (e *Export) SetSize(size int64) error {
	if err := e.cfg.checkSize(size); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.size = size
	return nil
}

// Suspend keeps clients from attaching until resume is called, which may be
// done more than once: they wait, for Limits.Attach at most. Clients attached to a writable export are an
// errs.Conflict; with force every client's connection ends instead, and no
// request of theirs is in the Backend when Suspend returns. Clients attached
// to a read-only export stay unless forced. A client whose connection ended
// may attach again after resume and repeat its last writes: where that must
// not be, remove the export and add another name.
//
// A second Suspend before resume is errs.Busy. If ctx ends before the
// requests do, nothing is suspended, but the connections have ended.
func (e *Export) Suspend(ctx context.Context, force bool) (resume func(), err error) {
	e.mu.Lock()
	switch {
	case e.gone():
		err = errs.New(errs.NotFound, "the NBD export %q was removed", e.cfg.Name)
	case e.resumed != nil:
		err = errs.New(errs.Busy, "the NBD export %q is suspended already; please try later", e.cfg.Name)
	case !force && !e.cfg.ReadOnly && len(e.conns) > 0:
		err = errs.New(errs.Conflict, "%d client(s) are connected to the NBD export %q and may write; disconnect them or use force", len(e.conns), e.cfg.Name)
	}
	if err != nil {
		e.mu.Unlock()
		return nil, err
	}
	resume = e.suspend()
	var ending []*conn
	if force {
		ending = slices.Collect(maps.Keys(e.conns))
	}
	e.mu.Unlock()

	for _, c := range ending {
		c.kill(errSuspended)
	}
	for _, c := range ending {
		select {
		case <-c.finished:
		case <-ctx.Done():
			resume()
			return nil, ctx.Err()
		}
	}
	return resume, nil
}

// Remove takes the export away: its name is unknown from now on, clients that
// are attached get ESHUTDOWN for every request until they hang up, and the
// contexts of requests in the Backend end. When it returns nil, the Backend
// is never called again. If ctx ends first, that is only sure after another
// call returned nil. Removing twice is harmless.
func (e *Export) Remove(ctx context.Context) error {
	e.server.forget(e)
	e.mu.Lock()
	if !e.gone() {
		close(e.removed)
	}
	conns := slices.Collect(maps.Keys(e.conns))
	e.mu.Unlock()
	for _, c := range conns {
		c.retire()
	}
	for _, c := range conns {
		select {
		case <-c.quiet:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// refusal is why a client does not get what it asked for in the handshake.
type refusal struct {
	code uint32
	text string
}

// attach makes c a client of the export. While that is suspended c waits: what
// has just ended, such as a rollback, is over in a moment.
func (e *Export) attach(c *conn) *refusal {
	timer := time.NewTimer(c.server.limits.Attach)
	defer timer.Stop()
	for {
		resumed, r := e.tryAttach(c)
		if resumed == nil {
			return r
		}
		select {
		case <-resumed:
		case <-e.removed:
		case <-timer.C:
			return r
		case <-c.drained:
			return r
		case <-c.ctx.Done():
			return r
		}
	}
}

// tryAttach is attach without the wait. resumed is what to wait for; nil: that
// would be no use.
func (e *Export) tryAttach(c *conn) (resumed <-chan struct{}, _ *refusal) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.gone():
		return nil, &refusal{repErrUnknown, "no such export"}
	case e.resumed != nil:
		return e.resumed, &refusal{repErrPolicy, "the export takes no clients now; try later"}
	case e.cfg.MaxConnections > 0 && len(e.conns) >= e.cfg.MaxConnections:
		return nil, &refusal{repErrPolicy, "the export has all the clients that it may have"}
	}
	e.conns[c] = struct{}{}
	c.export, c.size = e, e.size
	return nil, nil
}

func (e *Export) detach(c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, c)
}

// sizeNow is the size that a client would be told now.
func (e *Export) sizeNow() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.size
}

func (e *Export) hasContext(name string) bool { return slices.Contains(e.cfg.Contexts, name) }
