package service

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"cairn/internal/errs"
	"cairn/internal/job"
)

// repositoryLock is what a scrub and a prune lock: one of them runs at a time,
// as a scrub would take what a prune deletes for missing.
const repositoryLock = "repository"

// PruneOptions is what a prune may do.
type PruneOptions struct {
	DryRun   bool  `json:"dry_run,omitempty"`   // only find out what it would free
	EmptyBin bool  `json:"empty_bin,omitempty"` // deleted points cease at once
	MaxCopy  int64 `json:"max_copy,omitempty"`  // bytes copied to get at garbage; 0: the configured bound
}

// PruneReport is what a prune's job has in Extra, as JSON. Bytes count all
// copies of a blob.
type PruneReport struct {
	AsOf         time.Time `json:"as_of"` // when the mark that all this rests on began
	DryRun       bool      `json:"dry_run"`
	CeasedPoints int       `json:"ceased_points"` // taken out of the recycle bin by this prune
	StoredBytes  int64     `json:"stored_bytes"`  // of the repository when the mark began
	FreedBytes   int64     `json:"freed_bytes"`   // by which the repository shrank; dry run: of packs that nothing needs
	FreedPacks   int       `json:"freed_packs"`   // packs deleted
	LeavingBytes int64     `json:"leaving_bytes"` // of packs that nothing needs, left to the next prune as a backup runs
	WasteBytes   int64     `json:"waste_bytes"`   // garbage in packs that are partly needed, before copying
	// ReachableBytes is, in a dry run, the part of WasteBytes that copying would
	// free, but for what the copies need for their own order.
	ReachableBytes int64    `json:"reachable_bytes"`
	CopiedBytes    int64    `json:"copied_bytes"`  // written anew to get at garbage
	CopiedPacks    int      `json:"copied_packs"`  // packs that were emptied so
	UntouchedWhy   []string `json:"untouched_why"` // packs that could not be copied, and why
	StrayBytes     int64    `json:"stray_bytes"`   // of blobs that nobody had registered, in freed_bytes too
	HealedPacks    int      `json:"healed_packs"`  // of the emptied ones, those with damage whose chunks were found elsewhere
}

// Prune starts giving the space back that nothing needs any more.
func (s *Service) Prune(ctx context.Context, o Origin, opts PruneOptions) (job.Job, error) {
	if err := s.checkZone(o.Zone); err != nil {
		return job.Job{}, err
	}
	if opts.MaxCopy < 0 {
		return job.Job{}, errs.New(errs.Invalid, "max_copy is negative; give a number of bytes, or leave it out")
	}
	if opts.DryRun && opts.EmptyBin {
		return job.Job{}, errs.New(errs.Invalid, "empty_bin ends points for good, and a dry run changes nothing; leave one of them out")
	}
	return s.submit(ctx, o, job.PruneRepository, func(tx Tx, j *job.Job) (any, error) {
		if err := refuseLocked(tx, "the repository", repositoryLock); err != nil {
			return nil, err
		}
		return opts, tx.Lock(j.ID, repositoryLock)
	})
}

// pruneJob collects garbage. What it has done stays done: a term that goes on
// after a crash, and an undo, only give up what is half-way.
type pruneJob struct{ s *Service }

func (h pruneJob) Do(ctx context.Context, run *job.Run) error {
	c := &collection{s: h.s, run: run}
	if err := run.Params(&c.opts); err != nil {
		return err
	}
	if c.opts.MaxCopy == 0 {
		c.opts.MaxCopy = h.s.maxCopy
	}
	if err := h.s.abortParts(ctx, run); err != nil {
		return err
	}
	if err := c.collect(ctx); err != nil {
		if errs.Is(err, errs.Corrupt) {
			return errs.Wrap(errs.Corrupt, err, "the prune stopped, because the repository is damaged, and deletes nothing before that is mended: %s", errs.Message(err))
		}
		return err
	}
	extra, err := json.Marshal(c.report)
	if err != nil {
		return fmt.Errorf("write the prune's report: %w", err)
	}
	if err := run.Flush(ctx); err != nil {
		return err
	}
	return h.s.store.Update(ctx, func(tx Tx) error {
		if !c.opts.DryRun {
			if err := tx.SetSetting(lastPruneKey, string(extra)); err != nil {
				return err
			}
			if c.report.LeavingBytes == 0 {
				if err := setNumber(tx, pruneDueKey, 0); err != nil {
					return err
				}
			}
		}
		return h.s.finish(tx, run, job.Outcome{Status: job.Successful, Extra: string(extra), Info: c.info()})
	})
}

// Undo gives up what is half-way; nobody refers to it.
func (h pruneJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	if err := h.s.abortParts(ctx, run); err != nil {
		return err
	}
	return h.s.store.Update(ctx, func(tx Tx) error { return h.s.finish(tx, run, out) })
}

// Settings that prunes leave.
const (
	lastPruneKey = "last_prune" // the report of the last one, as JSON
	pruneDueKey  = "prune_due"  // 1: points have ceased since
)
