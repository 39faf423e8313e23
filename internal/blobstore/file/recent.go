package file

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// forgetFrom is the size from which a blob leaves the page cache some time
	// after it was written.
	forgetFrom = 4 << 20
	// keepShare of the machine's memory, and at most keepMost, is left to the
	// blobs that were written last.
	keepShare = 8
	keepMost  = 1 << 30
)

// recent is the large blobs that were written last. They stay in the page cache,
// as a restore or the next backup may want them; older ones are taken out of it:
// a backup would fill all memory with packs that nobody may ever read, and what
// it writes goes to memory that is at hand (ADR 9). All of it is advice.
type recent struct {
	mu    sync.Mutex // guards what follows
	keep  int64      // bytes
	bytes int64
	blobs []written
}

type written struct {
	path string
	size int64
}

func newRecent() recent {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return recent{keep: keepMost / 4}
	}
	return recent{keep: min(int64(info.Totalram)*int64(info.Unit)/keepShare, keepMost)}
}

// add notes a blob that was written, and forgets those that it displaces.
func (r *recent) add(path string, size int64) {
	if size < forgetFrom {
		return
	}
	for _, old := range r.displaced(written{path, size}) {
		f, err := os.OpenFile(old.path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue // it was deleted
		}
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		_ = f.Close() // it was only looked at
	}
}

func (r *recent) displaced(by written) (old []written) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs = append(r.blobs, by)
	r.bytes += by.size
	for r.bytes > r.keep {
		r.bytes -= r.blobs[0].size
		old = append(old, r.blobs[0])
		r.blobs = r.blobs[1:]
	}
	return old
}
