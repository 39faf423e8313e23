package metadb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/uptrace/bun"

	"cairn/internal/job"
)

// ClaimJob gives owner the oldest claimable job. Owner itself counts as alive
// even when alive does not list it: it is asking.
func (db *DB) ClaimJob(ctx context.Context, owner string, alive []string, now time.Time) (job.Job, bool, error) {
	living := append(slices.Clone(alive), owner)
	if idle, err := db.nothingToClaim(ctx, living); err != nil || idle {
		return job.Job{}, false, err
	}
	var claimed job.Job
	found := false
	err := db.updateTx(ctx, func(t *tx) error {
		var row jobRow
		err := claimable(t.db.NewSelect().Model(&row), living).
			OrderExpr("create_time, id").Limit(1).Scan(t.ctx)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for a job to claim: %w", explain(err))
		}
		row.Status = job.Working
		row.Owner = owner
		row.Term++
		if row.BeginTime == 0 {
			row.BeginTime = micros(now)
		}
		_, err = t.db.NewUpdate().Model(&row).
			Column("status", "owner", "term", "begin_time").WherePK().Exec(t.ctx)
		if err != nil {
			return fmt.Errorf("claim job %s: %w", row.ID, explain(err))
		}
		found = true
		claimed, err = row.job()
		return err
	})
	if err != nil {
		return job.Job{}, false, err
	}
	return claimed, found, nil
}

// nothingToClaim looks with a reader first, so that idle workers polling for
// work do not take the writer's turn.
func (db *DB) nothingToClaim(ctx context.Context, living []string) (bool, error) {
	n, err := claimable(db.read.NewSelect().Model((*jobRow)(nil)), living).Limit(1).Exists(ctx)
	if err != nil {
		return false, fmt.Errorf("look for a job to claim: %w", explain(err))
	}
	return !n, nil
}

// claimable selects pending jobs and those of owners that are gone. The first
// condition repeats the partial index's words, so that it serves.
func claimable(q *bun.SelectQuery, living []string) *bun.SelectQuery {
	return q.Where("status IN ('pending', 'working')").
		Where("status = 'pending' OR owner NOT IN (?)", bun.List(living))
}

// owned reads a working job of that term, or fails with job.ErrFenced.
func (t *tx) owned(id string, term int64) (jobRow, error) {
	row, err := t.jobRow(id)
	if err != nil {
		return jobRow{}, err
	}
	if row.Status != job.Working || row.Term != term {
		return jobRow{}, fmt.Errorf("job %s, term %d: %w", id, term, job.ErrFenced)
	}
	return row, nil
}

// SaveProgress writes progress and reports whether a cancel was asked for.
func (db *DB) SaveProgress(ctx context.Context, id string, term int64, p job.Progress) (bool, error) {
	cancel := false
	err := db.updateTx(ctx, func(t *tx) error {
		row, err := t.owned(id, term)
		if err != nil {
			return err
		}
		cancel = row.CancelRequested
		row.DoneBytes, row.TotalBytes = p.DoneBytes, p.TotalBytes
		_, err = t.db.NewUpdate().Model(&row).Column("done_bytes", "total_bytes").WherePK().Exec(t.ctx)
		if err != nil {
			return fmt.Errorf("save the progress of job %s: %w", id, explain(err))
		}
		return nil
	})
	return cancel && err == nil, err
}

// SaveState writes the handler's notes. A cancel and the way past the point
// of no return exclude each other: whichever is stored first wins.
func (db *DB) SaveState(ctx context.Context, id string, term int64, state json.RawMessage, noCancel bool) error {
	return db.updateTx(ctx, func(t *tx) error {
		row, err := t.owned(id, term)
		if err != nil {
			return err
		}
		if noCancel && !row.NoCancel && row.CancelRequested {
			return fmt.Errorf("job %s: %w", id, job.ErrCancelled)
		}
		row.NoCancel = row.NoCancel || noCancel
		return t.saveState(row, state)
	})
}

func (t *tx) saveState(row jobRow, state json.RawMessage) error {
	row.State = string(state)
	_, err := t.db.NewUpdate().Model(&row).Column("state", "no_cancel").WherePK().Exec(t.ctx)
	if err != nil {
		return fmt.Errorf("save the state of job %s: %w", row.ID, explain(err))
	}
	return nil
}

func (t *tx) SaveJobState(id string, term int64, state json.RawMessage) error {
	row, err := t.owned(id, term)
	if err != nil {
		return err
	}
	return t.saveState(row, state)
}

// RequestCancel marks a job that has not ended and may still be cancelled.
func (db *DB) RequestCancel(ctx context.Context, id string) (job.Job, error) {
	var out job.Job
	err := db.updateTx(ctx, func(t *tx) error {
		row, err := t.jobRow(id)
		if err != nil {
			return err
		}
		switch {
		case row.Status.Ended():
			return fmt.Errorf("cancel job %s: %w", id, job.ErrEnded)
		case row.NoCancel:
			return fmt.Errorf("cancel job %s: %w", id, job.ErrNoCancel)
		}
		row.CancelRequested = true
		if _, err := t.db.NewUpdate().Model(&row).Column("cancel_requested").WherePK().Exec(t.ctx); err != nil {
			return fmt.Errorf("cancel job %s: %w", id, explain(err))
		}
		out, err = row.job()
		return err
	})
	if err != nil {
		return job.Job{}, err
	}
	return out, nil
}
