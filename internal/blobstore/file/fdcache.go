package file

import (
	"errors"
	"os"
	"sync"
)

// fdCacheSize bounds the descriptors that are kept open. A restore reads
// packs sorted by place, a few at a time.
const fdCacheSize = 64

// fdCache keeps the descriptors of lately read blobs open. Its entries are
// counted, so that one is closed only when nobody reads through it.
type fdCache struct {
	mu    sync.Mutex // guards all; a leaf of the lock order
	max   int
	clock uint64 // counts uses
	drops uint64 // counts drop calls
	open  map[string]*handle
}

type handle struct {
	f      *os.File
	name   string
	refs   int
	used   uint64
	cached bool
}

func newFDCache(n int) *fdCache { return &fdCache{max: n, open: make(map[string]*handle)} }

// acquire returns a descriptor for reading; release gives it back.
func (c *fdCache) acquire(name string, open func() (*os.File, error)) (*handle, error) {
	c.mu.Lock()
	if h := c.open[name]; h != nil {
		h.refs++
		c.clock++
		h.used = c.clock
		c.mu.Unlock()
		return h, nil
	}
	drops := c.drops
	c.mu.Unlock()
	f, err := open()
	if err != nil {
		return nil, err
	}
	h := &handle{f: f, name: name, refs: 1}
	c.mu.Lock()
	defer c.mu.Unlock()
	// If something was deleted since, it may have been this file: then it is
	// read once and not kept. Two readers may both have opened it.
	if c.open[name] != nil || c.drops != drops || c.max == 0 {
		return h, nil
	}
	c.evict()
	c.clock++
	h.used, h.cached = c.clock, true
	c.open[name] = h
	return h, nil
}

// evict makes room for one by closing the idle descriptor that was used
// longest ago. If all are being read, the cache grows by one for the moment;
// release shrinks it again.
func (c *fdCache) evict() {
	if len(c.open) < c.max {
		return
	}
	var oldest *handle
	for _, h := range c.open {
		if h.refs == 0 && (oldest == nil || h.used < oldest.used) {
			oldest = h
		}
	}
	if oldest != nil {
		c.forget(oldest)
	}
}

// forget takes h out of the cache and closes it if nobody reads through it.
// Closing a descriptor that was only read cannot fail in a way that matters.
func (c *fdCache) forget(h *handle) {
	delete(c.open, h.name)
	h.cached = false
	if h.refs == 0 {
		_ = h.f.Close()
	}
}

func (c *fdCache) release(h *handle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h.refs--
	if h.refs > 0 {
		return
	}
	if !h.cached {
		_ = h.f.Close()
		return
	}
	if len(c.open) > c.max {
		c.forget(h)
	}
}

// drop lets go of a deleted blob, also of one that is just being opened.
func (c *fdCache) drop(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drops++
	if h := c.open[name]; h != nil {
		c.forget(h)
	}
}

// close closes what is idle and keeps nothing from now on.
func (c *fdCache) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.max = 0
	c.drops++
	var all []error
	for _, h := range c.open {
		delete(c.open, h.name)
		h.cached = false
		if h.refs == 0 {
			all = append(all, h.f.Close())
		}
	}
	return errors.Join(all...)
}
