package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/foldertest"
	"cairn/internal/nbd"
	"cairn/internal/volume"
	"cairn/internal/volume/volumetest"
)

func config(dir string, f *forest) Config {
	return Config{Dir: dir, Boot: "boot", OpenTree: f.Open, FreeFloor: -1, RepositoryWait: 1}
}

func open(t testing.TB, c Config) *Driver {
	t.Helper()
	d, err := New(c)
	ok(t, err)
	return d
}

func TestConformance(t *testing.T) {
	volumetest.Run(t, func(t *testing.T) volumetest.Harness {
		c := config(foldertest.InMemory(t), newForest())
		d, made := open(t, c), 0
		return volumetest.Harness{
			Driver: d,
			New: func(t testing.TB, size int64) volume.Spec {
				made++
				s := volume.Spec{ID: fmt.Sprintf("vol-%d", made), SizeBytes: size}
				ok(t, d.Create(t.Context(), s))
				return s
			},
			Absent:  func(testing.TB) volume.Spec { return volume.Spec{ID: "vol-GONE", SizeBytes: 1 << 20} },
			Restart: func(t testing.TB) volume.Driver { return open(t, c) },
		}
	})
}

// A volume of an earlier version is a data file and nothing else.
func TestTakeover(t *testing.T) {
	dir := foldertest.InMemory(t)
	want := bytes.Repeat([]byte("old"), 50000)
	ok(t, os.WriteFile(filepath.Join(dir, "vol-OLD.raw"), want, 0o600))
	d := open(t, config(dir, newForest()))
	s := volume.Spec{ID: "vol-OLD", SizeBytes: int64(len(want))}
	in, err := d.Freeze(t.Context(), "h", []volume.Spec{s}, nil)
	ok(t, err)
	got := make([]byte, in.Source(0).Size())
	ok(t, in.Source(0).ReadAt(t.Context(), got, 0))
	same(t, "old volume", got, want)
	ok(t, in.Close())
	ok(t, d.Close())
	list, err := List(dir)
	ok(t, err)
	if len(list) != 1 || list[0] != s {
		t.Fatalf("listed %v", list)
	}
}

func TestList(t *testing.T) {
	dir := filepath.Join(foldertest.InMemory(t), "volumes")
	if got, err := List(dir); err != nil || len(got) != 0 {
		t.Errorf("an absent folder: %v, %v", got, err)
	}
	d := open(t, config(dir, newForest()))
	s := volume.Spec{ID: "vol-A", SizeBytes: 12345}
	ok(t, d.Create(t.Context(), s))
	ok(t, os.WriteFile(filepath.Join(dir, "note.txt"), nil, 0o600))
	ok(t, os.Mkdir(filepath.Join(dir, "vol-B.raw"), 0o700))
	if got, err := List(dir); err != nil || len(got) != 1 || got[0] != s {
		t.Errorf("got %v, %v", got, err)
	}
}

// Names that would leave the folder are refused, and sizes that are none.
func TestNames(t *testing.T) {
	d := open(t, config(foldertest.InMemory(t), newForest()))
	for _, bad := range []string{"", ".", "..", "../x", "a/b", ".hidden", "a b", "ä", strings.Repeat("x", 129)} {
		if err := d.Create(t.Context(), volume.Spec{ID: bad, SizeBytes: 1}); err == nil {
			t.Errorf("volume %q was accepted", bad)
		}
	}
	for _, bad := range []int64{0, -1} {
		if err := d.Create(t.Context(), volume.Spec{ID: "vol-X", SizeBytes: bad}); !errs.Is(err, errs.Invalid) {
			t.Errorf("size %d: %v", bad, err)
		}
	}
}

// Who writes while an instant is held gets on, and the instant stays whole,
// with as many clients as there are.
func TestInstantBesideWriters(t *testing.T) {
	d := open(t, config(foldertest.InMemory(t), newForest()))
	const size = 8 << 20
	s := volume.Spec{ID: "vol-A", SizeBytes: size}
	ok(t, d.Create(t.Context(), s))
	v, err := d.vol(s.ID)
	ok(t, err)
	// Each writer owns the pages of its number, modulo; a page holds a counter
	// in every byte pair, so that torn or mixed reads show.
	const writers = 4
	var stop atomic.Bool
	var done [writers]atomic.Uint32 // rounds acknowledged
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for round := uint32(1); !stop.Load() && round < 200; round++ {
				for page := w; page < size/pageSize; page += writers {
					if err := v.write(t.Context(), change{p: stamp(round), off: int64(page) * pageSize, n: pageSize}); err != nil {
						t.Error(err)
						return
					}
				}
				done[w].Store(round)
			}
		})
	}
	for n := range 30 {
		var before [writers]uint32
		for w := range writers {
			before[w] = done[w].Load()
		}
		in, err := d.Freeze(t.Context(), fmt.Sprint(n), []volume.Spec{s}, nil)
		ok(t, err)
		first, second := make([]byte, size), make([]byte, size)
		ok(t, in.Source(0).ReadAt(t.Context(), first, 0))
		ok(t, in.Source(0).ReadAt(t.Context(), second, 0))
		same(t, "read again", second, first)
		for page := range size / pageSize {
			p := first[page*pageSize:][:pageSize]
			round := uint32(p[0]) | uint32(p[1])<<8
			if !bytes.Equal(p, stamp(round)) {
				t.Fatalf("page %d is torn", page)
			}
			if lo, hi := before[page%writers], done[page%writers].Load()+1; round < lo || round > hi {
				t.Fatalf("page %d is of round %d, and %d to %d were possible", page, round, lo, hi)
			}
		}
		if n%2 == 0 {
			ok(t, in.Settle(t.Context(), []volume.Checkpoint{"c"}, committed))
		}
		ok(t, in.Close())
	}
	stop.Store(true)
	all.Wait()
	ok(t, d.Close())
}

// Whoever comes while the points of an instant are committed waits, and is then
// refused by nobody: also at the last of its volumes, the data of which may take
// its time to become durable.
func TestSettleHandsOver(t *testing.T) {
	d := open(t, config(foldertest.InMemory(t), newForest()))
	ctx := t.Context()
	var all []volume.Spec
	for _, id := range []string{"vol-C", "vol-A", "vol-B"} {
		s := volume.Spec{ID: id, SizeBytes: 64 << 20}
		ok(t, d.Create(ctx, s))
		all = append(all, s)
	}
	data := bytes.Repeat([]byte("data"), 16<<20)
	for round := range 3 {
		for _, s := range all {
			v, err := d.vol(s.ID)
			ok(t, err)
			ok(t, v.write(ctx, change{p: data, n: int64(len(data))}))
		}
		in, err := d.Freeze(ctx, "first", all, nil)
		ok(t, err)
		var others sync.WaitGroup
		var through atomic.Bool
		ok(t, in.Settle(ctx, []volume.Checkpoint{"c", "a", "b"}, func() error {
			for i, s := range all {
				others.Go(func() {
					next, err := d.Freeze(ctx, fmt.Sprint("next", i), []volume.Spec{s}, nil)
					if err != nil || !through.Load() {
						t.Errorf("round %d: freeze of %s after the commit: %v, %v", round, s.ID, through.Load(), err)
					}
					if err == nil {
						ok(t, next.Close())
					}
				})
			}
			time.Sleep(20 * time.Millisecond)
			through.Store(true)
			return nil
		}))
		others.Wait()
		ok(t, in.Close())
	}
	ok(t, d.Close())
}

func committed() error { return nil }

func stamp(round uint32) []byte {
	return bytes.Repeat([]byte{byte(round), byte(round >> 8)}, pageSize/2)
}

// What a point was read from, or need not be, is not kept for it.
func TestRelease(t *testing.T) {
	d := open(t, config(foldertest.InMemory(t), newForest()))
	ctx := t.Context()
	const n = 8
	s := volume.Spec{ID: "vol-A", SizeBytes: n*clusterSize - pageSize}
	ok(t, d.Create(ctx, s))
	v, err := d.vol(s.ID)
	ok(t, err)
	write := func(b byte, first, end int64) {
		t.Helper()
		to := min(end*clusterSize, s.SizeBytes)
		ok(t, v.write(ctx, change{p: bytes.Repeat([]byte{b}, int(to-first*clusterSize)), off: first * clusterSize, n: to - first*clusterSize}))
	}
	taken := func(want int64) {
		t.Helper()
		if got := d.scratch.Load(); got != want*clusterSize {
			t.Errorf("scratch has %d bytes, want %d clusters", got, want)
		}
	}
	write(1, 0, n)
	in, err := d.Freeze(ctx, "hold", []volume.Spec{s}, nil)
	ok(t, err)
	src := in.Source(0)
	ok(t, src.Release(ctx, 0, 2*clusterSize))
	write(2, 0, 4)
	taken(2) // 2 and 3
	ok(t, src.Release(ctx, clusterSize, 2*clusterSize))
	taken(1)                                                          // 3
	ok(t, src.Release(ctx, 6*clusterSize, s.SizeBytes-6*clusterSize)) // its last cluster is short
	write(3, 3, n)
	taken(3) // 3, 4 and 5
	got := make([]byte, 3*clusterSize)
	ok(t, src.ReadAt(ctx, got, 3*clusterSize))
	same(t, "the instant", got, bytes.Repeat([]byte{1}, len(got)))
	for at := range int64(n) {
		err := src.ReadAt(ctx, got[:pageSize], at*clusterSize)
		if kept := at >= 3 && at < 6; kept != (err == nil) || !kept && !errs.Is(err, errs.Internal) {
			t.Errorf("read of cluster %d: %v", at, err)
		}
	}
	r, err := src.Data(ctx, 0)
	if want := (extent.Range{Off: 3 * clusterSize, Len: 3 * clusterSize}); err != nil || r != want {
		t.Errorf("data at %v, %v, want %v", r, err, want)
	}
	for _, off := range []int64{6 * clusterSize, s.SizeBytes, s.SizeBytes + 1} {
		if r, err = src.Data(ctx, off); !errors.Is(err, io.EOF) {
			t.Errorf("data at %d, behind the end of what is kept: %v, %v", off, r, err)
		}
	}
	ok(t, in.Settle(ctx, []volume.Checkpoint{"one"}, committed))
	ok(t, in.Close())
	taken(0)
	ok(t, d.Close())
}

// Writers who go on from region to region wait for few syncs, and what they
// did not write to is at most as much again.
func TestMarksGoAhead(t *testing.T) {
	s := newSet(1000)
	syncs := 0
	for r := range s.n {
		if s.has(r) {
			continue
		}
		for _, run := range s.ahead([]int64{r}) {
			s.addRange(run.Off, run.End())
		}
		syncs++
		if marked := s.count(); marked > 2*(r+1) {
			t.Fatalf("%d regions are marked when %d were written to", marked, r+1)
		}
	}
	if syncs > 7+1000/aheadRegions {
		t.Errorf("%d syncs for %d regions", syncs, s.n)
	}
	apart := newSet(100)
	if got := apart.ahead([]int64{50, 7, 51, 99, 7}); !slices.Equal(got, []extent.Range{{Off: 7, Len: 1}, {Off: 50, Len: 2}, {Off: 99, Len: 1}}) {
		t.Errorf("runs %v", got)
	}
	apart.addRange(95, 99)
	if got := apart.ahead([]int64{99, 3}); !slices.Equal(got, []extent.Range{{Off: 3, Len: 1}, {Off: 99, Len: 1}}) {
		t.Errorf("runs %v", got)
	}
}

// A scratch that is full costs the snapshot, never the client; the next
// increment still knows every change.
func TestScratchIsFull(t *testing.T) {
	c := config(foldertest.InMemory(t), newForest())
	c.ScratchBytes = 3 * clusterSize
	d := open(t, c)
	ctx := t.Context()
	s := volume.Spec{ID: "vol-A", SizeBytes: 1 << 20}
	ok(t, d.Create(ctx, s))
	v, err := d.vol(s.ID)
	ok(t, err)
	fill := func(b byte) {
		t.Helper()
		ok(t, v.write(ctx, change{p: bytes.Repeat([]byte{b}, 1<<20), n: 1 << 20}))
	}
	fill(1)
	in, err := d.Freeze(ctx, "first", []volume.Spec{s}, nil)
	ok(t, err)
	ok(t, in.Settle(ctx, []volume.Checkpoint{"one"}, committed))
	ok(t, in.Close())

	in, err = d.Freeze(ctx, "second", []volume.Spec{s}, nil)
	ok(t, err)
	fill(2)
	if err := in.Check(ctx); !errs.Is(err, errs.Full) {
		t.Errorf("Check: %v", err)
	}
	if err := in.Source(0).ReadAt(ctx, make([]byte, 10), 0); !errs.Is(err, errs.Full) {
		t.Errorf("ReadAt: %v", err)
	}
	ok(t, in.Close())
	if n := d.scratch.Load(); n != 0 {
		t.Errorf("%d bytes of scratch are taken after all instants ended", n)
	}

	in, err = d.Freeze(ctx, "third", []volume.Spec{s}, nil)
	ok(t, err)
	r, err := in.Source(0).Changed(ctx, "one", 0)
	ok(t, err)
	if r.Off != 0 || r.Len != 1<<20 {
		t.Errorf("changed since the last point: %v", r)
	}
	got := make([]byte, 1<<20)
	ok(t, in.Source(0).ReadAt(ctx, got, 0))
	same(t, "volume", got, bytes.Repeat([]byte{2}, 1<<20))
	ok(t, in.Close())
	ok(t, d.Close())
}

// Several volumes are frozen at one instant.
func TestOneInstantOfAll(t *testing.T) {
	d := open(t, config(foldertest.InMemory(t), newForest()))
	ctx := t.Context()
	var specs []volume.Spec
	var vols []*vol
	for i := range 3 {
		s := volume.Spec{ID: fmt.Sprintf("vol-%d", 3-i), SizeBytes: 1 << 20}
		ok(t, d.Create(ctx, s))
		v, err := d.vol(s.ID)
		ok(t, err)
		specs, vols = append(specs, s), append(vols, v)
	}
	// One client writes a growing number to one volume after the other: at no
	// instant a later volume is ahead of an earlier one.
	var stop atomic.Bool
	var all sync.WaitGroup
	all.Go(func() {
		for n := uint32(1); !stop.Load(); n++ {
			for _, v := range vols {
				if err := v.write(ctx, change{p: stamp(n % 60000), n: pageSize}); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for n := range 200 {
		in, err := d.Freeze(ctx, fmt.Sprint(n), specs, nil)
		ok(t, err)
		var got []int
		for i := range specs {
			p := make([]byte, 2)
			ok(t, in.Source(i).ReadAt(ctx, p, 0))
			got = append(got, int(p[0])|int(p[1])<<8)
		}
		ok(t, in.Close())
		if got[0] < got[1] || got[1] < got[2] || got[0] > got[2]+1 {
			t.Fatalf("the volumes are of rounds %v", got)
		}
	}
	stop.Store(true)
	all.Wait()
	ok(t, d.Close())
}

func TestServed(t *testing.T) {
	server := nbd.NewServer(nbd.Limits{}, nil)
	path := filepath.Join(t.TempDir(), "nbd.sock")
	stop := serve(t, server, path)
	defer stop()
	c := config(foldertest.InMemory(t), newForest())
	c.Server, c.URIs = server, func(name string) []string { return []string{name} }
	d := open(t, c)
	ctx := t.Context()
	s := volume.Spec{ID: "vol-A", SizeBytes: 4 << 20}
	ok(t, d.Create(ctx, s))
	ok(t, d.Serve(ctx, s))
	ok(t, d.Serve(ctx, s))
	client := func(name string) (*nbd.Client, error) {
		return nbd.Dial(ctx, nbd.URI{Network: "unix", Address: path, Export: name}, nbd.Options{})
	}
	cl, err := client("vol-A")
	ok(t, err)
	want := bytes.Repeat([]byte("abcd"), 1<<18)
	ok(t, cl.WriteAt(ctx, want, 4096, 0))
	ok(t, cl.Flush(ctx))
	got := make([]byte, len(want))
	ok(t, cl.ReadAt(ctx, got, 4096))
	same(t, "what a client wrote", got, want)
	if _, err := d.OpenTarget(ctx, s); !errs.Is(err, errs.Conflict) {
		t.Errorf("overwrite under a client: %v", err)
	}
	e, err := d.Exported(ctx, s)
	ok(t, err)
	if e.Clients == 0 || len(e.URIs) != 1 || e.URIs[0] != "vol-A" {
		t.Errorf("exported as %+v", e)
	}
	in, err := d.Freeze(ctx, "h", []volume.Spec{s}, nil)
	ok(t, err)
	ok(t, cl.Zero(ctx, 4096, 1<<20, 0))
	ok(t, in.Source(0).ReadAt(ctx, got, 4096))
	same(t, "instant", got, want)
	ok(t, in.Close())
	ok(t, d.Grow(ctx, s, 8<<20))
	ok(t, cl.ReadAt(ctx, got, 4096))
	same(t, "zeroed", got, make([]byte, len(got)))
	cl.Close()
	again, err := client("vol-A")
	ok(t, err)
	if again.Size() != 8<<20 {
		t.Errorf("a new client sees %d bytes", again.Size())
	}
	ok(t, d.Remove(ctx, s))
	if err := again.ReadAt(ctx, got[:512], 0); err == nil {
		t.Error("a removed volume can be read")
	}
	again.Close()
	ok(t, d.Close())
}

// serve runs a server on a unix socket until stop.
func serve(t *testing.T, server *nbd.Server, path string) (stop func()) {
	t.Helper()
	l, err := listen(path)
	ok(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// What a point has and a power cut might take from the volume would be a
// change that nobody marked: settling makes the data durable.
func TestSettledDataIsDurable(t *testing.T) {
	d := open(t, config(foldertest.InMemory(t), newForest()))
	ctx := t.Context()
	s := volume.Spec{ID: "vol-A", SizeBytes: 1 << 20}
	ok(t, d.Create(ctx, s))
	v, err := d.vol(s.ID)
	ok(t, err)
	ok(t, v.write(ctx, change{p: []byte("of the point"), n: 12}))
	in, err := d.Freeze(ctx, "h", []volume.Spec{s}, nil)
	ok(t, err)
	if !v.unsynced.Load() {
		t.Fatal("the write is durable already: this test shows nothing")
	}
	ok(t, in.Settle(ctx, []volume.Checkpoint{"c"}, committed))
	if v.unsynced.Load() {
		t.Error("tracking counts from a point whose data is not durable in the volume")
	}
	ok(t, in.Close())
	ok(t, d.Close())
}
