package index

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"cairn/internal/errs"
)

// errReadOnly refuses what would change a folder that is only looked at.
var errReadOnly = errs.New(errs.Denied, "the dedup index was opened for reading only")

// relistMax bounds how often OpenReadOnly follows a process that merges runs.
const relistMax = 10

// OpenReadOnly opens the index in dir as it is: nothing is made or removed, so
// it may be done beside a process that changes the index. What is damaged,
// missing or cannot be read is told by Dropped; it never fails.
func OpenReadOnly(dir string) *Index {
	x := &Index{dir: dir, readOnly: true, sync: (*os.File).Sync}
	for range relistMax {
		// A run that vanishes was merged into one that was there before it.
		if !x.listReadOnly() {
			return x
		}
	}
	x.note("the runs are being merged; some of them are not shown")
	return x
}

// listReadOnly opens all runs; again says that one was gone by then.
func (x *Index) listReadOnly() (again bool) {
	entries, err := os.ReadDir(x.dir)
	if err != nil {
		x.note("the folder cannot be read: %v", err)
		return false
	}
	for _, e := range entries {
		seq, ok := parseRunName(e.Name())
		if !ok {
			continue
		}
		r, err := openRun(filepath.Join(x.dir, e.Name()), seq)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			again = true
		case err != nil:
			x.note("%s: %v", e.Name(), err)
		default:
			x.runs = append(x.runs, r)
		}
	}
	if !again {
		return false
	}
	for _, r := range x.runs {
		_ = r.close() // nothing was written
	}
	x.runs, x.notes = nil, nil
	return true
}

// RunInfo is one file of the index.
type RunInfo struct {
	Name    string
	Entries int64
	Bytes   int64
}

// Runs lists the files that are in use, oldest first.
func (x *Index) Runs() []RunInfo {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]RunInfo, len(x.runs))
	for i, r := range x.runs {
		out[i] = RunInfo{Name: filepath.Base(r.path), Entries: r.count, Bytes: int64(len(r.mapped))}
	}
	slices.SortFunc(out, func(a, b RunInfo) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
