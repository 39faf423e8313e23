package nbd

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// Cancelled requests return at once, wherever they are, leave the caller's
// buffer alone, and the connection in use where that is possible.
func TestCancel(t *testing.T) {
	release := make(chan struct{})
	uri := fakeServer(t, usual, func(f *fake) {
		first, _, ok := f.request()
		if !ok {
			return
		}
		<-release
		f.nc.Write(f.right(&first))
		f.honest()
	})
	c := dialFake(t, uri, Options{InFlight: 2})
	p := make([]byte, 4096)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.ReadAt(ctx, p, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("waiting for the reply: %v", err)
	}
	link := c.slots[0].link
	second, third := make(chan error, 1), make(chan error, 1)
	ctx2, cancel2 := context.WithCancel(t.Context())
	go func() { second <- c.ReadAt(t.Context(), make([]byte, 10), 5) }()
	eventually(t, "two requests are under way", func() bool { return len(link.window) == 2 })
	go func() { third <- c.ReadAt(ctx2, make([]byte, 10), 5) }()
	time.Sleep(5 * time.Millisecond)
	cancel2()
	if err := <-third; !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for a place: %v", err)
	}
	close(release)
	if err := <-second; err != nil {
		t.Errorf("another request: %v", err)
	}
	if slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) {
		t.Error("the buffer of a cancelled read was written to")
	}
	if c.slots[0].link != link || !link.alive() {
		t.Error("the connection was given up")
	}
}

// A server that stops in the middle of sending or taking data is left.
func TestCancelInTheMiddle(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	uri := fakeServer(t, usual, func(f *fake) {
		if f.n > 0 {
			f.honest()
			return
		}
		if q, _, ok := f.request(); ok {
			f.nc.Write(f.right(&q)[:1000])
			f.r.WriteTo(discard{})
		}
	})
	c := dialFake(t, uri, Options{})
	read := make(chan error, 1)
	go func() { read <- c.ReadAt(ctx, make([]byte, 4096), 0) }()
	l := c.slots[0].link
	eventually(t, "the data begins to come", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.pending[1] != nil && l.pending[1].filling
	})
	cancel()
	if err := <-read; !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	if err := c.ReadAt(t.Context(), make([]byte, 4096), 0); err != nil {
		t.Errorf("afterwards: %v", err)
	}

	o := usual
	o.size = 64 << 20
	stuck, taken := make(chan struct{}), make(chan struct{})
	uri = fakeServer(t, o, func(f *fake) {
		if f.n > 0 {
			f.honest()
			return
		}
		f.r.Peek(1)
		close(taken)
		<-stuck // takes no more
	})
	defer close(stuck)
	c = dialFake(t, uri, Options{MaxRequest: 32 << 20})
	ctx, cancel = context.WithCancel(t.Context())
	queued := make(chan error, 1)
	go func() {
		<-taken
		time.AfterFunc(10*time.Millisecond, cancel)
		queued <- c.WriteAt(ctx, make([]byte, 512), 0, 0)
	}()
	if err := c.WriteAt(ctx, make([]byte, 32<<20), 0, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("write: %v", err)
	}
	if err := <-queued; !errors.Is(err, context.Canceled) {
		t.Errorf("a write behind it: %v", err)
	}
	if err := c.ReadAt(t.Context(), make([]byte, 4096), 0); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestClose(t *testing.T) {
	entered := make(chan struct{}, 10)
	uri := fakeServer(t, usual, func(f *fake) {
		for {
			if _, _, ok := f.request(); !ok {
				return
			}
			entered <- struct{}{}
		}
	})
	c := dialFake(t, uri, Options{})
	failed := make(chan error, 2)
	go func() { failed <- c.ReadAt(t.Context(), make([]byte, 10), 0) }()
	go func() { failed <- c.WriteAt(t.Context(), make([]byte, 10), 0, 0) }()
	<-entered
	<-entered
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-failed; !errors.Is(err, ErrClosed) {
			t.Errorf("under way: %v", err)
		}
	}
	if err := c.Flush(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("afterwards: %v", err)
	}
}
