// Package live holds managed volumes that serve clients, and that are frozen,
// cloned and rolled back while they do; points are served beside them, to be
// read. Format of the state files: record.go.
//
// A volume is a sparse data file, whose offsets are the volume's, and a state
// file: which clusters of 64 KiB are still a base tree's in the repository,
// and which changed since the last point. A volume without a state file is one
// of an earlier version: all of it is local, and nothing is known of changes.
//
// Invariants:
//   - an acknowledged write outlives this process, an acknowledged flush the
//     machine; the map never calls local what the data file does not have: data
//     is synced before the map says so, but for records that count only within
//     one boot of the machine;
//   - nobody sees a cluster as local before its record is in the state file: who
//     writes there then appends none of his own;
//   - a cluster is marked as changed before it changes, and the mark of its
//     region is durable before: after any crash what counts as changed is at
//     least what changed;
//   - what a Source shows is one moment: who changes a cluster after it copies
//     the old bytes first. If there is no room for them the Source fails, never
//     the client;
//   - the base tree is replaced, and clusters become the tree's, in one durable
//     step, while no client is connected and nothing reads.
//
// A Driver serves any number of goroutines. One process at a time may use a
// folder.
package live

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/durable"
	"cairn/internal/errs"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// Defaults of Config.
const (
	DefaultScratch        = 16 << 30
	DefaultFreeFloor      = 256 << 20
	DefaultRepositoryWait = 30 * time.Second
)

// Config is all that a Driver needs.
type Config struct {
	Dir string // made if it is not there
	// Boot names the present boot of the machine: BootID.
	Boot string
	// OpenTree opens the tree that Tree.Ref named.
	OpenTree func(ctx context.Context, ref string) (volume.Tree, error)
	// Server serves the volumes, under what URIs tells of an export's name.
	// nil: they are not served.
	Server *nbd.Server
	URIs   func(name string) []string

	ScratchBytes int64 // of all instants together; DefaultScratch
	// FreeFloor bytes of the disk stay free: scratch ends there before the
	// clients meet a full disk. DefaultFreeFloor; negative: none.
	FreeFloor int64
	// RepositoryWait is how long a client's request waits for a repository
	// that does not answer, before it fails. DefaultRepositoryWait.
	RepositoryWait time.Duration
	Log            *slog.Logger
}

// Driver holds live volumes in one folder.
type Driver struct {
	dir     string
	cfg     Config
	log     *slog.Logger
	scratch atomic.Int64   // bytes of all holds
	grains  int64          // a hold has at most: mostGrains, or what a test wants
	buffers sync.Pool      // of *[clusterSize]byte
	behind  sync.WaitGroup // of those who send scratch to the disk

	mu       sync.Mutex // guards what follows; held for moments only
	vols     map[string]*opening
	instants map[string]*instant
	closed   bool

	pointMu sync.Mutex // guards points; held while one is opened or closed
	points  map[string]*point
}

var _ volume.Driver = (*Driver)(nil)

// opening is a volume that is being opened or is open.
type opening struct {
	once sync.Once
	v    *vol
	err  error
}

// BootID names this boot of the machine. A record of what a process wrote is
// true for the next process of the same boot; after a reboot only what was
// synced is.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("tell one boot of the machine from the next: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// New opens a folder of volumes. Volumes are opened when they are first used.
func New(cfg Config) (*Driver, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("find the folder of managed volumes: %w", err)
	}
	if cfg.Boot == "" {
		return nil, errs.New(errs.Invalid, "the boot of the machine has no name")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of managed volumes: %w", err)
	}
	if err := durable.SyncDir(filepath.Dir(dir)); err != nil {
		return nil, err
	}
	// Reflinks of an earlier version's instants: no job can go on with them.
	if err := os.RemoveAll(filepath.Join(dir, "holds")); err != nil {
		return nil, fmt.Errorf("remove instants of an earlier version: %w", err)
	}
	if cfg.ScratchBytes == 0 {
		cfg.ScratchBytes = DefaultScratch
	}
	if cfg.FreeFloor == 0 {
		cfg.FreeFloor = DefaultFreeFloor
	}
	if cfg.RepositoryWait == 0 {
		cfg.RepositoryWait = DefaultRepositoryWait
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Driver{dir: dir, cfg: cfg, log: cfg.Log, grains: mostGrains, vols: map[string]*opening{}, instants: map[string]*instant{}, points: map[string]*point{}}
	d.buffers.New = func() any { return new([clusterSize]byte) }
	return d, nil
}

func (d *Driver) buffer() *[clusterSize]byte { return d.buffers.Get().(*[clusterSize]byte) }

func (d *Driver) release(b *[clusterSize]byte) { d.buffers.Put(b) }

// logClose tells of a failure that decides nothing any more.
func (d *Driver) logClose(id string, err error) {
	if err != nil {
		d.log.Warn("close a file of a volume", "volume", id, "error", err)
	}
}

// Close ends every instant and makes all volumes durable and their tracking
// exact. The server must not serve them any more.
func (d *Driver) Close() error {
	d.mu.Lock()
	d.closed = true
	var all []*opening
	for _, o := range d.vols {
		all = append(all, o)
	}
	d.mu.Unlock()
	err := d.closePoints()
	for _, o := range all {
		o.once.Do(func() { o.err = errClosed })
		if o.v != nil {
			err = errors.Join(err, o.v.close())
		}
	}
	d.behind.Wait()
	return err
}

var errClosed = errors.New("the volumes are closed")

// vol gives the open volume, opened if need be. errs.NotFound: there is none.
func (d *Driver) vol(id string) (*vol, error) {
	if !nameOK(id) {
		return nil, errs.New(errs.Internal, "%q cannot name a volume", id)
	}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, errClosed
	}
	o := d.vols[id]
	if o == nil {
		o = &opening{}
		d.vols[id] = o
	}
	d.mu.Unlock()
	o.once.Do(func() { o.v, o.err = d.openVol(id) })
	if o.err != nil {
		d.forget(id, o) // the next try may find it mended
	}
	return o.v, o.err
}

func (d *Driver) forget(id string, o *opening) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.vols[id] == o {
		delete(d.vols, id)
	}
}

// opened is the volume if it is open.
func (d *Driver) opened(id string) *opening {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.vols[id]
}

// nameOK says whether s may be part of a file name of ours.
func nameOK(s string) bool {
	if s == "" || len(s) > 128 || s[0] == '.' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return false
		}
		return r != '-' && r != '_'
	})
}

// Capabilities says that volumes are made here, and tracked.
func (d *Driver) Capabilities() volume.Capabilities {
	return volume.Capabilities{CreateVolumes: true, Tracking: true}
}

// Probe always refuses.
func (d *Driver) Probe(context.Context, string) (volume.Probe, error) {
	return volume.Probe{}, errs.New(errs.Invalid, "managed volumes are created, not registered")
}

// Create makes an all-zero volume. A crash halfway leaves none, or a whole one.
func (d *Driver) Create(_ context.Context, s volume.Spec) error { return d.create(s, nil) }

// create makes a volume of zeros, or of a tree's content.
func (d *Driver) create(s volume.Spec, base volume.Tree) error {
	switch {
	case !nameOK(s.ID):
		return errs.New(errs.Internal, "%q cannot name a volume", s.ID)
	case s.SizeBytes < 1:
		return errs.New(errs.Invalid, "volume %s: its size must be at least one byte", s.ID)
	}
	if err := d.drop(s.ID); err != nil {
		return err
	}
	c := newContent(head{Size: s.SizeBytes, Boot: d.cfg.Boot})
	if base != nil {
		c.Base = base.Ref()
		c.tree.addRange(0, c.tree.n)
	}
	// The state first: data without a state would count as all local.
	state, err := writeStateFile(d.statePath(s.ID), 1, c)
	if err != nil {
		return ioFailure(s.ID, "make", err)
	}
	d.logClose(s.ID, state.close())
	f, err := os.OpenFile(d.dataPath(s.ID), os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return ioFailure(s.ID, "make", err)
	}
	if err := errors.Join(setSize(f, s.ID, s.SizeBytes), f.Close()); err != nil {
		return err
	}
	if err := durable.SyncDir(d.dir); err != nil {
		return ioFailure(s.ID, "make", err)
	}
	return nil
}

func setSize(f *os.File, id string, size int64) error {
	err := f.Truncate(size)
	if errors.Is(err, unix.EFBIG) {
		return errs.Wrap(errs.Invalid, err, "volume %s: the server's filesystem has no room for files of %d bytes; choose a smaller size", id, size)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return ioFailure(id, "resize", err)
	}
	return nil
}

// Remove destroys the volume's data. Connected clients get errors from now on.
// errs.Busy: a job reads or overwrites it.
func (d *Driver) Remove(ctx context.Context, s volume.Spec) error {
	if !nameOK(s.ID) {
		return errs.New(errs.Internal, "%q cannot name a volume", s.ID)
	}
	if err := d.unserve(ctx, s); err != nil {
		return err
	}
	return d.drop(s.ID)
}

// drop closes and removes a volume, or what a crash left of one.
func (d *Driver) drop(id string) error {
	if o := d.opened(id); o != nil {
		o.once.Do(func() { o.err = errs.New(errs.NotFound, "volume %s: its data is gone", id) })
		if o.v != nil {
			if err := o.v.retire(); err != nil {
				return err
			}
		}
		d.forget(id, o)
	}
	// The data first: see create.
	for _, path := range []string{d.dataPath(id), d.statePath(id), d.statePath(id) + ".new"} {
		if err := removeFile(path); err != nil {
			return ioFailure(id, "remove", err)
		}
		if err := durable.SyncDir(d.dir); err != nil {
			return ioFailure(id, "remove", err)
		}
	}
	return nil
}

// retire closes a volume whose content nobody needs any more.
func (v *vol) retire() error {
	v.op.Lock()
	defer v.op.Unlock()
	if v.closed {
		return nil
	}
	if err := v.free(); err != nil && v.failure() == nil {
		return err
	}
	v.closed = true
	v.retired.Store(true)
	v.gate.Lock()
	defer v.gate.Unlock()
	var err error
	if w := v.view.Load(); w.base != nil {
		err = w.base.Close()
	}
	v.d.logClose(v.id, errors.Join(err, v.file.close(), v.f.Close()))
	return nil
}

// Size is the size in bytes that clients see.
func (d *Driver) Size(ctx context.Context, s volume.Spec) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	v, err := d.vol(s.ID)
	if err != nil {
		return 0, err
	}
	return v.view.Load().size, nil
}

// Grow makes the volume larger. Clients that are connected keep the old size;
// the protocol has no notice for them.
func (d *Driver) Grow(ctx context.Context, s volume.Spec, newSize int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	v, err := d.vol(s.ID)
	if err != nil {
		return err
	}
	v.op.Lock()
	defer v.op.Unlock()
	if err := v.free(); err != nil {
		return err
	}
	w := v.view.Load()
	switch {
	case newSize < w.size:
		return errs.New(errs.Invalid, "volume %s has %d bytes already and cannot shrink to %d", s.ID, w.size, newSize)
	case newSize == w.size:
		return nil
	}
	if err := setSize(v.f, v.id, newSize); err != nil {
		return err
	}
	if err := v.grown(w, newSize); err != nil {
		return err
	}
	if e := v.served.Load(); e != nil {
		return e.SetSize(newSize)
	}
	return nil
}

// grown makes a larger map true, durably. Nothing is appended meanwhile: a
// record of what lies behind the old end would damage the old state file.
func (v *vol) grown(w *view, size int64) error {
	// Writers wait for the sync below: most of what it has to do is done before.
	if err := v.syncData(); err != nil {
		return err
	}
	v.gate.Lock()
	defer v.gate.Unlock()
	v.state.Lock()
	defer v.state.Unlock()
	undo, n := v.undo(), clusters(size)
	v.view.Store(&view{size: size, base: w.base, tree: w.tree.resized(n), pages: w.pages.resized(n)})
	v.dirty = v.dirty.resized(n)
	v.intents.Store(v.intents.Load().resized(regions(size)))
	v.since = "" // a checkpoint is of one size
	err := v.saveLocked(v.file.serial, false)
	if err != nil {
		undo()
	}
	return err
}

// List names the volumes that lie in a folder, with their real sizes. It
// changes nothing; an absent folder has none.
func List(dir string) ([]volume.Spec, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the managed volumes: %w", err)
	}
	var out []volume.Spec
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".raw")
		if !ok || !nameOK(id) || !e.Type().IsRegular() {
			continue
		}
		st, err := e.Info()
		if err != nil {
			return nil, fmt.Errorf("look at managed volume %s: %w", id, err)
		}
		out = append(out, volume.Spec{ID: id, SizeBytes: st.Size()})
	}
	return out, nil
}
