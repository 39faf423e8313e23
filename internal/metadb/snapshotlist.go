package metadb

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/uptrace/bun"

	"cairn/internal/chain"
	"cairn/internal/service"
)

// Snapshots finds the ids of the page in an index alone and then reads only
// those rows. Four ways, by filter: given ids are looked up; a search runs
// over the search blocks; other lists are counted by counters and walked in
// an index from the nearer end; what is left, combinations over short lists,
// is left to the database.
func (t *tx) Snapshots(f service.SnapshotFilter) ([]service.Snapshot, int, error) {
	f.Offset = min(max(f.Offset, 0), math.MaxInt32) // so that sums stay in range
	f.Limit = min(max(f.Limit, 0), math.MaxInt32)
	ids, total, err := t.snapshotIDs(f)
	if err != nil {
		return nil, 0, err
	}
	rows, err := t.snapshotsByID(ids)
	return rows, total, err
}

func (t *tx) snapshotIDs(f service.SnapshotFilter) ([]string, int, error) {
	if len(f.IDs) > 0 {
		return t.idsAmong(f)
	}
	list, err := t.list(f)
	switch {
	case err != nil:
		return nil, 0, err
	case list.total == 0:
		return nil, 0, nil
	case list.zone == "" && list.scope == scopeZone:
		return t.idsByScan(f) // of several zones: nobody asks for that often
	}
	f.Zone = list.zone
	switch {
	case f.Search != "" && f.Zone != "" && list.all > t.limits.scanRows:
		return t.searchPage(f)
	case f.Search != "" || (f.RootID != "" && f.ResourceID != ""):
		return t.idsByScan(f)
	case f.Offset >= list.total || f.Limit == 0:
		return nil, list.total, nil
	}
	ids, err := t.walk(list.plan(f))
	return ids, list.total, err
}

// wantedStatuses are the statuses that the filter lets through.
func wantedStatuses(f service.SnapshotFilter) []chain.Status {
	switch {
	case len(f.Statuses) > 0:
		return f.Statuses
	case len(f.IDs) > 0:
		return []chain.Status{chain.Pending, chain.Available, chain.Suspended, chain.Deleted, chain.Ceased}
	}
	return []chain.Status{chain.Pending, chain.Available, chain.Suspended}
}

// wantedTypes are the values of is_full that the filter lets through.
func wantedTypes(f service.SnapshotFilter) []bool {
	switch {
	case f.RootID != "" && f.Full != nil && *f.Full:
		return nil // the full itself is not listed under its root
	case f.RootID != "":
		return []bool{false}
	case f.Full != nil:
		return []bool{*f.Full}
	}
	return []bool{false, true}
}

// where puts the filter into a query over the rows.
func where(q *bun.SelectQuery, f service.SnapshotFilter) *bun.SelectQuery {
	if f.Zone != "" {
		q = q.Where("zone = ?", f.Zone)
	}
	if f.ResourceID != "" {
		q = q.Where("resource_id = ?", f.ResourceID)
	}
	if f.RootID != "" {
		q = q.Where("root_id = ?", f.RootID).Where("is_full = ?", false)
	}
	if f.Full != nil {
		q = q.Where("is_full = ?", *f.Full)
	}
	if f.Search != "" {
		q = q.Where("instr(search_key, ?) > 0", fold(f.Search))
	}
	return q.Where("status IN (?)", bun.In(wantedStatuses(f)))
}

// idsAmong answers a filter that names ids.
func (t *tx) idsAmong(f service.SnapshotFilter) ([]string, int, error) {
	wanted := slices.Compact(slices.Sorted(slices.Values(f.IDs)))
	var found []listed
	for part := range slices.Chunk(wanted, maxIDs) {
		var rows []listed
		err := where(t.db.NewSelect().Model(&rows).Column("id", "create_time"), f).
			Where("id IN (?)", bun.In(part)).Scan(t.ctx)
		if err != nil {
			return nil, 0, fmt.Errorf("look up snapshots by id: %w", explain(err))
		}
		found = append(found, rows...)
	}
	slices.SortFunc(found, func(a, b listed) int {
		return listOrder(a.CreateTime, a.ID, b.CreateTime, b.ID)
	})
	var ids []string
	for i := f.Offset; i < min(f.Offset+f.Limit, len(found)); i++ {
		ids = append(ids, found[i].ID)
	}
	return ids, len(found), nil
}

// idsByScan lets the database look at every row of a short list.
func (t *tx) idsByScan(f service.SnapshotFilter) ([]string, int, error) {
	total, err := where(t.db.NewSelect().Model((*snapshotRow)(nil)), f).Count(t.ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("count snapshots: %w", explain(err))
	}
	if int64(f.Offset) >= int64(total) || f.Limit == 0 {
		return nil, int(total), nil
	}
	var ids []string
	err = where(t.db.NewSelect().Model((*snapshotRow)(nil)).Column("id"), f).
		OrderExpr("create_time DESC, id").Offset(int64(f.Offset)).Limit(int64(f.Limit)).Scan(t.ctx, &ids)
	if err != nil {
		return nil, 0, fmt.Errorf("list snapshots: %w", explain(err))
	}
	return ids, int(total), nil
}

// snapshotsByID reads rows in the order of ids.
func (t *tx) snapshotsByID(ids []string) ([]service.Snapshot, error) {
	out := make([]service.Snapshot, 0, len(ids))
	for part := range slices.Chunk(ids, maxIDs) {
		var rows []snapshotRow
		if err := t.db.NewSelect().Model(&rows).Where("id IN (?)", bun.In(part)).Scan(t.ctx); err != nil {
			return nil, fmt.Errorf("read snapshots: %w", explain(err))
		}
		at := make(map[string]snapshotRow, len(rows))
		for _, r := range rows {
			at[r.ID] = r
		}
		for _, id := range part {
			r, ok := at[id]
			if !ok {
				return nil, blockDamaged(fmt.Errorf("snapshot %s is listed but has no row", id))
			}
			out = append(out, r.snapshot())
		}
	}
	return out, nil
}

// list is what the counters tell of the list that a filter selects from: the
// narrowest of root, resource and zone.
type list struct {
	scope   scope
	all     int                  // rows of the scope, whatever their status
	total   int                  // rows that match all but search, ids and a second scope
	matched map[chain.Status]int // of total, by status
	zone    string               // the filter's, or the only one of the scope
	zones   bool                 // the scope has rows of other zones
	types   bool                 // wanted statuses have rows of the unwanted type
}

func (t *tx) list(f service.SnapshotFilter) (list, error) {
	l := list{scope: scopeZone, matched: make(map[chain.Status]int)}
	key := ""
	switch {
	case f.RootID != "":
		l.scope, key = scopeRoot, f.RootID
	case f.ResourceID != "":
		l.scope, key = scopeResource, f.ResourceID
	}
	counts, err := t.counts(l.scope, key)
	if err != nil {
		return list{}, err
	}
	l.zone = f.Zone
	if len(counts) > 0 && !slices.ContainsFunc(counts, func(c countRow) bool { return c.Zone != counts[0].Zone }) {
		l.zone = cmp.Or(f.Zone, counts[0].Zone)
	}
	statuses, types := wantedStatuses(f), wantedTypes(f)
	for _, c := range counts {
		otherZone := f.Zone != "" && c.Zone != f.Zone
		if otherZone && l.scope == scopeZone {
			continue
		}
		l.all += int(c.N)
		switch {
		case otherZone:
			l.zones = true
		case !slices.Contains(statuses, c.Status):
		case !slices.Contains(types, c.IsFull):
			l.types = true
		default:
			l.total += int(c.N)
			l.matched[c.Status] += int(c.N)
		}
	}
	return l, nil
}

// walkPlan is a way through an index to the ids of one page.
type walkPlan struct {
	arms   []arm // more than one: merged in list order
	back   bool  // from the list's end
	offset int
	limit  int
}

// arm is one run through an index.
type arm struct {
	index string
	conds []cond
}

// cond is a condition that the index answers by itself.
type cond struct {
	expr string
	arg  any
}

// plan chooses the index: one status, or few rows among many, by scope and
// status; else by scope, passing over what does not match.
func (l list) plan(f service.SnapshotFilter) walkPlan {
	p := walkPlan{offset: f.Offset, limit: min(f.Limit, l.total-f.Offset)}
	if behind := l.total - f.Offset - p.limit; behind < f.Offset {
		p.back, p.offset = true, behind
	}
	var base []cond
	var ordered, byStatus string
	switch l.scope {
	case scopeRoot:
		base, ordered = []cond{{"root_id = ?", f.RootID}}, "snapshots_root"
	case scopeResource:
		base, ordered, byStatus = []cond{{"resource_id = ?", f.ResourceID}}, "snapshots_resource", "snapshots_resource_status"
	case scopeZone:
		base, ordered, byStatus = []cond{{"zone = ?", f.Zone}}, "snapshots_zone", "snapshots_zone_status"
	}
	if l.zones {
		base = append(base, cond{"zone = ?", f.Zone})
	}
	if types := wantedTypes(f); l.types && len(types) == 1 {
		base = append(base, cond{"is_full = ?", types[0]})
	}
	statuses := make([]chain.Status, 0, len(l.matched))
	for s := range l.matched {
		statuses = append(statuses, s)
	}
	slices.SortFunc(statuses, func(a, b chain.Status) int { return cmp.Compare(string(a), string(b)) })
	if byStatus == "" || (len(statuses) > 1 && 2*l.total > l.all) {
		p.arms = []arm{{ordered, append(base, cond{"status IN (?)", bun.In(statuses)})}}
		return p
	}
	for _, s := range statuses {
		p.arms = append(p.arms, arm{byStatus, append(slices.Clone(base), cond{"status = ?", s})})
	}
	return p
}

// sql is the plan as one statement. INDEXED BY is SQLite's: without it the
// planner prefers to sort.
func (p walkPlan) sql() (string, []any) {
	var b strings.Builder
	var args []any
	for i, a := range p.arms {
		if i > 0 {
			b.WriteString(" UNION ALL ")
		}
		b.WriteString("SELECT id, create_time FROM snapshots INDEXED BY " + a.index + " WHERE ")
		for j, c := range a.conds {
			if j > 0 {
				b.WriteString(" AND ")
			}
			b.WriteString(c.expr)
			args = append(args, c.arg)
		}
	}
	order := " ORDER BY create_time DESC, id"
	if p.back {
		order = " ORDER BY create_time, id DESC"
	}
	b.WriteString(order + " LIMIT ? OFFSET ?")
	return b.String(), append(args, p.limit, p.offset)
}

// walk reads the ids of a page in list order.
func (t *tx) walk(p walkPlan) ([]string, error) {
	stmt, args := p.sql()
	var rows []struct {
		ID         string
		CreateTime int64
	}
	if err := t.db.NewRaw(stmt, args...).Scan(t.ctx, &rows); err != nil {
		return nil, fmt.Errorf("list snapshots: %w", explain(err))
	}
	ids := make([]string, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	if p.back {
		slices.Reverse(ids)
	}
	return ids, nil
}
