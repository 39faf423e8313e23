package metadb

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/uptrace/bun"

	"cairn/internal/errs"
)

// maxIDs bounds how many ids one statement names.
const maxIDs = 500

func (t *tx) Lock(holder string, resources ...string) error {
	for _, r := range resources {
		have, ok, err := t.LockedBy(r)
		if err != nil {
			return err
		}
		if ok && have != holder {
			return errs.New(errs.Busy, "%s is in use by job %s; please try later", r, have)
		}
	}
	for _, r := range resources {
		row := lockRow{ResourceID: r, Holder: holder}
		if _, err := t.db.NewInsert().Model(&row).On("CONFLICT DO NOTHING").Exec(t.ctx); err != nil {
			return fmt.Errorf("lock %s for %s: %w", r, holder, explain(err))
		}
	}
	return nil
}

func (t *tx) Unlock(holder string) error {
	if _, err := t.db.NewDelete().Model((*lockRow)(nil)).Where("holder = ?", holder).Exec(t.ctx); err != nil {
		return fmt.Errorf("release the locks of %s: %w", holder, explain(err))
	}
	return nil
}

func (t *tx) LockedBy(resource string) (string, bool, error) {
	var row lockRow
	err := t.db.NewSelect().Model(&row).Where("resource_id = ?", resource).Scan(t.ctx)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("look up the lock of %s: %w", resource, explain(err))
	}
	return row.Holder, true, nil
}

func (t *tx) Pin(holder string, snapshots ...string) error {
	for _, s := range snapshots {
		row := pinRow{SnapshotID: s, Holder: holder}
		if _, err := t.db.NewInsert().Model(&row).On("CONFLICT DO NOTHING").Exec(t.ctx); err != nil {
			return fmt.Errorf("pin %s for %s: %w", s, holder, explain(err))
		}
	}
	return nil
}

func (t *tx) Unpin(holder string) error {
	if _, err := t.db.NewDelete().Model((*pinRow)(nil)).Where("holder = ?", holder).Exec(t.ctx); err != nil {
		return fmt.Errorf("release the pins of %s: %w", holder, explain(err))
	}
	return nil
}

func (t *tx) Pinned(snapshots ...string) (snapshot, holder string, ok bool, err error) {
	for start := 0; start < len(snapshots); start += maxIDs {
		part := snapshots[start:min(start+maxIDs, len(snapshots))]
		var rows []pinRow
		err := t.db.NewSelect().Model(&rows).Where("snapshot_id IN (?)", bun.List(part)).
			OrderExpr("snapshot_id, holder").Scan(t.ctx)
		if err != nil {
			return "", "", false, fmt.Errorf("look up pins: %w", explain(err))
		}
		for _, s := range part {
			for _, r := range rows {
				if r.SnapshotID == s {
					return s, r.Holder, true, nil
				}
			}
		}
	}
	return "", "", false, nil
}

func (t *tx) Holders() ([]string, error) {
	var out []string
	err := t.db.NewRaw("SELECT holder FROM locks UNION SELECT holder FROM pins ORDER BY 1").Scan(t.ctx, &out)
	if err != nil {
		return nil, fmt.Errorf("list the holders of locks and pins: %w", explain(err))
	}
	return out, nil
}
