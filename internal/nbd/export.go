package nbd

import (
	"context"
	"maps"
	"slices"
	"sync"

	"cairn/internal/errs"
)

// Export is a Backend under a name, from Server.Add until Remove.
type Export struct {
	server  *Server
	backend Backend
	cfg     ExportConfig // Size excepted, fixed

	mu        sync.Mutex // guards what follows; last in the lock order
	size      int64
	conns     map[*conn]struct{}
	suspended bool
	removed   bool
}

// Connections is how many clients are attached. Each of them may write, unless
// the export is read-only.
func (e *Export) Connections() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
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
// done more than once. Clients attached to a writable export are an
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
	case e.removed:
		err = errs.New(errs.NotFound, "the NBD export %q was removed", e.cfg.Name)
	case e.suspended:
		err = errs.New(errs.Busy, "the NBD export %q is suspended already; please try later", e.cfg.Name)
	case !force && !e.cfg.ReadOnly && len(e.conns) > 0:
		err = errs.New(errs.Conflict, "%d client(s) are connected to the NBD export %q and may write; disconnect them or use force", len(e.conns), e.cfg.Name)
	}
	if err != nil {
		e.mu.Unlock()
		return nil, err
	}
	e.suspended = true
	var ending []*conn
	if force {
		ending = slices.Collect(maps.Keys(e.conns))
	}
	e.mu.Unlock()

	resume = sync.OnceFunc(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.suspended = false
	})
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
	e.removed = true
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

// attach makes c a client of the export.
func (e *Export) attach(c *conn) *refusal {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.removed:
		return &refusal{repErrUnknown, "no such export"}
	case e.suspended:
		return &refusal{repErrPolicy, "the export takes no clients now; try later"}
	case e.cfg.MaxConnections > 0 && len(e.conns) >= e.cfg.MaxConnections:
		return &refusal{repErrPolicy, "the export has all the clients that it may have"}
	}
	e.conns[c] = struct{}{}
	c.export, c.size = e, e.size
	return nil
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
