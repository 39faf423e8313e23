package metadb

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/uptrace/bun"

	"cairn/internal/chain"
	"cairn/internal/errs"
)

// listed is the part of a snapshot that lists select and order by. The counts
// and the search blocks are made of nothing else.
type listed struct {
	bun.BaseModel `bun:"table:snapshots"`

	ID         string `bun:"id,pk"`
	ResourceID string
	RootID     string
	IsFull     bool
	Status     chain.Status
	Zone       string
	CreateTime int64
	SearchKey  string
}

func (r snapshotRow) listed() listed {
	return listed{
		ID: r.ID, ResourceID: r.ResourceID, RootID: r.RootID, IsFull: r.IsFull,
		Status: r.Status, Zone: r.Zone, CreateTime: r.CreateTime, SearchKey: r.SearchKey,
	}
}

// scope is a list whose totals are kept.
type scope string

const (
	scopeZone     scope = "zone" // key: ""
	scopeResource scope = "resource"
	scopeRoot     scope = "root"
)

// countKey names one counter.
type countKey struct {
	Scope  scope
	Key    string
	Zone   string
	Status chain.Status
	IsFull bool
}

type countRow struct {
	bun.BaseModel `bun:"table:snapshot_counts,alias:c"`

	countKey
	N int64
}

// counters are the counters that a snapshot stands in.
func (l listed) counters() [3]countKey {
	k := countKey{Scope: scopeZone, Zone: l.Zone, Status: l.Status, IsFull: l.IsFull}
	r, c := k, k
	r.Scope, r.Key = scopeResource, l.ResourceID
	c.Scope, c.Key = scopeRoot, l.RootID
	return [3]countKey{k, r, c}
}

// relist brings counts and search up to date after a snapshot was inserted
// (before is nil) or changed.
func (t *tx) relist(before *listed, after listed) error {
	if _, ok := statusFlags[after.Status]; !ok {
		return errs.New(errs.Internal, "snapshot %s has the unknown status %q", after.ID, string(after.Status))
	}
	if t.loading || (before != nil && *before == after) {
		return nil
	}
	deltas := make(map[countKey]int64)
	for _, k := range after.counters() {
		deltas[k]++
	}
	if before != nil {
		for _, k := range before.counters() {
			deltas[k]--
		}
	}
	if err := t.addCounts(deltas); err != nil {
		return err
	}
	return t.reindex(before, after)
}

func (t *tx) addCounts(deltas map[countKey]int64) error {
	rows := make([]countRow, 0, len(deltas))
	for k, n := range deltas {
		if n != 0 {
			rows = append(rows, countRow{countKey: k, N: n})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	slices.SortFunc(rows, func(a, b countRow) int {
		return cmp.Or(cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Key, b.Key))
	})
	_, err := t.db.NewInsert().Model(&rows).
		On("CONFLICT (scope, key, zone, status, is_full) DO UPDATE").
		Set("n = c.n + EXCLUDED.n").Exec(t.ctx)
	if err != nil {
		return fmt.Errorf("count snapshots: %w", explain(err))
	}
	return nil
}

// counts reads the counters of one list, zone "" = all; empty ones are left
// out.
func (t *tx) counts(sc scope, key, zone string) ([]countRow, error) {
	var rows []countRow
	q := t.db.NewSelect().Model(&rows).
		Where("scope = ?", sc).Where("key = ?", key).Where("n > 0")
	if zone != "" {
		q = q.Where("zone = ?", zone)
	}
	if err := q.Scan(t.ctx); err != nil {
		return nil, fmt.Errorf("read the counts of snapshots: %w", explain(err))
	}
	return rows, nil
}
