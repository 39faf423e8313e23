package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

const (
	// A write of streamed bytes or more is done in pieces, as its data comes:
	// what was just read is still in the processor's cache when it is written,
	// nobody is woken to read on, and the peer sends while the Backend writes.
	// It took a quarter of the processor's time off such writes (ADR 10).
	streamed = 256 << 10
	// streamPiece is the most that is read before it is written, and pieces end
	// at multiples of it.
	streamPiece = 256 << 10
	// streamLeast is written when no more is at hand, rather than waited with.
	// Such pieces end at multiples of streamAlign.
	streamLeast = 64 << 10
	streamAlign = 32 << 10
)

// rest is what a worker had not read of its write's data when it called the
// Backend. If the reading is taken from it meanwhile, who reads next reads
// that first and hands it over.
type rest struct {
	head []byte    // read already; of the worker's buffer, which nobody changes
	n    int       // bytes to be read behind it
	got  chan hold // head and those n bytes; closed: the connection broke
}

// streams reports whether the data of t is to be left to stream. FUA is for a
// whole range. Writes that wait for something in the Backend are better read
// whole and done side by side.
func (c *conn) streams(t *task) bool {
	if c.raw == nil || t.length < streamed || t.flags&cmdFlagFUA != 0 || c.server.limits.Requests == 1 {
		return false
	}
	if c.late.high() {
		c.late.add(false)
		return false
	}
	return true
}

// stream does a write whose data is yet to come. mine: it is still this
// worker's turn to read.
func (c *conn) stream(t *task) (mine bool, err error) {
	c.w.flush()
	// All of it is paid for at once: who reads the rest for this worker must not
	// wait for bytes that this worker holds.
	if t.cost, err = c.take(int64(t.length)); err != nil {
		return false, err
	}
	t.buf = c.server.pool.get(streamPiece)
	defer func() { c.give(t.hold) }()
	off, left, have := int64(t.off), int(t.length), 0
	var failed error // what is left is read past
	for left > 0 {
		if have, err = c.gather(t.buf.b, have, min(left, streamPiece-int(off%streamPiece))); err != nil {
			return false, err
		}
		n := wholePiece(off, have, left)
		p, head := t.buf.b[:n], t.buf.b[n:have]
		off, left = off+int64(n), left-n
		if failed == nil {
			r := rest{head: head, n: left - len(head), got: make(chan hold, 1)}
			mine, failed = c.writePiece(p, off-int64(n), r)
			if !mine {
				c.endStolen(t, r, off, failed)
				return false, nil
			}
		}
		have = copy(t.buf.b, head)
	}
	c.replyWrite(t, failed)
	return true, nil
}

// wholePiece is how much of the data at hand for off is written next.
func wholePiece(off int64, have, left int) int {
	end := off + int64(have)
	if aligned := end &^ (streamAlign - 1); have < left && aligned > off {
		end = aligned
	}
	return int(end - off)
}

// gather reads a write's data into p from have on: up to want, or at least
// streamLeast when no more is at hand. It returns how much is there.
func (c *conn) gather(p []byte, have, want int) (int, error) {
	c.payloads.Add(1)
	defer c.payloads.Add(1)
	for have < want {
		var n int
		var err error
		if have >= streamLeast && c.r.Buffered() == 0 {
			n, err = c.atHand(p[have:want])
			if n == 0 && err == nil {
				break
			}
		} else {
			n, err = c.r.Read(p[have:want])
		}
		have += n
		if err != nil {
			return have, payloadError(err)
		}
	}
	return have, nil
}

func payloadError(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("the data of a write: %w", err)
}

// atHand reads what has arrived, without waiting; 0: nothing.
func (c *conn) atHand(p []byte) (n int, err error) {
	var got error
	err = c.raw.Read(func(fd uintptr) bool {
		for {
			if n, got = syscall.Read(int(fd), p); got != syscall.EINTR {
				return true
			}
		}
	})
	switch {
	case err != nil:
		return 0, err
	case got == syscall.EAGAIN:
		return 0, nil
	case got != nil:
		return 0, got
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// rawConn is nc for atHand; nil if it cannot be asked.
func rawConn(nc net.Conn) syscall.RawConn {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// writePiece calls the Backend, in this worker's turn to read or without it:
// not mine, the reading was taken from it, with r if that has bytes to read.
func (c *conn) writePiece(p []byte, off int64, r rest) (mine bool, err error) {
	if r.n > 0 {
		c.rest = &r
	}
	turn := c.turn.Load() + 1
	c.turn.Store(turn)
	c.arm()
	err = c.writeRange(p, off)
	mine = c.turn.CompareAndSwap(turn, turn+1)
	c.late.add(!mine)
	if !mine {
		return false, err
	}
	c.rest = nil
	return true, err
}

// endStolen does what is left of a write from off on after another worker has
// read it, and replies.
func (c *conn) endStolen(t *task, r rest, off int64, failed error) {
	if r.n > 0 {
		h, ok := <-r.got
		if !ok {
			return
		}
		defer c.give(h)
		if failed == nil {
			failed = c.writeRange(h.buf.b, off)
		}
	} else if failed == nil && len(r.head) > 0 {
		failed = c.writeRange(r.head, off)
	}
	c.replyWrite(t, failed)
}

// readRest reads what the worker left from which the reading was taken.
func (c *conn) readRest(r *rest) error {
	h := hold{buf: c.server.pool.get(len(r.head) + r.n)}
	c.payloads.Add(1)
	defer c.payloads.Add(1)
	if _, err := io.ReadFull(c.r, h.buf.b[copy(h.buf.b, r.head):]); err != nil {
		c.give(h)
		close(r.got)
		return payloadError(err)
	}
	r.got <- h
	return nil
}

// writeRange has the Backend write p, unless the export is being taken away.
func (c *conn) writeRange(p []byte, off int64) error {
	if !c.enter() {
		return ESHUTDOWN
	}
	defer c.leave()
	began := time.Now()
	err := c.export.backend.WriteAt(c.doing, p, off, 0)
	c.server.load.add(uint32(len(p)), time.Since(began))
	return err
}

func (c *conn) replyWrite(t *task, err error) {
	if err != nil {
		c.replyError(t, err)
	} else {
		c.replySimple(t, 0)
	}
}
