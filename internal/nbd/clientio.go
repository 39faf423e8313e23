package nbd

import (
	"context"

	"golang.org/x/sync/errgroup"

	"cairn/internal/errs"
)

const (
	piecesAtOnce = 8       // of one large read or write
	rangeBytes   = 1 << 30 // of one trim, zeroing or block status
	// enoughExtents ends Status early, so that a volume in shreds costs a
	// bounded amount of memory.
	enoughExtents = 1 << 16
)

// checkRange refuses what lies outside of the export.
func (c *Client) checkRange(what string, off, length int64) error {
	if off < 0 || length < 0 || off > c.info.size-length {
		return errs.New(errs.Invalid, "cannot %s %d bytes at %d of the NBD export: it has %d bytes", what, length, off, c.info.size)
	}
	return nil
}

// checkWrite refuses a change that the server could not do.
func (c *Client) checkWrite(what string, off, length int64, flag uint16) error {
	if err := c.checkRange(what, off, length); err != nil {
		return err
	}
	switch {
	case c.ReadOnly():
		return errs.Wrap(errs.Denied, EPERM, "the NBD export is read-only")
	case flag != 0 && !c.info.can(flag):
		return errs.Wrap(errs.Invalid, ENOTSUP, "the NBD server cannot %s", what)
	case (off|length)%c.info.block.Min != 0:
		return errs.New(errs.Invalid, "cannot %s %d bytes at %d of the NBD export: it wants multiples of %d", what, length, off, c.info.block.Min)
	}
	return nil
}

// pieces calls f for consecutive parts of a range, each but the last of unit
// bytes, several at once.
func pieces(ctx context.Context, off, length, unit int64, f func(ctx context.Context, off, length int64) error) error {
	if length <= unit {
		if length == 0 {
			return nil
		}
		return f(ctx, off, length)
	}
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(piecesAtOnce)
	for end := off + length; off < end && inner.Err() == nil; off += unit {
		at, n := off, min(unit, end-off)
		g.Go(func() error { return f(inner, at, n) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// payload is the most that one read or write carries.
func (c *Client) payload() int64 {
	bs := c.info.block
	return max(min(c.opt.MaxRequest, bs.Max)&^(bs.Min-1), bs.Min)
}

// ReadAt fills p with the bytes from off. On an error p holds anything.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	length := int64(len(p))
	if err := c.checkRange("read", off, length); err != nil {
		return err
	}
	if unit := c.info.block.Min; (off|length)%unit != 0 {
		from, to := off&^(unit-1), (off+length+unit-1)&^(unit-1)
		wide := make([]byte, to-from)
		if err := c.ReadAt(ctx, wide, from); err != nil {
			return err
		}
		copy(p, wide[off-from:])
		return nil
	}
	return pieces(ctx, off, length, c.payload(), func(ctx context.Context, at, n int64) error {
		_, err := c.do(ctx, true, func(*link) *call {
			return &call{request: request{cmd: cmdRead, off: uint64(at), length: uint32(n)}, into: p[at-off : at-off+n]}
		})
		return err
	})
}

// WriteAt writes p at off; both must be multiples of BlockSize.Min. With FUA
// it is durable on return. On an error any part of it may be written.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64, flags Flags) error {
	length := int64(len(p))
	if err := c.checkWrite("write", off, length, 0); err != nil {
		return err
	}
	wire, after, err := c.durably(flags & FUA)
	if err != nil {
		return err
	}
	err = pieces(ctx, off, length, c.payload(), func(ctx context.Context, at, n int64) error {
		_, err := c.do(ctx, false, func(*link) *call {
			return &call{request: request{cmd: cmdWrite, flags: wire, off: uint64(at), length: uint32(n)}, data: p[at-off : at-off+n]}
		})
		return err
	})
	if err != nil {
		return err
	}
	return after(ctx)
}

// durably says how to do FUA: by the flag, or by a flush afterwards.
func (c *Client) durably(flags Flags) (wire uint16, after func(context.Context) error, err error) {
	nothing := func(context.Context) error { return nil }
	switch {
	case flags&FUA == 0 || c.info.can(flagFUA):
		return uint16(flags), nothing, nil
	case c.info.can(flagFlush):
		return uint16(flags &^ FUA), c.Flush, nil
	}
	return 0, nil, errs.Wrap(errs.Invalid, ENOTSUP, "the NBD server offers no way to make a write durable")
}

// Flush makes every write durable that was answered before the call.
// ErrLostWrites: some of those may be gone.
func (c *Client) Flush(ctx context.Context) error {
	if !c.info.can(flagFlush) {
		if c.ReadOnly() {
			return nil
		}
		return errs.Wrap(errs.Invalid, ENOTSUP, "the NBD server offers no flush")
	}
	if err := c.takeLoss(); err != nil {
		return err
	}
	c.mu.Lock()
	answers := c.answers
	c.mu.Unlock()
	if _, err := c.do(ctx, true, func(*link) *call { return &call{request: request{cmd: cmdFlush}} }); err != nil {
		return err
	}
	// A flush that was answered after a connection was lost may be another
	// server's, which never saw the writes.
	if err := c.takeLoss(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirty = c.dirty && c.answers != answers
	return nil
}

// takeLoss tells of lost writes once.
func (c *Client) takeLoss() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.lost {
		return nil
	}
	c.lost, c.dirty = false, false
	return errs.Wrap(errs.Unavailable, ErrLostWrites,
		"the connection to the NBD server at %s broke before its writes were flushed; write them again", c.uri.Address)
}

// Trim says that nobody needs the bytes; they may read as anything then. Parts
// of blocks at the ends are left alone.
func (c *Client) Trim(ctx context.Context, off, length int64, flags Flags) error {
	if err := c.checkRange("trim", off, length); err != nil {
		return err
	}
	unit := c.info.block.Min
	from, to := (off+unit-1)&^(unit-1), (off+length)&^(unit-1)
	return c.change(ctx, "trim", cmdTrim, flagTrim, from, max(to-from, 0), flags&FUA)
}

// Zero makes the bytes read as zeroes; both must be multiples of
// BlockSize.Min. The error wraps ENOTSUP if the server cannot (fast, with
// FastZero).
func (c *Client) Zero(ctx context.Context, off, length int64, flags Flags) error {
	offered := uint16(flagWriteZeroes)
	if flags&FastZero != 0 && c.info.can(flagWriteZeroes) {
		offered = flagFastZero
	}
	return c.change(ctx, "zero", cmdWriteZeroes, offered, off, length, flags&(FUA|NoHole|FastZero))
}

func (c *Client) change(ctx context.Context, what string, cmd, offered uint16, off, length int64, flags Flags) error {
	if err := c.checkWrite(what, off, length, offered); err != nil {
		return err
	}
	wire, after, err := c.durably(flags)
	if err != nil {
		return err
	}
	err = pieces(ctx, off, length, rangeBytes, func(ctx context.Context, at, n int64) error {
		_, err := c.do(ctx, false, func(*link) *call {
			return &call{request: request{cmd: cmd, flags: wire, off: uint64(at), length: uint32(n)}}
		})
		return err
	})
	if err != nil {
		return err
	}
	return after(ctx)
}

// Status is what the server knows of [off, off+length) in a context:
// adjoining extents from off on, neighbours with equal flags joined. It ends
// early when there are very many: the rest is asked for from the last one's
// end. ErrNoContext: see Contexts.
func (c *Client) Status(ctx context.Context, name string, off, length int64) ([]Extent, error) {
	if err := c.checkRange("tell the status of", off, length); err != nil {
		return nil, err
	}
	if _, ok := c.info.contexts[name]; !ok {
		return nil, errs.Wrap(errs.Invalid, ErrNoContext, "the NBD server at %s offers no context %q for this export", c.uri.Address, name)
	}
	unit := c.info.block.Min
	var all []Extent
	end := min((off+length+unit-1)&^(unit-1), c.info.size)
	for at := off &^ (unit - 1); at < end && length > 0 && len(all) < enoughExtents; {
		n := min(rangeBytes, end-at)
		q, err := c.do(ctx, true, func(l *link) *call {
			return &call{request: request{cmd: cmdBlockStatus, off: uint64(at), length: uint32(n)}, context: l.info.contexts[name]}
		})
		if err != nil {
			return nil, err
		}
		for _, e := range q.extents {
			all = join(all, e, off, off+length)
		}
		at = q.extents[len(q.extents)-1].End()
	}
	return all, nil
}

// join appends e, cut at the bounds, to adjoining extents.
func join(all []Extent, e Extent, off, end int64) []Extent {
	from, to := max(e.Off, off), min(e.End(), end)
	if from >= to {
		return all
	}
	if n := len(all); n > 0 && all[n-1].Flags == e.Flags {
		all[n-1].Len = to - all[n-1].Off
		return all
	}
	return append(all, Extent{Off: from, Len: to - from, Flags: e.Flags})
}
