package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"

	"cairn/test/e2e/harness"
)

func jobRows() []row {
	bad := func(says, method, path string, want int, code, msg string) row {
		return row{says: says, method: method, path: path, want: want, code: code, msg: msg}
	}
	return []row{
		{says: "every field is there, with its type", do: jobFields},
		{says: "found whatever the zone in the path", do: func(t *testing.T, f *fixture) {
			j := someJob(t, f)
			for _, zone := range []string{"ac1", "nowhere", "ac2"} {
				var got harness.Job
				f.api().Get(t, "/v2/zone/"+zone+"/job/"+j.ID).Into(t, &got)
				if got.ID != j.ID || got.Zone != "ac1" {
					t.Errorf("zone %s: %+v", zone, got)
				}
			}
		}},
		{says: "unfinished_jobs is a bare array", method: "GET", path: "unfinished_jobs", want: 200,
			check: func(t *testing.T, _ *fixture, r harness.Response) {
				if strings.TrimSpace(string(r.Body)) != "[]" {
					t.Errorf("no job runs, but: %s", r.Body)
				}
			}},
		{says: "a failed job has info, error code and message; others have no error", do: failedJob},
		{says: "jobs: filter by resource and status, page with total_count", do: func(t *testing.T, f *fixture) {
			p := f.freshPoint(t)
			var page struct {
				Jobs  []harness.Job `json:"jobs"`
				Total int           `json:"total_count"`
			}
			f.api().Get(t, "jobs?status=successful&limit=5&resource_id="+p.id).Into(t, &page)
			if page.Total != 1 || len(page.Jobs) != 1 || page.Jobs[0].Action != "CreateSnapshots" {
				t.Errorf("jobs of %s: %+v", p.id, page)
			}
			f.api().Get(t, "jobs").Into(t, &page)
			if len(page.Jobs) != 20 || page.Total <= 20 {
				t.Errorf("by default %d of %d jobs, want 20", len(page.Jobs), page.Total)
			}
		}},
		{says: "notifier/stream: hb first, then the job on each status change", do: notifierStream},
		bad("unknown job", "GET", "job/00000000-0000-0000-0000-000000000000", 404, "2100", "00000000-0000"),
		bad("not even a job id", "GET", "job/xyz", 404, "2100", ""),
		bad("cancel of an unknown job", "POST", "job/00000000-0000-0000-0000-000000000000/cancel", 404, "2100", ""),
		bad("jobs with a bad status", "GET", "jobs?status=asleep", 400, "1100", ""),
		{says: "cancel of a job that has ended: 409", do: func(t *testing.T, f *fixture) {
			j := someJob(t, f)
			f.api().Send(t, "POST", "job/"+j.ID+"/cancel", map[string]any{}).WantError(t, 409, "1400")
		}},
	}
}

func someJob(t *testing.T, f *fixture) harness.Job {
	t.Helper()
	var page struct {
		Jobs []harness.Job `json:"jobs"`
	}
	f.api().Get(t, "jobs?limit=1&resource_id="+f.ids["{full}"]).Into(t, &page)
	if len(page.Jobs) != 1 {
		t.Fatalf("no job made %s", f.ids["{full}"])
	}
	return page.Jobs[0]
}

func jobFields(t *testing.T, f *fixture) {
	v := f.fresh(t)
	r := f.api().Send(t, "POST", "volume_snapshots", map[string]any{"resources": []string{v.id}, "snapshot_name": "job"})
	first := r.Object(t)
	id, _ := first["job_id"].(string)
	if !uuidForm.MatchString(id) || first["id_prefix"] != "" || first["status"] != "pending" ||
		first["begin_time"] != "" || first["finished_time"] != "" || first["extra"] != "" || first["zone"] != "ac1" {
		t.Errorf("POST answered %s", r.Body)
	}
	last := f.api().OK(t, harness.Job{ID: id})
	m := f.api().Get(t, "job/"+id).Object(t)
	for _, k := range []string{"job_id", "id_prefix", "action", "request_id", "status", "create_time", "begin_time", "finished_time", "info", "extra", "zone"} {
		if _, ok := m[k].(string); !ok {
			t.Errorf("%s is %v, want a string", k, m[k])
		}
	}
	if _, there := m["error"]; there {
		t.Errorf("a job that did not fail has an error: %v", m["error"])
	}
	if m["progress"] != 1.0 || fmt.Sprint(m["resource_ids"]) != fmt.Sprint(first["resource_ids"]) {
		t.Errorf("progress %v, resource_ids %v (in the POST answer %v)", m["progress"], m["resource_ids"], first["resource_ids"])
	}
	if m["request_id"] != first["request_id"] || r.Header.Get("X-Request-Id") != m["request_id"] {
		t.Errorf("request_id %v, in the POST answer %v, in its header %v", m["request_id"], first["request_id"], r.Header.Get("X-Request-Id"))
	}
	for _, at := range []string{last.CreateTime, last.BeginTime, last.FinishedTime} {
		if !timeForm.MatchString(at) {
			t.Errorf("time %q", at)
		}
	}
	if last.CreateTime > last.BeginTime || last.BeginTime > last.FinishedTime {
		t.Errorf("created %s, begun %s, finished %s", last.CreateTime, last.BeginTime, last.FinishedTime)
	}
	f.record(t, "job", false, []*modelVolume{v}, last.ResourceIDs, contents([]*modelVolume{v}))
}

// failedJob uses a registered file that vanished.
func failedJob(t *testing.T, f *fixture) {
	v := f.world.register(t, harness.NewImage(70_000))
	moveAway(t, v.path)
	r := f.api().Send(t, "POST", "volume_snapshots", map[string]any{"resources": []string{v.id}, "snapshot_name": "gone"})
	j := f.api().Wait(t, r.Begin(t).ID)
	m := f.api().Get(t, "job/"+j.ID).Object(t)
	e, _ := m["error"].(map[string]any)
	if j.Status != "failed" || !strings.Contains(j.Info, v.id) || e["message"] == "" || e["code"] == nil {
		t.Errorf("job of a vanished file: %v", m)
	}
	if strings.Contains(j.Info, v.path) {
		t.Errorf("info shows a path of the server to everybody: %q", j.Info)
	}
	if s := f.api().MustSnapshot(t, j.ResourceIDs[0]); s.Status != "ceased" || s.IsTaken != 0 || s.IsHead != 0 {
		t.Errorf("the point of the failed job is %+v, want ceased", s)
	}
	moveBack(t, v.path)
	f.create(t, false, v) // nothing stays locked
}

func notifierStream(t *testing.T, f *fixture) {
	v := f.fresh(t)
	ready, done := make(chan struct{}), make(chan []harness.Job, 1)
	first := make(chan string, 1)
	go func() {
		var seen []harness.Job
		defer func() { done <- seen }()
		f.srv.API().Stream(quiet{t}, "notifier/stream", func(body io.Reader) error {
			lines, event := bufio.NewScanner(body), ""
			for n := 0; n < 10_000 && lines.Scan(); n++ {
				line := lines.Text()
				if name, ok := strings.CutPrefix(line, "event:"); ok {
					if event == "" {
						first <- strings.TrimSpace(name)
						close(ready)
					}
					event = strings.TrimSpace(name)
				}
				if data, ok := strings.CutPrefix(line, "data:"); ok && event == "message" {
					var j harness.Job
					if err := json.Unmarshal([]byte(data), &j); err != nil {
						return fmt.Errorf("data is no job: %w: %s", err, data)
					}
					if len(j.ResourceIDs) == 1 && j.Action == "CreateSnapshots" {
						seen = append(seen, j)
					}
					if len(seen) > 0 && seen[len(seen)-1].Ended() {
						return nil
					}
				}
			}
			return lines.Err()
		})
	}()
	select {
	case <-ready:
	case <-done:
		t.Fatal("the stream ended before its first event")
	}
	if name := <-first; name != "hb" {
		t.Errorf("the first event is %q, want hb", name)
	}
	f.create(t, false, v)
	seen := <-done
	var order []string
	for _, j := range seen {
		if j.ResourceIDs[0] != v.head {
			t.Errorf("event of %v, want of %s", j.ResourceIDs, v.head)
		}
		order = append(order, j.Status)
	}
	if want := []string{"pending", "working", "successful"}; !slices.Equal(order, want) {
		t.Errorf("status changes %v, want %v", order, want)
	}
}

// quiet lets a goroutine use helpers: Fatalf ends the goroutine, not the test.
type quiet struct{ t *testing.T }

func (q quiet) Helper()                           { q.t.Helper() }
func (q quiet) Logf(format string, args ...any)   { q.t.Logf(format, args...) }
func (q quiet) Errorf(format string, args ...any) { q.t.Errorf(format, args...) }
func (q quiet) Fatalf(format string, args ...any) { q.t.Errorf(format, args...); runtime.Goexit() }

func leniencyRows() []row {
	get := func(says, path string, want ...string) row {
		return row{says: says, method: "GET", path: path, want: 200, check: lists(want...)}
	}
	var rows []row
	for _, ct := range []string{"application/json", "application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", ""} {
		rows = append(rows, row{says: "Content-Type " + ct + ": the body is JSON", method: "PUT", path: "volume_snapshots/{bfull}",
			body: `{"description":""}`, header: http.Header{"Content-Type": {ct}}, want: 204})
	}
	for _, v := range []struct {
		json string
		full bool
	}{
		{`0`, false}, {`1`, true}, {`"0"`, false}, {`"1"`, true}, {`true`, true}, {`false`, false}, {`null`, false}, {`""`, false},
		{`"IS_FULL"`, true}, {`"IS_INCREMENTAL"`, false}, {`"IS_AUTO"`, false}, {`"IS_AUTH"`, false},
	} {
		rows = append(rows, row{says: "is_full " + v.json, do: func(t *testing.T, f *fixture) {
			p := f.freshPoint(t)
			r := f.api().Do(t, harness.Request{Method: "POST", Path: "volume_snapshots",
				Body: `{"resources":["` + p.volume + `"],"snapshot_name":"x","is_full":` + v.json + `}`})
			j := f.api().OK(t, r.Begin(t))
			f.record(t, "x", v.full, []*modelVolume{f.vol(p.volume)}, j.ResourceIDs, []*harness.Image{p.content})
			if got := f.api().MustSnapshot(t, j.ResourceIDs[0]).Type; (got == "IS_FULL") != v.full {
				t.Errorf("made %s", got)
			}
		}})
	}
	for _, v := range []string{`2`, `-1`, `0.5`, `"yes"`, `"true"`, `[]`, `[1]`, `{}`, `"is_full"`} {
		rows = append(rows, refused(row{says: "is_full " + v + " is refused", method: "POST", path: "volume_snapshots",
			body: `{"resources":["{a}"],"snapshot_name":"x","is_full":` + v + `}`, want: 400, code: "1100"}))
	}
	for _, q := range []string{
		"snapshots={full},{inc}", "snapshots={full}&snapshots={inc}", "snapshots[]={full}&snapshots[]={inc}",
		"snapshots%5B%5D={full}&snapshots%5B%5D={inc}", "snapshots[0]={full}&snapshots[1]={inc}",
		"snapshots.1={full}&snapshots.2={inc}", "snapshots=['{full}',%20'{inc}']", "snapshots=[\"{full}\",\"{inc}\"]",
		"snapshots={full},{inc},{full}", "snapshots={full}%2C{inc}", "snapshots={full},%20{inc}", "snapshots={full},{inc}&",
	} {
		rows = append(rows, get("list as "+q, "volume_snapshots?"+q, "{full}", "{inc}"))
	}
	rows = append(rows,
		get("trailing ?", "volume_snapshots?resource_id={b}?", "{bfull}"),
		get("trailing &", "volume_snapshots?resource_id={b}&", "{bfull}"),
		get("unknown query keys", "volume_snapshots?resource_id={b}&colour=red", "{bfull}"),
		row{says: "a bare trailing ?", method: "GET", path: "volume_snapshots?", want: 200},
		row{says: "GET with a body: drained, ignored", method: "GET", path: "volume_snapshots?resource_id={b}",
			body: `{"resource_id":`, want: 200, check: lists("{bfull}")},
		row{says: "unknown keys in a body", method: "PUT", path: "volume_snapshots/{bfull}", body: `{"description":"","colour":{"a":[1]}}`, want: 204},
		row{says: "a list field given as one string is a list of one", method: "POST", path: "volume_snapshots/apply",
			body: `{"snapshots":"{bfull}"}`, want: 200, check: endsOK("ApplySnapshots")},
		row{says: "a body after blanks", method: "PUT", path: "volume_snapshots/{bfull}", body: "\n\n  {\"description\":\"\"}\n", want: 204},
		row{says: "/snapshots is an alias: rename", method: "PUT", path: "snapshots/{bfull}", body: `{"description":""}`, want: 204},
		row{says: "/snapshots is an alias: apply", method: "POST", path: "snapshots/apply", body: `{"snapshots":["{bfull}"]}`, want: 200, check: endsOK("ApplySnapshots")},
		row{says: "/snapshots is an alias: create_volume", method: "POST", path: "snapshots/create_volume/{bfull}", body: `{"volume_name":"alias"}`, want: 200, check: endsOK("CreateVolumeFromSnapshot")},
		row{says: "/snapshots is an alias: capture_instance", method: "POST", path: "snapshots/capture_instance/{bfull}", body: `{"image_name":"x"}`, want: 400, code: "1100"},
		row{says: "/snapshots is an alias: delete", method: "DELETE", path: "snapshots/ss-NOTTHERE", want: 404, code: "2100"},
		row{says: "Authorization is ignored for now, twice too", method: "GET", path: "volume_snapshots?resource_id={b}",
			header: http.Header{"Authorization": {"Bearer stale", "Bearer other"}}, want: 200, check: lists("{bfull}")},
		row{says: "a leading colon before an id is stripped", method: "PUT", path: "volume_snapshots/:{bfull}", body: `{"description":""}`, want: 204},
	)
	return rows
}
