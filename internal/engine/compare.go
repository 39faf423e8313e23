package engine

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"cairn/internal/extent"
	"cairn/internal/repo"
	"cairn/internal/volume"
)

// scan finds the leaves in which the point or the target holds anything. What
// lies between them reads as zeros in both.
func (r *restore) scan(ctx context.Context, spans chan<- *span) error {
	s := scanner{r: r, spans: spans, data: cursor{of: r.target.Data, size: r.target.Size()}}
	err := r.e.r.Walk(ctx, r.root, 0, r.chunks, nil, func(idx int64, n *repo.Node) error {
		if err := s.upTo(ctx, idx); err != nil {
			return err
		}
		stale, err := s.holds(ctx, idx)
		if err != nil {
			return err
		}
		s.next = idx + 1
		return s.add(ctx, leaf{idx: idx, node: n, stale: stale})
	})
	if err != nil {
		return err
	}
	if err := s.upTo(ctx, (r.target.Size()+leafSize-1)/leafSize); err != nil {
		return err
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	close(spans)
	return nil
}

// scanner walks along the tree and the target's data together.
type scanner struct {
	r      *restore
	spans  chan<- *span
	next   int64  // the first leaf that was not looked at
	data   cursor // of the target. Writers are behind it: it sees what was there before
	leaves []leaf
}

// holds reports whether the target may hold anything in a leaf.
func (s *scanner) holds(ctx context.Context, idx int64) (bool, error) {
	if err := s.data.seek(ctx, idx*leafSize); err != nil {
		return false, err
	}
	return !s.data.eof && s.data.at.Off < (idx+1)*leafSize, nil
}

// upTo adds the leaves before limit that only the target has something in.
func (s *scanner) upTo(ctx context.Context, limit int64) error {
	for s.next < limit {
		if err := s.data.seek(ctx, s.next*leafSize); err != nil {
			return err
		}
		idx := max(s.next, s.data.at.Off/leafSize)
		if s.data.eof || idx >= limit {
			break
		}
		s.next = idx + 1
		if err := s.add(ctx, leaf{idx: idx, stale: true}); err != nil {
			return err
		}
	}
	s.next = max(s.next, limit)
	return nil
}

func (s *scanner) add(ctx context.Context, l leaf) error {
	s.leaves = append(s.leaves, l)
	if len(s.leaves) < restoreLeaves {
		return nil
	}
	return s.flush(ctx)
}

func (s *scanner) flush(ctx context.Context) error {
	if len(s.leaves) == 0 {
		return nil
	}
	sp := &span{leaves: s.leaves, done: make(chan struct{})}
	sp.end = min((sp.leaves[len(sp.leaves)-1].idx+1)*leafSize, s.r.target.Size())
	s.leaves = nil
	return send(ctx, s.spans, sp)
}

// compare compares leaves with several comparers at once.
func compare(ctx context.Context, comparers []comparer, leaves []leaf) ([]need, error) {
	found := make([][]need, len(leaves))
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for k := range comparers[:min(len(comparers), len(leaves))] {
		g.Go(func() error {
			for i := int(next.Add(1)) - 1; i < len(leaves); i = int(next.Add(1)) - 1 {
				var err error
				if found[i], err = comparers[k].leaf(ctx, leaves[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(found...), nil
}

// comparer compares the target's present bytes with the tree, by hash.
type comparer struct {
	r   *restore
	ids *repo.IDs
	buf []byte // leafSize bytes, once one leaf of the target held something
}

// leaf zeroes what must be zeros and lists the chunks that must be written.
func (c *comparer) leaf(ctx context.Context, l leaf) ([]need, error) {
	start := l.idx * leafSize
	end := min(start+leafSize, c.r.target.Size())
	var have uint32
	if l.stale {
		if c.buf == nil {
			c.buf = make([]byte, leafSize)
		}
		var err error
		if have, err = readData(ctx, c.r.target, c.buf, start, end); err != nil {
			return nil, err
		}
	}
	var out []need
	zero := extent.Range{} // of the leaf, to be zeroed
	for i := int64(0); i < fanout && start+i*chunkSize < end; i++ {
		var ref repo.Ref
		if l.node != nil {
			ref = l.node.Slots[i]
		}
		var id repo.ID
		if have&(1<<i) != 0 {
			id = c.ids.Of(c.buf[i*chunkSize : (i+1)*chunkSize])
		}
		switch {
		case id == ref.ID:
		case ref.IsZero():
			if zero.Len > 0 && zero.End() != i*chunkSize {
				if err := c.zero(ctx, start, zero); err != nil {
					return nil, err
				}
				zero.Len = 0
			}
			if zero.Len == 0 {
				zero.Off = i * chunkSize
			}
			zero.Len += min(chunkSize, end-start-i*chunkSize)
		default:
			out = append(out, need{idx: l.idx*fanout + i, ref: ref, exists: !id.IsZero()})
		}
	}
	return out, c.zero(ctx, start, zero)
}

// zero zeroes a range of the leaf at start, whose bytes are in buf.
func (c *comparer) zero(ctx context.Context, start int64, r extent.Range) error {
	if r.Len == 0 {
		return nil
	}
	return c.r.write(ctx, start+r.Off, c.buf[r.Off:r.End()], nil)
}

// readData reads the target's data between start and end, which lie in one
// leaf, into buf and zero-fills the chunks it touches. have tells which.
func readData(ctx context.Context, t volume.Target, buf []byte, start, end int64) (have uint32, err error) {
	for off := start; off < end; {
		r, err := t.Data(ctx, off)
		if errors.Is(err, io.EOF) || err == nil && r.Off >= end {
			break
		}
		if err != nil {
			return 0, err
		}
		// Whole chunks: reading a hole gives the zeros it stands for.
		from := (r.Off - start) &^ (chunkSize - 1)
		to := min((r.End()-start+chunkSize-1)&^(chunkSize-1), leafSize)
		n := min(to, end-start)
		if err := t.ReadAt(ctx, buf[from:n], start+from); err != nil {
			return 0, err
		}
		clear(buf[n:to])
		for i := from / chunkSize; i < to/chunkSize; i++ {
			have |= 1 << i
		}
		off = start + to
	}
	return have, nil
}
