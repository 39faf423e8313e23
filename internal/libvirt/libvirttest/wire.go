package libvirttest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"cairn/internal/libvirt"
)

// Call is one of libvirt's protocol, as that numbers them.
// https://libvirt.org/kbase/internals/rpc.html
type Call uint32

// The ones that tests need.
const (
	DomainResume   Call = 28
	DomainSuspend  Call = 34
	DomainAbortJob Call = 442
	ListDomains    Call = 273
)

// Wire is a way to a daemon that breaks when a test says so.
type Wire struct {
	libvirt.Daemon
	to string

	mu     sync.Mutex // guards what follows
	breaks map[Call]int
	hangs  bool
	open   map[net.Conn]bool
}

// Wire is a way to the daemon that ends with the test.
func (d Daemon) Wire(t *testing.T) *Wire {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(filepath.Dir(d.socket), "wire"))
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{to: d.socket, breaks: map[Call]int{}, open: map[net.Conn]bool{}}
	if w.Daemon, err = libvirt.Parse("qemu:///system?socket=" + l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { w.serve(nc) })
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		w.cut()
		serving.Wait()
	})
	return w
}

// Break lets the wire end at the next calls of a kind, before the daemon hears
// of them.
func (w *Wire) Break(c Call, times int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.breaks[c] = times
}

// Hang says whether the daemon hears nothing and says nothing.
func (w *Wire) Hang(hangs bool) {
	w.mu.Lock()
	w.hangs = hangs
	w.mu.Unlock()
	if !hangs {
		w.cut()
	}
}

// cut ends all connections.
func (w *Wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for nc := range w.open {
		_ = nc.Close() // both ends close it
	}
}

func (w *Wire) keep(nc net.Conn, keep bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if keep {
		w.open[nc] = true
	} else {
		delete(w.open, nc)
		_ = nc.Close() // both ends close it
	}
}

// passes reports whether a call reaches the daemon.
func (w *Wire) passes(c Call) (passes, hangs bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.breaks[c] > 0 {
		w.breaks[c]--
		return false, w.hangs
	}
	return true, w.hangs
}

func (w *Wire) serve(client net.Conn) {
	w.keep(client, true)
	defer w.keep(client, false)
	daemon, err := (&net.Dialer{}).DialContext(context.Background(), "unix", w.to)
	if err != nil {
		return
	}
	w.keep(daemon, true)
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(client, daemon) // it ends with either
		_ = client.Close()
	})
	defer back.Wait()
	defer w.keep(daemon, false)
	for {
		packet, call, err := readCall(client)
		if err != nil {
			return
		}
		passes, hangs := w.passes(call)
		if hangs {
			continue
		}
		if !passes {
			return
		}
		if _, err := daemon.Write(packet); err != nil {
			return
		}
	}
}

// most is libvirt's limit of a packet.
const most = 32 << 20

// readCall reads a packet: its length with these four bytes, the program, its
// version, and the procedure.
func readCall(r io.Reader) ([]byte, Call, error) {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, 0, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 16 || n > most {
		return nil, 0, errors.New("no packet of libvirt's")
	}
	packet := make([]byte, n)
	copy(packet, head[:])
	_, err := io.ReadFull(r, packet[16:])
	return packet, Call(binary.BigEndian.Uint32(head[12:])), err
}
