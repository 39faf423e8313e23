package index

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
)

// oneRun makes a folder with one run of n entries and returns its file.
func oneRun(t testing.TB, dir string, entries []Entry) (path string, content []byte) {
	t.Helper()
	x := open(t, dir)
	add(t, x, entries)
	files := runFiles(t, dir)
	if len(files) != 1 {
		t.Fatalf("%d files", len(files))
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return files[0], b
}

// TestEveryFlippedByte flips each byte of a run in turn: the file is refused,
// or every entry that is still found is a right one.
func TestEveryFlippedByte(t *testing.T) {
	entries := makeEntries(1, 60)
	_, b := oneRun(t, t.TempDir(), entries)
	lost, refused := 0, 0
	for i := range b {
		b[i] ^= 1 << (i % 8)
		v, err := newView(b)
		if err == nil {
			lost += lostIn(t, v, i, entries)
		} else if refused++; !errors.Is(err, errDamaged) {
			t.Fatalf("byte %d: %v", i, err)
		}
		b[i] ^= 1 << (i % 8)
	}
	if want := fanOffset + 8*fanCount; refused < want-1-len("reserved, in the sum too") || refused > want {
		t.Errorf("%d flips refused the file, about the %d of header and fan-out should", refused, want)
	}
	if lost == 0 {
		t.Error("no flip hid any entry: the test looks at nothing")
	}
}

func lostIn(t *testing.T, v view, at int, entries []Entry) (lost int) {
	t.Helper()
	for _, e := range entries {
		if !v.mayContain(&e.ID) {
			lost++
			continue
		}
		switch got, _ := v.lookup(&e.ID, nil); {
		case len(got) == 0:
			lost++
		case len(got) != 1 || got[0] != e:
			t.Fatalf("byte %d flipped: Lookup = %+v, want %+v", at, got, e)
		}
	}
	return lost
}

// TestDamagedFilesAreDropped damages the file itself in ways that Open sees.
func TestDamagedFilesAreDropped(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"empty":         func([]byte) []byte { return nil },
		"cut in header": func(b []byte) []byte { return b[:100] },
		"cut at header": func(b []byte) []byte { return b[:headSize] },
		"cut by one":    func(b []byte) []byte { return b[:len(b)-1] },
		"cut by entry":  func(b []byte) []byte { return b[:len(b)-entrySize] },
		"longer":        func(b []byte) []byte { return append(b, 0) },
		"magic":         func(b []byte) []byte { b[0] = 'X'; return b },
		"newer version": func(b []byte) []byte { b[8] = 2; return b },
		"count":         func(b []byte) []byte { b[16]++; return b },
		"fan-out":       func(b []byte) []byte { b[fanOffset+8*500] ^= 1; return b },
		"zeros":         func(b []byte) []byte { return make([]byte, len(b)) },
		"huge count": func(b []byte) []byte {
			le.PutUint64(b[16:], 1<<63)
			le.PutUint32(b[headCRC:], headSum(b))
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			good := makeEntries(2, 20)
			path, b := oneRun(t, dir, makeEntries(1, 20))
			add(t, open(t, dir), good)
			if err := os.WriteFile(path, damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			x := open(t, dir)
			if d := x.Dropped(); len(d) != 1 {
				t.Errorf("Dropped = %q, want one sentence", d)
			}
			wantAll(t, x, good)
			wantNone(t, x, makeEntries(1, 20))
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the damaged file is still there: %v", err)
			}
			wantClean(t, open(t, dir))
		})
	}
}

// TestDamagedEntryHeals flips a byte in an entry: it is a miss, Scan passes it
// over and reports it, and RemovePacks, which rewrites damaged runs, drops it.
func TestDamagedEntryHeals(t *testing.T) {
	dir := t.TempDir()
	entries := makeEntries(1, 50)
	path, b := oneRun(t, dir, entries)
	bad := entries[7]
	at := bytes.Index(b, bad.ID[:])
	b[at+50] ^= 4 // in Offset
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	x := open(t, dir)
	rest := slices.DeleteFunc(slices.Clone(entries), func(e Entry) bool { return e == bad })
	wantNone(t, x, []Entry{bad})
	wantAll(t, x, rest)
	n := 0
	if err := x.Scan(func(e Entry) error {
		n++
		if !slices.Contains(rest, e) {
			t.Errorf("Scan gave %+v", e)
		}
		return nil
	}); err != nil || n != len(rest) {
		t.Errorf("Scan gave %d of %d, %v", n, len(rest), err)
	}
	if d := x.Dropped(); len(d) != 1 {
		t.Errorf("Dropped = %q, want one sentence however often it is met", d)
	}
	if err := x.RemovePacks(t.Context(), [][16]byte{{1}}); err != nil {
		t.Fatal(err)
	}
	wantAll(t, x, rest)
	if x.Len() != int64(len(rest)) {
		t.Errorf("Len = %d, want %d", x.Len(), len(rest))
	}
}

func TestScanSeesBadFilter(t *testing.T) {
	dir := t.TempDir()
	path, b := oneRun(t, dir, makeEntries(1, 50))
	clear(b[headSize : headSize+blockSize])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	x := open(t, dir)
	if err := x.Scan(func(Entry) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if d := x.Dropped(); len(d) != 1 {
		t.Errorf("Dropped = %q", d)
	}
}

// TestOutOfOrder swaps two entries whose checksums hold: merging must stand it.
func TestOutOfOrder(t *testing.T) {
	dir := t.TempDir()
	entries := makeEntries(1, 30)
	path, b := oneRun(t, dir, entries)
	first := int(entriesOffset(filterBlocks(30)))
	x0, x1 := b[first:first+entrySize], b[first+20*entrySize:first+21*entrySize]
	for i := range x0 {
		x0[i], x1[i] = x1[i], x0[i]
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	x := open(t, dir)
	for i := range mergeAt {
		add(t, x, makeEntries(uint64(10+i), 5))
	}
	if d := x.Dropped(); len(d) != 1 {
		t.Errorf("Dropped = %q", d)
	}
	if err := x.Scan(func(e Entry) error {
		if !slices.Contains(x.Lookup(e.ID, nil), e) {
			t.Errorf("after the merge %s is not found", hex.EncodeToString(e.ID[:4]))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestVanishedPages cuts the file under the mapping: reading it then faults.
func TestVanishedPages(t *testing.T) {
	dir := t.TempDir()
	entries := makeEntries(1, 2000)
	path, _ := oneRun(t, dir, entries)
	x := open(t, dir)
	other := makeEntries(2, 10)
	add(t, x, other)
	if err := os.Truncate(path, headSize); err != nil {
		t.Fatal(err)
	}
	wantNone(t, x, entries)
	wantAll(t, x, other)
	if d := x.Dropped(); len(d) != 1 {
		t.Errorf("Dropped = %q", d)
	}
	for i := range mergeAt { // a merge gets rid of it
		add(t, x, makeEntries(uint64(10+i), 5))
	}
	if x.Len() != int64(len(other)+5*mergeAt) {
		t.Errorf("Len = %d", x.Len())
	}
	wantAll(t, x, other)
}

// TestCrashBetweenMergeAndRemoval puts merged runs back beside their merge.
func TestCrashBetweenMergeAndRemoval(t *testing.T) {
	dir := t.TempDir()
	x := open(t, dir)
	all := makeEntries(1, 400)
	saved := make(map[string][]byte)
	for i := 0; i < len(all); i += 100 {
		add(t, x, all[i:i+100])
		for _, p := range runFiles(t, dir) {
			b, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			saved[p] = b
		}
	}
	for p, b := range saved {
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if len(saved) < mergeAt {
		t.Fatalf("%d files, no merge happened", len(saved))
	}
	y := open(t, dir)
	wantClean(t, y)
	wantAll(t, y, all)
	if err := y.RemovePacks(t.Context(), [][16]byte{all[0].Pack}); err != nil {
		t.Fatal(err)
	}
	wantNone(t, y, all)
}

// TestEverySyncFails lets the n-th fsync of a history fail, for every n. The
// step that met it fails, entries of others stay, nothing is left over.
func TestEverySyncFails(t *testing.T) {
	mine := errors.New("mine")
	for n := 1; n < 1000; n++ {
		dir := t.TempDir()
		x := open(t, dir)
		syncs, hit := 0, false
		x.sync = func(f *os.File) error {
			if syncs++; syncs == n {
				hit = true
				return mine
			}
			return nil
		}
		var kept []Entry
		step := func(adds []Entry, err error) {
			if err == nil {
				kept = append(kept, adds...)
			} else if !errors.Is(err, mine) {
				t.Fatalf("sync %d: %v", n, err)
			}
		}
		for i := range mergeAt + 1 {
			batch := makeEntries(uint64(i), 20)
			step(batch, x.Add(t.Context(), batch))
		}
		gone := makeEntries(0, 1)[0].Pack
		step(nil, x.RemovePacks(t.Context(), [][16]byte{gone}))
		kept = slices.DeleteFunc(kept, func(e Entry) bool { return e.Pack == gone })
		wantAll(t, x, kept)
		wantAll(t, open(t, dir), kept)
		fresh := makeEntries(50, 30)
		err := x.Rebuild(t.Context(), func(put func(Entry) error) error {
			for _, e := range fresh {
				if err := put(e); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			wantAll(t, x, fresh)
			wantNone(t, x, kept)
		} else if !errors.Is(err, mine) {
			t.Fatalf("sync %d: %v", n, err)
		}
		runFiles(t, dir)
		wantClean(t, open(t, dir))
		if !hit {
			t.Logf("a history of %d fsyncs", n-1)
			if n < 10 {
				t.Error("too few to mean anything")
			}
			return
		}
	}
	t.Error("the history never ended")
}

// TestFullDisk fills a tiny filesystem: adds fail as Full, and what was there
// stays usable.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Skipf("needs the right to mount a tmpfs of 1 MiB: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	x, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var kept []Entry
	failed := 0
	for i := range 40 {
		batch := makeEntries(uint64(i), 900)
		switch err := x.Add(t.Context(), batch); {
		case err == nil:
			kept = append(kept, batch...)
		case errs.Is(err, errs.Full):
			failed++
			if x.Lookup(batch[0].ID, nil) != nil { // only the merge failed
				kept = append(kept, batch...)
			}
		default:
			t.Fatal(err)
		}
	}
	if failed == 0 || len(kept) == 0 {
		t.Fatalf("%d adds failed, %d entries kept", failed, len(kept))
	}
	wantAll(t, x, kept)
	runFiles(t, dir)
	err = x.Rebuild(t.Context(), func(put func(Entry) error) error {
		for _, e := range makeEntries(100, 20000) {
			if err := put(e); err != nil {
				return err
			}
		}
		return nil
	})
	if !errs.Is(err, errs.Full) {
		t.Errorf("Rebuild: %v, want Full", err)
	}
	wantAll(t, x, kept)
	runFiles(t, dir)
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	y, err := Open(filepath.Clean(dir))
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, y, kept)
	wantClean(t, y)
	if err := y.Close(); err != nil {
		t.Error(err)
	}
}
