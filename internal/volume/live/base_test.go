package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/foldertest"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// A clone whose repository is away: what is local can be read and written,
// the rest fails after a while, and nothing is lost.
func TestRepositoryIsAway(t *testing.T) {
	ctx, content := t.Context(), bytes.Repeat([]byte("tree"), 64<<10)
	d, v, f := cloned(t, content)
	f.away.Store(true)
	page := bytes.Repeat([]byte("mine"), pageSize/4)
	ok(t, v.write(ctx, change{p: page, off: 8192, n: pageSize})) // a whole page needs no tree
	got := make([]byte, pageSize)
	ok(t, v.read(ctx, got, 8192))
	same(t, "own page", got, page)
	if err := v.read(ctx, got, 0); !errs.Is(err, errs.Unavailable) {
		t.Errorf("read of the tree: %v", err)
	}
	if err := v.write(ctx, change{p: page[:512], off: 512, n: 512}); !errs.Is(err, errs.Unavailable) {
		t.Errorf("write of a part of the tree's page: %v", err)
	}
	f.away.Store(false)
	got = make([]byte, len(content))
	ok(t, v.read(ctx, got, 0))
	copy(content[8192:], page)
	same(t, "clone", got, content)
	ok(t, d.Close())
}

// Whoever comes while a rollback is committed waits: a job, and a client.
func TestEndHandsOver(t *testing.T) {
	server := nbd.NewServer(nbd.Limits{}, nil)
	path := filepath.Join(t.TempDir(), "nbd.sock")
	stop := serve(t, server, path)
	defer stop()
	f := newForest()
	c := config(foldertest.InMemory(t), f)
	c.Server, c.URIs = server, func(name string) []string { return []string{name} }
	d := open(t, c)
	ctx := t.Context()
	s := volume.Spec{ID: "vol-A", SizeBytes: 1 << 20}
	ok(t, d.Create(ctx, s))
	content := bytes.Repeat([]byte("tree"), 1<<18)
	to, err := f.Open(ctx, f.plant(content))
	ok(t, err)
	defer to.Close()
	for round := range 3 {
		r, err := d.OpenRoller(ctx, s, false)
		ok(t, err)
		_, err = r.Roll(ctx, to, nil)
		ok(t, err)
		if _, err := d.Freeze(ctx, "early", []volume.Spec{s}, nil); !errs.Is(err, errs.Busy) {
			t.Fatalf("freeze during a rollback: %v", err)
		}
		refused := errors.New("the database is away")
		if err := r.End(func() error { return refused }); !errors.Is(err, refused) {
			t.Fatalf("end: %v", err)
		}
		if _, err := d.Freeze(ctx, "early", []volume.Spec{s}, nil); !errs.Is(err, errs.Busy) {
			t.Fatalf("freeze after an end that failed: %v", err)
		}
		var others sync.WaitGroup
		var committed atomic.Bool
		ok(t, r.End(func() error {
			others.Go(func() {
				in, err := d.Freeze(ctx, "h", []volume.Spec{s}, nil)
				if err != nil || !committed.Load() {
					t.Errorf("round %d: freeze after the commit: %v, %v", round, committed.Load(), err)
				}
				if err == nil {
					ok(t, in.Close())
				}
			})
			others.Go(func() {
				cl, err := nbd.Dial(ctx, nbd.URI{Network: "unix", Address: path, Export: "vol-A"}, nbd.Options{})
				if err != nil || !committed.Load() {
					t.Errorf("round %d: client after the commit: %v, %v", round, committed.Load(), err)
				}
				if err == nil {
					cl.Close()
				}
			})
			time.Sleep(20 * time.Millisecond)
			committed.Store(true)
			return nil
		}))
		others.Wait()
		ok(t, r.Close())
		if n, err := d.Clients(ctx, s); n > 0 || err != nil {
			t.Fatalf("%d clients that have hung up are still there, %v", n, err)
		}
	}
	ok(t, d.Close())
}

// A forced rollback ends connections, and the old name is gone for good.
func TestForcedRollback(t *testing.T) {
	server := nbd.NewServer(nbd.Limits{}, nil)
	path := filepath.Join(t.TempDir(), "nbd.sock")
	stop := serve(t, server, path)
	defer stop()
	f := newForest()
	c := config(foldertest.InMemory(t), f)
	c.Server, c.URIs = server, func(name string) []string { return []string{name} }
	d := open(t, c)
	ctx := t.Context()
	content := bytes.Repeat([]byte("tree"), 1<<18)
	s := volume.Spec{ID: "vol-A", SizeBytes: 1 << 20}
	ok(t, d.Create(ctx, s))
	ok(t, d.Serve(ctx, s))
	uri := func(name string) nbd.URI { return nbd.URI{Network: "unix", Address: path, Export: name} }
	cl, err := nbd.Dial(ctx, uri("vol-A"), nbd.Options{})
	ok(t, err)
	defer cl.Close()
	ok(t, cl.WriteAt(ctx, []byte("client"), 0, 0))
	to, err := f.Open(ctx, f.plant(content))
	ok(t, err)
	defer to.Close()
	if err := roll(ctx, d, s, to, nil, false); !errs.Is(err, errs.Conflict) {
		t.Fatalf("rollback under a client: %v", err)
	}
	ok(t, roll(ctx, d, s, to, nil, true))
	if e, err := d.Exported(ctx, s); err != nil || len(e.URIs) != 0 {
		t.Errorf("served at %q before anybody said so: %v", e.URIs, err)
	}
	ok(t, d.Serve(ctx, s))
	if _, err := nbd.Dial(ctx, uri("vol-A"), nbd.Options{}); err == nil {
		t.Error("the old name takes clients")
	}
	e, err := d.Exported(ctx, s)
	ok(t, err)
	again, err := nbd.Dial(ctx, uri(e.URIs[0]), nbd.Options{})
	ok(t, err)
	got := make([]byte, len(content))
	ok(t, again.ReadAt(ctx, got, 0))
	same(t, "rolled back", got, content)
	again.Close()
	// The server learns of it a moment later. Without force the name stays.
	for err = roll(ctx, d, s, to, nil, false); errs.Is(err, errs.Conflict); err = roll(ctx, d, s, to, nil, false) {
		time.Sleep(time.Millisecond)
	}
	ok(t, err)
	if now, err := d.Exported(ctx, s); err != nil || now.URIs[0] != e.URIs[0] {
		t.Errorf("exported as %q, before as %q: %v", now.URIs, e.URIs, err)
	}
	ok(t, d.unserve(ctx, s))
	ok(t, d.Close())
}

// cloned is a volume whose content is a tree's.
func cloned(t *testing.T, content []byte) (*Driver, *vol, *forest) {
	t.Helper()
	f := newForest()
	d := open(t, config(foldertest.InMemory(t), f))
	s := volume.Spec{ID: "vol-A", SizeBytes: int64(len(content))}
	base, err := f.Open(t.Context(), f.plant(content))
	ok(t, err)
	ok(t, d.Clone(t.Context(), s, base))
	ok(t, base.Close())
	v, err := d.vol(s.ID)
	ok(t, err)
	return d, v, f
}

// roll rolls a volume back as a job does.
func roll(ctx context.Context, d *Driver, s volume.Spec, to, from volume.Tree, force bool) error {
	r, err := d.OpenRoller(ctx, s, force)
	if err != nil {
		return err
	}
	_, err = r.Roll(ctx, to, from)
	return errors.Join(err, r.Close())
}

// A state file that cannot be written to, as on a full disk, costs the write
// that needed it, and no later one.
func TestFullStateFile(t *testing.T) {
	ctx, want := t.Context(), bytes.Repeat([]byte("tree"), 64<<10)
	d, v, _ := cloned(t, want)
	page := bytes.Repeat([]byte("mine"), pageSize/4)
	write := func(off int64) error { return v.write(ctx, change{p: page, off: off, n: pageSize}) }
	ok(t, write(0)) // the region is marked
	whole := v.file.f
	readOnly, err := os.Open(v.file.path)
	ok(t, err)
	v.file.f = readOnly
	if err := write(pageSize); err == nil {
		t.Fatal("a write that cannot be noted is acknowledged")
	}
	if err := v.flush(); err == nil {
		t.Fatal("a flush that cannot be noted is acknowledged")
	}
	v.file.f = whole
	ok(t, readOnly.Close())
	ok(t, write(pageSize))
	ok(t, v.flush())
	copy(want, page)
	copy(want[pageSize:], page)
	// And it is durable: the machine reboots.
	v.f.Close()
	v.file.f.Close()
	c := d.cfg
	c.Boot = "the next"
	d = open(t, c)
	v, err = d.vol(v.id)
	ok(t, err)
	got := make([]byte, len(want))
	ok(t, v.read(ctx, got, 0))
	same(t, "volume", got, want)
	ok(t, d.Close())
}

// Clients write to a clone, in parts of pages too, while it is filled and
// points are taken: none of their bytes is lost to the fill.
func TestFillBesideWriters(t *testing.T) {
	const size = 16 << 20
	ctx, want := t.Context(), make([]byte, size)
	for i := range want {
		want[i] = byte(i>>12) | 1
	}
	d, v, _ := cloned(t, want)
	s := volume.Spec{ID: v.id, SizeBytes: size}
	var all sync.WaitGroup
	const writers = 4
	for w := range writers {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for range 1500 {
				// Sectors of its own in every page.
				off := rng.Int64N(size/pageSize)*pageSize + int64(w)*1024
				p := bytes.Repeat([]byte{byte(0x80 + w)}, 1024)
				if err := v.write(ctx, change{p: p, off: off, n: 1024}); err != nil {
					t.Error(err)
					return
				}
				copy(want[off:], p)
			}
		})
	}
	all.Go(func() {
		for errs.Is(d.Fill(ctx, s, func(context.Context, int64) error { return nil }), errs.Busy) {
			time.Sleep(time.Millisecond)
		}
	})
	for n := range 20 {
		in, err := d.Freeze(ctx, fmt.Sprint(n), []volume.Spec{s}, nil)
		ok(t, err)
		first, second := make([]byte, size), make([]byte, size)
		ok(t, in.Source(0).ReadAt(ctx, first, 0))
		ok(t, in.Source(0).ReadAt(ctx, second, 0))
		same(t, "read again", second, first)
		ok(t, in.Close())
	}
	all.Wait()
	got := make([]byte, size)
	ok(t, v.read(ctx, got, 0))
	same(t, "clone", got, want)
	if ref, err := d.Base(ctx, s); err != nil || ref != "" {
		t.Errorf("base %q, %v", ref, err)
	}
	ok(t, d.Close())
}

// Of a cluster that is partly the tree's, an instant keeps both parts.
func TestFrozenMixedCluster(t *testing.T) {
	ctx, want := t.Context(), bytes.Repeat([]byte("tree"), 64<<10)
	d, v, _ := cloned(t, want)
	s := volume.Spec{ID: v.id, SizeBytes: int64(len(want))}
	write := func(page int64, b byte) {
		t.Helper()
		ok(t, v.write(ctx, change{p: bytes.Repeat([]byte{b}, pageSize), off: page * pageSize, n: pageSize}))
	}
	write(0, 'a')
	write(17, 'a')
	copy(want, bytes.Repeat([]byte{'a'}, pageSize))
	copy(want[17*pageSize:], bytes.Repeat([]byte{'a'}, pageSize))
	in, err := d.Freeze(ctx, "h", []volume.Spec{s}, nil)
	ok(t, err)
	write(0, 'b')
	write(1, 'b')
	got := make([]byte, len(want))
	ok(t, in.Source(0).ReadAt(ctx, got, 0))
	same(t, "instant", got, want)
	ok(t, in.Close())
	ok(t, d.Close())
}
