package file

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cairn/internal/volume"
)

// zeroUnit is what BLKZEROOUT ranges are aligned to: the page, because the
// kernel drops the page cache of the range first, and a part of a page that
// somebody writes meanwhile must not bring old bytes back.
const zeroUnit = 4096

// zeroStep is how much is zeroed in one system call, which nothing can stop.
const zeroStep = 256 << 20

// bulkWrite is from what length on a write counts as a part of many. Bulk is
// sent to the disk at once: left to itself the kernel waits for seconds, and
// Sync would have to wait for all of a restore. And Sync drops it from the page
// cache, so that a restore goes round in little memory and the machine keeps
// what it had cached. What is rolled back page by page stays cached.
const bulkWrite = 256 << 10

// target is a volume that is being overwritten.
type target struct {
	reader
	guard    *guard
	unitSize int64       // BLKZEROOUT alignment
	noPunch  atomic.Bool // the filesystem or device cannot; zeros are written

	mu     sync.Mutex // guards what follows
	failed error      // the first failed change; the content is unknown since
	bulk   span       // since the last Sync
}

// OpenTarget opens a volume for being overwritten. errs.Busy: anybody has it
// open, readers included.
func (d *disks) OpenTarget(ctx context.Context, s volume.Spec) (volume.Target, error) {
	p, err := locate(s)
	if err != nil {
		return nil, err
	}
	g, err := d.acquire(ctx, p, true)
	if err != nil {
		return nil, err
	}
	t := &target{
		reader:   reader{id: g.id, f: g.f, device: isDevice(&g.st), size: g.size},
		guard:    g,
		unitSize: zeroUnit,
	}
	if t.device {
		if err := g.control(t.examine); err != nil {
			return nil, errors.Join(err, g.release())
		}
	}
	return t, nil
}

// examine asks a device what it is capable of. The kernel opens a read-only
// device for writing without a word.
func (t *target) examine(fd int) error {
	readOnly, err := unix.IoctlGetUint32(fd, unix.BLKROGET)
	if err != nil {
		return ioFailure(t.id, "examine", err)
	}
	if readOnly != 0 {
		return openFailure(t.id, unix.EROFS)
	}
	block, err := unix.IoctlGetUint32(fd, unix.BLKSSZGET)
	if err != nil {
		return ioFailure(t.id, "examine", err)
	}
	t.unitSize = max(t.unitSize, int64(block))
	return nil
}

// may says why a change must not be tried.
func (t *target) may(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed == nil && t.guard.intruder.Load() {
		t.failed = t.overrun()
	}
	return t.failed
}

func (t *target) overrun() error {
	return changed(t.id, "was opened for writing by another program while it was overwritten; close it there and try again")
}

// fail latches err: after it nothing may be said about the content, so no
// later Sync may succeed.
func (t *target) fail(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed == nil {
		t.failed = err
	}
	return err
}

func (t *target) WriteAt(ctx context.Context, buf []byte, off int64) error {
	if err := t.inside(off, int64(len(buf))); err != nil {
		return err
	}
	if err := t.may(ctx); err != nil {
		return err
	}
	if _, err := t.f.WriteAt(buf, off); err != nil {
		return t.fail(t.writeFailure(err))
	}
	if len(buf) >= bulkWrite {
		return t.begun(off, int64(len(buf)))
	}
	return nil
}

// span is where writes were: somewhere in [from, to), so many bytes of it.
type span struct{ from, to, bytes int64 }

// begun sends what was written to the disk without waiting for it.
func (t *target) begun(off, length int64) error {
	t.mu.Lock()
	if t.bulk.bytes == 0 {
		t.bulk.from = off
	}
	t.bulk.from, t.bulk.to = min(t.bulk.from, off), max(t.bulk.to, off+length)
	t.bulk.bytes += length
	t.mu.Unlock()
	return t.guard.control(func(fd int) error {
		// Only advice: what fails here, Sync tells.
		_ = unix.SyncFileRange(fd, off, length, unix.SYNC_FILE_RANGE_WRITE)
		return nil
	})
}

// uncache drops bulk that is durable from the page cache, if the range where
// it lies holds little else.
func (t *target) uncache(s span) error {
	if s.bytes < (s.to-s.from)/2 || s.bytes == 0 {
		return nil
	}
	return t.guard.control(func(fd int) error {
		_ = unix.Fadvise(fd, s.from, s.to-s.from, unix.FADV_DONTNEED) // only advice
		return nil
	})
}

func (t *target) writeFailure(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return err
	}
	return ioFailure(t.id, "write", err)
}

func (t *target) Zero(ctx context.Context, off, length int64) error {
	if err := t.inside(off, length); err != nil {
		return err
	}
	for length > 0 {
		n := min(length, zeroStep)
		if err := t.zero(ctx, off, n); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return t.may(ctx)
}

func (t *target) zero(ctx context.Context, off, length int64) error {
	if err := t.may(ctx); err != nil {
		return err
	}
	if t.noPunch.Load() {
		return t.writeZeros(ctx, off, length)
	}
	start, end := off, off+length
	if t.device {
		start = (off + t.unitSize - 1) / t.unitSize * t.unitSize
		end = (off + length) / t.unitSize * t.unitSize
		if start >= end {
			return t.writeZeros(ctx, off, length)
		}
	}
	err := t.guard.control(func(fd int) error {
		if t.device {
			return zeroOut(fd, start, end-start)
		}
		_, err := retryEINTR(func() (struct{}, error) {
			return struct{}{}, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, start, end-start)
		})
		return err
	})
	switch {
	case err == nil:
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		t.noPunch.Store(true)
		return t.writeZeros(ctx, off, length)
	default:
		return t.fail(t.writeFailure(err))
	}
	if err := t.writeZeros(ctx, off, start-off); err != nil {
		return err
	}
	return t.writeZeros(ctx, end, off+length-end)
}

func (t *target) writeZeros(ctx context.Context, off, length int64) error {
	zeros := make([]byte, min(length, 1<<20))
	for length > 0 {
		n := min(length, int64(len(zeros)))
		if err := t.WriteAt(ctx, zeros[:n], off); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

// Sync also fails if the volume is not the one any more, or not its size, or
// if another program was let in to write.
func (t *target) Sync(ctx context.Context) error {
	if err := t.may(ctx); err != nil {
		return err
	}
	t.mu.Lock()
	bulk := t.bulk
	t.bulk = span{}
	t.mu.Unlock()
	if err := t.f.Sync(); err != nil {
		return t.fail(t.writeFailure(err))
	}
	if err := t.uncache(bulk); err != nil {
		return t.fail(err)
	}
	if t.guard.intruded() {
		return t.fail(t.overrun())
	}
	size, err := t.guard.sizeNow()
	if err != nil {
		return t.fail(err)
	}
	if size != t.size {
		return t.fail(changed(t.id, "changed its size while it was overwritten; try again when nobody uses it"))
	}
	if err := t.guard.stillThere(); err != nil {
		return t.fail(err)
	}
	return nil
}

func (t *target) Close() error { return t.guard.release() }
