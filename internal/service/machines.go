package service

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/internal/compute"
	"cairn/internal/errs"
)

// This file is what use cases do with machines. Rows say what a machine is made
// of and which volumes it has; what the driver keeps is made after them each time
// that a machine is started, and only the driver knows whether it runs.

// Values of Snapshot.Consistency.
const (
	consistencyCrash      = "crash"
	consistencyFilesystem = "filesystem"
)

const (
	// quiesceWait is how long the agents of guests may take to bring their
	// filesystems to rest, and how long these stay so at most.
	quiesceWait = 2 * time.Second
	// unplugWait is how long a guest may take to let go of a disk.
	unplugWait = 20 * time.Second
	// goodbyeWait is how long the connections of a machine that has ended may
	// take to be gone.
	goodbyeWait = 10 * time.Second
)

// machinesOf is what runs the machine of a system disk, or an error that says
// why nothing does.
func (s *Service) machinesOf(system Volume) (compute.Driver, error) {
	if !system.foreign() {
		return s.compute, s.needMachines()
	}
	if d := s.foreign[system.Driver]; d != nil {
		return d, nil
	}
	return nil, errs.New(errs.Conflict, "instance %s is a machine of %s, which this server was started without (--%s)", system.ID, system.Driver, system.Driver)
}

// systemOf reads the row of a machine. One that has none, as while it is deleted,
// is ours.
func (s *Service) systemOf(ctx context.Context, id string) (system Volume, err error) {
	err = s.store.View(ctx, func(tx Tx) error {
		system, err = tx.Volume("", id)
		if errs.Is(err, errs.NotFound) {
			system = Volume{ID: id}
			return nil
		}
		return err
	})
	return system, err
}

// machine reads the row of a machine, and tells what runs it.
func (s *Service) machine(ctx context.Context, id string) (Volume, compute.Driver, error) {
	system, err := s.systemOf(ctx, id)
	if err != nil {
		return system, nil, err
	}
	d, err := s.machinesOf(system)
	return system, d, err
}

// needMachines refuses what a server without machines of its own cannot do.
func (s *Service) needMachines() error {
	if s.compute != nil {
		return nil
	}
	why := s.noMachines
	if why == "" {
		why = "it was set up without them"
	}
	return errs.New(errs.Conflict, "this server runs no machines: %s", why)
}

// machineState asks whether a machine runs, and returns what runs it. What its
// driver does not know is stopped: it is defined when it is started. So are ours
// where none can run; their driver is nil.
func (s *Service) machineState(ctx context.Context, id string) (compute.Driver, compute.State, error) {
	system, err := s.systemOf(ctx, id)
	if err != nil || s.compute == nil && !system.foreign() {
		return nil, compute.Stopped, err
	}
	d, err := s.machinesOf(system)
	if err != nil {
		return nil, compute.Stopped, err
	}
	state, err := stateIn(ctx, d, id)
	return d, state, err
}

func stateIn(ctx context.Context, d compute.Driver, id string) (compute.State, error) {
	m, err := d.Describe(ctx, id)
	if errs.Is(err, errs.NotFound) {
		return compute.Stopped, nil
	}
	return m.State, err
}

// machineSpec is a machine as its rows say, with the present addresses of its
// disks.
func (s *Service) machineSpec(ctx context.Context, id string) (compute.Spec, error) {
	var volumes []Volume
	err := s.store.View(ctx, func(tx Tx) (err error) {
		volumes, err = tx.VolumesOf(id)
		return err
	})
	if err != nil {
		return compute.Spec{}, err
	}
	if len(volumes) == 0 || volumes[0].ID != id {
		return compute.Spec{}, errs.New(errs.NotFound, "instance %s does not exist", id)
	}
	system := volumes[0]
	spec := compute.Spec{ID: id, Name: system.Name, CPUs: system.CPUs, Memory: system.Memory}
	for _, v := range volumes {
		if v.MixedJob != "" {
			return spec, errs.New(errs.Conflict, "%s; apply a snapshot to it again before instance %s is started", mixture(v.ID, v.MixedJob), id)
		}
		if v.foreign() {
			continue // who made the machine knows its disks
		}
		disk, err := s.machineDisk(ctx, v)
		if err != nil {
			return spec, err
		}
		spec.Disks = append(spec.Disks, disk)
	}
	return spec, nil
}

// machineDisk is a volume as a machine is given it.
func (s *Service) machineDisk(ctx context.Context, v Volume) (compute.Disk, error) {
	e, err := s.lives.Exported(ctx, v.spec())
	if err != nil {
		return compute.Disk{}, err
	}
	for _, uri := range e.URIs {
		if strings.HasPrefix(uri, "nbd+unix:") {
			return compute.Disk{ID: v.ID, URI: uri}, nil
		}
	}
	return compute.Disk{}, errs.New(errs.Unavailable, "%s is not served, so no machine can use it; the server's log says why", named(v.ID))
}

// startMachine starts a machine as its rows say. One that runs is left alone.
func (s *Service) startMachine(ctx context.Context, id string) error {
	system, d, err := s.machine(ctx, id)
	if err != nil {
		return err
	}
	state, err := stateIn(ctx, d, id)
	if err != nil || state != compute.Stopped {
		return err
	}
	spec, err := s.machineSpec(ctx, id)
	if err != nil {
		return err
	}
	if !system.foreign() {
		if err := d.Define(ctx, spec); err != nil {
			return err
		}
	}
	return d.Start(ctx, id)
}

// stopMachine ends a machine; grace 0: at once. When it returns its connections
// are gone.
func (s *Service) stopMachine(ctx context.Context, id string, grace time.Duration) (compute.Stop, error) {
	_, d, err := s.machine(ctx, id)
	if err != nil {
		return compute.Stop{}, err
	}
	how, err := d.Stop(ctx, id, grace)
	if errs.Is(err, errs.NotFound) {
		return compute.Stop{}, nil
	}
	return how, err
}

// awaitGoodbye waits until a volume has no clients, or for goodbyeWait: the
// server hears a moment later than its machine ends.
func (s *Service) awaitGoodbye(ctx context.Context, v Volume) {
	ctx, cancel := context.WithTimeout(ctx, goodbyeWait)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if n, err := s.lives.Clients(ctx, v.spec()); err != nil || n == 0 {
			return // who opens the volume next says what is wrong
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// resting are guests whose filesystems are at rest.
type resting map[string]compute.Frozen

// quiesce brings the guests to rest that have the volumes, all at once. One that
// cannot is left out: what it has written is then as after a power cut.
func (s *Service) quiesce(ctx context.Context, volumes []Volume, log *slog.Logger) resting {
	var ids []string
	for _, v := range volumes {
		if v.InstanceID != "" && !slices.Contains(ids, v.InstanceID) {
			ids = append(ids, v.InstanceID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, quiesceWait)
	defer cancel()
	frozen := make([]compute.Frozen, len(ids))
	var g errgroup.Group
	for i, id := range ids {
		g.Go(func() error {
			d, state, err := s.machineState(ctx, id)
			if err == nil && state == compute.Running {
				frozen[i], err = d.Freeze(ctx, id, quiesceWait)
			}
			if err != nil {
				frozen[i] = nil
				log.Info("a guest's filesystems were not brought to rest; its snapshot is as after a power cut", "instance", id, "error", err)
			}
			return nil
		})
	}
	_ = g.Wait() // each failure is told of above
	guests := resting{}
	for i, f := range frozen {
		if f != nil {
			guests[ids[i]] = f
		}
	}
	return guests
}

// thaw lets the guests go on and tells which were at rest until then.
func (r resting) thaw(ctx context.Context, log *slog.Logger) (rested []string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quiesceWait)
	defer cancel()
	for id, f := range r {
		if err := f.Thaw(ctx); err != nil {
			log.Warn("a guest's filesystems may not have been at rest", "instance", id, "error", err)
			continue
		}
		rested = append(rested, id)
	}
	slices.Sort(rested)
	return rested
}
