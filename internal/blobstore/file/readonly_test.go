package file

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
)

// files lists what lies under a folder, with modes and times.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		out = append(out, path+" "+info.Mode().String()+" "+info.ModTime().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A folder that is only looked at stays as it is, leftovers of a cut-off Put
// included: they may be a living process's.
func TestReadOnlyChangesNothing(t *testing.T) {
	dir := t.TempDir()
	w, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Put(t.Context(), "data/one", []byte("content")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, tmpDir, "put-1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := files(t, dir)
	r, err := OpenReadOnly(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b := make([]byte, 7)
	if _, err := r.ReadAt(t.Context(), "data/one", b, 0); err != nil || string(b) != "content" {
		t.Errorf("read %q, %v", b, err)
	}
	if i, err := r.Stat(t.Context(), "data/one"); err != nil || i.Size != 7 {
		t.Errorf("stat %+v, %v", i, err)
	}
	var names []string
	err = r.List(t.Context(), "", func(i blobstore.Info) error {
		names = append(names, i.Name)
		return nil
	})
	if err != nil || !slices.Equal(names, []string{"data/one"}) {
		t.Errorf("list %v, %v", names, err)
	}
	if err := r.Put(t.Context(), "data/two", []byte("x")); !errs.Is(err, errs.Denied) {
		t.Errorf("put: %v", err)
	}
	if err := r.Delete(t.Context(), "data/one"); !errs.Is(err, errs.Denied) {
		t.Errorf("delete: %v", err)
	}
	if after := files(t, dir); !slices.Equal(before, after) {
		t.Errorf("before %v\nafter %v", before, after)
	}
}

func TestReadOnlyNeedsAFolder(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenReadOnly(filepath.Join(dir, "none")); !errs.Is(err, errs.NotFound) {
		t.Errorf("got %v", err)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReadOnly(plain); !errs.Is(err, errs.NotFound) {
		t.Errorf("got %v", err)
	}
	if len(files(t, dir)) != 2 {
		t.Error("something was made")
	}
}
