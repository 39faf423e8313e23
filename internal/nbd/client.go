package nbd

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"cairn/internal/errs"
)

// Errors of the client that callers tell apart.
var (
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("the NBD client is closed")
	// ErrUncertain: a connection was lost while a write, trim or zeroing was
	// under way. It may be done, in part too, or be done by the server later.
	// It was not repeated: the server could carry out the first copy after
	// the second was answered, and over what was written since.
	ErrUncertain = errors.New("the outcome of a write is not known")
	// ErrLostWrites: a connection was lost, so writes that were answered since
	// the last Flush may be gone. Flush says it once; then those writes must
	// be done again.
	ErrLostWrites = errors.New("writes since the last flush may be lost")
	// ErrNoContext: the server does not offer the meta context.
	ErrNoContext = errors.New("the server does not offer the meta context")
)

// Client uses one export of a server. Its methods may be called by any number
// of goroutines; requests share connections and are under way together.
//
// A connection that is lost is replaced, with a bounded number of attempts:
// reads, Status and Flush are asked again, a write only if no byte of it had
// been sent (see ErrUncertain, ErrLostWrites). One whose server answers these
// that it is shutting down counts as lost. A server that offers something
// else then (size, flags, block sizes, contexts) fails the request: it is not
// the same export.
//
// A context may end at any time; the method returns soon, and the caller's
// buffer is not touched after that. A write that ended so may still be done.
// Errors wrap the server's Errno.
type Client struct {
	uri   URI
	opt   Options
	info  exportInfo
	slots []slot
	next  atomic.Uint64

	// life ends with Close: it is not of one call, but of all of them.
	life context.Context
	end  context.CancelFunc

	mu      sync.Mutex // guards what follows
	answers uint64     // writes that were answered
	dirty   bool       // some of them since the last flush
	lost    bool       // a connection was lost while dirty
}

// slot is the place of one connection.
type slot struct {
	dialing chan struct{} // held by who looks at or replaces link
	link    *link
}

// Dial connects to an export, once; Close ends the use. errs.NotFound: the
// server has no such export; Denied: it refuses it now; Invalid: it cannot be
// used by this client; Unavailable: there is no server, or none that speaks
// NBD.
func Dial(ctx context.Context, uri URI, opt Options) (*Client, error) {
	opt.setDefaults()
	c := &Client{uri: uri, opt: opt}
	c.life, c.end = context.WithCancel(context.WithoutCancel(ctx))
	first, err := c.dial(ctx)
	if err != nil {
		c.end()
		return nil, err
	}
	c.info = first.info
	n := 1
	if c.info.can(flagMultiConn) {
		n = opt.Connections
	}
	c.slots = make([]slot, n)
	for i := range c.slots {
		c.slots[i].dialing = make(chan struct{}, 1)
	}
	c.slots[0].link = first
	return c, nil
}

// dial makes a link and starts its reader.
func (c *Client) dial(ctx context.Context) (*link, error) {
	dialing, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(c.life, cancel)
	defer stop()
	nc, h, err := connect(dialing, c.uri, &c.opt)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if _, ok := errors.AsType[*errs.Error](err); ok {
			return nil, err
		}
		return nil, errs.Wrap(errs.Unavailable, err, "cannot connect to the NBD server at %s; is it running?", c.uri.Address)
	}
	l := newLink(nc, h, c.opt.InFlight)
	l.wrote, l.ended = c.noteWrite, c.noteLoss
	go l.run() // Client.Close, or the slot's next link, waits for it
	return l, nil
}

// link returns a live link, in turn.
func (c *Client) link(ctx context.Context) (*link, error) {
	s := &c.slots[c.next.Add(1)%uint64(len(c.slots))]
	select {
	case s.dialing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.dialing }()
	if c.life.Err() != nil {
		return nil, ErrClosed
	}
	if s.link != nil && s.link.alive() {
		return s.link, nil
	}
	if s.link != nil {
		<-s.link.finished
		s.link = nil
	}
	l, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	if err := l.info.replaces(&c.info); err != nil {
		l.close()
		return nil, errs.Wrap(errs.Conflict, err, "the NBD export at %s is not the one that it was; connect to it anew", c.uri.Address)
	}
	s.link = l
	return l, nil
}

// Close ends all connections; requests under way fail with ErrClosed. It does
// not flush.
func (c *Client) Close() error {
	c.end()
	for i := range c.slots {
		s := &c.slots[i]
		s.dialing <- struct{}{}
		if s.link != nil {
			s.link.close()
		}
		<-s.dialing
	}
	return nil
}

func (c *Client) noteWrite() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers++
	c.dirty = true
}

func (c *Client) noteLoss() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = c.lost || c.dirty
}

// do carries out the request that make makes, anew for each attempt, and
// returns the call that succeeded. repeat: it may be sent again.
func (c *Client) do(ctx context.Context, repeat bool, make func(l *link) *call) (*call, error) {
	wait := 50 * time.Millisecond
	for attempt := 1; ; attempt++ {
		q, err := c.once(ctx, repeat, make)
		switch {
		case err == nil:
			return q, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case c.life.Err() != nil:
			return nil, ErrClosed
		}
		lost, isLost := errors.AsType[*lostError](err)
		switch {
		case isLost && lost.sent && !repeat:
			return nil, errs.Wrap(errs.Unavailable, errors.Join(ErrUncertain, err),
				"the connection to the NBD server at %s broke during a write, which may or may not be done", c.uri.Address)
		case !isLost && !(repeat && errors.Is(err, ESHUTDOWN)) && !mayPass(err), errors.Is(err, errViolation), attempt >= c.opt.Attempts:
			return nil, c.explain(q, err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		case <-c.life.Done():
		}
		wait = min(2*wait, 2*time.Second)
	}
}

// mayPass says that a failure to connect may be over soon: a server that
// starts again has its exports a little later.
func mayPass(err error) bool {
	return errs.Is(err, errs.Unavailable) || errs.Is(err, errs.NotFound) || errs.Is(err, errs.Denied)
}

func (c *Client) once(ctx context.Context, repeat bool, make func(l *link) *call) (*call, error) {
	l, err := c.link(ctx)
	if err != nil {
		return nil, err
	}
	q := make(l)
	err = l.roundTrip(ctx, q)
	if repeat && errors.Is(err, ESHUTDOWN) {
		l.fail(err) // the next attempt may find a server that stays
	}
	return q, err
}

// explain makes an error for people of the last attempt's; q is nil if it did
// not come to a request.
func (c *Client) explain(q *call, err error) error {
	if _, ok := errors.AsType[*errs.Error](err); ok || q == nil {
		return err
	}
	if code, ok := errors.AsType[Errno](err); ok {
		return errs.Wrap(code.kind(), err, "the NBD server at %s answered %s of %d bytes at %d with %v",
			c.uri.Address, commandName(q.cmd), q.length, q.off, code)
	}
	if errors.Is(err, errViolation) {
		return errs.Wrap(errs.Unavailable, err, "the NBD server at %s sends what is not NBD", c.uri.Address)
	}
	return errs.Wrap(errs.Unavailable, err, "the connection to the NBD server at %s broke, and again when it was tried anew", c.uri.Address)
}

// Size is the export's size in bytes.
func (c *Client) Size() int64 { return c.info.size }

// BlockSize is what the server wants requests to be like. ReadAt, Status and
// Trim keep to Min by themselves, and everything to Max.
func (c *Client) BlockSize() BlockSize { return c.info.block }

// ReadOnly says that the server takes no writes.
func (c *Client) ReadOnly() bool { return c.info.can(flagReadOnly) }

// Contexts are the meta contexts that Status may be asked for, sorted.
func (c *Client) Contexts() []string { return c.info.names() }
