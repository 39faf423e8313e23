// Package compute is the contract between the service and what runs machines.
// Drivers live below it (qemu, libvirt, fake); computetest.Run is the suite of
// those that make machines, RunForeign of those whose machines others make.
//
// Invariants every driver keeps:
//   - a machine outlives the process that started it: a new Driver finds it as
//     it is, running or not;
//   - Stopped means that nothing of the hypervisor has a disk of the machine
//     open any more, so that its volumes may be overwritten;
//   - what a driver did not make it never changes but by the call that says so,
//     and never destroys.
package compute

import (
	"context"
	"io"
	"time"
)

// Limits of a Spec.
const (
	MaxCPUs   = 256
	MinMemory = 16 << 20
	MaxMemory = 16 << 40
	// MaxDisks is how many fit on the buses of every kind of machine.
	MaxDisks = 16
)

// Disk is a volume as a machine sees it.
type Disk struct {
	// ID is the volume's, vol-… or ins-…. The guest finds it as the disk's
	// serial number, under /dev/disk/by-id of a Linux guest.
	ID string `json:"id"`
	// URI is nbd+unix://, stable over restarts of the server; of a foreign
	// machine's disk whatever the driver of its volumes calls it.
	URI    string `json:"uri"`
	Device string `json:"device,omitempty"` // of a foreign machine's: vda
}

// Spec is what a machine is made of.
type Spec struct {
	ID     string `json:"id"` // ins-…
	Name   string `json:"name"`
	CPUs   int    `json:"cpus"`
	Memory int64  `json:"memory"` // bytes
	Disks  []Disk `json:"disks"`  // the first is booted from
}

// State is what a machine is doing.
type State uint8

// The states.
const (
	Stopped State = iota
	Running
	Paused // by somebody else: its disks are open, but it does nothing
)

func (s State) String() string {
	switch s {
	case Stopped:
		return "stopped"
	case Running:
		return "running"
	case Paused:
		return "paused"
	}
	return "unknown"
}

// Machine is one that a driver knows. Of one whose description is damaged only
// the id and the state are told.
type Machine struct {
	Spec
	State State
	// Foreign machines were made by others: Define and Delete refuse them.
	Foreign bool
}

// Capabilities are a driver's optional powers, as data.
type Capabilities struct {
	Run          bool   // Define and Delete work
	Acceleration string // kvm, tcg; "": somebody else's choice, or not known before the first Start
}

// Stop tells how a machine came to be stopped.
type Stop struct {
	// Forced: the guest did not end by itself in the time that it was given, so
	// what it had not written yet is lost to it, as in a power cut.
	Forced bool
}

// Driver runs machines of one kind. Methods may be called concurrently; the
// service never runs two changes of one machine at once. Every method that
// names a machine which is not there fails with errs.NotFound, but for Define
// and Delete. All of them can be run again after a crash in the middle.
type Driver interface {
	Capabilities() Capabilities

	// List is all machines, by id.
	List(ctx context.Context) ([]Machine, error)
	Describe(ctx context.Context, id string) (Machine, error)

	// Define makes a machine, stopped, or makes it another one. errs.Conflict:
	// it is running; errs.Invalid: no such machine can be.
	Define(ctx context.Context, s Spec) error

	// Start returns when the machine runs with all its disks; of its guest
	// nothing is known then. One that runs is left alone. If it fails the
	// machine is stopped.
	Start(ctx context.Context, id string) error

	// Stop asks the guest to end, and ends the machine itself after grace; 0: at
	// once. It returns when the machine is Stopped, which a stopped one is. If
	// ctx ends before, it may be either, and Stop must be called again.
	Stop(ctx context.Context, id string, grace time.Duration) (Stop, error)

	// Attach gives a machine, running or stopped, another disk; one that has it
	// is left alone. Detach takes it away: errs.Busy if the guest of a running
	// machine has not let go of it before ctx ends, it may do so later. The disk
	// that is booted from cannot be detached: errs.Invalid.
	Attach(ctx context.Context, id string, d Disk) error
	Detach(ctx context.Context, id, disk string) error

	// Freeze brings the guest's filesystems to rest, by its agent, with all that
	// it had promised on its disks. They are thawed by Thaw or, whatever becomes
	// of the caller, after limit. errs.Unavailable: no agent answered before ctx
	// ended, or it could not; then nothing is frozen.
	Freeze(ctx context.Context, id string, limit time.Duration) (Frozen, error)

	// Console is what the guest wrote to its serial console, from byte off on;
	// negative: that many bytes before the end. Close it.
	Console(ctx context.Context, id string, off int64) (io.ReadCloser, error)

	// Delete ends a machine at once and forgets it. Its disks are the service's.
	// An absent one is not an error.
	Delete(ctx context.Context, id string) error

	// Close lets go of the driver. Machines go on.
	Close() error
}

// Frozen is a guest whose filesystems are at rest.
type Frozen interface {
	// Thaw lets them go on. An error says that they may not have been at rest
	// all the time since Freeze. It may be called more than once.
	Thaw(ctx context.Context) error
}
