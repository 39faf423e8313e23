package live

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

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

// roller is a volume that is about to be rolled back.
type roller struct {
	*exclusive
	force bool
}

// OpenRoller keeps everybody from a volume that is to be rolled back.
// errs.Conflict: a client is connected. With force its connection ends, and
// Roll gives the export another name, so that it can never repeat its writes.
func (d *Driver) OpenRoller(ctx context.Context, s volume.Spec, force bool) (volume.Roller, error) {
	x, err := d.exclude(ctx, s, force)
	if err != nil {
		return nil, err
	}
	return &roller{x, force}, nil
}

// End; see volume.Roller.
func (r *roller) End(commit func() error) error { return r.end(commit) }

// Roll; see volume.Roller. tree must stay readable; see Clone. After a forced
// one the volume is not served until End or Serve.
func (r *roller) Roll(ctx context.Context, tree, from volume.Tree) (done volume.Rolled, err error) {
	v := r.v
	v.op.Lock()
	defer v.op.Unlock()
	size := v.view.Load().size
	switch err := v.failure(); {
	case err != nil:
		return done, err
	case v.closed:
		return done, errClosed
	case tree.Size() > size:
		return done, errs.New(errs.Conflict, "volume %s is smaller than the snapshot; resize the volume first", v.id)
	}
	swap, err := v.swapped(ctx, tree, from)
	if err != nil {
		return done, err
	}
	// An own handle: the caller closes tree.
	base, err := v.d.cfg.OpenTree(ctx, tree.Ref())
	if err != nil {
		return done, fmt.Errorf("open the tree to roll volume %s back to: %w", v.id, err)
	}
	old := v.view.Load().base
	if err := v.rolled(base, swap, r.force); err != nil {
		return done, err
	}
	if old != nil {
		v.d.logClose(v.id, old.Close())
	}
	done.Swapped = min(swap.count()*clusterSize, size)
	done.Relabelled = size - done.Swapped
	if e := v.served.Load(); e != nil && r.force {
		v.served.Store(nil)
		err = e.Remove(ctx)
	}
	return done, err
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

// rolled makes the new map true, durably. If that fails the volume shows the
// old content; where nobody can tell which map is on the disk it also takes no
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
		err = errors.Join(err, base.Close())
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

// Base tells which tree a volume still needs, by its Ref. "": none.
func (d *Driver) Base(ctx context.Context, s volume.Spec) (ref string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	v, err := d.vol(s.ID)
	if err != nil {
		return "", err
	}
	v.op.Lock()
	defer v.op.Unlock()
	return v.baseRef, nil
}

const (
	// fillStep bytes are fetched at once.
	fillStep = 2 << 20
	// fillSync bytes are made durable together.
	fillSync = 64 << 20
	// maxFillers fetch at the same time, where there are half as many processors:
	// some wait for the repository while others decode.
	maxFillers = 4
)

// Fill fetches what is still the tree's, as fast as pace lets it: pace is
// called with the number of bytes before each step, and ends the fill by an
// error. After it the volume needs no tree. It may be stopped and run again
// at any time, and runs beside clients and instants; Exported tells how far it
// is.
func (d *Driver) Fill(ctx context.Context, s volume.Spec, pace func(ctx context.Context, n int64) error) error {
	v, err := d.vol(s.ID)
	if err != nil {
		return err
	}
	w := v.view.Load()
	if w.base == nil {
		return nil
	}
	// What one span left is made durable while the next is fetched.
	var flushing errgroup.Group
	flushing.SetLimit(1)
	for at := w.tree.next(0); at < w.tree.n && err == nil; {
		from := at
		at, err = v.fillSpan(ctx, w, from, pace)
		end := at
		flushing.Go(func() error {
			if err := v.flush(); err != nil {
				return err
			}
			forget(v.f, from*clusterSize, (end-from)*clusterSize)
			return nil
		})
	}
	err = errors.Join(err, flushing.Wait())
	if v.retired.Load() {
		return errs.New(errs.NotFound, "volume %s was removed while it was filled", v.id)
	}
	if err != nil {
		return err
	}
	return v.independent(w)
}

// fillSpan makes clusters from at on local, as many as are made durable
// together, and tells where it ended.
func (v *vol) fillSpan(ctx context.Context, w *view, at int64, pace func(ctx context.Context, n int64) error) (int64, error) {
	fillers := min(2*runtime.GOMAXPROCS(0), maxFillers)
	bufs := make(chan []byte, fillers)
	for range fillers {
		bufs <- make([]byte, fillStep)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fillers)
	err := error(nil)
	for left := int64(fillSync / clusterSize); at < w.tree.n && left > 0; at = w.tree.next(at) {
		if v.view.Load() != w {
			err = busy(v.id, "was rolled back or resized while it was filled")
			break
		}
		var n int64
		if n, err = v.fillZeros(ctx, w, at); err != nil {
			break
		}
		if n == 0 {
			n = min(w.tree.nextGap(at)-at, fillStep/clusterSize)
			if err = pace(ctx, n*clusterSize); err != nil {
				break
			}
			first := at
			g.Go(func() error {
				buf := <-bufs
				defer func() { bufs <- buf }()
				return v.fillRun(ctx, w, first, buf[:min(n*clusterSize, w.size-first*clusterSize)])
			})
			left -= n
		}
		at += n
	}
	// What made the others stop comes first.
	if gerr := g.Wait(); gerr != nil {
		err = gerr
	}
	return at, err
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
	// That there are holes must be durable before it is said to be local: one
	// may have been punched a moment ago.
	v.unsynced.Store(true)
	return n, v.noteWhole(w, at, n)
}

// fillRun makes the clusters from at on local that fit in data.
func (v *vol) fillRun(ctx context.Context, w *view, at int64, data []byte) error {
	if err := v.fetch(ctx, w, data, at*clusterSize); err != nil {
		return err
	}
	if err := v.install(w, at, data); err != nil {
		return err
	}
	v.writeBack(at*clusterSize, int64(len(data)))
	return nil
}

// writeBack sends a range to the disk without waiting for it: left to itself
// the kernel does so seconds later, and a flush would wait for all of it. It is
// advice; what fails here, a flush tells.
func (v *vol) writeBack(off, n int64) {
	raw, err := v.f.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SyncFileRange(int(fd), off, n, unix.SYNC_FILE_RANGE_WRITE) })
	}
}

// forget takes a range that is on the disk out of the page cache, of n bytes or
// to the file's end if n is 0: what nobody has asked for yet shall not drive out
// what clients use, and the next span is written to memory that is at hand (ADR
// 8). It is advice.
func forget(f *os.File, off, n int64) {
	raw, err := f.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Fadvise(int(fd), off, n, unix.FADV_DONTNEED) })
	}
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
