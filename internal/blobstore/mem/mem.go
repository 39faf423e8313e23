// Package mem keeps blobs in memory: for tests, and for the crash states that
// they walk through. A Put is atomic, so a Clone taken between any two calls
// is what a machine would find after a power cut at that moment.
//
// A Store serves any number of goroutines.
package mem

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
)

// Store is a blobstore.Store in memory.
type Store struct {
	mu    sync.RWMutex
	blobs map[string][]byte // the slices are never changed
}

var _ blobstore.Store = (*Store)(nil)

// New makes an empty store.
func New() *Store { return &Store{blobs: make(map[string][]byte)} }

// Clone is a store of its own with the blobs of this moment.
func (s *Store) Clone() *Store {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return &Store{blobs: maps.Clone(s.blobs)}
}

// Damage replaces a blob's bytes by what f makes of a copy of them, as a bad
// disk would: the one way round immutability. ErrNotFound if there is none.
func (s *Store) Damage(name string, f func([]byte) []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.blobs[name]
	if !ok {
		return fmt.Errorf("damage blob %s: %w", name, blobstore.ErrNotFound)
	}
	s.blobs[name] = f(bytes.Clone(b))
	return nil
}

// Put implements blobstore.Store.
func (s *Store) Put(ctx context.Context, name string, parts ...[]byte) error {
	if err := check(ctx, name); err != nil {
		return err
	}
	whole := bytes.Join(parts, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.blobs[name]; taken {
		return fmt.Errorf("put blob %s: %w", name, blobstore.ErrExists)
	}
	s.blobs[name] = whole
	return nil
}

// ReadAt implements blobstore.Store.
func (s *Store) ReadAt(ctx context.Context, name string, buf []byte, off int64) (int, error) {
	b, err := s.get(ctx, name)
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, errs.New(errs.Invalid, "blob %s cannot be read from byte %d", name, off)
	}
	n := 0
	if off < int64(len(b)) {
		n = copy(buf, b[off:])
	}
	if n < len(buf) {
		return n, fmt.Errorf("read blob %s: %d bytes from %d, wanted %d: %w", name, n, off, len(buf), io.ErrUnexpectedEOF)
	}
	return n, nil
}

// Stat implements blobstore.Store.
func (s *Store) Stat(ctx context.Context, name string) (blobstore.Info, error) {
	b, err := s.get(ctx, name)
	if err != nil {
		return blobstore.Info{}, err
	}
	return blobstore.Info{Name: name, Size: int64(len(b))}, nil
}

// List implements blobstore.Store. fn may call the store.
func (s *Store) List(ctx context.Context, prefix string, fn func(blobstore.Info) error) error {
	var found []blobstore.Info
	s.mu.RLock()
	for name, b := range s.blobs {
		if strings.HasPrefix(name, prefix) {
			found = append(found, blobstore.Info{Name: name, Size: int64(len(b))})
		}
	}
	s.mu.RUnlock()
	for _, i := range found {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(i); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Delete implements blobstore.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := check(ctx, name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.blobs, name)
	return nil
}

func (s *Store) get(ctx context.Context, name string) ([]byte, error) {
	if err := check(ctx, name); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	b, ok := s.blobs[name]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", name, blobstore.ErrNotFound)
	}
	return b, nil
}

func check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return blobstore.CheckName(name)
}
