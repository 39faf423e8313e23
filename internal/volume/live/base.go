package live

import (
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/volume"
)

// Clone makes a volume with a tree's content and s.SizeBytes, at once: its
// bytes are fetched when somebody wants them, and by Fill. The tree must stay
// readable until Fill has come to its end or the volume is rolled back or
// removed; Base tells. A crash halfway leaves no volume, or a whole one.
func (d *Driver) Clone(ctx context.Context, s volume.Spec, tree volume.Tree) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.create(s, tree)
}

// Roll makes the volume's content that of a tree, in one durable step: what
// may differ from it becomes the tree's, the rest stays. from is the tree of
// the volume's head, nil if it has none: where changes since are known, only
// they and what differs between the trees are swapped. Bytes beyond the tree's
// end become zeros.
//
// errs.Conflict: a client is connected. With force its connection ends, and
// the export gets another name, so that it can never repeat its writes.
// tree must stay readable; see Clone. Running it twice is harmless.
func (d *Driver) Roll(ctx context.Context, s volume.Spec, tree, from volume.Tree, force bool) (r volume.Rolled, err error) {
	v, err := d.vol(s.ID)
	if err != nil {
		return r, err
	}
	// An own handle: the caller closes tree.
	base, err := d.cfg.OpenTree(ctx, tree.Ref())
	if err != nil {
		return r, fmt.Errorf("open the tree to roll volume %s back to: %w", s.ID, err)
	}
	v.op.Lock()
	defer v.op.Unlock()
	if err := v.free(); err != nil {
		return r, errors.Join(err, base.Close())
	}
	if tree.Size() > v.view.Load().size {
		return r, errors.Join(errs.New(errs.Conflict, "volume %s is smaller than the snapshot; resize the volume first", s.ID), base.Close())
	}
	resume := func() {}
	if e := v.served.Load(); e != nil {
		if resume, err = e.Suspend(ctx, force); err != nil {
			return r, errors.Join(err, base.Close())
		}
	}
	defer func() { resume() }()
	swap, err := v.swapped(ctx, tree, from)
	if err != nil {
		return r, errors.Join(err, base.Close())
	}
	old := v.view.Load()
	if err := v.rolled(base, swap, force); err != nil {
		return r, err
	}
	n := swap.count()
	r = volume.Rolled{Swapped: min(n*clusterSize, old.size)}
	r.Relabelled = old.size - r.Swapped
	if old.base != nil {
		v.d.logClose(v.id, old.base.Close())
	}
	if force && v.served.Load() != nil {
		err = v.reserve(ctx)
	}
	return r, err
}

// swapped finds the clusters that may differ from the tree.
func (v *vol) swapped(ctx context.Context, tree, from volume.Tree) (*set, error) {
	w := v.view.Load()
	n := w.tree.n
	swap := newSet(n)
	if v.since != tree.Checkpoint() && (from == nil || from.Checkpoint() != v.since) || v.since == "" {
		swap.addRange(0, n)
		return swap, nil
	}
	swap.addAll(v.dirty)
	// What is the base's already is never fetched from two trees.
	swap.addAll(w.tree)
	if v.since == tree.Checkpoint() {
		return swap, nil // back to where it came from, or again after a crash
	}
	for off := int64(0); ; {
		r, err := tree.Differs(ctx, from, off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("compare snapshots of volume %s: %w", v.id, err)
		}
		swap.addRange(min(r.Off/clusterSize, n), min((r.End()+clusterSize-1)/clusterSize, n))
		off = r.End()
	}
	// Sizes differ: the rest is compared when it is filled.
	if small := min(tree.Size(), from.Size()); small < w.size && tree.Size() != from.Size() {
		swap.addRange(small/clusterSize, n)
	}
	return swap, nil
}

// rolled makes the new map true, durably. If that fails nobody can tell which
// of the two is on the disk: the volume shows the old content and takes no
// writes until it is opened again.
func (v *vol) rolled(base volume.Tree, swap *set, force bool) error {
	v.gate.Lock()
	defer v.gate.Unlock()
	was, undo := v.view.Load(), v.undo()
	v.view.Store(&view{size: was.size, base: base, tree: swap, pages: newMasks(swap.n)})
	v.dirty = newSet(swap.n)
	v.intents.Store(newSet(regions(was.size)))
	v.since, v.baseRef = base.Checkpoint(), base.Ref()
	if base.Size() != was.size {
		v.since = "" // a checkpoint is of one size
	}
	if force {
		v.generation++
	}
	err := v.rewrite(false)
	if err != nil {
		undo()
		err = errors.Join(v.latch(err), base.Close())
	}
	return err
}

// undo remembers what rolled replaces.
func (v *vol) undo() func() {
	w, dirty, intents := v.view.Load(), v.dirty, v.intents.Load()
	since, ref, generation := v.since, v.baseRef, v.generation
	return func() {
		v.view.Store(w)
		v.intents.Store(intents)
		v.dirty, v.since, v.baseRef, v.generation = dirty, since, ref, generation
	}
}

// reserve serves the volume under the name of its new generation.
func (v *vol) reserve(ctx context.Context) error {
	if err := v.served.Load().Remove(ctx); err != nil {
		return err
	}
	v.served.Store(nil)
	return v.serve()
}

// Base tells which tree a volume still needs, by its Ref, and of how many of
// its bytes. "": none.
func (d *Driver) Base(ctx context.Context, s volume.Spec) (ref string, left int64, err error) {
	if err := ctx.Err(); err != nil {
		return "", 0, err
	}
	v, err := d.vol(s.ID)
	if err != nil {
		return "", 0, err
	}
	v.op.Lock()
	defer v.op.Unlock()
	w := v.view.Load()
	if w.base == nil {
		return "", 0, nil
	}
	return v.baseRef, min(w.tree.count()*clusterSize, w.size), nil
}

// fillRun is how many bytes Fill fetches at once.
const fillRun = 1 << 20

// Fill fetches what is still the tree's, as fast as pace lets it: pace is
// called with the number of bytes before each step, and ends the fill by an
// error. After it the volume needs no tree. It may be stopped and run again
// at any time, and runs beside clients and instants. done counts bytes.
func (d *Driver) Fill(ctx context.Context, s volume.Spec, pace func(ctx context.Context, n int64) error, progress func(done, total int64)) error {
	v, err := d.vol(s.ID)
	if err != nil {
		return err
	}
	w := v.view.Load()
	if w.base == nil {
		return nil
	}
	total := w.tree.count() * clusterSize
	buf := make([]byte, fillRun)
	synced := int64(0)
	for at := w.tree.next(0); at < w.tree.n; at = w.tree.next(at) {
		n, err := v.fillStep(ctx, w, at, buf, pace)
		if v.retired.Load() {
			return errs.New(errs.NotFound, "volume %s was removed while it was filled", v.id)
		}
		if err != nil {
			return err
		}
		if synced += n * clusterSize; synced >= 256<<20 {
			synced = 0
			if err := v.flush(); err != nil {
				return err
			}
		}
		progress(total-w.tree.count()*clusterSize, total)
	}
	return v.independent(w)
}

// fillStep makes some clusters from at on local, and says how many.
func (v *vol) fillStep(ctx context.Context, w *view, at int64, buf []byte, pace func(ctx context.Context, n int64) error) (n int64, err error) {
	if v.view.Load() != w {
		return 0, busy(v.id, "was rolled back or resized while it was filled")
	}
	if n, err = v.fillZeros(ctx, w, at); n != 0 || err != nil {
		return n, err
	}
	n = min(w.tree.nextGap(at)-at, fillRun/clusterSize)
	if err := pace(ctx, n*clusterSize); err != nil {
		return 0, err
	}
	return n, v.fillOnce(ctx, w, at, n, buf)
}

// zeroRun clusters, 16 GiB, become local at most in one step where both the
// tree and the data file have nothing.
const zeroRun = 1 << 18

// fillZeros makes clusters from at on local, without fetching them, that are
// zeros in the tree and holes in the data file. n is how many, 0 if at is none.
// A client may write to them meanwhile: its bytes are where they belong.
func (v *vol) fillZeros(ctx context.Context, w *view, at int64) (n int64, err error) {
	end := min(w.tree.nextGap(at), at+zeroRun) * clusterSize
	for _, next := range []func(off int64) (extent.Range, error){
		func(off int64) (extent.Range, error) { return w.foreignData(ctx, off) },
		func(off int64) (extent.Range, error) { return v.seekData(off, w.size) },
	} {
		r, err := next(at * clusterSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if err == nil {
			end = min(end, r.Off)
		}
	}
	if n = end/clusterSize - at; n <= 0 {
		return 0, nil
	}
	v.gate.RLock()
	defer v.gate.RUnlock()
	if v.view.Load() != w {
		return n, nil
	}
	w.tree.removeRange(at, at+n)
	return n, v.note(recordWhole, appendPair(nil, uint64(at), uint64(n)))
}

// fillOnce makes n clusters from at on local.
func (v *vol) fillOnce(ctx context.Context, w *view, at, n int64, buf []byte) error {
	from := at * clusterSize
	data := buf[:min(n*clusterSize, w.size-from)]
	if err := v.fetch(ctx, w, data, from); err != nil {
		return err
	}
	for len(data) > 0 {
		k := min(clusterSize, len(data))
		if err := v.install(w, at, data[:k]); err != nil {
			return err
		}
		data, at = data[k:], at+1
	}
	return nil
}

// independent lets go of the base: all clusters are local, durably. Nothing
// happens while an instant needs it, or if the map changed; Fill is then run
// again later.
func (v *vol) independent(w *view) error {
	v.op.Lock()
	defer v.op.Unlock()
	switch {
	case v.closed:
		return errClosed
	case v.view.Load() != w || w.tree.next(0) < w.tree.n:
		return busy(v.id, "was rolled back or resized while it was filled")
	case v.hold != nil:
		return busy(v.id, "is being read by another job")
	}
	// The view may go on to name the base for a moment: nothing is the tree's.
	ref := v.baseRef
	v.baseRef = ""
	if err := v.rewrite(false); err != nil {
		v.baseRef = ref
		return err
	}
	v.gate.Lock()
	v.view.Store(&view{size: w.size, tree: newSet(w.tree.n), pages: newMasks(w.tree.n)})
	v.gate.Unlock()
	v.d.logClose(v.id, w.base.Close())
	return nil
}
