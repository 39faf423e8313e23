package file

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/volume"
)

// reader reads an open file or device of a fixed size. It is the half that
// sources and targets share.
type reader struct {
	id     string
	f      *os.File
	device bool
	size   int64
}

func (r *reader) Size() int64 { return r.size }

// inside refuses ranges that no caller may ask for.
func (r *reader) inside(off, length int64) error {
	if off < 0 || length < 0 || off > r.size-length {
		return errs.New(errs.Internal, "volume %s: range %d+%d is outside its %d bytes", r.id, off, length, r.size)
	}
	return nil
}

func (r *reader) ReadAt(ctx context.Context, buf []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := r.inside(off, int64(len(buf))); err != nil {
		return err
	}
	switch _, err := r.f.ReadAt(buf, off); {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return changed(r.id, "became shorter while it was read; try again when nobody uses it")
	case errors.Is(err, os.ErrClosed):
		return err
	default:
		return ioFailure(r.id, "read", err)
	}
}

func (r *reader) Data(ctx context.Context, off int64) (extent.Range, error) {
	if err := ctx.Err(); err != nil {
		return extent.Range{}, err
	}
	if off >= r.size {
		return extent.Range{}, io.EOF
	}
	if off < 0 {
		return extent.Range{}, r.inside(off, 0)
	}
	if r.device {
		return extent.Range{Off: off, Len: r.size - off}, nil
	}
	start, err := r.f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return extent.Range{}, io.EOF
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return extent.Range{Off: off, Len: r.size - off}, nil // no holes on this filesystem
	case err != nil:
		return extent.Range{}, ioFailure(r.id, "find the holes of", err)
	}
	if start >= r.size {
		return extent.Range{}, io.EOF
	}
	end, err := r.f.Seek(start, unix.SEEK_HOLE)
	switch {
	case errors.Is(err, unix.ENXIO):
		return extent.Range{}, changed(r.id, "became shorter while it was read; try again when nobody uses it")
	case err != nil:
		return extent.Range{}, ioFailure(r.id, "find the holes of", err)
	}
	return extent.Range{Off: start, Len: min(end, r.size) - start}, nil
}

// source is one volume of an instant. guard is nil when it is a reflink.
type source struct {
	reader
	guard *guard
}

// ReadAt also fails as soon as a writer was let in, so that a job does not
// read on for nothing.
func (s *source) ReadAt(ctx context.Context, buf []byte, off int64) error {
	if s.guard != nil && s.guard.intruder.Load() {
		return s.guard.unchanged()
	}
	return s.reader.ReadAt(ctx, buf, off)
}

// Changed always answers ErrNoBase: nothing about a plain file proves that a
// part of it did not change.
func (s *source) Changed(context.Context, volume.Checkpoint, int64) (extent.Range, error) {
	return extent.Range{}, volume.ErrNoBase
}

// Release does nothing: what changes under a file is found by Check.
func (s *source) Release(context.Context, int64, int64) error { return nil }

// Audit lists nothing: there is no tracking to mistrust.
func (s *source) Audit(context.Context, volume.Checkpoint) ([]extent.Range, error) { return nil, nil }

// sequential tells the kernel how f will be read. It is advice.
func sequential(f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.Fadvise(int(fd), 0, 0, unix.FADV_SEQUENTIAL) })
}
