package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"cairn/internal/errs"
)

const (
	// maxLine bounds one object of a peer: the longest real ones, lists of
	// hundreds of block nodes, are below it by far.
	maxLine = 16 << 20
	// maxEvents wait for whoever asks for them; the oldest go first.
	maxEvents = 1024
)

// Error is a command's failure as the peer told it.
type Error struct {
	Command string
	Class   string // GenericError, CommandNotFound, DeviceNotFound …
	Desc    string // for people
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s (%s)", e.Command, e.Desc, e.Class) }

// Event is something that happened to the machine.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
	Time time.Time       `json:"-"`
}

// message is whatever a peer sends.
type message struct {
	Greeting *struct{}       `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Client is a connection to one machine's monitor. Any number of goroutines may
// use it.
type Client struct {
	nc net.Conn

	writing sync.Mutex // held while a command is sent

	mu      sync.Mutex // guards what follows
	next    uint64
	waiting map[uint64]chan message
	events  []Event
	news    chan struct{} // closed and renewed when an event came
	err     error         // why the connection ended; nil: it has not

	done chan struct{} // closed when it has
}

// Dial connects to the monitor that listens on a unix socket, and leaves its
// negotiation behind. errs.Unavailable: nobody answers there as a monitor does.
func Dial(ctx context.Context, path string) (*Client, error) {
	nc, err := dial(ctx, path)
	if err != nil {
		return nil, err
	}
	r := newReader(nc)
	// A peer that is silent, or busy with another client, must not hold us up.
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	m, err := r.message()
	if err == nil && m.Greeting == nil {
		err = errors.New("no greeting of a machine monitor")
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(errs.Wrap(errs.Unavailable, err, "the machine monitor at %s does not answer", path), nc.Close())
	}
	c := &Client{nc: nc, waiting: map[uint64]chan message{}, news: make(chan struct{}), done: make(chan struct{})}
	go c.read(r)
	if err := c.Do(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func dial(ctx context.Context, path string) (net.Conn, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "nobody listens at %s", path)
	}
	return nc, nil
}

// Do runs a command and decodes its result into result, unless that is nil. The
// peer's refusal is an *Error. If ctx ends first the command may still be done.
func (c *Client) Do(ctx context.Context, command string, args, result any) error {
	answer := make(chan message, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return fmt.Errorf("%s: %w", command, c.err)
	}
	c.next++
	id := c.next
	c.waiting[id] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, id)
	}()

	line, err := json.Marshal(request{Execute: command, Arguments: args, ID: &id})
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if err := c.send(ctx, line); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	select {
	case m := <-answer:
		return m.result(command, result)
	case <-c.done:
		return fmt.Errorf("%s: %w", command, c.Err())
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, context.Cause(ctx))
	}
}

// request is a command on the wire.
type request struct {
	Execute   string  `json:"execute"`
	Arguments any     `json:"arguments,omitempty"`
	ID        *uint64 `json:"id,omitempty"`
}

// send writes one line. A connection that took a part of it is of no more use.
func (c *Client) send(ctx context.Context, line []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	stop := context.AfterFunc(ctx, func() { c.nc.Close() })
	_, err := c.nc.Write(append(line, '\n'))
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// result decodes an answer.
func (m message) result(command string, into any) error {
	if m.Error != nil {
		return &Error{Command: command, Class: m.Error.Class, Desc: m.Error.Desc}
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, into); err != nil {
		return fmt.Errorf("%s: its result: %w", command, err)
	}
	return nil
}

// read hands out what the peer sends until the connection ends.
func (c *Client) read(r *reader) {
	err := c.readAll(r)
	c.mu.Lock()
	if c.err == nil {
		c.err = errs.Wrap(errs.Unavailable, err, "the machine monitor has hung up")
	}
	c.mu.Unlock()
	c.nc.Close()
	close(c.done)
}

func (c *Client) readAll(r *reader) error {
	for {
		m, err := r.message()
		if err != nil {
			return err
		}
		switch {
		case m.Event != "":
			c.add(Event{Name: m.Event, Data: m.Data, Time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)})
		case m.ID == nil && m.Error != nil: // of a line that it could not read
			return fmt.Errorf("the peer understands nothing: %s", m.Error.Desc)
		case m.ID == nil:
			return errors.New("an answer to nothing")
		default:
			c.mu.Lock()
			answer := c.waiting[*m.ID]
			delete(c.waiting, *m.ID) // a second answer has nowhere to go
			c.mu.Unlock()
			if answer != nil {
				answer <- m
			}
		}
	}
}

func (c *Client) add(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.events) == maxEvents {
		c.events = c.events[1:]
	}
	c.events = append(c.events, e)
	close(c.news)
	c.news = make(chan struct{})
}

// Await takes the first event that want says yes to, of those that came since
// the connection was made and that nobody took, or waits for one. Others stay
// for others.
func (c *Client) Await(ctx context.Context, want func(Event) bool) (Event, error) {
	for {
		c.mu.Lock()
		for i, e := range c.events {
			if want(e) {
				c.events = append(c.events[:i], c.events[i+1:]...)
				c.mu.Unlock()
				return e, nil
			}
		}
		news := c.news
		c.mu.Unlock()
		select {
		case <-news:
		case <-c.done:
			return Event{}, c.Err()
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		}
	}
}

// Err is why the connection ended; nil: it has not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close hangs up. The machine goes on.
func (c *Client) Close() error {
	err := c.nc.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// reader reads objects, one to a line.
type reader struct{ r *bufio.Reader }

func newReader(nc net.Conn) *reader { return &reader{bufio.NewReaderSize(nc, 64<<10)} }

// line is the next line that is not empty. It is valid until the next call.
func (r *reader) line() ([]byte, error) {
	var long []byte
	for {
		part, err := r.r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		if len(long)+len(part) > maxLine {
			return nil, fmt.Errorf("a line of more than %d bytes", maxLine)
		}
		if err != nil {
			long = append(long, part...)
			continue
		}
		if long != nil {
			part = append(long, part...)
		}
		if part = bytes.TrimSpace(part); len(part) > 0 {
			return part, nil
		}
		long = nil
	}
}

func (r *reader) message() (m message, err error) {
	line, err := r.line()
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("no message of a machine monitor: %w", err)
	}
	return m, nil
}
