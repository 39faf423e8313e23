package engine

import (
	"context"
	"errors"
	"fmt"
	"io"

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
	have  uint32 // chunks that may hold data; the others are zeros
	bytes int64  // source bytes it stands for in the progress
	buf   []byte // leafSize bytes; only chunks in have are filled
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
	plan, total, err := planWindows(ctx, spec.Source)
	if err != nil {
		return Captured{}, err
	}
	var done int64
	if progress != nil {
		progress(0, total)
	}
	w, err := s.s.NewPoint(ctx, repo.PointConfig{
		Snapshot: spec.Meta.Snapshot, SizeBytes: size, Parent: parent,
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
		e: s.e, s: s.s, w: w, src: spec.Source, parent: parent,
		bufs: make(chan []byte, s.e.workers+readAhead), windows: make(chan *window), results: make(chan *hashed, s.e.workers),
	}
	if err := c.run(ctx, plan); err != nil {
		w.Abort()
		return Captured{}, fmt.Errorf("capture %s of %s: %w", spec.Meta.Snapshot, spec.Meta.Resource, err)
	}
	p, err := w.Finish(ctx, spec.manifest(size))
	if err != nil {
		return Captured{}, fmt.Errorf("finish %s: %w", spec.Meta.Snapshot, err)
	}
	return Captured{
		Ref:        PointRef{Snapshot: spec.Meta.Snapshot, Pack: p.Pack.ID.String(), Hash: p.Content.String()},
		AddedBytes: p.AddedBytes, SourceBytes: size, ReadBytes: c.read, NewChunks: c.fresh,
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

// planWindows finds the leaves that may hold data and counts their bytes.
func planWindows(ctx context.Context, src volume.Source) (plan []extent.Range, total int64, err error) {
	for off := int64(0); off < src.Size(); {
		r, err := src.Data(ctx, off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, 0, err
		}
		plan = append(plan, r)
		off = r.End()
	}
	plan = extent.Align(plan, chunkSize, src.Size())
	return plan, extent.Total(plan), nil
}

// run moves all windows: one reader, some workers, and this goroutine, which
// puts the leaves in order.
func (c *capture) run(ctx context.Context, plan []extent.Range) error {
	for range cap(c.bufs) {
		c.bufs <- make([]byte, leafSize)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(c.windows)
		return c.readAll(ctx, plan)
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

// readAll reads the planned ranges, window by window.
func (c *capture) readAll(ctx context.Context, plan []extent.Range) error {
	var win *window
	for _, r := range plan {
		for off := r.Off; off < r.End(); {
			leaf := off / leafSize
			if win != nil && win.leaf != leaf {
				if err := c.dispatch(ctx, win); err != nil {
					return err
				}
				win = &window{seq: win.seq + 1, leaf: leaf}
			}
			if win == nil {
				win = &window{leaf: leaf}
			}
			n := min(r.End(), (leaf+1)*leafSize) - off
			if err := c.fill(ctx, win, off, n); err != nil {
				return err
			}
			off += n
		}
	}
	if win == nil {
		return nil
	}
	return c.dispatch(ctx, win)
}

func (c *capture) dispatch(ctx context.Context, win *window) error {
	select {
	case c.windows <- win:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fill reads n bytes at off, which lie in one leaf and begin with a chunk. A
// chunk that the volume's end cuts is filled up with zeros.
func (c *capture) fill(ctx context.Context, win *window, off, n int64) error {
	if win.buf == nil {
		select {
		case win.buf = <-c.bufs:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		win.ready = make(chan struct{})
	}
	at := off - win.leaf*leafSize
	if err := c.src.ReadAt(ctx, win.buf[at:at+n], off); err != nil {
		return err
	}
	end := (at + n + chunkSize - 1) &^ (chunkSize - 1)
	clear(win.buf[at+n : end])
	for i := at / chunkSize; i < end/chunkSize; i++ {
		win.have |= 1 << i
	}
	win.bytes += n
	c.read += n
	return nil
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
		h, err := wk.hash(ctx, win)
		if err != nil {
			return err
		}
		c.bufs <- win.buf
		select {
		case c.results <- h:
		case <-ctx.Done():
			return context.Cause(ctx)
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
