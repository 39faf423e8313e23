package live

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
)

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

// takeScratch takes room for n bytes.
func (d *Driver) takeScratch(id string, n int64) error {
	used := d.scratch.Add(n)
	if used > d.cfg.ScratchBytes {
		d.scratch.Add(-n)
		return errs.New(errs.Full, "volume %s: so much was overwritten during the snapshot that the scratch space of %d MiB is full, and the snapshot is given up; take it when less is written, or raise --scratch", id, d.cfg.ScratchBytes>>20)
	}
	// To ask each time would cost as much as copying a page.
	const look = 4 << 20
	var st unix.Statfs_t
	if used > n && used/look == (used-n)/look {
		return nil
	}
	if err := unix.Statfs(d.dir, &st); err == nil && int64(st.Bavail)*st.Bsize < d.cfg.FreeFloor {
		d.scratch.Add(-n)
		return errs.New(errs.Full, "volume %s: the server's disk is nearly full, so what is overwritten during the snapshot cannot be kept, and the snapshot is given up; free some space and try again", id)
	}
	return nil
}

// freeScratch gives the room of a hold back. Its sources fail from now on.
func (d *Driver) freeScratch(h *hold) {
	h.fail(errs.New(errs.Internal, "the instant of volume %s is not held any more", h.v.id))
	d.scratch.Add(-h.kept.Load())
	d.logClose(h.v.id, h.scratch.Close())
}

// scratchSpan bytes of scratch stay in the page cache, about; what an instant
// that is small or short keeps never goes to the disk.
const scratchSpan = 16 << 20

// sendBehind sends scratch to the disk when n more bytes of it were written, and
// drops it from the page cache: nobody reads it soon, and what is copied next is
// copied into memory that is at hand (ADR 10). Nobody waits for it; where the
// disk is slower than the writers, the page cache holds what it has not taken.
func (h *hold) sendBehind(n int64) {
	now := h.passed.Add(n)
	if now/scratchSpan == (now-n)/scratchSpan || !h.sending.CompareAndSwap(false, true) {
		return
	}
	h.v.d.behind.Go(func() {
		defer h.sending.Store(false)
		if err := h.written(0); err != nil {
			h.fail(h.v.d.scratchFailure(h.v.id, err))
			return
		}
		forget(h.scratch, 0, 0)
	})
}

// written sends n bytes of scratch to the disk, 0 for all of it, waits until
// they are there, and tells if the disk failed with any of it since it was made:
// what the kernel could not write it drops from memory sooner or later, and then
// reads as something else. Of a scratch that was closed meanwhile it knows
// nothing.
func (h *hold) written(n int64) error {
	raw, err := h.scratch.SyscallConn()
	if err != nil {
		return nil //nolint:nilerr // it is closed
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.SyncFileRange(int(fd), 0, n, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	}); err != nil {
		return nil //nolint:nilerr // it is closed, which no error of os says
	}
	if errors.Is(failed, unix.ENOSYS) || errors.Is(failed, unix.EOPNOTSUPP) || errors.Is(failed, unix.ESPIPE) {
		return nil
	}
	return failed
}
