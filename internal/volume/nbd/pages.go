package nbdvolume

import (
	"context"
	"errors"
	"io"
	"sort"
	"sync"

	"cairn/internal/extent"
	"cairn/internal/nbd"
)

// Windows are how much of a volume a server is asked about at a time: what
// one answer may cost is bounded. A target's is smaller, as it is asked anew
// behind each write.
const (
	sourceWindow = 1 << 30
	targetWindow = 64 << 20
)

// pages goes along what a server tells of a volume in one meta context, a
// window at a time. Any number of goroutines may ask; one at a time is served.
type pages struct {
	conn   *conn
	name   string // "": the server tells nothing, so all matches
	size   int64
	window int64

	asking sync.Mutex // held by who asks; before mu
	page   []nbd.Extent

	mu       sync.Mutex // guards what follows
	from, to int64      // what of page still holds
	wrote    int64      // the end of what was written since the last question
}

// holdsData tells what may be anything but zeros in base:allocation.
func holdsData(flags uint32) bool { return flags&nbd.Zero == 0 }

// isDirty tells what changed in a dirty bitmap.
func isDirty(flags uint32) bool { return flags&1 != 0 }

// next returns the first range at or after off whose flags match, or io.EOF.
func (p *pages) next(ctx context.Context, off int64, match func(flags uint32) bool) (extent.Range, error) {
	p.asking.Lock()
	defer p.asking.Unlock()
	for at := off; at < p.size; {
		if p.name == "" {
			return extent.Range{Off: at, Len: p.size - at}, nil
		}
		page, end, err := p.at(ctx, at)
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
func (p *pages) at(ctx context.Context, off int64) ([]nbd.Extent, int64, error) {
	p.mu.Lock()
	known, end := off >= p.from && off < p.to, p.to
	p.wrote = 0
	p.mu.Unlock() // writers do not wait for the server's answer
	if known {
		return p.page, end, nil
	}
	page, err := p.conn.status(ctx, p.name, off, min(p.window, p.size-off))
	if err != nil {
		return nil, 0, err
	}
	end = page[len(page)-1].End()
	p.page = page
	p.mu.Lock()
	defer p.mu.Unlock()
	p.from, p.to = max(off, p.wrote), end
	return page, end, nil
}

// written forgets what a write up to end made untrue. Call it when the write
// has returned.
func (p *pages) written(end int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wrote = max(p.wrote, end)
	p.from = max(p.from, end)
}

// each calls fn with all ranges that match, in order; those that touch are one.
func (p *pages) each(ctx context.Context, match func(flags uint32) bool, fn func(r extent.Range)) error {
	var open extent.Range
	for {
		r, err := p.next(ctx, open.End(), match)
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
