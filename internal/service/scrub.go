package service

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

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
	DamageCut        int           `json:"damage_cut"`             // findings that are not listed
	HealedBlobs      []string      `json:"healed_blobs,omitempty"` // copies that a repair wrote anew
	HealedPacks      int           `json:"healed_packs,omitempty"` // damaged packs whose chunks were found elsewhere
}

// ScrubDamage is one finding.
type ScrubDamage struct {
	Blob     string `json:"blob,omitempty"`
	What     string `json:"what"`
	Snapshot string `json:"snapshot_id,omitempty"`
	Offset   int64  `json:"offset"`
	Length   int64  `json:"length"` // 0: none or all of the snapshot
}

// ScrubOptions is what a scrub does beyond looking.
type ScrubOptions struct {
	// Repair heals what can be healed: from a second copy, or from the same
	// chunk stored elsewhere.
	Repair bool `json:"repair,omitempty"`
	// Budget, if not 0, reads about that many bytes of packs that were not
	// verified for longest, and everything only if one of them is damaged.
	Budget int64 `json:"budget,omitempty"`
}

// Scrub starts reading and checking what the repository holds.
func (s *Service) Scrub(ctx context.Context, o Origin, opts ScrubOptions) (job.Job, error) {
	if err := s.checkZone(o.Zone); err != nil {
		return job.Job{}, err
	}
	if opts.Budget < 0 || opts.Budget > 0 && opts.Repair {
		return job.Job{}, errs.New(errs.Invalid, "a budget is a number of bytes above 0, and a repair has none: it must read everything")
	}
	return s.submit(ctx, o, job.ScrubRepository, func(tx Tx, j *job.Job) (any, error) {
		if err := refuseLocked(tx, "the repository", repositoryLock); err != nil {
			return nil, err
		}
		return opts, tx.Lock(j.ID, repositoryLock)
	})
}

// scrubJob checks the repository, and marks the points and packs that it finds
// damaged: nothing new is built on those.
type scrubJob struct{ s *Service }

func (h scrubJob) Do(ctx context.Context, run *job.Run) error {
	var opts ScrubOptions
	if err := run.Params(&opts); err != nil {
		return err
	}
	if err := h.s.abortParts(ctx, run); err != nil {
		return err
	}
	if opts.Budget > 0 {
		if whole, err := h.sample(ctx, run, opts.Budget); err != nil || whole {
			return err
		}
		run.Log.Warn("a pack is damaged; checking everything")
	}
	seen, found, err := h.scan(ctx, run)
	if err != nil {
		return err
	}
	var healed healing
	if opts.Repair && len(found.BadPacks)+len(found.LostCopies) > 0 {
		if healed, err = h.repair(ctx, run, found); err != nil {
			return err
		}
		if seen, found, err = h.scan(ctx, run); err != nil {
			return err
		}
	}
	if err := run.Flush(ctx); err != nil {
		return err
	}
	out, err := scrubOutcome(found, healed)
	if err != nil {
		return err
	}
	return h.s.store.Update(ctx, func(tx Tx) error {
		if err := markDamaged(tx, seen.points, found.DamagedPoint); err != nil {
			return err
		}
		if err := markPacks(tx, seen.packs, found.BadPacks, h.s.now()); err != nil {
			return err
		}
		return h.s.finish(tx, run, out)
	})
}

// scrubbed is what a scan looked at.
type scrubbed struct {
	points []engine.PointRef
	packs  []engine.PackRecord
}

// scan checks everything.
func (h scrubJob) scan(ctx context.Context, run *job.Run) (seen scrubbed, found engine.ScrubReport, err error) {
	err = h.s.store.View(ctx, func(tx Tx) error {
		err := tx.LivePoints(func(p Snapshot) error {
			seen.points = append(seen.points, p.ref())
			return nil
		})
		if err != nil {
			return err
		}
		return tx.Packs(func(p Pack) error {
			if p.State != PackDeleting {
				seen.packs = append(seen.packs, p.record())
			}
			return nil
		})
	})
	if err == nil {
		found, err = h.s.engine.Scrub(ctx, seen.points, seen.packs, run.Progress)
	}
	return seen, found, err
}

// sample checks the packs that were not verified for longest. whole: they are
// right, and the job has ended.
func (h scrubJob) sample(ctx context.Context, run *job.Run, budget int64) (whole bool, err error) {
	const step = 8 // packs at once
	report := ScrubReport{DamagedSnapshots: []string{}, Damage: []ScrubDamage{}}
	began := h.s.now()
	for report.BytesRead < budget {
		var packs []engine.PackRecord
		err := h.s.store.View(ctx, func(tx Tx) error {
			rows, err := tx.PacksToVerify(step)
			for _, p := range rows {
				if p.Verified.Before(began) {
					packs = append(packs, p.record())
				}
			}
			return err
		})
		if err != nil {
			return false, err
		}
		if len(packs) == 0 {
			break // all were
		}
		got, err := h.s.engine.CheckPacks(ctx, packs)
		if err != nil || len(got.Damage) > 0 {
			return false, err
		}
		err = h.s.store.Update(ctx, func(tx Tx) error { return markPacks(tx, packs, nil, h.s.now()) })
		if err != nil {
			return false, err
		}
		report.BytesRead += got.BytesRead
		report.Blobs += len(packs)
		run.Progress(min(report.BytesRead, budget), budget)
	}
	extra, err := json.Marshal(report)
	if err != nil {
		return false, fmt.Errorf("write the scrub's report: %w", err)
	}
	if err := run.Flush(ctx); err != nil {
		return false, err
	}
	out := job.Outcome{Status: job.Successful, Extra: string(extra), Info: "checked the packs that were not verified for longest"}
	return true, h.s.store.Update(ctx, func(tx Tx) error { return h.s.finish(tx, run, out) })
}

// healing is what a repair did.
type healing struct {
	copies []string // blobs written anew
	packs  int      // damaged packs whose chunks were found elsewhere
}

// repair heals what can be healed. What it has healed stays healed.
func (h scrubJob) repair(ctx context.Context, run *job.Run, found engine.ScrubReport) (healing, error) {
	var out healing
	var err error
	if out.copies, err = h.s.engine.HealCopies(ctx, found.LostCopies); err != nil {
		return out, err
	}
	if len(found.BadPacks) == 0 {
		return out, nil
	}
	if err := h.s.engine.RebuildIndex(ctx); err != nil {
		return out, err
	}
	c := &collection{s: h.s, run: run}
	c.report.UntouchedWhy = []string{}
	err = c.heal(ctx, found.BadPacks)
	if errs.Is(err, errs.Corrupt) {
		// A tree cannot be read, so what is needed cannot be told.
		run.Log.Warn("chunks cannot be healed before the points whose trees are damaged are deleted", "error", err)
		err = h.s.abortParts(ctx, run)
	}
	out.packs = c.report.HealedPacks
	return out, err
}

// scrubOutcome fails the job if anything is damaged, and reports either way.
func scrubOutcome(found engine.ScrubReport, healed healing) (job.Outcome, error) {
	report := ScrubReport{
		Points: found.Points, Blobs: found.Blobs, Chunks: found.Chunks, Nodes: found.Nodes, BytesRead: found.BytesRead,
		DamagedSnapshots: append([]string{}, found.DamagedPoint...), Damage: []ScrubDamage{}, DamageCut: found.DamageCut,
		HealedBlobs: append([]string{}, healed.copies...), HealedPacks: healed.packs,
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
		out = failed(errs.Corrupt, fmt.Sprintf("the scrub found %d damaged places that affect %d snapshots; the job's extra lists them; create full snapshots of the volumes concerned, repair, and delete those that are damaged still",
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

// markPacks writes to the rows of packs that were checked whether they are
// right. Packs that are gone meanwhile are passed over.
func markPacks(tx Tx, checked []engine.PackRecord, bad []string, now time.Time) error {
	for _, rec := range checked {
		p, ok, err := tx.Pack(rec.ID)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		p.Damaged = slices.Contains(bad, p.ID)
		if !p.Damaged {
			p.Verified = now
		}
		if err := tx.UpdatePack(p); err != nil {
			return err
		}
	}
	return nil
}

// Undo gives up what a repair has half-way; a scrub alone only reads.
func (h scrubJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	if err := h.s.abortParts(ctx, run); err != nil {
		return err
	}
	return h.s.store.Update(ctx, func(tx Tx) error { return h.s.finish(tx, run, out) })
}
