package nbd

import (
	"context"
	"errors"
	"io"
	"sort"
	"sync"

	"cairn/internal/extent"
)

// StatusMap goes along what a server tells of an export in one meta context, a
// window at a time: what one answer may cost is bounded. Any number of goroutines
// may ask; one at a time is served.
type StatusMap struct {
	ask    func(ctx context.Context, off, length int64) ([]Extent, error)
	size   int64
	window int64

	asking sync.Mutex // held by who asks; before mu
	page   []Extent

	mu       sync.Mutex // guards what follows
	from, to int64      // what of page still holds
	wrote    int64      // the end of what was written since the last question
}

// NewStatusMap makes the map of an export of size bytes. ask is Client.Status of
// one context; nil: the server tells nothing, so all matches.
func NewStatusMap(size, window int64, ask func(ctx context.Context, off, length int64) ([]Extent, error)) *StatusMap {
	return &StatusMap{ask: ask, size: size, window: window}
}

// HoldsData tells what may be anything but zeros, by the flags of base:allocation.
func HoldsData(flags uint32) bool { return flags&Zero == 0 }

// IsDirty tells what changed, by the flags of a dirty bitmap of QEMU's.
func IsDirty(flags uint32) bool { return flags&1 != 0 }

// Next returns the first range at or after off whose flags match, or io.EOF.
func (m *StatusMap) Next(ctx context.Context, off int64, match func(flags uint32) bool) (extent.Range, error) {
	m.asking.Lock()
	defer m.asking.Unlock()
	for at := off; at < m.size; {
		if m.ask == nil {
			return extent.Range{Off: at, Len: m.size - at}, nil
		}
		page, end, err := m.at(ctx, at)
		if err != nil {
			return extent.Range{}, err
		}
		i := sort.Search(len(page), func(i int) bool { return page[i].End() > at })
		for ; i < len(page); i++ {
			if !match(page[i].Flags) {
				continue
			}
			start, last := max(page[i].Off, at), page[i].End()
			for i++; i < len(page) && match(page[i].Flags); i++ {
				last = page[i].End()
			}
			return extent.Range{Off: start, Len: last - start}, nil
		}
		at = end
	}
	return extent.Range{}, io.EOF
}

// at returns a page that covers off, and where it ends.
func (m *StatusMap) at(ctx context.Context, off int64) ([]Extent, int64, error) {
	m.mu.Lock()
	known, end := off >= m.from && off < m.to, m.to
	m.wrote = 0
	m.mu.Unlock() // writers do not wait for the server's answer
	if known {
		return m.page, end, nil
	}
	page, err := m.ask(ctx, off, min(m.window, m.size-off))
	if err != nil {
		return nil, 0, err
	}
	end = page[len(page)-1].End()
	m.page = page
	m.mu.Lock()
	defer m.mu.Unlock()
	m.from, m.to = max(off, m.wrote), end
	return page, end, nil
}

// Written forgets what a write up to end made untrue. Call it when the write
// has returned.
func (m *StatusMap) Written(end int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wrote = max(m.wrote, end)
	m.from = max(m.from, end)
}

// Each calls fn with all ranges that match, in order; those that touch are one.
func (m *StatusMap) Each(ctx context.Context, match func(flags uint32) bool, fn func(r extent.Range)) error {
	var open extent.Range
	for {
		r, err := m.Next(ctx, open.End(), match)
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			return err
		}
		if !end && r.Off == open.End() {
			open.Len += r.Len
			continue
		}
		if open.Len > 0 {
			fn(open)
		}
		if end {
			return nil
		}
		open = r
	}
}
