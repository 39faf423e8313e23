package virtvolume

import (
	"context"
	"errors"
	"io"
	"slices"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/libvirt"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// source is one disk at the moment when its backup began.
type source struct {
	at     place
	b      *backup
	client *nbd.Client
	srv    *server      // of a stopped machine; else nil
	disk   libvirt.Disk // of a stopped machine
	print  print        // of its file, when it was opened
	file   string       // which file it is; "": unknown
	since  record       // Mark "": changes are not known
	data   *nbd.StatusMap
	dirty  *nbd.StatusMap // nil: changes are not known
	audit  int64          // where the next point's audit begins
}

var _ volume.Source = (*source)(nil)

const (
	bitmapContext = "qemu:dirty-bitmap:"
	// window is how much QEMU is asked about at a time.
	window = 1 << 30
)

// connect opens the disk as its machine serves it.
func (s *source) connect(ctx context.Context) error {
	if s.srv != nil {
		s.client = s.srv.client
		s.data = s.statusMap(nbd.BaseAllocation)
		return nil
	}
	contexts := []string{nbd.BaseAllocation}
	if s.since.Mark != "" {
		contexts = append(contexts, bitmapContext+s.at.target)
	}
	c, err := nbd.Dial(ctx, nbd.URI{Network: "unix", Address: s.b.socket(), Export: s.at.target}, nbd.Options{Contexts: contexts, Attempts: 1})
	if err != nil {
		return s.failure(ctx, "reach", err)
	}
	s.client = c
	s.data = s.statusMap(nbd.BaseAllocation)
	if s.since.Mark == "" {
		return nil
	}
	if name := bitmapContext + s.at.target; !slices.Contains(c.Contexts(), name) {
		s.since.Mark = ""
	} else {
		s.dirty = s.statusMap(name)
	}
	return nil
}

func (s *source) statusMap(name string) *nbd.StatusMap {
	if !slices.Contains(s.client.Contexts(), name) {
		return nbd.NewStatusMap(s.Size(), window, nil)
	}
	return nbd.NewStatusMap(s.Size(), window, func(ctx context.Context, off, length int64) ([]nbd.Extent, error) {
		all, err := s.client.Status(ctx, name, off, length)
		if err != nil {
			return nil, s.failure(ctx, "tell the status of", err)
		}
		return all, nil
	})
}

// failure explains why the machine did not serve its disk. Its path is in err
// only.
func (s *source) failure(ctx context.Context, doing string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if why := s.b.in.why(); why != nil {
		return errors.Join(why, err)
	}
	return errs.Wrap(errs.Unavailable, err, "volume %s: domain %s failed to %s its disk %s; if the machine was stopped meanwhile take the snapshot again", s.at.id, s.b.dom.Name, doing, s.at.target)
}

func (s *source) Size() int64 { return s.client.Size() }

func (s *source) ReadAt(ctx context.Context, buf []byte, off int64) error {
	if err := s.client.ReadAt(ctx, buf, off); err != nil {
		return s.failure(ctx, "read", err)
	}
	return nil
}

// Release does nothing: QEMU keeps what it began with until the backup ends.
func (s *source) Release(context.Context, int64, int64) error { return nil }

func (s *source) Data(ctx context.Context, off int64) (extent.Range, error) {
	return s.data.Next(ctx, off, nbd.HoldsData)
}

func (s *source) Changed(ctx context.Context, base volume.Checkpoint, off int64) (extent.Range, error) {
	if err := ctx.Err(); err != nil {
		return extent.Range{}, err
	}
	if base == "" || s.dirty == nil || s.since.Checkpoint != base {
		return extent.Range{}, volume.ErrNoBase
	}
	return s.dirty.Next(ctx, off, nbd.IsDirty)
}

const (
	// auditBytes of what is called unchanged each point reads all the same.
	auditBytes = 8 << 20
	// auditTail bytes at the end always are, if only zeros: a disk that was made
	// smaller and larger again has lost them, and no bitmap tells of that.
	auditTail = 64 << 10
)

// Audit goes round the disk: what one point looks at begins where the last one
// ended.
func (s *source) Audit(ctx context.Context, base volume.Checkpoint) ([]extent.Range, error) {
	if _, err := s.Changed(ctx, base, 0); errors.Is(err, volume.ErrNoBase) {
		return nil, nil
	}
	start := s.since.Audit
	if start >= s.Size() {
		start = 0
	}
	out, off, left, err := s.clean(ctx, base, start, s.Size(), auditBytes)
	if err == nil && left > 0 {
		var more []extent.Range
		more, off, _, err = s.clean(ctx, base, 0, start, left)
		out = append(out, more...)
	}
	s.audit = off
	if err != nil {
		return nil, err
	}
	tail := max(0, s.Size()-auditTail)
	changed, err := s.Changed(ctx, base, tail)
	switch {
	case errors.Is(err, io.EOF):
		changed.Off = s.Size()
	case err != nil:
		return nil, err
	}
	if changed.Off > tail {
		out = append(out, extent.Range{Off: tail, Len: min(changed.Off, s.Size()) - tail})
	}
	return extent.Normalize(out), nil
}

// clean lists data of [off, end) that is called unchanged, at most budget bytes,
// and tells where it stopped and what is left of the budget.
func (s *source) clean(ctx context.Context, base volume.Checkpoint, off, end, budget int64) ([]extent.Range, int64, int64, error) {
	var out []extent.Range
	for off < end && budget > 0 {
		data, err := s.Data(ctx, off)
		if errors.Is(err, io.EOF) || err == nil && data.Off >= end {
			return out, end, budget, nil
		}
		if err != nil {
			return out, off, budget, err
		}
		changed, err := s.Changed(ctx, base, data.Off)
		if err != nil && !errors.Is(err, io.EOF) {
			return out, off, budget, err
		}
		if err == nil && changed.Off <= data.Off {
			off = changed.End()
			continue
		}
		to := min(data.End(), end, data.Off+budget)
		if err == nil {
			to = min(to, changed.Off)
		}
		out = append(out, extent.Range{Off: data.Off, Len: to - data.Off})
		budget -= to - data.Off
		off = to
	}
	return out, min(off, end), budget, nil
}

// settled is what the next point can build on.
func (s *source) settled(checkpoint volume.Checkpoint) record {
	r := record{Path: s.b.prefix() + s.at.target, File: s.file, Size: s.Size(), Checkpoint: checkpoint, Audit: s.audit}
	// Of a stopped machine's disk there is none: no bitmap can begin now, and the
	// one before tells only since then if the file is never put back.
	if k, err := s.at.disk(s.b.dom); err == nil && tracked(k) && s.b.marked {
		r.Mark = s.b.mark
	}
	return r
}
