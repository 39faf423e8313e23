// Package computetest is the suite that every driver of machines passes.
package computetest

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"cairn/internal/compute"
	"cairn/internal/errs"
)

// Harness is a driver under test.
type Harness struct {
	Driver compute.Driver
	// Again opens the driver anew, as the next process does after a kill: the
	// one before was not closed.
	Again func(t *testing.T) compute.Driver
	// Disk makes a disk that a machine can open; NoDisk is the address of none.
	Disk   func(t *testing.T, id string) compute.Disk
	NoDisk compute.Disk
}

// Run tests the driver that open makes. open is called once per part.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for _, p := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"Lifecycle", testLifecycle},
		{"Absent", testAbsent},
		{"BadSpecs", testBadSpecs},
		{"Redefine", testRedefine},
		{"OutlivesTheDriver", testOutlives},
		{"StartFails", testStartFails},
		{"AttachStopped", testAttachStopped},
		{"AttachRunning", testAttachRunning},
		{"Delete", testDelete},
		{"Cancelled", testCancelled},
		{"Many", testMany},
	} {
		t.Run(p.name, func(t *testing.T) {
			h := open(t)
			p.run(t, h)
			// Nothing may be left running, whatever a part did.
			all, err := h.Driver.List(context.Background())
			ok(t, err)
			for _, m := range all {
				ok(t, h.Driver.Delete(context.Background(), m.ID))
			}
		})
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refused(t testing.TB, err error, kind errs.Kind) {
	t.Helper()
	if !errs.Is(err, kind) {
		t.Errorf("got %v, want %v", err, kind)
	}
}

// spec is a small machine with one disk.
func (h Harness) spec(t *testing.T, id string) compute.Spec {
	t.Helper()
	return compute.Spec{ID: id, Name: "machine " + id, CPUs: 1, Memory: 32 << 20, Disks: []compute.Disk{h.Disk(t, "vol-BOOT")}}
}

func state(t testing.TB, d compute.Driver, id string, want compute.State) {
	t.Helper()
	m, err := d.Describe(t.Context(), id)
	ok(t, err)
	if m.State != want {
		t.Errorf("%s is %v, want %v", id, m.State, want)
	}
}

func same(t testing.TB, got, want compute.Spec) {
	t.Helper()
	if got.ID != want.ID || got.Name != want.Name || got.CPUs != want.CPUs || got.Memory != want.Memory || !slices.Equal(got.Disks, want.Disks) {
		t.Errorf("the machine is %+v, want %+v", got, want)
	}
}

func testLifecycle(t *testing.T, h Harness) {
	ctx, d := t.Context(), h.Driver
	if all, err := d.List(ctx); err != nil || len(all) > 0 {
		t.Fatalf("at first there are %v, %v", all, err)
	}
	s := h.spec(t, "ins-A")
	ok(t, d.Define(ctx, s))
	state(t, d, s.ID, compute.Stopped)
	stopped, err := d.Stop(ctx, s.ID, time.Hour)
	ok(t, err)
	if stopped.Forced {
		t.Error("a stopped machine was ended by force")
	}
	c, err := d.Console(ctx, s.ID, 0)
	ok(t, err)
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		t.Errorf("before its first start the machine printed %q, %v", b, err)
	}
	ok(t, c.Close())

	for range 2 {
		ok(t, d.Start(ctx, s.ID))
		ok(t, d.Start(ctx, s.ID))
		state(t, d, s.ID, compute.Running)
		refused(t, d.Define(ctx, s), errs.Conflict)
		_, err = d.Stop(ctx, s.ID, 0)
		ok(t, err)
		state(t, d, s.ID, compute.Stopped)
	}
	m, err := d.Describe(ctx, s.ID)
	ok(t, err)
	same(t, m.Spec, s)
	if m.Foreign {
		t.Error("a machine that was made here is foreign")
	}
}

func testAbsent(t *testing.T, h Harness) {
	ctx, d := t.Context(), h.Driver
	for _, id := range []string{"ins-NONE", "", "..", "../ins-A", "ins-A/..", "a\x00b", "ins-" + string(make([]byte, 300))} {
		_, err := d.Describe(ctx, id)
		refused(t, err, errs.NotFound)
		refused(t, d.Start(ctx, id), errs.NotFound)
		_, err = d.Stop(ctx, id, 0)
		refused(t, err, errs.NotFound)
		refused(t, d.Attach(ctx, id, h.Disk(t, "vol-X")), errs.NotFound)
		refused(t, d.Detach(ctx, id, "vol-X"), errs.NotFound)
		_, err = d.Freeze(ctx, id, time.Second)
		refused(t, err, errs.NotFound)
		_, err = d.Console(ctx, id, 0)
		refused(t, err, errs.NotFound)
		ok(t, d.Delete(ctx, id))
	}
}

func testBadSpecs(t *testing.T, h Harness) {
	ctx, d := t.Context(), h.Driver
	good := h.spec(t, "ins-A")
	for name, spoil := range map[string]func(*compute.Spec){
		"no processor":    func(s *compute.Spec) { s.CPUs = 0 },
		"too many":        func(s *compute.Spec) { s.CPUs = compute.MaxCPUs + 1 },
		"no memory":       func(s *compute.Spec) { s.Memory = compute.MinMemory - 1 },
		"too much memory": func(s *compute.Spec) { s.Memory = compute.MaxMemory + 1 },
		"no disk":         func(s *compute.Spec) { s.Disks = nil },
		"a disk twice":    func(s *compute.Spec) { s.Disks = append(s.Disks, s.Disks[0]) },
		"too many disks": func(s *compute.Spec) {
			for i := range compute.MaxDisks {
				s.Disks = append(s.Disks, compute.Disk{ID: "vol-" + string(rune('A'+i)), URI: s.Disks[0].URI})
			}
		},
	} {
		s := good
		s.Disks = slices.Clone(good.Disks)
		spoil(&s)
		if err := d.Define(ctx, s); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all, err := d.List(ctx); err != nil || len(all) > 0 {
		t.Errorf("what was refused is there: %v, %v", all, err)
	}
}

func testRedefine(t *testing.T, h Harness) {
	ctx, d := t.Context(), h.Driver
	s := h.spec(t, "ins-A")
	ok(t, d.Define(ctx, s))
	s.CPUs, s.Memory, s.Name = 2, 64<<20, "größer"
	s.Disks = append(s.Disks, h.Disk(t, "vol-DATA"))
	ok(t, d.Define(ctx, s))
	ok(t, d.Start(ctx, s.ID))
	m, err := d.Describe(ctx, s.ID)
	ok(t, err)
	same(t, m.Spec, s)
}

// testOutlives demands that machines go on without their driver, and that the
// next one can do all that the first could.
func testOutlives(t *testing.T, h Harness) {
	ctx := t.Context()
	a, b := h.spec(t, "ins-A"), h.spec(t, "ins-B")
	ok(t, h.Driver.Define(ctx, a))
	ok(t, h.Driver.Define(ctx, b))
	ok(t, h.Driver.Start(ctx, a.ID))
	next := h.Again(t)
	state(t, next, a.ID, compute.Running)
	state(t, next, b.ID, compute.Stopped)
	ok(t, next.Start(ctx, a.ID))
	refused(t, next.Define(ctx, a), errs.Conflict)
	ok(t, next.Attach(ctx, a.ID, h.Disk(t, "vol-DATA")))
	m, err := next.Describe(ctx, a.ID)
	ok(t, err)
	if m.Disk("vol-DATA") != 1 {
		t.Errorf("disks %v", m.Disks)
	}
	stopped, err := next.Stop(ctx, a.ID, 0)
	ok(t, err)
	if !stopped.Forced {
		t.Error("a machine that was given no time ended by itself")
	}
	state(t, next, a.ID, compute.Stopped)
	ok(t, next.Close())
}

// testStartFails demands that a machine without one of its disks is stopped, and
// starts when the disk is there.
func testStartFails(t *testing.T, h Harness) {
	ctx, d := t.Context(), h.Driver
	s := h.spec(t, "ins-A")
	s.Disks = append(s.Disks, h.NoDisk)
	ok(t, d.Define(ctx, s))
	if err := d.Start(ctx, s.ID); err == nil {
		t.Fatal("it started without a disk")
	}
	state(t, d, s.ID, compute.Stopped)
	s.Disks[1] = h.Disk(t, h.NoDisk.ID)
	ok(t, d.Attach(ctx, s.ID, s.Disks[1]))
	ok(t, d.Start(ctx, s.ID))
	m, err := d.Describe(ctx, s.ID)
	ok(t, err)
	same(t, m.Spec, s)
}

func testAttachStopped(t *testing.T, h Harness) {
	ctx, d := t.Context(), h.Driver
	s := h.spec(t, "ins-A")
	ok(t, d.Define(ctx, s))
	data := h.Disk(t, "vol-DATA")
	for range 2 {
		ok(t, d.Attach(ctx, s.ID, data))
	}
	s.Disks = append(s.Disks, data)
	m, err := d.Describe(ctx, s.ID)
	ok(t, err)
	same(t, m.Spec, s)
	for i := range compute.MaxDisks - 2 {
		ok(t, d.Attach(ctx, s.ID, h.Disk(t, "vol-"+string(rune('A'+i)))))
	}
	refused(t, d.Attach(ctx, s.ID, h.Disk(t, "vol-MORE")), errs.Invalid)
	ok(t, d.Start(ctx, s.ID))
	_, err = d.Stop(ctx, s.ID, 0)
	ok(t, err)
	for i := range compute.MaxDisks - 2 {
		ok(t, d.Detach(ctx, s.ID, "vol-"+string(rune('A'+i))))
	}
	for range 2 {
		ok(t, d.Detach(ctx, s.ID, data.ID))
	}
	refused(t, d.Detach(ctx, s.ID, s.Disks[0].ID), errs.Invalid)
	m, err = d.Describe(ctx, s.ID)
	ok(t, err)
	s.Disks = s.Disks[:1]
	same(t, m.Spec, s)
}

// testAttachRunning plugs disks into a machine whose guest, if there is one,
// need not help. Only guests that do let go of disks.
func testAttachRunning(t *testing.T, h Harness) {
	ctx, d := t.Context(), h.Driver
	s := h.spec(t, "ins-A")
	ok(t, d.Define(ctx, s))
	ok(t, d.Start(ctx, s.ID))
	data := h.Disk(t, "vol-DATA")
	for range 2 {
		ok(t, d.Attach(ctx, s.ID, data))
	}
	if err := d.Attach(ctx, s.ID, h.NoDisk); err == nil {
		t.Error("a disk that is not there was attached")
	}
	refused(t, d.Detach(ctx, s.ID, s.Disks[0].ID), errs.Invalid)
	ok(t, d.Detach(ctx, s.ID, "vol-NEVER"))
	s.Disks = append(s.Disks, data)
	m, err := d.Describe(ctx, s.ID)
	ok(t, err)
	same(t, m.Spec, s)
	_, err = d.Stop(ctx, s.ID, 0)
	ok(t, err)
	ok(t, d.Start(ctx, s.ID)) // with the disk that it was given
	_, err = d.Stop(ctx, s.ID, 0)
	ok(t, err)
	ok(t, d.Detach(ctx, s.ID, data.ID))
}

func testDelete(t *testing.T, h Harness) {
	ctx, d := t.Context(), h.Driver
	s := h.spec(t, "ins-A")
	ok(t, d.Define(ctx, s))
	ok(t, d.Start(ctx, s.ID))
	for range 2 {
		ok(t, d.Delete(ctx, s.ID))
		_, err := d.Describe(ctx, s.ID)
		refused(t, err, errs.NotFound)
	}
	ok(t, d.Define(ctx, s))
	state(t, d, s.ID, compute.Stopped)
}

// testCancelled demands that a call whose caller is gone does not go on, and
// leaves a machine that can be used.
func testCancelled(t *testing.T, h Harness) {
	d := h.Driver
	s := h.spec(t, "ins-A")
	ok(t, d.Define(t.Context(), s))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Start(gone, s.ID); !errors.Is(err, context.Canceled) {
		t.Errorf("Start: %v", err)
	}
	state(t, d, s.ID, compute.Stopped)
	ok(t, d.Start(t.Context(), s.ID))
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.Stop(soon, s.ID, time.Hour); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stop: %v", err)
	}
	_, err := d.Stop(t.Context(), s.ID, 0)
	ok(t, err)
	state(t, d, s.ID, compute.Stopped)
}

func testMany(t *testing.T, h Harness) {
	ctx, d := t.Context(), h.Driver
	ids := []string{"ins-A", "ins-B", "ins-C"}
	errc := make(chan error)
	for i, id := range ids {
		s := h.spec(t, id)
		s.Disks[0] = h.Disk(t, "vol-BOOT"+string(rune('A'+i)))
		go func() { errc <- errors.Join(d.Define(ctx, s), d.Start(ctx, id)) }()
	}
	for range ids {
		ok(t, <-errc)
	}
	all, err := d.List(ctx)
	ok(t, err)
	var got []string
	for _, m := range all {
		got = append(got, m.ID)
		if m.State != compute.Running {
			t.Errorf("%s is %v", m.ID, m.State)
		}
	}
	if !slices.Equal(got, ids) {
		t.Errorf("machines %v, want %v", got, ids)
	}
}
