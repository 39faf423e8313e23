package nbd

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// bigSize holds a few writes that are streamed.
const bigSize = 16 << 20

func randomBytes(rnd *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	return p
}

func requestHead(cmd uint16, off uint64, length int) []byte {
	b := make([]byte, requestLen)
	(&request{cmd: cmd, cookie: cookieOf(cmd, off), off: off, length: uint32(length)}).put(b)
	return b
}

// Writes of any size at any place, whose data comes in pieces of any size, on
// a Backend that is sometimes slow, arrive whole, with small requests between.
func TestStreamedWrites(t *testing.T) {
	for seed := range uint64(6) {
		rnd := rand.New(rand.NewPCG(seed, 11))
		s := serve(t, Limits{Requests: 2 + rnd.IntN(6)})
		m := newMemory(bigSize)
		clear(m.holes)
		s.add(everything("v", bigSize), m)
		var mu sync.Mutex
		slow := rand.New(rand.NewPCG(seed, 12))
		m.onCall(func(ctx context.Context, what string, _, _ int64) error {
			mu.Lock()
			wait := what == "write" && slow.IntN(6) == 0
			mu.Unlock()
			if wait {
				time.Sleep(2 * stealAfter) // long enough for the reading to be taken away
			}
			return ctx.Err()
		})
		r := s.attached("v", seed%2 == 0)
		want := make([]byte, bigSize)
		for round := range 3 {
			var wire []byte
			n := 0
			for off := rnd.IntN(70000); ; n++ {
				length := 1 + rnd.IntN(9000)
				if rnd.IntN(2) == 0 {
					length = streamed + rnd.IntN(6*streamPiece)
				}
				if off+length > bigSize {
					break
				}
				p := randomBytes(rnd, length)
				copy(want[off:], p)
				wire = append(append(wire, requestHead(cmdWrite, uint64(off), length)...), p...)
				off += length + rnd.IntN(2)*rnd.IntN(70000)
			}
			var sender sync.WaitGroup
			sender.Go(func() {
				for len(wire) > 0 {
					k := min(len(wire), 1+rand.IntN(1<<(10+rand.IntN(12))))
					if _, err := r.nc.Write(wire[:k]); err != nil {
						t.Error(err)
						return
					}
					wire = wire[k:]
				}
			})
			for range n {
				if a := r.answer(); a.code != 0 {
					t.Fatalf("seed %d, round %d: reply %+v", seed, round, a)
				}
			}
			sender.Wait()
			if !bytes.Equal(m.bytes(0, bigSize), want) {
				t.Fatalf("seed %d: other bytes than were sent after round %d", seed, round)
			}
		}
	}
}

// A piece that waits in the Backend keeps neither the rest of its data nor
// other requests from being read.
func TestStreamIsTakenFrom(t *testing.T) {
	const length = 1<<20 + 5000
	for _, limits := range []Limits{{}, {Requests: 2}} {
		s := serve(t, limits)
		m, g := newMemory(bigSize), newGate("write")
		m.onCall(g.wait)
		s.add(everything("v", bigSize), m)
		r := s.attached("v", true)
		p := randomBytes(rand.New(rand.NewPCG(1, 1)), length)
		for _, sent := range []int{streamPiece + 100, 3 * streamPiece, length} {
			r.write(append(requestHead(cmdWrite, 4096, length), p[:sent]...))
			<-g.entered
			r.write(p[sent:])
			r.do(0, cmdCache, 0, 0, 512)
			r.do(0, cmdFlush, 0, 0, 0)
			for done := false; !done; {
				select {
				case g.open <- struct{}{}:
				default:
					done = bytes.Equal(m.bytes(4096, length), p)
				}
			}
			if a := r.answer(); a.code != 0 || a.cookie != cookieOf(cmdWrite, 4096) {
				t.Fatalf("reply %+v", a)
			}
			clear(m.data)
			for len(g.entered) > 0 {
				<-g.entered
			}
		}
	}
}

// A write whose data counts for all that may be in flight is done whoever reads
// the rest of it: nobody waits for what the write itself holds.
func TestStreamWithinLimits(t *testing.T) {
	const length = 2 << 20
	for _, limits := range []Limits{{ConnBytes: 1 << 20}, {ConnBytes: length}, {TotalBytes: 1 << 20}, {TotalBytes: length}} {
		s := serve(t, limits)
		m, g := newMemory(bigSize), newGate("write")
		m.onCall(g.wait)
		s.add(everything("v", bigSize), m)
		r := s.attached("v", true)
		p := randomBytes(rand.New(rand.NewPCG(4, 1)), length)
		r.write(append(requestHead(cmdWrite, 0, length), p[:streamPiece+100]...))
		<-g.entered
		time.Sleep(3 * stealAfter) // the reading is taken away
		close(g.open)
		r.write(p[streamPiece+100:])
		if a := r.answer(); a.code != 0 || !bytes.Equal(m.bytes(0, length), p) {
			t.Fatalf("%+v: reply %+v", limits, a)
		}
		if !s.bytes.TryAcquire(s.limits.TotalBytes) {
			t.Errorf("%+v: bytes of the limit are held", limits)
		}
	}
}

// With one request at a time nobody can take the reading away: such writes are
// read whole.
func TestNoStreamForOneRequest(t *testing.T) {
	s := serve(t, Limits{Requests: 1})
	m := newMemory(bigSize)
	s.add(everything("v", bigSize), m)
	r := s.attached("v", true)
	p := randomBytes(rand.New(rand.NewPCG(2, 1)), 1<<20)
	m.onCall(func(context.Context, string, int64, int64) error { time.Sleep(3 * stealAfter); return nil })
	r.do(0, cmdWrite, 0, 0, 1<<20, p...)
	if m.calls.Load() != 1 || !bytes.Equal(m.bytes(0, 1<<20), p) {
		t.Errorf("%d calls", m.calls.Load())
	}
}

// A piece that fails fails its write; what is left of it is read past, and the
// connection goes on. FUA is never done in pieces.
func TestStreamFails(t *testing.T) {
	s := serve(t, Limits{})
	m := newMemory(bigSize)
	e := s.add(everything("v", bigSize), m)
	r := s.attached("v", true)
	p := randomBytes(rand.New(rand.NewPCG(3, 1)), 1<<20)
	m.onCall(func(_ context.Context, what string, off, _ int64) error {
		if what == "write" && off < 1<<20 {
			return ENOSPC
		}
		return nil
	})
	r.do(ENOSPC, cmdWrite, 0, 0, 1<<20, p...)
	if m.calls.Load() != 1 {
		t.Errorf("%d calls for a write of which the first piece failed", m.calls.Load())
	}
	r.do(0, cmdWrite, 0, 1<<20, 1<<20, p...)
	if calls := m.calls.Load(); calls < 3 || !bytes.Equal(m.bytes(1<<20, 1<<20), p) {
		t.Errorf("a write of 1 MiB was %d calls", calls-1)
	}
	m.calls.Store(0)
	r.do(0, cmdWrite, cmdFlagFUA, 1<<20, 1<<20, p...)
	if m.calls.Load() != 1 || m.flags.Load() != uint32(FUA) {
		t.Errorf("a write with FUA was %d calls with flags %d", m.calls.Load(), m.flags.Load())
	}

	// An export that goes away in the middle of a write's data: the Backend
	// sees no more of it.
	m.onCall(nil)
	r = s.attached("v", true)
	r.write(append(requestHead(cmdWrite, 2<<20, 1<<20), p[:2*streamPiece]...))
	eventually(t, "the first pieces are written", func() bool { return bytes.Equal(m.bytes(2<<20, streamPiece), p[:streamPiece]) })
	if err := e.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	calls := m.calls.Load()
	r.write(p[2*streamPiece:])
	if a := r.answer(); a.code != ESHUTDOWN || m.calls.Load() != calls {
		t.Errorf("after Remove the Backend was called %d times; reply %+v", m.calls.Load()-calls, a)
	}
}

// A connection that breaks in the middle of a write's data leaves a part of the
// write behind at most, whoever was reading.
func TestStreamBreaks(t *testing.T) {
	const length = 1 << 20
	for _, taken := range []bool{false, true} {
		s, e, m, g := gatedBig(t)
		if !taken {
			m.onCall(nil)
		}
		r := s.attached("v", true)
		p := bytes.Repeat([]byte{7}, length)
		r.write(append(requestHead(cmdWrite, 0, length), p[:2*streamPiece]...))
		if taken {
			<-g.entered
			time.Sleep(3 * stealAfter)
		}
		r.nc.(*net.UnixConn).CloseWrite()
		if taken {
			close(g.open) // the write may have been told to end by now
		}
		_, _ = io.Copy(io.Discard, r.r)
		eventually(t, "it is detached", func() bool { return e.Connections() == 0 })
		if n := bytes.Count(m.bytes(0, length), []byte{7}); n > 2*streamPiece {
			t.Errorf("%d bytes of %d that were sent are written", n, 2*streamPiece)
		}
		if !s.bytes.TryAcquire(s.limits.TotalBytes) {
			t.Error("the connection holds bytes of the limit")
		}
	}
}

func gatedBig(t *testing.T) (*served, *Export, *memory, *gate) {
	s := serve(t, Limits{})
	m, g := newMemory(bigSize), newGate("write")
	m.onCall(g.wait)
	return s, s.add(everything("v", bigSize), m), m, g
}
