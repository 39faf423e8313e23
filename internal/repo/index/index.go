// Package index finds the places of chunks that are stored already. It is an
// accelerator, never truth: whoever gets a place from it checks that place,
// and losing the whole folder costs space, never data.
//
// The index is a set of immutable sorted run files (run.go). Each Add writes
// one; runs of like size are merged, so that there are O(log n) of them.
// Opening reads 12 KiB a run, and everything else is reached by mmap, so
// memory of our own stays small however many entries there are.
//
// Invariants:
//   - a run file is durable before it has its name, and never changes;
//   - any set of run files is a valid index: a crash between a merge and the
//     removal of what was merged leaves entries twice, which does no harm;
//   - an entry is given out only if its own checksum holds, so a flipped byte
//     costs a hit at most. What is damaged is passed over, reported by
//     Dropped, and gone after the next merge.
//
// An Index serves any number of goroutines. Changes exclude each other;
// lookups wait for none of them. One process at a time may open the folder:
// whoever opens the data folder sees to that.
package index

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
)

// ID is a chunk's id: 32 bytes of a keyed hash, so uniformly random. Others
// are found too, but slower.
type ID = [32]byte

// Entry is one place of a chunk.
type Entry struct {
	ID     ID
	Pack   [16]byte
	Offset uint32 // of the frame's record in the pack, bytes
	Length uint32 // of the record, bytes
	Sub    uint8  // number of the chunk in the frame
}

func compare(a, b *Entry) int {
	if p, q := prefix(&a.ID), prefix(&b.ID); p != q { // nearly always, and fast
		return cmp.Compare(p, q)
	}
	if c := bytes.Compare(a.ID[:], b.ID[:]); c != 0 {
		return c
	}
	if c := bytes.Compare(a.Pack[:], b.Pack[:]); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Length, b.Length), cmp.Compare(a.Sub, b.Sub))
}

const (
	runPrefix  = "run-"
	runSuffix  = ".idx"
	tempPrefix = "tmp-"
	notesMax   = 100
)

// Index is an open dedup index.
type Index struct {
	dir       string
	readOnly  bool
	sortBytes int                  // of Rebuild's buffer
	sync      func(*os.File) error // fsync; tests let it fail

	// Lock order: whole, write, mu, notesMu.
	whole sync.Mutex // held by what must see all entries: Rebuild, RemovePacks
	write sync.Mutex // held by every change of the set of runs
	seq   uint64     // of the newest run; guarded by write
	floor uint64     // runs up to here are not merged: Rebuild replaces them; guarded by write

	// mu guards what follows; a Lookup holds it from end to end. Who changes
	// it holds write too, so holding either is enough for reading.
	mu     sync.RWMutex
	runs   []*run
	closed bool

	notesMu sync.Mutex // guards notes
	notes   []string
}

// Open opens the index in dir, which is made if needed. Damaged files are
// removed and reported by Dropped.
func Open(dir string) (*Index, error) {
	x := &Index{dir: dir, sortBytes: rebuildBytes, sync: (*os.File).Sync}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, full(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if err := x.openFile(e.Name()); err != nil {
			return nil, errors.Join(err, x.Close())
		}
	}
	return x, nil
}

// openFile takes one file of the folder into the index, if it is a run.
func (x *Index) openFile(name string) error {
	path := filepath.Join(x.dir, name)
	if strings.HasPrefix(name, tempPrefix) {
		return os.Remove(path)
	}
	seq, ok := parseRunName(name)
	if !ok {
		return nil // not ours
	}
	x.seq = max(x.seq, seq)
	r, err := openRun(path, seq)
	if errors.Is(err, errDamaged) || errors.Is(err, unix.EIO) {
		x.note("dropped %s: %v", name, err)
		return os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("open index run %s: %w", name, err)
	}
	x.runs = append(x.runs, r)
	return nil
}

func runName(seq uint64) string { return fmt.Sprintf("%s%016x%s", runPrefix, seq, runSuffix) }

func parseRunName(name string) (seq uint64, ok bool) {
	if _, err := fmt.Sscanf(name, runPrefix+"%016x"+runSuffix, &seq); err != nil {
		return 0, false
	}
	return seq, name == runName(seq)
}

// Lookup appends all known places of id to buf, without allocating if it has
// room, and returns it.
func (x *Index) Lookup(id ID, buf []Entry) (found []Entry) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	found = buf
	var at *run
	// Reading a mapped page can fail like a read can, and then faults. That is
	// a miss here, not the end of the process.
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if e := recover(); e != nil {
			if _, fault := e.(interface{ Addr() uintptr }); !fault {
				panic(e)
			}
			at.dead.Store(true)
			x.noteOnce(at, "a page cannot be read; the file is not used any more")
		}
	}()
	for _, at = range x.runs {
		if at.dead.Load() || !at.mayContain(&id) {
			continue
		}
		var bad bool
		if found, bad = at.lookup(&id, found); bad {
			x.noteOnce(at, "an entry fails its checksum")
		}
	}
	return found
}

// Len is the number of entries. One that lies in several runs counts for each.
func (x *Index) Len() int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var n int64
	for _, r := range x.runs {
		n += r.count
	}
	return n
}

// Dropped tells, one sentence each, what was found damaged since Open.
func (x *Index) Dropped() []string {
	x.notesMu.Lock()
	defer x.notesMu.Unlock()
	return slices.Clone(x.notes)
}

// Scan calls fn for every intact entry of this moment, run by run in the order
// of ids, and stops at fn's first error, which it returns. It reads and checks
// all of the files; what is damaged shows in Dropped afterwards. fn may use
// the index.
func (x *Index) Scan(fn func(Entry) error) error {
	runs, err := x.hold()
	if err != nil {
		return err
	}
	for i, r := range runs {
		if err := x.scanRun(r, fn); err != nil {
			return errors.Join(err, release(runs[i:]))
		}
		if err := release(runs[i : i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (x *Index) scanRun(r *run, fn func(Entry) error) error {
	c := x.cursor(r)
	f := newFilterReader(r)
	for c.next() {
		if !f.has(&c.e.ID) {
			x.noteOnce(r, "its filter hides an entry")
		}
		if err := fn(c.e); err != nil {
			return err
		}
	}
	return nil
}

// hold returns the runs of this moment; they stay open until release.
func (x *Index) hold() ([]*run, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.closed {
		return nil, fmt.Errorf("use the dedup index: %w", fs.ErrClosed)
	}
	for _, r := range x.runs {
		r.refs.Add(1)
	}
	return slices.Clone(x.runs), nil
}

func release(runs []*run) error {
	var all []error
	for _, r := range runs {
		if r.refs.Add(-1) == 0 {
			all = append(all, r.close())
		}
	}
	return errors.Join(all...)
}

// Close gives files and mappings back. Lookups after it find nothing.
func (x *Index) Close() error {
	x.write.Lock()
	defer x.write.Unlock()
	x.mu.Lock()
	runs := x.runs
	x.runs, x.closed = nil, true
	x.mu.Unlock()
	return release(runs)
}

// replace takes old runs out of the index and their files away, and puts fresh
// ones in. The caller holds write and has made the fresh ones durable.
func (x *Index) replace(old []*run, fresh ...*run) error {
	x.mu.Lock()
	x.runs = slices.DeleteFunc(x.runs, func(r *run) bool { return slices.Contains(old, r) })
	x.runs = append(x.runs, fresh...)
	x.mu.Unlock()
	if len(old) == 0 {
		return nil
	}
	var all []error
	for _, r := range old {
		if err := os.Remove(r.path); !errors.Is(err, fs.ErrNotExist) {
			all = append(all, err)
		}
	}
	return errors.Join(append(all, release(old), x.syncDir())...)
}

func (x *Index) note(format string, args ...any) {
	x.notesMu.Lock()
	defer x.notesMu.Unlock()
	if len(x.notes) < notesMax {
		x.notes = append(x.notes, fmt.Sprintf(format, args...))
	}
}

// noteOnce reports the first damage of a run.
func (x *Index) noteOnce(r *run, what string) {
	if r.noted.CompareAndSwap(false, true) {
		x.note("%s: %s", filepath.Base(r.path), what)
	}
}

func (x *Index) syncDir() error {
	d, err := os.Open(x.dir)
	if err != nil {
		return err
	}
	return errors.Join(x.sync(d), d.Close())
}

// full gives "no space" its kind.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errs.Wrap(errs.Full, err, "no space is left for the dedup index; free some")
	}
	return err
}

// errContext wraps what a change failed with.
func errContext(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, full(err))
}

// alive fails if the index may not be changed: it was closed, it is read-only,
// or ctx ended. The caller holds write.
func (x *Index) alive(ctx context.Context) error {
	switch {
	case x.closed:
		return fs.ErrClosed
	case x.readOnly:
		return errReadOnly
	}
	return ctx.Err()
}
