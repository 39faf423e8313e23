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

// Snapshots finds the ids of the page without touching rows and then reads
// only those. By filter: given ids are looked up; the lists of a zone, with a
// search word or without, and deep pages come from the blocks; those of a
// resource or a root are counted by counters and walked in an index; what is
// left, combinations over short lists, is left to the database.
func (t *tx) Snapshots(f service.SnapshotFilter) ([]service.Snapshot, int, error) {
	f.Zone = shelf(f.Zone, f.Images)
	f.Offset = min(max(f.Offset, 0), math.MaxInt32) // so that sums stay in range
	f.Limit = min(max(f.Limit, 0), math.MaxInt32)
	if len(f.IDs) > 0 {
		return t.snapshotsAmong(f)
	}
	ids, total, err := t.snapshotIDs(f)
	if err != nil {
		return nil, 0, err
	}
	rows, err := t.snapshotsByID(ids)
	return rows, total, err
}

// snapshotIDs answers filters that name no ids.
func (t *tx) snapshotIDs(f service.SnapshotFilter) ([]string, int, error) {
	list, err := t.list(f)
	if err != nil || list.total == 0 {
		return nil, 0, err
	}
	f.Zone = list.zone
	severalZones := f.Zone == "" && (list.scope == scopeZone || f.Search != "")
	shortSearch := f.Search != "" && (f.RootID != "" || list.all <= t.limits.scanRows)
	switch {
	case severalZones || shortSearch || (f.RootID != "" && f.ResourceID != ""):
		return t.idsByScan(f, list.scope)
	case f.Search != "":
		return t.pageOfBlocks(f)
	case f.Offset >= list.total || f.Limit == 0:
		return nil, list.total, nil
	case list.scope == scopeZone, list.scope == scopeResource && f.Zone != "" && f.Offset > t.limits.walkRows:
		ids, _, err := t.pageOfBlocks(f)
		return ids, list.total, err
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

// lets reports whether the filter lets a row through.
func lets(f service.SnapshotFilter, l listed) bool {
	return (f.Zone == "" || l.Zone == f.Zone) &&
		(f.ResourceID == "" || l.ResourceID == f.ResourceID) &&
		(f.RootID == "" || l.RootID == f.RootID) &&
		slices.Contains(wantedTypes(f), l.IsFull) &&
		slices.Contains(wantedStatuses(f), l.Status) &&
		strings.Contains(l.SearchKey, fold(f.Search))
}

// snapshotsAmong answers a filter that names ids. It asks for nothing but the
// ids: with more conditions SQLite would rather walk another index.
func (t *tx) snapshotsAmong(f service.SnapshotFilter) ([]service.Snapshot, int, error) {
	var found []snapshotRow
	for part := range slices.Chunk(slices.Compact(slices.Sorted(slices.Values(f.IDs))), maxIDs) {
		var rows []snapshotRow
		if err := t.db.NewSelect().Model(&rows).Where("id IN (?)", bun.List(part)).Scan(t.ctx); err != nil {
			return nil, 0, fmt.Errorf("look up snapshots by id: %w", explain(err))
		}
		for _, r := range rows {
			if lets(f, r.listed()) {
				found = append(found, r)
			}
		}
	}
	slices.SortFunc(found, func(a, b snapshotRow) int {
		return listOrder(a.CreateTime, a.ID, b.CreateTime, b.ID)
	})
	from := min(f.Offset, len(found))
	return toSnapshots(found[from:min(from+f.Limit, len(found))]), len(found), nil
}

// scanIndex is the index that holds a scope's rows together.
var scanIndex = map[scope]string{
	scopeZone: "snapshots_zone", scopeResource: "snapshots_resource", scopeRoot: "snapshots_root",
}

// scanQuery selects columns of what the filter lets through, row by row.
func (t *tx) scanQuery(f service.SnapshotFilter, sc scope) *bun.SelectQuery {
	q := t.db.NewSelect()
	if sc == scopeZone && f.Zone == "" {
		q = q.TableExpr("snapshots")
	} else {
		q = q.TableExpr("snapshots INDEXED BY " + scanIndex[sc])
	}
	if f.Zone != "" {
		q = q.Where("zone = ?", f.Zone)
	}
	if f.ResourceID != "" {
		q = q.Where("resource_id = ?", f.ResourceID)
	}
	if f.RootID != "" {
		q = q.Where("root_id = ?", f.RootID)
	}
	if f.Search != "" {
		q = q.Where("instr(search_key, ?) > 0", fold(f.Search))
	}
	return q.Where("is_full IN (?)", bun.List(wantedTypes(f))).
		Where("status IN (?)", bun.List(wantedStatuses(f)))
}

// idsByScan lets the database look at every row of a short list.
func (t *tx) idsByScan(f service.SnapshotFilter, sc scope) ([]string, int, error) {
	var total int
	if err := t.scanQuery(f, sc).ColumnExpr("count(*)").Scan(t.ctx, &total); err != nil {
		return nil, 0, fmt.Errorf("count snapshots: %w", explain(err))
	}
	if f.Offset >= total || f.Limit == 0 {
		return nil, total, nil
	}
	var ids []string
	err := t.scanQuery(f, sc).ColumnExpr("id").OrderExpr("create_time DESC, id").
		Offset(int64(f.Offset)).Limit(int64(f.Limit)).Scan(t.ctx, &ids)
	if err != nil {
		return nil, 0, fmt.Errorf("list snapshots: %w", explain(err))
	}
	return ids, total, nil
}

// snapshotsByID reads rows in the order of ids.
func (t *tx) snapshotsByID(ids []string) ([]service.Snapshot, error) {
	out := make([]service.Snapshot, 0, len(ids))
	for part := range slices.Chunk(ids, maxIDs) {
		var rows []snapshotRow
		if err := t.db.NewSelect().Model(&rows).Where("id IN (?)", bun.List(part)).Scan(t.ctx); err != nil {
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
	zone := "" // other zones' rows matter where they share the index
	if l.scope == scopeZone {
		zone = f.Zone
	}
	counts, err := t.counts(l.scope, key, zone)
	if err != nil {
		return list{}, err
	}
	l.zone = f.Zone
	if len(counts) > 0 && !slices.ContainsFunc(counts, func(c countRow) bool { return c.Zone != counts[0].Zone }) {
		l.zone = cmp.Or(f.Zone, counts[0].Zone)
	}
	statuses, types := wantedStatuses(f), wantedTypes(f)
	for _, c := range counts {
		l.all += int(c.N)
		switch {
		case f.Zone != "" && c.Zone != f.Zone:
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

// plan chooses the index for a resource's or a root's list: one status, or few
// rows among many, by status; else in order, passing over what does not match.
func (l list) plan(f service.SnapshotFilter) walkPlan {
	p := walkPlan{offset: f.Offset, limit: min(f.Limit, l.total-f.Offset)}
	base, ordered, byStatus := []cond{{"resource_id = ?", f.ResourceID}}, "snapshots_resource", "snapshots_resource_status"
	if l.scope == scopeRoot {
		base, ordered, byStatus = []cond{{"root_id = ?", f.RootID}}, "snapshots_root", ""
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
		p.arms = []arm{{ordered, append(base, cond{"status IN (?)", bun.List(statuses)})}}
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
	b.WriteString(" ORDER BY create_time DESC, id LIMIT ? OFFSET ?")
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
	return ids, nil
}
