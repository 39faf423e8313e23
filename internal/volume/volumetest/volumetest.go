// Package volumetest is the suite that every volume driver passes. What a
// driver cannot do (its Capabilities, a nil function of the Harness) is not
// asked of it; what it must refuse then, is.
package volumetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/volume"
)

// Harness is one driver under test, with the means to act as its user.
type Harness struct {
	Driver volume.Driver
	// New makes an all-zero volume of about sizeBytes; Driver.Size tells how
	// many they are. It goes away with the test.
	New func(t testing.TB, sizeBytes int64) volume.Spec
	// Absent names a volume that was there and is gone.
	Absent func(t testing.TB) volume.Spec
	// Restart gives the driver as a new process would have it.
	Restart func(t testing.TB) volume.Driver
	// Change writes the volume behind the driver's back, as a program would
	// that heeds no lock; nil: nobody can.
	Change func(t testing.TB, s volume.Spec, buf []byte, off int64)
	// Path names something for Probe to find and the size it must tell; nil
	// unless the driver registers.
	Path func(t testing.TB) (path string, sizeBytes int64)
}

// Run tests the driver that open makes. open is called once per part.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for _, p := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"Capabilities", testCapabilities},
		{"Lifecycle", testLifecycle},
		{"Absent", testAbsent},
		{"FreshIsZero", testFreshIsZero},
		{"Bounds", testBounds},
		{"ZeroAndHoles", testZeroAndHoles},
		{"TargetIsExclusive", testTargetIsExclusive},
		{"AllOrNone", testAllOrNone},
		{"Instant", testInstant},
		{"Release", testRelease},
		{"Within", testWithin},
		{"WithinFails", testWithinFails},
		{"ChangeIsNoticed", testChangeIsNoticed},
		{"Holds", testHolds},
		{"Cancelled", testCancelled},
		{"ParallelReads", testParallelReads},
		{"TargetModel", testTargetModel},
	} {
		t.Run(p.name, func(t *testing.T) { p.run(t, open(t)) })
	}
}

const mib = 1 << 20

// tester is what *testing.T and *rapid.T have in common.
type tester interface {
	Helper()
	Context() context.Context
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func ok(t tester, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused demands an error of one of the kinds, with a sentence for users.
func refused(t testing.TB, err error, kinds ...errs.Kind) {
	t.Helper()
	var e *errs.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an error of kind %v", err, kinds)
	}
	for _, k := range kinds {
		if errs.Is(err, k) {
			if e.Msg == "" {
				t.Fatalf("error of kind %v has no sentence: %v", k, err)
			}
			return
		}
	}
	t.Fatalf("got kind %v (%v), want %v", errs.KindOf(err), err, kinds)
}

func size(t testing.TB, h Harness, s volume.Spec) int64 {
	t.Helper()
	n, err := h.Driver.Size(t.Context(), s)
	ok(t, err)
	return n
}

// noise is n bytes that don't compress, from a printed seed.
func noise(t testing.TB, n int64) []byte {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32()>>8) | 1 // never zero: holes are told from data
	}
	return b
}

// edit opens a target, runs fn, syncs and closes.
func edit(t testing.TB, h Harness, s volume.Spec, fn func(volume.Target)) {
	t.Helper()
	g, err := h.Driver.OpenTarget(t.Context(), s)
	ok(t, err)
	fn(g)
	ok(t, g.Sync(t.Context()))
	ok(t, g.Close())
}

// freeze takes an instant that the test lets go of.
func freeze(t testing.TB, h Harness, hold string, specs ...volume.Spec) volume.Instant {
	t.Helper()
	in, err := h.Driver.Freeze(t.Context(), hold, specs, nil)
	ok(t, err)
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		if err := h.Driver.Drop(context.WithoutCancel(t.Context()), hold); err != nil {
			t.Error(err)
		}
	})
	return in
}

// content is what both sources and targets read.
type content interface {
	Size() int64
	ReadAt(ctx context.Context, buf []byte, off int64) error
	Data(ctx context.Context, off int64) (extent.Range, error)
}

func readAll(t tester, c content) []byte {
	t.Helper()
	b := make([]byte, c.Size())
	ok(t, c.ReadAt(t.Context(), b, 0))
	return b
}

func same(t tester, what string, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d is %#x, want %#x", what, i, got[i], want[i])
		}
	}
}

// dataCovers walks Data and demands that everything outside is zeros in want,
// and that ranges move on and stay inside.
func dataCovers(t tester, c content, want []byte) {
	t.Helper()
	off := int64(0)
	for range len(want) + 1 {
		r, err := c.Data(t.Context(), off)
		start, end := r.Off, r.End()
		if errors.Is(err, io.EOF) {
			start = int64(len(want))
		} else {
			ok(t, err)
			if start < off || end <= start || end > int64(len(want)) {
				t.Fatalf("Data(%d) = [%d, %d) in %d bytes", off, start, end, len(want))
			}
		}
		if rest := bytes.TrimLeft(want[off:start], "\x00"); len(rest) > 0 {
			t.Fatalf("Data says byte %d is in a hole, it is %#x", start-int64(len(rest)), rest[0])
		}
		if err != nil {
			return
		}
		off = end
	}
	t.Fatal("Data never ends")
}
