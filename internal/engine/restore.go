package engine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"cairn/internal/errs"
	"cairn/internal/repo"
	"cairn/internal/volume"
)

const (
	// restoreLeaves is how many leaves are compared, sorted by place and
	// written together: 128 MiB of the volume.
	restoreLeaves = 64
	// syncEvery bytes of the volume the target is synced, so that progress
	// counts durable bytes without a wait after every window.
	syncEvery = 256 << 20
	pageSize  = 4 << 10 // the unit of comparison and of writing
)

// need is one chunk whose bytes in the target differ.
type need struct {
	idx    int64 // of the chunk in the volume
	ref    repo.Ref
	exists bool // the target holds something but zeros there
}

// restore is one run of Engine.Restore.
type restore struct {
	e       *Engine
	root    repo.Root
	target  volume.Target
	written atomic.Int64
	zeroed  atomic.Int64
	equal   atomic.Int64
}

// Restore makes target equal to the point. Everything is compared first, so
// only 4 KiB pages that differ are written: running it again, or on after a
// crash, is harmless. Bytes past the point's size become zeros. It syncs
// before it returns; errs.Conflict if the point is larger than the target.
func (e *Engine) Restore(ctx context.Context, ref PointRef, target volume.Target, progress Progress) (Restored, error) {
	m, err := e.manifest(ctx, ref)
	if err != nil {
		return Restored{}, err
	}
	size := target.Size()
	if m.SizeBytes > size {
		return Restored{}, errs.New(errs.Conflict, "point %s has %d bytes, but the volume only %d; resize the volume first", ref.Snapshot, m.SizeBytes, size)
	}
	r := &restore{e: e, root: m.Root, target: target}
	leaves := (size + leafSize - 1) / leafSize
	synced := int64(0)
	if progress != nil {
		progress(0, size)
	}
	for leaf := int64(0); leaf < leaves; leaf += restoreLeaves {
		if err := r.span(ctx, leaf, min(leaf+restoreLeaves, leaves)); err != nil {
			return Restored{}, fmt.Errorf("restore %s: %w", ref.Snapshot, err)
		}
		end := min((leaf+restoreLeaves)*leafSize, size)
		if end-synced < syncEvery && end < size {
			continue
		}
		if err := target.Sync(ctx); err != nil {
			return Restored{}, fmt.Errorf("restore %s: sync the target: %w", ref.Snapshot, err)
		}
		synced = end
		if progress != nil {
			progress(end, size)
		}
	}
	return Restored{WrittenBytes: r.written.Load(), ZeroedBytes: r.zeroed.Load(), EqualBytes: r.equal.Load()}, nil
}

// span restores the leaves from first up to last: compare all, then fetch what
// differs in the order in which it lies in the repository.
func (r *restore) span(ctx context.Context, first, last int64) error {
	found := make([][]need, last-first)
	g, gctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range r.e.workers {
		g.Go(func() error {
			c := comparer{r: r, ids: r.e.r.NewIDs(), buf: make([]byte, leafSize)}
			for i := next.Add(1) - 1; i < int64(len(found)); i = next.Add(1) - 1 {
				var err error
				if found[i], err = c.leaf(gctx, first+i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return r.fetch(ctx, slices.Concat(found...))
}

// comparer compares the target's present bytes with the tree, by hash.
type comparer struct {
	r   *restore
	ids *repo.IDs
	buf []byte
}

// leaf zeroes what must be zeros and lists the chunks that must be written.
func (c *comparer) leaf(ctx context.Context, idx int64) ([]need, error) {
	node, err := c.r.e.r.Leaf(ctx, c.r.root, idx)
	if err != nil {
		return nil, err
	}
	start := idx * leafSize
	end := min(start+leafSize, c.r.target.Size())
	have, err := readData(ctx, c.r.target, c.buf, start, end)
	if err != nil {
		return nil, err
	}
	var out []need
	for i := range fanout {
		off := start + int64(i)*chunkSize
		if off >= end {
			break
		}
		var ref repo.Ref
		if node != nil {
			ref = node.Slots[i]
		}
		chunk := c.buf[i*chunkSize : (i+1)*chunkSize]
		exists := have&(1<<i) != 0
		var id repo.ID
		if exists {
			id = c.ids.Of(chunk)
		}
		switch {
		case id == ref.ID:
			c.r.equal.Add(min(chunkSize, end-off))
		case ref.IsZero():
			if err := c.r.write(ctx, off, chunk[:min(chunkSize, end-off)], nil); err != nil {
				return nil, err
			}
		default:
			out = append(out, need{idx: off / chunkSize, ref: ref, exists: exists && !id.IsZero()})
		}
	}
	return out, nil
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

// fetch reads the wanted chunks in repository order and writes them.
func (r *restore) fetch(ctx context.Context, needs []need) error {
	slices.SortFunc(needs, func(a, b need) int {
		x, y := a.ref.Loc, b.ref.Loc
		return cmp.Or(bytes.Compare(x.Pack.ID[:], y.Pack.ID[:]), cmp.Compare(x.Off, y.Off), cmp.Compare(x.Sub, y.Sub), cmp.Compare(a.idx, b.idx))
	})
	g, gctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	const batch = 64 // chunks a worker takes at once: 4 MiB
	for range min(r.e.workers, len(needs)/batch+1) {
		g.Go(func() error {
			x, err := r.e.r.NewReader()
			if err != nil {
				return err
			}
			defer x.Close()
			old := make([]byte, repo.FrameChunks*chunkSize)
			for {
				i := int(next.Add(batch)) - batch
				if i >= len(needs) {
					return nil
				}
				if err := r.fetchBatch(gctx, x, needs[i:min(i+batch, len(needs))], old); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// fetchBatch writes chunks, those that are neighbours in both the frame and
// the volume with one call.
func (r *restore) fetchBatch(ctx context.Context, x *repo.Reader, needs []need, old []byte) error {
	refs := make([]repo.Ref, 0, repo.FrameChunks)
	for len(needs) > 0 {
		n := 1
		for n < len(needs) && n < repo.FrameChunks && needs[n].idx == needs[n-1].idx+1 &&
			needs[n].exists == needs[0].exists && repo.Follows(needs[n-1].ref, needs[n].ref) {
			n++
		}
		refs = refs[:0]
		for _, d := range needs[:n] {
			refs = append(refs, d.ref)
		}
		want, err := x.Run(ctx, refs)
		if err != nil {
			return err
		}
		off := needs[0].idx * chunkSize
		want = want[:min(int64(len(want)), r.target.Size()-off)]
		have := old[:len(want)]
		if needs[0].exists {
			if err := r.target.ReadAt(ctx, have, off); err != nil {
				return err
			}
		} else {
			have = nil
		}
		if err := r.write(ctx, off, have, want); err != nil {
			return err
		}
		needs = needs[n:]
	}
	return nil
}

// write makes the target at off, which holds have, equal to want: runs of
// pages that differ are written, or zeroed where want is zeros. A nil slice
// stands for zeros of the other's length.
func (r *restore) write(ctx context.Context, off int64, have, want []byte) error {
	n := max(len(have), len(want))
	for i := 0; i < n; {
		kind, end := pageKind(have, want, i, n), i+pageSize
		for end < n && pageKind(have, want, end, n) == kind {
			end += pageSize
		}
		end = min(end, n)
		length := int64(end - i)
		at := off + int64(i)
		switch kind {
		case pageEqual:
			r.equal.Add(length)
		case pageZero:
			if err := r.target.Zero(ctx, at, length); err != nil {
				return err
			}
			r.zeroed.Add(length)
		case pageData:
			if err := r.target.WriteAt(ctx, want[i:end], at); err != nil {
				return err
			}
			r.written.Add(length)
		}
		i = end
	}
	return nil
}

type pageDiff int

const (
	pageEqual pageDiff = iota
	pageZero
	pageData
)

func pageKind(have, want []byte, i, n int) pageDiff {
	end := min(i+pageSize, n)
	switch {
	case want == nil:
		if repo.AllZero(have[i:end]) {
			return pageEqual
		}
		return pageZero
	case have == nil:
		if repo.AllZero(want[i:end]) {
			return pageEqual
		}
		return pageData
	case bytes.Equal(have[i:end], want[i:end]):
		return pageEqual
	case repo.AllZero(want[i:end]):
		return pageZero
	}
	return pageData
}
