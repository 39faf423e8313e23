package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
)

// leaseWatch is how often a guard looks for somebody waiting at its lease.
// The waiter sleeps in its open(2) until then, at most this long.
const leaseWatch = 20 * time.Millisecond

// guard is an open volume with everything held that keeps others away.
//
// A reading guard holds: flock, QEMU's lock bytes against writing, and a read
// lease, which the kernel gives only while nobody has the file open for
// writing, mappings included. A writing guard holds them against readers too.
// On a block device O_EXCL stands in for the lease.
type guard struct {
	*node
	writing bool
	base    state // when every lock was held

	leased   bool        // the filesystem gave us a lease; fixed after acquire
	intruder atomic.Bool // somebody wants to write; set before it is let in
	leaseMu  sync.Mutex  // guards held and the order of lease calls
	held     bool        // false while a reader is inside what we write

	unclaim func()
	stop    chan struct{} // closed to end watch
	done    sync.WaitGroup
	once    sync.Once
}

// state is what tells a changed volume from an unchanged one.
type state struct {
	size         int64
	mtime, ctime unix.Timespec
	writes       uint64 // sectors the block device was made to write or discard
	counted      bool   // writes is known
}

// acquire opens p and keeps others away from it, or fails with errs.Busy.
func (d *disks) acquire(ctx context.Context, p place, writing bool) (*guard, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	st, err := look(p)
	if err != nil {
		return nil, err
	}
	identity, _ := identityOf(&st)
	if err := d.claim(ctx, p.id, identity); err != nil {
		return nil, err
	}
	g, err := guardOn(ctx, p, &st, writing)
	if err != nil {
		d.unclaim(identity)
		return nil, err
	}
	g.unclaim = func() { d.unclaim(identity) }
	return g, nil
}

func guardOn(ctx context.Context, p place, st *unix.Stat_t, writing bool) (*guard, error) {
	if err := heldBySystem(p.id, st, writing); err != nil {
		return nil, err
	}
	mode := os.O_RDONLY
	if writing {
		mode = os.O_RDWR
	}
	n, err := open(p, mode, true)
	if err != nil {
		return nil, err
	}
	g := &guard{node: n, writing: writing, stop: make(chan struct{})}
	if err := g.lock(ctx); err != nil {
		return nil, errors.Join(err, n.f.Close())
	}
	if g.leased {
		g.done.Go(g.watch)
	}
	return g, nil
}

func (g *guard) lock(ctx context.Context) error {
	if err := g.flock(ctx); err != nil {
		return err
	}
	if err := g.control(g.lockQEMU); err != nil {
		return err
	}
	if !isDevice(&g.st) {
		if err := g.control(g.lease); err != nil {
			return err
		}
	}
	var err error
	if g.base, err = g.stateNow(); err != nil {
		return err
	}
	g.size = g.base.size // it may have grown between open and lock
	return nil
}

// flock takes the lock that cooperating programs use. udev takes it for
// moments on devices it looks at, so a taken one gets a few more tries.
func (g *guard) flock(ctx context.Context) error {
	how := unix.LOCK_EX
	for try := 0; ; try++ {
		err := g.control(func(fd int) error { return unix.Flock(fd, how|unix.LOCK_NB) })
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EBADF) && how == unix.LOCK_EX:
			how = unix.LOCK_SH // NFS: exclusive needs a descriptor that may write
		case errors.Is(err, unix.EWOULDBLOCK):
			if !isDevice(&g.st) || try >= 5 {
				return busy(g.id, err, "is locked by another program")
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(50 * time.Millisecond):
			}
		case errors.Is(err, unix.ENOLCK), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
			return nil // the filesystem has no such locks
		default:
			return ioFailure(g.id, "lock", err)
		}
	}
}

// QEMU's image locks: block/file-posix.c (RAW_LOCK_PERM_BASE,
// RAW_LOCK_SHARED_BASE) and include/block/block-common.h (BLK_PERM_*). Who
// uses permission i holds a shared lock on byte 100+i; who will not have
// others use it, on byte 200+i.
const (
	qemuUsed     = 100
	qemuUnshared = 200

	qemuRead           = 0
	qemuWrite          = 1
	qemuWriteUnchanged = 2
	qemuResize         = 3
)

func (g *guard) lockQEMU(fd int) error {
	all := []int64{qemuRead, qemuWrite, qemuWriteUnchanged, qemuResize}
	used, unshared := all[:1], all[1:]
	if g.writing {
		used, unshared = all, all
	}
	for base, perms := range map[int64][]int64{qemuUsed: used, qemuUnshared: unshared} {
		for _, p := range perms {
			l := unix.Flock_t{Type: unix.F_RDLCK, Start: base + p, Len: 1}
			err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
				return busy(g.id, err, "is locked by another program")
			}
			if err != nil {
				return nil //nolint:nilerr // no record locks on this filesystem, so QEMU has none either
			}
		}
	}
	// Only after taking: of two that come at once, at least one sees the other.
	for base, perms := range map[int64][]int64{qemuUnshared: used, qemuUsed: unshared} {
		for _, p := range perms {
			l := unix.Flock_t{Type: unix.F_WRLCK, Start: base + p, Len: 1}
			if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l); err != nil {
				return ioFailure(g.id, "lock", err)
			}
			if l.Type != unix.F_UNLCK {
				return busy(g.id, fmt.Errorf("lock on byte %d", base+p), "is in use by a running machine or another QEMU program")
			}
		}
	}
	return nil
}

func (g *guard) leaseType() int {
	if g.writing {
		return unix.F_WRLCK
	}
	return unix.F_RDLCK
}

func (g *guard) lease(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, g.leaseType())
	switch {
	case err == nil:
		g.leased, g.held = true, true
		return nil
	case errors.Is(err, unix.EAGAIN) && g.writing:
		return busy(g.id, err, "is open in another program")
	case errors.Is(err, unix.EAGAIN):
		return busy(g.id, err, "is open for writing in another program")
	}
	// Not our file, or a filesystem without leases: Check's comparison of
	// times and size is what is left. docs/file-driver.md says so.
	return nil
}

// watch lets those in who wait at the lease, and notes that they wanted to
// write. To keep them out is not in our power: the kernel takes the lease
// away after /proc/sys/fs/lease-break-time.
func (g *guard) watch() {
	tick := time.NewTicker(leaseWatch)
	defer tick.Stop()
	for {
		select {
		case <-g.stop:
			return
		case <-tick.C:
		}
		if g.intruded() {
			return
		}
	}
}

// intruded reports whether somebody opened or wants to open the volume for
// writing, as far as leases tell. It lets whoever waits go on.
func (g *guard) intruded() bool {
	g.leaseMu.Lock()
	defer g.leaseMu.Unlock()
	if !g.leased || g.intruder.Load() {
		return g.intruder.Load()
	}
	err := g.control(func(fd int) error {
		if !g.held {
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, g.leaseType())
			g.held = err == nil
			return nil
		}
		now, err := unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0)
		if err != nil || now == g.leaseType() {
			return err
		}
		if !g.writing || now != unix.F_RDLCK {
			g.intruder.Store(true) // before the waiter can go on
		}
		// Else a reader waits, which does no harm. While it is inside the
		// kernel gives no lease on a file that is written; watch takes it
		// again when the reader has gone.
		g.held = false
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK); !errors.Is(err, unix.EAGAIN) {
			return err
		}
		return nil // the kernel took it first
	})
	if err != nil {
		g.intruder.Store(true) // could not tell
	}
	return g.intruder.Load()
}

// stateNow looks at everything that a writer would have moved.
func (g *guard) stateNow() (state, error) {
	if isDevice(&g.st) {
		// Flushing makes what others left in the page cache count.
		if err := g.control(flushDevice); err != nil {
			return state{}, ioFailure(g.id, "read", err)
		}
		size, err := g.sizeNow()
		s := state{size: size}
		s.writes, s.counted = deviceWrites(&g.st)
		return s, err
	}
	var st unix.Stat_t
	if err := g.control(func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return state{}, ioFailure(g.id, "read", err)
	}
	return state{size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}

// unchanged fails if anybody may have changed the volume since acquire.
func (g *guard) unchanged() error {
	if err := g.stillThere(); err != nil {
		return err
	}
	if g.intruded() {
		return changed(g.id, "was opened for writing by another program while it was read; close it there and try again")
	}
	now, err := g.stateNow()
	if err != nil {
		return err
	}
	switch {
	case now.size < g.base.size:
		return changed(g.id, "became shorter while it was read; try again when nobody uses it")
	case now != g.base:
		return changed(g.id, "changed while it was read; try again when nobody uses it")
	}
	return nil
}

// stillThere fails if the path does not lead to the open file any more.
func (g *guard) stillThere() error {
	var st unix.Stat_t
	if err := unix.Lstat(g.path, &st); err != nil {
		return changed(g.id, "was removed or renamed while it was in use; put it back and try again")
	}
	now, _ := identityOf(&st)
	if was, _ := identityOf(&g.st); now != was {
		return changed(g.id, "was replaced by another file or device while it was in use; put it back or register it anew")
	}
	return nil
}

// release lets go of everything. Calling it again is harmless.
func (g *guard) release() error {
	var err error
	g.once.Do(func() {
		close(g.stop)
		g.done.Wait()
		err = g.f.Close() // with the descriptor go flock, lock bytes, lease and claim
		g.unclaim()
	})
	if err != nil {
		return errs.Wrap(errs.Internal, err, "")
	}
	return nil
}
