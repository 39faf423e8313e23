package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"cairn/internal/errs"
	"cairn/internal/repo"
	"cairn/internal/volume"
)

const (
	// restoreLeaves is how many leaves are compared and then sorted by place
	// together: up to 128 MiB of the volume.
	restoreLeaves = 64
	// restoreBatch chunks are fetched and written by one worker at a time.
	restoreBatch = fanout
	// restoreAhead spans may be done or in work beyond what is synced.
	restoreAhead = 4
	// syncEvery bytes of the volume the target is synced, so that progress
	// counts durable bytes. The workers go on meanwhile.
	syncEvery = 256 << 20
	pageSize  = 4 << 10 // the unit of comparison and of writing
)

// restore is one run of Engine.Restore: scan finds the leaves where anything
// may be to do, plan compares them, fetchers write what differs, and settle
// makes it durable. All of them work at the same time on different spans.
type restore struct {
	e       *Engine
	root    repo.Root
	chunks  int64 // of the point
	target  volume.Target
	written atomic.Int64
	zeroed  atomic.Int64
}

// span is some leaves on their way through a restore.
type span struct {
	leaves []leaf
	end    int64 // where in the volume the next span begins
	left   atomic.Int64
	done   chan struct{} // closed when left, the work to do, is zero
}

// finish ends one piece of the span's work.
func (s *span) finish() {
	if s.left.Add(-1) == 0 {
		close(s.done)
	}
}

// leaf is one leaf's span of the volume.
type leaf struct {
	idx   int64
	node  *repo.Node // nil: zeros
	stale bool       // the target may hold something but zeros there
}

// need is one chunk whose bytes in the target differ.
type need struct {
	idx    int64 // of the chunk in the volume
	ref    repo.Ref
	exists bool // the target holds something but zeros there
}

// batch is what one fetcher takes at once, in the order of places.
type batch struct {
	span  *span
	needs []need
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
	r := &restore{e: e, root: m.Root, chunks: repo.Chunks(m.SizeBytes), target: target}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	progress(0, size)
	if err := r.run(ctx, progress); err != nil {
		return Restored{}, fmt.Errorf("restore %s: %w", ref.Snapshot, err)
	}
	w, z := r.written.Load(), r.zeroed.Load()
	return Restored{WrittenBytes: w, ZeroedBytes: z, EqualBytes: size - w - z}, nil
}

// run runs the pipeline. A channel is closed only by a sender that came
// through, so its end means that all is there, never that something failed.
func (r *restore) run(ctx context.Context, progress Progress) error {
	g, ctx := errgroup.WithContext(ctx)
	spans := make(chan *span)
	order := make(chan *span, restoreAhead)
	batches := make(chan batch)
	g.Go(func() error { return r.scan(ctx, spans) })
	g.Go(func() error { return r.plan(ctx, spans, order, batches) })
	for range r.e.workers {
		g.Go(func() error { return r.fetchAll(ctx, batches) })
	}
	g.Go(func() error { return r.settle(ctx, order, progress) })
	return g.Wait()
}

// send gives v to the next goroutine of a pipeline unless ctx ends.
func send[T any](ctx context.Context, to chan<- T, v T) error {
	select {
	case to <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// each calls fn with all that comes until from is closed.
func each[T any](ctx context.Context, from <-chan T, fn func(T) error) error {
	for {
		select {
		case v, ok := <-from:
			if !ok {
				return nil
			}
			if err := fn(v); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// settle syncs finished spans in order and reports them.
func (r *restore) settle(ctx context.Context, order <-chan *span, progress Progress) error {
	size, synced := r.target.Size(), int64(0)
	sync := func(end int64) error {
		if err := r.target.Sync(ctx); err != nil {
			return fmt.Errorf("sync the target: %w", err)
		}
		synced = end
		progress(end, size)
		return nil
	}
	err := each(ctx, order, func(s *span) error {
		select {
		case <-s.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if s.end-synced < syncEvery || s.end == size {
			return nil
		}
		return sync(s.end)
	})
	if err != nil {
		return err
	}
	return sync(size)
}

// plan compares the leaves of each span, and cuts what must be fetched into
// batches in the order in which it lies in the repository.
func (r *restore) plan(ctx context.Context, spans <-chan *span, order chan<- *span, batches chan<- batch) error {
	comparers := make([]comparer, r.e.workers)
	for i := range comparers {
		comparers[i] = comparer{r: r, ids: r.e.r.NewIDs()}
	}
	err := each(ctx, spans, func(s *span) error {
		needs, err := compare(ctx, comparers, s.leaves)
		if err != nil {
			return err
		}
		s.leaves = nil
		slices.SortFunc(needs, func(a, b need) int {
			return cmp.Or(repo.ComparePlaces(a.ref.Loc, b.ref.Loc), cmp.Compare(a.idx, b.idx))
		})
		s.left.Store(1)
		if err := send(ctx, order, s); err != nil {
			return err
		}
		for part := range slices.Chunk(needs, restoreBatch) {
			s.left.Add(1)
			if err := send(ctx, batches, batch{s, part}); err != nil {
				return err
			}
		}
		s.finish()
		return nil
	})
	if err != nil {
		return err
	}
	close(order)
	close(batches)
	return nil
}
