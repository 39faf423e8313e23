package metadb

import (
	"context"
	"fmt"
)

// listVersion is the version of everything derived from the snapshot rows:
// search keys, counts, blocks. Open rebuilds them when the stored one differs.
const listVersion = "1"

const listVersionKey = "metadb.list_version"

// rebuildLists makes what is derived afresh if another version of this
// program made it. A million rows take some tens of seconds.
func (db *DB) rebuildLists(ctx context.Context) error {
	return db.updateTx(ctx, func(t *tx) error {
		have, err := t.Setting(listVersionKey)
		if err != nil || have == listVersion {
			return err
		}
		if err := t.rebuild(); err != nil {
			return err
		}
		return t.SetSetting(listVersionKey, listVersion)
	})
}

// rebuild derives counts and search blocks from the rows.
func (t *tx) rebuild() error {
	for _, stmt := range []string{
		`DELETE FROM snapshot_search`,
		`DELETE FROM snapshot_counts`,
		`INSERT INTO snapshot_counts SELECT 'zone', '', zone, status, is_full, count(*) FROM snapshots GROUP BY zone, status, is_full`,
		`INSERT INTO snapshot_counts SELECT 'resource', resource_id, zone, status, is_full, count(*) FROM snapshots GROUP BY resource_id, zone, status, is_full`,
		`INSERT INTO snapshot_counts SELECT 'root', root_id, zone, status, is_full, count(*) FROM snapshots GROUP BY root_id, zone, status, is_full`,
	} {
		if _, err := t.db.ExecContext(t.ctx, stmt); err != nil {
			return fmt.Errorf("rebuild the counts of snapshots: %w", explain(err))
		}
	}
	var zones []string
	if err := t.db.NewRaw("SELECT DISTINCT zone FROM snapshots ORDER BY zone").Scan(t.ctx, &zones); err != nil {
		return fmt.Errorf("list the zones of snapshots: %w", explain(err))
	}
	for _, z := range zones {
		if err := t.rebuildZone(z); err != nil {
			return err
		}
	}
	return nil
}

// namedListed is a listed row with what its search key is made of.
type namedListed struct {
	listed `bun:",extend"`

	Name string
}

func (t *tx) rebuildZone(zone string) error {
	var block []entry
	for first, last := true, (listed{}); ; first = false {
		var rows []namedListed
		q := t.db.NewSelect().Model(&rows).Where("zone = ?", zone)
		if !first {
			q = q.Where("create_time <= ?", last.CreateTime).
				Where("create_time < ? OR id > ?", last.CreateTime, last.ID)
		}
		if err := q.OrderExpr("create_time DESC, id").Limit(streamRows).Scan(t.ctx); err != nil {
			return fmt.Errorf("read the snapshots of zone %s: %w", zone, explain(err))
		}
		for _, r := range rows {
			if key := searchKey(r.ID, r.Name); key != r.SearchKey {
				r.SearchKey = key
				if _, err := t.db.NewUpdate().Model(&r.listed).Column("search_key").WherePK().Exec(t.ctx); err != nil {
					return fmt.Errorf("renew the search key of %s: %w", r.ID, explain(err))
				}
			}
			block = append(block, newEntry(r.listed))
			if parts := t.limits.split(block, len(block)-1); len(parts) > 1 {
				if err := t.storeBlock(zone, parts[0]); err != nil {
					return err
				}
				block = append([]entry(nil), parts[1]...)
			}
			last = r.listed
		}
		if len(rows) < streamRows {
			break
		}
	}
	if len(block) == 0 {
		return nil
	}
	return t.storeBlock(zone, block)
}
