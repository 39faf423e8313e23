package metadb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/uptrace/bun"

	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

func jobToRow(j job.Job) (jobRow, error) {
	var list []byte
	if len(j.ResourceIDs) > 0 {
		var err error
		if list, err = json.Marshal(j.ResourceIDs); err != nil {
			return jobRow{}, fmt.Errorf("encode the resource ids of job %s: %w", j.ID, err)
		}
	}
	return jobRow{
		ID: j.ID, Action: j.Action, Zone: j.Zone, RequestID: j.RequestID, Status: j.Status,
		CreateTime: micros(j.CreateTime), BeginTime: micros(j.BeginTime), FinishedTime: micros(j.FinishedTime),
		Info: j.Info, Extra: j.Extra, ResourceIDs: string(list),
		DoneBytes: j.Progress.DoneBytes, TotalBytes: j.Progress.TotalBytes,
		ErrorCode: j.ErrorCode, ErrorMessage: j.ErrorMessage,
		Params: string(j.Params), State: string(j.State),
		CancelRequested: j.CancelRequested, NoCancel: j.NoCancel, Owner: j.Owner, Term: j.Term,
	}, nil
}

func (r jobRow) job() (job.Job, error) {
	j := job.Job{
		ID: r.ID, Action: r.Action, Zone: r.Zone, RequestID: r.RequestID, Status: r.Status,
		CreateTime: fromMicros(r.CreateTime), BeginTime: fromMicros(r.BeginTime), FinishedTime: fromMicros(r.FinishedTime),
		Info: r.Info, Extra: r.Extra,
		Progress:  job.Progress{DoneBytes: r.DoneBytes, TotalBytes: r.TotalBytes},
		ErrorCode: r.ErrorCode, ErrorMessage: r.ErrorMessage,
		CancelRequested: r.CancelRequested, NoCancel: r.NoCancel, Owner: r.Owner, Term: r.Term,
	}
	if r.Params != "" {
		j.Params = json.RawMessage(r.Params)
	}
	if r.State != "" {
		j.State = json.RawMessage(r.State)
	}
	if r.ResourceIDs == "" {
		return j, nil
	}
	if err := json.Unmarshal([]byte(r.ResourceIDs), &j.ResourceIDs); err != nil {
		return job.Job{}, errs.Wrap(errs.Corrupt, err, "the row of job %s cannot be read", r.ID)
	}
	return j, nil
}

func (t *tx) InsertJob(j job.Job) error {
	row, err := jobToRow(j)
	if err != nil {
		return err
	}
	if _, err := t.db.NewInsert().Model(&row).Exec(t.ctx); err != nil {
		if taken(err) {
			return errs.Wrap(errs.Exists, err, "job %s exists already", j.ID)
		}
		return fmt.Errorf("insert job %s: %w", j.ID, explain(err))
	}
	if len(j.ResourceIDs) == 0 {
		return nil
	}
	links := make([]jobResourceRow, len(j.ResourceIDs))
	for i, id := range j.ResourceIDs {
		links[i] = jobResourceRow{ResourceID: id, JobID: j.ID}
	}
	if _, err := t.db.NewInsert().Model(&links).On("CONFLICT DO NOTHING").Exec(t.ctx); err != nil {
		return fmt.Errorf("insert the resources of job %s: %w", j.ID, explain(err))
	}
	return nil
}

func (t *tx) Job(id string) (job.Job, error) {
	row, err := t.jobRow(id)
	if err != nil {
		return job.Job{}, err
	}
	return row.job()
}

func (t *tx) jobRow(id string) (jobRow, error) {
	var row jobRow
	err := t.db.NewSelect().Model(&row).Where("id = ?", id).Scan(t.ctx)
	if errors.Is(err, sql.ErrNoRows) {
		return jobRow{}, errs.New(errs.NotFound, "job %s does not exist", id)
	}
	if err != nil {
		return jobRow{}, fmt.Errorf("read job %s: %w", id, explain(err))
	}
	return row, nil
}

func (t *tx) Jobs(f service.JobFilter) ([]job.Job, int, error) {
	count, err := jobsWhere(t.db.NewSelect().Model((*jobRow)(nil)), f).Count(t.ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("count jobs: %w", explain(err))
	}
	total := int(count)
	if f.Offset >= total || f.Limit <= 0 {
		return nil, total, nil
	}
	var rows []jobRow
	err = jobsWhere(t.db.NewSelect().Model(&rows), f).OrderExpr("create_time DESC, id").
		Offset(int64(f.Offset)).Limit(int64(f.Limit)).Scan(t.ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("list jobs: %w", explain(err))
	}
	out := make([]job.Job, len(rows))
	for i, r := range rows {
		if out[i], err = r.job(); err != nil {
			return nil, 0, err
		}
	}
	return out, total, nil
}

func jobsWhere(q *bun.SelectQuery, f service.JobFilter) *bun.SelectQuery {
	if f.Zone != "" {
		q = q.Where("zone = ?", f.Zone)
	}
	if len(f.Statuses) > 0 {
		q = q.Where("status IN (?)", bun.List(f.Statuses))
	}
	if onlyUnfinished(f.Statuses) {
		// They are few among many: said in the words of the partial index, and
		// by its name, or SQLite would rather avoid sorting them.
		q = q.ModelTableExpr("jobs AS job_row INDEXED BY jobs_unfinished").
			Where("status IN ('pending', 'working')")
	}
	if f.Resource != "" {
		q = q.Where("id IN (SELECT job_id FROM job_resources WHERE resource_id = ?)", f.Resource)
	}
	return q
}

func onlyUnfinished(ss []job.Status) bool {
	for _, s := range ss {
		if s.Ended() {
			return false
		}
	}
	return len(ss) > 0
}

func (t *tx) FinishJob(id string, term int64, out job.Outcome) error {
	if !out.Status.Ended() {
		return errs.New(errs.Internal, "job %s cannot end as %s", id, out.Status)
	}
	row, err := t.jobRow(id)
	if err != nil {
		return err
	}
	unclaimed := term < 0 && row.Status == job.Pending
	owned := row.Status == job.Working && row.Term == term
	if !unclaimed && !owned {
		return fmt.Errorf("end job %s: %w", id, job.ErrFenced)
	}
	_, err = t.db.NewUpdate().Model((*jobRow)(nil)).Where("id = ?", id).
		Set("status = ?", out.Status).Set("info = ?", out.Info).Set("extra = ?", out.Extra).
		Set("error_code = ?", out.ErrorCode).Set("error_message = ?", out.ErrorMessage).
		Set("finished_time = ?", micros(out.Time)).Exec(t.ctx)
	if err != nil {
		return fmt.Errorf("end job %s: %w", id, explain(err))
	}
	return nil
}

// updateTx is Update for the methods of job.Store.
func (db *DB) updateTx(ctx context.Context, fn func(t *tx) error) error {
	return db.inTx(ctx, db.write, func(st service.Tx) error { return fn(st.(*tx)) })
}
