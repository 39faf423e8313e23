package main

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/blobstore/faulty"
	"cairn/internal/blobstore/mem"
	"cairn/internal/errs"
	"cairn/internal/repo"
)

// startWith starts as a server does, and fails unless the key file then opens
// the repository by itself.
func startWith(t *testing.T, src keySource, store *mem.Store) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	key, err := openKey(t.Context(), src, store, log)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(t.Context(), store, key, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if again, err := src.read(log); err != nil || again != key {
		t.Fatalf("the key file is not what opened: %v", err)
	}
}

// A rotation is cut off at every durable operation of the repository, done or
// not done: a start finds a key file that opens, and can rotate again.
func TestRotateKeyFileCrashes(t *testing.T) {
	ctx := t.Context()
	for _, whole := range []bool{false, true} {
		for n, cut := 1, true; cut; n++ {
			store := mem.New()
			src := keySource{keyFile: filepath.Join(t.TempDir(), "repo.key")}
			startWith(t, src, store)
			if whole { // an operator may keep the key elsewhere
				link := filepath.Join(t.TempDir(), "repo.key")
				if err := os.Symlink(src.keyFile, link); err != nil {
					t.Fatal(err)
				}
				src.keyFile = link
			}
			rotate := func(f *faulty.Store) error {
				key, err := readKey(src.keyFile, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				s, err := repo.OpenKeySlots(ctx, f, key)
				if err != nil {
					t.Fatal(err)
				}
				_, err = rotateKeyFile(ctx, s, f, src.keyFile, time.Now())
				return err
			}
			before, err := os.ReadFile(src.keyFile)
			if err != nil {
				t.Fatal(err)
			}
			err = rotate(faulty.New(store, faulty.Crash(n, whole)))
			if cut = err != nil; cut && !errors.Is(err, faulty.ErrInjected) {
				t.Fatal(err)
			}
			startWith(t, src, store)
			after, err := os.ReadFile(src.keyFile)
			if changed := n > 1 || whole; err != nil || bytes.Equal(before, after) == changed {
				t.Errorf("operation %d, whole %t: changed %t, %v", n, whole, !bytes.Equal(before, after), err)
			}
			if err := rotate(faulty.New(store, nil)); err != nil {
				t.Fatal(err)
			}
			startWith(t, src, store)
			path, err := filepath.EvalSymlinks(src.keyFile)
			if err != nil {
				t.Fatal(err)
			}
			if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
				t.Errorf("left beside the key file: %v, %v", names, err)
			}
		}
	}
}

// A key that somebody added under the rotation's name is not thrown away.
func TestRotationKeepsOthersKeys(t *testing.T) {
	ctx, store := t.Context(), mem.New()
	path := filepath.Join(t.TempDir(), "repo.key")
	startWith(t, keySource{keyFile: path}, store)
	key, err := readKey(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s, err := repo.OpenKeySlots(ctx, store, key)
	if err != nil {
		t.Fatal(err)
	}
	mine, err := makeKeyFile(s, nextKeyPath(path))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Change(ctx, []repo.Opener{mine}, nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := rotateKeyFile(ctx, s, store, path, time.Now()); !errs.Is(err, errs.Exists) {
		t.Errorf("with an added key in the way: %v", err)
	}
	if got, err := readKey(nextKeyPath(path), slog.New(slog.DiscardHandler)); err != nil || got != mine {
		t.Errorf("the added key: %v", err)
	}
	// Through a symlink the file that it names is replaced.
	other := filepath.Join(t.TempDir(), "link.key")
	if err := os.Symlink(path, other); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(nextKeyPath(path)); err != nil {
		t.Fatal(err)
	}
	if _, err := rotateKeyFile(ctx, s, store, other, time.Now()); err != nil {
		t.Fatal(err)
	}
	startWith(t, keySource{keyFile: path}, store)
}

// A first start with a passphrase makes no key file.
func TestFirstStartWithAPassphrase(t *testing.T) {
	dir, store, log := t.TempDir(), mem.New(), slog.New(slog.DiscardHandler)
	file := filepath.Join(dir, "pass")
	src, err := keySource{}.in(dir, func(name string) string {
		return map[string]string{"CAIRN_PASSPHRASE_FILE": file}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{"short\n": "shorter than", "\n": "is empty", "two long enough\nlines\n": "more than one line", strings.Repeat("x", 9000): "longer than"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openKey(t.Context(), src, store, log); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	if err := os.WriteFile(file, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	startWith(t, src, store)
	startWith(t, src, store)
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestLostHeaderMakesNoKey(t *testing.T) {
	store, src := mem.New(), keySource{keyFile: filepath.Join(t.TempDir(), "repo.key")}
	if err := store.Put(t.Context(), "point/ss-AAAA0000."+strings.Repeat("0", 32)+".a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := openKey(t.Context(), src, store, slog.New(slog.DiscardHandler)); !errs.Is(err, errs.NotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(src.keyFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key was made: %v", err)
	}
}
