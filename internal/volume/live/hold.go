package live

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// hold is one instant of one volume. Writers that come after it copy what
// they are about to change to the scratch file first, grain by grain.
type hold struct {
	v     *vol
	w     *view // at the instant; its base stays open as long as the hold
	since volume.Checkpoint
	audit int64 // where in the volume its audit begins
	dirty *set  // changed between since and the instant

	scratch *os.File
	grain   int64        // bytes: what guests write at least, up to a cluster
	copied  *set         // grains that may have changed since the instant
	zero    *set         // copied ones that take no room in scratch
	tree    *set         // copied ones that were the tree's
	gone    *set         // clusters that nobody will read any more
	kept    atomic.Int64 // bytes of scratch
	passed  atomic.Int64 // bytes that were ever kept
	sending atomic.Bool  // somebody sends them to the disk

	mu    sync.Mutex
	mixed map[int64]uint16 // of copied grains that were the tree's in part: their cluster's local pages

	failed atomic.Pointer[error] // since when scratch does not have everything
}

// mostGrains bounds the memory of a hold: 32 MiB for each set of them, if all
// of a volume is written to. Larger volumes have larger grains, of which some
// may be mixed.
const mostGrains = 1 << 28

// begin makes an instant's sets for a volume.
func (h *hold) begin(size int64) {
	h.grain = pageSize
	for size/h.grain > h.v.d.grains && h.grain < clusterSize {
		h.grain *= 2
	}
	n := (size + h.grain - 1) / h.grain
	h.copied, h.zero, h.tree, h.gone, h.mixed = newSet(n), newSet(n), newSet(n), newSet(clusters(size)), map[int64]uint16{}
}

// grains is the first grain of a range, and the one behind it.
func (h *hold) grains(off, end int64) (first, behind int64) {
	return off / h.grain, (end + h.grain - 1) / h.grain
}

// preserve copies what somebody is about to change, unless that was done or is
// not needed. The gate is held. If there is no room the hold is given up, never
// the writer.
func (h *hold) preserve(w *view, off, n int64) {
	for end := off + n; off < end; {
		at := off / clusterSize
		next := min((at+1)*clusterSize, end)
		first, behind := h.grains(off, next)
		if h.failed.Load() != nil {
			return
		}
		if !h.gone.has(at) && !h.copied.all(first, behind) {
			if err := h.preserveIn(w, at, first, behind); err != nil {
				h.fail(err)
				return
			}
		}
		off = next
	}
}

func (h *hold) fail(err error) {
	h.failed.CompareAndSwap(nil, &err)
}

func (h *hold) failure() error {
	if p := h.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// preserveIn copies grains of one cluster.
func (h *hold) preserveIn(w *view, at, first, behind int64) error {
	mu := &h.v.stripe[at%stripes]
	mu.Lock()
	defer mu.Unlock()
	buf := h.v.d.buffer()
	defer h.v.d.release(buf)
	for from := h.copied.find(first, behind, ^uint64(0)); from < behind; {
		to := h.copied.find(from, behind, 0)
		if w.tree.has(at) {
			h.noteForeign(w, at, from, to)
		}
		if !h.zero.all(from, to) {
			data := buf[:min(to*h.grain, w.size)-from*h.grain]
			if err := h.v.get(data, from*h.grain); err != nil {
				return err
			}
			if err := h.keep(data, from, to); err != nil {
				return err
			}
		}
		h.copied.addRange(from, to)
		from = h.copied.find(to, behind, ^uint64(0))
	}
	return nil
}

// noteForeign remembers which pages of some grains the tree has. A grain of
// which it has all takes no room.
func (h *hold) noteForeign(w *view, at, from, to int64) {
	pages := w.pages.of(at)
	for g := from; g < to; g++ {
		switch all := h.pagesOf(g, g+1); pages & all {
		case 0:
			h.tree.add(g)
			h.zero.add(g)
		case all:
		default:
			h.mu.Lock()
			h.mixed[g] = pages
			h.mu.Unlock()
		}
	}
}

// foreignOf is the pages of copied grains of one cluster that were the tree's.
func (h *hold) foreignOf(from, to int64) (foreign uint16) {
	for g := from; g < to; g++ {
		if h.tree.has(g) {
			foreign |= h.pagesOf(g, g+1)
		}
	}
	if h.grain == pageSize {
		return foreign // none is mixed
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for g := from; g < to; g++ {
		if local, ok := h.mixed[g]; ok {
			foreign |= h.pagesOf(g, g+1) &^ local
		}
	}
	return foreign
}

// pagesOf is the mask of the pages of some grains in their cluster.
func (h *hold) pagesOf(from, to int64) uint16 {
	base := from * h.grain / clusterSize * clusterSize
	first, behind := (from*h.grain-base)/pageSize, (to*h.grain-base)/pageSize
	return uint16(1<<behind - 1<<first)
}

// keep writes grains to scratch, but for those that take no room or are zeros.
func (h *hold) keep(data []byte, from, to int64) error {
	part := func(a, b int64) []byte {
		return data[(a-from)*h.grain : min((b-from)*h.grain, int64(len(data)))]
	}
	for g := from; g < to; {
		end := g
		for end < to && !h.zero.has(end) && !allZero(part(end, end+1)) {
			end++
		}
		if end == g {
			h.zero.add(g)
			g++
			continue
		}
		n := (end - g) * h.grain
		if err := h.v.d.takeScratch(h.v.id, n); err != nil {
			return err
		}
		h.kept.Add(n)
		if _, err := h.scratch.WriteAt(part(g, end), g*h.grain); err != nil {
			return h.v.d.scratchFailure(h.v.id, err)
		}
		h.sendBehind(n)
		g = end
	}
	return nil
}

// release lets writers of some clusters go without copying them, and gives
// back the room that copies of them take. A writer who is copying one now
// leaves it there until the hold ends.
func (h *hold) release(first, end int64) error {
	h.gone.addRange(first, end)
	g, behind := h.grains(first*clusterSize, min(end*clusterSize, h.w.size))
	for g = h.copied.find(g, behind, 0); g < behind; {
		at := g * h.grain / clusterSize
		to := h.copied.find(g, min((at+stripes)*clusterSize/h.grain, behind), ^uint64(0))
		if err := h.discard(g, to); err != nil {
			return err
		}
		g = h.copied.find(to, behind, 0)
	}
	return nil
}

// discard gives back the scratch room of copied grains, which lie in stripes
// clusters at most.
func (h *hold) discard(from, to int64) error {
	unlock := h.v.lockStripes(from*h.grain/clusterSize, clusters(to*h.grain))
	held := int64(0)
	for g := from; g < to; g++ {
		if !h.zero.has(g) {
			held += h.grain
		}
	}
	h.zero.addRange(from, to)
	unlock()
	if held == 0 {
		return nil
	}
	err := fallocate(h.scratch, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from*h.grain, (to-from)*h.grain)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // the room stays taken until the hold ends
	}
	if err != nil {
		return h.v.d.scratchFailure(h.v.id, err)
	}
	h.kept.Add(-held)
	h.v.d.scratch.Add(-held)
	return nil
}

// flip makes the present moment an instant. The gate is held whole.
func (v *vol) flip(h *hold) {
	w := v.view.Load()
	n := w.tree.n
	h.v, h.w, h.since, h.audit = v, w, v.since, v.auditAt
	h.begin(w.size)
	h.dirty = v.dirty
	v.dirty = newSet(n)
	// Regions that were written to since the last point are marked durably
	// already, and will most likely be written to again: they stay marked, so
	// that nobody has to wait for a sync. After a crash they count as changed.
	armed, marked := newSet(regions(w.size)), v.intents.Load()
	for at := h.dirty.next(0); at < n; {
		r := at / regionClusters
		if marked.has(r) {
			armed.add(r)
		}
		at = h.dirty.next((r + 1) * regionClusters)
	}
	v.intents.Store(armed)
	v.hold = h
}

// rejoin gives a hold up: what changed before it and since are one again. The
// gate is held whole; free the hold's scratch afterwards.
func (v *vol) rejoin() *hold {
	h := v.hold
	v.hold = nil
	v.dirty.addAll(h.dirty)
	return h
}

// settle makes the instant of the hold the checkpoint. Nobody freezes, grows
// or rolls back meanwhile: op is held.
func (v *vol) settle(h *hold, at volume.Checkpoint, auditAt int64) error {
	v.gate.Lock()
	if v.hold != h {
		v.gate.Unlock()
		return errs.New(errs.Internal, "volume %s: the instant is not held any more", v.id)
	}
	v.hold = nil
	v.since, v.auditAt = at, auditAt
	v.gate.Unlock()
	v.d.freeScratch(h)
	// What the point has and a power cut might take from the volume would be a
	// change that nobody marked.
	if err := v.syncData(); err != nil {
		return err
	}
	return v.rewrite(false)
}
