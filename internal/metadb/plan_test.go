package metadb

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/uptrace/bun"

	"cairn/internal/chain"
	"cairn/internal/job"
	"cairn/internal/service"
)

// explainPlan asks SQLite how it would run a statement.
func explainPlan(t *testing.T, x *tx, stmt string, args ...any) string {
	t.Helper()
	var steps []struct {
		ID, Parent, Notused int
		Detail              string
	}
	if err := x.db.NewRaw("EXPLAIN QUERY PLAN "+stmt, args...).Scan(x.ctx, &steps); err != nil {
		t.Fatalf("%s: %v", stmt, err)
	}
	var out []string
	for _, s := range steps {
		out = append(out, s.Detail)
	}
	return strings.Join(out, "; ")
}

// checkPlan wants these words in the plan and no sorting. A scan through an
// index is named SCAN … USING; without one it is a bare SCAN.
func checkPlan(t *testing.T, name, plan string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(plan, w) {
			t.Errorf("%s: plan %q lacks %q", name, plan, w)
		}
	}
	if strings.Contains(plan, "TEMP B-TREE") {
		t.Errorf("%s: plan %q sorts", name, plan)
	}
}

// Lists of resources and roots find their ids in covering indexes, in order.
func TestWalkPlans(t *testing.T) {
	db := openAt(t, filepath.Join(t.TempDir(), "meta.db"))
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	fill(t, db, 3000, 2)
	root := func(f *service.SnapshotFilter) { f.RootID = "ss-00000000" }
	resource := func(f *service.SnapshotFilter) { f.ResourceID = "vol-00000001" }
	status := func(ss ...chain.Status) func(f *service.SnapshotFilter) {
		return func(f *service.SnapshotFilter) { f.Statuses = ss }
	}
	full := func(f *service.SnapshotFilter) { yes := true; f.Full = &yes }
	type change = func(f *service.SnapshotFilter)
	for _, tt := range []struct {
		name string
		with []change
		want []string
	}{
		{"resource", []change{resource}, []string{"COVERING INDEX snapshots_resource (resource_id=?)"}},
		{"resource, one status", []change{resource, status(chain.Available)}, []string{"COVERING INDEX snapshots_resource_status (resource_id=? AND status=?)"}},
		{"resource, rare statuses", []change{resource, status(chain.Pending, chain.Ceased)}, []string{"MERGE (UNION ALL)", "COVERING INDEX snapshots_resource_status (resource_id=? AND status=?)"}},
		{"resource, status, type", []change{resource, full, status(chain.Deleted)}, []string{"COVERING INDEX snapshots_resource_status (resource_id=? AND status=?)"}},
		{"root", []change{root}, []string{"COVERING INDEX snapshots_root (root_id=?)"}},
		{"root, status", []change{root, status(chain.Available)}, []string{"COVERING INDEX snapshots_root (root_id=?)"}},
	} {
		f := service.SnapshotFilter{Zone: "ac1", Limit: 20}
		for _, w := range tt.with {
			w(&f)
		}
		err := db.View(t.Context(), func(st service.Tx) error {
			x := st.(*tx)
			l, err := x.list(f)
			if err != nil {
				return err
			}
			stmt, args := l.plan(f).sql()
			checkPlan(t, tt.name, explainPlan(t, x, stmt, args...), tt.want...)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// The other statements that meet a million rows.
func TestStatementPlans(t *testing.T) {
	db := openAt(t, filepath.Join(t.TempDir(), "meta.db"))
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	fill(t, db, 3000, 2)
	err := db.updateTx(t.Context(), func(x *tx) error {
		sel := func() *bun.SelectQuery { return x.db.NewSelect() }
		scan := func(sc scope, f service.SnapshotFilter) string {
			return x.scanQuery(f, sc).ColumnExpr("id").OrderExpr("create_time DESC, id").Limit(20).String()
		}
		for _, tt := range []struct {
			name string
			stmt string
			want string
		}{
			{"ids", sel().Model((*snapshotRow)(nil)).Where("id IN (?)", bun.List([]string{"a", "b"})).String(), "INDEX sqlite_autoindex_snapshots_1 (id=?)"},
			{"one id", sel().Model((*snapshotRow)(nil)).Where("id = ?", "a").Where("zone = ?", "ac1").String(), "INDEX sqlite_autoindex_snapshots_1 (id=?)"},
			{"head", sel().Model((*snapshotRow)(nil)).Where("resource_id = ?", "v").Where("is_head = 1").String(), "INDEX snapshots_head (resource_id=?)"},
			{"live points", x.livePoints("ss-1").String(), "INDEX sqlite_autoindex_snapshots_1 (id>?)"},
			{"search in a resource", scan(scopeResource, service.SnapshotFilter{Zone: "ac1", ResourceID: "v", Search: "x"}), "INDEX snapshots_resource (resource_id=?)"},
			{"search in a root", scan(scopeRoot, service.SnapshotFilter{Zone: "ac1", RootID: "v", ResourceID: "r"}), "INDEX snapshots_root (root_id=?)"},
			{"search in a short zone", scan(scopeZone, service.SnapshotFilter{Zone: "ac1", Search: "x"}), "INDEX snapshots_zone (zone=?)"},
			{"counters", sel().Model((*countRow)(nil)).Where("scope = ?", scopeZone).Where("key = ?", "").Where("zone = ?", "ac1").String(), "PRIMARY KEY (scope=? AND key=? AND zone=?)"},
			{"blocks", strings.NewReplacer("zone = ?", "zone = 'ac1'", "LIMIT ?", "LIMIT 4").Replace(blockIDsSQL), "COVERING INDEX snapshot_search_order (zone=?)"},
			{"some blocks", sel().Model((*blockRow)(nil)).Where("id IN (?)", bun.List([]int64{1, 2})).String(), "INTEGER PRIMARY KEY (rowid=?)"},
			{"a snapshot's block", x.blockOf(listed{Zone: "ac1", CreateTime: 5, ID: "x"}).String(), "INDEX snapshot_search_order (zone=? AND last_time<?)"},
			{"claim", claimable(sel().Model((*jobRow)(nil)), []string{"p"}).OrderExpr("create_time, id").Limit(1).String(), "INDEX jobs_unfinished"},
			{"jobs", sel().Model((*jobRow)(nil)).OrderExpr("create_time DESC, id").Limit(20).String(), "INDEX jobs_list"},
			{"packs of a session", sel().Model((*packRow)(nil)).Where("session_id = ?", "s").OrderExpr("id").String(), "INDEX packs_session (session_id=?)"},
			{"locks of a holder", sel().Model((*lockRow)(nil)).Where("holder = ?", "s").String(), "INDEX locks_holder (holder=?)"},
			{"pins of a holder", sel().Model((*pinRow)(nil)).Where("holder = ?", "s").String(), "INDEX pins_holder (holder=?)"},
		} {
			checkPlan(t, tt.name, explainPlan(t, x, tt.stmt), tt.want)
		}
		// A chain and the unfinished jobs are few: sorting them is fine, looking
		// at other rows is not.
		plan := explainPlan(t, x, jobsWhere(sel().Model((*jobRow)(nil)), service.JobFilter{Statuses: []job.Status{job.Pending, job.Working}}).
			OrderExpr("create_time DESC, id").String())
		if !strings.Contains(plan, "INDEX jobs_unfinished") {
			t.Errorf("unfinished jobs: plan %q", plan)
		}
		plan = explainPlan(t, x, sel().Model((*snapshotRow)(nil)).Where("root_id = ?", "v").Where("status <> ?", chain.Ceased).
			OrderExpr("is_full DESC, snapshot_time, id").String())
		if !strings.Contains(plan, "INDEX snapshots_root (root_id=?)") {
			t.Errorf("chain: plan %q", plan)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
