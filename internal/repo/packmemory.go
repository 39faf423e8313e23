package repo

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// packMemory lends memory for data packs to all sessions of a repository: one
// piece for each session, and one more, so that a pack is filled while another
// is put. The pieces lie outside of Go's heap: there the collector would let
// as much garbage lie around as is alive, and 32 MiB are much of that.
//
// A session waits for a piece only while it fills no pack, so whoever has one
// comes to give it back.
type packMemory struct {
	free chan []byte // nil: a piece without memory yet

	mu     sync.Mutex // guards what follows; a leaf of the lock order
	excess int        // pieces that are lent and not to come back
}

// sessionsMost bounds the sessions of one repository in this process.
const sessionsMost = 1024

// errPutFailed says that waiting is no use: the putter has failed.
var errPutFailed = errors.New("a pack could not be put")

func newPackMemory() *packMemory {
	m := &packMemory{free: make(chan []byte, sessionsMost+1)}
	m.free <- nil
	return m
}

// join adds a session's piece.
func (m *packMemory) join() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.excess > 0 {
		m.excess--
		return nil
	}
	select {
	case m.free <- nil:
		return nil
	default:
		return fmt.Errorf("more than %d sessions write at once", sessionsMost)
	}
}

// leave takes a session's piece away, and the memory of all that nobody uses.
func (m *packMemory) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.excess++
	for range len(m.free) {
		select {
		case b := <-m.free:
			unmap(b)
			if m.excess > 0 {
				m.excess--
			} else {
				m.free <- nil
			}
		default:
		}
	}
}

// get waits for a piece of packTarget+packSlack bytes; failed ends the waiting.
func (m *packMemory) get(ctx context.Context, failed <-chan struct{}) ([]byte, error) {
	select {
	case b := <-m.free:
		if b != nil {
			return b, nil
		}
		b, err := unix.Mmap(-1, 0, packTarget+packSlack, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			m.put(nil)
			return nil, fmt.Errorf("get memory for a pack: %w", err)
		}
		return b, nil
	case <-failed:
		return nil, errPutFailed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// put gives a piece back.
func (m *packMemory) put(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.excess > 0 {
		m.excess--
		unmap(b)
		return
	}
	m.free <- b // has room for all pieces
}

// unmap cannot fail for a whole mapping of our own.
func unmap(b []byte) {
	if b == nil {
		return
	}
	if err := unix.Munmap(b); err != nil {
		panic("memory of a pack cannot be given back: " + err.Error())
	}
}
