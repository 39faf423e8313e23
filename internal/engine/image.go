package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/qcow2"
	"cairn/internal/repo"
	"cairn/internal/volume"
)

// content is what an export reads: a point of the repository or a frozen
// volume.
type content interface {
	Size() int64
	// Data is the first range at or after off that may hold anything but
	// zeros, or io.EOF.
	Data(ctx context.Context, off int64) (extent.Range, error)
	ReadAt(ctx context.Context, buf []byte, off int64) error
}

// image streams a content. open makes a content for one more goroutine.
type image struct {
	size    int64
	workers int
	open    func() (content, func(), error)
}

// OpenImage opens a point for streaming out.
func (e *Engine) OpenImage(ctx context.Context, ref PointRef) (Image, error) {
	m, err := e.manifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	return &image{size: m.SizeBytes, workers: e.workers, open: func() (content, func(), error) {
		x, err := e.r.NewReader()
		if err != nil {
			return nil, nil, err
		}
		return &point{e: e, m: m, x: x}, x.Close, nil
	}}, nil
}

// SourceImage streams a frozen volume out.
func (e *Engine) SourceImage(_ context.Context, src volume.Source) (Image, error) {
	return &image{size: src.Size(), workers: e.workers, open: func() (content, func(), error) {
		return src, func() {}, nil
	}}, nil
}

func (i *image) SizeBytes() int64 { return i.size }

func (i *image) Close() error { return nil }

func (i *image) WriteTo(ctx context.Context, w io.Writer, format Format) error {
	switch format {
	case FormatRaw:
		return i.raw(ctx, w)
	case FormatQcow2:
		c, done, err := i.open()
		if err != nil {
			return err
		}
		defer done()
		return qcow2.Write(ctx, w, c)
	}
	return errs.New(errs.Invalid, "%q is no export format; say %s or %s", format, FormatRaw, FormatQcow2)
}

// piece is one leaf's span on its way out.
type piece struct {
	off  int64
	buf  []byte
	done chan struct{}
}

// raw streams in order; leaves are read and decoded ahead by several workers.
func (i *image) raw(ctx context.Context, w io.Writer) error {
	g, ctx := errgroup.WithContext(ctx)
	inFlight := i.workers + 2
	bufs := make(chan []byte, inFlight)
	for range min(int64(inFlight), (i.size+leafSize-1)/leafSize) {
		bufs <- make([]byte, min(leafSize, i.size))
	}
	todo := make(chan *piece)
	order := make(chan *piece, inFlight)
	g.Go(func() error {
		defer close(todo)
		defer close(order)
		return i.pieces(ctx, bufs, todo, order)
	})
	for range i.workers {
		g.Go(func() error {
			c, done, err := i.open()
			if err != nil {
				return err
			}
			defer done()
			for p := range todo {
				if err := c.ReadAt(ctx, p.buf, p.off); err != nil {
					return err
				}
				close(p.done)
			}
			return nil
		})
	}
	g.Go(func() error { return writePieces(ctx, w, order, bufs) })
	return g.Wait()
}

func (i *image) pieces(ctx context.Context, bufs chan []byte, todo, order chan<- *piece) error {
	for off := int64(0); off < i.size; off += leafSize {
		p := &piece{off: off, done: make(chan struct{})}
		select {
		case b := <-bufs:
			p.buf = b[:min(leafSize, i.size-off)]
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		order <- p // never blocks: there are as many places as buffers
		select {
		case todo <- p:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func writePieces(ctx context.Context, w io.Writer, order <-chan *piece, bufs chan<- []byte) error {
	for p := range order {
		select {
		case <-p.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if _, err := w.Write(p.buf); err != nil {
			return fmt.Errorf("write to the receiver: %w", err)
		}
		bufs <- p.buf[:cap(p.buf)]
	}
	return nil
}

// point reads a point of the repository as a flat volume. One goroutine.
type point struct {
	e     *Engine
	m     *repo.Manifest
	x     *repo.Reader
	wants []repo.Want // memory of readLeaf
}

func (p *point) Size() int64 { return p.m.SizeBytes }

// errStop ends a walk early.
var errStop = errors.New("found")

func (p *point) Data(ctx context.Context, off int64) (extent.Range, error) {
	found, err := p.e.firstData(ctx, p.m.Root, p.m.SizeBytes, off)
	if err == nil && found.Len == 0 {
		err = io.EOF
	}
	return found, err
}

// firstData is the first range of a tree at or after off that may hold anything
// but zeros; empty: none follows.
func (e *Engine) firstData(ctx context.Context, root repo.Root, size, off int64) (found extent.Range, err error) {
	if off >= size {
		return found, nil // else the last chunk, begun before off, would be found
	}
	first := off / chunkSize
	err = e.r.Walk(ctx, root, first, repo.Chunks(size), nil, func(idx int64, n *repo.Node) error {
		i := max(0, first-idx*fanout)
		for i < fanout && n.Slots[i].IsZero() {
			i++
		}
		if i == fanout {
			return nil
		}
		end := i
		for end < fanout && !n.Slots[end].IsZero() {
			end++
		}
		start := max(off, (idx*fanout+i)*chunkSize)
		found = extent.Range{Off: start, Len: min((idx*fanout+end)*chunkSize, size) - start}
		return errStop
	})
	if errors.Is(err, errStop) {
		return found, nil
	}
	return extent.Range{}, err
}

func (p *point) ReadAt(ctx context.Context, buf []byte, off int64) error {
	if off < 0 || off+int64(len(buf)) > p.m.SizeBytes {
		return fmt.Errorf("read %d bytes at %d of a point of %d bytes", len(buf), off, p.m.SizeBytes)
	}
	for len(buf) > 0 {
		leaf := off / leafSize
		node, err := p.e.r.Leaf(ctx, p.m.Root, leaf)
		if err != nil {
			return err
		}
		n := min(int64(len(buf)), (leaf+1)*leafSize-off)
		if err := p.readLeaf(ctx, node, buf[:n], off-leaf*leafSize); err != nil {
			return err
		}
		buf, off = buf[n:], off+n
	}
	return nil
}

// readLeaf fills buf from byte at of a leaf.
func (p *point) readLeaf(ctx context.Context, node *repo.Node, buf []byte, at int64) error {
	p.wants = p.wants[:0]
	for done := 0; done < len(buf); {
		i, skip := at/chunkSize, at%chunkSize
		n := min(len(buf)-done, int(chunkSize-skip))
		switch {
		case node == nil || node.Slots[i].IsZero():
			clear(buf[done : done+n])
		case n == chunkSize:
			p.wants = append(p.wants, repo.Want{Ref: node.Slots[i], At: done})
		default:
			chunk, err := p.x.Chunk(ctx, node.Slots[i])
			if err != nil {
				return err
			}
			copy(buf[done:done+n], chunk[skip:])
		}
		done, at = done+n, at+int64(n)
	}
	slices.SortFunc(p.wants, func(a, b repo.Want) int { return repo.ComparePlaces(a.Ref.Loc, b.Ref.Loc) })
	return p.x.Fetch(ctx, p.wants, buf)
}
