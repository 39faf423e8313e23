package engine

import (
	"container/list"
	"context"
	"errors"
	"sync"

	"cairn/internal/repo"
)

// cachedChunks bounds the chunks that an open tree keeps: 4 MiB.
const cachedChunks = 64

// chunkCache keeps decoded chunks, each checked against its id, and lets one
// goroutine read a frame for all that want something of it at that time. Any
// number of goroutines.
type chunkCache struct {
	mu      sync.Mutex // guards what follows; a leaf of the lock order
	held    map[repo.ID]*list.Element
	order   list.List // of *cachedChunk; front: used last
	loading map[repo.Loc]*loading
}

// cachedChunk's memory is used again for the next chunk; who reads it holds mu.
type cachedChunk struct {
	id    repo.ID
	bytes [chunkSize]byte
}

// loading is a frame that is being read. err is set before done is closed.
type loading struct {
	done chan struct{}
	err  error
}

func newChunkCache() *chunkCache {
	return &chunkCache{held: map[repo.ID]*list.Element{}, loading: map[repo.Loc]*loading{}}
}

// read fills dst from byte skip of the chunk. If it is not held, load reads the
// frame that it lies in, fills dst, and puts what of the frame is worth it.
func (c *chunkCache) read(ctx context.Context, ref repo.Ref, dst []byte, skip int64, load func() error) error {
	frame := frameOf(ref.Loc)
	for {
		c.mu.Lock()
		if c.copy(ref.ID, dst, skip) {
			c.mu.Unlock()
			return nil
		}
		other := c.loading[frame]
		if other == nil {
			break
		}
		c.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		// Only the other's own end says nothing about the frame.
		if err := other.err; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	mine := &loading{done: make(chan struct{}), err: context.Canceled}
	c.loading[frame] = mine
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.loading, frame)
		c.mu.Unlock()
		close(mine.done)
	}()
	mine.err = load()
	return mine.err
}

// copy fills dst if the chunk is held; the caller holds mu.
func (c *chunkCache) copy(id repo.ID, dst []byte, skip int64) bool {
	e, ok := c.held[id]
	if ok {
		c.order.MoveToFront(e)
		copy(dst, e.Value.(*cachedChunk).bytes[skip:])
	}
	return ok
}

// put keeps a copy of a checked chunk.
func (c *chunkCache) put(id repo.ID, bytes []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.held[id]; ok {
		c.order.MoveToFront(e)
		return
	}
	if c.order.Len() < cachedChunks {
		c.order.PushFront(&cachedChunk{})
	} else {
		c.order.MoveToFront(c.order.Back())
	}
	e := c.order.Front()
	chunk := e.Value.(*cachedChunk)
	delete(c.held, chunk.id)
	chunk.id = id
	copy(chunk.bytes[:], bytes)
	c.held[id] = e
}

// drop gives the memory back.
func (c *chunkCache) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.held)
	c.order.Init()
}

// frameOf is where the whole frame lies.
func frameOf(l repo.Loc) repo.Loc {
	l.Sub = 0
	return l
}
