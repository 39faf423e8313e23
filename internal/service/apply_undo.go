package service

import (
	"context"
	"fmt"
	"strings"

	"cairn/internal/job"
)

// Undo ends an apply that cannot go on. What was written stays written: the
// volumes keep their mark and the job says so; a live volume is whole, the old
// one or the new one, and keeps the point that it now needs.
func (h applyJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params applyParams
	if err := run.Params(&params); err != nil {
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
	var notes applyNotes
	if err := run.LoadState(&notes); err != nil {
		return err
	}
	more, owed := h.s.leaveMachines(ctx, run, notes, volumes)
	h.s.bases.mu.Lock()
	defer h.s.bases.mu.Unlock()
	keep := h.keep(ctx, run, params, volumes)
	err = h.s.store.Update(ctx, func(tx Tx) error {
		if err := keep(tx); err != nil {
			return err
		}
		volumes, err := loadVolumes(tx, params.Volumes)
		if err != nil {
			return err
		}
		for _, id := range params.mixtures(run.ID(), notes, volumes) {
			err := changeVolumes(tx, []string{id}, func(v *Volume) { v.MixedJob = run.ID() })
			if err != nil {
				return err
			}
		}
		if volumes, err = loadVolumes(tx, params.Volumes); err != nil {
			return err
		}
		out := out // the transaction may be run twice
		var mixed []string
		for _, v := range volumes {
			if v.MixedJob == run.ID() {
				mixed = append(mixed, named(v.ID))
			}
		}
		tell := more
		if len(mixed) > 0 {
			tell += fmt.Sprintf("; %s now holds a mixture of two states and is blocked: apply a snapshot to it again", strings.Join(mixed, ", "))
		}
		out.Info += tell
		out.ErrorMessage += tell
		if err := changeVolumes(tx, params.Volumes, func(v *Volume) { v.Transition = "" }); err != nil {
			return err
		}
		if err := owedMachines.add(tx, owed); err != nil {
			return err
		}
		return h.s.finish(tx, run, out)
	})
	if err == nil {
		h.s.serveByID(context.WithoutCancel(ctx), params.Volumes...)
	}
	return err
}

// keep pins what live volumes need after an apply that got stuck: it may have
// rolled some of them back. Of one that cannot tell both points stay.
func (h applyJob) keep(ctx context.Context, run *job.Run, params applyParams, volumes []Volume) func(tx Tx) error {
	type pin struct {
		volume, snapshot string
		also             bool // beside an older one
	}
	var pins []pin
	for i, v := range volumes {
		if !h.s.isLive(v) {
			continue
		}
		snapshot, err := h.s.neededPoint(ctx, v)
		if err != nil {
			run.Log.Error("ask a volume which snapshot it needs", "volume", v.ID, "error", err)
			snapshot = params.Points[i]
		}
		pins = append(pins, pin{v.ID, snapshot, err != nil})
	}
	return func(tx Tx) error {
		for _, p := range pins {
			if p.also {
				if err := tx.Pin(basePrefix+p.volume, p.snapshot); err != nil {
					return err
				}
				continue
			}
			if err := rebase(tx, p.volume, p.snapshot); err != nil {
				return err
			}
		}
		return nil
	}
}
