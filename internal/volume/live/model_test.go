package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"pgregory.net/rapid"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// machine plays a volume's life beside slices of bytes: a client writes, reads
// and flushes, points are taken, settled or given up, the volume is rolled
// back and filled, and the process or the machine dies.
type machine struct {
	t    *testing.T
	dir  string
	f    *forest
	d    *Driver
	boot int
	s    volume.Spec

	now     []byte             // what the volume holds
	flushed []byte             // at the last flush
	risky   map[int64][][]byte // pages written since, with all they may hold after a power cut
	safe    *view              // where bytes were at the last flush
	since   []byte             // content at the last checkpoint; nil: none
	in      volume.Instant     // nil: none is held
	frozen  []byte             // what it shows
	gone    map[int64]bool     // clusters of it that were released
	trees   []string           // planted
	grains  int64              // that a hold may have: of 4 KiB to 64 KiB
}

func (m *machine) start() {
	d, err := New(Config{Dir: m.dir, Boot: fmt.Sprint("boot-", m.boot), OpenTree: m.f.Open, FreeFloor: -1, RepositoryWait: 1})
	if err != nil {
		panic(err)
	}
	d.grains = m.grains
	m.d = d
}

func (m *machine) vol(rt *rapid.T) *vol {
	v, err := m.d.vol(m.s.ID)
	ok(rt, err)
	return v
}

func ok(t rapid.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (m *machine) span(rt *rapid.T, most int) (off, end int) {
	unit := rapid.SampledFrom([]int{512, 4096, 4096, 65536}).Draw(rt, "unit")
	off = rapid.IntRange(0, (len(m.now)-1)/unit).Draw(rt, "off") * unit
	end = off + rapid.IntRange(1, most/unit+1).Draw(rt, "length")*unit
	return off, min(end, len(m.now))
}

// changes does c and keeps the model.
func (m *machine) changes(rt *rapid.T, c change) {
	want := make([]byte, c.n)
	copy(want, c.p)
	ok(rt, m.vol(rt).write(context.Background(), c))
	for page := c.off / pageSize; page*pageSize < c.off+c.n; page++ {
		m.risk(page)
	}
	copy(m.now[c.off:], want)
	for page := c.off / pageSize; page*pageSize < c.off+c.n; page++ {
		m.risk(page)
	}
}

// risk notes what a page holds now as one of the things that it may hold after
// a power cut.
func (m *machine) risk(page int64) {
	m.risky[page] = append(m.risky[page], bytes.Clone(m.page(m.now, page)))
}

func (m *machine) page(of []byte, page int64) []byte {
	return of[page*pageSize : min((page+1)*pageSize, int64(len(of)))]
}

func (m *machine) write(rt *rapid.T) {
	off, end := m.span(rt, 200<<10)
	p := bytes.Repeat([]byte{rapid.Byte().Draw(rt, "fill")}, end-off)
	m.changes(rt, change{p: p, off: int64(off), n: int64(len(p))})
}

func (m *machine) zero(rt *rapid.T) {
	off, end := m.span(rt, 300<<10)
	m.changes(rt, change{off: int64(off), n: int64(end - off), keep: rapid.Bool().Draw(rt, "keep")})
}

func (m *machine) flush(rt *rapid.T) {
	ok(rt, m.vol(rt).flush())
	m.durable(rt)
}

// durable: what is now is what a power cut leaves.
func (m *machine) durable(rt *rapid.T) {
	m.flushed, m.risky = bytes.Clone(m.now), map[int64][][]byte{}
	w := m.vol(rt).view.Load()
	m.safe = &view{size: w.size, tree: w.tree.resized(w.tree.n), pages: newMasks(w.tree.n)}
	for c := range w.tree.n {
		if p := w.pages.of(c); p != 0 {
			m.safe.pages.add(c, p)
		}
	}
}

func (m *machine) read(rt *rapid.T) {
	off, end := m.span(rt, 200<<10)
	got := make([]byte, end-off)
	ok(rt, m.vol(rt).read(context.Background(), got, int64(off)))
	same(rt, "read", got, m.now[off:end])
}

func same(t rapid.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d (cluster %d, page %d) is %#x, want %#x", what, i, i/clusterSize, i/pageSize, got[i], want[i])
		}
	}
}

// only lets rapid draw another step where this one cannot be done; it is no
// test that is left out.
func only(rt *rapid.T, possible bool, why string) {
	if !possible {
		rt.Skip(why)
	}
}

func (m *machine) freeze(rt *rapid.T) {
	only(rt, m.in == nil, "an instant is held already")
	in, err := m.d.Freeze(context.Background(), "hold", []volume.Spec{m.s}, nil)
	ok(rt, err)
	m.in, m.frozen, m.gone = in, bytes.Clone(m.now), map[int64]bool{}
}

// release gives up some clusters of the instant.
func (m *machine) release(rt *rapid.T) {
	only(rt, m.in != nil, "no instant is held")
	n := clusters(int64(len(m.frozen)))
	first := rapid.Int64Range(0, n-1).Draw(rt, "first")
	end := rapid.Int64Range(first+1, min(n, first+4)).Draw(rt, "end")
	for c := first; c < end; c++ {
		m.gone[c] = true
	}
	ok(rt, m.in.Source(0).Release(context.Background(), first*clusterSize, min(end*clusterSize, int64(len(m.frozen)))-first*clusterSize))
}

// eachKept calls fn with the runs of the instant that were not released.
func (m *machine) eachKept(fn func(off, end int64)) {
	size := int64(len(m.frozen))
	for c, n := int64(0), clusters(size); c < n; {
		k := c
		for k < n && !m.gone[k] {
			k++
		}
		if k > c {
			fn(c*clusterSize, min(k*clusterSize, size))
		}
		c = k + 1
	}
}

// look compares the instant that is held, and what it says of changes.
func (m *machine) look(rt *rapid.T) {
	if m.in == nil {
		return
	}
	ctx, src := context.Background(), m.in.Source(0)
	covered := make([]byte, src.Size())
	copy(covered, m.frozen)
	m.eachKept(func(off, end int64) {
		got := make([]byte, end-off)
		ok(rt, src.ReadAt(ctx, got, off))
		same(rt, "instant", got, m.frozen[off:end])
		clear(covered[off:end])
	})
	for off := int64(0); ; {
		r, err := src.Data(ctx, off)
		if errors.Is(err, io.EOF) {
			break
		}
		ok(rt, err)
		copy(covered[r.Off:r.End()], m.frozen[r.Off:r.End()])
		off = r.End()
	}
	same(rt, "what Data covers", covered, m.frozen)
	m.lookAtChanges(rt, src)
	ok(rt, m.in.Check(ctx))
}

func (m *machine) lookAtChanges(rt *rapid.T, src volume.Source) {
	ctx := context.Background()
	if m.since == nil {
		if _, err := src.Changed(ctx, "anything", 0); !errors.Is(err, volume.ErrNoBase) {
			rt.Fatalf("Changed without a checkpoint: %v", err)
		}
		return
	}
	base := checkpointOf(m.since)
	patched := bytes.Clone(m.since)
	for off := int64(0); ; {
		r, err := src.Changed(ctx, base, off)
		if errors.Is(err, io.EOF) {
			break
		}
		ok(rt, err)
		copy(patched[r.Off:r.End()], m.frozen[r.Off:r.End()])
		off = r.End()
	}
	same(rt, "checkpoint with the changes", patched, m.frozen)
	rs, err := src.Audit(ctx, base)
	ok(rt, err)
	for _, r := range rs {
		same(rt, "audited", m.frozen[r.Off:r.End()], m.since[r.Off:r.End()])
	}
}

func (m *machine) settle(rt *rapid.T) {
	only(rt, m.in != nil, "no instant is held")
	m.look(rt)
	ok(rt, m.in.Settle(context.Background(), []volume.Checkpoint{checkpointOf(m.frozen)}, committed))
	ok(rt, m.in.Close())
	m.trees = append(m.trees, m.f.plant(m.frozen))
	m.since, m.in = m.frozen, nil
	m.synced(rt)
}

// point is what a job does that nothing comes between.
func (m *machine) point(rt *rapid.T) {
	m.freeze(rt)
	m.settle(rt)
}

func (m *machine) giveUp(rt *rapid.T) {
	only(rt, m.in != nil, "no instant is held")
	ok(rt, m.d.Drop(context.Background(), "hold"))
	m.in = nil
}

func (m *machine) roll(rt *rapid.T) {
	only(rt, m.in == nil && len(m.trees) > 0, "an instant is held, or there is no point yet")
	ctx := context.Background()
	to, err := m.f.Open(ctx, rapid.SampledFrom(m.trees).Draw(rt, "tree"))
	ok(rt, err)
	var from volume.Tree
	if m.since != nil && rapid.Bool().Draw(rt, "known") {
		from = &tree{f: m.f, content: m.since}
	}
	ok(rt, roll(ctx, m.d, m.s, to, from, rapid.Bool().Draw(rt, "force")))
	content := to.(*tree).content
	ok(rt, to.Close())
	clear(m.now)
	copy(m.now, content)
	m.since = nil
	if len(content) == len(m.now) {
		m.since = bytes.Clone(content)
	}
	m.durable(rt)
}

// compact writes the state file anew, as a long one is.
func (m *machine) compact(rt *rapid.T) {
	v := m.vol(rt)
	v.op.Lock()
	defer v.op.Unlock()
	ok(rt, v.rewrite(false))
	m.synced(rt)
}

// synced takes note if the volume synced its data by itself.
func (m *machine) synced(rt *rapid.T) {
	if !m.vol(rt).unsynced.Load() {
		m.durable(rt)
	}
}

func (m *machine) fill(rt *rapid.T) {
	left := rapid.IntRange(0, 8).Draw(rt, "steps")
	enough := errors.New("enough")
	err := m.d.Fill(context.Background(), m.s, func(context.Context, int64) error {
		if left--; left < 0 {
			return enough
		}
		return nil
	})
	if err != nil && !errors.Is(err, enough) && !(m.in != nil && errs.Is(err, errs.Busy)) {
		rt.Fatal(err)
	}
	m.synced(rt) // also one that ends early makes durable what it did
	if err == nil {
		ref, err := m.d.Base(context.Background(), m.s)
		ok(rt, err)
		e, err := m.d.Exported(context.Background(), m.s)
		ok(rt, err)
		if ref != "" || e.Missing != 0 {
			rt.Fatalf("after a fill %d bytes of %q are needed", e.Missing, ref)
		}
	}
}

func (m *machine) grow(rt *rapid.T) {
	only(rt, m.in == nil && len(m.now) <= 3<<20, "an instant is held, or the volume is large enough")
	m.flush(rt)
	n := len(m.now) + rapid.IntRange(1, 100).Draw(rt, "sectors")*512
	ok(rt, m.d.Grow(context.Background(), m.s, int64(n)))
	m.now = append(m.now, make([]byte, n-len(m.now))...)
	m.since = nil
	m.durable(rt)
}

// restart stops the process in order.
func (m *machine) restart(rt *rapid.T) {
	ok(rt, m.d.Close())
	m.in = nil
	m.start()
	m.durable(rt)
}

// kill ends the process: what it wrote is there.
func (m *machine) kill(rt *rapid.T) {
	m.abandon(rt)
	m.start()
	m.vol(rt)
	m.synced(rt)
}

// abandon closes descriptors behind the driver's back; their data is in the
// page cache.
func (m *machine) abandon(rt *rapid.T) {
	v := m.vol(rt)
	if m.in != nil {
		m.in = nil
	}
	v.f.Close()
	v.file.f.Close()
	if w := v.view.Load(); w.base != nil {
		w.base.Close()
	}
}

// powerCut leaves what was synced; the rest as chance will have it.
func (m *machine) powerCut(rt *rapid.T) {
	v := m.vol(rt)
	file := v.file
	m.abandon(rt)
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "chance"), 0))
	ok(rt, m.spoil(rng, file))
	m.boot++
	m.start()
	got := make([]byte, len(m.now))
	ok(rt, m.vol(rt).read(context.Background(), got, 0))
	for off := int64(0); off < int64(len(got)); off += sectorSize {
		page := off / pageSize
		have, flushed := sectorAt(got, off), sectorAt(m.flushed, off)
		found := bytes.Equal(have, flushed)
		for _, may := range m.risky[page] {
			found = found || bytes.Equal(have, sectorAt(may, off-page*pageSize))
		}
		if !found {
			rt.Fatalf("sector %d (cluster %d, page %d) holds %x… after the power cut, and never did since the last flush; flushed was %x…", off/sectorSize, page/clusterPages, page, have[:4], flushed[:4])
		}
	}
	m.now = got
	m.durable(rt)
}

// sectorSize is what a disk writes as a whole.
const sectorSize = 512

func sectorAt(of []byte, off int64) []byte { return of[off:min(off+sectorSize, int64(len(of)))] }

// spoil makes of the files what a power cut may: each sector that was written
// since the last sync is as it was then, as it is now, or as it was in between,
// whatever became of the others, and of the other file's. What the map did not
// call local may be anything.
func (m *machine) spoil(rng *rand.Rand, state *stateFile) error {
	data, err := os.OpenFile(m.d.dataPath(m.s.ID), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer data.Close()
	for page, may := range m.risky {
		may = append(may, m.page(m.flushed, page))
		foreign := m.safe.foreign(page * pageSize)
		for off := int64(0); off < int64(len(may[0])); off += sectorSize {
			p := sectorAt(may[rng.IntN(len(may))], off)
			if foreign && rng.IntN(2) == 0 {
				p = bytes.Repeat([]byte{0xEE}, len(p))
			}
			if _, err := data.WriteAt(p, page*pageSize+off); err != nil {
				return err
			}
		}
	}
	return spoilState(rng, state)
}

// spoilState does so to what was appended to the state file. Records were
// appended one after the other, so a sector that is older ends earlier.
func spoilState(rng *rand.Rand, state *stateFile) error {
	f, err := os.OpenFile(state.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	keep := []int{0, 50, 90, 100}[rng.IntN(4)] // percent of the sectors
	for off := state.synced; off < state.end; {
		end := min((off/sectorSize+1)*sectorSize, state.end)
		if rng.IntN(100) >= keep {
			from := off + rng.Int64N(end-off+1)
			if _, err := f.WriteAt(make([]byte, end-from), from); err != nil {
				return err
			}
		}
		off = end
	}
	if rng.IntN(4) > 0 {
		return nil
	}
	return f.Truncate(state.synced + rng.Int64N(state.room-state.synced+1)) // a size that is not durable
}

func (m *machine) check(rt *rapid.T) {
	got := make([]byte, len(m.now))
	// Rarely: what was read is local afterwards.
	if rapid.IntRange(0, 30).Draw(rt, "whole") == 0 {
		ok(rt, m.vol(rt).read(context.Background(), got, 0))
		same(rt, "volume", got, m.now)
	}
	m.look(rt)
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("/dev/shm", "live")
		ok(rt, err)
		defer os.RemoveAll(dir)
		size := int64(rapid.SampledFrom([]int{1, 20, 33}).Draw(rt, "clusters")*clusterSize - rapid.SampledFrom([]int{0, 512, 5000}).Draw(rt, "less"))
		m := &machine{t: t, dir: dir, f: newForest(), s: volume.Spec{ID: "vol-A", SizeBytes: size}, risky: map[int64][][]byte{}}
		m.grains = rapid.SampledFrom([]int64{mostGrains, 128, 50, 1}).Draw(rt, "grains")
		m.start()
		m.now = make([]byte, size)
		if rapid.Bool().Draw(rt, "clone") {
			rng := rand.New(rand.NewPCG(1, 2))
			for c := range clusters(size) {
				if rng.IntN(3) > 0 {
					end := min((c+1)*clusterSize, size)
					for i := c * clusterSize; i < end; i++ {
						m.now[i] = byte(rng.IntN(256))
					}
				}
			}
			ref := m.f.plant(m.now)
			m.trees = append(m.trees, ref)
			base, err := m.f.Open(context.Background(), ref)
			ok(rt, err)
			ok(rt, m.d.Clone(context.Background(), m.s, base))
			ok(rt, base.Close())
		} else {
			ok(rt, m.d.Create(context.Background(), m.s))
		}
		m.durable(rt)
		rt.Repeat(map[string]func(*rapid.T){
			"write": m.write, "write2": m.write, "zero": m.zero, "read": m.read, "flush": m.flush,
			"freeze": m.freeze, "release": m.release, "settle": m.settle, "giveUp": m.giveUp, "point": m.point,
			"roll": m.roll, "compact": m.compact, "fill": m.fill, "grow": m.grow,
			"restart": m.restart, "kill": m.kill, "powerCut": m.powerCut,
			"": m.check,
		})
		ok(rt, m.d.Close())
		if n := m.f.open.Load(); n != 0 {
			rt.Fatalf("%d trees are open at the end", n)
		}
	})
}
