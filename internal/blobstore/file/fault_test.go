package file

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
)

func openAt(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// trace records the syncs and links of a store, and lets the n-th fail.
type trace struct {
	calls  []string
	failAt int // 0: none
}

var errMine = errors.New("mine")

func (tr *trace) call(what string) error {
	tr.calls = append(tr.calls, what)
	if len(tr.calls) == tr.failAt {
		return errMine
	}
	return nil
}

// watch puts tr between the store and the system. A failing sync or link is
// not done.
func (tr *trace) watch(s *Store) {
	real := s.sys
	rel := func(p string) string {
		if r, err := filepath.Rel(s.dir, p); err == nil {
			return r
		}
		return p
	}
	s.sys = syscalls{
		fdatasync: func(f *os.File) error {
			return errors.Join(tr.call("data"), real.fdatasync(f))
		},
		fsyncDir: func(p string) error {
			return errors.Join(tr.call("folder "+rel(p)), real.fsyncDir(p))
		},
		link: func(from, to string) error {
			if err := tr.call("link " + rel(to)); err != nil {
				return err
			}
			return real.link(from, to)
		},
	}
}

// TestOrderOfSyncs says what is durable before what.
func TestOrderOfSyncs(t *testing.T) {
	s := openAt(t, t.TempDir())
	tr := &trace{}
	tr.watch(s)
	for _, tt := range []struct {
		do   func() error
		want string
	}{
		{func() error { return s.Put(t.Context(), "a/b/c", []byte("x")) }, "folder .,folder a,data,link a/b/c,folder a/b"},
		{func() error { return s.Put(t.Context(), "a/b/d", []byte("x")) }, "data,link a/b/d,folder a/b"},
		{func() error { return s.Put(t.Context(), "a/e", []byte("x")) }, "data,link a/e,folder a"},
		{func() error { return s.Put(t.Context(), "top") }, "data,link top,folder ."},
		{func() error { return s.Delete(t.Context(), "a/b/c") }, "folder a/b"},
		{func() error { return s.Delete(t.Context(), "a/b/c") }, "folder a/b"},
		{func() error { return s.Delete(t.Context(), "no/such") }, "folder no"},
	} {
		tr.calls = nil
		if err := tt.do(); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(tr.calls, ","); got != tt.want {
			t.Errorf("calls %s, want %s", got, tt.want)
		}
	}
	// Another process may have crashed before it synced the folders.
	s2 := openAt(t, s.dir)
	tr2 := &trace{}
	tr2.watch(s2)
	if err := s2.Put(t.Context(), "a/b/f"); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(tr2.calls, ","), "folder .,folder a,data,link a/b/f,folder a/b"; got != want {
		t.Errorf("after reopen: calls %s, want %s", got, want)
	}
}

// TestEveryCallFails lets each sync and link of a Put fail: it fails once, no
// call is tried again, no blob and no leftover stays, a new Put works.
func TestEveryCallFails(t *testing.T) {
	const calls = 5 // of the first Put in TestOrderOfSyncs
	for n := 1; n <= calls; n++ {
		s := openAt(t, t.TempDir())
		tr := &trace{failAt: n}
		tr.watch(s)
		err := s.Put(t.Context(), "a/b/c", []byte("x"))
		if !errors.Is(err, errMine) || !strings.Contains(err.Error(), "a/b/c") {
			t.Errorf("call %d: %v, want the failure and the blob's name", n, err)
		}
		if len(tr.calls) != n {
			t.Errorf("call %d: went on with %s", n, tr.calls[n:])
		}
		if _, err := s.Stat(t.Context(), "a/b/c"); !errors.Is(err, blobstore.ErrNotFound) {
			t.Errorf("call %d: Stat %v, want ErrNotFound", n, err)
		}
		wantNoTemp(t, s)
		if err := s.Put(t.Context(), "a/b/c", []byte("y")); err != nil {
			t.Errorf("call %d: Put again: %v", n, err)
		}
	}
}

func wantNoTemp(t *testing.T, s *Store) {
	t.Helper()
	left, err := os.ReadDir(filepath.Join(s.dir, tmpDir))
	if err != nil || len(left) != 0 {
		t.Errorf("left in %s: %v, %v", tmpDir, left, err)
	}
}

func TestDeleteSyncFails(t *testing.T) {
	s := openAt(t, t.TempDir())
	if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	tr := &trace{failAt: 1}
	tr.watch(s)
	if err := s.Delete(t.Context(), "a/b"); !errors.Is(err, errMine) {
		t.Errorf("Delete: %v", err)
	}
	if err := s.Delete(t.Context(), "a/b"); err != nil || len(tr.calls) != 2 {
		t.Errorf("Delete again: %v; it has to sync again: %s", err, tr.calls)
	}
}

func TestWithoutHardLinks(t *testing.T) {
	s := openAt(t, t.TempDir())
	s.sys.link = func(from, to string) error { return &os.LinkError{Op: "link", Old: from, New: to, Err: unix.EPERM} }
	if err := s.Put(t.Context(), "a/b", []byte("first")); err != nil {
		t.Fatal(err)
	}
	wantNoTemp(t, s)
	if err := s.publish(mustTemp(t, s), s.path("a/b")); !errors.Is(err, blobstore.ErrExists) {
		t.Errorf("publish over a blob: %v", err)
	}
	got := make([]byte, 5)
	if _, err := s.ReadAt(t.Context(), "a/b", got, 0); err != nil || string(got) != "first" {
		t.Errorf("read %q, %v", got, err)
	}
}

func mustTemp(t *testing.T, s *Store) string {
	t.Helper()
	p := filepath.Join(s.dir, tmpDir, "put-left")
	if err := os.WriteFile(p, []byte("left"), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	mustTemp(t, s)
	if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	// A Put that was cut off between link and folder sync.
	if err := os.Link(s.path("a/b"), filepath.Join(dir, tmpDir, "put-cut")); err != nil {
		t.Fatal(err)
	}
	// One that lives, maybe in another process.
	busy, err := os.Create(filepath.Join(dir, tmpDir, "put-busy"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	if err := unix.Flock(int(busy.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	var names []string
	if err := s.List(t.Context(), "", func(i blobstore.Info) error {
		names = append(names, i.Name)
		return nil
	}); err != nil || len(names) != 1 {
		t.Errorf("List shows %q, %v", names, err)
	}
	s = openAt(t, dir)
	left, err := os.ReadDir(filepath.Join(dir, tmpDir))
	if err != nil || len(left) != 1 || left[0].Name() != "put-busy" {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := s.Stat(t.Context(), "a/b"); err != nil {
		t.Error(err)
	}
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "deep")
	s := openAt(t, dir)
	if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]os.FileMode{
		"": 0o700, ".tmp": 0o700, "a": 0o700, "a/b": 0o600,
	} {
		st, err := os.Stat(filepath.Join(dir, p))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%q: %v, %v; want %v", p, st.Mode(), err, want)
		}
	}
}

// TestForeignFiles puts things into the folder that are no blobs.
func TestForeignFiles(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	if err := errors.Join(
		s.Put(t.Context(), "a/b", []byte("x")),
		os.Symlink("b", filepath.Join(dir, "a", "link")),
		os.Symlink("a", filepath.Join(dir, "folderlink")),
		os.WriteFile(filepath.Join(dir, "a", "backup~"), []byte("x"), 0o600),
		os.WriteFile(filepath.Join(dir, ".hidden"), []byte("x"), 0o600),
		os.Mkdir(filepath.Join(dir, "lost+found"), 0o700),
		unix.Mkfifo(filepath.Join(dir, "a", "fifo"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	var names []string
	if err := s.List(t.Context(), "", func(i blobstore.Info) error {
		names = append(names, i.Name)
		return nil
	}); err != nil || len(names) != 1 {
		t.Errorf("List = %q, %v", names, err)
	}
	for _, n := range []string{"a/link", "a/fifo"} {
		if _, err := s.Stat(t.Context(), n); !errors.Is(err, blobstore.ErrNotFound) {
			t.Errorf("Stat %s: %v", n, err)
		}
		if _, err := s.ReadAt(t.Context(), n, make([]byte, 1), 0); !errors.Is(err, blobstore.ErrNotFound) {
			t.Errorf("ReadAt %s: %v", n, err)
		}
	}
	for _, n := range []string{"a", "a/b/c"} {
		if err := s.Put(t.Context(), n); !errs.Is(err, errs.Invalid) {
			t.Errorf("Put %s, where a/b is: %v, want Invalid", n, err)
		}
	}
	wantNoTemp(t, s)
}

func openFDs(t *testing.T, below string) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("cannot count descriptors: %v", err)
	}
	n := 0
	for _, fd := range fds {
		if p, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(p, below) {
			n++
		}
	}
	return n
}

// TestDescriptors reads more blobs than are kept open, deletes them, and
// closes the store: no descriptor of a deleted blob stays, for that would
// hold its space.
func TestDescriptors(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	const n = fdCacheSize + 20
	name := func(i int) string { return fmt.Sprintf("d/%d", i) }
	for i := range n {
		if err := s.Put(t.Context(), name(i), []byte(name(i))); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		for i := range n {
			buf := make([]byte, len(name(i)))
			if _, err := s.ReadAt(t.Context(), name(i), buf, 0); err != nil || !bytes.Equal(buf, []byte(name(i))) {
				t.Fatalf("read %q, %v", buf, err)
			}
		}
	}
	if got := openFDs(t, dir); got != fdCacheSize {
		t.Errorf("%d descriptors open, want %d", got, fdCacheSize)
	}
	for i := range n - 5 {
		if err := s.Delete(t.Context(), name(i)); err != nil {
			t.Fatal(err)
		}
	}
	if got := openFDs(t, dir); got != 5 {
		t.Errorf("%d descriptors open after the deletes, want 5", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadAt(t.Context(), name(n-1), make([]byte, 1), 0); err != nil {
		t.Errorf("read after Close: %v", err)
	}
	if got := openFDs(t, dir); got != 0 {
		t.Errorf("%d descriptors open after Close", got)
	}
}

// TestDeleteWhileOpening deletes a blob between the open of its file and the
// cache's taking it: the descriptor must not be kept.
func TestDeleteWhileOpening(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	if err := s.Put(t.Context(), "n", []byte("old")); err != nil {
		t.Fatal(err)
	}
	h, err := s.cache.acquire("n", func() (*os.File, error) {
		f, err := openBlob(s.path("n"))
		return f, errors.Join(err, s.Delete(t.Context(), "n"), s.Put(t.Context(), "n", []byte("new")))
	})
	if err != nil {
		t.Fatal(err)
	}
	s.cache.release(h)
	got := make([]byte, 3)
	if _, err := s.ReadAt(t.Context(), "n", got, 0); err != nil || string(got) != "new" {
		t.Errorf("read %q, %v", got, err)
	}
	if n := openFDs(t, dir); n != 1 {
		t.Errorf("%d descriptors open, want 1", n)
	}
}

// TestFullDisk fills a real, tiny filesystem.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k,mode=0700"); err != nil {
		t.Skipf("needs the right to mount a tmpfs of 256 KiB: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s, err := Open(filepath.Join(dir, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Repeat([]byte("0123456789abcdef"), 100<<10/16)
	var put []string
	for i := range 4 {
		name := fmt.Sprintf("d/%d", i)
		err := s.Put(t.Context(), name, b[:50<<10], b[50<<10:])
		if err == nil {
			put = append(put, name)
			continue
		}
		if !errs.Is(err, errs.Full) || !strings.Contains(errs.Message(err), "space") || strings.Contains(errs.Message(err), dir) {
			t.Errorf("Put %s: %v; user sees %q", name, err, errs.Message(err))
		}
		if _, err := s.Stat(t.Context(), name); !errors.Is(err, blobstore.ErrNotFound) {
			t.Errorf("Stat %s: %v", name, err)
		}
	}
	if len(put) != 2 {
		t.Fatalf("%d blobs of 100 KiB fit, want 2", len(put))
	}
	wantNoTemp(t, s)
	for _, name := range put {
		got := make([]byte, len(b))
		if _, err := s.ReadAt(t.Context(), name, got, 0); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s was hurt: %v", name, err)
		}
	}
	if err := s.Delete(t.Context(), put[0]); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "d/9", b); err != nil {
		t.Errorf("Put after a Delete made room (a cached descriptor would hold it): %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestReadOnly says that "could not" is not "absent".
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("needs the right to make a bind mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Skipf("needs the right to remount read-only: %v", err)
	}
	for what, err := range map[string]error{"Put": s.Put(t.Context(), "a/c"), "Delete": s.Delete(t.Context(), "a/b")} {
		if !errors.Is(err, unix.EROFS) || errors.Is(err, blobstore.ErrNotFound) {
			t.Errorf("%s: %v, want EROFS", what, err)
		}
	}
	if _, err := s.ReadAt(t.Context(), "a/b", make([]byte, 1), 0); err != nil {
		t.Error(err)
	}
}
