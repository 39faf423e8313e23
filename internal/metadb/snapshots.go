package metadb

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/uptrace/bun"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/service"
)

// streamRows is how many rows LivePoints and Packs read at a time: they page
// by id, so that fn may use the transaction meanwhile.
const streamRows = 1000

func (t *tx) InsertSnapshot(s service.Snapshot) error {
	row := snapshotToRow(s)
	if _, err := t.db.NewInsert().Model(&row).Exec(t.ctx); err != nil {
		return snapshotWriteError(s, "insert", err)
	}
	return t.relist(nil, row.listed())
}

// snapshotWriteError names what a unique index refused.
func snapshotWriteError(s service.Snapshot, act string, err error) error {
	if taken(err) {
		return errs.Wrap(errs.Exists, err, "snapshot %s cannot be stored: its id is taken, or resource %s has another head", s.ID, s.ResourceID)
	}
	return fmt.Errorf("%s snapshot %s: %w", act, s.ID, explain(err))
}

func (t *tx) Snapshot(zone, id string) (service.Snapshot, error) {
	var row snapshotRow
	q := t.db.NewSelect().Model(&row).Where("id = ?", id)
	if zone != "" {
		q = q.Where("zone = ?", shelf(zone, service.IsImage(id)))
	}
	err := q.Scan(t.ctx)
	if errors.Is(err, sql.ErrNoRows) {
		return service.Snapshot{}, errs.New(errs.NotFound, "%s %s does not exist", service.Noun(id), id)
	}
	if err != nil {
		return service.Snapshot{}, fmt.Errorf("read snapshot %s: %w", id, explain(err))
	}
	return row.snapshot(), nil
}

func (t *tx) UpdateSnapshot(s service.Snapshot) error {
	row := snapshotToRow(s)
	var before listed
	err := t.db.NewSelect().Model(&before).Where("id = ?", s.ID).Scan(t.ctx)
	if errors.Is(err, sql.ErrNoRows) {
		return errs.New(errs.NotFound, "snapshot %s does not exist", s.ID)
	}
	if err != nil {
		return fmt.Errorf("read snapshot %s: %w", s.ID, explain(err))
	}
	if _, err := t.db.NewUpdate().Model(&row).WherePK().Exec(t.ctx); err != nil {
		return snapshotWriteError(s, "update", err)
	}
	return t.relist(&before, row.listed())
}

func (t *tx) Chain(rootID string) ([]service.Snapshot, error) {
	var rows []snapshotRow
	err := t.db.NewSelect().Model(&rows).
		Where("root_id = ?", rootID).Where("status <> ?", chain.Ceased).
		OrderExpr("is_full DESC, snapshot_time, id").Scan(t.ctx)
	if err != nil {
		return nil, fmt.Errorf("read the chain of %s: %w", rootID, explain(err))
	}
	return toSnapshots(rows), nil
}

func toSnapshots(rows []snapshotRow) []service.Snapshot {
	out := make([]service.Snapshot, len(rows))
	for i, r := range rows {
		out[i] = r.snapshot()
	}
	return out
}

func (t *tx) Head(resourceID string) (service.Snapshot, bool, error) {
	var row snapshotRow
	err := t.db.NewSelect().Model(&row).
		Where("resource_id = ?", resourceID).Where("is_head = 1").Scan(t.ctx)
	if errors.Is(err, sql.ErrNoRows) {
		return service.Snapshot{}, false, nil
	}
	if err != nil {
		return service.Snapshot{}, false, fmt.Errorf("read the head of %s: %w", resourceID, explain(err))
	}
	return row.snapshot(), true, nil
}

func (t *tx) LivePoints(fn func(s service.Snapshot) error) error {
	last := ""
	for {
		var rows []snapshotRow
		if err := t.livePoints(last).Scan(t.ctx, &rows); err != nil {
			return fmt.Errorf("list live points: %w", explain(err))
		}
		for _, r := range rows {
			if err := fn(r.snapshot()); err != nil {
				return err
			}
			last = r.ID
		}
		if len(rows) < streamRows {
			return nil
		}
	}
}

// livePoints selects the next of them by id.
func (t *tx) livePoints(after string) *bun.SelectQuery {
	return t.db.NewSelect().Model((*snapshotRow)(nil)).Where("id > ?", after).
		Where("status NOT IN (?, ?)", chain.Pending, chain.Ceased).
		OrderExpr("id").Limit(streamRows)
}

func (t *tx) ExpiredPoints(binClock int64, limit int) ([]service.Snapshot, error) {
	var rows []snapshotRow
	err := t.db.NewSelect().Model(&rows).Where("status = 'deleted'").Where("bin_clock <= ?", binClock).
		Where("NOT EXISTS (SELECT 1 FROM pins WHERE snapshot_id = snapshot_row.id)").
		OrderExpr("bin_clock, id").Limit(int64(limit)).Scan(t.ctx)
	if err != nil {
		return nil, fmt.Errorf("list expired points: %w", explain(err))
	}
	return toSnapshots(rows), nil
}

// SetUnique leaves the lists alone: no list selects or orders by it.
func (t *tx) SetUnique(id string, uniqueBytes int64) error {
	_, err := t.db.NewUpdate().Model((*snapshotRow)(nil)).
		Set("unique_bytes = ?", uniqueBytes).Set("unique_known = 1").Where("id = ?", id).Exec(t.ctx)
	if err != nil {
		return fmt.Errorf("write the unique bytes of %s: %w", id, explain(err))
	}
	return nil
}
