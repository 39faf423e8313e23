package nbdvolume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

const mib = 1 << 20

// letter is n bytes of the same.
func letter(c byte, n int) []byte { return bytes.Repeat([]byte{c}, n) }

// scene is a volume on a server, and an instant of it if one is frozen.
type scene struct {
	t    *testing.T
	s    *server
	disk *disk
	cfg  nbd.ExportConfig
	exp  *nbd.Export
	d    *Driver
	spec volume.Spec
}

// newScene serves a disk as vol-1, after change had its way.
func newScene(t *testing.T, disk *disk, change func(*nbd.ExportConfig)) *scene {
	t.Helper()
	c := &scene{t: t, s: serve(t), disk: disk, cfg: exported("x", disk), d: newDriver(t, t.TempDir())}
	if change != nil {
		change(&c.cfg)
	}
	c.exp = c.s.add(c.cfg, disk)
	c.spec = register(t, c.d, "vol-1", c.s.uri("x"))
	return c
}

// reserve serves the disk as it is now, with the bitmaps that it has now.
func (c *scene) reserve() {
	c.t.Helper()
	ok(c.t, c.exp.Remove(c.t.Context()))
	c.cfg = exported(c.cfg.Name, c.disk)
	c.exp = c.s.add(c.cfg, c.disk)
}

// Whatever another client of the server does between Freeze and Check is
// noticed, if it shows in anything that was looked at.
func TestChangesAreNoticed(t *testing.T) {
	// full is 8 MiB of data in a hole of 16.
	full := func(bitmap ...string) *disk {
		d := newDisk(16 * mib)
		d.put(letter('a', 8*mib), 0)
		for _, name := range bitmap {
			d.bitmap(name)
		}
		return d
	}
	for name, tt := range map[string]struct {
		disk   *disk
		change func(c *scene)
	}{
		"a mark in a bitmap": {full("any"), func(c *scene) { c.disk.put(letter('a', 1), 3*mib) }},
		"a mark in one bitmap of three": {full("x", "y", "z"), func(c *scene) {
			c.disk.unbitmap("y", "")
			c.disk.put(letter('a', 1), 3*mib)
			c.disk.bitmap("y")
		}},
		"a bitmap cleared": {func() *disk {
			d := full("any")
			d.put(letter('a', 1), 0)
			return d
		}(), func(c *scene) { c.disk.bitmap("any") }},
		"a bitmap more": {full(), func(c *scene) {
			c.disk.bitmap("new")
			c.reserve()
		}},
		"a bitmap less": {full("any"), func(c *scene) {
			c.disk.unbitmap("any", "")
			c.reserve()
		}},
		"another bitmap": {full("any"), func(c *scene) {
			c.disk.unbitmap("any", "")
			c.disk.bitmap("new")
			c.reserve()
		}},
		"data in a hole": {full(), func(c *scene) { c.disk.put([]byte{1}, 12*mib+5) }},
		"the last byte of much that became allocated": {full(), func(c *scene) {
			c.disk.put(make([]byte, 3*mib), 9*mib)
			c.disk.put([]byte{1}, 12*mib-1)
		}},
		"data gone":       {full(), func(c *scene) { c.disk.punch(3*mib, 4096) }},
		"the first block": {full(), func(c *scene) { c.disk.put([]byte{1}, 0) }},
		"the 16th block":  {full(), func(c *scene) { c.disk.put([]byte{1}, 16*4096-1) }},
		"the last block": {func() *disk {
			d := full()
			d.put([]byte{7}, 16*mib-1)
			return d
		}(), func(c *scene) { c.disk.put([]byte{8}, 16*mib-1) }},
		"grown":  {full(), func(c *scene) { ok(c.t, c.exp.SetSize(17*mib)) }},
		"shrunk": {full(), func(c *scene) { ok(c.t, c.exp.SetSize(15*mib)) }},
	} {
		t.Run(name, func(t *testing.T) {
			c := newScene(t, tt.disk, nil)
			in := freeze(t, c.d, c.spec)
			ok(t, in.Check(t.Context()))
			tt.change(c)
			wantChanged(t, in.Check(t.Context()), "vol-1")
			wantChanged(t, in.Check(t.Context()), "vol-1") // and it stays so
		})
	}
}

// Of a volume of up to 1 MiB every byte is compared, whatever the server tells.
func TestSmallVolumesAreComparedWhole(t *testing.T) {
	for _, size := range []int64{1, 4095, 4097, 999_999, mib} {
		disk := newDisk(size)
		disk.put(letter('a', int(size)), 0)
		c := newScene(t, disk, func(c *nbd.ExportConfig) { c.Contexts = nil })
		in := freeze(t, c.d, c.spec)
		var seen []extent.Range
		for _, sample := range in.Source(0).(*source).before.samples {
			seen = append(seen, sample.at)
		}
		if all := extent.Normalize(seen); len(all) != 1 || all[0] != (extent.Range{Len: size}) {
			t.Fatalf("of %d bytes, %v are compared", size, all)
		}
		for _, at := range []int64{0, size / 3, size / 2, size - 1} {
			disk.put([]byte{'b'}, at)
			wantChanged(t, in.Check(t.Context()), "vol-1")
			disk.put([]byte{'a'}, at)
		}
		ok(t, in.Check(t.Context()))
	}
}

// Blocks of a larger volume are chosen at random, but only among its data: a
// change of all of them cannot be missed.
func TestLargeVolumesAreSampled(t *testing.T) {
	disk := newDisk(64 * mib)
	disk.put(letter('a', 4*mib), 32*mib)
	c := newScene(t, disk, nil)
	disk.requested("read")
	in := freeze(t, c.d, c.spec)
	if n := disk.requested("read"); n > sampleBlocks*sampleBlock || n < (sampleBlocks-8)*sampleBlock {
		t.Errorf("%d bytes were read for samples", n)
	}
	disk.put(letter('b', 4*mib), 32*mib)
	wantChanged(t, in.Check(t.Context()), "vol-1")
}

// What is merely allocated and reads as zeros is no change, and neither is
// what shows nowhere.
func TestNoChange(t *testing.T) {
	disk := newDisk(16 * mib)
	disk.put(letter('a', mib), mib)
	disk.put(letter('a', mib), 5*mib)
	c := newScene(t, disk, nil)
	in := freeze(t, c.d, c.spec)
	disk.put(make([]byte, 3*mib), 2*mib)  // between two that were there
	disk.put(make([]byte, 4096), 0)       // alone
	disk.put(make([]byte, 3*mib), 13*mib) // at the end
	disk.put(letter('a', mib), mib)       // the same once more
	ok(t, in.Check(t.Context()))
	want := disk.bytes()
	got := make([]byte, len(want))
	ok(t, in.Source(0).ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got, want) {
		t.Error("the source differs from the disk")
	}
}

// A volume in so many shreds that only their hash is remembered.
func TestShreds(t *testing.T) {
	disk := newDisk(16 * mib)
	for b := int64(0); b < 16*mib/4096; b += 2 {
		disk.put([]byte{1}, b*4096)
	}
	c := newScene(t, disk, nil)
	in := freeze(t, c.d, c.spec)
	src := in.Source(0).(*source)
	src.before.data.whole, src.before.data.edges = false, nil
	n := 0
	for off := int64(0); ; n++ {
		r, err := src.Data(t.Context(), off)
		if errors.Is(err, io.EOF) {
			break
		}
		ok(t, err)
		if r.Off%8192 != 0 || r.Len != 4096 {
			t.Fatalf("data at %v", r)
		}
		off = r.End()
	}
	if n != 16*mib/8192 {
		t.Errorf("%d ranges of data", n)
	}
	ok(t, in.Check(t.Context()))
	disk.put(make([]byte, 4096), 8*mib+4096) // zeros, but nobody remembers what was there
	wantChanged(t, in.Check(t.Context()), "vol-1")
}

// What is written while the driver looks is in the instant, or a change.
func TestWrittenDuringTheLook(t *testing.T) {
	for _, at := range []string{nbd.BaseAllocation, bitmaps + "b", "read"} {
		for _, off := range []int64{0, 6 * mib} {
			t.Run(fmt.Sprintf("%s %d", at, off), func(t *testing.T) {
				disk := newDisk(8 * mib)
				disk.put(letter('a', mib), 0)
				disk.bitmap("b")
				c := newScene(t, disk, nil)
				var once atomic.Bool
				disk.onCall(func(_ context.Context, what string, _, _ int64) error {
					if what == at && !once.Swap(true) {
						disk.put(letter('b', 4096), off)
					}
					return nil
				})
				in := freeze(t, c.d, c.spec)
				got := contentOf(t, in.Source(0))
				if err := in.Check(t.Context()); err == nil && !bytes.Equal(got, disk.bytes()) {
					t.Error("Check lets a mixture pass")
				} else if err != nil {
					wantChanged(t, err, "vol-1")
				}
			})
		}
	}
}

// contentOf is what a source shows to one who reads only what may be data.
func contentOf(t tester, src volume.Source) []byte {
	t.Helper()
	return overlay(t, src, make([]byte, src.Size()), func(off int64) (extent.Range, error) { return src.Data(t.Context(), off) })
}

// overlay reads over base what next lists.
func overlay(t tester, src volume.Source, base []byte, next func(off int64) (extent.Range, error)) []byte {
	t.Helper()
	for off := int64(0); ; {
		r, err := next(off)
		if errors.Is(err, io.EOF) {
			return base
		}
		ok(t, err)
		if r.Off < off || r.Len <= 0 || r.End() > int64(len(base)) {
			t.Fatalf("range %v after %d of %d", r, off, len(base))
		}
		ok(t, src.ReadAt(t.Context(), base[r.Off:r.End()], r.Off))
		off = r.End()
	}
}

// Several volumes are one instant: a change of any of them fails it, and says
// which it was.
func TestInstantOfSeveral(t *testing.T) {
	s, d := serve(t), newDriver(t, t.TempDir())
	var disks []*disk
	var specs []volume.Spec
	for i := range 3 {
		disk, name := newDisk(mib), fmt.Sprint(i)
		s.add(exported(name, disk), disk)
		disks = append(disks, disk)
		specs = append(specs, register(t, d, "vol-"+name, s.uri(name)))
	}
	for i, disk := range disks {
		before := time.Now()
		var within time.Time
		in, err := d.Freeze(t.Context(), "job-1", specs, func(context.Context) error {
			within = time.Now()
			return nil
		})
		ok(t, err)
		if in.Time().Before(before) || in.Time().After(within) || in.Durable() {
			t.Errorf("instant of %v between %v and %v, durable %v", in.Time(), before, within, in.Durable())
		}
		ok(t, in.Check(t.Context()))
		disk.put(letter('b', 1), 0)
		wantChanged(t, in.Check(t.Context()), fmt.Sprint("vol-", i))
		ok(t, in.Close())
	}
	// One that cannot be had keeps none of the others.
	other := hasty(t)
	gone := specs[2]
	gone.Path = strings.Replace(gone.Path, "/2?", "/none?", 1)
	gone.Identity = "nbd:" + gone.Path
	_, err := other.Freeze(t.Context(), "job-1", []volume.Spec{specs[0], specs[1], gone}, nil)
	wantKind(t, err, errs.NotFound, "volume vol-2", "put it back")
	for _, spec := range specs[:2] {
		in, err := other.Freeze(t.Context(), "job-1", []volume.Spec{spec}, nil)
		ok(t, err)
		ok(t, in.Close())
	}
	if _, err := other.Freeze(t.Context(), "job-1", nil, nil); errs.KindOf(err) != errs.Internal {
		t.Errorf("an instant of nothing: %v", err)
	}
}

func TestTwoInstantsOfOneVolume(t *testing.T) {
	c := newScene(t, newDisk(mib), nil)
	link := filepath.Join(shortDir(t), "l")
	ok(t, os.Symlink(c.s.at.Address, link))
	// Registered twice, which the service would refuse.
	twin := register(t, c.d, "vol-2", nbd.URI{Network: "unix", Address: link, Export: "x"}.String()+"&cairn-bitmaps=trust")
	in := freeze(t, c.d, c.spec)
	for _, spec := range []volume.Spec{c.spec, twin} {
		_, err := c.d.Freeze(t.Context(), "job-2", []volume.Spec{spec}, nil)
		wantKind(t, err, errs.Busy, "volume "+spec.ID, "please try later")
		_, err = c.d.OpenTarget(t.Context(), spec)
		wantKind(t, err, errs.Busy, "volume "+spec.ID, "please try later")
	}
	_, err := c.d.Freeze(t.Context(), "job-2", []volume.Spec{c.spec, twin}, nil)
	wantKind(t, err, errs.Busy)
	_, err = c.d.Freeze(t.Context(), "job-1", []volume.Spec{c.spec}, nil)
	wantKind(t, err, errs.Conflict, "job-1")
	ok(t, in.Close())
	in, err = c.d.Freeze(t.Context(), "job-1", []volume.Spec{twin}, nil)
	ok(t, err)
	ok(t, in.Close())
}

// Who waits for a volume gets it when it is let go, or gives up with its ctx.
func TestWaitForAVolume(t *testing.T) {
	c := newScene(t, newDisk(mib), nil)
	in := freeze(t, c.d, c.spec)
	ctx, cancel := context.WithCancelCause(t.Context())
	tired := errors.New("tired")
	cancel(tired)
	at, err := locate(c.spec)
	ok(t, err)
	if err := c.d.claim(ctx, at); !errors.Is(err, tired) {
		t.Errorf("claim: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- c.d.claim(t.Context(), at) }()
	ok(t, in.Close())
	ok(t, <-done)
	c.d.unclaim(at)
}

// Drop ends an open instant, also one whose server never answers.
func TestDrop(t *testing.T) {
	disk := newDisk(mib)
	c := newScene(t, disk, nil)
	in, err := c.d.Freeze(t.Context(), "job-1", []volume.Spec{c.spec}, func(ctx context.Context) error {
		wantKind(t, c.d.Drop(ctx, "job-1"), errs.Busy, "job-1")
		return nil
	})
	ok(t, err)
	stuck, release := make(chan struct{}), make(chan struct{})
	disk.onCall(func(_ context.Context, what string, _, _ int64) error {
		if what == "read" {
			close(stuck)
			select {
			case <-t.Context().Done(): // of a test that failed
			case <-release:
			}
		}
		return nil
	})
	done := make(chan error, 1)
	go func() { done <- in.Source(0).ReadAt(t.Context(), make([]byte, 10), 0) }()
	<-stuck
	ok(t, c.d.Drop(t.Context(), "job-1"))
	if err := <-done; !errors.Is(err, nbd.ErrClosed) {
		t.Errorf("a read under way: %v", err)
	}
	close(release)
	disk.onCall(nil)
	if err := in.Source(0).ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err, nbd.ErrClosed) {
		t.Errorf("a read afterwards: %v", err)
	}
	if err := in.Check(t.Context()); !errors.Is(err, nbd.ErrClosed) {
		t.Errorf("Check afterwards: %v", err)
	}
	ok(t, in.Close())
	ok(t, c.d.Drop(t.Context(), "job-1"))
	if _, err := c.d.Reopen(t.Context(), "job-1", []volume.Spec{c.spec}); !errors.Is(err, volume.ErrNoInstant) {
		t.Errorf("Reopen: %v", err)
	}
	ok(t, freeze(t, c.d, c.spec).Close())
}

// A server that takes one client at a time may not have noticed that the one
// before has gone: then its refusal is no answer.
func TestOneClientAtATime(t *testing.T) {
	for name, use := range map[string]func(c *scene) error{
		"Probe": func(c *scene) error {
			_, err := c.d.Probe(c.t.Context(), c.spec.Path)
			return err
		},
		"Size": func(c *scene) error {
			_, err := c.d.Size(c.t.Context(), c.spec)
			return err
		},
		"Freeze": func(c *scene) error {
			in, err := c.d.Freeze(c.t.Context(), "job-1", []volume.Spec{c.spec}, nil)
			if err != nil {
				return err
			}
			return errors.Join(in.Check(c.t.Context()), in.Close())
		},
		"OpenTarget": func(c *scene) error {
			g, err := c.d.OpenTarget(c.t.Context(), c.spec)
			if err != nil {
				return err
			}
			return errors.Join(g.Sync(c.t.Context()), g.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newScene(t, newDisk(mib), func(c *nbd.ExportConfig) { c.MultiConn, c.MaxConnections = false, 1 })
			before := c.holdTheOnlyPlace()
			c.s.after(2, func() { ok(t, before.Close()) }) // the second comes when the first was refused
			ok(t, use(c))

			before = c.holdTheOnlyPlace()
			c.d = hasty(t)
			err := use(c)
			ok(t, before.Close())
			wantKind(t, err, errs.Denied)
		})
	}
}

// holdTheOnlyPlace is another client of the server.
func (c *scene) holdTheOnlyPlace() *nbd.Client {
	c.t.Helper()
	at, err := locate(c.spec)
	ok(c.t, err)
	for {
		other, err := nbd.Dial(c.t.Context(), at.uri, nbd.Options{})
		if errs.Is(err, errs.Denied) {
			continue // the server has not noticed yet that the last one went
		}
		ok(c.t, err)
		return other
	}
}

// Check makes its connection anew while the server still has the old one.
func TestCheckWithOneClientAtATime(t *testing.T) {
	disk := newDisk(mib)
	c := newScene(t, disk, func(c *nbd.ExportConfig) { c.MultiConn, c.MaxConnections = false, 1 })
	in := freeze(t, c.d, c.spec)
	stuck, release := make(chan struct{}), make(chan struct{})
	disk.onCall(func(_ context.Context, what string, _, _ int64) error {
		if what == "read" {
			close(stuck)
			select {
			case <-t.Context().Done(): // of a test that failed
			case <-release:
			} // so long the connection stays
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- in.Source(0).ReadAt(ctx, make([]byte, 10), 0) }()
	<-stuck
	disk.onCall(nil)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("the read: %v", err)
	}
	c.s.after(2, func() { close(release) })
	ok(t, in.Check(t.Context()))
	if n, err := c.d.Size(t.Context(), c.spec); err != nil || n != mib { // we have the only place
		t.Errorf("Size says %d, %v", n, err)
	}
}
