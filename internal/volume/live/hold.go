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
// they are about to change to the scratch file first.
type hold struct {
	v     *vol
	w     *view // at the instant; its base stays open as long as the hold
	since volume.Checkpoint
	audit int64 // where in the volume its audit begins
	dirty *set  // changed between since and the instant

	scratch *os.File
	copied  *set         // clusters whose bytes of the instant are in scratch, or not needed
	zero    *set         // copied ones that take no room in scratch
	gone    *set         // copied ones that nobody will read any more
	kept    atomic.Int64 // clusters that take room in scratch

	mu      sync.Mutex
	foreign map[int64]uint16 // local pages of copied clusters that were the tree's

	failed atomic.Pointer[error] // since when scratch does not have everything
}

// preserve copies the clusters that somebody is about to change, unless that
// was done. The gate is held. If there is no room the hold is given up, never
// the writer.
func (h *hold) preserve(w *view, first, last int64) {
	for at := h.copied.nextGap(first); at <= last; at = h.copied.nextGap(at + 1) {
		if h.failed.Load() != nil {
			return
		}
		if err := h.preserveOne(w, at); err != nil {
			h.fail(err)
			return
		}
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

func (h *hold) preserveOne(w *view, at int64) error {
	mu := &h.v.stripe[at%stripes]
	mu.Lock()
	defer mu.Unlock()
	if h.copied.has(at) {
		return nil
	}
	buf := h.v.d.buffer()
	defer h.v.d.release(buf)
	data := buf[:min(clusterSize, w.size-at*clusterSize)]
	if err := h.v.get(data, at*clusterSize); err != nil {
		return err
	}
	if w.tree.has(at) {
		h.mu.Lock()
		h.foreign[at] = w.pages.of(at)
		h.mu.Unlock()
	}
	if allZero(data) {
		h.zero.add(at)
	} else {
		if err := h.v.d.takeScratch(h.v.id); err != nil {
			return err
		}
		h.kept.Add(1)
		if _, err := h.scratch.WriteAt(data, at*clusterSize); err != nil {
			return h.v.d.scratchFailure(h.v.id, err)
		}
	}
	h.copied.add(at)
	return nil
}

// release lets writers of some clusters go without copying them, and gives
// back the room that copies of them take. A writer who is copying one now
// leaves it there until the hold ends.
func (h *hold) release(first, end int64) error {
	for at := h.copied.next(first); at < end; {
		to := min(h.copied.nextGap(at), at+stripes, end)
		if err := h.discard(at, to); err != nil {
			return err
		}
		at = h.copied.next(to)
	}
	h.zero.addRange(first, end)
	h.gone.addRange(first, end)
	h.copied.addRange(first, end)
	return nil
}

// discard gives back the scratch room of copied clusters, at most stripes.
func (h *hold) discard(at, end int64) error {
	unlock := h.v.lockStripes(at, end)
	held := int64(0)
	for c := at; c < end; c++ {
		if !h.zero.has(c) {
			held++
		}
	}
	h.zero.addRange(at, end)
	unlock()
	if held == 0 {
		return nil
	}
	err := fallocate(h.scratch, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at*clusterSize, (end-at)*clusterSize)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // the room stays taken until the hold ends
	}
	if err != nil {
		return h.v.d.scratchFailure(h.v.id, err)
	}
	h.kept.Add(-held)
	h.v.d.scratch.Add(-held * clusterSize)
	return nil
}

// flip makes the present moment an instant. The gate is held whole.
func (v *vol) flip(h *hold) {
	w := v.view.Load()
	n := w.tree.n
	h.v, h.w, h.since, h.audit = v, w, v.since, v.auditAt
	h.copied, h.zero, h.gone, h.foreign = newSet(n), newSet(n), newSet(n), map[int64]uint16{}
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
