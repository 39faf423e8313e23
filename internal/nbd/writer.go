package nbd

import (
	"net"
	"sync"
	"sync/atomic"
)

const (
	batchReplies = 64
	batchBytes   = 256 << 10
	maxHead      = 32 // the longest header of a reply
)

// batch is a run of replies that go out in one system call.
type batch struct {
	vec   net.Buffers // in the order of the wire
	out   net.Buffers // what WriteTo eats
	heads []byte      // the headers' memory; never grown, as vec points into it
	held  []hold
	bytes int
}

func newBatch() *batch {
	return &batch{
		vec:   make(net.Buffers, 0, 2*batchReplies),
		heads: make([]byte, 0, batchReplies*maxHead),
		held:  make([]hold, 0, batchReplies),
	}
}

func (b *batch) full() bool { return len(b.vec) >= 2*batchReplies-1 || b.bytes >= batchBytes }

func (b *batch) add(head, payload []byte, h hold) {
	at := len(b.heads)
	b.heads = append(b.heads, head...)
	b.vec = append(b.vec, b.heads[at:])
	if len(payload) > 0 {
		b.vec = append(b.vec, payload)
	}
	if h.buf != nil || h.cost > 0 {
		b.held = append(b.held, h)
	}
	b.bytes += len(head) + len(payload)
}

// replyWriter sends the replies of one connection. Whoever flushes sends what
// others added meanwhile too, so replies that pile up share system calls.
type replyWriter struct {
	nc   net.Conn
	give func(hold)  // takes back what a sent reply held
	fail func(error) // called once, when nothing can be sent any more

	// sends is odd while a batch is being written; the server's watch tells a
	// peer that takes nothing from it.
	sends atomic.Uint64

	mu       sync.Mutex // guards what follows
	moved    sync.Cond  // a batch was sent
	cur      *batch
	spare    *batch
	flushing bool
	broken   bool
}

func (w *replyWriter) init(nc net.Conn, give func(hold), fail func(error)) {
	w.nc, w.give, w.fail = nc, give, fail
	w.moved.L = &w.mu
	w.cur, w.spare = newBatch(), newBatch()
}

// put adds a reply without sending it. It takes h, and payload until it was
// sent. It waits, or sends, while too much is unsent.
func (w *replyWriter) put(head, payload []byte, h hold) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.cur.full() && !w.broken {
		if w.flushing {
			w.moved.Wait()
		} else {
			w.send()
		}
	}
	if w.broken {
		w.give(h)
		return
	}
	w.cur.add(head, payload, h)
}

// flush sends what was put; if another goroutine is sending, that one does.
func (w *replyWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.flushing {
		w.send()
	}
}

// send runs with mu held and gives it up while it writes.
func (w *replyWriter) send() {
	w.flushing = true
	for len(w.cur.vec) > 0 {
		b := w.cur
		w.cur = w.spare
		var err error
		if !w.broken {
			w.mu.Unlock()
			w.sends.Add(1)
			b.out = b.vec
			_, err = b.out.WriteTo(w.nc)
			w.sends.Add(1)
			w.mu.Lock()
		}
		for _, h := range b.held {
			w.give(h)
		}
		clear(b.vec)
		b.vec, b.heads, b.held, b.bytes = b.vec[:0], b.heads[:0], b.held[:0], 0
		w.spare = b
		if err != nil {
			w.broken = true
			w.fail(err)
		}
		w.moved.Broadcast()
	}
	w.flushing = false
}
