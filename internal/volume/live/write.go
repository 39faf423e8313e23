package live

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"cairn/internal/extent"
)

// change is what a client wants of a range: bytes, or zeros.
type change struct {
	p    []byte // nil: zeros
	off  int64
	n    int64
	keep bool // zeros stay allocated
}

// part is the part of c at [off, off+n).
func (c change) part(off, n int64) change {
	out := change{off: off, n: n, keep: c.keep}
	if c.p != nil {
		out.p = c.p[off-c.off:][:n]
	}
	return out
}

// write does c, piece by piece. It is in the page cache and in the map when it
// returns, so it outlives this process; flush makes it outlive the machine.
func (v *vol) write(ctx context.Context, c change) error {
	if err := v.view.Load().inside(v.id, c.off, c.n); err != nil {
		return err
	}
	step := int64(pieceSize)
	if c.p == nil {
		step = zeroPiece
	}
	for off, end := c.off, c.off+c.n; off < end; {
		n := min(end, (off/step+1)*step) - off
		if err := v.writePiece(ctx, c.part(off, n)); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// writePiece makes everything ready that may take long, enters the gate, and
// begins again if a freeze came in between.
func (v *vol) writePiece(ctx context.Context, c change) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := v.failure(); err != nil {
			return err
		}
		if err := v.intend(c.off, c.n); err != nil {
			return err
		}
		w := v.view.Load()
		if at, ok := w.foreignEdge(c); ok {
			if err := v.localize(ctx, w, at); err != nil && v.view.Load() == w {
				return err
			}
			continue // also if the map was replaced and its base closed
		}
		v.gate.RLock()
		if v.view.Load() != w || !v.intended(c.off, c.n) {
			v.gate.RUnlock()
			continue
		}
		err := v.store(w, c)
		v.gate.RUnlock()
		return err
	}
}

// intended reports whether all regions of a range are marked durably.
func (v *vol) intended(off, n int64) bool {
	const region = regionClusters * clusterSize
	first, last := off/region, (off+n-1)/region
	s := v.intents.Load()
	if first == last {
		return s.has(first)
	}
	return s.all(first, last+1)
}

// intend marks the regions of a range durably before anybody writes there.
// Those who wait for the same moment share one sync.
func (v *vol) intend(off, n int64) error {
	if v.intended(off, n) {
		return nil
	}
	const region = regionClusters * clusterSize
	v.wantMu.Lock()
	for r := off / region; r <= (off+n-1)/region; r++ {
		v.wanted = append(v.wanted, r)
	}
	v.wantMu.Unlock()

	v.state.Lock()
	defer v.state.Unlock()
	v.wantMu.Lock()
	wanted := v.wanted
	v.wanted = nil
	v.wantMu.Unlock()
	if len(wanted) == 0 { // whoever was here before did it
		return v.failure()
	}
	s := v.intents.Load()
	var p []byte
	runs := s.ahead(wanted)
	for _, r := range runs {
		p = appendPair(p, uint64(r.Off), uint64(r.Len))
	}
	if err := v.appendLocked(recordIntent, p); err != nil {
		return err
	}
	if err := v.syncStateLocked(); err != nil {
		return err
	}
	for _, r := range runs {
		s.addRange(r.Off, r.End())
	}
	return nil
}

// ahead is the runs of regions to mark when some are wanted, in any order. Who
// writes from one region into the next will go on: as many are marked beyond
// as there are marked ones before, up to aheadRegions, so that he waits for few
// syncs, and at most as much again is read after a crash.
func (s *set) ahead(wanted []int64) []extent.Range {
	slices.Sort(wanted)
	var runs []extent.Range
	for _, r := range slices.Compact(wanted) {
		if n := len(runs); n > 0 && r <= runs[n-1].End() {
			runs[n-1].Len = max(runs[n-1].End(), r+1) - runs[n-1].Off
			continue
		}
		before := int64(0)
		for before < aheadRegions && r-before > 0 && s.has(r-before-1) {
			before++
		}
		runs = append(runs, extent.Range{Off: r, Len: min(1+before, s.n-r)})
	}
	return runs
}

// foreignEdge is a cluster of the tree of which c changes a part of a page
// that is not local: it must be fetched first.
func (w *view) foreignEdge(c change) (at int64, ok bool) {
	if w.base == nil {
		return 0, false
	}
	end := c.off + c.n
	if c.off%pageSize != 0 && w.foreign(c.off) {
		return c.off / clusterSize, true
	}
	if end%pageSize != 0 && end != w.size && w.foreign(end) {
		return end / clusterSize, true
	}
	return 0, false
}

// foreign reports whether the byte at off is the tree's.
func (w *view) foreign(off int64) bool {
	c := off / clusterSize
	return w.tree.has(c) && w.pages.of(c)&(1<<(off%clusterSize/pageSize)) == 0
}

// store changes data and map. The gate is held, the range is ready.
func (v *vol) store(w *view, c change) error {
	first, last := c.off/clusterSize, (c.off+c.n-1)/clusterSize
	if h := v.hold; h != nil {
		h.preserve(w, c.off, c.n)
	}
	v.dirty.addRange(first, last+1)
	if w.base == nil {
		return v.put(c)
	}
	locals, err := v.storeMixed(w, c)
	// Also of a write that failed midway: pages that are local stay so.
	return errors.Join(err, v.noteLocal(w, locals))
}

// storeMixed changes clusters of which some are the tree's, and lists the
// pages that became local.
func (v *vol) storeMixed(w *view, c change) (locals []byte, err error) {
	for off, end := c.off, c.off+c.n; off < end; {
		at := off / clusterSize
		if !w.tree.has(at) {
			n := min(end, w.tree.next(at)*clusterSize) - off
			if err := v.put(c.part(off, n)); err != nil {
				return locals, err
			}
			off += n
			continue
		}
		n := min(end, (at+1)*clusterSize) - off
		pages, err := v.storeForeign(w, at, c.part(off, n))
		if err != nil {
			return locals, err
		}
		if pages != 0 {
			locals = appendPair(locals, uint64(at), uint64(pages))
		}
		off += n
	}
	return locals, nil
}

// storeForeign changes a part of a cluster that was the tree's, and says which
// pages are local since; 0 if the cluster became local meanwhile.
func (v *vol) storeForeign(w *view, at int64, c change) (uint16, error) {
	mu := &v.stripe[at%stripes]
	mu.Lock()
	defer mu.Unlock()
	if err := v.put(c); err != nil {
		return 0, err
	}
	if !w.tree.has(at) {
		return 0, nil
	}
	from := c.off % clusterSize / pageSize
	to := (c.off - at*clusterSize + c.n + pageSize - 1) / pageSize
	pages := uint16(1<<to - 1<<from)
	if w.pages.add(at, pages)&w.whole(at) == w.whole(at) {
		pages = allPages
	}
	return pages, nil
}

// noteLocal writes down the pages that became local. The gate is held.
func (v *vol) noteLocal(w *view, locals []byte) error {
	if len(locals) == 0 {
		return nil
	}
	return v.note(recordLocal, locals, func() {
		for p := locals; len(p) > 0; p = p[16:] {
			if binary.LittleEndian.Uint64(p[8:]) == allPages {
				w.tree.remove(int64(binary.LittleEndian.Uint64(p)))
			}
		}
	})
}

// note writes down what became local, so that it is known after a crash of
// this process; a flush makes it durable. Then remove takes the clusters from
// the tree, for everybody to see: who writes to one that is local appends no
// record of his own, so he must come behind this one, and a state file that is
// written anew must have either. The gate is held.
func (v *vol) note(kind byte, payload []byte, remove func()) error {
	v.state.Lock()
	defer v.state.Unlock()
	if err := v.appendLocked(kind, payload); err != nil {
		return err
	}
	v.localEnd = v.file.end
	remove()
	return nil
}

// noteWhole is note of clusters that became local as wholes.
func (v *vol) noteWhole(w *view, at, n int64) error {
	return v.note(recordWhole, appendPair(nil, uint64(at), uint64(n)), func() { w.tree.removeRange(at, at+n) })
}

// put writes to the data file. Only then unsynced is set: a sync that began
// before it need not have what was written. What put leaves behind when it
// fails midway counts, too.
func (v *vol) put(c change) error {
	defer v.unsynced.Store(true)
	if c.p != nil {
		if _, err := v.f.WriteAt(c.p, c.off); err != nil {
			return ioFailure(v.id, "write", err)
		}
		return nil
	}
	v.known.Store(nil) // a hole that is taken for data is a waste, no error
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if c.keep {
		mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	}
	err := fallocate(v.f, mode, c.off, c.n)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		return v.putZeros(c.off, c.n)
	}
	return ioFailure(v.id, "write", err)
}

func fallocate(f *os.File, mode uint32, off, n int64) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = raw.Control(func(fd uintptr) {
		for {
			if ferr = unix.Fallocate(int(fd), mode, off, n); !errors.Is(ferr, unix.EINTR) {
				return
			}
		}
	})
	return errors.Join(err, ferr)
}

var zeros [1 << 20]byte

func (v *vol) putZeros(off, n int64) error {
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if _, err := v.f.WriteAt(zeros[:k], off); err != nil {
			return ioFailure(v.id, "write", err)
		}
		off, n = off+k, n-k
	}
	return nil
}

// localize fetches a cluster of the tree and makes it local.
func (v *vol) localize(ctx context.Context, w *view, at int64) error {
	buf := v.d.buffer()
	defer v.d.release(buf)
	data := buf[:min(clusterSize, w.size-at*clusterSize)]
	if err := v.fetch(ctx, w, data, at*clusterSize); err != nil {
		return err
	}
	return v.install(w, at, data)
}

// install makes the clusters from at on local that data has the tree's bytes
// of, at most stripes of them, unless somebody did so already or the map is
// another by now. Pages that are local stay.
func (v *vol) install(w *view, at int64, data []byte) error {
	v.gate.RLock()
	defer v.gate.RUnlock()
	if v.view.Load() != w {
		return nil
	}
	end := at + clusters(int64(len(data)))
	defer v.lockStripes(at, end)()
	for from := at; from < end; {
		n, err := v.installSome(w, from, end, data[(from-at)*clusterSize:])
		if err != nil {
			return err
		}
		from += n
	}
	return nil
}

// lockStripes locks the stripes of some clusters, always in the same order.
func (v *vol) lockStripes(at, end int64) (unlock func()) {
	var mine [stripes]bool
	for c := at; c < end; c++ {
		mine[c%stripes] = true
	}
	for i := range mine {
		if mine[i] {
			v.stripe[i].Lock()
		}
	}
	return func() {
		for i := range mine {
			if mine[i] {
				v.stripe[i].Unlock()
			}
		}
	}
}

// installSome installs the first clusters of a run, and says how many: those
// that are local already; one that has local pages; or as many as are wholly
// the tree's, with one write. Their stripes are held.
func (v *vol) installSome(w *view, at, end int64, data []byte) (n int64, err error) {
	if next := min(w.tree.next(at), end); next > at {
		return next - at, nil
	}
	pages := w.pages.of(at)
	n = 1
	for pages == 0 && at+n < end && w.tree.has(at+n) && w.pages.of(at+n) == 0 {
		n++
	}
	data = data[:min(n*clusterSize, int64(len(data)))]
	found, err := v.seekData(at*clusterSize, w.size)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if pages == 0 && (err != nil || found.Off >= at*clusterSize+int64(len(data))) {
		// There is a hole: nothing to compare with.
		err = v.putData(at*clusterSize, data)
	} else {
		for c := int64(0); c < n; c++ {
			part := data[c*clusterSize : min((c+1)*clusterSize, int64(len(data)))]
			if err = v.putMissing(at+c, part, pages); err != nil {
				break
			}
		}
	}
	if err != nil {
		return 0, err
	}
	return n, v.noteWhole(w, at, n)
}

// putData fills a hole, and leaves clusters of zeros as they are.
func (v *vol) putData(off int64, data []byte) error {
	for len(data) > 0 {
		n := min(clusterSize, len(data))
		zeros := allZero(data[:n])
		for n < len(data) && allZero(data[n:min(n+clusterSize, len(data))]) == zeros {
			n = min(n+clusterSize, len(data))
		}
		if !zeros {
			if err := v.put(change{p: data[:n], off: off, n: int64(n)}); err != nil {
				return err
			}
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

// putMissing writes the pages of a cluster that are not local, zeros as holes,
// and leaves those alone that are right as they lie there, as most are after a
// rollback of which it was not known what had changed.
func (v *vol) putMissing(at int64, data []byte, have uint16) error {
	buf := v.d.buffer()
	defer v.d.release(buf)
	lies := buf[:len(data)]
	if err := v.get(lies, at*clusterSize); err != nil {
		return err
	}
	return eachRun(^have, func(page, n int) error {
		from, end := page*pageSize, min((page+n)*pageSize, len(data))
		if from >= end || bytes.Equal(lies[from:end], data[from:end]) {
			return nil
		}
		c := change{off: at*clusterSize + int64(from), n: int64(end - from)}
		if !allZero(data[from:end]) {
			c.p = data[from:end]
		}
		return v.put(c)
	})
}
