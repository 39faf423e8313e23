package e2e

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"cairn/test/e2e/harness"
)

// nothingMade checks that a refused call left no trace: no row, no job.
func nothingMade(t *testing.T, f *fixture, call func()) {
	t.Helper()
	count := func() (n [3]int) {
		for i, path := range []string{"volume_snapshots?status=" + harness.AllStatuses, "jobs?limit=1", "volumes?limit=1"} {
			n[i] = int(f.api().Get(t, path).Object(t)["total_count"].(float64))
		}
		return n
	}
	before := count()
	call()
	if after := count(); after != before {
		t.Errorf("snapshots, jobs, volumes: %v before the refused call, %v after", before, after)
	}
}

// refused is a row whose call must change nothing.
func refused(r row) row {
	return row{says: r.says, do: func(t *testing.T, f *fixture) {
		nothingMade(t, f, func() { f.play(t, r) })
	}}
}

func createRows() []row {
	post := func(says, body string, want int, code, msg string) row {
		return refused(row{says: says, method: "POST", path: "volume_snapshots", body: body, want: want, code: code, msg: msg})
	}
	return []row{
		{says: "answers the pending job with the new ids; one point per resource", do: createAnswer},
		{says: "several resources: one instant, one group", do: func(t *testing.T, f *fixture) {
			a, b := f.fresh(t), f.fresh(t)
			f.create(t, false, a, b)
			p, q := f.api().MustSnapshot(t, a.head), f.api().MustSnapshot(t, b.head)
			if p.SnapshotTime != q.SnapshotTime || p.GroupID == "" || p.GroupID != q.GroupID {
				t.Errorf("times %s %s, groups %q %q", p.SnapshotTime, q.SnapshotTime, p.GroupID, q.GroupID)
			}
		}},
		{says: "description is stored", do: func(t *testing.T, f *fixture) {
			v := f.fresh(t)
			j := f.api().OK(t, f.api().Send(t, "POST", "volume_snapshots", map[string]any{
				"resources": []string{v.id}, "snapshot_name": "n", "description": "why"}).Begin(t))
			if s := f.api().MustSnapshot(t, j.ResourceIDs[0]); s.Description != "why" || s.Name != "n" {
				t.Errorf("name %q, description %q", s.Name, s.Description)
			}
			f.record(t, "n", false, []*modelVolume{v}, j.ResourceIDs, contents([]*modelVolume{v}))
			f.point(v.head).desc = "why"
		}},
		{says: "duplicate resources are dropped", do: func(t *testing.T, f *fixture) {
			v := f.fresh(t)
			j := f.api().OK(t, f.api().Send(t, "POST", "volume_snapshots", map[string]any{
				"resources": []string{v.id, v.id}, "snapshot_name": "twice"}).Begin(t))
			if len(j.ResourceIDs) != 1 {
				t.Fatalf("made %v", j.ResourceIDs)
			}
			f.record(t, "twice", false, []*modelVolume{v}, j.ResourceIDs, contents([]*modelVolume{v}))
		}},
		{says: "without is_full the system decides: full first, then incremental, full where the size differs", do: systemDecides},
		{says: "a chain has at most 30 points; then a full, and the job says why", do: chainLimitRow},
		post("unknown volume", `{"resources":["vol-NOTTHERE"],"snapshot_name":"x"}`, 404, "2100", "vol-NOTTHERE"),
		post("all or none: a known and an unknown volume", `{"resources":["{a}","vol-NOTTHERE"],"snapshot_name":"x"}`, 404, "2100", "vol-NOTTHERE"),
		post("unknown instance", `{"resources":["ins-NOTTHERE"],"snapshot_name":"x"}`, 404, "2100", "ins-NOTTHERE"),
		post("a deleted volume", `{"resources":["{gonevol}"],"snapshot_name":"x"}`, 404, "2100", "{gonevol}"),
		post("wrong kind: a snapshot is no resource", `{"resources":["{full}"],"snapshot_name":"x"}`, 400, "1100", "{full}"),
		post("no resources", `{"resources":[],"snapshot_name":"x"}`, 400, "1100", ""),
		post("resources absent", `{"snapshot_name":"x"}`, 400, "1100", "resources"),
		post("empty resource id", `{"resources":[""],"snapshot_name":"x"}`, 400, "1100", ""),
		post("empty name", `{"resources":["{a}"],"snapshot_name":""}`, 400, "1100", "snapshot_name"),
		post("name absent", `{"resources":["{a}"]}`, 400, "1100", "snapshot_name"),
		post("name over 255 characters", `{"resources":["{a}"],"snapshot_name":"`+strings.Repeat("ä", 256)+`"}`, 400, "1100", "255"),
		post("control character in the name", `{"resources":["{a}"],"snapshot_name":"a\u0007b"}`, 400, "1100", ""),
		{says: "a name of 255 characters is fine", do: func(t *testing.T, f *fixture) {
			v, name := f.fresh(t), strings.Repeat("备", 255)
			j := f.api().OK(t, f.api().Send(t, "POST", "volume_snapshots", map[string]any{
				"resources": []string{v.id}, "snapshot_name": name}).Begin(t))
			f.record(t, name, false, []*modelVolume{v}, j.ResourceIDs, contents([]*modelVolume{v}))
		}},
		{says: "a file that another process has open for writing: a clear failed job, and no point", do: foreignWriter},
	}
}

func createAnswer(t *testing.T, f *fixture) {
	v := f.fresh(t)
	r := f.api().Send(t, "POST", "volume_snapshots", map[string]any{"resources": []string{v.id}, "snapshot_name": "one", "is_full": 1})
	j := r.Begin(t)
	if j.Status != "pending" || j.Action != "CreateSnapshots" || len(j.ResourceIDs) != 1 || !snapForm.MatchString(j.ResourceIDs[0]) {
		t.Fatalf("answered %s", r.Body)
	}
	f.api().OK(t, j)
	f.record(t, "one", true, []*modelVolume{v}, j.ResourceIDs, contents([]*modelVolume{v}))
	f.api().WantContent(t, "volume_snapshots", v.head, v.content)
}

func systemDecides(t *testing.T, f *fixture) {
	v := f.fresh(t)
	f.create(t, false, v)
	f.create(t, false, v)
	f.grow(t, v, v.content.Size()+4096)
	j := f.api().OK(t, f.api().Send(t, "POST", "volume_snapshots",
		map[string]any{"resources": []string{v.id}, "snapshot_name": "grown"}).Begin(t))
	if j.Info == "" {
		t.Errorf("the size changed, so a full was made, but the job's info does not say why")
	}
	f.record(t, "grown", false, []*modelVolume{v}, j.ResourceIDs, contents([]*modelVolume{v}))
	f.checkRows(t)
}

func chainLimitRow(t *testing.T, f *fixture) {
	v := f.fresh(t)
	for range chainLimit {
		f.create(t, false, v)
	}
	if s := f.api().MustSnapshot(t, v.head); s.Type != "IS_INCREMENTAL" {
		t.Errorf("point 30 is %s, want still an incremental", s.Type)
	}
	j := f.api().OK(t, f.api().Send(t, "POST", "volume_snapshots",
		map[string]any{"resources": []string{v.id}, "snapshot_name": "31"}).Begin(t))
	if j.Info == "" {
		t.Errorf("the chain was full, so a full was made, but the job's info does not say why")
	}
	f.record(t, "31", false, []*modelVolume{v}, j.ResourceIDs, contents([]*modelVolume{v}))
	if s := f.api().MustSnapshot(t, v.head); s.Type != "IS_FULL" || s.RootID != s.ID {
		t.Errorf("point 31 is %s with root %s, want a full", s.Type, s.RootID)
	}
	f.checkRows(t)
}

func foreignWriter(t *testing.T, f *fixture) {
	v := f.world.register(t, harness.NewImage(70_000))
	before := len(f.api().Snapshots(t, map[string][]string{"resource_id": {v.id}}))
	w, err := os.OpenFile(v.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r := f.api().Send(t, "POST", "volume_snapshots", map[string]any{"resources": []string{v.id}, "snapshot_name": "locked out"})
	if r.Status == http.StatusOK {
		j := f.api().Wait(t, r.Begin(t).ID)
		if j.Status != "failed" || !strings.Contains(j.Info, v.id) {
			t.Errorf("job is %s, info %q; want failed, naming the volume", j.Status, j.Info)
		}
	} else {
		r.WantError(t, http.StatusConflict, "1400")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if after := len(f.api().Snapshots(t, map[string][]string{"resource_id": {v.id}})); after != before {
		t.Errorf("the failed create left %d points", after-before)
	}
	f.api().OK(t, f.api().Send(t, "POST", "volume_snapshots", // and nothing stays locked
		map[string]any{"resources": []string{v.id}, "snapshot_name": "free"}).Begin(t))
	v.gone = true // its points are not in the model
	f.api().DeleteVolumes(t, v.id)
	f.vols = slices.DeleteFunc(f.vols, func(o *modelVolume) bool { return o == v })
}

func deleteRows() []row {
	del := func(says, path string, want int, code, msg string) row {
		return refused(row{says: says, method: "DELETE", path: path, want: want, code: code, msg: msg})
	}
	// chain makes full ← one ← two on a fresh volume.
	chain := func(t *testing.T, f *fixture) (v *modelVolume, points []*modelPoint) {
		v = f.fresh(t)
		for range 3 {
			f.create(t, false, v)
			points = append(points, f.point(v.head))
		}
		return v, points
	}
	return []row{
		{says: "takes every descendant; the nearest surviving ancestor is the head", do: func(t *testing.T, f *fixture) {
			v, ps := chain(t, f)
			f.remove(t, ps[1])
			f.checkRows(t)
			if v.head != ps[0].id {
				t.Errorf("head %s, want %s", v.head, ps[0].id)
			}
		}},
		{says: "a full takes its chain; the next point is a full", do: func(t *testing.T, f *fixture) {
			v, ps := chain(t, f)
			f.remove(t, ps[0])
			f.create(t, false, v)
			f.checkRows(t)
		}},
		{says: "a comma list in the path", do: func(t *testing.T, f *fixture) {
			_, ps := chain(t, f)
			_, qs := chain(t, f)
			f.remove(t, ps[2], qs[1])
			f.checkRows(t)
		}},
		{says: "?snapshot= list with the placeholder in the path", do: func(t *testing.T, f *fixture) {
			_, ps := chain(t, f)
			_, qs := chain(t, f)
			f.api().OK(t, f.api().Do(t, harness.Request{Method: "DELETE",
				Path: "volume_snapshots/:snapshot_id?snapshot=" + ps[2].id + "," + qs[2].id}).Begin(t))
			f.removed(ps[2], qs[2])
			f.checkRows(t)
		}},
		{says: "?snapshot= repeated", do: func(t *testing.T, f *fixture) {
			_, ps := chain(t, f)
			_, qs := chain(t, f)
			f.api().OK(t, f.api().Do(t, harness.Request{Method: "DELETE",
				Path: "volume_snapshots/:id?snapshot=" + ps[2].id + "&snapshot=" + qs[2].id}).Begin(t))
			f.removed(ps[2], qs[2])
			f.checkRows(t)
		}},
		{says: "a leading colon before an id is stripped", do: func(t *testing.T, f *fixture) {
			p := f.freshPoint(t)
			f.api().OK(t, f.api().Do(t, harness.Request{Method: "DELETE", Path: "volume_snapshots/:" + p.id}).Begin(t))
			f.removed(p)
			f.checkRows(t)
		}},
		{says: "path and query that agree", do: func(t *testing.T, f *fixture) {
			p := f.freshPoint(t)
			f.api().OK(t, f.api().Do(t, harness.Request{Method: "DELETE", Path: "volume_snapshots/" + p.id + "?snapshot=" + p.id}).Begin(t))
			f.removed(p)
		}},
		{says: "?dry_run=1 answers ids and freed bytes and changes nothing", do: func(t *testing.T, f *fixture) {
			_, ps := chain(t, f)
			nothingMade(t, f, func() {
				r := f.api().Do(t, harness.Request{Method: "DELETE", Path: "volume_snapshots/" + ps[0].id + "?dry_run=1"})
				var plan struct {
					Snapshots []string `json:"snapshots"`
					Freed     int64    `json:"freed_bytes"`
				}
				r.Into(t, &plan)
				slices.Sort(plan.Snapshots)
				if !slices.Equal(plan.Snapshots, ids(ps)) || plan.Freed <= 0 {
					t.Errorf("plan %+v", plan)
				}
			})
			f.checkRows(t)
		}},
		del("path and query that differ: 400, nothing done", "volume_snapshots/{full}?snapshot={inc}", 400, "1100", ""),
		del("a placeholder and no query", "volume_snapshots/:snapshot_id", 400, "1100", ""),
		del("no id at all", "volume_snapshots/", 400, "1100", ""),
		del("unknown id", "volume_snapshots/ss-NOTTHERE", 404, "2100", "ss-NOTTHERE"),
		del("a known and an unknown id: nothing done", "volume_snapshots/{full},ss-NOTTHERE", 404, "2100", "ss-NOTTHERE"),
		del("wrong kind", "volume_snapshots/{a}", 400, "1100", "{a}"),
		del("already deleted", "volume_snapshots/{dead}", 409, "1400", "{dead}"),
		del("dry run of an unknown id", "volume_snapshots/ss-NOTTHERE?dry_run=1", 404, "2100", "ss-NOTTHERE"),
	}
}

func applyRows() []row {
	post := func(says, body string, want int, code, msg string) row {
		return refused(row{says: says, method: "POST", path: "volume_snapshots/apply", body: body, want: want, code: code, msg: msg})
	}
	return []row{
		{says: "rolls back in place; later points stay, the head moves, the next incremental hangs there", do: func(t *testing.T, f *fixture) {
			v := f.world.register(t, harness.NewImage(200_000))
			for i := range 3 {
				v.edit(t, harness.Edit{Kind: harness.WriteNoise, Off: int64(i) * 1000, Len: 70_000, Seed: uint64(i)})
				f.create(t, false, v)
			}
			f.apply(t, f.livePoints(v.id)[1])
			v.content.WantFile(t, v.path)
			f.create(t, false, v)
			f.checkRows(t)
			if s := f.api().MustSnapshot(t, v.head); s.ParentID != f.livePoints(v.id)[1].id {
				t.Errorf("parent %s", s.ParentID)
			}
		}},
		{says: "the volume keeps its present size; bytes past the point's become zeros", do: func(t *testing.T, f *fixture) {
			v := f.world.register(t, harness.NewImage(100_000))
			v.edit(t, harness.Edit{Kind: harness.WriteNoise, Len: 100_000, Seed: 1})
			f.create(t, true, v)
			f.grow(t, v, 200_000)
			v.edit(t, harness.Edit{Kind: harness.WriteNoise, Off: 90_000, Len: 110_000, Seed: 2})
			f.apply(t, f.point(v.head))
			v.content.WantFile(t, v.path)
		}},
		{says: "several resources in one call", do: func(t *testing.T, f *fixture) {
			p, q := f.freshPoint(t), f.freshPoint(t)
			f.apply(t, p, q)
			f.checkRows(t)
		}},
		{says: "answers ApplySnapshots with the volumes' ids known", method: "POST", path: "volume_snapshots/apply",
			body: `{"snapshots":["{bfull}"]}`, want: 200, check: endsOK("ApplySnapshots")},
		post("two points of one resource", `{"snapshots":["{full}","{inc}"]}`, 400, "1100", "{a}"),
		post("unknown point", `{"snapshots":["ss-NOTTHERE"]}`, 404, "2100", "ss-NOTTHERE"),
		post("all or none", `{"snapshots":["{bfull}","ss-NOTTHERE"]}`, 404, "2100", "ss-NOTTHERE"),
		post("wrong kind", `{"snapshots":["{a}"]}`, 400, "1100", "{a}"),
		post("only available points", `{"snapshots":["{dead}"]}`, 409, "1400", "{dead}"),
		post("the volume is gone", `{"snapshots":["{orphan}"]}`, 409, "1400", "{gonevol}"),
		post("no points", `{"snapshots":[]}`, 400, "1100", ""),
		post("points absent", `{}`, 400, "1100", "snapshots"),
		{says: "a point larger than the volume: refused, nothing written", do: applyToShrunken},
		{says: "refused while a foreign writer has the file open, nothing written", do: applyToForeignWriter},
	}
}

// refusedOrFailed checks a call that is refused at once or, where only the
// worker can know, ends as a failed job.
func refusedOrFailed(t *testing.T, f *fixture, r harness.Response, names string) {
	t.Helper()
	if r.Status != http.StatusOK {
		r.WantError(t, http.StatusConflict, "1400")
		return
	}
	j := f.api().Wait(t, r.Begin(t).ID)
	if j.Status != "failed" || j.Error == nil || !strings.Contains(j.Info, names) {
		t.Errorf("job is %s, info %q, error %+v; want failed and a sentence that names %s", j.Status, j.Info, j.Error, names)
	}
}

func applyToShrunken(t *testing.T, f *fixture) {
	v := f.world.register(t, harness.NewImage(200_000))
	v.edit(t, harness.Edit{Kind: harness.WriteNoise, Len: 200_000, Seed: 1})
	f.create(t, true, v)
	p := f.point(v.head)
	if err := os.Truncate(v.path, 100_000); err != nil {
		t.Fatal(err)
	}
	shrunken := p.content.Resized(100_000)
	refusedOrFailed(t, f, f.api().Send(t, "POST", "volume_snapshots/apply", map[string]any{"snapshots": []string{p.id}}), v.id)
	shrunken.WantFile(t, v.path)
	r := f.api().Send(t, "POST", "volume_snapshots", map[string]any{"resources": []string{v.id}, "snapshot_name": "shrunken"})
	refusedOrFailed(t, f, r, v.id)
	if err := p.content.WriteFile(v.path); err != nil { // its owner puts it right
		t.Fatal(err)
	}
	f.apply(t, p)
	f.checkRows(t)
}

func applyToForeignWriter(t *testing.T, f *fixture) {
	v := f.world.register(t, harness.NewImage(100_000))
	f.create(t, true, v)
	v.edit(t, harness.Edit{Kind: harness.WriteNoise, Len: 100_000, Seed: 3})
	w, err := os.OpenFile(v.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	refusedOrFailed(t, f, f.api().Send(t, "POST", "volume_snapshots/apply", map[string]any{"snapshots": []string{v.head}}), v.id)
	v.content.WantFile(t, v.path)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f.checkRows(t)
	f.apply(t, f.point(v.head))
	v.content.WantFile(t, v.path)
}

func otherOperationRows() []row {
	var rows []row
	add := func(says, method, path, body string, want int, code, msg string) {
		rows = append(rows, refused(row{says: says, method: method, path: path, body: body, want: want, code: code, msg: msg}))
	}
	for _, op := range []string{"capture_instance", "create_volume"} {
		name := map[string]string{"capture_instance": "image_name", "create_volume": "volume_name"}[op]
		base, body := "volume_snapshots/"+op, fmt.Sprintf(`{"%s":"x"}`, name)
		add(op+": neither path nor body has an id", "POST", base, body, 400, "1100", "")
		add(op+": placeholder and no body id", "POST", base+"/:snapshot_id", body, 400, "1100", "")
		add(op+": path and body differ", "POST", base+"/{full}", fmt.Sprintf(`{"snapshot":"{inc}","%s":"x"}`, name), 400, "1100", "")
		add(op+": unknown id", "POST", base+"/ss-NOTTHERE", body, 404, "2100", "ss-NOTTHERE")
		add(op+": wrong kind", "POST", base+"/{a}", body, 400, "1100", "{a}")
		add(op+": no name", "POST", base+"/{full}", `{}`, 400, "1100", name)
		add(op+": name over 255 characters", "POST", base+"/{full}", fmt.Sprintf(`{"%s":"%s"}`, name, strings.Repeat("x", 256)), 400, "1100", "255")
	}
	add("capture_instance: a volume's point", "POST", "volume_snapshots/capture_instance/{full}", `{"image_name":"x"}`, 400, "1100", "{full}")
	add("capture_instance: a volume's point, id in the body", "POST", "volume_snapshots/capture_instance", `{"snapshot":"{full}","image_name":"x"}`, 400, "1100", "{full}")
	add("create_volume: only available points", "POST", "volume_snapshots/create_volume/{dead}", `{"volume_name":"x"}`, 409, "1400", "{dead}")
	add("PUT: unknown id", "PUT", "volume_snapshots/ss-NOTTHERE", `{"snapshot_name":"x"}`, 404, "2100", "ss-NOTTHERE")
	add("PUT: empty name", "PUT", "volume_snapshots/{full}", `{"snapshot_name":""}`, 400, "1100", "snapshot_name")
	add("PUT: name over 255 characters", "PUT", "volume_snapshots/{full}", `{"snapshot_name":"`+strings.Repeat("x", 256)+`"}`, 400, "1100", "255")
	add("PUT: control character", "PUT", "volume_snapshots/{full}", `{"snapshot_name":"a\nb"}`, 400, "1100", "")
	add("PUT: no id", "PUT", "volume_snapshots", `{"snapshot_name":"x"}`, 400, "1100", "")
	add("PUT: path and body differ", "PUT", "volume_snapshots/{full}", `{"snapshot":"{inc}","snapshot_name":"x"}`, 400, "1100", "")
	add("export: unknown id", "GET", "volume_snapshots/ss-NOTTHERE/export", "", 404, "2100", "ss-NOTTHERE")
	add("export: only available points", "GET", "volume_snapshots/{dead}/export", "", 409, "1400", "{dead}")
	add("export: unknown format", "GET", "volume_snapshots/{full}/export?format=vmdk", "", 400, "1100", "")
	return append(rows, []row{
		{says: "create_volume: same type and size, id in the path", do: cloneKeepsTypeAndSize},
		{says: "create_volume: id in the body, and in both", do: func(t *testing.T, f *fixture) {
			p := f.freshPoint(t)
			for _, path := range []string{"", "/" + p.id, "/:snapshot_id"} {
				j := f.api().OK(t, f.api().Send(t, "POST", "volume_snapshots/create_volume"+path,
					map[string]any{"snapshot": p.id, "volume_name": "from body"}).Begin(t))
				f.api().WantContent(t, "volumes", j.ResourceIDs[0], p.content)
			}
		}},
		{says: "create_volume: from a point whose volume is gone", method: "POST", path: "volume_snapshots/create_volume/{orphan}",
			body: `{"volume_name":"back"}`, want: 200, check: endsOK("CreateVolumeFromSnapshot")},
		{says: "PUT: 204, no body, absent fields stay", do: putKeepsAbsent},
		{says: "PUT: the old form with the id in the body", do: func(t *testing.T, f *fixture) {
			p := f.freshPoint(t)
			p.name = "old form"
			r := f.api().Send(t, "PUT", "volume_snapshots", map[string]any{"snapshot": p.id, "snapshot_name": p.name})
			if r.Status != 204 || f.api().MustSnapshot(t, p.id).Name != p.name {
				t.Errorf("answered %d %s", r.Status, r.Body)
			}
		}},
		{says: "export raw: octet-stream of the exact length", do: func(t *testing.T, f *fixture) {
			r := f.api().Get(t, "volume_snapshots/"+f.ids["{full}"]+"/export")
			if r.Status != 200 || r.Header.Get("Content-Length") != fmt.Sprint(2*mib+512) ||
				r.Header.Get("Content-Type") != "application/octet-stream" || len(r.Body) != 2*mib+512 {
				t.Errorf("%d, %v, %d bytes", r.Status, r.Header, len(r.Body))
			}
		}},
		{says: "export qcow2: starts with its magic", do: func(t *testing.T, f *fixture) {
			r := f.api().Get(t, "volume_snapshots/"+f.ids["{full}"]+"/export?format=qcow2")
			if r.Status != 200 || !strings.HasPrefix(string(r.Body), "QFI\xfb\x00\x00\x00\x03") {
				t.Errorf("%d, first bytes %q", r.Status, r.Body[:min(8, len(r.Body))])
			}
		}},
	}...)
}

func cloneKeepsTypeAndSize(t *testing.T, f *fixture) {
	j := f.api().OK(t, f.api().Send(t, "POST", "volumes",
		map[string]any{"volume_name": "typed", "size_bytes": 123_456, "volume_type": 3}).Begin(t))
	src := j.ResourceIDs[0]
	snap := f.api().Create(t, "typed", false, src)[0]
	v := f.api().MustVolume(t, f.api().Clone(t, snap, "its clone"))
	if v.Type != 3 || v.SizeBytes != 123_456 || v.Name != "its clone" || v.Status != "available" || !volForm.MatchString(v.ID) {
		t.Errorf("clone %+v", v)
	}
	if rows := f.api().Snapshots(t, map[string][]string{"resource_id": {v.ID}}); len(rows) != 0 {
		t.Errorf("a new volume has points: %+v", rows)
	}
}

func putKeepsAbsent(t *testing.T, f *fixture) {
	p := f.freshPoint(t)
	for _, step := range []struct{ body, name, desc string }{
		{`{"snapshot_name":"n1","description":"d1"}`, "n1", "d1"},
		{`{"snapshot_name":"n2"}`, "n2", "d1"},
		{`{"description":""}`, "n2", ""},
		{`{}`, "n2", ""},
	} {
		r := f.api().Do(t, harness.Request{Method: "PUT", Path: "volume_snapshots/" + p.id, Body: step.body})
		s := f.api().MustSnapshot(t, p.id)
		if r.Status != 204 || len(r.Body) != 0 || s.Name != step.name || s.Description != step.desc {
			t.Errorf("PUT %s: %d %q; name %q description %q", step.body, r.Status, r.Body, s.Name, s.Description)
		}
	}
	p.name, p.desc = "n2", ""
}
