package index

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"cairn/internal/errs"
)

// listing is every file of a folder with its content.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out = append(out, path+"\x00"+string(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// An index that is only looked at gives what it holds and stays as it is,
// damaged and temporary files included.
func TestReadOnlyChangesNothing(t *testing.T) {
	dir := t.TempDir()
	x := open(t, dir)
	entries := makeEntries(1, 100)
	add(t, x, entries)
	more := makeEntries(2, 10)
	add(t, x, more)
	for name, content := range map[string]string{runName(1 << 40): "no run", tempPrefix + "1": "half", "other": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := listing(t, dir)
	ro := OpenReadOnly(dir)
	defer ro.Close()
	wantAll(t, ro, entries)
	wantAll(t, ro, more)
	if d := ro.Dropped(); len(d) != 1 {
		t.Errorf("dropped %q", d)
	}
	runs := ro.Runs()
	if len(runs) != 2 || runs[0].Entries != 100 || runs[1].Entries != 10 || runs[0].Bytes == 0 || runs[0].Name != runName(1) {
		t.Errorf("runs %+v", runs)
	}
	for name, err := range map[string]error{
		"add":     ro.Add(t.Context(), entries),
		"remove":  ro.RemovePacks(t.Context(), [][16]byte{entries[0].Pack}),
		"rebuild": ro.Rebuild(t.Context(), func(func(Entry) error) error { return nil }),
	} {
		if !errs.Is(err, errs.Denied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after := listing(t, dir); !slices.Equal(before, after) {
		t.Error("the folder was changed")
	}
}

// Beside a process that merges runs nothing is lost from sight: what is merged
// is there before its parts go.
func TestReadOnlyBesideMerges(t *testing.T) {
	dir := t.TempDir()
	x := open(t, dir)
	first := makeEntries(1, 50)
	add(t, x, first)
	done := make(chan error)
	go func() {
		var err error
		for i := uint64(2); i < 60 && err == nil; i++ {
			err = x.Add(t.Context(), makeEntries(i, 5))
		}
		done <- err
	}()
	for looks := 1; ; looks++ {
		ro := OpenReadOnly(dir)
		wantAll(t, ro, first)
		if d := ro.Dropped(); len(d) > 0 {
			t.Errorf("dropped %q", d)
		}
		ro.Close()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("looked %d times", looks)
			return
		default:
		}
	}
}

func TestReadOnlyWithoutFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	x := OpenReadOnly(dir)
	defer x.Close()
	if x.Len() != 0 || len(x.Dropped()) != 1 {
		t.Errorf("%d entries, dropped %q", x.Len(), x.Dropped())
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder was made: %v", err)
	}
}
