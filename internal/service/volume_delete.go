package service

import (
	"context"
	"fmt"
	"slices"

	"cairn/internal/errs"
	"cairn/internal/job"
)

// deleteVolumesNotes says whose data is gone.
type deleteVolumesNotes struct {
	Removed []string `json:"removed,omitempty"`
}

// DeleteVolumes starts deleting volumes. Their snapshots survive. The data of
// a managed volume goes; a registered one is only forgotten.
func (s *Service) DeleteVolumes(ctx context.Context, in VolumeSet) (job.Job, error) {
	if err := s.checkZone(in.Zone); err != nil {
		return job.Job{}, err
	}
	ids, err := checkIDs("volume", volumePrefix, in.IDs)
	if err != nil {
		return job.Job{}, err
	}
	if err := s.refuseConnected(ctx, in.Zone, ids, "deleted"); err != nil {
		return job.Job{}, err
	}
	return s.submit(ctx, in.Origin, job.DeleteVolumes, func(tx Tx, j *job.Job) (any, error) {
		for _, id := range ids {
			if _, err := freeVolume(tx, in.Zone, id, "deleted"); err != nil {
				return nil, err
			}
		}
		j.ResourceIDs = ids
		if err := tx.Lock(j.ID, ids...); err != nil {
			return nil, err
		}
		return volumesParams{Volumes: ids}, changeVolumes(tx, ids, func(v *Volume) { v.Transition = "deleting" })
	})
}

// deleteVolumesJob removes volumes, and with system disks their machines. There is no way back once it has begun.
type deleteVolumesJob struct{ s *Service }

func (h deleteVolumesJob) Do(ctx context.Context, run *job.Run) error {
	var params volumesParams
	var notes deleteVolumesNotes
	if err := run.Params(&params); err != nil {
		return err
	}
	if err := run.LoadState(&notes); err != nil {
		return err
	}
	var volumes []Volume
	err := h.s.store.View(ctx, func(tx Tx) (err error) {
		volumes, err = loadVolumes(tx, params.Volumes)
		return err
	})
	if err != nil {
		return err
	}
	if err := run.SaveState(ctx, notes, true); err != nil {
		return err
	}
	for _, v := range volumes {
		if v.foreign() {
			h.s.forgetDisk(ctx, v, run.Log)
		}
		if slices.Contains(notes.Removed, v.ID) || v.Driver != DriverManaged {
			continue
		}
		if err := h.s.deleteMachine(ctx, v); err != nil {
			return err
		}
		d, err := h.s.driver(v)
		if err != nil {
			return err
		}
		if err := d.Remove(ctx, v.spec()); err != nil {
			return fmt.Errorf("remove %s: %w", named(v.ID), err)
		}
		notes.Removed = append(notes.Removed, v.ID)
		if err := run.SaveState(ctx, notes, true); err != nil {
			return err
		}
	}
	return h.s.store.Update(ctx, func(tx Tx) error {
		if err := h.s.ceaseVolumes(tx, params.Volumes); err != nil {
			return err
		}
		if err := forget(tx, volumes); err != nil {
			return err
		}
		if err := owedMachines.remove(tx, oneOf(params.Volumes)); err != nil {
			return err
		}
		return h.s.finish(tx, run, job.Outcome{Status: job.Successful})
	})
}

// deleteMachine ends the machine of a system disk; other volumes have none.
func (s *Service) deleteMachine(ctx context.Context, v Volume) error {
	if !IsInstance(v.ID) || s.compute == nil {
		return nil
	}
	if err := s.compute.Delete(ctx, v.ID); err != nil {
		return fmt.Errorf("delete instance %s: %w", v.ID, err)
	}
	s.awaitGoodbye(ctx, v)
	return nil
}

// ceaseVolumes ends volumes. Nothing descends from their points any more, so
// these have no head; what was attached to a machine is free.
func (s *Service) ceaseVolumes(tx Tx, ids []string) error {
	for _, id := range ids {
		if err := s.freeVolumes(tx, id); err != nil {
			return err
		}
		if err := moveHead(tx, id, ""); err != nil {
			return err
		}
		if err := rebase(tx, id, ""); err != nil {
			return err
		}
	}
	return changeVolumes(tx, ids, func(v *Volume) {
		v.Status, v.StatusTime, v.Transition = VolumeCeased, s.now(), ""
		if !v.foreign() { // that is still there, and may come back
			v.MixedJob = ""
		}
	})
}

// freeVolumes frees what is attached to a machine that ceases.
func (s *Service) freeVolumes(tx Tx, instance string) error {
	if !IsInstance(instance) {
		return nil
	}
	volumes, err := tx.VolumesOf(instance)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if v.ID == instance {
			continue
		}
		s.freeOne(&v)
		if err := tx.UpdateVolume(v); err != nil {
			return err
		}
	}
	return nil
}

// Undo ends a delete that cannot go on: volumes whose data is gone have
// ceased, the others are as they were. The notes may lack the last one that
// was removed, so their drivers are asked.
func (h deleteVolumesJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params volumesParams
	if err := run.Params(&params); err != nil {
		return err
	}
	var volumes []Volume
	err := h.s.store.View(ctx, func(tx Tx) (err error) {
		volumes, err = loadVolumes(tx, params.Volumes)
		return err
	})
	if errs.Is(err, errs.NotFound) {
		// Ceased already: an earlier try ended the job and its answer was lost.
		return fmt.Errorf("undo job %s: %w: %w", run.ID(), job.ErrFenced, err)
	}
	if err != nil {
		return err
	}
	var gone, kept []string
	for _, v := range volumes {
		is, err := h.isGone(ctx, v)
		if err != nil {
			return err
		}
		if is {
			gone = append(gone, v.ID)
		} else {
			kept = append(kept, v.ID)
		}
	}
	err = h.s.store.Update(ctx, func(tx Tx) error {
		if err := h.s.ceaseVolumes(tx, gone); err != nil {
			return err
		}
		if err := changeVolumes(tx, kept, func(v *Volume) { v.Transition = "" }); err != nil {
			return err
		}
		return h.s.finish(tx, run, out)
	})
	if err == nil {
		h.s.serveByID(context.WithoutCancel(ctx), kept...)
	}
	return err
}

// isGone asks for a managed volume's data.
func (h deleteVolumesJob) isGone(ctx context.Context, v Volume) (bool, error) {
	if v.Driver != DriverManaged {
		return false, nil
	}
	d, err := h.s.driver(v)
	if err != nil {
		return false, err
	}
	_, err = d.Size(ctx, v.spec())
	if errs.Is(err, errs.NotFound) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for the data of volume %s: %w", v.ID, err)
	}
	return false, nil
}
