package live

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
	"cairn/internal/extent"
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
	copied  *set // clusters whose bytes of the instant are in scratch
	zero    *set // copied ones that were zeros, so scratch has a hole

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
		if _, err := h.scratch.WriteAt(data, at*clusterSize); err != nil {
			return h.v.d.scratchFailure(h.v.id, err)
		}
	}
	h.copied.add(at)
	return nil
}

// flip makes the present moment an instant. The gate is held whole.
func (v *vol) flip(h *hold) {
	w := v.view.Load()
	n := w.tree.n
	h.v, h.w, h.since, h.audit = v, w, v.since, v.auditAt
	h.copied, h.zero, h.foreign = newSet(n), newSet(n), map[int64]uint16{}
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

// instant is one moment of some volumes.
type instant struct {
	d     *Driver
	name  string
	at    time.Time
	vols  []*vol
	holds []*hold
	audit []int64 // where each volume's next audit begins
	once  sync.Once
}

// Freeze holds one instant of all specs. Writers wait until all gates were
// closed and opened again, and for nothing that takes long.
func (d *Driver) Freeze(ctx context.Context, name string, specs []volume.Spec, within func(context.Context) error) (volume.Instant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(specs) == 0 {
		return nil, errs.New(errs.Internal, "hold %s names no volume", name)
	}
	in := &instant{d: d, name: name, audit: make([]int64, len(specs))}
	if err := d.claim(in); err != nil {
		return nil, err
	}
	if err := in.freeze(ctx, specs, within); err != nil {
		d.unclaim(in)
		return nil, err
	}
	return in, nil
}

func (in *instant) freeze(ctx context.Context, specs []volume.Spec, within func(context.Context) error) error {
	for _, s := range specs {
		v, err := in.d.vol(s.ID)
		if err != nil {
			return err
		}
		if slices.Contains(in.vols, v) {
			return errs.New(errs.Internal, "hold %s names volume %s twice", in.name, s.ID)
		}
		in.vols = append(in.vols, v)
	}
	order := slices.SortedFunc(slices.Values(in.vols), func(a, b *vol) int { return strings.Compare(a.id, b.id) })
	for _, v := range order {
		v.op.Lock()
		defer v.op.Unlock()
		if err := v.free(); err != nil {
			return err
		}
	}
	for _, v := range in.vols {
		f, err := in.d.newScratch(v.id)
		if err != nil {
			return errors.Join(err, in.closeScratch())
		}
		in.holds = append(in.holds, &hold{scratch: f})
	}
	begin := time.Now()
	for _, v := range order {
		v.gate.Lock()
	}
	in.at = time.Now().UTC()
	var err error
	if within != nil {
		err = within(ctx)
	}
	if err == nil {
		for i, v := range in.vols {
			v.flip(in.holds[i])
		}
	}
	for _, v := range order {
		v.gate.Unlock()
	}
	if err != nil {
		return errors.Join(err, in.closeScratch())
	}
	in.d.log.Info("volumes frozen", "hold", in.name, "volumes", len(specs), "pause", time.Since(begin))
	return nil
}

func (in *instant) closeScratch() (err error) {
	for _, h := range in.holds {
		err = errors.Join(err, h.scratch.Close())
	}
	return err
}

// free says why nobody may freeze, grow or overwrite the volume now; op is held.
func (v *vol) free() error {
	switch {
	case v.closed:
		return errs.New(errs.NotFound, "volume %s: its data is gone", v.id)
	case v.target:
		return busy(v.id, "is being overwritten by another job")
	case v.hold != nil: // set under op and the gate, so op is enough to look
		return busy(v.id, "is being read by another job")
	}
	return v.failure()
}

func (in *instant) Time() time.Time { return in.at }

// Durable is always false: scratch is not synced, so that writers need not
// wait for a disk.
func (in *instant) Durable() bool { return false }

func (in *instant) Source(i int) volume.Source { return &source{in: in, i: i, h: in.holds[i]} }

func (in *instant) Check(context.Context) error {
	for _, h := range in.holds {
		if err := h.failure(); err != nil {
			return err
		}
	}
	return nil
}

func (h *hold) failure() error {
	if p := h.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// Settle makes the instant the one from which changes are counted.
func (in *instant) Settle(_ context.Context, checkpoints []volume.Checkpoint) error {
	if len(checkpoints) != len(in.vols) {
		return errs.New(errs.Internal, "hold %s: %d checkpoints for %d volumes", in.name, len(checkpoints), len(in.vols))
	}
	var all error
	for i, v := range in.vols {
		v.op.Lock()
		all = errors.Join(all, v.settle(in.holds[i], checkpoints[i], in.audit[i]))
		v.op.Unlock()
	}
	return all
}

// Close gives up what was not settled.
func (in *instant) Close() error {
	in.once.Do(func() {
		for i, v := range in.vols {
			v.op.Lock()
			v.gate.Lock()
			mine := v.hold == in.holds[i]
			if mine {
				v.rejoin()
			}
			v.gate.Unlock()
			v.op.Unlock()
			if mine {
				in.d.freeScratch(in.holds[i])
			}
		}
		in.d.unclaim(in)
	})
	return nil
}

// Reopen never finds anything: no instant is durable.
func (d *Driver) Reopen(ctx context.Context, name string, _ []volume.Spec) (volume.Instant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("hold %s: %w", name, volume.ErrNoInstant)
}

// Drop gives up what is held under a name.
func (d *Driver) Drop(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	in := d.instants[name]
	d.mu.Unlock()
	if in == nil {
		return nil
	}
	return in.Close()
}

func (d *Driver) claim(in *instant) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.instants[in.name] != nil {
		return errs.New(errs.Conflict, "an instant is open under hold %s already", in.name)
	}
	d.instants[in.name] = in
	return nil
}

func (d *Driver) unclaim(in *instant) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.instants[in.name] == in {
		delete(d.instants, in.name)
	}
}

// newScratch makes a scratch file without a name: nothing is left of it after
// a crash.
func (d *Driver) newScratch(id string) (*os.File, error) {
	fd, err := unix.Open(d.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(d.dir, id+" (scratch)")), nil
	}
	f, err := os.CreateTemp(d.dir, ".scratch-")
	if err != nil {
		return nil, d.scratchFailure(id, err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(d.scratchFailure(id, err), f.Close())
	}
	return f, nil
}

func (d *Driver) scratchFailure(id string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errs.Wrap(errs.Full, err, "volume %s: no space is left for what was overwritten during the snapshot, so the snapshot is given up; free some and try again", id)
	}
	return errs.Wrap(errs.Unavailable, err, "volume %s: the server's disk failed to keep what was overwritten during the snapshot; see the server's log", id)
}

// takeScratch takes room for one cluster.
func (d *Driver) takeScratch(id string) error {
	if used := d.scratch.Add(clusterSize); used > d.cfg.ScratchBytes {
		d.scratch.Add(-clusterSize)
		return errs.New(errs.Full, "volume %s: so much was overwritten during the snapshot that the scratch space of %d MiB is full, and the snapshot is given up; take it when less is written, or raise --scratch", id, d.cfg.ScratchBytes>>20)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err == nil && int64(st.Bavail)*st.Bsize < d.cfg.FreeFloor {
		d.scratch.Add(-clusterSize)
		return errs.New(errs.Full, "volume %s: the server's disk is nearly full, so what is overwritten during the snapshot cannot be kept, and the snapshot is given up; free some space and try again", id)
	}
	return nil
}

// freeScratch gives the room of a hold back. Its sources fail from now on.
func (d *Driver) freeScratch(h *hold) {
	h.fail(errs.New(errs.Internal, "the instant of volume %s is not held any more", h.v.id))
	d.scratch.Add(-(h.copied.count() - h.zero.count()) * clusterSize)
	d.logClose(h.v.id, h.scratch.Close())
}

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

// readPiece reads at once what nobody touched: a writer marks a cluster as
// copied before it changes it, so if none is marked after reading, what was
// read is of the instant.
func (h *hold) readPiece(ctx context.Context, p []byte, off int64) error {
	first, end := off/clusterSize, (off+int64(len(p))-1)/clusterSize+1
	if !h.copied.any(first, end) && !h.w.tree.any(first, end) {
		if err := h.v.get(p, off); err != nil {
			return err
		}
		if !h.copied.any(first, end) {
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
	at := off / clusterSize
	foreign, pages, err := h.readLocal(p, off)
	if err != nil || !foreign {
		return err
	}
	buf := h.v.d.buffer()
	defer h.v.d.release(buf)
	from := buf[:len(p)]
	if err := h.v.fetch(ctx, h.w, from, off); err != nil {
		return err
	}
	return eachRun(^pages, func(page, n int) error {
		a := max(at*clusterSize+int64(page)*pageSize, off)
		b := min(at*clusterSize+int64(page+n)*pageSize, off+int64(len(p)))
		if a < b {
			copy(p[a-off:b-off], from[a-off:b-off])
		}
		return nil
	})
}

// readLocal reads what the data file or the scratch file has of a cluster, and
// says whether, and but for which pages, it was the tree's.
func (h *hold) readLocal(p []byte, off int64) (foreign bool, pages uint16, err error) {
	at := off / clusterSize
	mu := &h.v.stripe[at%stripes]
	mu.Lock()
	defer mu.Unlock()
	if !h.copied.has(at) {
		return h.w.tree.has(at), h.w.pages.of(at), h.v.get(p, off)
	}
	h.mu.Lock()
	pages, foreign = h.foreign[at]
	h.mu.Unlock()
	if h.zero.has(at) {
		clear(p)
		return foreign, pages, nil
	}
	return foreign, pages, readFile(h.v.id, h.scratch, p, off)
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
	now, err := h.v.data(ctx, h.w, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return now, err
	}
	// Asked last: what somebody trims now is marked as copied before.
	at := h.copied.next(off / clusterSize)
	if at == h.copied.n || err == nil && now.Off <= at*clusterSize {
		return now, err
	}
	from := max(off, at*clusterSize)
	return extent.Range{Off: from, Len: min(h.copied.nextGap(at)*clusterSize, h.w.size) - from}, nil
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
