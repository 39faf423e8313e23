package metadb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/service"
)

// seed makes a database with rows in all of its file, and closes it.
func seed(t *testing.T, path string) {
	t.Helper()
	db := openAt(t, path)
	fill(t, db, 2000, 7)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// exec runs a statement behind the program's back.
func exec(t *testing.T, path, stmt string) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, ""))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), stmt)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// After Close the log is in the file, even if a cancelled transaction was just
// being rolled back.
func TestCloseMovesTheLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.db")
	for range 50 {
		db := openAt(t, path)
		ctx, cancel := context.WithCancel(context.Background())
		var all sync.WaitGroup
		for range readers {
			all.Go(func() {
				for ctx.Err() == nil {
					_ = db.View(ctx, func(tx service.Tx) error { _, err := tx.Holders(); return err }) // until it is cut off
				}
			})
		}
		if err := db.Update(ctx, func(tx service.Tx) error { return tx.SetSetting("key", "value") }); err != nil {
			t.Fatal(err)
		}
		cancel()
		all.Wait()
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path + "-wal"); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("the log is still there: %v", err)
		}
	}
}

// A file that is not what we left is refused with the right kind, and stays
// as it is: nothing is repaired, replaced or made anew.
func TestOpenRefuses(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(t *testing.T, path string)
		want  errs.Kind
	}{
		{"newer version", func(t *testing.T, path string) {
			exec(t, path, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`)
		}, errs.Conflict},
		{"another program's database", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			exec(t, path, `CREATE TABLE theirs (x)`)
		}, errs.Conflict},
		{"a folder", func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, errs.Conflict},
		{"empty file", func(t *testing.T, path string) { truncate(t, path, 0) }, errs.Corrupt},
		{"cut inside the header", func(t *testing.T, path string) { truncate(t, path, 50) }, errs.Corrupt},
		{"cut in half", func(t *testing.T, path string) { truncate(t, path, -2) }, errs.Corrupt},
		{"not a database", func(t *testing.T, path string) { overwrite(t, path, 0, bytes.Repeat([]byte("text "), 1000)) }, errs.Corrupt},
		{"damaged schema", func(t *testing.T, path string) { overwrite(t, path, 100, bytes.Repeat([]byte{0xff}, 3000)) }, errs.Corrupt},
		{"database gone, log left", func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.WriteFile(path+"-wal", []byte("log"), 0o600)); err != nil {
				t.Fatal(err)
			}
		}, errs.Corrupt},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "meta.db")
			seed(t, path)
			tt.spoil(t, path)
			before := digest(path)
			db, err := Open(t.Context(), path)
			if err == nil {
				t.Fatal(errors.Join(errors.New("opened"), db.Close()))
			}
			if errs.KindOf(err) != tt.want && !errs.Is(err, tt.want) {
				t.Errorf("got %v (%v), want kind %v", err, errs.KindOf(err), tt.want)
			}
			if msg := errs.Message(err); !bytes.Contains([]byte(msg), []byte("metadata database")) {
				t.Errorf("message %q does not say what is wrong", msg)
			}
			if after := digest(path); after != before {
				t.Errorf("the refused file was changed: %s, was %s", after, before)
			}
		})
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if size < 0 {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		size = fi.Size() / -size
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, path string, off int64, with []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(with, off)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// digest is a file's content, or what stands in its place.
func digest(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Sprintf("not readable: %v", errors.Is(err, os.ErrNotExist))
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// Whatever page is overwritten, a user gets rows or errs.Corrupt: no panic,
// no other database, no quiet loss of the whole list.
func TestDamagedPages(t *testing.T) {
	source := filepath.Join(t.TempDir(), "meta.db")
	seed(t, source)
	whole, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	found := 0
	for off := page; off < len(whole); off += 7 * page {
		path := filepath.Join(t.TempDir(), "meta.db")
		spoiled := bytes.Clone(whole)
		copy(spoiled[off:off+page], bytes.Repeat([]byte{0xa5}, page))
		if err := os.WriteFile(path, spoiled, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(t.Context(), path)
		if err == nil {
			t.Errorf("page %d damaged: opened", off/page)
			if err := db.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		if !errs.Is(err, errs.Corrupt) {
			t.Errorf("page %d damaged: %v, want errs.Corrupt", off/page, err)
		}
		found++
	}
	t.Logf("%d damaged pages of %d, all found", found, len(whole)/page)
}

// A database too large to be checked at the start tells of damage where it is
// read.
func TestDamageFoundByReading(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.db")
	seed(t, path)
	db := openAt(t, path)
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, path, 8192, bytes.Repeat([]byte{0xa5}, int(fi.Size())-8192))
	err = db.View(t.Context(), func(tx service.Tx) error {
		return tx.LivePoints(func(service.Snapshot) error { return nil })
	})
	if !errs.Is(err, errs.Corrupt) {
		t.Errorf("got %v, want errs.Corrupt", err)
	}
}

// A start that was killed while making the database leaves files that the
// next start clears away.
func TestOpenAfterInterruptedCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.db")
	for _, f := range []string{".new", ".new-wal", ".new-shm", ".new-journal"} {
		if err := os.WriteFile(path+f, []byte("half a database"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := openAt(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(path + "*")
	if err != nil || len(left) != 1 {
		t.Errorf("files %v, %v; want the database alone", left, err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", fi.Mode(), err)
	}
}

func TestViewCannotWrite(t *testing.T) {
	db := openAt(t, filepath.Join(t.TempDir(), "meta.db"))
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	err := db.View(t.Context(), func(tx service.Tx) error { return tx.SetSetting("k", "v") })
	if err == nil {
		t.Error("a View wrote")
	}
}

// A cancelled context stops a transaction and keeps nothing of it.
func TestUpdateCancelled(t *testing.T) {
	db := openAt(t, filepath.Join(t.TempDir(), "meta.db"))
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	err := db.Update(ctx, func(tx service.Tx) error {
		err := tx.SetSetting("k", "v")
		cancel()
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	err = db.View(t.Context(), func(tx service.Tx) error {
		v, err := tx.Setting("k")
		if v != "" {
			t.Errorf("a cancelled update left %q", v)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// However a cancel hits a transaction, the error says that it was a cancel,
// so that callers can tell it from a database that failed.
func TestCancelIsToldAsSuch(t *testing.T) {
	db := openAt(t, filepath.Join(t.TempDir(), "meta.db"))
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	fill(t, db, 2000, 3)
	list := func(tx service.Tx) error {
		_, _, err := tx.Jobs(service.JobFilter{Limit: 1})
		if err == nil {
			err = tx.LivePoints(func(service.Snapshot) error { return nil })
		}
		return err
	}
	cut := 0
	for i := range 200 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*100*time.Microsecond)
		run := db.View
		if i%2 == 0 {
			run = db.Update
		}
		err := run(ctx, list)
		cancel()
		if err == nil {
			continue
		}
		cut++
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cut off after %d steps: %v", i, err)
		}
	}
	t.Logf("%d of 200 transactions were cut off", cut)
}
