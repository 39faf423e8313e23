package live

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

const (
	// clusterSize is the repository's chunk, so that one changed cluster is one
	// chunk to read.
	clusterSize = 64 << 10
	// pageSize is what guests write at least; smaller writes to a cluster that
	// is still the tree's fetch it first.
	pageSize     = 4 << 10
	clusterPages = clusterSize / pageSize
	allPages     = 1<<clusterPages - 1
	// regionClusters clusters, 16 MiB, share one bit of write intent: one sync
	// when the first of them is written to, against 16 MiB to read after a
	// crash.
	regionClusters = 256
	aheadRegions   = 64 // 1 GiB; see ahead
	stripes        = 64
	// pieceSize is what a write does at most between two looks at the gate, so
	// that a freeze need not wait for all of a large one.
	pieceSize = 256 << 10
	zeroPiece = 64 << 20
	// compactAt is when the appended part of a state file is written anew.
	compactAt = 4 << 20
)

// served is how clients reach a volume.
type served struct {
	*nbd.Export
	name string
}

func clusters(size int64) int64 { return (size + clusterSize - 1) / clusterSize }

func regions(size int64) int64 { return (clusters(size) + regionClusters - 1) / regionClusters }

// view is where a volume's bytes are. It is replaced as a whole, under the
// gate; its sets change meanwhile: clusters leave tree, pages come.
type view struct {
	size  int64
	base  volume.Tree // nil: all is local, and tree is empty
	tree  *set
	pages *masks
}

// vol is an open volume.
//
// Locks, outer to inner: op, gate, a stripe, state. The gate is open to
// writers while they change data or map, so who holds it whole sees neither
// change. A cluster that is the tree's, or whose old bytes a hold still needs,
// changes under its stripe only.
type vol struct {
	d  *Driver
	id string
	f  *os.File // the data, sparse, at the volume's own offsets

	// op is held by whoever freezes, settles, rolls back, grows, closes: one at
	// a time. It guards what follows up to gate.
	op         sync.Mutex
	baseRef    string
	since      volume.Checkpoint
	generation uint64
	auditAt    int64
	taken      bool // by exclusive
	closed     bool
	served     atomic.Pointer[served] // nil: it is not; changed under op, read by anybody
	retired    atomic.Bool            // its data is gone; the filler asks without op

	gate    sync.RWMutex
	view    atomic.Pointer[view]
	dirty   *set                // changed since since, without what hold has
	intents atomic.Pointer[set] // regions that may be written to: durable
	hold    *hold

	stripe [stripes]sync.Mutex

	wantMu sync.Mutex // guards wanted; taken for moments only
	wanted []int64    // regions that somebody waits for

	state     sync.Mutex // guards what follows
	file      *stateFile
	localEnd  int64 // end of the last local record
	committed int64 // local records before it are covered by a commit

	// known is a range of the data file that is no hole, as far as was seen:
	// to find where it ends some filesystems look at each page of it.
	known atomic.Pointer[extent.Range]

	flushes  group
	syncMu   sync.Mutex  // held while the data is synced; innermost
	unsynced atomic.Bool // data was written since the last sync began
	failed   atomic.Pointer[error]
}

// open opens a volume that is there, and takes over one that has no state
// file yet: all of it is local, and nothing is known of its changes.
func (d *Driver) openVol(id string) (*vol, error) {
	v := &vol{d: d, id: id}
	f, err := os.OpenFile(d.dataPath(id), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.Wrap(errs.NotFound, err, "volume %s: its data is gone", id)
	}
	if err != nil {
		return nil, ioFailure(id, "open", err)
	}
	v.f = f
	if err := v.load(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return v, nil
}

func (v *vol) load() error {
	info, err := v.f.Stat()
	if err != nil {
		return ioFailure(v.id, "examine", err)
	}
	size := info.Size()
	c, serial, err := readStateFile(v.d.statePath(v.id), v.d.cfg.Boot)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c = newContent(head{Size: size})
	case err != nil:
		return err
	case size < c.Size:
		return errs.New(errs.Corrupt, "volume %s: its data has %d bytes of %d; somebody cut it off outside of this service", v.id, size, c.Size)
	case size > c.Size: // growing was cut off; it is done again, or somebody did it by hand
		c = c.grown(size)
	}
	c.changed()
	w := &view{size: c.Size, tree: c.tree, pages: c.pages}
	if c.Base != "" {
		if w.base, err = v.d.cfg.OpenTree(context.Background(), c.Base); err != nil {
			return fmt.Errorf("open the base of volume %s: %w", v.id, err)
		}
	}
	v.view.Store(w)
	v.baseRef, v.since, v.generation, v.auditAt = c.Base, c.Since, c.Generation, c.Audit
	v.dirty = c.dirty
	v.intents.Store(newSet(regions(c.Size)))
	// What an earlier process wrote may be in the page cache only, and save is
	// about to call it durable.
	v.unsynced.Store(true)
	return v.save(serial, false)
}

// grown is c for a larger volume. The checkpoint names a size, so it is void.
func (c *content) grown(size int64) *content {
	g := newContent(c.head)
	g.Size, g.Since = size, ""
	n := clusters(size)
	g.tree, g.pages, g.dirty = c.tree.resized(n), c.pages.resized(n), c.dirty.resized(n)
	g.intent = c.intent.resized(regions(size))
	return g
}

// save writes the state file anew; op is held, or nobody else knows v. clean:
// nobody writes any more.
func (v *vol) save(serial uint64, clean bool) error {
	v.state.Lock()
	defer v.state.Unlock()
	return v.saveLocked(serial, clean)
}

func (v *vol) saveLocked(serial uint64, clean bool) error {
	w := v.view.Load()
	c := &content{
		head: head{
			Size: w.size, Generation: v.generation, Base: v.baseRef, Since: v.since, Audit: v.auditAt,
			Clean: clean, Boot: v.d.cfg.Boot,
		},
		// Copied before the data is synced: what becomes local after that is
		// appended afterwards, as this holds the lock that appending takes.
		tree: w.tree.resized(w.tree.n), pages: w.pages.resized(w.tree.n),
		// The marks first: what becomes dirty after it was copied has one.
		intent: v.intents.Load().resized(regions(w.size)), dirty: v.dirty.resized(v.dirty.n),
	}
	if h := v.hold; h != nil {
		c.dirty.addAll(h.dirty)
	}
	if w.base != nil || clean { // else the file says nothing of the data
		if err := v.syncData(); err != nil {
			return err
		}
	}
	next, err := writeStateFile(v.d.statePath(v.id), serial+1, c)
	if errors.Is(err, errReplaced) {
		return v.latch(ioFailure(v.id, "store the state of", err))
	}
	if err != nil {
		return ioFailure(v.id, "store the state of", err)
	}
	old := v.file
	v.file, v.localEnd, v.committed = next, next.end, next.end
	if old != nil {
		v.d.logClose(v.id, old.close())
	}
	return nil
}

// rewrite is save of an open volume.
func (v *vol) rewrite(clean bool) error {
	v.state.Lock()
	defer v.state.Unlock()
	return v.saveLocked(v.file.serial, clean)
}

// close makes everything durable and exact. Nobody uses the volume any more.
func (v *vol) close() error {
	v.op.Lock()
	defer v.op.Unlock()
	if v.closed {
		return nil
	}
	v.closed = true
	v.gate.Lock()
	defer v.gate.Unlock()
	if v.hold != nil {
		v.d.freeScratch(v.rejoin())
	}
	err := v.failure()
	if err == nil {
		err = v.rewrite(true)
	}
	if w := v.view.Load(); w.base != nil {
		err = errors.Join(err, w.base.Close())
	}
	return errors.Join(err, v.file.close(), v.f.Close())
}

// free says why nobody may freeze, grow or overwrite the volume now; op is held.
func (v *vol) free() error {
	switch {
	case v.closed:
		return errs.New(errs.NotFound, "volume %s: its data is gone", v.id)
	case v.taken:
		return busy(v.id, "is being overwritten by another job")
	case v.hold != nil: // set under op and the gate, so op is enough to look
		return busy(v.id, "is being read by another job")
	}
	return v.failure()
}

// failure is why the volume must not be written to any more.
func (v *vol) failure() error {
	if p := v.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// latch keeps the first failure of a sync: nobody can tell what is on the disk
// since, so no later one may succeed.
func (v *vol) latch(err error) error {
	err = fmt.Errorf("volume %s takes no writes any more since a sync failed: %w", v.id, err)
	v.failed.CompareAndSwap(nil, &err)
	return *v.failed.Load()
}

// syncData makes the data file durable.
func (v *vol) syncData() error {
	v.syncMu.Lock()
	defer v.syncMu.Unlock()
	if err := v.failure(); err != nil {
		return err
	}
	if !v.unsynced.Swap(false) {
		return nil
	}
	if err := fdatasync(v.f); err != nil {
		return v.latch(ioFailure(v.id, "sync", err))
	}
	return nil
}

// flush makes all durable that was written before the call: the data first,
// then what the map says of it.
func (v *vol) flush() error {
	if err := v.flushes.do(v.flushOnce); err != nil {
		return err
	}
	return v.compact()
}

// compact writes the state file anew if much was appended and nobody is
// changing what it says.
func (v *vol) compact() error {
	v.state.Lock()
	long := v.file.end-v.file.whole > compactAt
	v.state.Unlock()
	if !long || !v.op.TryLock() {
		return nil
	}
	defer v.op.Unlock()
	if v.closed {
		return nil
	}
	// If there is no room for it, the long one goes on: what it says is true.
	if err := v.rewrite(false); err != nil && v.failure() != nil {
		return err
	}
	return nil
}

func (v *vol) flushOnce() error {
	v.state.Lock()
	upTo, of := v.localEnd, v.file.serial
	v.state.Unlock()
	if err := v.syncData(); err != nil {
		return err
	}
	v.state.Lock()
	defer v.state.Unlock()
	// After a rewrite what the place stood for is durable already, and the
	// place is of another file.
	if v.file.serial != of || upTo <= v.committed {
		return nil
	}
	if err := v.appendLocked(recordCommit, binary.LittleEndian.AppendUint64(nil, uint64(upTo))); err != nil {
		return err
	}
	if err := v.syncStateLocked(); err != nil {
		return err
	}
	v.committed = upTo
	return nil
}

// appendLocked appends to the state file; state is held. If it fails, as on a
// full disk, nothing was appended, and the next try may succeed: whoever asked
// is not told that it is done, so nothing is lost.
func (v *vol) appendLocked(kind byte, payload []byte) error {
	if err := v.file.append(kind, payload); err != nil {
		return ioFailure(v.id, "store the state of", err)
	}
	return nil
}

// syncStateLocked makes what was appended durable; state is held. It never
// fails twice: see latch.
func (v *vol) syncStateLocked() error {
	if err := v.failure(); err != nil {
		return err
	}
	if err := v.file.sync(); err != nil {
		return v.latch(ioFailure(v.id, "store the state of", err))
	}
	return nil
}

// group lets calls that come while one runs share the next one.
type group struct {
	asked atomic.Uint64
	mu    sync.Mutex
	done  uint64 // asked up to here are answered
	err   error  // of the last run
}

func (g *group) do(fn func() error) error {
	mine := g.asked.Add(1)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.done >= mine {
		return g.err
	}
	upTo := g.asked.Load()
	g.err = fn()
	g.done = upTo
	return g.err
}

// inside refuses what lies outside of the volume.
func (w *view) inside(id string, off, length int64) error {
	if off < 0 || length < 0 || off > w.size-length {
		return errs.New(errs.Internal, "volume %s: range %d+%d is outside its %d bytes", id, off, length, w.size)
	}
	return nil
}

// ioFailure explains why a volume's files failed.
func ioFailure(id, doing string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errs.Wrap(errs.Full, err, "volume %s: no space is left on the filesystem it lies on; free some and try again", id)
	}
	return errs.Wrap(errs.Unavailable, err, "volume %s: its filesystem failed to %s it; see the server's log", id, doing)
}

func busy(id, what string) error {
	return errs.New(errs.Busy, "volume %s %s; please try later", id, what)
}

func (d *Driver) dataPath(id string) string { return filepath.Join(d.dir, id+".raw") }

func (d *Driver) statePath(id string) string { return filepath.Join(d.dir, id+".state") }

// whole is the mask of all pages of a cluster that lie in the volume.
func (w *view) whole(c int64) uint16 {
	n := (min(w.size-c*clusterSize, clusterSize) + pageSize - 1) / pageSize
	return uint16(math.MaxUint16 >> (clusterPages - n))
}
