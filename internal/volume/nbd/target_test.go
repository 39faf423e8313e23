package nbdvolume

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

func openTarget(t *testing.T, c *scene) volume.Target {
	t.Helper()
	g, err := c.d.OpenTarget(t.Context(), c.spec)
	ok(t, err)
	t.Cleanup(func() { ok(t, g.Close()) })
	return g
}

// A server that wants whole units of 4 KiB gets them, whatever is written, and
// what lies beside it stays.
func TestTargetKeepsToUnits(t *testing.T) {
	const unit = 4096
	disk := newDisk(16 * unit)
	want := letter('a', 16*unit)
	disk.put(want, 0)
	c := newScene(t, disk, func(c *nbd.ExportConfig) { c.BlockSize = nbd.BlockSize{Min: unit, Preferred: unit, Max: 4 * unit} })
	g := openTarget(t, c)
	disk.onCall(func(_ context.Context, what string, off, length int64) error {
		if off%unit != 0 || length%unit != 0 || what == "write" && (length == 0 || length > 4*unit) {
			t.Errorf("%s of %d bytes at %d", what, length, off)
		}
		return nil
	})
	for i, span := range [][2]int64{
		{0, 16 * unit}, {unit, 3 * unit}, {0, 1}, {100, 200}, {unit - 1, unit + 1}, {unit - 1, 3*unit + 1},
		{0, unit + 1}, {3*unit - 1, 5 * unit}, {16*unit - 1, 16 * unit}, {5, 16*unit - 5}, {7, 7}, {unit, unit}, {0, 0}, {16 * unit, 16 * unit},
	} {
		for _, zero := range []bool{false, true} {
			disk.requested("write")
			disk.requested("zero")
			part := want[span[0]:span[1]]
			if zero {
				clear(part)
				ok(t, g.Zero(t.Context(), span[0], span[1]-span[0]))
			} else {
				copy(part, letter('A'+byte(i), len(part)))
				ok(t, g.WriteAt(t.Context(), part, span[0]))
			}
			if !bytes.Equal(disk.bytes(), want) {
				t.Fatalf("span %v, zero %v: the disk differs", span, zero)
			}
			if n := disk.requested("write") + disk.requested("zero"); len(part) == 0 && n > 0 {
				t.Errorf("for no bytes %d were written", n)
			}
			got := make([]byte, len(part))
			ok(t, g.ReadAt(t.Context(), got, span[0]))
			if !bytes.Equal(got, part) {
				t.Errorf("span %v reads another way than it was written", span)
			}
		}
	}
	ok(t, g.Sync(t.Context()))
}

// Parts of one unit may be written at the same time.
func TestTargetSharesUnits(t *testing.T) {
	const unit, part = 4096, 512
	disk := newDisk(4 * unit)
	c := newScene(t, disk, func(c *nbd.ExportConfig) { c.BlockSize.Min = unit })
	g := openTarget(t, c)
	want := make([]byte, 4*unit)
	var all sync.WaitGroup
	for i := range len(want) / part {
		buf := want[i*part : (i+1)*part]
		if i%3 > 0 {
			copy(buf, letter(byte(i+1), part))
		}
		all.Go(func() {
			if i%3 == 0 {
				ok(t, g.Zero(t.Context(), int64(i*part), part))
			} else {
				ok(t, g.WriteAt(t.Context(), buf, int64(i*part)))
			}
		})
	}
	all.Wait()
	if !bytes.Equal(disk.bytes(), want) {
		t.Error("a part was lost")
	}
}

// A server that cannot zero, or says so late, gets zeros written.
func TestTargetZeroesWithoutZeroing(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*nbd.ExportConfig)
		answer error
		asked  bool
	}{
		"not offered":   {func(c *nbd.ExportConfig) { c.CanZero = false }, nil, false},
		"not supported": {nil, nbd.ENOTSUP, true},
		"invalid":       {nil, nbd.EINVAL, true},
	} {
		t.Run(name, func(t *testing.T) {
			disk := newDisk(8 * mib)
			disk.put(letter('a', 8*mib), 0)
			c := newScene(t, disk, tt.change)
			g := openTarget(t, c)
			asked := 0
			disk.onCall(func(_ context.Context, what string, _, _ int64) error {
				if what == "zero" {
					asked++
					return tt.answer
				}
				return nil
			})
			want := disk.bytes()
			clear(want[100 : 5*mib])
			ok(t, g.Zero(t.Context(), 100, 3*mib))
			ok(t, g.Zero(t.Context(), 3*mib, 2*mib))
			ok(t, g.Sync(t.Context()))
			if !bytes.Equal(disk.bytes(), want) {
				t.Error("the disk differs")
			}
			if (asked == 1) != tt.asked {
				t.Errorf("it was asked %d times", asked)
			}
		})
	}
}

// What cannot be written durably is not written at all, and what is known of
// changes stays then.
func TestTargetIsRefused(t *testing.T) {
	t.Run("read-only", func(t *testing.T) {
		c := newTracked(t, "cairn-a")
		c.point("p1")
		ok(t, c.exp.Remove(t.Context()))
		c.cfg.ReadOnly = true
		c.exp = c.s.add(c.cfg, c.disk)
		_, err := c.d.OpenTarget(t.Context(), c.spec)
		wantKind(t, err, errs.Conflict, "volume vol-1", "serve it for writing")
		c.write(1)
		c.wantChanges("p1", 1)
	})
	t.Run("no flush", func(t *testing.T) {
		old := newPlainServer(t, mib)
		d := newDriver(t, t.TempDir())
		spec := register(t, d, "vol-1", old.at.String())
		_, err := d.OpenTarget(t.Context(), spec)
		wantKind(t, err, errs.Conflict, "volume vol-1", "no flush")
		// It can be read all the same.
		in := freeze(t, d, spec)
		if got := contentOf(t, in.Source(0)); !bytes.Equal(got, make([]byte, mib)) {
			t.Error("it does not read as zeros")
		}
		ok(t, in.Check(t.Context()))
	})
	t.Run("a flush that fails", func(t *testing.T) {
		disk := newDisk(mib)
		c := newScene(t, disk, nil)
		disk.onCall(func(_ context.Context, what string, _, _ int64) error {
			if what == "flush" {
				return nbd.EIO
			}
			return nil
		})
		_, err := c.d.OpenTarget(t.Context(), c.spec)
		wantKind(t, err, errs.Unavailable, "volume vol-1", "failed to flush")
		disk.onCall(nil)
		ok(t, openTarget(t, c).Sync(t.Context())) // nothing was kept
	})
	t.Run("outside", func(t *testing.T) {
		g := openTarget(t, newScene(t, newDisk(mib), nil))
		for _, off := range []int64{-1, mib, 1<<63 - 1} {
			if g.WriteAt(t.Context(), []byte{1}, off) == nil || g.Zero(t.Context(), off, 1) == nil || g.ReadAt(t.Context(), []byte{1}, off) == nil {
				t.Errorf("a byte at %d was allowed", off)
			}
		}
		if g.Zero(t.Context(), 0, -1) == nil {
			t.Error("a negative length was allowed")
		}
		ok(t, g.Sync(t.Context())) // it latches nothing
	})
}

// After a change failed, or its outcome is not known, no Sync ever succeeds on
// this target; on the next one it may.
func TestTargetLatchesFailures(t *testing.T) {
	fail := func(what string, with error) func(c *scene) {
		return func(c *scene) {
			c.disk.onCall(func(_ context.Context, w string, _, _ int64) error {
				if w == what {
					return with
				}
				return nil
			})
		}
	}
	write := func(ctx context.Context, g volume.Target) error { return g.WriteAt(ctx, letter('b', 8192), 100) }
	zero := func(ctx context.Context, g volume.Target) error { return g.Zero(ctx, 100, 8192) }
	flush := func(ctx context.Context, g volume.Target) error {
		if err := write(ctx, g); err != nil {
			return errors.Join(errs.New(errs.Internal, "too early"), err)
		}
		return g.Sync(ctx)
	}
	for name, tt := range map[string]struct {
		arrange func(c *scene)
		do      func(ctx context.Context, g volume.Target) error
		kind    errs.Kind
		says    string
	}{
		"a write":                       {fail("write", nbd.EIO), write, errs.Unavailable, "failed to write"},
		"a write for lack of space":     {fail("write", nbd.ENOSPC), write, errs.Full, "free some there"},
		"a write that is forbidden":     {fail("write", nbd.EPERM), write, errs.Denied, "does not allow to write"},
		"a zeroing":                     {fail("zero", nbd.EIO), zero, errs.Unavailable, "failed to zero"},
		"a flush":                       {fail("flush", nbd.EIO), flush, errs.Unavailable, "failed to flush"},
		"reading the rest of a unit":    {fail("read", nbd.EIO), write, errs.Unavailable, "failed to read"},
		"the connection before a flush": {func(c *scene) { c.hangUpAt("flush") }, flush, errs.Unavailable, "failed to flush"},
		"the connection in a write":     {func(c *scene) { c.hangUpAt("write") }, write, errs.Unavailable, "failed to write"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newScene(t, newDisk(mib), func(c *nbd.ExportConfig) { c.BlockSize.Min = 4096 })
			g := openTarget(t, c)
			ok(t, write(t.Context(), g))
			ok(t, g.Sync(t.Context()))
			tt.arrange(c)
			wantKind(t, tt.do(t.Context(), g), tt.kind, "volume vol-1", tt.says)
			c.disk.onCall(nil)
			for what, err := range map[string]error{
				"Sync": g.Sync(t.Context()), "Sync again": g.Sync(t.Context()),
				"WriteAt": write(t.Context(), g), "Zero": zero(t.Context(), g),
			} {
				if !errs.Is(err, tt.kind) {
					t.Errorf("%s afterwards: %v", what, err)
				}
			}
			ok(t, g.Close())
			g = openTarget(t, c)
			ok(t, errors.Join(write(t.Context(), g), g.Sync(t.Context())))
		})
	}
}

// A write that its caller gave up may still be done, so it counts as failed;
// one that had not begun does not.
func TestTargetGivenUp(t *testing.T) {
	disk := newDisk(mib)
	g := openTarget(t, newScene(t, disk, nil))
	ctx, cancel := context.WithCancelCause(t.Context())
	tired, release := errors.New("tired"), make(chan struct{})
	disk.onCall(func(_ context.Context, what string, _, _ int64) error {
		if what == "write" {
			cancel(tired)
			<-release
		}
		return nil
	})
	err := g.WriteAt(ctx, []byte("x"), 0)
	close(release)
	if !errors.Is(err, tired) {
		t.Errorf("WriteAt: %v", err)
	}
	disk.onCall(nil)
	wantKind(t, g.Sync(t.Context()), errs.Unavailable, "volume vol-1", "overwrite it again")
}

// A record of tracking is gone before anything is written, also if what is
// written shows in no bitmap.
func TestTargetForgetsTracking(t *testing.T) {
	c := newTracked(t, "cairn-a")
	c.point("p1")
	if _, err := os.Stat(c.d.recordPath("vol-1")); err != nil {
		t.Fatal(err)
	}
	g := openTarget(t, c)
	written := 0
	c.disk.onCall(func(_ context.Context, what string, _, _ int64) error {
		if what == "write" {
			written++
			if _, err := os.Stat(c.d.recordPath("vol-1")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the record at the first write: %v", err)
			}
		}
		return nil
	})
	ok(t, errors.Join(g.WriteAt(t.Context(), letter('x', mib), 0), g.Sync(t.Context()), g.Close()))
	if written == 0 {
		t.Error("nothing was written")
	}
	c.disk.onCall(nil)
	c.wantNoBase("p1")
	c.point("p2")
	c.write(1)
	if _, err := c.changed("p2"); err != nil {
		t.Error(err)
	}
}

// Data never calls a hole what was written meanwhile, though a whole page of
// answers is remembered.
func TestTargetDataBesideWrites(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	disk := newDisk(4 * mib)
	g := openTarget(t, newScene(t, disk, nil))
	written := make([]bool, 1024)
	for range 200 {
		page := r.IntN(len(written))
		ok(t, g.WriteAt(t.Context(), []byte{1}, int64(page*4096+r.IntN(4096))))
		written[page] = true
		for from, n := r.IntN(len(written)), 0; n < 3; n++ {
			at, err := g.Data(t.Context(), int64(from*4096))
			next := len(written)
			if err == nil {
				next = int(at.Off / 4096)
			}
			for p := from; p < next; p++ {
				if written[p] {
					t.Fatalf("page %d is called a hole", p)
				}
			}
			if from = next + 1; from >= len(written) {
				break
			}
		}
	}
	if _, err := g.Data(t.Context(), -1); err == nil {
		t.Error("data before the beginning")
	}
}
