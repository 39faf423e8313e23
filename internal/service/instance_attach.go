package service

import (
	"context"
	"fmt"

	"cairn/internal/compute"
	"cairn/internal/errs"
	"cairn/internal/job"
)

// AttachVolumes gives volumes to a machine.
type AttachVolumes struct {
	Origin
	Instance string
	IDs      []string
}

// DetachVolumes takes volumes from the machines that have them.
type DetachVolumes struct {
	Origin
	Instance string // "": whichever has them; else it must be this one
	IDs      []string
}

// attachParams is the input of attach and detach jobs.
type attachParams struct {
	Instances []string `json:"instances"` // the i-th is the i-th volume's
	Volumes   []string `json:"volumes"`
}

// AttachVolumes starts giving volumes to a machine, running or stopped, all or
// none.
func (s *Service) AttachVolumes(ctx context.Context, in AttachVolumes) (job.Job, error) {
	ids, err := s.checkAttach(in.Origin, in.Instance, in.IDs)
	if err != nil {
		return job.Job{}, err
	}
	if err := s.refuseConnected(ctx, in.Zone, ids, "attached"); err != nil {
		return job.Job{}, err
	}
	return s.submit(ctx, in.Origin, job.AttachVolumes, func(tx Tx, j *job.Job) (any, error) {
		system, err := idleVolume(tx, in.Zone, in.Instance)
		if err != nil {
			return nil, err
		}
		if err := refuseForeign(system, "is given disks with libvirt (virsh attach-disk)"); err != nil {
			return nil, err
		}
		if err := s.needMachines(); err != nil {
			return nil, err
		}
		have, err := tx.VolumesOf(in.Instance)
		if err != nil {
			return nil, err
		}
		if len(have)+len(ids) > compute.MaxDisks {
			return nil, errs.New(errs.Conflict, "instance %s has %d disks and can have at most %d; detach some first", in.Instance, len(have), compute.MaxDisks)
		}
		params := attachParams{}
		for _, id := range ids {
			v, err := usableVolume(tx, in.Zone, id)
			switch {
			case err != nil:
				return nil, err
			case v.InstanceID == in.Instance:
				return nil, errs.New(errs.Conflict, "volume %s is attached to instance %s already", id, v.InstanceID)
			case v.InstanceID != "":
				return nil, errs.New(errs.Conflict, "volume %s is attached to instance %s; detach it there first", id, v.InstanceID)
			case !s.isLive(v):
				return nil, errs.New(errs.Conflict, "volume %s is registered, and only managed volumes can be attached; make one of its content with create_volume", id)
			}
			params.Volumes, params.Instances = append(params.Volumes, id), append(params.Instances, in.Instance)
		}
		j.ResourceIDs = ids
		if err := tx.Lock(j.ID, append([]string{in.Instance}, ids...)...); err != nil {
			return nil, err
		}
		return params, changeVolumes(tx, ids, func(v *Volume) { v.Transition = "attaching" })
	})
}

func (s *Service) checkAttach(o Origin, instance string, volumes []string) ([]string, error) {
	if err := s.checkZone(o.Zone); err != nil {
		return nil, err
	}
	if instance != "" {
		if _, err := checkIDs("instance", instancePrefix, []string{instance}); err != nil {
			return nil, err
		}
	}
	return checkIDs("volume", volumePrefix, volumes)
}

// attachJob plugs volumes into a machine.
type attachJob struct{ s *Service }

func (h attachJob) Do(ctx context.Context, run *job.Run) error {
	var params attachParams
	if err := run.Params(&params); err != nil {
		return err
	}
	for i, id := range params.Volumes {
		err := h.s.withVolume(ctx, id, func(v Volume) error { return h.plug(ctx, params.Instances[i], v) })
		if err != nil {
			return fmt.Errorf("attach volume %s to instance %s: %w", id, params.Instances[i], err)
		}
	}
	return h.s.store.Update(ctx, func(tx Tx) error {
		for i, id := range params.Volumes {
			have, err := tx.VolumesOf(params.Instances[i])
			if err != nil {
				return err
			}
			device, err := freeDevice(have)
			if err != nil {
				return err
			}
			err = changeVolumes(tx, []string{id}, func(v *Volume) {
				v.Status, v.StatusTime, v.Transition = VolumeInUse, h.s.now(), ""
				v.InstanceID, v.Device = params.Instances[i], device
			})
			if err != nil {
				return err
			}
		}
		return h.s.finish(tx, run, job.Outcome{Status: job.Successful})
	})
}

// plug gives a running machine a disk; a stopped one gets it when it starts.
func (h attachJob) plug(ctx context.Context, instance string, v Volume) error {
	d, state, err := h.s.machineState(ctx, instance)
	if err != nil || state == compute.Stopped {
		return err
	}
	disk, err := h.s.machineDisk(ctx, v)
	if err != nil {
		return err
	}
	return d.Attach(ctx, instance, disk)
}

// Undo unplugs what was plugged in.
func (h attachJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params attachParams
	if err := run.Params(&params); err != nil {
		return err
	}
	for i, id := range params.Volumes {
		if err := h.s.unplug(ctx, params.Instances[i], id); err != nil {
			return err
		}
	}
	return h.s.endVolumes(ctx, run, params.Volumes, out)
}

// unplug takes a disk from a machine, if it runs.
func (s *Service) unplug(ctx context.Context, instance, volume string) error {
	d, state, err := s.machineState(ctx, instance)
	if err != nil || state == compute.Stopped {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, unplugWait)
	defer cancel()
	return d.Detach(ctx, instance, volume)
}

// endVolumes ends a job that leaves volumes as they were.
func (s *Service) endVolumes(ctx context.Context, run *job.Run, ids []string, out job.Outcome) error {
	return s.store.Update(ctx, func(tx Tx) error {
		if err := changeVolumes(tx, ids, func(v *Volume) { v.Transition = "" }); err != nil {
			return err
		}
		return s.finish(tx, run, out)
	})
}

// DetachVolumes starts taking volumes from their machines. The guest of a
// running one must let go of it.
func (s *Service) DetachVolumes(ctx context.Context, in DetachVolumes) (job.Job, error) {
	ids, err := s.checkAttach(in.Origin, in.Instance, in.IDs)
	if err != nil {
		return job.Job{}, err
	}
	return s.submit(ctx, in.Origin, job.DetachVolumes, func(tx Tx, j *job.Job) (any, error) {
		params := attachParams{}
		locked := append([]string(nil), ids...)
		for _, id := range ids {
			v, err := idleVolume(tx, in.Zone, id)
			switch {
			case err != nil:
				return nil, err
			case v.InstanceID == "":
				return nil, errs.New(errs.Conflict, "volume %s is not attached", id)
			case v.foreign():
				return nil, refuseForeign(v, "is detached with libvirt (virsh detach-disk)")
			case in.Instance != "" && v.InstanceID != in.Instance:
				return nil, errs.New(errs.Conflict, "volume %s is attached to instance %s, not to %s", id, v.InstanceID, in.Instance)
			}
			if _, err := idleVolume(tx, in.Zone, v.InstanceID); err != nil {
				return nil, err
			}
			params.Volumes, params.Instances = append(params.Volumes, id), append(params.Instances, v.InstanceID)
			locked = append(locked, v.InstanceID)
		}
		j.ResourceIDs = ids
		if err := tx.Lock(j.ID, locked...); err != nil {
			return nil, err
		}
		return params, changeVolumes(tx, ids, func(v *Volume) { v.Transition = "detaching" })
	})
}

// detachJob unplugs volumes.
type detachJob struct{ s *Service }

func (h detachJob) Do(ctx context.Context, run *job.Run) error {
	var params attachParams
	if err := run.Params(&params); err != nil {
		return err
	}
	for i, id := range params.Volumes {
		if err := h.s.unplug(ctx, params.Instances[i], id); err != nil {
			return err
		}
	}
	return h.s.store.Update(ctx, func(tx Tx) error {
		if err := changeVolumes(tx, params.Volumes, h.s.freeOne); err != nil {
			return err
		}
		return h.s.finish(tx, run, job.Outcome{Status: job.Successful})
	})
}

// freeOne makes a volume's row that of one which no machine has.
func (s *Service) freeOne(v *Volume) {
	v.Status, v.StatusTime, v.Transition = VolumeAvailable, s.now(), ""
	v.InstanceID, v.Device = "", ""
}

// Undo ends a detach that cannot go on: volumes that are unplugged are plugged
// in again, so that their rows stay true.
func (h detachJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params attachParams
	if err := run.Params(&params); err != nil {
		return err
	}
	for i, id := range params.Volumes {
		err := h.s.withVolume(ctx, id, func(v Volume) error { return attachJob(h).plug(ctx, params.Instances[i], v) })
		if err != nil {
			run.Log.Warn("plug a volume in again; its machine has it after the next start", "instance", params.Instances[i], "volume", id, "error", err)
		}
	}
	return h.s.endVolumes(ctx, run, params.Volumes, out)
}
