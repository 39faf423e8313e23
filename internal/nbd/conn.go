package nbd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	readAhead = 64 << 10 // headers and small writes are read this much at once

	// A request is slow that takes longer than copying from memory would, by
	// far: slowBase, and 1 ns for each slowBytes. Requests are slow when of
	// late more than one in slowWeight was: a single one says more about the
	// machine's load than about the Backend, and under load handing over is
	// dearest.
	slowBase   = 50 * time.Microsecond
	slowBytes  = 8
	slowWeight = 8
	slowScore  = 2 * slowWeight // above it, requests are slow
	maxScore   = 8 * slowWeight
	// From bulk bytes on a request's data takes longer to copy than it takes to
	// hand over, so that the next one is read, or read from its file, meanwhile.
	bulk = 256 << 10
	// stealAfter is how long a request may keep others from being read before
	// it is known to be slow.
	stealAfter = time.Millisecond
)

// Why connections end.
var (
	errGoodbye   = errors.New("the client disconnected")
	errStalled   = errors.New("the peer takes no replies or sends no data")
	errSuspended = errors.New("the export's clients were disconnected")
	errDrained   = errors.New("requests took too long when the server was stopped")
)

// conn is one connection of the server.
//
// Its workers take turns at reading requests. The worker that read a request
// does it: while requests are quick, it then reads the next, so that no
// goroutine waits for another and the replies of requests that came together
// leave together. Once they are slow it first hands the reading to another
// worker. A request that turns out to be slow has the reading taken from it by
// a timer. The data of a large write is written as it comes; see stream.
type conn struct {
	server *Server
	nc     net.Conn
	r      *bufio.Reader   // of the worker that reads
	raw    syscall.RawConn // under r; may be nil
	rest   *rest           // of the worker that reads; see stream
	w      replyWriter
	ctx    context.Context // of the connection; its cause is why it was broken
	cancel context.CancelCauseFunc
	doing  context.Context // of the requests
	undo   context.CancelFunc
	bytes  *semaphore.Weighted // of limits.ConnBytes

	// Set by the handshake, then fixed.
	export     *Export
	size       int64
	structured bool
	contexts   []string // their place is their id
	granting   *Export  // whose contexts they are

	draining atomic.Bool
	drained  chan struct{} // closed when draining
	finished chan struct{} // closed when nothing of the connection runs any more

	// active counts requests in the Backend, plus retired once the export was
	// removed; quiet is closed when it is retired alone.
	active atomic.Int64
	quiet  chan struct{}
	still  sync.Once

	turn  atomic.Uint64 // odd: the reading worker is doing a request; grows
	slow  score         // of requests
	late  score         // of streamed writes: those that had the reading taken from them
	armed atomic.Bool   // the timer runs
	seen  uint64        // turn when the timer last looked
	timer *time.Timer

	payloads atomic.Uint64 // odd while a write's data is awaited
	// Of the server's watch: what it saw last, and how often unchanged.
	lastSends, lastPayloads uint64
	strikes                 int

	mu      sync.Mutex // guards what follows
	workers int
	parked  int
	free    bool // nobody reads; the first worker that is done will
	ended   bool // nobody will read any more
	why     error
	wake    chan struct{}
	done    chan struct{} // closed when ended
	running sync.WaitGroup
}

const retired = 1 << 40

func newConn(ctx context.Context, s *Server, nc net.Conn) *conn {
	c := &conn{
		server:   s,
		nc:       nc,
		r:        bufio.NewReaderSize(nc, readAhead),
		raw:      rawConn(nc),
		bytes:    semaphore.NewWeighted(s.limits.ConnBytes),
		drained:  make(chan struct{}),
		finished: make(chan struct{}),
		quiet:    make(chan struct{}),
		wake:     make(chan struct{}, s.limits.Requests),
		done:     make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.doing, c.undo = context.WithCancel(c.ctx)
	c.w.init(nc, c.give, c.kill)
	return c
}

// serve runs the connection to its end.
func (c *conn) serve() {
	defer close(c.finished)
	err := c.handshake()
	name := ""
	if err == nil {
		name = c.export.cfg.Name
		err = c.transmit()
		c.export.detach(c)
	}
	if cause := context.Cause(c.ctx); cause != nil {
		err = cause
	}
	c.kill(err)
	switch {
	case errors.Is(err, errGoodbye), errors.Is(err, io.EOF):
	case errors.Is(err, errStalled):
		c.server.log.Warn("ended an NBD connection", "export", name, "err", err)
	default:
		c.server.log.Debug("an NBD connection ended", "export", name, "err", err)
	}
}

// kill breaks the connection. Requests in the Backend learn it by their
// context.
func (c *conn) kill(cause error) {
	c.cancel(cause)
	c.nc.Close()
}

// drain ends the reading of requests; those that were read are answered.
func (c *conn) drain() {
	if !c.draining.Swap(true) {
		close(c.drained)
	}
	if err := c.nc.SetReadDeadline(time.Unix(1, 0)); err != nil {
		c.kill(err)
	}
}

// retire makes every further request be answered ESHUTDOWN.
func (c *conn) retire() {
	c.undo()
	for {
		n := c.active.Load()
		if n >= retired || c.active.CompareAndSwap(n, n+retired) {
			break
		}
	}
	if c.active.Load() == retired {
		c.still.Do(func() { close(c.quiet) })
	}
}

// enter asks whether the Backend may be called; leave must follow a yes.
func (c *conn) enter() bool {
	if c.active.Add(1) < retired {
		return true
	}
	c.leave()
	return false
}

func (c *conn) leave() {
	if c.active.Add(-1) == retired {
		c.still.Do(func() { close(c.quiet) })
	}
}

// stalled is the watch's look at the connection: true when nothing moved
// during so many looks although it should have.
func (c *conn) stalled(looks int) bool {
	sends, payloads := c.w.sends.Load(), c.payloads.Load()
	waiting := (sends&1 == 1 && sends == c.lastSends) || (payloads&1 == 1 && payloads == c.lastPayloads)
	c.lastSends, c.lastPayloads = sends, payloads
	if !waiting {
		c.strikes = 0
		return false
	}
	c.strikes++
	return c.strikes >= looks
}

// transmit serves requests until the peer or the server ends the connection.
func (c *conn) transmit() error {
	c.timer = time.AfterFunc(time.Hour, c.look)
	c.timer.Stop()
	defer c.timer.Stop()
	c.workers = 1
	c.running.Go(c.work)
	c.running.Wait()
	c.w.flush()
	return c.why
}

// work reads and does requests, and returns when the connection reads no more.
func (c *conn) work() {
	var t task
	first := true // since it is this worker's turn
	for {
		if err := c.next(&t); err != nil {
			c.stop(err)
			return
		}
		if t.coming {
			mine, err := c.stream(&t)
			if err != nil {
				c.stop(err)
				return
			}
			if first = !mine; first && !c.passOn() {
				return
			}
			continue
		}
		handedOver := c.slow.high() || t.moved() >= bulk
		turn := c.turn.Load() + 1
		if handedOver {
			c.handOver()
		} else {
			c.turn.Store(turn)
			c.arm()
		}
		if first || handedOver {
			c.w.flush() // what others put must not wait for this request
		}
		first = false
		began := time.Now()
		c.do(&t)
		took := time.Since(began)
		c.server.load.add(t.moved(), took)
		c.slow.add(took > slowBase+time.Duration(t.length/slowBytes))
		if handedOver || !c.turn.CompareAndSwap(turn, turn+1) {
			if !c.passOn() {
				return
			}
			first = true
		}
	}
}

// passOn is what a worker does that has done a request while another reads;
// false: there is nothing to read any more.
func (c *conn) passOn() bool {
	c.w.flush()
	return c.park()
}

// score tells whether of late more than one in slowWeight was slow.
type score struct{ n atomic.Int32 }

func (s *score) high() bool { return s.n.Load() > slowScore }

func (s *score) add(slow bool) {
	n := s.n.Load()
	switch {
	case slow:
		s.n.CompareAndSwap(n, min(n+slowWeight, maxScore))
	case n > 0:
		s.n.CompareAndSwap(n, n-1)
	}
}

// arm makes the timer look soon, unless it does anyway.
func (c *conn) arm() {
	if !c.armed.Load() && c.armed.CompareAndSwap(false, true) {
		c.timer.Reset(stealAfter)
	}
}

// look runs by the timer: a request that is still the one that the last look
// saw has the reading taken from it.
func (c *conn) look() {
	turn := c.turn.Load()
	switch {
	case turn != c.seen: // busy
		c.seen = turn
		c.timer.Reset(stealAfter)
		return
	case turn&1 == 1 && c.turn.CompareAndSwap(turn, turn+1):
		c.slow.add(true)
		c.handOver()
	}
	c.armed.Store(false)
	// A request that began before that store did not arm the timer.
	if c.turn.Load() != turn {
		c.arm()
	}
}

// handOver lets another worker read: one that is parked, a new one, or the
// first that is done if there are as many as may be.
func (c *conn) handOver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended:
	case c.parked > 0:
		c.parked--
		c.wake <- struct{}{} // never waits: it holds all workers
	case c.workers < c.server.limits.Requests:
		c.workers++
		c.running.Go(c.work)
	default:
		c.free = true
	}
}

// park waits until it is this worker's turn to read; false: never again.
func (c *conn) park() bool {
	c.mu.Lock()
	if c.ended || c.free {
		c.free = false
		defer c.mu.Unlock()
		return !c.ended
	}
	c.parked++
	c.mu.Unlock()
	select {
	case <-c.wake:
		return true
	case <-c.done:
		return false
	}
}

// stop ends the reading. After a goodbye the requests in flight go on; else
// nobody is there to hear of them.
func (c *conn) stop(err error) {
	if c.draining.Load() {
		err = errGoodbye
	}
	if !errors.Is(err, errGoodbye) {
		c.undo()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended, c.why = true, err
	close(c.done)
}

// hold is memory and its share of the limits.
type hold struct {
	buf  *buffer
	cost int64
}

// take waits until n bytes may be in flight.
func (c *conn) take(n int64) (cost int64, err error) {
	cost = min(n, c.server.limits.ConnBytes)
	if !c.bytes.TryAcquire(cost) {
		c.w.flush() // what is unsent holds bytes
		if err := c.bytes.Acquire(c.ctx, cost); err != nil {
			return 0, err
		}
	}
	if total := c.totalCost(cost); total > 0 && !c.server.bytes.TryAcquire(total) {
		c.w.flush()
		if err := c.server.bytes.Acquire(c.ctx, total); err != nil {
			c.bytes.Release(cost)
			return 0, err
		}
	}
	return cost, nil
}

func (c *conn) totalCost(cost int64) int64 {
	if cost <= smallRequest {
		return 0
	}
	return min(cost, c.server.limits.TotalBytes)
}

func (c *conn) give(h hold) {
	c.server.pool.put(h.buf)
	if h.cost > 0 {
		c.bytes.Release(h.cost)
		if total := c.totalCost(h.cost); total > 0 {
			c.server.bytes.Release(total)
		}
	}
}

// next reads one request; a write's data too. Replies that were put are sent
// before it waits for the peer.
func (c *conn) next(t *task) error {
	if r := c.rest; r != nil {
		c.rest = nil
		if err := c.readRest(r); err != nil {
			return err
		}
	}
	if c.r.Buffered() < requestLen {
		c.w.flush()
	}
	head, err := c.r.Peek(requestLen)
	if err != nil {
		if len(head) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	*t = task{}
	if !t.parse(head) {
		return errors.New("no NBD request: wrong magic")
	}
	if _, err := c.r.Discard(requestLen); err != nil {
		return err
	}
	if t.cmd == cmdDisconnect {
		return errGoodbye
	}
	t.refused = c.judge(&t.request)
	switch {
	case t.cmd == cmdWrite:
		return c.readPayload(t)
	case t.cmd == cmdRead && t.refused == nil:
		t.cost, err = c.take(int64(t.length))
		return err
	}
	return nil
}

// readPayload reads a write's data, or past it, or leaves it to stream.
func (c *conn) readPayload(t *task) error {
	if t.refused == nil {
		if t.coming = c.streams(t); t.coming {
			return nil
		}
		var err error
		if t.cost, err = c.take(int64(t.length)); err != nil {
			return err
		}
	}
	if c.r.Buffered() < int(t.length) {
		c.w.flush()
	}
	c.payloads.Add(1)
	defer c.payloads.Add(1)
	if t.refused != nil {
		_, err := c.r.Discard(int(t.length))
		return err
	}
	t.buf = c.server.pool.get(int(t.length))
	if _, err := io.ReadFull(c.r, t.buf.b); err != nil {
		c.give(t.hold)
		return payloadError(err)
	}
	return nil
}
