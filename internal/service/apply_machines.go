package service

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"cairn/internal/compute"
	"cairn/internal/errs"
	"cairn/internal/job"
)

// This file is the restart of machines around a rollback: they are stopped
// before the first volume is opened, and started when all have the content of
// their points, never in between.

// restarting is the transition of volumes that are rolled back and whose machine
// is about to be started.
const restarting = "restarting"

// lockApply locks the volumes, and the machines that have them; of a foreign one
// all disks, as no point of another one may be under way when it is stopped.
func (s *Service) lockApply(tx Tx, jobID, zone string, params applyParams) error {
	locks := append(params.machines(), params.Volumes...)
	for _, id := range params.machines() {
		system, err := idleVolume(tx, zone, id)
		if err != nil {
			return err
		}
		if _, err := s.machinesOf(system); err != nil {
			return errs.Wrap(errs.Conflict, err, "instance %s has to be stopped for it, but %s", id, errs.Message(err))
		}
		if !system.foreign() {
			continue
		}
		disks, err := tx.VolumesOf(id)
		if err != nil {
			return err
		}
		for _, v := range disks {
			if slices.Contains(locks, v.ID) {
				continue
			}
			if err := refuseLocked(tx, named(v.ID), v.ID); err != nil {
				return err
			}
			locks = append(locks, v.ID)
		}
	}
	return tx.Lock(jobID, locks...)
}

// machines are those that have any of the volumes, each once.
func (p applyParams) machines() []string {
	var ids []string
	for _, id := range p.Instances {
		if id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// stopMachines stops the machines that run. Which did is noted first: else a
// crash would leave them stopped for good.
func (a *application) stopMachines(ctx context.Context) error {
	for _, id := range a.params.machines() {
		_, state, err := a.s.machineState(ctx, id)
		if err != nil {
			return err
		}
		if state != compute.Stopped && !slices.Contains(a.notes.Running, id) {
			a.notes.Running = append(a.notes.Running, id)
		}
	}
	if len(a.notes.Running) == 0 {
		return nil
	}
	if err := a.s.checkTargets(ctx, a.volumes); err != nil {
		return err
	}
	if err := a.run.SaveState(ctx, a.notes, false); err != nil {
		return err
	}
	for _, id := range a.notes.Running {
		how, err := a.s.stopMachine(ctx, id, a.s.stopGrace)
		if err != nil {
			return err
		}
		if how.Forced && !slices.Contains(a.notes.Forced, id) {
			a.notes.Forced = append(a.notes.Forced, id)
		}
	}
	for _, v := range a.volumes {
		if v.InstanceID != "" && a.s.isLive(v) {
			a.s.awaitGoodbye(ctx, v)
		}
	}
	return nil
}

// owed are the machines of these volumes that an earlier apply left stopped.
func (p applyParams) owed(tx Tx) ([]string, error) {
	ids, err := owedMachines.read(tx)
	machines := p.machines()
	return slices.DeleteFunc(ids, func(id string) bool { return !slices.Contains(machines, id) }), err
}

// startMachines starts what was stopped and ends the job. What is owed stays
// stopped as long as another of its volumes is a mixture.
func (a *application) startMachines(ctx context.Context) error {
	info := forcedInfo(a.notes.Forced)
	started := slices.Clone(a.notes.Running)
	for _, id := range a.notes.Owed {
		err := a.patiently(ctx, true, func() error { return a.s.startMachine(ctx, id) })
		switch {
		case errs.Is(err, errs.Conflict):
			info = strings.TrimPrefix(info+"; instance "+id+" is not started yet: "+errs.Message(err), "; ")
		case err != nil:
			return fmt.Errorf("start instance %s: %w", id, err)
		default:
			started = append(started, id)
		}
	}
	for _, id := range a.notes.Running {
		if err := a.patiently(ctx, true, func() error { return a.s.startMachine(ctx, id) }); err != nil {
			return fmt.Errorf("start instance %s: %w", id, err)
		}
	}
	return a.s.store.Update(ctx, func(tx Tx) error {
		if err := changeVolumes(tx, a.params.Volumes, func(v *Volume) { v.Transition = "" }); err != nil {
			return err
		}
		if err := owedMachines.remove(tx, oneOf(started)); err != nil {
			return err
		}
		return a.s.finish(tx, a.run, job.Outcome{Status: job.Successful, Info: info})
	})
}

// leaveMachines decides about the machines of an apply that cannot go on, and
// says what to do about them. Nothing was written: they run again. Else they
// stay stopped, rather than run on something that nobody asked for. owed are those
// that the next apply shall start.
func (s *Service) leaveMachines(ctx context.Context, run *job.Run, notes applyNotes, volumes []Volume) (tell string, owed []string) {
	machines := slices.Concat(notes.Running, notes.Owed)
	switch {
	case len(machines) == 0:
		return "", nil
	case notes.Rolled:
		return fmt.Sprintf("; the volumes are rolled back, but not all of the machines run: start %s (cairn instance start)", strings.Join(machines, ", ")), machines
	case notes.Begun:
		return fmt.Sprintf("; %s is left stopped: apply the snapshots again, and it is started", strings.Join(machines, ", ")), machines
	}
	for _, v := range volumes {
		// They may have been opened, and are the job's still; the machines need them.
		if s.isLive(v) && v.MixedJob == "" {
			if err := s.lives.Serve(ctx, v.spec()); err != nil {
				run.Log.Error("serve a volume whose rollback came to nothing", "volume", v.ID, "error", err)
			}
		}
	}
	for _, id := range notes.Running {
		if err := s.startMachine(ctx, id); err != nil {
			run.Log.Error("start a machine again whose rollback came to nothing", "instance", id, "error", err)
			owed = append(owed, id)
		}
	}
	if len(owed) == 0 {
		return "", nil
	}
	return fmt.Sprintf("; %s was stopped for it and could not be started again: start it (cairn instance start)", strings.Join(owed, ", ")), owed
}

// mixtures are volumes of which each is whole, but which together are what a
// machine must not be started on: some may have been rolled back and others not.
func (p applyParams) mixtures(jobID string, notes applyNotes, volumes []Volume) []string {
	if !notes.Begun || notes.Rolled {
		return nil
	}
	var ids []string
	for i, v := range volumes {
		together := 0
		for _, id := range p.Instances {
			if id == p.Instances[i] {
				together++
			}
		}
		if p.Instances[i] != "" && together > 1 && v.MixedJob != jobID {
			ids = append(ids, v.ID)
		}
	}
	return ids
}
