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
