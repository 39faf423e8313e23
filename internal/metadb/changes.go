package metadb

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/uptrace/bun"

	"cairn/internal/service"
)

type changeRow struct {
	bun.BaseModel `bun:"table:journal_outbox"`

	Number int64 `bun:"number,pk"`
	Kind   service.ChangeKind
	ID     string `bun:"id"`
}

func (t *tx) Changes(above int64, limit int) ([]service.Change, error) {
	var rows []changeRow
	err := t.db.NewSelect().Model(&rows).Where("number > ?", above).OrderExpr("number").Limit(int64(limit)).Scan(t.ctx)
	if err != nil {
		return nil, fmt.Errorf("list the changes that the journal lacks: %w", explain(err))
	}
	out := make([]service.Change, len(rows))
	for i, r := range rows {
		out[i] = service.Change{Number: r.Number, Kind: r.Kind, ID: r.ID}
	}
	return out, nil
}

// LastChange asks for the counter behind AUTOINCREMENT, which survives the
// rows.
func (t *tx) LastChange() (int64, error) {
	var n int64
	err := t.db.QueryRowContext(t.ctx, `SELECT seq FROM sqlite_sequence WHERE name = 'journal_outbox'`).Scan(&n)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("read the number of the last change: %w", explain(err))
	}
	return n, nil
}

func (t *tx) ForgetChanges(upTo int64) error {
	_, err := t.db.NewDelete().Model((*changeRow)(nil)).Where("number <= ?", upTo).Exec(t.ctx)
	if err != nil {
		return fmt.Errorf("forget changes that the journal has: %w", explain(err))
	}
	return nil
}

func (t *tx) SnapshotsAfter(id string, limit int) ([]service.Snapshot, error) {
	var rows []snapshotRow
	err := t.db.NewSelect().Model(&rows).Where("id > ?", id).OrderExpr("id").Limit(int64(limit)).Scan(t.ctx)
	if err != nil {
		return nil, fmt.Errorf("list snapshots by id: %w", explain(err))
	}
	return toSnapshots(rows), nil
}

func (t *tx) VolumesAfter(id string, limit int) ([]service.Volume, error) {
	var rows []volumeRow
	err := t.db.NewSelect().Model(&rows).Where("id > ?", id).OrderExpr("id").Limit(int64(limit)).Scan(t.ctx)
	if err != nil {
		return nil, fmt.Errorf("list volumes by id: %w", explain(err))
	}
	return toVolumes(rows), nil
}
