package engine

import (
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/repo"
	"cairn/internal/volume"
)

// Inflow is content on its way in, from front to back. It is read like a tar
// file: Next begins a range, then Read gives that range's bytes.
type Inflow interface {
	// Next is the next range that may hold anything but zeros. Empty: only
	// zeros follow, and the content is whole.
	Next() (extent.Range, error)
	io.Reader
}

// Flat is the inflow of a stream that sends zeros too: size bytes, and an
// error when r gives fewer or more.
func Flat(r io.Reader, size int64) Inflow {
	return &flat{r: &io.LimitedReader{R: r, N: size}, size: size}
}

type flat struct {
	r     *io.LimitedReader
	size  int64
	begun bool
}

func (f *flat) Next() (extent.Range, error) {
	if !f.begun {
		f.begun = true
		return extent.Range{Len: f.size}, nil
	}
	var one [1]byte
	if n, err := io.ReadFull(f.r.R, one[:]); n != 0 || !errors.Is(err, io.EOF) {
		return extent.Range{}, errs.Wrap(errs.Invalid, err, "the stream is longer than the %d bytes it was said to have; give its exact size", f.size)
	}
	return extent.Range{}, nil
}

func (f *flat) Read(p []byte) (int, error) { return f.r.Read(p) }

// ImportTo writes size bytes of content to a target that reads as zeros,
// leaves zero chunks as holes, and syncs. errs.Invalid: the content is not
// whole, or not of that size.
func (e *Engine) ImportTo(ctx context.Context, in Inflow, size int64, target volume.Target, progress Progress) error {
	m := importer{in: in, size: size, target: target, progress: progress, buf: make([]byte, leafSize)}
	for {
		r, err := in.Next()
		switch {
		case err != nil:
			return err
		case r.Len == 0:
			m.off = size
			return m.sync(ctx)
		case r.Len < 0 || r.Off < m.off || r.Off > size-r.Len:
			return errs.New(errs.Invalid, "a range of %d bytes at %d cannot follow %d of %d bytes; send ranges in order, and within the size", r.Len, r.Off, m.off, size)
		}
		m.off = r.Off
		if err := m.add(ctx, r.End()); err != nil {
			return err
		}
	}
}

// importer is an import under way.
type importer struct {
	in       Inflow
	size     int64
	target   volume.Target
	progress Progress
	buf      []byte

	off      int64 // what lies before is written, or a hole
	unsynced int64 // bytes that came since the last sync
}

// add writes the inflow's range, up to end.
func (m *importer) add(ctx context.Context, end int64) error {
	for m.off < end {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// Up to the next leaf's edge, so that chunks of zeros are seen whole.
		b := m.buf[:min(leafSize-m.off%leafSize, end-m.off)]
		if n, err := io.ReadFull(m.in, b); err != nil {
			return errs.Wrap(errs.Invalid, err, "the stream ended after %d of %d bytes; send the whole image", m.off+int64(n), m.size)
		}
		if err := importRun(ctx, m.target, b, m.off); err != nil {
			return err
		}
		m.off += int64(len(b))
		if m.unsynced += int64(len(b)); m.unsynced >= syncEvery {
			if err := m.sync(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *importer) sync(ctx context.Context) error {
	if err := m.target.Sync(ctx); err != nil {
		return fmt.Errorf("sync the imported volume: %w", err)
	}
	m.unsynced = 0
	if m.progress != nil {
		m.progress(m.off, m.size)
	}
	return nil
}

// importRun writes the chunks of b that are not all zeros, neighbours
// together. b begins at byte off, and ends at the latest where its leaf does.
func importRun(ctx context.Context, target volume.Target, b []byte, off int64) error {
	for i := 0; i < len(b); {
		end := i
		for end < len(b) && !repo.AllZero(b[end:min(end+chunkSize, len(b))]) {
			end = min(end+chunkSize, len(b))
		}
		if end > i {
			if err := target.WriteAt(ctx, b[i:end], off+int64(i)); err != nil {
				return err
			}
		}
		i = end + chunkSize
	}
	return nil
}
