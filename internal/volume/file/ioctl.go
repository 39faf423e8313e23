package file

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// zeroOut makes a byte range of a block device read as zeros. The range must
// be aligned to the logical block size. Unlike a discard, BLKZEROOUT promises
// zeros: the kernel writes them where the device has no command for it.
func zeroOut(fd int, off, length int64) error {
	span := [2]uint64{uint64(off), uint64(length)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return errno
	}
	return nil
}

// flushDevice writes out what anybody left dirty in the device's page cache
// and drops the rest, so that the next read comes from the device.
func flushDevice(fd int) error {
	err := unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0)
	if err == nil {
		return nil
	}
	return unix.Fsync(fd) // BLKFLSBUF wants CAP_SYS_ADMIN
}
