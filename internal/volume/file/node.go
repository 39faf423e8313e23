package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
)

// node is a volume that was opened and is surely the one meant.
type node struct {
	place
	f    *os.File
	st   unix.Stat_t // as it was when opened
	size int64       // bytes, when opened
}

func isDevice(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFBLK }

// identityOf names the file or device itself, whatever path led to it.
// ok=false: it is neither a regular file nor a block device.
func identityOf(st *unix.Stat_t) (identity string, ok bool) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return fmt.Sprintf("file:%d:%d", st.Dev, st.Ino), true
	case unix.S_IFBLK:
		return fmt.Sprintf("block:%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), true
	}
	return "", false
}

// look examines what p's path leads to now, without opening it: to open a
// fifo or a tape is an act.
func look(p place) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p.path, &st); err != nil {
		return st, openFailure(p.id, err)
	}
	return st, p.matches(&st)
}

// matches compares what was found with what was registered.
func (p place) matches(st *unix.Stat_t) error {
	got, ok := identityOf(st)
	switch {
	case !ok:
		return errs.New(errs.Conflict, "volume %s: its path now leads to something that is neither a file nor a block device; put the volume back or register it anew", p.id)
	case p.identity != "" && p.identity != got:
		return errs.Wrap(errs.Conflict, fmt.Errorf("%s is %s, registered as %s", p.path, got, p.identity),
			"volume %s: its path now leads to a different file or device than the one that was registered; put the volume back or register it anew", p.id)
	}
	return nil
}

// open opens a volume. exclusive claims a block device for this process
// alone; it says nothing for files.
func open(p place, mode int, exclusive bool) (*node, error) {
	st, err := look(p)
	if err != nil {
		return nil, err
	}
	// O_NONBLOCK: a lease that somebody else holds answers at once.
	flags := mode | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	if exclusive && isDevice(&st) {
		flags |= unix.O_EXCL
	}
	fd, err := retryEINTR(func() (int, error) { return unix.Open(p.path, flags, 0) })
	if err != nil {
		return nil, openFailure(p.id, err)
	}
	n := &node{place: p}
	err = unix.Fstat(fd, &n.st)
	if err == nil {
		err = p.matches(&n.st)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_NONBLOCK)
	}
	n.f = os.NewFile(uintptr(fd), p.path)
	if err == nil {
		n.size, err = n.sizeNow()
	}
	if err != nil {
		return nil, errors.Join(err, n.f.Close())
	}
	return n, nil
}

// sizeNow asks the open file or device for its size in bytes.
func (n *node) sizeNow() (int64, error) {
	if isDevice(&n.st) {
		size, err := n.f.Seek(0, io.SeekEnd)
		if err != nil {
			return 0, ioFailure(n.id, "ask the size of", err)
		}
		return size, nil
	}
	info, err := n.f.Stat()
	if err != nil {
		return 0, ioFailure(n.id, "ask the size of", err)
	}
	return info.Size(), nil
}

// control runs fn on the descriptor while it cannot be closed.
func (n *node) control(fn func(fd int) error) error {
	raw, err := n.f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = fn(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

func retryEINTR[T any](fn func() (T, error)) (T, error) {
	for {
		v, err := fn()
		if !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}

// openFailure explains why a volume cannot be opened.
func openFailure(id string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return errs.Wrap(errs.NotFound, err, "volume %s: its file or device is gone; put it back and try again", id)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return errs.Wrap(errs.Denied, err, "volume %s: the server may not open its file or device; change its permissions", id)
	case errors.Is(err, unix.EROFS):
		return errs.Wrap(errs.Denied, err, "volume %s: its file or device is read-only", id)
	case errors.Is(err, unix.EBUSY):
		return busy(id, err, "is in use by the system (mounted, swap, or part of a RAID or LVM group)")
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ETXTBSY):
		return busy(id, err, "is open in another program")
	case errors.Is(err, unix.ELOOP):
		return errs.Wrap(errs.Conflict, err, "volume %s: its path now leads to a symbolic link; put the volume back or register it anew", id)
	}
	return ioFailure(id, "open", err)
}

// ioFailure explains why a volume's device or filesystem failed.
func ioFailure(id, doing string, err error) error {
	if noSpace(err) {
		return errs.Wrap(errs.Full, err, "volume %s: no space is left on the filesystem it lies on; free some and try again", id)
	}
	return errs.Wrap(errs.Unavailable, err, "volume %s: its device or filesystem failed to %s it; see the server's log", id, doing)
}

func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
