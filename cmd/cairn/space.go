package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
)

// space keeps some of the disk for what must work when it is full: deleting
// and pruning. Packs are refused while less than the reserve is free, and the
// reserve itself is a file of ours: it is given up when the database finds no
// room, and taken again once there is some. Any number of goroutines may use it.
type space struct {
	dir     string // where the repository lies
	path    string // the reserve
	reserve int64  // bytes
	low     int64  // free bytes below which space is low
	log     *slog.Logger

	mu   sync.Mutex // guards held
	held bool
}

// hold takes the reserve if there is room for it twice over.
func (s *space) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held || s.reserve == 0 {
		return
	}
	free, err := s.free()
	if err == nil && free < 2*s.reserve {
		return // a later tick tries again
	}
	if err == nil {
		err = s.allocate()
	}
	if err != nil {
		s.log.Warn("keep space in reserve for deleting and pruning", "error", err)
		return
	}
	s.held = true
}

func (s *space) allocate() error {
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, s.reserve)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.Write(make([]byte, s.reserve)) // a filesystem that cannot promise
	}
	if err != nil {
		err = errors.Join(err, f.Truncate(0))
	}
	return errors.Join(err, f.Close())
}

// giveUp frees the reserve; false if it was not held.
func (s *space) giveUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.held {
		return false
	}
	s.held = false
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("give up the reserve of space", "error", err)
		return false
	}
	s.log.Warn("the disk is full; gave up the reserve of space so that deleting and pruning work", "bytes", s.reserve)
	return true
}

// free is how many bytes this process may still write.
func (s *space) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, fmt.Errorf("ask for the free space: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// isLow reports whether space is low, and takes the reserve again if it can.
func (s *space) isLow() bool {
	s.hold()
	free, err := s.free()
	if err != nil {
		s.log.Warn("look at the free space", "error", err)
		return false
	}
	return free < s.low
}

// packs refuses packs that would leave less than the reserve free.
type packs struct {
	blobstore.Store
	space *space
}

func (p packs) Put(ctx context.Context, name string, parts ...[]byte) error {
	if strings.HasPrefix(name, "header/") || strings.HasPrefix(name, "journal/") {
		return p.Store.Put(ctx, name, parts...)
	}
	size := int64(0)
	for _, b := range parts {
		size += int64(len(b))
	}
	free, err := p.space.free()
	if err != nil {
		return err
	}
	if free-size < p.space.reserve {
		return errs.New(errs.Full, "only %d MiB are free where the repository lies, and %d MiB of it are kept for deleting and pruning; delete snapshots and prune, or make room",
			free>>20, p.space.reserve>>20)
	}
	return p.Store.Put(ctx, name, parts...)
}
