package service

import (
	"context"
	"slices"
	"strings"
	"time"

	"cairn/internal/compute"
	"cairn/internal/errs"
	"cairn/internal/job"
)

// InstanceStatus is a machine's state (API.md §6).
type InstanceStatus string

// The states of an instance. Nothing is terminated yet: a machine that was
// deleted has ceased.
const (
	InstancePending    InstanceStatus = "pending"
	InstanceRunning    InstanceStatus = "running"
	InstanceStopped    InstanceStatus = "stopped"
	InstanceTerminated InstanceStatus = "terminated"
	InstanceCeased     InstanceStatus = "ceased"
	InstanceUnknown    InstanceStatus = "unknown" // another's machine, whose hypervisor does not answer
)

// Instance is a machine: the row of its system disk, and what is known only at
// reading time.
type Instance struct {
	VolumeView
	State     InstanceStatus
	ImageName string   // "": it is gone
	Volumes   []Volume // attached, without the system disk
}

// InstanceFilter selects a page of machines, newest first, then ID.
type InstanceFilter struct {
	Zone     string
	IDs      []string
	Statuses []InstanceStatus // empty: all but terminated and ceased, unless IDs are given
	Search   string
	Offset   int
	Limit    int
}

// InstancePage is one page of machines.
type InstancePage struct {
	Instances []Instance
	Total     int
}

// InstanceSet names machines.
type InstanceSet struct {
	Origin
	IDs []string
	// Force ends a guest at once instead of asking it to.
	Force bool
}

// Instances lists machines. Whether one runs is asked of its driver, so all that
// match are read before they are paged: they are few beside points.
func (s *Service) Instances(ctx context.Context, f InstanceFilter) (InstancePage, error) {
	if err := s.checkZone(f.Zone); err != nil {
		return InstancePage{}, err
	}
	states, err := s.machineStates(ctx)
	if err != nil {
		return InstancePage{}, err
	}
	var page InstancePage
	err = s.store.View(ctx, func(tx Tx) error {
		rows, err := allInstances(tx, f)
		if err != nil {
			return err
		}
		page = InstancePage{}
		var matching []Instance
		for _, v := range rows {
			i := Instance{VolumeView: VolumeView{Volume: v}, State: instanceStatus(v, states)}
			if len(f.Statuses) == 0 || slices.Contains(f.Statuses, i.State) {
				matching = append(matching, i)
			}
		}
		page.Total = len(matching)
		from := min(max(f.Offset, 0), len(matching))
		page.Instances = matching[from:min(from+max(f.Limit, 0), len(matching))]
		for n := range page.Instances {
			if err := page.Instances[n].load(tx); err != nil {
				return err
			}
		}
		return nil
	})
	for n := range page.Instances {
		page.Instances[n].VolumeView = s.view(ctx, page.Instances[n].Volume)
	}
	return page, err
}

// allInstances reads the rows that a filter lets through, whatever their state.
func allInstances(tx Tx, f InstanceFilter) ([]Volume, error) {
	const step = 500
	by := VolumeFilter{Zone: f.Zone, IDs: f.IDs, Search: f.Search, Instances: true, Limit: step}
	if len(f.Statuses) > 0 {
		by.Statuses = []VolumeStatus{VolumePending, VolumeInUse, VolumeCeased}
	}
	var all []Volume
	for {
		rows, total, err := tx.Volumes(by)
		if err != nil {
			return nil, err
		}
		all = append(all, rows...)
		if by.Offset += step; by.Offset >= total {
			return all, nil
		}
	}
}

// stateWait is how long whoever lists machines waits for a hypervisor of others.
const stateWait = 3 * time.Second

// machineStates asks for the states of all machines at once. Machines of others
// whose hypervisor does not answer are missing.
func (s *Service) machineStates(ctx context.Context) (map[string]compute.State, error) {
	states := map[string]compute.State{}
	take := func(all []compute.Machine) {
		for _, m := range all {
			states[m.ID] = m.State
		}
	}
	for kind, d := range s.foreign {
		asking, cancel := context.WithTimeout(ctx, stateWait)
		all, err := d.List(asking)
		cancel()
		if err != nil {
			s.log.Warn("the states of machines cannot be told", "kind", kind, "error", err)
			continue
		}
		take(all)
	}
	if s.compute == nil {
		return states, nil
	}
	all, err := s.compute.List(ctx)
	take(all)
	return states, err
}

func instanceStatus(v Volume, states map[string]compute.State) InstanceStatus {
	state, known := states[v.ID]
	switch {
	case v.Status == VolumePending:
		return InstancePending
	case v.Status == VolumeCeased:
		return InstanceCeased
	case !known && v.foreign():
		return InstanceUnknown
	case state == compute.Stopped:
		return InstanceStopped
	}
	return InstanceRunning
}

// load reads what else is told of a machine.
func (i *Instance) load(tx Tx) error {
	if i.Image != "" {
		image, err := tx.Snapshot("", i.Image)
		if err != nil && !errs.Is(err, errs.NotFound) {
			return err
		}
		i.ImageName = image.Name
	}
	volumes, err := tx.VolumesOf(i.ID)
	if len(volumes) > 0 && volumes[0].ID == i.ID {
		volumes = volumes[1:]
	}
	i.Volumes = volumes
	return err
}

// RenameInstances changes name and description of machines, all or none.
func (s *Service) RenameInstances(ctx context.Context, in Rename) error {
	return s.renameVolumes(ctx, in, "instance", instancePrefix, "instance_name")
}

func (s *Service) checkInstances(in InstanceSet) ([]string, error) {
	if err := s.checkZone(in.Zone); err != nil {
		return nil, err
	}
	return checkIDs("instance", instancePrefix, in.IDs)
}

// DeleteInstances starts deleting machines, running or not, with their system
// disks. Their snapshots and the volumes attached to them survive.
func (s *Service) DeleteInstances(ctx context.Context, in InstanceSet) (job.Job, error) {
	ids, err := s.checkInstances(in)
	if err != nil {
		return job.Job{}, err
	}
	if s.compute == nil {
		// It may run all the same, if it was started when machines could be.
		if err := s.refuseClients(ctx, in.Zone, ids, "deleted", VolumeInUse); err != nil {
			return job.Job{}, err
		}
	}
	return s.submit(ctx, in.Origin, job.TerminateInstances, func(tx Tx, j *job.Job) (any, error) {
		if err := lockMachines(tx, j, in.Zone, ids); err != nil {
			return nil, err
		}
		volumes, err := withForeignDisks(tx, ids)
		if err != nil {
			return nil, err
		}
		return volumesParams{Volumes: volumes}, changeVolumes(tx, volumes, func(v *Volume) { v.Transition = "deleting" })
	})
}

// lockMachines locks idle machines and the volumes attached to them, and names
// the machines as what the job is about.
func lockMachines(tx Tx, j *job.Job, zone string, ids []string) error {
	j.ResourceIDs = ids
	for _, id := range ids {
		if _, err := idleVolume(tx, zone, id); err != nil {
			return err
		}
		volumes, err := tx.VolumesOf(id)
		if err != nil {
			return err
		}
		for _, v := range volumes {
			if _, err := idleVolume(tx, zone, v.ID); err != nil {
				return err
			}
			if err := tx.Lock(j.ID, v.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// power is what is done to a machine.
type power uint8

const (
	powerOn power = 1 << iota
	powerOff
	powerCycle = powerOff | powerOn
)

// powerParams is the input of the jobs that start and stop machines.
type powerParams struct {
	Instances []string      `json:"instances"`
	Grace     time.Duration `json:"grace,omitempty"`
}

// StartInstances starts machines; those that run are left alone.
func (s *Service) StartInstances(ctx context.Context, in InstanceSet) (job.Job, error) {
	return s.power(ctx, in, job.StartInstances, "starting")
}

// StopInstances asks guests to end, and ends those that do not in time.
func (s *Service) StopInstances(ctx context.Context, in InstanceSet) (job.Job, error) {
	return s.power(ctx, in, job.StopInstances, "stopping")
}

// RestartInstances stops and starts machines.
func (s *Service) RestartInstances(ctx context.Context, in InstanceSet) (job.Job, error) {
	return s.power(ctx, in, job.RestartInstances, "restarting")
}

func (s *Service) power(ctx context.Context, in InstanceSet, action job.Action, transition string) (job.Job, error) {
	ids, err := s.checkInstances(in)
	if err != nil {
		return job.Job{}, err
	}
	params := powerParams{Instances: ids, Grace: s.stopGrace}
	if in.Force {
		params.Grace = 0
	}
	return s.submit(ctx, in.Origin, action, func(tx Tx, j *job.Job) (any, error) {
		j.ResourceIDs = ids
		for _, id := range ids {
			system, err := idleVolume(tx, in.Zone, id)
			if err == nil {
				_, err = s.machinesOf(system)
			}
			if err != nil {
				return nil, err
			}
		}
		if err := tx.Lock(j.ID, ids...); err != nil {
			return nil, err
		}
		return params, changeVolumes(tx, ids, func(v *Volume) { v.Transition = transition })
	})
}

// powerJob starts and stops machines. What was done stays done if it fails.
type powerJob struct {
	s    *Service
	what power
}

// powerNotes says which machines were stopped, so that a restart does not stop
// again what it has started.
type powerNotes struct {
	Stopped []string `json:"stopped,omitempty"`
	Forced  []string `json:"forced,omitempty"` // of them, those that did not end by themselves
}

func (h powerJob) Do(ctx context.Context, run *job.Run) error {
	var params powerParams
	var notes powerNotes
	if err := run.Params(&params); err != nil {
		return err
	}
	if err := run.LoadState(&notes); err != nil {
		return err
	}
	for _, id := range params.Instances {
		if h.what&powerOff != 0 && !slices.Contains(notes.Stopped, id) {
			how, err := h.s.stopMachine(ctx, id, params.Grace)
			if err != nil {
				return err
			}
			notes.Stopped = append(notes.Stopped, id)
			if how.Forced && params.Grace > 0 {
				notes.Forced = append(notes.Forced, id)
			}
			if err := run.SaveState(ctx, notes, false); err != nil {
				return err
			}
		}
		if h.what&powerOn != 0 {
			if err := h.s.startMachine(ctx, id); err != nil {
				return err
			}
		}
	}
	return h.end(ctx, run, params, job.Outcome{Status: job.Successful, Info: forcedInfo(notes.Forced)})
}

// forcedInfo says which guests did not end when they were asked to.
func forcedInfo(ids []string) string {
	if len(ids) == 0 {
		return ""
	}
	return "did not end when asked to and was ended, as by a power cut: " + strings.Join(ids, ", ")
}

func (h powerJob) end(ctx context.Context, run *job.Run, params powerParams, out job.Outcome) error {
	return h.s.store.Update(ctx, func(tx Tx) error {
		err := changeVolumes(tx, params.Instances, func(v *Volume) { v.Transition, v.StatusTime = "", h.s.now() })
		if err != nil {
			return err
		}
		if out.Status == job.Successful { // as they are now somebody wants them
			if err := owedMachines.remove(tx, oneOf(params.Instances)); err != nil {
				return err
			}
		}
		return h.s.finish(tx, run, out)
	})
}

// Undo leaves machines as they are.
func (h powerJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params powerParams
	if err := run.Params(&params); err != nil {
		return err
	}
	return h.end(ctx, run, params, out)
}
