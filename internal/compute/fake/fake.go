// Package fake is a compute.Driver for tests: machines without guests that do
// what a test wants of them.
//
// Invariant: all state is the Host's, which outlives its drivers as a host does
// a process.
package fake

import (
	"cmp"
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/internal/compute"
	"cairn/internal/errs"
)

// Host is where machines are. Its exported fields are set before it is used.
type Host struct {
	// Open is asked for every disk that a machine opens, and Closed told of every
	// one that it has closed. nil: all disks are there.
	Open   func(machine string, d compute.Disk) error
	Closed func(machine string, d compute.Disk)
	// Before runs before every call of a Driver's method, with its name, and may
	// fail it. nil: none fails.
	Before func(method, id string) error
	// Deaf guests neither end nor let go of a disk when they are asked.
	Deaf bool
	// Agent: guests have one.
	Agent bool

	mu       sync.Mutex // guards what follows
	machines map[string]*machine
}

type machine struct {
	spec    compute.Spec
	runs    bool
	foreign bool
	frozen  *frozen
	console strings.Builder
}

// Clone is another host with the same machines, none of which is frozen. Its
// exported fields are its own.
func (h *Host) Clone() *Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &Host{machines: map[string]*machine{}}
	for id, m := range h.machines {
		n := &machine{spec: m.spec, runs: m.runs, foreign: m.foreign}
		n.console.WriteString(m.console.String())
		c.machines[id] = n
	}
	return c
}

// Driver is one process's view of a Host.
type Driver struct{ h *Host }

var _ compute.Driver = (*Driver)(nil)

// New makes a driver; any number of them share a host.
func New(h *Host) *Driver { return &Driver{h} }

// Capabilities tells what this driver can.
func (d *Driver) Capabilities() compute.Capabilities {
	return compute.Capabilities{Run: true, Acceleration: "fake"}
}

// enter begins a method: the host is locked when it succeeds.
func (d *Driver) enter(ctx context.Context, method, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.h.Before != nil {
		if err := d.h.Before(method, id); err != nil {
			return err
		}
	}
	d.h.mu.Lock()
	return nil
}

// find begins a method of a machine that must be there.
func (d *Driver) find(ctx context.Context, method, id string) (*machine, error) {
	if err := d.enter(ctx, method, id); err != nil {
		return nil, err
	}
	if m := d.h.machines[id]; m != nil {
		return m, nil
	}
	d.h.mu.Unlock()
	return nil, errs.New(errs.NotFound, "there is no machine %q here", id)
}

// AddForeign makes or changes a machine that somebody else defines. One that runs
// goes on.
func (h *Host) AddForeign(s compute.Spec) {
	h.mu.Lock()
	defer h.mu.Unlock()
	runs := h.machines[s.ID] != nil && h.machines[s.ID].runs
	m := h.put(s)
	m.foreign, m.runs = true, runs
}

// RemoveForeign ends and removes a machine, as who defined it would.
func (h *Host) RemoveForeign(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.machines[id]; m != nil {
		h.end(m)
		delete(h.machines, id)
	}
}

func (h *Host) put(s compute.Spec) *machine {
	s.Disks = slices.Clone(s.Disks)
	m := &machine{spec: s}
	if h.machines == nil {
		h.machines = map[string]*machine{}
	}
	h.machines[s.ID] = m
	return m
}

func (m *machine) tell() compute.Machine {
	out := compute.Machine{Spec: m.spec, Foreign: m.foreign}
	out.Disks = slices.Clone(m.spec.Disks)
	if m.runs {
		out.State = compute.Running
	}
	return out
}

// List is all machines.
func (d *Driver) List(ctx context.Context) ([]compute.Machine, error) {
	if err := d.enter(ctx, "List", ""); err != nil {
		return nil, err
	}
	defer d.h.mu.Unlock()
	var all []compute.Machine
	for _, m := range d.h.machines {
		all = append(all, m.tell())
	}
	slices.SortFunc(all, func(a, b compute.Machine) int { return cmp.Compare(a.ID, b.ID) })
	return all, nil
}

// Describe tells of one machine.
func (d *Driver) Describe(ctx context.Context, id string) (compute.Machine, error) {
	m, err := d.find(ctx, "Describe", id)
	if err != nil {
		return compute.Machine{}, err
	}
	defer d.h.mu.Unlock()
	return m.tell(), nil
}

// Define makes a machine.
func (d *Driver) Define(ctx context.Context, s compute.Spec) error {
	if err := s.Check(); err != nil {
		return err
	}
	if err := d.enter(ctx, "Define", s.ID); err != nil {
		return err
	}
	defer d.h.mu.Unlock()
	if m := d.h.machines[s.ID]; m != nil && (m.runs || m.foreign) {
		return errs.New(errs.Conflict, "machine %s is running, or not ours", s.ID)
	}
	d.h.put(s)
	return nil
}

// Start runs a machine.
func (d *Driver) Start(ctx context.Context, id string) error {
	m, err := d.find(ctx, "Start", id)
	if err != nil {
		return err
	}
	defer d.h.mu.Unlock()
	if m.runs {
		return nil
	}
	for i, disk := range m.spec.Disks {
		if err := d.h.open(id, disk); err != nil {
			d.h.close(id, m.spec.Disks[:i])
			return err
		}
	}
	m.runs = true
	m.console.WriteString(id + " boots\n")
	return nil
}

func (h *Host) open(id string, disk compute.Disk) error {
	if h.Open == nil {
		return nil
	}
	return h.Open(id, disk)
}

func (h *Host) close(id string, disks []compute.Disk) {
	for _, disk := range disks {
		if h.Closed != nil {
			h.Closed(id, disk)
		}
	}
}

// Stop ends a machine; a deaf guest when its time is over, without waiting for
// that.
func (d *Driver) Stop(ctx context.Context, id string, grace time.Duration) (compute.Stop, error) {
	m, err := d.find(ctx, "Stop", id)
	if err != nil {
		return compute.Stop{}, err
	}
	defer d.h.mu.Unlock()
	if !m.runs {
		return compute.Stop{}, nil
	}
	d.h.end(m)
	return compute.Stop{Forced: grace == 0 || d.h.Deaf}, nil
}

func (h *Host) end(m *machine) {
	if m.runs {
		m.runs, m.frozen = false, nil
		h.close(m.spec.ID, m.spec.Disks)
	}
}

// Crash ends a machine as a failure of its host's would.
func (h *Host) Crash(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.machines[id]; m != nil {
		h.end(m)
	}
}

// Attach plugs a disk in.
func (d *Driver) Attach(ctx context.Context, id string, disk compute.Disk) error {
	m, err := d.find(ctx, "Attach", id)
	if err != nil {
		return err
	}
	defer d.h.mu.Unlock()
	if m.foreign {
		return theirs(id)
	}
	s := m.spec
	s.Disks = slices.Clone(s.Disks)
	if i := s.Disk(disk.ID); i >= 0 {
		s.Disks[i] = disk
	} else {
		s.Disks = append(s.Disks, disk)
		if m.runs {
			if err := d.h.open(id, disk); err != nil {
				return err
			}
		}
	}
	if err := s.Check(); err != nil {
		return err
	}
	m.spec = s
	return nil
}

// Detach unplugs a disk.
func (d *Driver) Detach(ctx context.Context, id, disk string) error {
	m, err := d.find(ctx, "Detach", id)
	if err != nil {
		return err
	}
	defer d.h.mu.Unlock()
	i := m.spec.Disk(disk)
	switch {
	case m.foreign:
		return theirs(id)
	case i < 0:
		return nil
	case i == 0:
		return errs.New(errs.Invalid, "machine %s boots from disk %s, which cannot be detached", id, disk)
	case m.runs && d.h.Deaf:
		return errs.New(errs.Busy, "the guest of machine %s has not let go of disk %s; please try later", id, disk)
	case m.runs:
		d.h.close(id, m.spec.Disks[i:i+1])
	}
	m.spec.Disks = slices.Delete(slices.Clone(m.spec.Disks), i, i+1)
	return nil
}

// frozen is a guest at rest.
type frozen struct {
	h *Host
	m *machine

	timer *time.Timer
	once  bool // thawed by Thaw
	err   error
}

// Freeze brings a guest's filesystems to rest.
func (d *Driver) Freeze(ctx context.Context, id string, limit time.Duration) (compute.Frozen, error) {
	m, err := d.find(ctx, "Freeze", id)
	if err != nil {
		return nil, err
	}
	defer d.h.mu.Unlock()
	if !m.runs || !d.h.Agent || m.frozen != nil {
		return nil, errs.New(errs.Unavailable, "no agent answers in the guest of %s", id)
	}
	f := &frozen{h: d.h, m: m}
	m.frozen = f
	f.timer = time.AfterFunc(limit, func() {
		f.h.mu.Lock()
		defer f.h.mu.Unlock()
		if m.frozen == f {
			m.frozen = nil
			f.err = errs.New(errs.Unavailable, "the guest of %s was frozen for too long and has been thawed", id)
		}
	})
	return f, nil
}

// Frozen reports whether a guest's filesystems are at rest.
func (h *Host) Frozen(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.machines[id]
	return m != nil && m.frozen != nil
}

// Thaw lets them go on.
func (f *frozen) Thaw(context.Context) error {
	f.timer.Stop()
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	switch {
	case f.m.frozen == f:
		f.m.frozen = nil
	case f.err == nil && !f.once:
		f.err = errs.New(errs.Unavailable, "the machine ended while it was frozen")
	}
	f.once = true
	return f.err
}

// Console is what the machine printed.
func (d *Driver) Console(ctx context.Context, id string, off int64) (io.ReadCloser, error) {
	m, err := d.find(ctx, "Console", id)
	if err != nil {
		return nil, err
	}
	defer d.h.mu.Unlock()
	if m.foreign {
		return nil, theirs(id)
	}
	text := m.console.String()
	if off < 0 {
		off = max(0, int64(len(text))+off)
	}
	return io.NopCloser(strings.NewReader(text[min(off, int64(len(text))):])), nil
}

// Delete ends and forgets a machine.
func (d *Driver) Delete(ctx context.Context, id string) error {
	if err := d.enter(ctx, "Delete", id); err != nil {
		return err
	}
	defer d.h.mu.Unlock()
	m := d.h.machines[id]
	if m == nil {
		return nil
	}
	if m.foreign {
		return theirs(id)
	}
	d.h.end(m)
	delete(d.h.machines, id)
	return nil
}

func theirs(id string) error { return errs.New(errs.Conflict, "machine %s is not ours", id) }

// Close lets go of nothing.
func (d *Driver) Close() error { return nil }
