package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/internal/errs"
)

// gate makes requests of one kind wait in the backend.
type gate struct {
	what    string
	entered chan int64 // offsets
	open    chan struct{}
	ended   atomic.Int64 // by their context
}

func newGate(what string) *gate {
	return &gate{what: what, entered: make(chan int64, 1000), open: make(chan struct{})}
}

func (g *gate) wait(ctx context.Context, what string, off, _ int64) error {
	if what != g.what {
		return nil
	}
	g.entered <- off
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		g.ended.Add(1)
		return ctx.Err()
	}
}

func gated(t *testing.T, limits Limits, what string) (*served, *Export, *memory, *gate) {
	t.Helper()
	s := serve(t, limits)
	m, g := newMemory(exportSize), newGate(what)
	m.onCall(g.wait)
	return s, s.add(everything("v", exportSize), m), m, g
}

// A slow request keeps nothing else of its connection from being done, and
// replies come as they are ready.
func TestOutOfOrder(t *testing.T) {
	const limit = 8
	s, _, m, g := gated(t, Limits{Requests: limit}, "trim")
	for _, structured := range []bool{false, true} {
		r := s.attached("v", structured)
		for round := range 3 {
			for i := range uint64(limit - 1) {
				r.send(cmdTrim, 0, i*512, 512)
				<-g.entered
				r.do(0, cmdWrite, 0, 0, 4, 1, 2, 3, 4) // overtakes
			}
			// One more than may be in flight: it and all after it wait.
			r.send(cmdTrim, 0, 512*(limit-1), 512)
			<-g.entered
			calls := m.calls.Load()
			r.send(cmdCache, 0, 0, 512)
			time.Sleep(10 * time.Millisecond)
			if m.calls.Load() != calls {
				t.Fatal("more requests in the backend than the limit")
			}
			for range limit {
				g.open <- struct{}{}
			}
			seen := map[uint64]bool{}
			for range limit + 1 {
				seen[r.answer().cookie] = true
			}
			if len(seen) != limit+1 || !seen[cookieOf(cmdCache, 0)] {
				t.Fatalf("round %d: replies %v", round, seen)
			}
		}
		r.send(cmdDisconnect, 0, 0, 0)
		r.ended()
	}
}

// Replies do not wait for a slow request that came in the same packet.
func TestQuickBeforeSlow(t *testing.T) {
	s, _, _, g := gated(t, Limits{}, "trim")
	for _, structured := range []bool{false, true} {
		r := s.attached("v", structured)
		r.write(bytes.Join([][]byte{
			requestBytes(cmdCache, 0, 0, 512), requestBytes(cmdRead, 0, 0, 512),
			requestBytes(cmdTrim, 0, 0, 512), requestBytes(cmdTrim, 0, 0, 512), requestBytes(cmdTrim, 0, 0, 512)[:10],
		}, nil))
		r.answer()
		if a := r.answer(); a.simple {
			r.read(512)
		}
		g.open <- struct{}{}
		g.open <- struct{}{}
		r.answer()
		r.answer()
	}
}

// Requests that come together are answered, all, in whatever pieces they came.
func TestManyRequestsInOnePacket(t *testing.T) {
	s := serve(t, Limits{Requests: 4})
	m := newMemory(exportSize)
	s.add(everything("v", exportSize), m)
	r := s.attached("v", true)
	const n = 1000
	var all []byte
	for i := range uint64(n) {
		head := make([]byte, requestLen)
		q := request{cmd: cmdWrite, cookie: i, off: i * 512, length: 512}
		if i%3 == 0 {
			q = request{cmd: cmdRead, cookie: i, off: i * 512, length: 100}
		}
		q.put(head)
		all = append(all, head...)
		if q.cmd == cmdWrite {
			all = append(all, bytes.Repeat([]byte{byte(i)}, 512)...)
		}
	}
	var sender sync.WaitGroup
	sender.Go(func() {
		for len(all) > 0 {
			k := min(len(all), 33333)
			if _, err := r.nc.Write(all[:k]); err != nil {
				t.Error(err)
				return
			}
			all = all[k:]
		}
	})
	seen := map[uint64]bool{}
	for range n {
		a := r.answer()
		if a.code != 0 || seen[a.cookie] {
			t.Fatalf("reply %+v", a)
		}
		seen[a.cookie] = true
	}
	sender.Wait()
	for i := range n {
		if want := byte(i); i%3 != 0 && m.bytes(i*512+511, 1)[0] != want {
			t.Fatalf("write %d is missing", i)
		}
	}
}

// Bytes that are no requests cost the connection, and requests of it that are
// in the backend learn of it.
func TestTransmissionEnds(t *testing.T) {
	s, e, m, g := gated(t, Limits{}, "trim")
	for name, bytes := range map[string][]byte{
		"wrong magic":    make([]byte, requestLen),
		"half a header":  requestBytes(cmdWrite, 0, 0, 4096)[:20],
		"half a payload": requestBytes(cmdWrite, 0, 0, 4096, 1, 2, 3),
	} {
		t.Run(name, func(t *testing.T) {
			r := s.attached("v", true)
			r.send(cmdTrim, 0, 0, 512)
			<-g.entered
			ended := g.ended.Load()
			r.write(bytes)
			r.nc.(*net.UnixConn).CloseWrite()
			io.Copy(io.Discard, r.r) // the trim may still be told its end
			eventually(t, "the trim ends", func() bool { return g.ended.Load() == ended+1 })
		})
	}
	eventually(t, "all are detached", func() bool { return e.Connections() == 0 })
	m.onCall(nil)
	s.attached("v", true).do(0, cmdFlush, 0, 0, 0)
}

// eventually waits for what must come to pass, however long that takes here.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for range 2000 {
		if f() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("it never came to pass: %s", what)
}

func TestTooManyConnections(t *testing.T) {
	s := serve(t, Limits{Connections: 2})
	s.add(everything("v", exportSize), newMemory(exportSize))
	a, b := s.attached("v", false), s.shaken()
	s.raw().ended()
	b.nc.Close()
	eventually(t, "a place is free", func() bool {
		r := s.raw()
		defer r.nc.Close()
		_, err := io.ReadFull(r.r, make([]byte, helloLen))
		return err == nil
	})
	a.do(0, cmdFlush, 0, 0, 0)
}

// A peer that takes no replies, or sends only half of a write, loses its
// connection; small requests of others are served all the while, and all is
// given back.
func TestStalls(t *testing.T) {
	limits := Limits{Stall: 2 * time.Second, ConnBytes: 4 << 20, TotalBytes: 6 << 20}
	s := serve(t, limits)
	const size = 64 << 20
	m := newMemory(size)
	clear(m.holes)
	e := s.add(everything("v", size), m)
	good := s.attached("v", true)
	var bad []*raw
	for range 3 {
		r := s.attached("v", false)
		for i := range uint64(30) {
			r.send(cmdRead, 0, i<<20, 1<<20)
		}
		bad = append(bad, r)
	}
	half := s.attached("v", false)
	half.write(requestBytes(cmdWrite, 0, 0, 4096, 1))
	for range 100 {
		good.do(0, cmdWrite, 0, 0, 4, 1, 2, 3, 4)
	}
	eventually(t, "the stalled ones lose their connections", func() bool { return e.Connections() == 1 })
	for _, r := range append(bad, half) {
		io.Copy(io.Discard, r.r)
	}
	// All of the budget is there again.
	if !s.bytes.TryAcquire(limits.TotalBytes) {
		t.Error("ended connections hold bytes of the limit")
	} else {
		s.bytes.Release(limits.TotalBytes)
	}
	good.send(cmdRead, cmdFlagDF, 0, 32<<20)
	if a := good.answer(); a.length != 8+32<<20 {
		t.Errorf("a read above the limits: %+v", a.chunk)
	}
}

// The end of Serve: what is in the backend is answered, then all is closed.
func TestDrain(t *testing.T) {
	s, _, _, g := gated(t, Limits{}, "trim")
	idle, half, r := s.attached("v", true), s.shaken(), s.attached("v", true)
	r.send(cmdTrim, 0, 0, 512)
	<-g.entered
	stopped := make(chan struct{})
	go func() {
		s.stop()
		close(stopped)
	}()
	idle.ended()
	half.ended()
	select {
	case <-stopped:
		t.Fatal("Serve ended before its requests")
	case <-time.After(20 * time.Millisecond):
	}
	close(g.open)
	if a := r.answer(); a.code != 0 {
		t.Errorf("answer %+v", a)
	}
	r.ended()
	<-stopped
	if _, err := net.Dial("unix", s.path); err == nil {
		t.Error("the listener is open")
	}
}

// Requests that do not end in time are cut.
func TestDrainCuts(t *testing.T) {
	s, _, _, g := gated(t, Limits{Drain: 50 * time.Millisecond}, "trim")
	r := s.attached("v", true)
	r.send(cmdTrim, 0, 0, 512)
	<-g.entered
	s.stop()
	if g.ended.Load() != 1 {
		t.Error("the trim was not told to end")
	}
	io.Copy(io.Discard, r.r) // the trim may still be told its end
}

func TestListenerClosedByOthers(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(shortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := NewServer(Limits{}, nil).Serve(t.Context(), l); !errs.Is(err, errs.Unavailable) {
		t.Errorf("Serve: %v", err)
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Limits{}, nil)
	if _, err := s.Add(everything("v w", exportSize), newMemory(exportSize)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- s.Serve(ctx, l) }()
	uri, err := ParseURI(fmt.Sprintf("nbd://%s/v%%20w", l.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Dial(ctx, uri, Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, q := bytes.Repeat([]byte{7}, 100000), make([]byte, 100000)
	if err := errors.Join(c.WriteAt(ctx, p, 99, 0), c.Flush(ctx), c.ReadAt(ctx, q, 99)); err != nil || !bytes.Equal(p, q) {
		t.Errorf("%v", err)
	}
	c.Close()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
