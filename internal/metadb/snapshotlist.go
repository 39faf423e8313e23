package metadb

import (
	"fmt"

	"github.com/uptrace/bun"

	"cairn/internal/chain"
	"cairn/internal/service"
)

func (t *tx) Snapshots(f service.SnapshotFilter) ([]service.Snapshot, int, error) {
	where := func(q *bun.SelectQuery) *bun.SelectQuery {
		if f.Zone != "" {
			q = q.Where("zone = ?", f.Zone)
		}
		if len(f.IDs) > 0 {
			q = q.Where("id IN (?)", bun.In(f.IDs))
		}
		if f.ResourceID != "" {
			q = q.Where("resource_id = ?", f.ResourceID)
		}
		if f.RootID != "" {
			q = q.Where("root_id = ?", f.RootID).Where("is_full = 0")
		}
		if f.Full != nil {
			q = q.Where("is_full = ?", *f.Full)
		}
		switch {
		case len(f.Statuses) > 0:
			q = q.Where("status IN (?)", bun.In(f.Statuses))
		case len(f.IDs) == 0:
			q = q.Where("status NOT IN (?)", bun.In([]chain.Status{chain.Deleted, chain.Ceased}))
		}
		if f.Search != "" {
			q = q.Where("instr(search_key, ?) > 0", searchWord(f.Search))
		}
		return q
	}
	count, err := where(t.db.NewSelect().Model((*snapshotRow)(nil))).Count(t.ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("count snapshots: %w", explain(err))
	}
	total := int(count)
	if f.Offset >= total || f.Limit <= 0 {
		return nil, total, nil
	}
	var rows []snapshotRow
	err = where(t.db.NewSelect().Model(&rows)).OrderExpr("create_time DESC, id").
		Offset(int64(f.Offset)).Limit(int64(f.Limit)).Scan(t.ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("list snapshots: %w", explain(err))
	}
	return toSnapshots(rows), total, nil
}
