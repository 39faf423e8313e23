package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/volume"
)

func allZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

// read fills p from off.
func (v *vol) read(ctx context.Context, p []byte, off int64) error {
	for {
		w := v.view.Load()
		if err := w.inside(v.id, off, int64(len(p))); err != nil {
			return err
		}
		err := v.readView(ctx, w, p, off)
		if err != nil && v.view.Load() != w && ctx.Err() == nil {
			continue // its base is closed
		}
		return err
	}
}

func (v *vol) readView(ctx context.Context, w *view, p []byte, off int64) error {
	if w.base == nil {
		return v.get(p, off)
	}
	for len(p) > 0 {
		at := off / clusterSize
		n := (at+1)*clusterSize - off
		if !w.tree.has(at) {
			n = w.tree.next(at)*clusterSize - off
			n = min(n, int64(len(p)))
			if err := v.get(p[:n], off); err != nil {
				return err
			}
		} else {
			n = min(n, int64(len(p)))
			if err := v.readForeign(ctx, w, p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readForeign reads within one cluster that is, or was a moment ago, the
// tree's, and keeps what it fetched.
func (v *vol) readForeign(ctx context.Context, w *view, p []byte, off int64) error {
	if v.allLocal(w, off, int64(len(p))) {
		return v.get(p, off)
	}
	at := off / clusterSize
	start := at * clusterSize
	buf := v.d.buffer()
	defer v.d.release(buf)
	whole := buf[:min(clusterSize, w.size-start)]
	if err := v.fetch(ctx, w, whole, start); err != nil {
		return err
	}
	if err := v.install(w, at, whole); err == nil {
		if v.view.Load() == w {
			return v.get(p, off)
		}
	} else if !errs.Is(err, errs.Full) {
		return err
	}
	// There is no room to keep it, or the map changed: put it together here.
	copy(p, whole[off-start:])
	return v.overlay(w, p, off)
}

// allLocal reports whether no byte of a range within one cluster is the tree's.
func (v *vol) allLocal(w *view, off, n int64) bool {
	at := off / clusterSize
	from, to := off%clusterSize/pageSize, (off%clusterSize+n-1)/pageSize
	want := uint16(1<<(to+1) - 1<<from)
	return !w.tree.has(at) || w.pages.of(at)&want == want
}

// overlay puts the local pages of one cluster over p, which has the tree's.
func (v *vol) overlay(w *view, p []byte, off int64) error {
	at := off / clusterSize
	pages := w.pages.of(at)
	if !w.tree.has(at) {
		pages = allPages
	}
	return eachRun(pages, func(page, n int) error {
		from := max(at*clusterSize+int64(page)*pageSize, off)
		to := min(at*clusterSize+int64(page+n)*pageSize, off+int64(len(p)))
		if from >= to {
			return nil
		}
		return v.get(p[from-off:to-off], from)
	})
}

// eachRun calls fn with the runs of pages in a mask.
func eachRun(pages uint16, fn func(page, n int) error) error {
	for m := uint32(pages); m != 0; {
		page := bits.TrailingZeros32(m)
		n := bits.TrailingZeros32(^(m >> page))
		if err := fn(page, n); err != nil {
			return err
		}
		m &^= (1<<n - 1) << page
	}
	return nil
}

// get reads the data file.
func (v *vol) get(p []byte, off int64) error { return readFile(v.id, v.f, p, off) }

func readFile(id string, f *os.File, p []byte, off int64) error {
	switch _, err := f.ReadAt(p, off); {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return errs.Wrap(errs.Corrupt, err, "volume %s: its data became shorter outside of this service", id)
	case errors.Is(err, os.ErrClosed):
		return err
	default:
		return ioFailure(id, "read", err)
	}
}

// fetch reads from the base tree.
func (v *vol) fetch(ctx context.Context, w *view, p []byte, off int64) error {
	n := max(0, min(int64(len(p)), w.base.Size()-off))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	if err := v.d.readTree(ctx, w.base, p[:n], off); err != nil {
		return fmt.Errorf("read volume %s from its base: %w", v.id, err)
	}
	return nil
}

// readTree waits a while for a repository that is away.
func (d *Driver) readTree(ctx context.Context, tree volume.Tree, p []byte, off int64) error {
	deadline := time.Now().Add(d.cfg.RepositoryWait)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := tree.ReadAt(ctx, p, off)
		if err == nil || !errs.Is(err, errs.Unavailable) || time.Now().Add(wait).After(deadline) {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// seekData is the first range of the data file from off on that is no hole.
func (v *vol) seekData(off, size int64) (extent.Range, error) {
	if off >= size {
		return extent.Range{}, io.EOF
	}
	if k := v.known.Load(); k != nil && k.Off <= off && off < min(k.End(), size) {
		return extent.Range{Off: off, Len: min(k.End(), size) - off}, nil
	}
	start, err := v.f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return extent.Range{}, io.EOF
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return extent.Range{Off: off, Len: size - off}, nil // no holes on this filesystem
	case err != nil:
		return extent.Range{}, ioFailure(v.id, "find the holes of", err)
	}
	if start >= size {
		return extent.Range{}, io.EOF
	}
	end, err := v.f.Seek(start, unix.SEEK_HOLE)
	if errors.Is(err, unix.ENXIO) { // somebody trims: a moment ago it was data
		return extent.Range{Off: start, Len: size - start}, nil
	}
	if err != nil {
		return extent.Range{}, ioFailure(v.id, "find the holes of", err)
	}
	if end <= start { // trimmed in between, so that the hole begins here
		end = start + 1
	}
	found := extent.Range{Off: start, Len: min(end, size) - start}
	v.known.Store(&found)
	return found, nil
}

// data is the first range from off on that may hold anything but zeros. The tree
// is asked first: clusters go from it to the data file, and lie there before it
// is said. The other way round one that goes meanwhile would be in neither.
func (v *vol) data(ctx context.Context, w *view, off int64) (extent.Range, error) {
	foreign, ferr := extent.Range{}, io.EOF
	if w.base != nil {
		foreign, ferr = w.foreignData(ctx, off)
	}
	local, err := v.seekData(off, w.size)
	switch {
	case errors.Is(ferr, io.EOF):
		return local, err
	case ferr != nil:
		return foreign, ferr
	case errors.Is(err, io.EOF) || err == nil && foreign.Off < local.Off:
		return foreign, nil
	}
	return local, err
}

// foreignData is the first range from off on of clusters that are the tree's
// and no zeros there.
func (w *view) foreignData(ctx context.Context, off int64) (extent.Range, error) {
	for {
		at := w.tree.next(off / clusterSize)
		if at >= w.tree.n {
			return extent.Range{}, io.EOF
		}
		off = max(off, at*clusterSize)
		if off >= w.base.Size() {
			return extent.Range{}, io.EOF
		}
		d, err := w.base.Data(ctx, off)
		if err != nil {
			return d, err
		}
		d.Len = min(d.End(), w.size) - d.Off
		if d.Len <= 0 {
			return extent.Range{}, io.EOF
		}
		if end := w.tree.nextGap(at) * clusterSize; d.Off < end {
			d.Len = min(d.End(), end) - d.Off
			return d, nil
		}
		off = d.Off
	}
}
