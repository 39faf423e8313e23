package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

func open(t testing.TB, dir string) *Index {
	t.Helper()
	x, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// makeEntries draws n entries with random ids, 1000 to a pack.
func makeEntries(seed uint64, n int) []Entry {
	rng := rand.NewChaCha8([32]byte(binary.LittleEndian.AppendUint64(make([]byte, 24), seed)))
	out := make([]Entry, n)
	for i := range out {
		_, _ = rng.Read(out[i].ID[:]) // never fails
		binary.BigEndian.PutUint64(out[i].Pack[:], seed)
		binary.BigEndian.PutUint64(out[i].Pack[8:], uint64(i/1000))
		out[i].Offset, out[i].Length, out[i].Sub = uint32(i%1000)*40000, 40000, uint8(i%4)
	}
	return out
}

func add(t testing.TB, x *Index, entries []Entry) {
	t.Helper()
	if err := x.Add(t.Context(), entries); err != nil {
		t.Fatal(err)
	}
}

func wantAll(t testing.TB, x *Index, entries []Entry) {
	t.Helper()
	for i := range entries {
		if got := x.Lookup(entries[i].ID, nil); !slices.Contains(got, entries[i]) {
			t.Fatalf("entry %d of %d: Lookup = %+v, want %+v", i, len(entries), got, entries[i])
		}
	}
}

func wantNone(t testing.TB, x *Index, entries []Entry) {
	t.Helper()
	for i := range entries {
		if got := x.Lookup(entries[i].ID, nil); len(got) != 0 {
			t.Fatalf("entry %d: Lookup = %+v, want none", i, got)
		}
	}
}

func wantClean(t testing.TB, x *Index) {
	t.Helper()
	if d := x.Dropped(); len(d) != 0 {
		t.Fatalf("Dropped = %q", d)
	}
}

func runFiles(t testing.TB, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if !strings.HasPrefix(filepath.Base(p), runPrefix) {
			t.Errorf("left over: %s", filepath.Base(p))
		}
	}
	return all
}

func TestAddMergeReopen(t *testing.T) {
	dir := t.TempDir()
	x := open(t, dir)
	var all []Entry
	for i := range 60 {
		batch := makeEntries(uint64(i), 700+i*10)
		before := slices.Clone(batch)
		add(t, x, batch)
		if !slices.Equal(batch, before) {
			t.Fatal("Add changed the caller's slice")
		}
		all = append(all, batch...)
	}
	wantAll(t, x, all)
	wantNone(t, x, makeEntries(1000, 20000))
	if n := x.Len(); n != int64(len(all)) {
		t.Errorf("Len = %d, want %d", n, len(all))
	}
	if n := len(runFiles(t, dir)); n > 9 {
		t.Errorf("%d run files for %d entries", n, len(all))
	}
	y := open(t, dir)
	wantAll(t, y, all)
	wantClean(t, y)
}

// TestRunsStayFew adds many batches of one size: their number per tier stays
// under mergeAt.
func TestRunsStayFew(t *testing.T) {
	x := open(t, t.TempDir())
	for i := range 150 {
		add(t, x, makeEntries(uint64(i), 1+i%3*2000))
		perTier := make(map[int]int)
		for _, r := range x.runs {
			perTier[tier(r.count)]++
		}
		for tr, n := range perTier {
			if n >= mergeAt {
				t.Fatalf("after %d adds tier %d has %d runs", i+1, tr, n)
			}
		}
	}
}

func TestTier(t *testing.T) {
	for n, want := range map[int64]int{1: 0, 4095: 0, 4096: 1, 16383: 1, 16384: 2, 65535: 2, 65536: 3, 1 << 40: 15} {
		if got := tier(n); got != want {
			t.Errorf("tier(%d) = %d, want %d", n, got, want)
		}
	}
}

func TestDoublesAndSeveralPlaces(t *testing.T) {
	x := open(t, t.TempDir())
	e := makeEntries(1, 3)
	other := e[1]
	other.Pack[0]++
	add(t, x, []Entry{e[1], e[0], e[1], other, e[2], e[1]})
	if got := x.Lookup(e[1].ID, nil); len(got) != 2 || !slices.Contains(got, e[1]) || !slices.Contains(got, other) {
		t.Fatalf("Lookup = %+v", got)
	}
	for range 8 { // merges fold doubles
		add(t, x, e)
	}
	if n := x.Len(); n > 4+3*(mergeAt-1) {
		t.Errorf("Len = %d, doubles were kept", n)
	}
	buf := make([]Entry, 0, 16)
	if got := x.Lookup(e[0].ID, buf); &got[0] != &buf[:1][0] {
		t.Error("Lookup did not use buf's room")
	}
	pre := []Entry{e[2]}
	if got := x.Lookup(makeEntries(9, 1)[0].ID, pre); !slices.Equal(got, pre) {
		t.Errorf("a miss changed buf: %+v", got)
	}
}

// TestOddIDs uses ids that are anything but uniform.
func TestOddIDs(t *testing.T) {
	x := open(t, t.TempDir())
	var all []Entry
	for i := range 5000 {
		var e Entry
		switch i % 4 {
		case 0:
			binary.BigEndian.PutUint32(e.ID[28:], uint32(i))
		case 1:
			binary.BigEndian.PutUint32(e.ID[:], uint32(i))
		case 2:
			copy(e.ID[:], bytes.Repeat([]byte{0xff}, 32))
			binary.BigEndian.PutUint32(e.ID[20:], uint32(i))
		case 3:
			e.ID[i%32] = byte(i)
		}
		e.Offset = uint32(i)
		all = append(all, e)
	}
	add(t, x, all[:3000])
	add(t, x, all[3000:])
	wantAll(t, x, all)
	for i := range 5000 {
		var id ID
		binary.BigEndian.PutUint32(id[14:], uint32(i+1))
		if got := x.Lookup(id, nil); len(got) != 0 && got[0].ID != id {
			t.Fatalf("Lookup(%x) = %+v", id, got)
		}
	}
}

func TestRemovePacks(t *testing.T) {
	dir := t.TempDir()
	x := open(t, dir)
	a, b := makeEntries(1, 5500), makeEntries(2, 100)
	add(t, x, a)
	add(t, x, b)
	gone := [][16]byte{a[0].Pack, a[5000].Pack, b[0].Pack, {0xaa}}
	for range 2 {
		if err := x.RemovePacks(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
		for _, x := range []*Index{x, open(t, dir)} {
			wantNone(t, x, a[:1000])
			wantAll(t, x, a[1000:5000])
			wantNone(t, x, a[5000:])
			wantNone(t, x, b)
			wantClean(t, x)
		}
	}
	if n := len(runFiles(t, dir)); n != 1 {
		t.Errorf("%d files, want 1: an emptied run goes away", n)
	}
}

func TestRebuild(t *testing.T) {
	for _, tt := range []struct{ n, sortBytes int }{{0, 64}, {1, 64}, {4000, 64 << 20}, {4000, 64 * 20}, {3000, 64 * 900}} {
		t.Run(fmt.Sprintf("%d entries, %d bytes", tt.n, tt.sortBytes), func(t *testing.T) {
			dir := t.TempDir()
			x := open(t, dir)
			x.sortBytes = tt.sortBytes
			old, fresh, during := makeEntries(1, 3000), makeEntries(2, tt.n), makeEntries(3, 50)
			add(t, x, old[:1500])
			add(t, x, old[1500:])
			err := x.Rebuild(t.Context(), func(put func(Entry) error) error {
				for i, e := range fresh {
					if err := put(e); err != nil {
						return err
					}
					if i%100 == 0 && x.Lookup(old[0].ID, nil) == nil {
						t.Error("the old entries went too early")
					}
				}
				// Enough adds for merges, which must not swallow old runs.
				for i := range during {
					if err := x.Add(t.Context(), during[i:i+1]); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range []*Index{x, open(t, dir)} {
				wantNone(t, x, old)
				wantAll(t, x, fresh)
				wantAll(t, x, during)
				wantClean(t, x)
			}
			runFiles(t, dir)
			add(t, x, old[:1]) // merges go on as before
			wantAll(t, x, old[:1])
		})
	}
}

func TestRebuildFails(t *testing.T) {
	mine := errors.New("mine")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for name, fill := range map[string]func(func(Entry) error) error{
		"fill fails": func(put func(Entry) error) error {
			return errors.Join(put(makeEntries(8, 1)[0]), put(makeEntries(9, 1)[0]), mine)
		},
		"cancelled": func(put func(Entry) error) error {
			cancel()
			return put(makeEntries(8, 1)[0])
		},
	} {
		dir := t.TempDir()
		x := open(t, dir)
		x.sortBytes = 1
		old := makeEntries(1, 300)
		add(t, x, old)
		if err := x.Rebuild(ctx, fill); !errors.Is(err, mine) && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		wantAll(t, x, old)
		if n := len(runFiles(t, dir)); n != 1 {
			t.Errorf("%s: %d files", name, n)
		}
	}
}

func TestScan(t *testing.T) {
	x := open(t, t.TempDir())
	all := makeEntries(1, 3000)
	for i := 0; i < len(all); i += 500 {
		add(t, x, all[i:i+500])
	}
	seen := make(map[Entry]int)
	err := x.Scan(func(e Entry) error {
		if len(seen) == 100 { // fn may use, and even change, the index
			add(t, x, makeEntries(2, 10))
			if err := x.Rebuild(t.Context(), func(func(Entry) error) error { return nil }); err != nil {
				return err
			}
		}
		seen[e]++
		return nil
	})
	if err != nil || len(seen) != len(all) {
		t.Fatalf("Scan gave %d of %d entries, %v", len(seen), len(all), err)
	}
	for _, e := range all {
		if seen[e] != 1 {
			t.Fatalf("Scan gave %+v %d times", e, seen[e])
		}
	}
	if x.Len() != 0 {
		t.Errorf("Len = %d after an empty Rebuild", x.Len())
	}
	wantClean(t, x)
	mine := errors.New("mine")
	add(t, x, all[:10])
	if err := x.Scan(func(Entry) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("Scan: %v, want fn's error", err)
	}
}

func TestClosed(t *testing.T) {
	x, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	e := makeEntries(1, 5)
	add(t, x, e)
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	wantNone(t, x, e)
	for what, err := range map[string]error{
		"Add": x.Add(t.Context(), e), "RemovePacks": x.RemovePacks(t.Context(), [][16]byte{{}}),
		"Rebuild": x.Rebuild(t.Context(), func(func(Entry) error) error { return nil }),
		"Scan":    x.Scan(func(Entry) error { return nil }),
	} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
	if err := x.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	dir := t.TempDir()
	x := open(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := x.Add(ctx, makeEntries(1, 5)); !errors.Is(err, context.Canceled) {
		t.Errorf("Add: %v", err)
	}
	if err := x.RemovePacks(ctx, [][16]byte{{}}); !errors.Is(err, context.Canceled) {
		t.Errorf("RemovePacks: %v", err)
	}
	if n := len(runFiles(t, dir)); n != 0 {
		t.Errorf("%d files", n)
	}
}

func TestConcurrent(t *testing.T) {
	x := open(t, t.TempDir())
	base := makeEntries(1, 5000)
	add(t, x, base)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			var buf [4]Entry
			for i := w; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				e := base[i%len(base)]
				if got := x.Lookup(e.ID, buf[:0]); len(got) == 0 || got[0] != e {
					t.Errorf("Lookup = %+v, want %+v", got, e)
					return
				}
				if i%500 == 0 {
					if err := x.Scan(func(Entry) error { return nil }); err != nil {
						t.Error(err)
					}
					_, _ = x.Len(), x.Dropped()
				}
			}
		})
	}
	for i := range 40 {
		add(t, x, makeEntries(uint64(10+i), 300))
	}
	if err := x.RemovePacks(t.Context(), [][16]byte{makeEntries(12, 1)[0].Pack}); err != nil {
		t.Error(err)
	}
	close(stop)
	wg.Wait()
	wantClean(t, x)
}

// TestLookupCostsNoMemory measures the heap, not the clock.
func TestLookupCostsNoMemory(t *testing.T) {
	dir := t.TempDir()
	{
		x := open(t, dir)
		add(t, x, makeEntries(1, 300_000))
		add(t, x, makeEntries(2, 50_000))
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	x := open(t, dir)
	if grown := heap() - before; grown > 1<<20 {
		t.Errorf("Open took %d bytes of heap for %d entries", grown, x.Len())
	}
	hit, miss := makeEntries(1, 1)[0], makeEntries(3, 1)[0]
	var buf [4]Entry
	if n := testing.AllocsPerRun(100, func() {
		x.Lookup(hit.ID, buf[:0])
		x.Lookup(miss.ID, buf[:0])
	}); n != 0 {
		t.Errorf("%v allocations a lookup", n)
	}
	runtime.KeepAlive(x)
}

func TestFilterRejectsMisses(t *testing.T) {
	x := open(t, t.TempDir())
	add(t, x, makeEntries(1, 100_000))
	passed := 0
	misses := makeEntries(2, 100_000)
	for i := range misses {
		if x.runs[0].mayContain(&misses[i].ID) {
			passed++
		}
	}
	if passed > 1500 { // 1 % is 1000
		t.Errorf("%d of %d misses pass the filter", passed, len(misses))
	}
}

func TestOpenRemovesLeftovers(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"tmp-123", "other", "run-1.idx", "run-000000000000000G.idx"} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wantClean(t, open(t, dir))
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 3 {
		t.Errorf("%v, %v: only the temp file is ours to remove", left, err)
	}
}
