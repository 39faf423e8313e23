package volumetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/volume"
)

func testCapabilities(t *testing.T, h Harness) {
	caps := h.Driver.Capabilities()
	s := h.New(t, mib)
	n := size(t, h, s)
	if !caps.CreateVolumes {
		ctx := t.Context()
		refused(t, h.Driver.Create(ctx, s), errs.Conflict, errs.Invalid)
		refused(t, h.Driver.Grow(ctx, s, n+mib), errs.Conflict, errs.Invalid)
		refused(t, h.Driver.Remove(ctx, s), errs.Conflict, errs.Invalid)
		if got := size(t, h, s); got != n {
			t.Fatalf("a refused call changed the size from %d to %d", n, got)
		}
	}
	if !caps.Register {
		_, err := h.Driver.Probe(t.Context(), "/dev/null")
		refused(t, err, errs.Invalid)
		return
	}
	path, want := h.Path(t)
	p, err := h.Driver.Probe(t.Context(), path)
	ok(t, err)
	again, err := h.Driver.Probe(t.Context(), path)
	ok(t, err)
	if p.SizeBytes != want || p.Identity == "" || p.Path == "" || p != again {
		t.Fatalf("Probe(%s) = %+v, then %+v; size must be %d", path, p, again, want)
	}
}

func testLifecycle(t *testing.T, h Harness) {
	if !h.Driver.Capabilities().CreateVolumes {
		t.Log("not asked: this driver does not create volumes")
		return
	}
	ctx := t.Context()
	s := h.New(t, mib)
	data := noise(t, mib)
	edit(t, h, s, func(g volume.Target) { ok(t, g.WriteAt(ctx, data, 0)) })

	ok(t, h.Driver.Grow(ctx, s, 3*mib))
	ok(t, h.Driver.Grow(ctx, s, 3*mib))
	grown := append(bytes.Clone(data), make([]byte, 2*mib)...)
	in := freeze(t, h, "grown", s)
	same(t, "grown volume", readAll(t, in.Source(0)), grown)
	dataCovers(t, in.Source(0), grown)
	ok(t, in.Close())

	refused(t, h.Driver.Grow(ctx, s, mib), errs.Invalid, errs.Conflict)
	if got := size(t, h, s); got != 3*mib {
		t.Fatalf("a refused shrink left %d bytes", got)
	}

	s.SizeBytes = 2 * mib
	ok(t, h.Driver.Create(ctx, s))
	in = freeze(t, h, "created", s)
	same(t, "volume created over a leftover", readAll(t, in.Source(0)), make([]byte, 2*mib))
	ok(t, in.Close())

	ok(t, h.Driver.Remove(ctx, s))
	ok(t, h.Driver.Remove(ctx, s))
	_, err := h.Driver.Size(ctx, s)
	refused(t, err, errs.NotFound)
}

func testAbsent(t *testing.T, h Harness) {
	ctx := t.Context()
	s := h.Absent(t)
	_, err := h.Driver.Size(ctx, s)
	refused(t, err, errs.NotFound)
	_, err = h.Driver.Freeze(ctx, "absent", []volume.Spec{s}, nil)
	refused(t, err, errs.NotFound)
	_, err = h.Driver.OpenTarget(ctx, s)
	refused(t, err, errs.NotFound)
	ok(t, h.Driver.Drop(ctx, "absent"))
}

func testFreshIsZero(t *testing.T, h Harness) {
	s := h.New(t, mib)
	in := freeze(t, h, "fresh", s)
	src := in.Source(0)
	if src.Size() != size(t, h, s) {
		t.Fatalf("source has %d bytes, volume %d", src.Size(), size(t, h, s))
	}
	zeros := make([]byte, src.Size())
	same(t, "fresh volume", readAll(t, src), zeros)
	dataCovers(t, src, zeros)
	if in.Time().IsZero() {
		t.Fatal("the instant has no time")
	}
	if _, err := src.Changed(t.Context(), "none", 0); !h.Driver.Capabilities().Tracking && !errors.Is(err, volume.ErrNoBase) {
		t.Fatalf("Changed without tracking: %v, want ErrNoBase", err)
	}
	if rs, err := src.Audit(t.Context(), "none"); !h.Driver.Capabilities().Tracking && (err != nil || len(rs) > 0) {
		t.Fatalf("Audit without tracking: %v, %v", rs, err)
	}
	ok(t, in.Check(t.Context()))
}

func testBounds(t *testing.T, h Harness) {
	ctx := t.Context()
	s := h.New(t, mib)
	n := size(t, h, s)
	buf := make([]byte, 512)
	edit(t, h, s, func(g volume.Target) {
		if g.Size() != n {
			t.Fatalf("target has %d bytes, volume %d", g.Size(), n)
		}
		for _, off := range []int64{-1, n - 511, n, n + 4096, 1<<63 - 100} {
			if g.WriteAt(ctx, buf, off) == nil || g.ReadAt(ctx, buf, off) == nil || g.Zero(ctx, off, 512) == nil {
				t.Fatalf("512 bytes at %d of %d were allowed", off, n)
			}
		}
		ok(t, g.Zero(ctx, n, 0))
		ok(t, g.WriteAt(ctx, noise(t, 512), n-512)) // a refused range latches nothing
		if _, err := g.Data(ctx, n); !errors.Is(err, io.EOF) {
			t.Fatalf("Data at the end: %v, want io.EOF", err)
		}
	})
	if got := size(t, h, s); got != n {
		t.Fatalf("the volume has %d bytes now, had %d", got, n)
	}
	in := freeze(t, h, "bounds", s)
	for _, off := range []int64{-1, n - 511, n} {
		if in.Source(0).ReadAt(ctx, buf, off) == nil {
			t.Fatalf("a source read 512 bytes at %d of %d", off, n)
		}
	}
	if _, err := in.Source(0).Data(ctx, n); !errors.Is(err, io.EOF) {
		t.Fatalf("Data at the end: %v, want io.EOF", err)
	}
}

// testZeroAndHoles zeroes spans round every kind of edge and looks at what
// stays.
func testZeroAndHoles(t *testing.T, h Harness) {
	ctx := t.Context()
	s := h.New(t, mib)
	n := size(t, h, s)
	want := noise(t, n)
	edit(t, h, s, func(g volume.Target) { ok(t, g.WriteAt(ctx, want, 0)) })
	edit(t, h, s, func(g volume.Target) {
		for _, z := range [][2]int64{
			{0, 1}, {511, 2}, {4096, 4096}, {12288 - 1, 4096 + 2}, {20000, 100},
			{65536, 65536}, {196608 - 512, 131072 + 1024}, {n - 65536 - 1, 65537}, {500000, 0},
		} {
			ok(t, g.Zero(ctx, z[0], z[1]))
			clear(want[z[0] : z[0]+z[1]])
		}
		same(t, "target after Zero", readAll(t, g), want)
		dataCovers(t, g, want)
	})
	in := freeze(t, h, "zeroed", s)
	same(t, "source after Zero", readAll(t, in.Source(0)), want)
	dataCovers(t, in.Source(0), want)
	ok(t, in.Close())
	edit(t, h, s, func(g volume.Target) {
		ok(t, g.Zero(ctx, 0, n))
		clear(want)
		same(t, "target zeroed whole", readAll(t, g), want)
		dataCovers(t, g, want)
	})
}

func testTargetIsExclusive(t *testing.T, h Harness) {
	ctx := t.Context()
	s := h.New(t, mib)
	g, err := h.Driver.OpenTarget(ctx, s)
	ok(t, err)
	_, err = h.Driver.OpenTarget(ctx, s)
	refused(t, err, errs.Busy)
	_, err = h.Driver.Freeze(ctx, "second", []volume.Spec{s}, nil)
	refused(t, err, errs.Busy)
	ok(t, g.WriteAt(ctx, []byte("mine"), 0))
	ok(t, g.Sync(ctx))
	ok(t, g.Close())
	edit(t, h, s, func(volume.Target) {})
}

func testAllOrNone(t *testing.T, h Harness) {
	ctx := t.Context()
	a, b, gone := h.New(t, mib), h.New(t, mib), h.Absent(t)
	_, err := h.Driver.Freeze(ctx, "both", []volume.Spec{a, gone}, nil)
	refused(t, err, errs.NotFound)
	edit(t, h, a, func(volume.Target) {}) // nothing was kept locked
	if _, err := h.Driver.Reopen(ctx, "both", []volume.Spec{a}); !errors.Is(err, volume.ErrNoInstant) {
		t.Fatalf("half an instant was kept: %v", err)
	}

	g, err := h.Driver.OpenTarget(ctx, b)
	ok(t, err)
	_, err = h.Driver.Freeze(ctx, "both", []volume.Spec{a, b}, nil)
	refused(t, err, errs.Busy)
	ok(t, g.Close())
	edit(t, h, a, func(g volume.Target) { ok(t, g.WriteAt(ctx, []byte("a"), 0)) })
	edit(t, h, b, func(g volume.Target) { ok(t, g.WriteAt(ctx, []byte("b"), 0)) })

	in := freeze(t, h, "both", a, b)
	for i, want := range []byte("ab") {
		if got := readAll(t, in.Source(i))[0]; got != want {
			t.Fatalf("source %d starts with %q, want %q", i, got, want)
		}
	}
	ok(t, in.Check(ctx))
}

// testInstant demands that what was frozen stays or cannot be changed.
func testInstant(t *testing.T, h Harness) {
	ctx := t.Context()
	s := h.New(t, mib)
	want := noise(t, size(t, h, s))
	edit(t, h, s, func(g volume.Target) { ok(t, g.WriteAt(ctx, want, 0)) })
	in := freeze(t, h, "instant", s)
	if in.Durable() {
		edit(t, h, s, func(g volume.Target) { ok(t, g.Zero(ctx, 0, g.Size())) })
	} else {
		_, err := h.Driver.OpenTarget(ctx, s)
		refused(t, err, errs.Busy)
	}
	same(t, "frozen volume", readAll(t, in.Source(0)), want)
	dataCovers(t, in.Source(0), want)
	ok(t, in.Check(ctx))
	ok(t, in.Close())
	ok(t, in.Close())
	edit(t, h, s, func(g volume.Target) { ok(t, g.WriteAt(ctx, want[:10], 0)) })
}

// testRelease demands that what was not released stays readable, chunks that
// were released in part included, and that a durable instant keeps all.
func testRelease(t *testing.T, h Harness) {
	ctx := t.Context()
	s := h.New(t, mib)
	want := noise(t, size(t, h, s))
	edit(t, h, s, func(g volume.Target) { ok(t, g.WriteAt(ctx, want, 0)) })
	in := freeze(t, h, "release", s)
	src := in.Source(0)
	const chunk = 64 << 10
	ok(t, src.Release(ctx, 0, 0))
	ok(t, src.Release(ctx, chunk-1, 2*chunk+2)) // the second and the third
	ok(t, src.Release(ctx, chunk, chunk))       // again
	for _, r := range []extent.Range{{Off: 0, Len: chunk}, {Off: 3 * chunk, Len: src.Size() - 3*chunk}} {
		got := make([]byte, r.Len)
		ok(t, src.ReadAt(ctx, got, r.Off))
		same(t, "what was not released", got, want[r.Off:r.End()])
		found, err := src.Data(ctx, r.Off)
		ok(t, err)
		if found.Off != r.Off {
			t.Errorf("data at %d is found at %d", r.Off, found.Off)
		}
	}
	if in.Durable() {
		same(t, "the durable instant", readAll(t, src), want)
	}
	ok(t, in.Check(ctx))
	ok(t, src.Release(ctx, 0, src.Size()))
	ok(t, in.Close())
}

func testChangeIsNoticed(t *testing.T, h Harness) {
	if h.Change == nil {
		t.Log("not asked: nobody can change a volume behind this driver's back")
		return
	}
	ctx := t.Context()
	s := h.New(t, mib)
	want := make([]byte, size(t, h, s))
	in := freeze(t, h, "noticed", s)
	ok(t, in.Source(0).ReadAt(ctx, make([]byte, 4096), 0))
	h.Change(t, s, []byte("intruder"), 65536)
	if in.Durable() {
		ok(t, in.Check(ctx))
		same(t, "durable instant", readAll(t, in.Source(0)), want)
		return
	}
	err := in.Check(ctx)
	refused(t, err, errs.Conflict)
	if !errors.Is(err, volume.ErrChanged) {
		t.Fatalf("Check after a change: %v, want ErrChanged", err)
	}
	ok(t, in.Close())
	again := freeze(t, h, "noticed2", s)
	copy(want[65536:], "intruder")
	same(t, "next instant", readAll(t, again.Source(0)), want)
	ok(t, again.Check(ctx))
}

func testHolds(t *testing.T, h Harness) {
	ctx := t.Context()
	a, b := h.New(t, mib), h.New(t, mib)
	specs := []volume.Spec{a, b}
	ok(t, h.Driver.Drop(ctx, "never-held"))
	if _, err := h.Driver.Reopen(ctx, "never-held", specs); !errors.Is(err, volume.ErrNoInstant) {
		t.Fatalf("Reopen of nothing: %v, want ErrNoInstant", err)
	}
	want := noise(t, size(t, h, b))
	edit(t, h, b, func(g volume.Target) { ok(t, g.WriteAt(ctx, want, 0)) })

	in := freeze(t, h, "kept", a, b)
	at := in.Time()
	ok(t, in.Close())
	later := h.Restart(t)
	back, err := later.Reopen(ctx, "kept", []volume.Spec{b, a})
	if !in.Durable() {
		if !errors.Is(err, volume.ErrNoInstant) {
			t.Fatalf("Reopen of an instant that was not durable: %v, want ErrNoInstant", err)
		}
	} else {
		ok(t, err)
		if !back.Durable() || !back.Time().Equal(at) {
			t.Fatalf("reopened: durable %v, time %v; want %v", back.Durable(), back.Time(), at)
		}
		edit(t, h, b, func(g volume.Target) { ok(t, g.Zero(ctx, 0, g.Size())) })
		same(t, "reopened volume", readAll(t, back.Source(0)), want)
		ok(t, back.Check(ctx))
		ok(t, back.Close())
	}
	ok(t, later.Drop(ctx, "kept"))
	ok(t, later.Drop(ctx, "kept"))
	if _, err := later.Reopen(ctx, "kept", specs); !errors.Is(err, volume.ErrNoInstant) {
		t.Fatalf("Reopen after Drop: %v, want ErrNoInstant", err)
	}

	// Drop also ends an instant that is open.
	in, err = h.Driver.Freeze(ctx, "open", specs, nil)
	ok(t, err)
	ok(t, h.Driver.Drop(ctx, "open"))
	edit(t, h, a, func(volume.Target) {})
	ok(t, in.Close())

	// A new Freeze replaces what a crash left under its name.
	ok(t, freeze(t, h, "again", a).Close())
	ok(t, freeze(t, h, "again", a, b).Close())
}

func testCancelled(t *testing.T, h Harness) {
	s := h.New(t, mib)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Driver.Freeze(gone, "cancelled", []volume.Spec{s}, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("Freeze: %v, want context.Canceled", err)
	}
	in := freeze(t, h, "not-cancelled", s)
	if err := in.Source(0).ReadAt(gone, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Fatalf("ReadAt: %v, want context.Canceled", err)
	}
	ok(t, in.Close())
	edit(t, h, s, func(g volume.Target) {
		for _, err := range []error{g.WriteAt(gone, []byte("x"), 0), g.Zero(gone, 0, 1), g.Sync(gone)} {
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v, want context.Canceled", err)
			}
		}
		ok(t, g.WriteAt(t.Context(), []byte("x"), 0)) // a cancelled call latches nothing
	})
}

func testParallelReads(t *testing.T, h Harness) {
	ctx := t.Context()
	s := h.New(t, mib)
	want := noise(t, size(t, h, s))
	edit(t, h, s, func(g volume.Target) {
		parallel(t, len(want), func(off, end int) error { return g.WriteAt(ctx, want[off:end], int64(off)) })
	})
	src := freeze(t, h, "parallel", s).Source(0)
	got := make([]byte, len(want))
	parallel(t, len(want), func(off, end int) error {
		if _, err := src.Data(ctx, int64(off)); err != nil {
			return err
		}
		return src.ReadAt(ctx, got[off:end], int64(off))
	})
	same(t, "volume written and read in parallel", got, want)
}

// parallel runs fn on eight parts of total at once.
func parallel(t *testing.T, total int, fn func(off, end int) error) {
	t.Helper()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if err := fn(total*i/8, total*(i+1)/8); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}
