package nbd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"cairn/internal/errs"
)

// Limits bound what peers can make the server spend. A field that is 0 gets
// the default beside it.
type Limits struct {
	Connections int           // 256; at once, further ones are hung up on
	Handshake   time.Duration // 10 s; all of it
	Attach      time.Duration // 5 s; of it, for an export that is suspended
	Options     int           // 256; in one handshake
	OptionBytes int           // 64 KiB; in one option
	Requests    int           // 64; in flight in one connection
	ConnBytes   int64         // 64 MiB; of reads and writes in flight in one connection
	// TotalBytes is for all connections together: 512 MiB. Requests up to
	// 64 KiB do not count, so that peers which stall cannot keep them from
	// others: those are bounded by Connections × Requests.
	TotalBytes int64
	// Stall is how long a peer may leave a batch of replies untaken, or a
	// write's data unsent, before it loses its connection: 1 min.
	Stall time.Duration
	// Drain is how long requests in flight may take when Serve ends: 10 s.
	Drain time.Duration
}

// smallRequest is the size up to which a request does not count in TotalBytes.
const smallRequest = 64 << 10

func (l *Limits) setDefaults() {
	setDefault(&l.Connections, 256)
	setDefault(&l.Handshake, 10*time.Second)
	setDefault(&l.Attach, 5*time.Second)
	setDefault(&l.Options, 256)
	setDefault(&l.OptionBytes, 64<<10)
	setDefault(&l.Requests, 64)
	setDefault(&l.ConnBytes, 64<<20)
	setDefault(&l.TotalBytes, 512<<20)
	setDefault(&l.Stall, time.Minute)
	setDefault(&l.Drain, 10*time.Second)
}

func setDefault[T int | int64 | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// Server serves exports on the listeners that it is given. Exports may be
// added and removed at any time.
type Server struct {
	limits Limits
	log    *slog.Logger
	pool   bufferPool
	bytes  *semaphore.Weighted // of limits.TotalBytes
	load   load

	mu      sync.Mutex // guards what follows; before Export.mu in the lock order
	exports map[string]*Export
	conns   int
}

// NewServer makes a server without exports. log may be nil.
func NewServer(limits Limits, log *slog.Logger) *Server {
	limits.setDefaults()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		limits:  limits,
		log:     log,
		bytes:   semaphore.NewWeighted(limits.TotalBytes),
		exports: map[string]*Export{},
	}
}

// Add serves b under cfg.Name from now on. errs.Exists: the name is taken;
// errs.Invalid: no client could use such an export.
func (s *Server) Add(cfg ExportConfig, b Backend) (*Export, error) {
	e, resume, err := s.AddSuspended(cfg, b)
	if err == nil {
		resume()
	}
	return e, err
}

// AddSuspended is Add, and Export.Suspend before any client can attach.
func (s *Server) AddSuspended(cfg ExportConfig, b Backend) (e *Export, resume func(), err error) {
	cfg.Contexts = slices.Clone(cfg.Contexts)
	if err := cfg.check(); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exports[cfg.Name] != nil {
		return nil, nil, errs.New(errs.Exists, "an NBD export %q is being served already", cfg.Name)
	}
	e = &Export{
		server: s, backend: b, cfg: cfg, size: cfg.Size,
		conns: map[*conn]struct{}{}, removed: make(chan struct{}),
	}
	resume = e.suspend()
	s.exports[cfg.Name] = e
	return e, resume, nil
}

func (s *Server) forget(e *Export) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exports[e.cfg.Name] == e {
		delete(s.exports, e.cfg.Name)
	}
}

// lookup finds an export; nil: there is none of that name.
func (s *Server) lookup(name string) *Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exports[name]
}

// list is all exports by name.
func (s *Server) list() []*Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*Export
	for _, e := range s.exports {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *Export) int { return strings.Compare(a.cfg.Name, b.cfg.Name) })
	return all
}

// Serve takes clients from l until ctx ends, then closes l, lets requests in
// flight finish within Limits.Drain and returns nil when all connections have
// ended. It may run for several listeners at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	set := &connSet{conns: map[*conn]struct{}{}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var background sync.WaitGroup
	background.Go(func() { s.watch(ctx, set) })

	err := s.accept(ctx, l, set)
	l.Close()
	cancel()
	background.Wait()
	set.end(s.limits.Drain)
	return err
}

func (s *Server) accept(ctx context.Context, l net.Listener, set *connSet) error {
	for {
		nc, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				nc.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return errs.Wrap(errs.Unavailable, err, "the NBD server's listener was closed")
		case err != nil: // no file descriptors, or a peer that left at once
			s.log.Warn("cannot accept an NBD connection", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		if !s.enter() {
			s.log.Warn("refused an NBD connection: there are too many", "limit", s.limits.Connections)
			nc.Close()
			continue
		}
		c := newConn(context.WithoutCancel(ctx), s, nc)
		set.add(c)
		go func() {
			defer set.remove(c)
			defer s.leave()
			c.serve()
		}()
	}
}

func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns >= s.limits.Connections {
		return false
	}
	s.conns++
	return true
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns--
}

// watch ends connections whose peer takes or sends nothing for too long.
func (s *Server) watch(ctx context.Context, set *connSet) {
	const looks = 4 // in one Stall
	tick := time.NewTicker(max(s.limits.Stall/looks, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, c := range set.all() {
			if c.stalled(looks) {
				c.kill(errStalled)
			}
		}
	}
}

// connSet is the connections of one listener.
type connSet struct {
	running sync.WaitGroup
	mu      sync.Mutex // guards conns
	conns   map[*conn]struct{}
}

func (s *connSet) add(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = struct{}{}
	s.running.Add(1)
}

func (s *connSet) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.running.Done()
}

func (s *connSet) all() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	return all
}

// end lets the connections finish what they are at, and cuts after grace.
func (s *connSet) end(grace time.Duration) {
	for _, c := range s.all() {
		c.drain()
	}
	timer := time.AfterFunc(grace, func() {
		for _, c := range s.all() {
			c.kill(errDrained)
		}
	})
	defer timer.Stop()
	s.running.Wait()
}
