package libvirt

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"cairn/internal/compute"
	"cairn/internal/errs"
	"cairn/internal/libvirt"
)

// Driver is the machines of one daemon.
type Driver struct {
	daemon libvirt.Daemon
	log    *slog.Logger
	ending chan struct{}  // closed by Close
	chores sync.WaitGroup // watchdogs that thaw
}

var _ compute.Driver = (*Driver)(nil)

// New makes a driver; the daemon need not answer yet.
func New(daemon libvirt.Daemon, log *slog.Logger) *Driver {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Driver{daemon: daemon, log: log, ending: make(chan struct{})}
}

// Close waits until no guest is frozen any more, but not long for one that does
// not hear.
func (d *Driver) Close() error {
	close(d.ending)
	d.chores.Wait()
	return nil
}

// Capabilities tells that machines are made elsewhere.
func (d *Driver) Capabilities() compute.Capabilities { return compute.Capabilities{} }

// machine is a domain as the contract has it.
func machine(dom libvirt.Domain) compute.Machine {
	m := compute.Machine{
		Spec:    compute.Spec{ID: dom.InstanceID(), Name: dom.Name, CPUs: dom.CPUs, Memory: dom.Memory},
		State:   state(dom),
		Foreign: true,
	}
	for i, k := range dom.Disks {
		id := dom.VolumeID(k)
		if i == 0 {
			id = m.ID // the system disk has the machine's
		}
		m.Disks = append(m.Disks, compute.Disk{ID: id, URI: dom.DiskPath(k), Device: k.Target})
	}
	return m
}

// state is Stopped only if nothing has the disks open.
func state(dom libvirt.Domain) compute.State {
	if !dom.Active {
		return compute.Stopped
	}
	switch dom.State {
	case rpc.DomainRunning, rpc.DomainBlocked, rpc.DomainShutdown:
		return compute.Running
	}
	return compute.Paused // also one that crashed and is kept for its owner
}

// List is all domains.
func (d *Driver) List(ctx context.Context) ([]compute.Machine, error) {
	all, err := d.daemon.Domains(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]compute.Machine, len(all))
	for i, dom := range all {
		out[i] = machine(dom)
	}
	slices.SortFunc(out, func(a, b compute.Machine) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// Describe is one domain.
func (d *Driver) Describe(ctx context.Context, id string) (compute.Machine, error) {
	dom, err := d.daemon.Find(ctx, id)
	if err != nil {
		return compute.Machine{}, err
	}
	return machine(dom), nil
}

// Define refuses.
func (d *Driver) Define(context.Context, compute.Spec) error {
	return errs.New(errs.Conflict, "machines of libvirt are made and changed with libvirt (virsh define, virsh edit)")
}

// Delete refuses what is there.
func (d *Driver) Delete(ctx context.Context, id string) error {
	dom, err := d.daemon.Find(ctx, id)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.theirs(dom, "virsh undefine")
}

// Attach refuses.
func (d *Driver) Attach(ctx context.Context, id string, _ compute.Disk) error {
	dom, err := d.daemon.Find(ctx, id)
	if err != nil {
		return err
	}
	return d.theirs(dom, "virsh attach-disk")
}

// Detach refuses.
func (d *Driver) Detach(ctx context.Context, id, _ string) error {
	dom, err := d.daemon.Find(ctx, id)
	if err != nil {
		return err
	}
	return d.theirs(dom, "virsh detach-disk")
}

// Console refuses: libvirt keeps none, unless a domain says where.
func (d *Driver) Console(ctx context.Context, id string, _ int64) (io.ReadCloser, error) {
	dom, err := d.daemon.Find(ctx, id)
	if err != nil {
		return nil, err
	}
	return nil, d.theirs(dom, "virsh console")
}

func (d *Driver) theirs(dom libvirt.Domain, with string) error {
	return errs.New(errs.Conflict, "instance %s is libvirt's domain %s; do that with %s", dom.InstanceID(), dom.Name, with)
}

// Start boots a machine, or lets one go on whose memory libvirt saved.
func (d *Driver) Start(ctx context.Context, id string) error {
	dom, err := d.daemon.Find(ctx, id)
	if err != nil || dom.Active {
		return err
	}
	return d.daemon.Do(ctx, func(l *rpc.Libvirt) error {
		err := l.DomainCreate(dom.Handle())
		if err == nil {
			return nil
		}
		// Somebody else may have started it since.
		if active, asked := l.DomainIsActive(dom.Handle()); asked == nil && active == 1 {
			return nil
		}
		return err
	})
}

const (
	// stopPoll is how often a machine is looked at that was asked to end.
	stopPoll = 100 * time.Millisecond
)

// Stop refuses a machine that would be gone with that.
func (d *Driver) Stop(ctx context.Context, id string, grace time.Duration) (compute.Stop, error) {
	dom, err := d.daemon.Find(ctx, id)
	if err != nil || !dom.Active {
		return compute.Stop{}, err
	}
	if !dom.Persistent {
		return compute.Stop{}, errs.New(errs.Conflict, "instance %s is libvirt's domain %s, which is transient: it would be gone when it has ended; make it persistent first (virsh define)", id, dom.Name)
	}
	if grace > 0 && state(dom) == compute.Running {
		if ended, err := d.ask(ctx, dom, grace); err != nil || ended {
			return compute.Stop{}, err
		}
	}
	return compute.Stop{Forced: true}, d.end(ctx, dom)
}

// ask tells the guest to end, by its agent or its power button, and waits for
// that, at most for grace.
func (d *Driver) ask(ctx context.Context, dom libvirt.Domain, grace time.Duration) (ended bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	err = d.daemon.Do(waiting, func(l *rpc.Libvirt) error {
		// One that cannot be asked is ended by force; one that was may not answer.
		if err := l.DomainShutdownFlags(dom.Handle(), rpc.DomainShutdownDefault); err != nil {
			d.log.Info("a machine cannot be asked to end", "machine", dom.Name, "error", err)
		}
		tick := time.NewTicker(stopPoll)
		defer tick.Stop()
		for {
			active, err := l.DomainIsActive(dom.Handle())
			if err != nil || active == 0 {
				ended = err == nil
				return err
			}
			select {
			case <-tick.C:
			case <-waiting.Done():
				return nil
			}
		}
	})
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if waiting.Err() != nil {
		err = nil // its time is up
	}
	return ended, err
}

// end takes a machine's power away.
func (d *Driver) end(ctx context.Context, dom libvirt.Domain) error {
	return d.daemon.Do(ctx, func(l *rpc.Libvirt) error {
		err := l.DomainDestroyFlags(dom.Handle(), rpc.DomainDestroyDefault)
		if active, asked := l.DomainIsActive(dom.Handle()); asked == nil && active == 0 {
			return nil // it may have ended by itself meanwhile
		}
		return err
	})
}
