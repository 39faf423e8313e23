package e2e

import (
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"

	"cairn/test/e2e/harness"
)

// snapshotFields are the keys of API.md §1 and their JSON types.
var snapshotFields = map[string]string{
	"snapshot_id": "string", "snapshot_name": "string", "description": "string",
	"snapshot_type": "string", "status": "string", "transition_status": "string",
	"create_time": "string", "status_time": "string", "snapshot_time": "string",
	"is_taken": "int", "is_head": "int", "head_chain": "int",
	"root_id": "string", "parent_id": "string",
	"size": "int", "total_size": "int", "total_count": "int",
	"lastest_snapshot_time": "string",
}

func snapshotObjectRows() []row {
	is := func(says, id string, want map[string]any) row {
		return row{says: says, do: func(t *testing.T, f *fixture) {
			m := rawSnapshot(t, f, id)
			for k, v := range want {
				if s, ok := v.(string); ok {
					v = f.fill(s)
				}
				if m[k] != v {
					t.Errorf("%s of %s is %v, want %v", k, id, m[k], v)
				}
			}
		}}
	}
	return []row{
		{says: "every field is there, with its type", do: everyFieldThere},
		{says: "snapshot_id is ss- and 8 upper-case letters or digits", do: func(t *testing.T, f *fixture) {
			if !snapForm.MatchString(f.ids["{full}"]) {
				t.Errorf("snapshot_id %q", f.ids["{full}"])
			}
		}},
		{says: "times are UTC YYYY-MM-DDThh:mm:ssZ", do: func(t *testing.T, f *fixture) {
			m := rawSnapshot(t, f, "{full}")
			for _, k := range []string{"create_time", "status_time", "snapshot_time", "lastest_snapshot_time"} {
				if s, _ := m[k].(string); !timeForm.MatchString(s) {
					t.Errorf("%s is %v", k, m[k])
				}
			}
		}},
		{says: "create_time <= snapshot_time <= status_time", do: func(t *testing.T, f *fixture) {
			s := f.api().MustSnapshot(t, f.ids["{bfull}"])
			if s.CreateTime > s.SnapshotTime || s.SnapshotTime > s.StatusTime {
				t.Errorf("create %s, snapshot %s, status %s", s.CreateTime, s.SnapshotTime, s.StatusTime)
			}
		}},
		is("a full: type, root is itself, parent is the literal self", "{full}", map[string]any{
			"snapshot_type": "IS_FULL", "root_id": "{full}", "parent_id": "self", "status": "available", "transition_status": ""}),
		is("a full: total_count of its live chain, head_chain 1", "{full}", map[string]any{
			"total_count": 3.0, "head_chain": 1.0, "is_head": 0.0, "is_taken": 1.0}),
		is("an incremental: type, root, parent, no totals, head_chain 0", "{inc}", map[string]any{
			"snapshot_type": "IS_INCREMENTAL", "root_id": "{full}", "parent_id": "{full}",
			"total_size": 0.0, "total_count": 0.0, "head_chain": 0.0, "is_head": 0.0}),
		is("the head: is_head 1; its parent is the head that survived a delete", "{head}", map[string]any{
			"is_head": 1.0, "parent_id": "{inc}", "root_id": "{full}"}),
		is("a deleted point shows when its id asks for it", "{dead}", map[string]any{
			"status": "deleted", "is_head": 0.0, "transition_status": ""}),
		is("a point of a deleted volume survives it, and is no head", "{orphan}", map[string]any{
			"status": "available", "is_head": 0.0, "head_chain": 0.0}),
		{says: "lastest_snapshot_time: newest point on a full, its own on an incremental", do: func(t *testing.T, f *fixture) {
			full, inc, head := f.api().MustSnapshot(t, f.ids["{full}"]), f.api().MustSnapshot(t, f.ids["{inc}"]), f.api().MustSnapshot(t, f.ids["{head}"])
			if full.LatestSnapshot != head.SnapshotTime || inc.LatestSnapshot != inc.SnapshotTime {
				t.Errorf("full %s (head %s), incremental %s (own %s)", full.LatestSnapshot, head.SnapshotTime, inc.LatestSnapshot, inc.SnapshotTime)
			}
		}},
		{says: "size is MB rounded up; total_size is summed in bytes and rounded once", do: func(t *testing.T, f *fixture) {
			var sum int64
			for _, id := range []string{"{full}", "{inc}", "{head}"} {
				s := f.api().MustSnapshot(t, f.ids[id])
				sum += s.SizeBytes
				if s.SizeBytes <= 0 || s.Size != megabytes(s.SizeBytes) {
					t.Errorf("%s: size %d MB of %d bytes", id, s.Size, s.SizeBytes)
				}
			}
			if s := f.api().MustSnapshot(t, f.ids["{full}"]); s.TotalSize != megabytes(sum) {
				t.Errorf("total_size %d MB of %d bytes", s.TotalSize, sum)
			}
		}},
		{says: "at most one head per resource", do: func(t *testing.T, f *fixture) {
			heads := map[string]int{}
			for _, s := range f.api().Snapshots(t, map[string][]string{"status": {harness.AllStatuses}}) {
				heads[s.Resource.ID] += s.IsHead
			}
			for id, n := range heads {
				if n > 1 {
					t.Errorf("%s has %d heads", id, n)
				}
			}
		}},
		{says: "extra keys: resource, virtual_size, progress, consistency, group_id, cbt, tags", do: func(t *testing.T, f *fixture) {
			m := rawSnapshot(t, f, "{full}")
			res, _ := m["resource"].(map[string]any)
			if res["resource_id"] != f.ids["{a}"] || res["resource_type"] != "volume" || res["resource_name"] != f.vol(f.ids["{a}"]).name {
				t.Errorf("resource %v", m["resource"])
			}
			if m["virtual_size"] != float64(2*mib+512) || m["progress"] != 1.0 || m["consistency"] != "crash" {
				t.Errorf("virtual_size %v progress %v consistency %v", m["virtual_size"], m["progress"], m["consistency"])
			}
			if m["group_id"] == "" || m["cbt"] == "" || m["tags"] == nil {
				t.Errorf("group_id %v cbt %v tags %v", m["group_id"], m["cbt"], m["tags"])
			}
		}},
		{says: "names are UTF-8", do: func(t *testing.T, f *fixture) {
			p := f.freshPoint(t)
			p.name, p.desc = "备份 «ä» 🙂", "zeile\u00a0eins"
			r := f.api().Send(t, http.MethodPut, "volume_snapshots/"+p.id, map[string]string{"snapshot_name": p.name, "description": p.desc})
			s := f.api().MustSnapshot(t, p.id)
			if r.Status != http.StatusNoContent || s.Name != p.name || s.Description != p.desc {
				t.Errorf("%d %s: %q %q", r.Status, r.Body, s.Name, s.Description)
			}
		}},
	}
}

func everyFieldThere(t *testing.T, f *fixture) {
	for _, id := range []string{"{full}", "{inc}"} {
		m := rawSnapshot(t, f, id)
		for k, kind := range snapshotFields {
			v, there := m[k]
			_, isString := v.(string)
			n, isNumber := v.(float64)
			switch {
			case !there:
				t.Errorf("%s lacks %s", id, k)
			case kind == "string" && !isString, kind == "int" && (!isNumber || n != math.Trunc(n)):
				t.Errorf("%s of %s is %v (%T), want a %s", k, id, v, v, kind)
			}
		}
	}
}

func listRows() []row {
	get := func(says, query string, check func(*testing.T, *fixture, harness.Response)) row {
		return row{says: says, method: "GET", path: "volume_snapshots?" + query, want: 200, check: check}
	}
	bad := func(says, query string) row {
		return row{says: says, method: "GET", path: "volume_snapshots?" + query, want: 400, code: "1100"}
	}
	ofA := "resource_id={a}&"
	rows := []row{
		get("resource_id: its live points only", ofA, lists("{full}", "{inc}", "{head}")),
		get("snapshot_type IS_FULL", ofA+"snapshot_type=IS_FULL", lists("{full}")),
		get("snapshot_type IS_INCREMENTAL", ofA+"snapshot_type=IS_INCREMENTAL", lists("{inc}", "{head}")),
		get("snapshot_type 1 is a full", ofA+"snapshot_type=1", lists("{full}")),
		get("snapshot_type 0 is an incremental", ofA+"snapshot_type=0", lists("{inc}", "{head}")),
		get("deleted only when status asks", ofA+"status=deleted", lists("{dead}")),
		get("status is a list", ofA+"status=deleted,available", lists("{full}", "{inc}", "{head}", "{dead}")),
		get("deleted when ids ask", "snapshots={dead},{full}", lists("{dead}", "{full}")),
		get("snapshots and status together", "snapshots={dead},{full}&status=available", lists("{full}")),
		get("status without matches", ofA+"status=suspended", lists()),
		get("root_id: the incrementals under that full", "root_id={full}", lists("{inc}", "{head}")),
		get("root_id of an unknown point", "root_id=ss-NOTTHERE", lists()),
		get("unknown ids are simply absent", "snapshots=ss-NOTTHERE,{full}", lists("{full}")),
		get("only unknown ids: an empty page", "snapshots=ss-NOTTHERE", lists()),
		get("unknown resource_id: an empty page", "resource_id=vol-NOTTHERE", lists()),
		get("tags and verbose are taken", ofA+"tags=x&verbose=1&snapshot_type=IS_FULL", lists("{full}")),
		get("an offset past the end: an empty page, total_count stays", ofA+"offset=1000", func(t *testing.T, _ *fixture, r harness.Response) {
			if got, total := page(t, r); len(got) != 0 || total != 3 {
				t.Errorf("%d rows, total_count %d; want 0 and 3", len(got), total)
			}
		}),
		get("limit: total_count counts before paging", ofA+"limit=2", func(t *testing.T, f *fixture, r harness.Response) {
			got, total := page(t, r)
			if len(got) != 2 || total != 3 || got[0].ID != f.ids["{head}"] {
				t.Errorf("%d rows from %v, total_count %d; want 2, the newest first, and 3", len(got), got, total)
			}
		}),
		get("limit above 100 is clamped", "limit=5000", nil),
		bad("negative offset", "offset=-1"), bad("offset that is no number", "offset=x"),
		bad("negative limit", "limit=-1"), bad("limit that is no number", "limit=ten"),
		bad("bad status", "status=broken"), bad("bad status beside a good one", "status=available,broken"),
		bad("bad type", "snapshot_type=IS_HALF"), bad("bad type, a number", "snapshot_type=2"),
		{says: "search_word: substring of id or name, case-insensitive", do: searchFinds},
		{says: "newest first, then id", do: listOrder},
		{says: "limit=20 by default and at most 100", do: defaultLimit},
		{says: "/snapshots is an alias", method: "GET", path: "snapshots?" + ofA, want: 200, check: lists("{full}", "{inc}", "{head}")},
	}
	return rows
}

func searchFinds(t *testing.T, f *fixture) {
	p := f.freshPoint(t)
	p.name = "Ärger100%_Needle"
	f.api().Send(t, http.MethodPut, "volume_snapshots/"+p.id, map[string]string{"snapshot_name": p.name})
	for word, want := range map[string]int{
		"needle": 1, "NEEDLE": 1, "100%25_": 1, "%C3%A4rger": 1, "n_edle": 0, "n%25e": 0,
		strings.ToLower(p.id[3:]): 1, p.id: 1,
	} {
		r := f.api().Get(t, "volume_snapshots?resource_id="+p.volume+"&search_word="+word)
		if got, total := page(t, r); len(got) != want || total != want {
			t.Errorf("search_word=%s finds %d (total_count %d), want %d", word, len(got), total, want)
		}
	}
}

func listOrder(t *testing.T, f *fixture) {
	f.create(t, false, f.fresh(t), f.fresh(t), f.fresh(t)) // one create_time
	got, _ := page(t, f.api().Get(t, "volume_snapshots?limit=100"))
	for i := 1; i < len(got); i++ {
		a, b := got[i-1], got[i]
		// Wire times are seconds; within one second only points of one call
		// are known to be as old as each other.
		if a.CreateTime < b.CreateTime || a.GroupID == b.GroupID && a.ID > b.ID {
			t.Errorf("%s (%s) is listed before %s (%s)", a.ID, a.CreateTime, b.ID, b.CreateTime)
		}
	}
}

func defaultLimit(t *testing.T, f *fixture) {
	var vols []*modelVolume
	for range 21 {
		vols = append(vols, f.fresh(t))
	}
	f.create(t, false, vols...)
	for query, want := range map[string]int{"": 20, "?limit=21": 21, "?limit=5000": 100, "?limit=": 20} {
		got, total := page(t, f.api().Get(t, "volume_snapshots"+query))
		if len(got) != min(want, total) {
			t.Errorf("volume_snapshots%s gave %d of %d rows, want %d", query, len(got), total, want)
		}
	}
	seen := map[string]bool{}
	for i := range 3 {
		got, _ := page(t, f.api().Get(t, fmt.Sprintf("volume_snapshots?limit=7&offset=%d", 7*i)))
		for _, s := range got {
			seen[s.ID] = true
		}
	}
	if len(seen) != 21 {
		t.Errorf("three pages of 7 show %d different points", len(seen))
	}
}
