package nbd

import (
	"bufio"
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"cairn/internal/extent"
)

// cancelPatience is how long a cancelled read waits for a server that is in
// the middle of sending it data, before it gives up the connection.
const cancelPatience = time.Second

// call is one request under way. The caller owns it until roundTrip, and then
// again when that returned.
type call struct {
	request
	data    []byte // of a write
	into    []byte // of a read
	context uint32 // of a block status

	done chan error // one result

	// Of the reader.
	chunks  int
	covered []extent.Range // of into, joined; in the export's offsets
	extents []Extent
	seen    []uint32 // contexts that were answered
	failed  error    // the first error chunk

	// Under link.mu.
	answered  bool          // the reader has seen a reply
	filling   bool          // the reader writes to into
	abandoned bool          // nobody wants the result any more
	released  chan struct{} // closed when an abandoned call is filled no more
}

// lostError says that the connection ended before the request was answered.
type lostError struct {
	sent bool // the server may have seen the request
	err  error
}

func (e *lostError) Error() string { return "the connection was lost: " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// errLinkClosed is what ends a link that the client closes.
var errLinkClosed = errors.New("the client was closed")

// link is one connection to a server, and the goroutine that reads its
// replies.
type link struct {
	nc       net.Conn
	r        *bufio.Reader // of the reader
	info     exportInfo
	window   chan struct{} // a place for each request in flight
	sending  chan struct{} // held by who writes to nc
	finished chan struct{} // closed when the reader has ended

	// Told by the reader before the caller learns it.
	wrote func()
	ended func()

	mu      sync.Mutex // guards what follows
	pending map[uint64]*call
	cookie  uint64
	err     error // why the link ended
}

func newLink(nc net.Conn, h *haggler, inFlight int) *link {
	return &link{
		nc: nc, r: h.r, info: h.info,
		window:   make(chan struct{}, inFlight),
		sending:  make(chan struct{}, 1),
		finished: make(chan struct{}),
		pending:  map[uint64]*call{},
	}
}

// run reads replies until the link ends, then fails what is pending.
func (l *link) run() {
	err := l.readReplies()
	l.fail(err)
	l.mu.Lock()
	pending := l.pending
	l.pending = nil
	err = l.err
	l.mu.Unlock()
	l.ended()
	for _, c := range pending {
		if errors.Is(err, errViolation) {
			c.done <- err
		} else {
			c.done <- &lostError{sent: true, err: err}
		}
	}
	close(l.finished)
}

// fail ends the link for the first reason given.
func (l *link) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.mu.Unlock()
	l.nc.Close()
}

func (l *link) alive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err == nil
}

// roundTrip does one request. A *lostError tells whether it was sent.
func (l *link) roundTrip(ctx context.Context, c *call) error {
	select {
	case l.window <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-l.finished:
		return l.unsent()
	}
	c.done = make(chan error, 1)
	l.mu.Lock()
	if l.err != nil || l.pending == nil {
		l.mu.Unlock()
		return l.unsent() // the window is of no use any more
	}
	l.cookie++
	c.cookie = l.cookie
	l.pending[c.cookie] = c
	l.mu.Unlock()

	if n, err := l.send(ctx, c); err != nil {
		if n == 0 && ctx.Err() != nil && l.withdraw(c) {
			return ctx.Err()
		}
		l.fail(err)
		err := <-c.done // the reader is done with c now
		if lost, ok := errors.AsType[*lostError](err); ok && n == 0 {
			lost.sent = false
		}
		return err
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		l.abandon(c)
		return ctx.Err()
	}
}

func (l *link) unsent() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &lostError{err: l.err}
}

// send writes the request; n is how many bytes of it the connection took.
func (l *link) send(ctx context.Context, c *call) (n int64, err error) {
	select {
	case l.sending <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-l.finished:
		return 0, net.ErrClosed
	}
	defer func() { <-l.sending }()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		if err := l.nc.SetWriteDeadline(time.Unix(1, 0)); err != nil {
			l.nc.Close()
		}
	})
	var head [requestLen]byte
	c.put(head[:])
	if len(c.data) == 0 {
		var k int
		k, err = l.nc.Write(head[:])
		n = int64(k)
	} else {
		n, err = (&net.Buffers{head[:], c.data}).WriteTo(l.nc)
	}
	if !stop() {
		<-fired
		if e := l.nc.SetWriteDeadline(time.Time{}); err == nil {
			err = e
		}
	}
	return n, err
}

// withdraw takes back a call that was not sent. False: the server has
// answered it all the same, or the link has ended.
func (l *link) withdraw(c *call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending[c.cookie] != c || c.answered {
		return false
	}
	delete(l.pending, c.cookie)
	<-l.window
	return true
}

// abandon leaves a call to the reader, which will drop its reply. On return
// nobody writes to the caller's buffer any more.
func (l *link) abandon(c *call) {
	l.mu.Lock()
	c.abandoned = true
	if !c.filling {
		l.mu.Unlock()
		return
	}
	c.released = make(chan struct{})
	l.mu.Unlock()
	patience := time.NewTimer(cancelPatience)
	defer patience.Stop()
	select {
	case <-c.released:
	case <-patience.C:
		l.fail(errors.New("the server stopped in the middle of a reply that nobody waits for"))
		<-c.released
	}
}

// find returns the pending call of a reply.
func (l *link) find(cookie uint64) (*call, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.pending[cookie]
	if c == nil {
		return nil, violation("a reply to request %d, which is not under way", cookie)
	}
	c.answered = true
	return c, nil
}

// begin asks whether the reader may write to the caller's buffer; if so, end
// must follow.
func (l *link) begin(c *call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.filling = !c.abandoned
	return c.filling
}

func (l *link) end(c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.filling = false
	if c.released != nil {
		close(c.released)
	}
}

// finish hands a call its result.
func (l *link) finish(c *call, err error) {
	l.mu.Lock()
	delete(l.pending, c.cookie)
	l.mu.Unlock()
	if err == nil && (c.cmd == cmdWrite || c.cmd == cmdWriteZeroes || c.cmd == cmdTrim) && c.flags&cmdFlagFUA == 0 {
		l.wrote()
	}
	<-l.window
	c.done <- err
}

// close ends the link and waits for its reader. The goodbye is a courtesy: it
// must not wait for a server that takes nothing.
func (l *link) close() {
	select {
	case l.sending <- struct{}{}:
		if l.nc.SetWriteDeadline(time.Now().Add(cancelPatience)) == nil {
			var head [requestLen]byte
			(&request{cmd: cmdDisconnect}).put(head[:])
			// An error changes nothing: the connection is closed next.
			_, _ = l.nc.Write(head[:])
		}
		<-l.sending
	default:
	}
	l.fail(errLinkClosed)
	<-l.finished
}
