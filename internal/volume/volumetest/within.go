package volumetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// testWithin demands that within is called once while the volumes are held:
// who wants to write meanwhile is refused or waits, and is not in the instant.
func testWithin(t *testing.T, h Harness) {
	ctx := t.Context()
	a, b := h.New(t, mib), h.New(t, mib)
	want := noise(t, size(t, h, b))
	edit(t, h, b, func(g volume.Target) { ok(t, g.WriteAt(ctx, want, 0)) })
	calls := 0
	writer := make(chan error, 1)
	in, err := h.Driver.Freeze(ctx, "within", []volume.Spec{a, b}, func(inner context.Context) error {
		calls++
		ok(t, inner.Err())
		go func() { writer <- overwrite(ctx, h.Driver, b) }()
		select { // it may wait until Freeze is through, but gets the time to do harm
		case err := <-writer:
			writer <- err
		case <-time.After(100 * time.Millisecond):
		}
		return nil
	})
	ok(t, err)
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), h.Driver.Drop(context.WithoutCancel(ctx), "within")); err != nil {
			t.Error(err)
		}
	})
	if calls != 1 {
		t.Fatalf("within was called %d times", calls)
	}
	if err := <-writer; err != nil {
		refused(t, err, errs.Busy)
	}
	same(t, "volume that was held", readAll(t, in.Source(1)), want)
	ok(t, in.Check(ctx))
	broken := errors.New("broken")
	if err := in.Settle(ctx, []volume.Checkpoint{"one", "two"}, func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("settled, although the commit failed: %v", err)
	}
	same(t, "volume that is still held", readAll(t, in.Source(1)), want)
	ok(t, in.Settle(ctx, []volume.Checkpoint{"one", "two"}, committed))
	// The volumes are everybody's, whether the instant is closed or not.
	next, err := h.Driver.Freeze(ctx, "next", []volume.Spec{b, a}, nil)
	ok(t, err)
	ok(t, errors.Join(next.Close(), h.Driver.Drop(ctx, "next")))
}

func committed() error { return nil }

// overwrite opens a volume and writes over its first bytes.
func overwrite(ctx context.Context, d volume.Driver, s volume.Spec) error {
	g, err := d.OpenTarget(ctx, s)
	if err != nil {
		return err
	}
	return errors.Join(g.WriteAt(ctx, make([]byte, 4096), 0), g.Sync(ctx), g.Close())
}

// testWithinFails demands that a Freeze whose within fails leaves nothing, and
// that one that cannot hold its volumes does not call it.
func testWithinFails(t *testing.T, h Harness) {
	ctx := t.Context()
	a, gone := h.New(t, mib), h.Absent(t)
	broken := errors.New("broken")
	calls := 0
	fail := func(context.Context) error { calls++; return broken }
	if _, err := h.Driver.Freeze(ctx, "failed", []volume.Spec{a}, fail); !errors.Is(err, broken) || calls != 1 {
		t.Fatalf("got %v after %d calls, want the error of within", err, calls)
	}
	if _, err := h.Driver.Reopen(ctx, "failed", []volume.Spec{a}); !errors.Is(err, volume.ErrNoInstant) {
		t.Fatalf("Reopen of what failed: %v, want ErrNoInstant", err)
	}
	edit(t, h, a, func(g volume.Target) { ok(t, g.WriteAt(ctx, []byte("a"), 0)) })
	in := freeze(t, h, "failed", a)
	if got := readAll(t, in.Source(0))[0]; got != 'a' {
		t.Fatalf("the next instant starts with %q", got)
	}
	ok(t, in.Close())

	_, err := h.Driver.Freeze(ctx, "failed-too", []volume.Spec{a, gone}, fail)
	refused(t, err, errs.NotFound)
	g, err := h.Driver.OpenTarget(ctx, a)
	ok(t, err)
	_, err = h.Driver.Freeze(ctx, "failed-too", []volume.Spec{a}, fail)
	refused(t, err, errs.Busy)
	ok(t, g.Close())
	if calls != 1 {
		t.Fatalf("within was called for volumes that were not held")
	}
}
