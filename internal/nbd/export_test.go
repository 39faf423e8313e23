package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/internal/errs"
)

func TestRemove(t *testing.T) {
	s, e, m, g := gated(t, Limits{}, "trim")
	r, quiet := s.attached("v", true), s.attached("v", false)
	r.send(cmdTrim, 0, 0, 512)
	<-g.entered
	if err := e.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if g.ended.Load() != 1 {
		t.Error("the trim was not told to end")
	}
	if a := r.answer(); a.code != ESHUTDOWN {
		t.Errorf("the trim's answer: %+v", a)
	}
	calls := m.calls.Load()
	for _, c := range []*raw{r, quiet} {
		c.do(ESHUTDOWN, cmdRead, 0, 0, 512)
		c.do(ESHUTDOWN, cmdWrite, 0, 0, 4, 1, 2, 3, 4)
		c.do(ESHUTDOWN, cmdFlush, 0, 0, 0)
	}
	if m.calls.Load() != calls {
		t.Error("the backend was called after Remove")
	}
	s.shaken().ask(optGo, infoData("v"), repErrUnknown)
	// The name is free at once, and is another export's.
	s.add(everything("v", 4096), newMemory(4096))
	if err := e.Remove(t.Context()); err != nil {
		t.Errorf("again: %v", err)
	}
	s.attached("v", true).do(0, cmdRead, 0, 0, 512)
	if _, err := e.Suspend(t.Context(), true); !errs.Is(err, errs.NotFound) {
		t.Errorf("Suspend: %v", err)
	}
}

// stuck is an export with a request in its Backend that heeds no context; open
// lets it, and later ones, through.
func stuck(t *testing.T) (s *served, e *Export, open chan struct{}) {
	t.Helper()
	s = serve(t, Limits{})
	m := newMemory(exportSize)
	open, entered := make(chan struct{}), make(chan struct{}, 10)
	m.onCall(func(context.Context, string, int64, int64) error {
		entered <- struct{}{}
		<-open
		return nil
	})
	e = s.add(everything("v", exportSize), m)
	s.attached("v", true).send(cmdFlush, 0, 0, 0)
	<-entered
	return s, e, open
}

// A Backend that does not heed its context keeps Remove waiting.
func TestRemoveOfStubbornBackend(t *testing.T) {
	_, e, open := stuck(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := e.Remove(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Remove: %v", err)
	}
	if _, err := e.Suspend(ctx, true); !errs.Is(err, errs.NotFound) {
		t.Errorf("Suspend: %v", err)
	}
	close(open)
	if err := e.Remove(t.Context()); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func TestSuspend(t *testing.T) {
	s, e, m, g := gated(t, Limits{}, "trim")
	resume, err := e.Suspend(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	s.shaken().ask(optGo, infoData("v"), repErrPolicy)
	if _, err := e.Suspend(t.Context(), true); !errs.Is(err, errs.Busy) {
		t.Errorf("twice: %v", err)
	}
	resume()
	resume()
	r := s.attached("v", true)
	if _, err := e.Suspend(t.Context(), false); !errs.Is(err, errs.Conflict) {
		t.Errorf("with a writer: %v", err)
	}
	r.do(0, cmdFlush, 0, 0, 0)
	r.send(cmdTrim, 0, 0, 512)
	<-g.entered
	resume, err = e.Suspend(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if g.ended.Load() != 1 || e.Connections() != 0 {
		t.Error("the client's request was not ended")
	}
	io.Copy(io.Discard, r.r)
	calls := m.calls.Load()
	s.shaken().ask(optGo, infoData("v"), repErrPolicy)
	if m.calls.Load() != calls {
		t.Error("the backend was called while suspended")
	}
	resume()
	s.attached("v", true).do(0, cmdFlush, 0, 0, 0)

	cfg := everything("ro", exportSize)
	cfg.ReadOnly = true
	ro := s.add(cfg, newMemory(exportSize))
	reader := s.attached("ro", true)
	resume, err = ro.Suspend(t.Context(), false)
	if err != nil {
		t.Fatalf("with a reader: %v", err)
	}
	reader.do(0, cmdRead, 0, 0, 512)
	resume()
}

// Who comes while an export is suspended waits for its end, whatever that is.
func TestAttachWaits(t *testing.T) {
	s := serve(t, Limits{Attach: time.Hour, Handshake: time.Hour})
	for round := range 40 {
		e, resume, err := s.AddSuspended(everything("v", exportSize), newMemory(exportSize))
		if err != nil {
			t.Fatal(err)
		}
		first, second := s.shaken(), s.shaken()
		first.write(option(optExportName, []byte("v")))
		second.write(option(optGo, infoData("v")))
		time.Sleep(time.Duration(round%4) * time.Millisecond)
		if n := e.Connections(); n != 0 {
			t.Fatalf("%d clients of an export that is suspended", n)
		}
		if round%2 == 0 {
			resume()
			if size := binary.BigEndian.Uint64(first.read(8)); size != exportSize {
				t.Errorf("attached to %d bytes", size)
			}
			second.read(20)
		}
		if err := e.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if round%2 == 1 {
			first.ended()
			if code := binary.BigEndian.Uint32(second.read(20)[12:]); code != repErrUnknown {
				t.Errorf("answer %#x", code)
			}
		}
		first.nc.Close()
		second.nc.Close()
	}
}

// A server that stops does not wait for clients that wait.
func TestStopWhileAttaching(t *testing.T) {
	s := serve(t, Limits{Attach: time.Hour, Handshake: time.Hour, Drain: time.Hour})
	_, _, err := s.AddSuspended(everything("v", exportSize), newMemory(exportSize))
	if err != nil {
		t.Fatal(err)
	}
	r := s.shaken()
	r.write(option(optExportName, []byte("v")))
	time.Sleep(5 * time.Millisecond)
	s.stop()
	r.ended()
}

func TestSuspendGivesUp(t *testing.T) {
	s, e, open := stuck(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := e.Suspend(ctx, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Suspend: %v", err)
	}
	close(open)
	s.attached("v", true).do(0, cmdFlush, 0, 0, 0)
}

func TestExclusiveAndSize(t *testing.T) {
	s := serve(t, Limits{})
	cfg := everything("v", exportSize)
	cfg.MaxConnections = 1
	e := s.add(cfg, newMemory(2*exportSize))
	first := s.attached("v", false)
	if e.Connections() != 1 {
		t.Errorf("%d connections", e.Connections())
	}
	s.shaken().ask(optGo, infoData("v"), repErrPolicy)
	if err := e.SetSize(2 * exportSize); err != nil {
		t.Fatal(err)
	}
	first.do(ENOSPC, cmdWrite, 0, exportSize, 4, 1, 2, 3, 4)
	if n := e.AwaitDetached(t.Context(), time.Millisecond); n != 1 {
		t.Errorf("%d clients after a wait for one that stays", n)
	}
	first.nc.Close()
	if n := e.AwaitDetached(t.Context(), time.Minute); n != 0 {
		t.Errorf("%d clients after a wait for one that left", n)
	}
	s.attached("v", false).do(0, cmdWrite, 0, exportSize, 4, 1, 2, 3, 4)
}

// Exports come, go and are suspended under clients that never stop.
func TestExportsComeAndGo(t *testing.T) {
	s := serve(t, Limits{})
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var done atomic.Int64
	for i := range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				c, err := Dial(ctx, s.uri("v"), Options{Attempts: 2})
				if err != nil {
					continue
				}
				for {
					if err := c.WriteAt(ctx, make([]byte, 4096), int64(i)*4096, 0); err != nil {
						break
					}
					done.Add(1)
				}
				c.Close()
			}
		})
	}
	for round := range 60 {
		var inside, after atomic.Int64
		var closed atomic.Bool
		m := newMemory(exportSize)
		m.onCall(func(context.Context, string, int64, int64) error {
			inside.Add(1)
			defer inside.Add(-1)
			if closed.Load() {
				after.Add(1)
			}
			return nil
		})
		e := s.add(everything("v", exportSize), m)
		time.Sleep(time.Duration(round%4) * time.Millisecond)
		if round%2 == 0 {
			resume, err := e.Suspend(ctx, true)
			if err != nil {
				t.Fatal(err)
			}
			if n := inside.Load(); n != 0 || e.Connections() != 0 {
				t.Fatalf("round %d: %d requests in a suspended export", round, n)
			}
			closed.Store(true)
			time.Sleep(time.Millisecond)
			closed.Store(false)
			resume()
		}
		if err := e.Remove(ctx); err != nil {
			t.Fatal(err)
		}
		closed.Store(true)
		if n := inside.Load(); n != 0 {
			t.Fatalf("round %d: %d requests in a removed export", round, n)
		}
		defer func() {
			if n := after.Load(); n != 0 {
				t.Errorf("round %d: %d requests after it was closed", round, n)
			}
		}()
	}
	last := s.add(everything("v", exportSize), newMemory(exportSize))
	before := done.Load()
	eventually(t, "clients write again", func() bool { return done.Load() > before })
	cancel()
	clients.Wait()
	eventually(t, "all are detached", func() bool { return last.Connections() == 0 })
}
