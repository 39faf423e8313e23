package virtvolume

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// Nobody is refused for a point that others can see already: who comes while it
// is settled waits.
func TestNextWaitsForTheSettled(t *testing.T) {
	r := newRig(t, "one")
	ctx, m := t.Context(), r.machines[0]
	specs := []volume.Spec{m.spec(0), m.spec(1)}
	m.write(0, 1, 0, diskSize)
	in, err := r.d.Freeze(ctx, "first", specs, nil)
	ok(t, err)
	_, err = r.d.Freeze(ctx, "refused", specs, nil)
	refused(t, err, errs.Busy, "one")
	type froze struct {
		in  volume.Instant
		err error
	}
	next := make(chan froze, 1)
	ok(t, in.Settle(ctx, []volume.Checkpoint{"a0", "a1"}, func() error {
		go func() {
			in, err := r.d.Freeze(ctx, "next", specs[:1], nil)
			next <- froze{in, err}
		}()
		time.Sleep(50 * time.Millisecond) // it may be there by now
		return nil
	}))
	ok(t, in.Close())
	second := <-next
	ok(t, second.err)
	shows(t, "the next one", second.in.Source(0), m.disks[0])
	covers(t, "the next one", second.in.Source(0), "a0", m.disks[0], m.disks[0])
	ok(t, second.in.Settle(ctx, []volume.Checkpoint{"b0"}, func() error { return nil }))
	ok(t, second.in.Close())
	// One checkpoint is kept for each disk that still counts from it.
	if c := m.checkpoints(); len(c) == 0 {
		t.Error("the next one's checkpoint was removed")
	}

	// A commit that fails lets nobody in.
	in, err = r.d.Freeze(ctx, "third", specs, nil)
	ok(t, err)
	no := errors.New("no")
	if err := in.Settle(ctx, []volume.Checkpoint{"c0", "c1"}, func() error { return no }); !errors.Is(err, no) {
		t.Errorf("Settle: %v", err)
	}
	_, err = r.d.Freeze(ctx, "refused", specs, nil)
	refused(t, err, errs.Busy, "one")
	ok(t, in.Close())
}

// Who reserves waits for whoever has the machine, however long, and is waited for.
func TestReserve(t *testing.T) {
	r := newRig(t, "one", "two")
	ctx := t.Context()
	var all, one []volume.Spec
	for _, m := range r.machines {
		all = append(all, m.spec(0))
	}
	one = []volume.Spec{r.machines[0].spec(1)}
	in, err := r.d.Freeze(ctx, "first", one, nil)
	ok(t, err)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := r.d.Reserve(short, "given up", all); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a machine is reserved that has an instant: %v", err)
	}
	reserved := make(chan error, 1)
	go func() { reserved <- r.d.Reserve(ctx, "second", all) }()
	select {
	case err := <-reserved:
		t.Fatalf("reserved beside an instant: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	ok(t, in.Close())
	ok(t, <-reserved)
	_, err = r.d.Freeze(ctx, "third", one, nil)
	refused(t, err, errs.Busy, "one")
	second, err := r.d.Freeze(ctx, "second", all, nil)
	ok(t, err)
	ok(t, second.Close())
	third, err := r.d.Freeze(ctx, "third", one, nil)
	ok(t, err)
	ok(t, third.Close())

	// What was reserved and not used is given up with its hold.
	ok(t, r.d.Reserve(ctx, "fourth", all))
	ok(t, r.d.Reserve(ctx, "fourth", all))
	ok(t, r.d.Drop(ctx, "fourth"))
	ok(t, r.d.Reserve(ctx, "fifth", one))
	ok(t, r.d.Drop(ctx, "fifth"))
}

// A folder in which no socket can have a name is refused when it is opened.
func TestLongFolder(t *testing.T) {
	_, err := New(Config{Dir: "/" + strings.Repeat("x", socketRoom-socketRest)})
	refused(t, err, errs.Invalid, "--libvirt-dir")
}
