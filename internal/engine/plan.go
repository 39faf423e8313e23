package engine

import (
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/internal/extent"
	"cairn/internal/repo"
	"cairn/internal/volume"
)

// plan says what of a source must be looked at. It asks the source as it goes
// along and keeps no list: a sparse volume may have millions of extents.
type plan struct {
	src  volume.Source
	base volume.Checkpoint // changes since then are known; "": all data is read
}

// newPlan asks whether changes since the parent's content are known; if they
// are not, everything is read.
func newPlan(ctx context.Context, spec CaptureSpec, parent *repo.Root) (plan, error) {
	p := plan{src: spec.Source}
	if parent == nil {
		return p, nil
	}
	base := checkpoint(spec.Source.Size(), *parent)
	switch _, err := spec.Source.Changed(ctx, base, 0); {
	case errors.Is(err, volume.ErrNoBase):
	case err != nil && !errors.Is(err, io.EOF):
		return p, fmt.Errorf("ask %s for its changes: %w", spec.Meta.Resource, err)
	default:
		p.base = base
	}
	return p, nil
}

// checkpoint names a content: its tree's root hash, which every byte decides,
// with the level and the volume's exact size.
func checkpoint(size int64, root repo.Root) volume.Checkpoint {
	return volume.Checkpoint(fmt.Sprintf("%d/%d/%s", root.Level, size, root.Ref.ID))
}

// tracked reports whether what each leaves out is as in the parent. Else it
// is zeros.
func (p plan) tracked() bool { return p.base != "" }

// begin releases what each will leave out, and is the number of bytes that it
// hands out.
func (p plan) begin(ctx context.Context) (total int64, err error) {
	end := int64(0)
	release := func(to int64) error {
		if to == end {
			return nil
		}
		return p.src.Release(ctx, end, to-end)
	}
	err = chunkRuns(ctx, p.src.Size(), p.next, func(r extent.Range) error {
		err := release(r.Off)
		end = r.End()
		total += r.Len
		return err
	})
	if err != nil {
		return 0, err
	}
	return total, release(p.src.Size())
}

func (p plan) next(ctx context.Context, off int64) (extent.Range, error) {
	if p.tracked() {
		return p.src.Changed(ctx, p.base, off)
	}
	return p.src.Data(ctx, off)
}

// each calls fn with ranges in order; they begin with chunks and end with
// chunks or the volume. What is no data reads as zeros.
func (p plan) each(ctx context.Context, fn func(r extent.Range, data bool) error) error {
	if !p.tracked() {
		return chunkRuns(ctx, p.src.Size(), p.next, func(r extent.Range) error { return fn(r, true) })
	}
	data := cursor{of: p.src.Data, size: p.src.Size()}
	return chunkRuns(ctx, p.src.Size(), p.next, func(r extent.Range) error {
		for r.Len > 0 {
			if err := data.seek(ctx, r.Off); err != nil {
				return err
			}
			part := r
			holds := !data.eof && data.at.Off <= r.Off
			switch {
			case holds:
				part.Len = min(r.Len, data.at.End()-r.Off)
			case !data.eof:
				part.Len = min(r.Len, data.at.Off-r.Off)
			}
			if err := fn(part, holds); err != nil {
				return err
			}
			r = extent.Range{Off: part.End(), Len: r.Len - part.Len}
		}
		return nil
	})
}

// ask returns the first range at or after off, or io.EOF.
type ask func(ctx context.Context, off int64) (extent.Range, error)

// chunkRuns widens the ranges that next gives to whole chunks, cut at size,
// and calls fn with each, in order. They do not overlap.
func chunkRuns(ctx context.Context, size int64, next ask, fn func(extent.Range) error) error {
	c := cursor{of: next, size: size}
	for {
		if err := c.seek(ctx, c.at.End()); err != nil || c.eof {
			return err
		}
		if err := fn(c.at); err != nil {
			return err
		}
	}
}

// cursor goes along ranges that are widened to whole chunks.
type cursor struct {
	of   ask
	size int64
	at   extent.Range
	eof  bool // no range behind at
}

// seek makes at the first range that ends behind off, which ascends and is a
// chunk's beginning or the volume's end.
func (c *cursor) seek(ctx context.Context, off int64) error {
	for !c.eof && c.at.End() <= off {
		if off >= c.size {
			c.eof = true
			break
		}
		r, err := c.of(ctx, off)
		if errors.Is(err, io.EOF) || err == nil && r.Off >= c.size {
			c.eof = true
			break
		}
		if err != nil {
			return err
		}
		if r.Off < off || r.Len <= 0 {
			return fmt.Errorf("the driver answered with bytes %d to %d when asked from byte %d on", r.Off, r.End(), off)
		}
		start := r.Off &^ (chunkSize - 1)
		end := min((r.End()+chunkSize-1)&^(chunkSize-1), c.size)
		c.at = extent.Range{Off: start, Len: end - start}
	}
	return nil
}
