package computetest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"cairn/internal/compute"
	"cairn/internal/errs"
)

// Foreign is a driver under test of machines that others make.
type Foreign struct {
	Driver compute.Driver
	// Again opens the driver anew, as the next process does after a kill.
	Again func(t *testing.T) compute.Driver
	// Machine is one that is stopped and whose guest, if any, does not hear.
	Machine compute.Spec
	// Kept is the machine as who made it has written it.
	Kept func(t *testing.T) string
	// Remove is what who made it does in the end.
	Remove func(t *testing.T)
}

// RunForeign tests the driver that open makes, with the only machine that there
// is. open is called once per part.
func RunForeign(t *testing.T, open func(t *testing.T) Foreign) {
	for _, p := range []struct {
		name string
		run  func(*testing.T, Foreign)
	}{
		{"Lifecycle", testForeignLifecycle},
		{"IsNotChanged", testForeignKept},
		{"OutlivesTheDriver", testForeignOutlives},
		{"Cancelled", testForeignCancelled},
		{"Removed", testForeignRemoved},
	} {
		t.Run(p.name, func(t *testing.T) {
			h := open(t)
			testAbsent(t, Harness{Driver: h.Driver, Disk: func(_ *testing.T, id string) compute.Disk { return compute.Disk{ID: id} }})
			before := h.Kept(t)
			p.run(t, h)
			if p.name == "Removed" {
				return
			}
			if after := h.Kept(t); after != before {
				t.Errorf("the machine was changed:\n%s\nfrom\n%s", after, before)
			}
			_, err := h.Driver.Stop(context.Background(), h.Machine.ID, 0)
			ok(t, err)
		})
	}
}

// shown demands that the machine is told of as it is.
func (h Foreign) shown(t *testing.T, d compute.Driver, want compute.State) {
	t.Helper()
	all, err := d.List(t.Context())
	ok(t, err)
	m, err := d.Describe(t.Context(), h.Machine.ID)
	ok(t, err)
	if len(all) != 1 || all[0].ID != m.ID || all[0].State != m.State {
		t.Errorf("listed is %+v, described %+v", all, m)
	}
	s := m.Spec
	same(t, compute.Spec{ID: s.ID, Name: s.Name, CPUs: s.CPUs, Memory: s.Memory, Disks: s.Disks}, h.Machine)
	if !m.Foreign || m.State != want {
		t.Errorf("foreign: %v, it is %v, want %v", m.Foreign, m.State, want)
	}
}

func testForeignLifecycle(t *testing.T, h Foreign) {
	ctx, d, id := t.Context(), h.Driver, h.Machine.ID
	h.shown(t, d, compute.Stopped)
	stopped, err := d.Stop(ctx, id, time.Hour)
	ok(t, err)
	if stopped.Forced {
		t.Error("a stopped machine was ended by force")
	}
	_, err = d.Freeze(ctx, id, time.Second)
	refused(t, err, errs.Unavailable)
	for range 2 {
		ok(t, d.Start(ctx, id))
		ok(t, d.Start(ctx, id))
		h.shown(t, d, compute.Running)
		stopped, err = d.Stop(ctx, id, 0)
		ok(t, err)
		if !stopped.Forced {
			t.Error("a machine that was given no time ended by itself")
		}
		h.shown(t, d, compute.Stopped)
	}
}

// testForeignKept demands that what changes or ends a machine for good is refused,
// running or not.
func testForeignKept(t *testing.T, h Foreign) {
	ctx, d, id := t.Context(), h.Driver, h.Machine.ID
	for _, state := range []compute.State{compute.Stopped, compute.Running} {
		for name, do := range map[string]func() error{
			"Define": func() error { return d.Define(ctx, h.Machine) },
			"Delete": func() error { return d.Delete(ctx, id) },
			"Attach": func() error { return d.Attach(ctx, id, compute.Disk{ID: "vol-X", URI: h.Machine.Disks[0].URI}) },
			"Detach": func() error { return d.Detach(ctx, id, h.Machine.Disks[0].ID) },
			"Console": func() error {
				_, err := d.Console(ctx, id, 0)
				return err
			},
		} {
			if err := do(); !errs.Is(err, errs.Conflict) {
				t.Errorf("%s of one that is %v: %v", name, state, err)
			}
		}
		h.shown(t, d, state)
		ok(t, d.Start(ctx, id))
	}
}

func testForeignOutlives(t *testing.T, h Foreign) {
	ok(t, h.Driver.Start(t.Context(), h.Machine.ID))
	next := h.Again(t)
	h.shown(t, next, compute.Running)
	ok(t, next.Start(t.Context(), h.Machine.ID))
	_, err := next.Stop(t.Context(), h.Machine.ID, 0)
	ok(t, err)
	h.shown(t, h.Driver, compute.Stopped)
	ok(t, next.Close())
}

func testForeignCancelled(t *testing.T, h Foreign) {
	d, id := h.Driver, h.Machine.ID
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Start(gone, id); !errors.Is(err, context.Canceled) {
		t.Errorf("Start: %v", err)
	}
	h.shown(t, d, compute.Stopped)
	ok(t, d.Start(t.Context(), id))
	soon, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := d.Stop(soon, id, time.Hour); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stop: %v", err)
	}
}

func testForeignRemoved(t *testing.T, h Foreign) {
	h.Remove(t)
	all, err := h.Driver.List(t.Context())
	ok(t, err)
	if slices.ContainsFunc(all, func(m compute.Machine) bool { return m.ID == h.Machine.ID }) {
		t.Error("it is still listed")
	}
	_, err = h.Driver.Describe(t.Context(), h.Machine.ID)
	refused(t, err, errs.NotFound)
	ok(t, h.Driver.Delete(t.Context(), h.Machine.ID))
}
