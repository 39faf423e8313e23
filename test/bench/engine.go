package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/blobstore/file"
	"cairn/internal/engine"
	"cairn/internal/extent"
	"cairn/internal/repo"
	"cairn/internal/volume"
	"cairn/internal/volume/live"
)

// No driver of this release tracks changes, so what tracking saves is measured
// at the engine: the real repository in a folder, every sync included, and a
// source that knows its changes. Server and database are left out.

// inChild runs one of this program's own measurements in a process of its own
// and reads its result.
func inChild(ctx context.Context, result any, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"-child", name}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("measure %s: %w", name, err)
	}
	return json.Unmarshal(out, result)
}

// child is the other half of inChild.
func child(ctx context.Context, name string, args []string) error {
	jobs := map[string]func(context.Context, []string) (any, error){
		"tracked": trackedChild, "chain": chainChild, "big": bigChild, "open": openChild,
	}
	job, ok := jobs[name]
	if !ok {
		return fmt.Errorf("there is no measurement %q", name)
	}
	result, err := job(ctx, args)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// engineRig is an engine on a repository in a folder.
type engineRig struct {
	dir    string
	repo   *repo.Repo
	engine *engine.Engine
	n      int
}

func newEngineRig(ctx context.Context, dir string) (*engineRig, error) {
	store, err := file.Open(filepath.Join(dir, "repo"))
	if err != nil {
		return nil, err
	}
	key := repo.NewKey()
	if err := repo.Init(ctx, store, key, time.Now()); err != nil {
		return nil, err
	}
	r, err := repo.Open(ctx, store, key, filepath.Join(dir, "index"))
	if err != nil {
		return nil, err
	}
	return &engineRig{dir: dir, repo: r, engine: engine.New(r, engine.Config{})}, nil
}

func (r *engineRig) close() error { return r.repo.Close() }

// take captures src and publishes it, as a job does, and says how long it took.
func (r *engineRig) take(ctx context.Context, src volume.Source, parent *engine.PointRef) (c engine.Captured, took time.Duration, err error) {
	if err := syncDir(r.dir); err != nil {
		return c, 0, err
	}
	begin := time.Now()
	s, err := r.engine.OpenSession(ctx, "job", 1, &packRows{all: map[string]engine.PackRecord{}})
	if err != nil {
		return c, 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	r.n++
	meta := engine.PointMeta{
		Snapshot: fmt.Sprintf("ss-%08d", r.n), Resource: "vol-BENCH000", Full: parent == nil,
		CreateTime: begin, SnapshotTime: begin, CBT: engine.CBTScan,
	}
	if parent != nil {
		meta.Parent = parent.Snapshot
	}
	if c, err = s.Capture(ctx, engine.CaptureSpec{Meta: meta, Source: src, Parent: parent}, nil); err != nil {
		return c, 0, err
	}
	err = s.Committed(ctx)
	return c, time.Since(begin), err
}

// restore makes a new managed volume with a point's content.
func (r *engineRig) restore(ctx context.Context, ref engine.PointRef, size int64) (took time.Duration, err error) {
	driver, err := live.New(live.Config{Dir: filepath.Join(r.dir, "volumes"), Boot: "bench"})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, driver.Close()) }()
	spec := volume.Spec{ID: "vol-RESTORED", SizeBytes: size}
	if err := driver.Remove(ctx, spec); err != nil {
		return 0, err
	}
	if err := syncDir(r.dir); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := driver.Create(ctx, spec); err != nil {
		return 0, err
	}
	t, err := driver.OpenTarget(ctx, spec)
	if err != nil {
		return 0, err
	}
	_, err = r.engine.Restore(ctx, ref, t, nil)
	took = time.Since(begin)
	return took, errors.Join(err, t.Close())
}

// packRows is the database's part.
type packRows struct {
	mu  sync.Mutex
	all map[string]engine.PackRecord
}

func (r *packRows) RegisterPack(_ context.Context, p engine.PackRecord) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[p.ID] = p
	return nil
}

func (r *packRows) SessionPacks(context.Context) ([]engine.PackRecord, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.all)), nil
}

func (r *packRows) ForgetPacks(context.Context, []string) error      { return nil }
func (r *packRows) DropPacks(context.Context, []string) error        { return nil }
func (r *packRows) PackUsable(context.Context, string) (bool, error) { return true, nil }

// fileSource is a file that knows its changes.
type fileSource struct {
	f       *os.File
	size    int64
	changed []extent.Range // sorted
}

func openSource(path string) (*fileSource, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &fileSource{f: f, size: info.Size()}, nil
}

func (s *fileSource) Size() int64 { return s.size }

func (s *fileSource) ReadAt(_ context.Context, buf []byte, off int64) error {
	_, err := s.f.ReadAt(buf, off)
	return err
}

func (s *fileSource) Data(_ context.Context, off int64) (extent.Range, error) {
	start, err := s.f.Seek(off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return extent.Range{}, io.EOF
	}
	if err != nil {
		return extent.Range{}, err
	}
	end, err := s.f.Seek(start, unix.SEEK_HOLE)
	return extent.Range{Off: start, Len: end - start}, err
}

func (s *fileSource) Release(context.Context, int64, int64) error { return nil }

func (s *fileSource) Audit(context.Context, volume.Checkpoint) ([]extent.Range, error) {
	return nil, nil
}

func (s *fileSource) Changed(_ context.Context, _ volume.Checkpoint, off int64) (extent.Range, error) {
	i, _ := slices.BinarySearchFunc(s.changed, off, func(r extent.Range, off int64) int {
		if r.End() <= off {
			return -1
		}
		return 1
	})
	if i == len(s.changed) {
		return extent.Range{}, io.EOF
	}
	start := max(off, s.changed[i].Off)
	return extent.Range{Off: start, Len: s.changed[i].End() - start}, nil
}
