package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/repo"
	"cairn/internal/volume"
)

const (
	chunkSize = repo.ChunkSize
	fanout    = repo.Fanout
	leafSize  = fanout * chunkSize // bytes of a volume that one leaf covers
	// readAhead windows are read while the workers are busy, so that the
	// disk and the processors do not wait for each other.
	readAhead = 3
)

// window is one leaf's span on its way through a capture.
type window struct {
	seq   int64
	leaf  int64  // index of the leaf
	todo  uint32 // chunks that may differ from the parent; the others are as there
	have  uint32 // chunks of todo that may hold data; the others are zeros
	bytes int64  // source bytes it stands for in the progress
	buf   []byte // leafSize bytes; only chunks in have are filled. nil: none are
	ready chan struct{}
}

// hashed is a window whose chunks are known and on their way to a pack.
type hashed struct {
	seq    int64
	leaf   int64
	bytes  int64
	slots  repo.Slots
	claims [fanout]*repo.Claim // of another window: where the chunk will be
	fresh  int64               // chunks stored
}

// errGivenUp says that the window which was to store a chunk failed; its own
// error is the one that counts.
var errGivenUp = errors.New("the window that stores the chunk failed")

// capture is one run of Session.Capture.
type capture struct {
	e      *Engine
	s      *repo.Session
	w      *repo.PointWriter
	src    volume.Source
	parent *repo.Root
	plan   plan

	bufs    chan []byte
	windows chan *window
	results chan *hashed
	fresh   int64
	read    int64
}

// Capture makes one point durable; see the Session interface.
func (s *session) Capture(ctx context.Context, spec CaptureSpec, progress Progress) (Captured, error) {
	size := spec.Source.Size()
	if size <= 0 {
		return Captured{}, errs.New(errs.Invalid, "%s is empty; a volume needs at least one byte", spec.Meta.Resource)
	}
	parent, err := s.parent(ctx, spec, size)
	if err != nil {
		return Captured{}, err
	}
	p, audit, err := s.plan(ctx, &spec, parent)
	if err != nil {
		return Captured{}, err
	}
	total, err := p.begin(ctx)
	if err != nil {
		return Captured{}, err
	}
	var done int64
	if progress != nil {
		progress(0, total)
	}
	w, err := s.s.NewPoint(ctx, repo.PointConfig{
		Snapshot: spec.Meta.Snapshot, SizeBytes: size, Parent: parent, Keep: p.tracked(),
		Durable: func(n int64) {
			done += n
			if progress != nil {
				progress(done, total)
			}
		},
	})
	if err != nil {
		return Captured{}, err
	}
	c := &capture{
		e: s.e, s: s.s, w: w, src: spec.Source, parent: parent, plan: p,
		bufs: make(chan []byte, s.e.workers+readAhead), windows: make(chan *window), results: make(chan *hashed, s.e.workers),
	}
	if err := c.run(ctx); err != nil {
		w.Abort()
		return Captured{}, fmt.Errorf("capture %s of %s: %w", spec.Meta.Snapshot, spec.Meta.Resource, err)
	}
	point, err := w.Finish(ctx, spec.manifest(size))
	if err != nil {
		return Captured{}, fmt.Errorf("finish %s: %w", spec.Meta.Snapshot, err)
	}
	return Captured{
		Ref:        PointRef{Snapshot: spec.Meta.Snapshot, Pack: point.Pack.ID.String(), Hash: point.Content.String()},
		AddedBytes: point.AddedBytes, SourceBytes: size, ReadBytes: c.read, NewChunks: c.fresh,
		CBT: spec.Meta.CBT, Reason: spec.Meta.Reason, Checkpoint: checkpoint(size, point.Root), Audit: audit,
	}, nil
}

// parent loads the root to inherit from. Another size means another tree
// shape: the caller decides beforehand that such a point is a full.
func (s *session) parent(ctx context.Context, spec CaptureSpec, size int64) (*repo.Root, error) {
	if spec.Parent == nil {
		return nil, nil
	}
	m, err := s.e.manifest(ctx, *spec.Parent)
	if err != nil {
		return nil, err
	}
	if m.SizeBytes != size {
		return nil, errs.New(errs.Conflict, "%s has %d bytes, but its parent point %s has %d; take a full", spec.Meta.Resource, size, m.Snapshot, m.SizeBytes)
	}
	return &m.Root, nil
}

func (c CaptureSpec) manifest(size int64) *repo.Manifest {
	m := c.Meta
	return &repo.Manifest{
		Snapshot: m.Snapshot, Resource: m.Resource, SizeBytes: size, Full: m.Full, Parent: m.Parent, ChainRoot: m.Root,
		Job: m.Job, SnapshotTime: m.SnapshotTime, CreateTime: m.CreateTime, Name: m.Name, Description: m.Description,
		ResourceType: m.ResourceType, ResourceName: m.ResourceName, VolumeType: int64(m.VolumeType), Zone: m.Zone,
		Group: m.Group, GroupSize: int64(m.GroupSize), Consistency: m.Consistency, CBT: m.CBT, Reason: m.Reason,
	}
}

// run moves all windows: one reader, some workers, and this goroutine, which
// puts the leaves in order.
func (c *capture) run(ctx context.Context) error {
	for range cap(c.bufs) {
		c.bufs <- make([]byte, leafSize)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(c.windows)
		return c.readAll(ctx)
	})
	workers, wctx := errgroup.WithContext(ctx)
	for range c.e.workers {
		workers.Go(func() error { return c.work(wctx) })
	}
	g.Go(func() error {
		defer close(c.results)
		return workers.Wait()
	})
	g.Go(func() error { return c.collect(ctx) })
	return g.Wait()
}

// readAll reads what the plan says, window by window.
func (c *capture) readAll(ctx context.Context) error {
	var win *window
	err := c.plan.each(ctx, func(r extent.Range, data bool) error {
		for off := r.Off; off < r.End(); {
			leaf := off / leafSize
			if win != nil && win.leaf != leaf {
				if err := send(ctx, c.windows, win); err != nil {
					return err
				}
				win = &window{seq: win.seq + 1, leaf: leaf, ready: make(chan struct{})}
			}
			if win == nil {
				win = &window{leaf: leaf, ready: make(chan struct{})}
			}
			n := min(r.End(), (leaf+1)*leafSize) - off
			if err := c.fill(ctx, win, off, n, data); err != nil {
				return err
			}
			off += n
		}
		return nil
	})
	if err != nil || win == nil {
		return err
	}
	return send(ctx, c.windows, win)
}

// fill reads n bytes at off, which lie in one leaf and begin with a chunk. A
// chunk that the volume's end cuts is filled up with zeros. What is no data
// reads as zeros without being read.
func (c *capture) fill(ctx context.Context, win *window, off, n int64, data bool) error {
	at := off - win.leaf*leafSize
	end := (at + n + chunkSize - 1) &^ (chunkSize - 1)
	bits := uint32(1<<(end/chunkSize) - 1<<(at/chunkSize))
	win.todo |= bits
	win.bytes += n
	if !data {
		return nil
	}
	if win.buf == nil {
		select {
		case win.buf = <-c.bufs:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := c.src.ReadAt(ctx, win.buf[at:at+n], off); err != nil {
		return err
	}
	clear(win.buf[at+n : end])
	win.have |= bits
	c.read += n
	return c.src.Release(ctx, off, n)
}

// work hashes windows, finds what is known and stores what is new.
func (c *capture) work(ctx context.Context) error {
	frames, err := repo.NewFrames()
	if err != nil {
		return err
	}
	defer frames.Close()
	wk := &worker{c: c, ids: c.e.r.NewIDs(), frames: frames}
	for win := range c.windows {
		began := time.Now()
		h, err := wk.hash(ctx, win)
		if err != nil {
			return err
		}
		if win.buf != nil {
			c.bufs <- win.buf
		}
		if err := send(ctx, c.results, h); err != nil {
			return err
		}
		if err := c.e.yield(ctx, time.Since(began)); err != nil {
			return err
		}
	}
	return nil
}

// collect hands the leaves to the tree in order.
func (c *capture) collect(ctx context.Context) error {
	waiting := make(map[int64]*hashed)
	next := int64(0)
	for h := range c.results {
		waiting[h.seq] = h
		for h := waiting[next]; h != nil; h = waiting[next] {
			delete(waiting, next)
			next++
			if err := c.finish(ctx, h); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish resolves what other windows stored and closes the leaf.
func (c *capture) finish(ctx context.Context, h *hashed) error {
	for i, cl := range h.claims {
		if cl == nil {
			continue
		}
		select {
		case <-cl.Ready:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if cl.Place == nil {
			return errGivenUp
		}
		h.slots[i].Late, h.slots[i].Sub = cl.Place, cl.Sub
	}
	if err := c.w.Leaf(ctx, h.leaf, &h.slots); err != nil {
		return err
	}
	c.fresh += h.fresh
	c.w.Source(h.bytes)
	return nil
}
