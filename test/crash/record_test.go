package crash_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/mem"
	"cairn/internal/job"
	"cairn/internal/repo"
	"cairn/internal/service"
)

// kind of a durable operation.
type kind int

const (
	onBlobs kind = iota
	onRows
	onDisk
)

// state is a world at one moment, as a power cut between two durable
// operations leaves it.
type state struct {
	next    string // the operation that comes now
	kind    kind
	db, wal []byte // nil: there is no such file
	index   map[string][]byte
	blobs   *mem.Store
	disk    *disk
	key     repo.Key
	story   *story
	put     []byte // next is a Put of these bytes

	version [3]int // changes of blobs and disk, and whether rows may have changed
}

// isPack reports whether the next operation puts a pack.
func (s *state) isPack() bool {
	return s.put != nil && !strings.HasPrefix(s.next, "put header/") && !strings.HasPrefix(s.next, "put journal/")
}

// recorder lets one durable operation of a history happen at a time, and keeps
// the state before each of them and after the last. nil records nothing.
type recorder struct {
	mu     sync.Mutex
	w      *world
	story  *story
	states []*state
	puts   int // blobs that came or went
	wrote  int // database calls that may have written
	err    error
}

// op carries out one durable operation.
func (r *recorder) op(k kind, what string, put []byte, fn func() error) error {
	if r == nil {
		return fn()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.capture(k, what, put)
	err := fn()
	switch k {
	case onBlobs:
		r.puts++
	case onRows:
		r.wrote++
	}
	return err
}

func (r *recorder) do(what string, fn func() error) error { return r.op(onDisk, what, nil, fn) }

// touched notes that the database's files may have changed.
func (r *recorder) touched() {
	if r != nil {
		r.quietly(func() { r.wrote++ })
	}
}

// quietly runs fn while no durable operation happens: the owner of a volume
// writes to it, and the story learns of it, at one moment.
func (r *recorder) quietly(fn func()) {
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
	}
	fn()
}

// capture keeps the present state, unless nothing has changed since the last
// one: then only what comes next is new.
func (r *recorder) capture(k kind, what string, put []byte) {
	s := &state{next: what, kind: k, put: put, version: [3]int{r.puts, r.w.disk.changes, r.wrote}}
	var last *state
	if n := len(r.states); n > 0 {
		last = r.states[n-1]
	}
	if last != nil && last.version == s.version {
		last.next, last.kind, last.put, last.story = what, k, put, r.story.clone()
		return
	}
	if err := s.read(r.w, last); err != nil {
		r.err = errors.Join(r.err, err)
		return
	}
	s.story = r.story.clone()
	same := last != nil && last.version[0] == s.version[0] && last.version[1] == s.version[1]
	if same && bytes.Equal(last.db, s.db) && bytes.Equal(last.wal, s.wal) {
		r.states[len(r.states)-1] = s // the call only read
		return
	}
	r.states = append(r.states, s)
}

// read takes a world into memory. What did not change since last is shared
// with it.
func (s *state) read(w *world, last *state) (err error) {
	if last != nil && last.version[2] == s.version[2] {
		s.db, s.wal = last.db, last.wal
	} else {
		if s.db, err = readFile(w.database()); err != nil {
			return err
		}
		if s.wal, err = readFile(w.database() + "-wal"); err != nil {
			return err
		}
		if last != nil && bytes.Equal(last.db, s.db) {
			s.db = last.db
		}
	}
	var have map[string][]byte
	if last != nil {
		have = last.index
	}
	if s.index, err = files(w.index(), have); err != nil {
		return err
	}
	s.blobs = w.blobs.(*mem.Store).Clone()
	s.disk, s.key = w.disk.clone(), w.key
	return nil
}

func readFile(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// lay makes files of the state's database and index in a new world.
func (s *state) lay(w *world) error {
	w.blobs, w.disk, w.key = s.blobs.Clone(), s.disk.clone(), s.key
	var all []error
	for name, b := range map[string][]byte{w.database(): s.db, w.database() + "-wal": s.wal} {
		if b != nil {
			all = append(all, os.WriteFile(name, b, 0o600))
		}
	}
	all = append(all, os.MkdirAll(w.index(), 0o700))
	for name, b := range s.index {
		all = append(all, os.WriteFile(filepath.Join(w.index(), name), b, 0o600))
	}
	return errors.Join(all...)
}

// copyBlobs puts all blobs into another store.
func (s *state) copyBlobs(to blobstore.Store) error {
	return s.blobs.List(ctx, "", func(i blobstore.Info) error {
		b := make([]byte, i.Size)
		if _, err := s.blobs.ReadAt(ctx, i.Name, b, 0); err != nil {
			return err
		}
		return to.Put(ctx, i.Name, b)
	})
}

// recorded is a blob store whose changes are recorded.
type recorded struct {
	blobstore.Store
	rec *recorder
}

func (s recorded) Put(ctx context.Context, name string, parts ...[]byte) error {
	var whole []byte
	if s.rec != nil {
		whole = bytes.Join(parts, nil)
	}
	return s.rec.op(onBlobs, "put "+name, whole, func() error { return s.Store.Put(ctx, name, parts...) })
}

func (s recorded) Delete(ctx context.Context, name string) error {
	return s.rec.op(onBlobs, "delete "+name, nil, func() error { return s.Store.Delete(ctx, name) })
}

// recordedRows is a database whose changes are recorded.
type recordedRows struct {
	service.Store
	rec *recorder
}

func (s recordedRows) Update(ctx context.Context, fn func(tx service.Tx) error) error {
	return s.rec.op(onRows, "update", nil, func() error { return s.Store.Update(ctx, fn) })
}

func (s recordedRows) ClaimJob(ctx context.Context, owner string, alive []string, now time.Time) (j job.Job, ok bool, err error) {
	err = s.rec.op(onRows, "claim a job", nil, func() error {
		j, ok, err = s.Store.ClaimJob(ctx, owner, alive, now)
		return err
	})
	return j, ok, err
}

func (s recordedRows) SaveProgress(ctx context.Context, id string, term int64, p job.Progress) (cancel bool, err error) {
	err = s.rec.op(onRows, "save progress", nil, func() error {
		cancel, err = s.Store.SaveProgress(ctx, id, term, p)
		return err
	})
	return cancel, err
}

func (s recordedRows) SaveState(ctx context.Context, id string, term int64, state json.RawMessage, noCancel bool) error {
	return s.rec.op(onRows, "save a job's notes", nil, func() error { return s.Store.SaveState(ctx, id, term, state, noCancel) })
}

func (s recordedRows) RequestCancel(ctx context.Context, id string) (j job.Job, err error) {
	err = s.rec.op(onRows, "request a cancel", nil, func() error {
		j, err = s.Store.RequestCancel(ctx, id)
		return err
	})
	return j, err
}
