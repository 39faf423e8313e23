// Package file keeps blobs as files of a local folder.
//
// A blob's name is its path below the folder. Bytes are written to .tmp/,
// which no blob name can reach because no part of one starts with a dot.
//
// Invariants:
//   - a blob is linked under its name only after its bytes were fdatasynced,
//     and Put answers only after the folders above it were fsynced;
//   - the temp name goes away last, so a temp file with a second name, found
//     by Open, tells of a Put whose folder may not be on disk: Open then
//     syncs the filesystem, and so whatever Stat shows is durable;
//   - a failed fsync is never retried: its pages count as clean afterwards,
//     and a second one would lie. The blob is dropped and Put fails.
//
// A Store serves any number of goroutines. Several processes may open one
// folder: temp files are locked by who writes them.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
)

const (
	tmpDir     = ".tmp"
	dirMode    = 0o700
	listBatch  = 512
	fullAdvice = "no space is left where the repository lies; free some and try again"
)

// syscalls are the calls that a test lets fail.
type syscalls struct {
	fdatasync func(*os.File) error
	fsyncDir  func(path string) error
	link      func(from, to string) error
}

// Store is a blobstore.Store in a folder.
type Store struct {
	dir    string
	sys    syscalls
	cache  *fdCache
	recent recent

	mu      sync.Mutex          // guards durable, held while folders are made
	durable map[string]struct{} // folders whose names are known to be on disk
}

var _ blobstore.Store = (*Store)(nil)

// Open opens the folder, makes it if needed, and removes what cut-off Puts
// left. Close gives the descriptors back.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open the blob folder: %w", err)
	}
	s := &Store{
		dir: dir, cache: newFDCache(fdCacheSize), recent: newRecent(), durable: make(map[string]struct{}),
		sys: syscalls{fdatasync: fdatasync, fsyncDir: fsyncDir, link: os.Link},
	}
	if err := s.makeRoot(); err != nil {
		return nil, fmt.Errorf("open the blob folder: %w", full(err))
	}
	if err := s.removeLeftovers(); err != nil {
		return nil, fmt.Errorf("remove leftovers from the blob folder: %w", full(err))
	}
	return s, nil
}

// Close closes cached descriptors. Reads after it work, but cache nothing.
func (s *Store) Close() error { return s.cache.close() }

// makeRoot makes the folder and .tmp in it, and syncs every folder that got a
// new entry.
func (s *Store) makeRoot() error {
	var missing []string
	for p := filepath.Join(s.dir, tmpDir); ; p = filepath.Dir(p) {
		if _, err := os.Stat(p); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		missing = append(missing, p)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		if err := os.Mkdir(missing[i], dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := s.sys.fsyncDir(filepath.Dir(missing[i])); err != nil {
			return err
		}
	}
	return nil
}

// removeLeftovers empties .tmp, but for files that a living Put has locked.
func (s *Store) removeLeftovers() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, tmpDir))
	if err != nil {
		return err
	}
	var old []string
	published := false
	for _, e := range entries {
		p := filepath.Join(s.dir, tmpDir, e.Name())
		linked, busy, err := examineLeftover(p)
		if errors.Is(err, fs.ErrNotExist) || busy {
			continue
		}
		if err != nil {
			return err
		}
		published = published || linked
		old = append(old, p)
	}
	if published {
		if err := syncFilesystem(s.dir); err != nil {
			return err
		}
	}
	for _, p := range old {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// examineLeftover tells whether a temp file has a blob's name too, and whether
// somebody is still writing it.
func examineLeftover(path string) (linked, busy bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, false, err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return false, true, nil
	} else if err != nil {
		return false, false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, false, err
	}
	return st.Nlink > 1, false, nil
}

// Put implements blobstore.Store. No space: errs.Full.
func (s *Store) Put(ctx context.Context, name string, parts ...[]byte) error {
	if err := check(ctx, name); err != nil {
		return err
	}
	if err := s.put(ctx, name, parts); err != nil {
		return fmt.Errorf("put blob %s: %w", name, full(err))
	}
	return nil
}

func (s *Store) put(ctx context.Context, name string, parts [][]byte) error {
	final := s.path(name)
	// Only spares the writing; the link below decides.
	if st, err := os.Lstat(final); err == nil && !st.IsDir() {
		return blobstore.ErrExists
	}
	if err := s.makeFolder(filepath.Dir(name)); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, tmpDir), "put-*")
	if err != nil {
		return err
	}
	tmp := f.Name()
	err = s.write(ctx, f, parts)
	if err == nil {
		err = s.publish(tmp, final)
	}
	if err != nil {
		s.cache.drop(name) // publish may have taken the blob back
	} else {
		s.recent.add(final, length(parts))
	}
	// The temp name is the trace of an unfinished Put, so it goes last; if it
	// stays, the next Open removes it. After an error it is worth nothing.
	return errors.Join(err, ignoreAbsent(os.Remove(tmp)), f.Close())
}

func length(parts [][]byte) (n int64) {
	for _, p := range parts {
		n += int64(len(p))
	}
	return n
}

// write fills the temp file and makes it durable.
func (s *Store) write(ctx context.Context, f *os.File, parts [][]byte) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock the temp file: %w", err)
	}
	for _, p := range parts {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.Write(p); err != nil {
			return err
		}
	}
	if err := s.sys.fdatasync(f); err != nil {
		return fmt.Errorf("fdatasync: %w", err)
	}
	return ctx.Err()
}

// publish gives the temp file its blob name and syncs the folder.
func (s *Store) publish(tmp, final string) error {
	err := s.sys.link(tmp, final)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		// A filesystem without hard links.
		err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, final, unix.RENAME_NOREPLACE)
	}
	if errors.Is(err, fs.ErrExist) {
		if st, serr := os.Lstat(final); serr == nil && st.IsDir() {
			return errs.New(errs.Invalid, "the blob's name is a folder of other blobs")
		}
		return blobstore.ErrExists
	}
	if err != nil {
		return err
	}
	if err := s.sys.fsyncDir(filepath.Dir(final)); err != nil {
		// Visible but perhaps not durable would deceive whoever asks Stat.
		return errors.Join(fmt.Errorf("fsync the folder: %w", err), ignoreAbsent(os.Remove(final)))
	}
	return nil
}

// makeFolder makes a folder of blobs and everything above it durable. The
// first time in this process even an existing one is synced into its parent:
// whoever made it may have crashed before he did.
func (s *Store) makeFolder(folder string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.makeFolderLocked(folder)
}

func (s *Store) makeFolderLocked(folder string) error {
	if folder == "." {
		return nil
	}
	if _, ok := s.durable[folder]; ok {
		return nil
	}
	parent := filepath.Dir(folder)
	if err := s.makeFolderLocked(parent); err != nil {
		return err
	}
	path := filepath.Join(s.dir, folder)
	if err := os.Mkdir(path, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if st, err := os.Lstat(path); err != nil {
		return err
	} else if !st.IsDir() {
		return errs.New(errs.Invalid, "a folder of the blob's name is a blob itself")
	}
	if err := s.sys.fsyncDir(filepath.Join(s.dir, parent)); err != nil {
		return fmt.Errorf("fsync the folder above: %w", err)
	}
	s.durable[folder] = struct{}{}
	return nil
}

// ReadAt implements blobstore.Store.
func (s *Store) ReadAt(ctx context.Context, name string, buf []byte, off int64) (int, error) {
	if err := check(ctx, name); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, errs.New(errs.Invalid, "blob %s cannot be read from byte %d", name, off)
	}
	h, err := s.cache.acquire(name, func() (*os.File, error) { return openBlob(s.path(name)) })
	if err != nil {
		return 0, fmt.Errorf("read blob %s: %w", name, absent(err))
	}
	defer s.cache.release(h)
	n, err := h.f.ReadAt(buf, off)
	switch {
	case n == len(buf):
		return n, nil
	case errors.Is(err, io.EOF):
		return n, fmt.Errorf("read blob %s: %d bytes from %d, wanted %d: %w", name, n, off, len(buf), io.ErrUnexpectedEOF)
	}
	return n, fmt.Errorf("read blob %s from byte %d: %w", name, off, err)
}

func openBlob(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Stat implements blobstore.Store.
func (s *Store) Stat(ctx context.Context, name string) (blobstore.Info, error) {
	if err := check(ctx, name); err != nil {
		return blobstore.Info{}, err
	}
	st, err := os.Lstat(s.path(name))
	if err == nil && !st.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return blobstore.Info{}, fmt.Errorf("stat blob %s: %w", name, absent(err))
	}
	return blobstore.Info{Name: name, Size: st.Size()}, nil
}

// List implements blobstore.Store. fn may call the store. Files that cannot
// be blobs, like a lost+found, are passed over.
func (s *Store) List(ctx context.Context, prefix string, fn func(blobstore.Info) error) error {
	folder := ""
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		folder = prefix[:i]
		if blobstore.CheckName(folder) != nil {
			return ctx.Err() // no name starts like this
		}
	}
	return s.list(ctx, folder, prefix, fn)
}

func (s *Store) list(ctx context.Context, folder, prefix string, fn func(blobstore.Info) error) error {
	d, err := os.Open(filepath.Join(s.dir, folder))
	if err != nil {
		return listError(folder, err)
	}
	defer d.Close()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, err := d.ReadDir(listBatch)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return listError(folder, err)
		}
		for _, e := range entries {
			if err := s.listEntry(ctx, folder, prefix, e, fn); err != nil {
				return err
			}
		}
	}
}

func (s *Store) listEntry(ctx context.Context, folder, prefix string, e fs.DirEntry, fn func(blobstore.Info) error) error {
	if !blobstore.GoodPart(e.Name()) {
		return nil
	}
	name := e.Name()
	if folder != "" {
		name = folder + "/" + name
	}
	if e.IsDir() {
		below := name + "/"
		if strings.HasPrefix(below, prefix) || strings.HasPrefix(prefix, below) {
			return s.list(ctx, name, prefix, fn)
		}
		return nil
	}
	if !e.Type().IsRegular() || !strings.HasPrefix(name, prefix) || len(name) > blobstore.MaxName {
		return nil
	}
	st, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted meanwhile
	}
	if err != nil {
		return listError(folder, err)
	}
	return fn(blobstore.Info{Name: name, Size: st.Size()})
}

// listError forgives a folder that is not there.
func listError(folder string, err error) error {
	if errors.Is(absent(err), blobstore.ErrNotFound) {
		return nil
	}
	return fmt.Errorf("list blobs in folder %q: %w", folder, err)
}

// Delete implements blobstore.Store. Even if the blob is gone the folder is
// synced: an earlier Delete may have been cut off before it did.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := check(ctx, name); err != nil {
		return err
	}
	path := s.path(name)
	if st, err := os.Lstat(path); err == nil && st.IsDir() {
		return nil // a folder, so no blob has the name
	}
	err := absent(os.Remove(path))
	s.cache.drop(name)
	if err != nil && !errors.Is(err, blobstore.ErrNotFound) {
		return fmt.Errorf("delete blob %s: %w", name, err)
	}
	if err := s.sys.fsyncDir(filepath.Dir(path)); err != nil && !errors.Is(absent(err), blobstore.ErrNotFound) {
		return fmt.Errorf("delete blob %s: fsync the folder: %w", name, full(err))
	}
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

func check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return blobstore.CheckName(name)
}
