package live

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/volume"
)

// source is one volume of an instant.
type source struct {
	in *instant
	i  int
	h  *hold
}

var _ volume.Source = (*source)(nil)

func (s *source) Size() int64 { return s.h.w.size }

// ReadAt reads the data file as long as nobody wrote there since the instant,
// else the scratch file.
func (s *source) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h := s.h
	if err := h.w.inside(h.v.id, off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(int64(len(p)), (off/pieceSize+1)*pieceSize-off)
		if err := h.readPiece(ctx, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return h.failure()
}

// readPiece reads at once what nobody touched: a writer marks a grain as copied
// before it changes it, so if none is marked after reading, what was read is of
// the instant.
func (h *hold) readPiece(ctx context.Context, p []byte, off int64) error {
	end := off + int64(len(p))
	if h.gone.any(off/clusterSize, clusters(end)) {
		return errs.New(errs.Internal, "volume %s: of %d bytes at %d of the instant some were released", h.v.id, len(p), off)
	}
	first, behind := h.grains(off, end)
	if !h.copied.any(first, behind) && !h.w.tree.any(off/clusterSize, clusters(end)) {
		if err := h.v.get(p, off); err != nil {
			return err
		}
		if !h.copied.any(first, behind) {
			return nil
		}
	}
	for len(p) > 0 {
		n := min(int64(len(p)), (off/clusterSize+1)*clusterSize-off)
		if err := h.readCluster(ctx, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readCluster reads within one cluster: local pages of the instant from where
// they are now, the others from the base.
func (h *hold) readCluster(ctx context.Context, p []byte, off int64) error {
	foreign, err := h.readLocal(p, off)
	if err != nil || foreign == 0 {
		return err
	}
	buf := h.v.d.buffer()
	defer h.v.d.release(buf)
	from := buf[:len(p)]
	if err := h.v.fetch(ctx, h.w, from, off); err != nil {
		return err
	}
	start := off / clusterSize * clusterSize
	return eachRun(foreign, func(page, n int) error {
		a := max(start+int64(page)*pageSize, off)
		b := min(start+int64(page+n)*pageSize, off+int64(len(p)))
		if a < b {
			copy(p[a-off:b-off], from[a-off:b-off])
		}
		return nil
	})
}

// readLocal reads what the data file or the scratch file has of a cluster, and
// tells the pages that were the tree's.
func (h *hold) readLocal(p []byte, off int64) (foreign uint16, err error) {
	at := off / clusterSize
	mu := &h.v.stripe[at%stripes]
	mu.Lock()
	defer mu.Unlock()
	start, end := off, off+int64(len(p))
	for off < end && err == nil {
		g, behind := h.grains(off, end)
		next, copied := h.copied.find(g, behind, 0), false
		if next == g {
			next, copied = h.copied.find(g, behind, ^uint64(0)), true
		}
		to := min(next*h.grain, end)
		part := p[off-start : to-start]
		switch {
		case copied:
			foreign |= h.foreignOf(g, next)
			err = h.readScratch(part, off)
		default:
			if h.w.tree.has(at) {
				foreign |= h.pagesOf(g, next) &^ h.w.pages.of(at)
			}
			err = h.v.get(part, off)
		}
		off = to
	}
	return foreign, err
}

// readScratch reads copied grains of one cluster.
func (h *hold) readScratch(p []byte, off int64) error {
	for len(p) > 0 {
		g, behind := h.grains(off, off+int64(len(p)))
		next, zero := h.zero.find(g, behind, 0), false
		if next == g {
			next, zero = h.zero.find(g, behind, ^uint64(0)), true
		}
		n := min(next*h.grain-off, int64(len(p)))
		if zero {
			clear(p[:n])
		} else if err := readFile(h.v.id, h.scratch, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// Release lets writers go on where the point was read, or need not be.
func (s *source) Release(_ context.Context, off, length int64) error {
	h := s.h
	first, end := clusters(off), (off+length)/clusterSize
	if off+length == h.w.size {
		end = h.gone.n
	}
	if err := h.w.inside(h.v.id, off, length); err != nil || first >= end {
		return err
	}
	return h.release(first, end)
}

// Data is what the volume has now or had where somebody wrote since.
func (s *source) Data(ctx context.Context, off int64) (extent.Range, error) {
	h := s.h
	if err := ctx.Err(); err != nil {
		return extent.Range{}, err
	}
	if off >= h.w.size {
		return extent.Range{}, io.EOF
	}
	if err := h.w.inside(h.v.id, off, 0); err != nil {
		return extent.Range{}, err
	}
	if err := h.failure(); err != nil {
		return extent.Range{}, err
	}
	for off < h.w.size {
		at := h.gone.nextGap(off / clusterSize)
		off = max(off, at*clusterSize)
		r, err := h.data(ctx, off)
		if err != nil {
			return r, err
		}
		if !h.gone.has(r.Off / clusterSize) {
			r.Len = min(r.End(), h.gone.next(r.Off/clusterSize)*clusterSize) - r.Off
			return r, nil
		}
		off = r.Off
	}
	return extent.Range{}, io.EOF
}

// data is Data with what was released counted as data.
func (h *hold) data(ctx context.Context, off int64) (extent.Range, error) {
	if off >= h.w.size {
		return extent.Range{}, io.EOF
	}
	now, err := h.v.data(ctx, h.w, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return now, err
	}
	// Asked last: what somebody trims now is marked as copied before.
	at := h.copied.next(off / h.grain)
	if at == h.copied.n || err == nil && now.Off <= at*h.grain {
		return now, err
	}
	from := max(off, at*h.grain)
	return extent.Range{Off: from, Len: min(h.copied.nextGap(at)*h.grain, h.w.size) - from}, nil
}

// Changed is exact if the server had stopped in order since base, else more.
func (s *source) Changed(ctx context.Context, base volume.Checkpoint, off int64) (extent.Range, error) {
	h := s.h
	if err := ctx.Err(); err != nil {
		return extent.Range{}, err
	}
	if base == "" || h.since != base {
		return extent.Range{}, volume.ErrNoBase
	}
	at := h.dirty.next(off / clusterSize)
	if off >= h.w.size || at == h.dirty.n {
		return extent.Range{}, io.EOF
	}
	from := max(off, at*clusterSize)
	return extent.Range{Off: from, Len: min(h.dirty.nextGap(at)*clusterSize, h.w.size) - from}, nil
}

const (
	// auditRuns points look at all data that tracking calls unchanged.
	auditRuns = 256
	auditMost = 256 << 20
	auditLess = 4 << 20
)

// Audit goes round the volume: what one point looks at begins where the last
// one ended.
func (s *source) Audit(ctx context.Context, base volume.Checkpoint) ([]extent.Range, error) {
	h := s.h
	if base == "" || h.since != base {
		return nil, nil
	}
	info, err := h.v.f.Stat()
	if err != nil {
		return nil, ioFailure(h.v.id, "examine", err)
	}
	budget := min(max(auditLess, allocated(info)/auditRuns), auditMost)
	var out []extent.Range
	off, wrapped := h.audit, false
	for budget > 0 {
		r, err := h.v.seekData(off, h.w.size)
		if errors.Is(err, io.EOF) {
			if wrapped {
				off = 0
				break
			}
			off, wrapped = 0, true
			continue
		}
		if err != nil {
			return nil, err
		}
		first := r.Off / clusterSize
		n := min(budget, min((r.End()+clusterSize-1)/clusterSize*clusterSize, h.w.size)-first*clusterSize)
		out = append(out, extent.Range{Off: first * clusterSize, Len: n})
		budget -= n
		off = first*clusterSize + n
		if off >= h.w.size {
			if wrapped {
				off = 0
				break
			}
			off, wrapped = 0, true
		}
	}
	s.in.audit[s.i] = off
	return h.unchanged(out), ctx.Err()
}

// allocated is how many bytes of the disk a file takes.
func allocated(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// unchanged is rs without what is known to have changed.
func (h *hold) unchanged(rs []extent.Range) []extent.Range {
	var out []extent.Range
	for _, r := range extent.Normalize(rs) {
		for off := r.Off; off < r.End(); {
			at := h.dirty.nextGap(off / clusterSize)
			off = max(off, at*clusterSize)
			end := min(r.End(), h.dirty.next(at)*clusterSize)
			if off < end {
				out = append(out, extent.Range{Off: off, Len: end - off})
			}
			off = max(end, off+1)
		}
	}
	return out
}
