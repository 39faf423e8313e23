package metadbtest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/internal/chain"
	"cairn/internal/service"
)

// listMachine drives a store beside a plain slice and compares every list.
type listMachine struct {
	t     *testing.T
	store service.Store
	zones [2]string // of this run only: one store serves all runs
	tag   string
	rows  []service.Snapshot
	n     int
	steps int
}

// testListModel: whatever was inserted, changed or rolled back, every list is
// what filtering and sorting a slice gives.
func testListModel(t *testing.T, s service.Store) {
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		m := &listMachine{t: t, store: s, tag: fmt.Sprintf("%04d", runs)}
		m.zones = [2]string{"a" + m.tag, "b" + m.tag}
		actions := map[string]func(*rapid.T){
			"insert": m.insert, "change": m.change, "rollback": m.rollback, "list": m.list,
		}
		// Fewer steps than rapid's Repeat takes: each is a durable transaction.
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			name := rapid.SampledFrom([]string{"insert", "insert", "change", "change", "rollback", "list", "list"}).Draw(rt, "action")
			actions[name](rt)
			m.check(rt)
		}
	})
}

var (
	modelStatuses = []chain.Status{chain.Pending, chain.Available, chain.Suspended, chain.Deleted, chain.Ceased}
	modelNames    = []string{"", "Nightly", "nightly backup", "ÄÖÜ", "äöü ß", "100%", "a_b", "Σίσυφος", "日本"}
	modelWords    = []string{"n", "NIGHT", "ö", "%", "_", "Σ", "ς", "本", "ss", "-0", "b", "zz", " "}
)

// random draws a row's changeable fields. Few values, so that they collide.
func (m *listMachine) random(t *rapid.T, id string) service.Snapshot {
	p := snapshot(id, rapid.IntRange(0, 5).Draw(t, "created"))
	p.ResourceID = m.tag + rapid.SampledFrom([]string{"vol-A", "vol-B"}).Draw(t, "resource")
	p.RootID = m.tag + rapid.SampledFrom([]string{"ss-R", "ss-S"}).Draw(t, "root")
	p.Full = rapid.Bool().Draw(t, "full")
	p.Status = rapid.SampledFrom(modelStatuses).Draw(t, "status")
	p.Zone = rapid.SampledFrom([]string{m.zones[0], m.zones[0], m.zones[1]}).Draw(t, "zone")
	p.Name = rapid.SampledFrom(modelNames).Draw(t, "name")
	return p
}

func (m *listMachine) insert(t *rapid.T) {
	var fresh []service.Snapshot
	for range rapid.IntRange(1, 6).Draw(t, "count") {
		m.n++
		// The order of ids is not the order of insertion.
		fresh = append(fresh, m.random(t, fmt.Sprintf("ss-%s%d-%d", m.tag, m.n*7%10, m.n)))
	}
	update(m.t, m.store, func(tx service.Tx) error {
		for _, p := range fresh {
			if err := tx.InsertSnapshot(p); err != nil {
				return err
			}
		}
		return nil
	})
	m.rows = append(m.rows, fresh...)
}

func (m *listMachine) change(t *rapid.T) {
	if len(m.rows) == 0 {
		m.insert(t)
	}
	i := rapid.IntRange(0, len(m.rows)-1).Draw(t, "row")
	p := m.rows[i]
	next := m.random(t, p.ID)
	if rapid.Bool().Draw(t, "status only") {
		next = p
		next.Status = rapid.SampledFrom(modelStatuses).Draw(t, "new status")
	}
	update(m.t, m.store, func(tx service.Tx) error { return tx.UpdateSnapshot(next) })
	m.rows[i] = next
}

func (m *listMachine) rollback(t *rapid.T) {
	fresh := m.random(t, "ss-"+m.tag+"-never")
	err := m.store.Update(m.t.Context(), func(tx service.Tx) error {
		if err := tx.InsertSnapshot(fresh); err != nil {
			return err
		}
		for _, p := range m.rows[:min(3, len(m.rows))] {
			p.Status, p.Name = chain.Ceased, "never"
			if err := tx.UpdateSnapshot(p); err != nil {
				return err
			}
		}
		return errTest
	})
	if err != errTest {
		t.Fatalf("update: %v", err)
	}
}

func (m *listMachine) list(t *rapid.T) {
	pick := func(name string, from ...string) string { return rapid.SampledFrom(from).Draw(t, name) }
	f := service.SnapshotFilter{
		Zone:       pick("zone", m.zones[0], m.zones[1]),
		ResourceID: pick("resource", "", "", m.tag+"vol-A", m.tag+"vol-X"),
		RootID:     pick("root", "", "", "", m.tag+"ss-R"),
		Search:     pick("word", append(slices.Repeat([]string{""}, len(modelWords)), modelWords...)...),
		Offset:     rapid.IntRange(0, 12).Draw(t, "offset"),
		Limit:      rapid.IntRange(0, 8).Draw(t, "limit"),
	}
	if f.ResourceID != "" && rapid.Bool().Draw(t, "no zone") {
		f.Zone = ""
	}
	if rapid.Bool().Draw(t, "by type") {
		full := rapid.Bool().Draw(t, "full")
		f.Full = &full
	}
	if rapid.Bool().Draw(t, "by status") {
		f.Statuses = rapid.SliceOfN(rapid.SampledFrom(modelStatuses), 1, 5).Draw(t, "statuses")
	}
	if len(m.rows) > 0 && rapid.IntRange(0, 4).Draw(t, "by id") == 0 {
		for range rapid.IntRange(1, 6).Draw(t, "ids") {
			f.IDs = append(f.IDs, m.rows[rapid.IntRange(0, len(m.rows)-1).Draw(t, "id")].ID)
		}
	}
	m.compare(t, f)
}

// check compares one whole list after each step, in turn.
func (m *listMachine) check(t *rapid.T) {
	m.steps++
	f := service.SnapshotFilter{Zone: m.zones[m.steps%2], Limit: 1000}
	if m.steps/2%2 == 1 {
		f.Search, f.Statuses = "N", modelStatuses
	}
	m.compare(t, f)
}

func (m *listMachine) compare(t *rapid.T, f service.SnapshotFilter) {
	var got []service.Snapshot
	var total int
	view(m.t, m.store, func(tx service.Tx) (err error) {
		got, total, err = tx.Snapshots(f)
		return err
	})
	want := m.filter(f)
	if total != len(want) {
		t.Fatalf("filter %+v: total %d, want %d", f, total, len(want))
	}
	want = want[min(f.Offset, len(want)):]
	want = want[:min(f.Limit, len(want))]
	if !slices.Equal(got, want) {
		t.Fatalf("filter %+v:\n got %v\nwant %v", f, ids(got), ids(want))
	}
}

func ids(rows []service.Snapshot) string {
	var b strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&b, "%s(%s %s) ", r.ID, r.Status, r.Name)
	}
	return b.String()
}

// filter is the contract of SnapshotFilter in the plainest words.
func (m *listMachine) filter(f service.SnapshotFilter) []service.Snapshot {
	out := slices.DeleteFunc(slices.Clone(m.rows), func(p service.Snapshot) bool {
		byDefault := len(f.Statuses) > 0 || len(f.IDs) > 0 || p.Live()
		return (f.Zone != "" && p.Zone != f.Zone) ||
			(len(f.IDs) > 0 && !slices.Contains(f.IDs, p.ID)) ||
			(f.ResourceID != "" && p.ResourceID != f.ResourceID) ||
			(f.Full != nil && p.Full != *f.Full) ||
			(len(f.Statuses) > 0 && !slices.Contains(f.Statuses, p.Status)) || !byDefault ||
			(f.Search != "" && !contains(p.ID, f.Search) && !contains(p.Name, f.Search)) ||
			(f.RootID != "" && (p.RootID != f.RootID || p.Full))
	})
	slices.SortFunc(out, func(a, b service.Snapshot) int {
		return cmp.Or(b.CreateTime.Compare(a.CreateTime), cmp.Compare(a.ID, b.ID))
	})
	return out
}
