package service

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/job"
)

// ScrubReport is what a scrub's job has in Extra, as JSON.
type ScrubReport struct {
	Points           int           `json:"points"`
	Blobs            int           `json:"blobs"`
	Chunks           int64         `json:"chunks"`
	Nodes            int64         `json:"nodes"`
	BytesRead        int64         `json:"bytes_read"`
	DamagedSnapshots []string      `json:"damaged_snapshots"`
	Damage           []ScrubDamage `json:"damage"`
	DamageCut        int           `json:"damage_cut"` // findings that are not listed
}

// ScrubDamage is one finding.
type ScrubDamage struct {
	Blob     string `json:"blob,omitempty"`
	What     string `json:"what"`
	Snapshot string `json:"snapshot_id,omitempty"`
	Offset   int64  `json:"offset"`
	Length   int64  `json:"length"` // 0: none or all of the snapshot
}

// Scrub starts reading and checking everything that the repository holds.
func (s *Service) Scrub(ctx context.Context, zone, requestID string) (job.Job, error) {
	if err := s.checkZone(zone); err != nil {
		return job.Job{}, err
	}
	return s.submit(ctx, Origin{Zone: zone, RequestID: requestID}, job.ScrubRepository, func(tx Tx, j *job.Job) (any, error) {
		if err := refuseLocked(tx, "the repository", repositoryLock); err != nil {
			return nil, err
		}
		return struct{}{}, tx.Lock(j.ID, repositoryLock)
	})
}

// scrubJob checks the repository and marks the points that it finds damaged.
type scrubJob struct{ s *Service }

func (h scrubJob) Do(ctx context.Context, run *job.Run) error {
	var refs []engine.PointRef
	var packs []engine.PackRecord
	err := h.s.store.View(ctx, func(tx Tx) error {
		err := tx.LivePoints(func(p Snapshot) error {
			refs = append(refs, p.ref())
			return nil
		})
		if err != nil {
			return err
		}
		return tx.Packs(func(p Pack) error {
			if p.State != PackDeleting {
				packs = append(packs, p.record())
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	found, err := h.s.engine.Scrub(ctx, refs, packs, run.Progress)
	if err != nil {
		return err
	}
	if err := run.Flush(ctx); err != nil {
		return err
	}
	out, err := scrubOutcome(found)
	if err != nil {
		return err
	}
	return h.s.store.Update(ctx, func(tx Tx) error {
		if err := markDamaged(tx, refs, found.DamagedPoint); err != nil {
			return err
		}
		return h.s.finish(tx, run, out)
	})
}

// scrubOutcome fails the job if anything is damaged, and reports either way.
func scrubOutcome(found engine.ScrubReport) (job.Outcome, error) {
	report := ScrubReport{
		Points: found.Points, Blobs: found.Blobs, Chunks: found.Chunks, Nodes: found.Nodes, BytesRead: found.BytesRead,
		DamagedSnapshots: append([]string{}, found.DamagedPoint...), Damage: []ScrubDamage{}, DamageCut: found.DamageCut,
	}
	for _, d := range found.Damage {
		report.Damage = append(report.Damage, ScrubDamage(d))
	}
	extra, err := json.Marshal(report)
	if err != nil {
		return job.Outcome{}, fmt.Errorf("write the scrub's report: %w", err)
	}
	out := job.Outcome{Status: job.Successful, Extra: string(extra)}
	if n := len(found.Damage) + found.DamageCut; n > 0 || len(found.DamagedPoint) > 0 {
		out = failed(errs.Corrupt, fmt.Sprintf("the scrub found %d damaged places that affect %d snapshots; the job's extra lists them; create full snapshots of the volumes concerned and delete the damaged ones",
			n, len(found.DamagedPoint)))
		out.Extra = string(extra)
	}
	return out, nil
}

// markDamaged writes what the scrub found to the rows it has looked at.
func markDamaged(tx Tx, checked []engine.PointRef, damaged []string) error {
	looked := map[chain.ID]bool{}
	for _, r := range checked {
		looked[r.Snapshot] = true
	}
	var change []chain.ID
	err := tx.LivePoints(func(p Snapshot) error {
		if looked[p.ID] && p.Damaged != slices.Contains(damaged, p.ID) {
			change = append(change, p.ID)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return changeSnapshots(tx, change, func(p *Snapshot) { p.Damaged = !p.Damaged })
}

// Undo changes nothing: a scrub only reads.
func (h scrubJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	return h.s.store.Update(ctx, func(tx Tx) error { return h.s.finish(tx, run, out) })
}
