package file

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// held makes a driver on a filesystem with reflinks, with a durable hold "job"
// of two volumes in it.
func held(t *testing.T) (r *Registered, specs []volume.Spec) {
	t.Helper()
	top := filesystem(t, "xfs")
	r, err := NewRegistered(join(top, "holds"))
	ok(t, err)
	for _, id := range []string{"vol-A", "vol-B"} {
		s := register(t, r, sparse(t, top, 1<<20))
		s.ID = id
		specs = append(specs, s)
	}
	in, err := r.Freeze(t.Context(), "job", specs, nil)
	ok(t, err)
	if !in.Durable() {
		t.Fatal("no reflink on a filesystem that has them")
	}
	ok(t, in.Close())
	return r, specs
}

// TestReflinkLetsGo: with a reflink the volume is free at once, and a writer
// who comes later does no harm.
func TestReflinkLetsGo(t *testing.T) {
	top := filesystem(t, "btrfs")
	r, err := NewRegistered(join(top, "holds"))
	ok(t, err)
	path := sparse(t, top, 1<<20)
	change(t, path, []byte("before"), 0)
	s := register(t, r, path)
	in := freeze(t, r, s)
	act(t, "poke", path)
	ok(t, os.Remove(path))
	got := make([]byte, 6)
	ok(t, in.Source(0).ReadAt(t.Context(), got, 0))
	ok(t, in.Check(t.Context()))
	if string(got) != "before" || !in.Durable() {
		t.Fatalf("%q, durable %v", got, in.Durable())
	}
	ok(t, r.Drop(t.Context(), "hold"))
}

// TestOtherFilesystem: no reflink reaches into another filesystem, and none
// is made beside a user's file.
func TestOtherFilesystem(t *testing.T) {
	top := filesystem(t, "xfs")
	r, err := NewRegistered(t.TempDir())
	ok(t, err)
	s := register(t, r, sparse(t, top, 1<<20))
	in := freeze(t, r, s)
	if in.Durable() {
		t.Fatal("a reflink across filesystems")
	}
	entries, err := os.ReadDir(top)
	ok(t, err)
	if len(entries) != 1 {
		t.Fatalf("beside the user's file lies something: %v", entries)
	}
	entries, err = os.ReadDir(r.holdDir)
	ok(t, err)
	if len(entries) != 0 {
		t.Fatalf("a failed reflink left %v", entries)
	}
}

// TestHoldStates plays the states that a crash can leave, oldest first as
// Freeze makes them and Drop takes them away.
func TestHoldStates(t *testing.T) {
	m, specs := held(t)
	ctx := t.Context()
	dir := m.holdPath("job")
	whole, err := os.ReadFile(join(dir, recordName))
	ok(t, err)
	for _, c := range []struct {
		name  string
		leave []string // files of the hold
		found bool
		stays bool // over a restart
	}{
		{"folder", nil, false, false},
		{"one reflink", []string{"vol-A.raw"}, false, false},
		{"reflinks", []string{"vol-A.raw", "vol-B.raw"}, false, false},
		{"record in the making", []string{"vol-A.raw", "vol-B.raw", recordName + ".tmp"}, false, false},
		{"whole", []string{"vol-A.raw", "vol-B.raw", recordName}, true, true},
		{"damaged: a reflink is missing", []string{"vol-A.raw", recordName}, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			ok(t, os.RemoveAll(dir))
			ok(t, os.Mkdir(dir, 0o700))
			for _, name := range c.leave {
				ok(t, os.WriteFile(join(dir, name), whole, 0o600))
			}
			in, err := m.Reopen(ctx, "job", specs)
			if c.found {
				ok(t, err)
				ok(t, in.Close())
			} else if !errors.Is(err, volume.ErrNoInstant) {
				t.Fatalf("Reopen: %v, want ErrNoInstant", err)
			}
			later, err := NewRegistered(m.holdDir)
			ok(t, err)
			if _, err := os.Stat(dir); (err == nil) != c.stays {
				t.Fatalf("after a restart: %v; should it be there: %v", err, c.stays)
			}
			ok(t, later.Drop(ctx, "job"))
			if _, err := os.Stat(dir); err == nil {
				t.Fatal("Drop left the folder")
			}
		})
	}
}

func TestReopenWrong(t *testing.T) {
	m, specs := held(t)
	ctx := t.Context()
	if _, err := m.Reopen(ctx, "job", append(specs, volume.Spec{ID: "vol-C"})); !errors.Is(err, volume.ErrNoInstant) {
		t.Fatalf("a volume that was not held: %v, want ErrNoInstant", err)
	}
	ok(t, os.WriteFile(join(m.holdPath("job"), recordName), []byte(`{"version":2}`), 0o600))
	_, err := m.Reopen(ctx, "job", specs)
	if !errors.Is(err, volume.ErrNoInstant) || !errs.Is(err, errs.Corrupt) {
		t.Fatalf("a damaged record: %v, want ErrNoInstant and Corrupt", err)
	}
	// Freeze takes a new instant over it.
	in, err := m.Freeze(ctx, "job", specs, nil)
	ok(t, err)
	ok(t, in.Close())
	in, err = m.Reopen(ctx, "job", specs[1:])
	ok(t, err)
	ok(t, in.Close())
}

// TestNames: names that would leave the folder are refused.
func TestNames(t *testing.T) {
	r, err := NewRegistered(t.TempDir())
	ok(t, err)
	for _, bad := range []string{"", ".", "..", "../x", "a/b", ".hidden", "a b", "ä", strings.Repeat("x", 129)} {
		if err := r.Drop(t.Context(), bad); err == nil {
			t.Errorf("hold %q was accepted", bad)
		}
	}
}

func FuzzRecord(f *testing.F) {
	good, err := json.Marshal(record{Version: 1, Time: time.Unix(1, 0).UTC(), Volumes: []string{"vol-A"}})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{string(good), "", "{}", "null", `{"version":1}`, `{"version":1,"time":"x","volumes":["../../etc"]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		for _, v := range r.Volumes {
			if strings.Contains(v, "/") || v == "" {
				t.Fatalf("record names %q", v)
			}
		}
	})
}

// Whoever comes while the one before lets go waits a moment for it.
func TestClaimWaitsForTheOneBefore(t *testing.T) {
	d, err := newDisks(filepath.Join(t.TempDir(), "holds"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.claim(t.Context(), "vol-A", "file:1"); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() { got <- d.claim(t.Context(), "vol-A", "file:1") }()
	d.unclaim("file:1")
	if err := <-got; err != nil {
		t.Fatalf("the second claim got %v", err)
	}
	if err := d.claim(t.Context(), "vol-A", "file:1"); !errs.Is(err, errs.Busy) {
		t.Fatalf("a claim of what stays taken got %v, want Busy", err)
	}
}
