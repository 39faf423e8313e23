package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/foldertest"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// yields let every goroutine come to where it waits.
const yields = 1000

func yield() {
	for range yields {
		runtime.Gosched()
	}
}

// A sync that runs while a write is about to change the data need not have
// what is written then: the next flush must sync again.
func TestSyncBesideWrite(t *testing.T) {
	ctx, content := t.Context(), bytes.Repeat([]byte("tree"), 64<<10)
	d, v, _ := cloned(t, content)
	ok(t, v.flush())
	v.stripe[0].Lock() // the write stops in front of the data
	written := make(chan error, 1)
	go func() {
		written <- v.write(ctx, change{p: bytes.Repeat([]byte("mine"), pageSize/4), n: pageSize})
	}()
	for !v.dirty.has(0) {
		runtime.Gosched()
	}
	for range yields {
		ok(t, v.syncData())
		runtime.Gosched()
	}
	v.stripe[0].Unlock()
	ok(t, <-written)
	if !v.unsynced.Load() {
		t.Error("a write was acknowledged that no later flush would sync")
	}
	ok(t, d.Close())
}

// Who writes to a cluster that somebody else has just made local appends no
// record of its own. So the cluster may be seen as local only when its record
// is in the state file, or the acknowledged write is lost with the process, and
// the flushed one with the power.
func TestRecordBeforeMap(t *testing.T) {
	const size, at = 4 * clusterSize, 1
	for _, c := range []struct {
		name string
		make func(ctx context.Context, d *Driver, v *vol) error
	}{
		{"read", func(ctx context.Context, _ *Driver, v *vol) error {
			return v.read(ctx, make([]byte, 512), at*clusterSize)
		}},
		{"write of the whole cluster", func(ctx context.Context, _ *Driver, v *vol) error {
			return v.write(ctx, change{p: bytes.Repeat([]byte("hers"), clusterSize/4), off: at * clusterSize, n: clusterSize})
		}},
		{"fill", func(ctx context.Context, d *Driver, v *vol) error {
			return d.Fill(ctx, volume.Spec{ID: v.id, SizeBytes: size}, func(context.Context, int64) error { return nil })
		}},
		{"fill with zeros", func(ctx context.Context, _ *Driver, v *vol) error {
			_, err := v.fillZeros(ctx, v.view.Load(), at)
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			content := bytes.Repeat([]byte("tree"), size/4)
			clear(content[at*clusterSize : (at+1)*clusterSize])
			if c.name != "fill with zeros" {
				content[at*clusterSize] = 1
			}
			d, v, _ := cloned(t, content)
			ctx := t.Context()
			mine := bytes.Repeat([]byte("mine"), pageSize/4)
			ok(t, v.write(ctx, change{p: mine, off: size - pageSize, n: pageSize})) // so that the region is marked
			v.state.Lock()                                                          // nothing can be appended now
			made, written := make(chan error, 1), make(chan error, 1)
			go func() { made <- c.make(ctx, d, v) }()
			for v.gate.TryLock() {
				v.gate.Unlock()
				runtime.Gosched()
			}
			yield()
			go func() {
				written <- v.write(ctx, change{p: mine, off: at * clusterSize, n: pageSize})
			}()
			yield()
			select {
			case err := <-written:
				t.Errorf("acknowledged (%v), while the state file calls the cluster the tree's", err)
				written <- nil
			default:
			}
			v.state.Unlock()
			ok(t, <-made)
			ok(t, <-written)
			ok(t, d.Close())
		})
	}
}

// treeThat does something before it is read.
type treeThat struct {
	volume.Tree
	before func()
}

func (t treeThat) ReadAt(ctx context.Context, p []byte, off int64) error {
	t.before()
	return t.Tree.ReadAt(ctx, p, off)
}

func (t treeThat) Data(ctx context.Context, off int64) (extent.Range, error) {
	t.before()
	return t.Tree.Data(ctx, off)
}

// A cluster that becomes local while somebody asks where data is must not be
// taken for a hole: not in the data file yet, and no longer in the tree.
func TestDataBesideInstall(t *testing.T) {
	const size, at = 4 * clusterSize, 1
	content := make([]byte, size)
	copy(content[at*clusterSize:], bytes.Repeat([]byte("tree"), clusterSize/4))
	for name, ask := range map[string]func(ctx context.Context, d *Driver, v *vol) (extent.Range, error){
		"a client": func(ctx context.Context, _ *Driver, v *vol) (extent.Range, error) {
			found, err := backend{v}.Status(ctx, nil, nbd.BaseAllocation, 0, size, 10)
			for _, e := range found {
				if e.Flags&nbd.Zero == 0 {
					return extent.Range{Off: e.Off, Len: e.Len}, err
				}
			}
			return extent.Range{}, errors.Join(err, io.EOF)
		},
		"a capture": func(ctx context.Context, d *Driver, v *vol) (extent.Range, error) {
			in, err := d.Freeze(ctx, "hold", []volume.Spec{{ID: v.id, SizeBytes: size}}, nil)
			if err != nil {
				return extent.Range{}, err
			}
			r, err := in.Source(0).Data(ctx, 0)
			return r, errors.Join(err, in.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, v, _ := cloned(t, content)
			w := v.view.Load()
			once := false
			w.base = treeThat{w.base, func() {
				if !once {
					once = true
					ok(t, v.localize(t.Context(), w, at))
				}
			}}
			r, err := ask(t.Context(), d, v)
			if err != nil || r.Off > at*clusterSize || r.End() < (at+1)*clusterSize {
				t.Errorf("data is said to be %+v, %v", r, err)
			}
			ok(t, d.Close())
		})
	}
}

// While a volume is filled, clients and captures that leave out what is said to
// be zeros have the whole content.
func TestFillBesideReaders(t *testing.T) {
	const size = 96 * clusterSize
	rng := rand.New(rand.NewPCG(7, 7))
	for range 20 {
		content := make([]byte, size)
		for at := range size / clusterSize {
			if rng.IntN(3) > 0 {
				copy(content[at*clusterSize:], bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, clusterSize))
			}
		}
		d, v, _ := cloned(t, content)
		s := volume.Spec{ID: v.id, SizeBytes: size}
		var all sync.WaitGroup
		done := make(chan struct{})
		for range 3 {
			all.Go(func() {
				for more := true; more; {
					select {
					case <-done:
						more = false // once more, of what is filled
					default:
					}
					readSparse(t, content, func(off int64) (extent.Range, error) { return v.data(t.Context(), v.view.Load(), off) },
						func(p []byte, off int64) error { return backend{v}.ReadAt(t.Context(), p, off) })
				}
			})
		}
		all.Go(func() {
			for n := range 5 {
				in, err := d.Freeze(t.Context(), fmt.Sprint("hold ", n), []volume.Spec{s}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				src := in.Source(0)
				readSparse(t, content, func(off int64) (extent.Range, error) { return src.Data(t.Context(), off) },
					func(p []byte, off int64) error { return src.ReadAt(t.Context(), p, off) })
				if err := in.Close(); err != nil {
					t.Error(err)
				}
			}
		})
		for { // an instant that needs the base keeps a fill from its end
			err := d.Fill(t.Context(), s, func(context.Context, int64) error { return nil })
			if err == nil {
				break
			}
			if !errs.Is(err, errs.Busy) {
				t.Error(err)
				break
			}
			runtime.Gosched()
		}
		close(done)
		all.Wait()
		ok(t, d.Close())
	}
}

// readSparse reads what is called data; the rest must be zeros.
func readSparse(t *testing.T, content []byte, data func(off int64) (extent.Range, error), readAt func(p []byte, off int64) error) {
	t.Helper()
	got := make([]byte, len(content))
	for off := int64(0); off < int64(len(got)); {
		r, err := data(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = readAt(got[r.Off:r.End()], r.Off)
		}
		if err != nil {
			t.Error(err)
			return
		}
		off = r.End()
	}
	if !bytes.Equal(got, content) {
		t.Error("what is called data is not all there is")
	}
}

// Pages that become local while a state file is written anew are not in it:
// its data was synced before they were written.
func TestSaveBesideWrite(t *testing.T) {
	ctx, content := t.Context(), bytes.Repeat([]byte("tree"), clusterSize/2)
	d, v, _ := cloned(t, content)
	page := bytes.Repeat([]byte("mine"), pageSize/4)
	ok(t, v.write(ctx, change{p: page, off: 0, n: pageSize})) // the region is marked, the block of masks there
	v.syncMu.Lock()                                           // the sync goes on
	saved, written := make(chan error, 1), make(chan error, 1)
	go func() {
		v.op.Lock()
		defer v.op.Unlock()
		saved <- v.rewrite(false)
	}()
	for v.state.TryLock() {
		v.state.Unlock()
		runtime.Gosched()
	}
	yield()
	go func() { written <- v.write(ctx, change{p: page, off: pageSize, n: pageSize}) }()
	for v.view.Load().pages.of(0)&2 == 0 {
		runtime.Gosched()
	}
	v.syncMu.Unlock()
	ok(t, <-saved)
	ok(t, <-written)
	c, _, err := readStateFile(d.statePath(v.id), "after a power cut")
	ok(t, err)
	if got := c.pages.of(0); got != 1 {
		t.Errorf("after a power cut pages %#x are called local; the sync was for 0x1", got)
	}
	ok(t, d.Close())
}

// Growing that fails halfway, as on a full disk, leaves a volume that can be
// opened after a crash, and is done by the next try.
func TestGrowFails(t *testing.T) {
	ctx := t.Context()
	const region = regionClusters * clusterSize
	grow := func(t *testing.T) (*Driver, *vol, volume.Spec) {
		d := open(t, config(foldertest.InMemory(t), newForest()))
		s := volume.Spec{ID: "vol-A", SizeBytes: 2 * region}
		ok(t, d.Create(ctx, s))
		v, err := d.vol(s.ID)
		ok(t, err)
		in := d.statePath(v.id) + ".new" // cannot be made
		ok(t, os.Mkdir(in, 0o700))
		if err := d.Grow(ctx, s, 4*region); err == nil {
			t.Fatal("it did not fail")
		}
		ok(t, os.Remove(in))
		return d, v, s
	}
	t.Run("crash", func(t *testing.T) {
		d, v, _ := grow(t)
		for off := int64(0); off < 2*region; off += region { // in order: marks ahead
			ok(t, v.write(ctx, change{p: []byte{1}, off: off, n: 1}))
		}
		ok(t, v.flush())
		_, err := open(t, d.cfg).vol(v.id)
		ok(t, err)
	})
	t.Run("again", func(t *testing.T) {
		d, v, s := grow(t)
		ok(t, d.Grow(ctx, s, 4*region))
		c, _, err := readStateFile(d.statePath(v.id), d.cfg.Boot)
		ok(t, err)
		if c.Size != 4*region {
			t.Errorf("grown to %d, says the state file", c.Size)
		}
	})
}

// A fill that comes to its end, and closes the base, costs no client a request.
func TestFillEndsBesideClients(t *testing.T) {
	content := bytes.Repeat([]byte("tree"), clusterSize)
	for name, do := range map[string]func(ctx context.Context, b backend) error{
		"read":  func(ctx context.Context, b backend) error { return b.ReadAt(ctx, make([]byte, 512), 0) },
		"write": func(ctx context.Context, b backend) error { return b.WriteAt(ctx, make([]byte, 512), 0, 0) },
		"cache": func(ctx context.Context, b backend) error { return b.Cache(ctx, 0, clusterSize) },
		"status": func(ctx context.Context, b backend) error {
			_, err := b.Status(ctx, nil, nbd.BaseAllocation, 0, 4*clusterSize, 9)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, v, _ := cloned(t, content)
			w := v.view.Load()
			inside, real := false, w.base
			w.base = treeThat{real, func() {
				if inside {
					return
				}
				inside = true
				ok(t, d.Fill(t.Context(), volume.Spec{ID: v.id, SizeBytes: int64(len(content))}, func(context.Context, int64) error { return nil }))
			}}
			if err := do(t.Context(), backend{v}); err != nil {
				t.Error(err)
			}
			ok(t, d.Close())
		})
	}
}
