package live

import (
	"bytes"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"cairn/internal/volume"
)

// What an instant keeps goes to the disk and leaves the page cache, and is still
// what it was; also what is written while that happens.
func TestScratchGoesToTheDisk(t *testing.T) {
	d := open(t, config(t.TempDir(), newForest()))
	ctx := t.Context()
	s := volume.Spec{ID: "vol-A", SizeBytes: 8 * scratchSpan}
	ok(t, d.Create(ctx, s))
	v, err := d.vol(s.ID)
	ok(t, err)
	const step = 1 << 20
	write := func(round, off int64) {
		t.Helper()
		ok(t, v.write(ctx, change{p: bytes.Repeat(stamp(uint32(round*1000+off/step)), step/pageSize), off: off, n: step}))
	}
	for off := int64(0); off < s.SizeBytes; off += step {
		write(1, off)
	}
	in, err := d.Freeze(ctx, "hold", []volume.Spec{s}, nil)
	ok(t, err)
	for off := int64(0); off < s.SizeBytes; off += step {
		write(2, off)
		if off%scratchSpan == 0 {
			d.behind.Wait() // a slow disk would leave more of it in memory
		}
	}
	d.behind.Wait()
	h := v.hold
	if kept := resident(t, h); kept > s.SizeBytes/2 {
		t.Errorf("%d of %d bytes of scratch are in memory", kept, s.SizeBytes)
	}
	got := make([]byte, step)
	for off := int64(0); off < s.SizeBytes; off += step {
		ok(t, in.Source(0).ReadAt(ctx, got, off))
		same(t, "the instant", got, bytes.Repeat(stamp(uint32(1000+off/step)), step/pageSize))
	}
	ok(t, in.Check(ctx))
	ok(t, in.Settle(ctx, []volume.Checkpoint{"one"}, committed))
	if err := h.written(0); err != nil {
		t.Errorf("a scratch that is closed failed: %v", err)
	}
	ok(t, in.Close())
	ok(t, d.Close())
}

// resident is how many bytes of a hold's scratch are in the page cache.
func resident(t *testing.T, h *hold) (n int64) {
	t.Helper()
	var fs unix.Statfs_t
	ok(t, unix.Fstatfs(int(h.scratch.Fd()), &fs))
	if fs.Type == unix.TMPFS_MAGIC {
		t.Log("the folder of temporary files is in memory: what left the page cache was not looked at")
		return 0
	}
	p, err := unix.Mmap(int(h.scratch.Fd()), 0, int(h.w.size), unix.PROT_READ, unix.MAP_SHARED)
	ok(t, err)
	defer func() { ok(t, unix.Munmap(p)) }()
	vec := make([]byte, len(p)/pageSize)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for _, b := range vec {
		n += int64(b&1) * pageSize
	}
	return n
}
