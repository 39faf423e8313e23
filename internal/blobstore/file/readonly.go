package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
)

// ReadOnly is a folder of blobs that is only looked at. Nothing in it is made,
// removed or synced, so it may lie on a read-only filesystem, or be in use by
// a process that writes: blobs never change, and one shows up whole or not at
// all. It may show up a moment before its folder is on disk.
type ReadOnly struct{ s *Store }

var _ blobstore.Store = ReadOnly{}

// OpenReadOnly opens the folder. errs.NotFound: there is none.
func OpenReadOnly(dir string) (ReadOnly, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return ReadOnly{}, fmt.Errorf("open the blob folder: %w", err)
	}
	st, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
		return ReadOnly{}, errs.New(errs.NotFound, "there is no repository folder %s; name the folder that holds everything with --data-dir", dir)
	}
	if err != nil {
		return ReadOnly{}, fmt.Errorf("open the blob folder: %w", err)
	}
	return ReadOnly{&Store{dir: dir, cache: newFDCache(fdCacheSize)}}, nil
}

// Close gives the descriptors back.
func (r ReadOnly) Close() error { return r.s.Close() }

// Put refuses.
func (r ReadOnly) Put(_ context.Context, name string, _ ...[]byte) error { return refuse(name) }

// Delete refuses.
func (r ReadOnly) Delete(_ context.Context, name string) error { return refuse(name) }

func refuse(name string) error {
	return errs.New(errs.Denied, "blob %s cannot be changed: the repository was opened for reading only", name)
}

// ReadAt implements blobstore.Store.
func (r ReadOnly) ReadAt(ctx context.Context, name string, buf []byte, off int64) (int, error) {
	return r.s.ReadAt(ctx, name, buf, off)
}

// Stat implements blobstore.Store.
func (r ReadOnly) Stat(ctx context.Context, name string) (blobstore.Info, error) {
	return r.s.Stat(ctx, name)
}

// List implements blobstore.Store.
func (r ReadOnly) List(ctx context.Context, prefix string, fn func(blobstore.Info) error) error {
	return r.s.List(ctx, prefix, fn)
}
