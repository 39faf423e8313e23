package httpapi_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/chain"
	"cairn/internal/job"
	"cairn/internal/service"
	"cairn/internal/volume"
)

// parse reads expected JSON.
func parse(t *testing.T, s string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSnapshotObjects(t *testing.T) {
	s := serve(t, newFake(), nil)
	a := s.do(t, "GET", zone+"/volume_snapshots", "", "")
	want := parse(t, `{"total_count":7,"snapshots":[{
		"snapshot_id":"ss-AAAAAAAA","snapshot_name":"first <&>","description":"","snapshot_type":"IS_FULL","status":"available",
		"transition_status":"","create_time":"2026-11-23T00:00:00Z","status_time":"2026-11-23T00:00:00Z","snapshot_time":"2026-11-23T00:00:00Z",
		"is_taken":1,"is_head":0,"head_chain":1,"root_id":"ss-AAAAAAAA","parent_id":"self","size":2,"total_size":3,"total_count":2,
		"lastest_snapshot_time":"2026-11-23T01:00:00Z",
		"resource":{"resource_id":"vol-AAAAAAAA","resource_type":"volume","resource_name":"root"},
		"virtual_size":5368709120,"size_bytes":1048577,"unique_bytes":9,"progress":1,"consistency":"crash","group_id":"g","cbt":"scan",
		"reason":"the first point","damaged":0,"tags":[],"nbd_uris":[],"clients":0
	},{
		"snapshot_id":"ss-BBBBBBBB","snapshot_name":"second","description":"","snapshot_type":"IS_INCREMENTAL","status":"pending",
		"transition_status":"creating","create_time":"2026-11-23T00:00:00Z","status_time":"2026-11-23T00:00:00Z","snapshot_time":"",
		"is_taken":0,"is_head":1,"head_chain":0,"root_id":"ss-AAAAAAAA","parent_id":"ss-AAAAAAAA","size":0,"total_size":0,"total_count":0,
		"lastest_snapshot_time":"",
		"resource":{"resource_id":"vol-AAAAAAAA","resource_type":"volume","resource_name":""},
		"virtual_size":5368709120,"size_bytes":0,"progress":0.25,"consistency":"","group_id":"","cbt":"",
		"reason":"","damaged":0,"tags":[],"nbd_uris":[],"clients":0
	}]}`)
	if diff := cmp.Diff(want, a.json(t)); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(string(a.body), "first <&>") {
		t.Error("characters of a name are escaped for HTML")
	}
}

func TestEmptyPagesHoldEmptyLists(t *testing.T) {
	f := newFake()
	f.page, f.vols, f.plan = service.SnapshotPage{}, service.VolumePage{}, service.DeletePlan{}
	s := serve(t, f, nil)
	for target, want := range map[string]string{
		"/volume_snapshots": `{"snapshots":[],"total_count":0}`,
		"/volumes":          `{"volumes":[],"total_count":0}`,
		"/jobs":             `{"jobs":[],"total_count":0}`,
		"/unfinished_jobs":  `[]`,
	} {
		if a := s.do(t, "GET", zone+target, "", ""); strings.TrimSpace(string(a.body)) != want {
			t.Errorf("%s: %s", target, a.body)
		}
	}
	if a := s.do(t, "DELETE", zone+"/volume_snapshots/ss-A?dry_run=1", "", ""); strings.TrimSpace(string(a.body)) != `{"snapshots":[],"freed_bytes":0}` {
		t.Errorf("dry run: %s", a.body)
	}
}

func TestDamagedAndOddProgress(t *testing.T) {
	f := newFake()
	f.page.Snapshots[0].Damaged = true
	f.page.Snapshots[0].Progress = 1.5
	f.page.Snapshots[1].Status = chain.Ceased
	a := serve(t, f, nil).do(t, "GET", zone+"/volume_snapshots", "", "")
	first := a.object(t)["snapshots"].([]any)[0].(map[string]any)
	if first["damaged"] != 1.0 || first["progress"] != 1.0 {
		t.Errorf("%s", a.body)
	}
}

func TestJobObjects(t *testing.T) {
	base := `"job_id":"` + jobID + `","id_prefix":"","action":"CreateSnapshots","request_id":"` + callID + `","zone":"ac1","extra":"",`
	for _, c := range []struct {
		says   string
		change func(*job.Job)
		want   string
	}{
		{"pending", func(*job.Job) {}, `"status":"pending","create_time":"2026-11-23T00:00:00Z","begin_time":"","finished_time":"","info":"",
			"resource_ids":["ss-AAAAAAAA"],"progress":0,"done_bytes":0,"total_bytes":0`},
		{"working", func(j *job.Job) {
			j.Status, j.BeginTime, j.ResourceIDs = job.Working, instant.Add(time.Second), nil
			j.Progress = job.Progress{DoneBytes: 1, TotalBytes: 4}
		}, `"status":"working","create_time":"2026-11-23T00:00:00Z","begin_time":"2026-11-23T00:00:01Z","finished_time":"","info":"",
			"resource_ids":[],"progress":0.25,"done_bytes":1,"total_bytes":4`},
		{"successful with nothing to move", func(j *job.Job) {
			j.Status, j.FinishedTime, j.Info, j.ErrorCode = job.Successful, instant.Add(time.Minute), "a full: the first point", 5000
		}, `"status":"successful","create_time":"2026-11-23T00:00:00Z","begin_time":"","finished_time":"2026-11-23T00:01:00Z","info":"a full: the first point",
			"resource_ids":["ss-AAAAAAAA"],"progress":1,"done_bytes":0,"total_bytes":0`},
		{"failed", func(j *job.Job) {
			j.Status, j.Info, j.ErrorCode, j.ErrorMessage = job.Failed, "why", 5100, "Unavailable, why"
		}, `"status":"failed","create_time":"2026-11-23T00:00:00Z","begin_time":"","finished_time":"","info":"why",
			"resource_ids":["ss-AAAAAAAA"],"progress":0,"done_bytes":0,"total_bytes":0,"error":{"code":"5100","message":"Unavailable, why"}`},
	} {
		f := newFake()
		c.change(&f.job)
		s := serve(t, f, nil)
		a := s.do(t, "GET", zone+"/job/"+jobID, "", "")
		if diff := cmp.Diff(parse(t, "{"+base+c.want+"}"), a.json(t)); diff != "" {
			t.Errorf("%s: %s", c.says, diff)
		}
		checkDocumented(t, document(t, s), "GET", zone+"/job/"+jobID, a)
	}
}

func TestServedPointsHidePaths(t *testing.T) {
	f := newFake()
	f.export = volume.Export{URIs: []string{"nbd+unix:///ss-A?socket=/srv/secret/nbd.sock", "nbd://localhost/ss-A"}, Clients: 2}
	f.page.Snapshots[0].Export = f.export
	s := serve(t, f, nil)
	far, near := `["nbd://localhost/ss-A"]`, `["nbd+unix:///ss-A?socket=/srv/secret/nbd.sock","nbd://localhost/ss-A"]`
	for want, a := range map[string]answer{
		far:  s.do(t, "POST", zone+"/volume_snapshots/serve/ss-A", "", ""),
		near: s.doUnix(t, "POST", zone+"/volume_snapshots/serve/ss-A", "", ""),
	} {
		if diff := cmp.Diff(parse(t, `{"snapshot_id":"ss-A","clients":2,"nbd_uris":`+want+`}`), a.json(t)); diff != "" {
			t.Error(diff)
		}
		checkDocumented(t, document(t, s), "POST", zone+"/volume_snapshots/serve/ss-A", a)
	}
	first := s.do(t, "GET", zone+"/volume_snapshots", "", "").object(t)["snapshots"].([]any)[0].(map[string]any)
	if diff := cmp.Diff([]any{"nbd://localhost/ss-A"}, first["nbd_uris"]); diff != "" || first["clients"] != 2.0 {
		t.Errorf("%s, %v clients", diff, first["clients"])
	}
}

func TestVolumeObjectsHidePaths(t *testing.T) {
	f := newFake()
	f.vols.Volumes[0].OnDemand = true
	f.vols.Volumes[0].Export = volume.Export{URIs: []string{"nbd+unix:///v?socket=/srv/secret/nbd.sock", "nbd://localhost/v"}, Clients: 2, Missing: 5}
	s := serve(t, f, nil)
	want := `"volume_id":"vol-AAAAAAAA","volume_name":"root","volume_type":2,"description":"","size":4,"size_bytes":3221225473,
		"status":"available","transition_status":"","create_time":"2026-11-23T00:00:00Z","status_time":"2026-11-23T00:00:00Z",
		"instance":{"device":"","instance_id":"","instance_name":""},"driver":"registered","mixed_job":"","zone":"ac1",
		"clients":2,"missing_bytes":5,"on_demand":1`
	a := s.do(t, "GET", zone+"/volumes", "", "")
	if diff := cmp.Diff(parse(t, `{"volumes":[{`+want+`,"nbd_uris":["nbd://localhost/v"]}],"total_count":3}`), a.json(t)); diff != "" {
		t.Error(diff)
	}
	local := s.doUnix(t, "GET", zone+"/volumes", "", "")
	if diff := cmp.Diff(parse(t, `{"volumes":[{`+want+`,"path":"`+pathKey+`","nbd_uris":["nbd+unix:///v?socket=/srv/secret/nbd.sock","nbd://localhost/v"]}],"total_count":3}`), local.json(t)); diff != "" {
		t.Error(diff)
	}
}

func TestRegisterThroughTheSocket(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	target := zone + "/volumes/register"
	a := s.doUnix(t, "POST", target, "", `{"path":"/dev/sdb","volume_name":"v","description":"d"}`)
	if a.StatusCode != http.StatusOK || a.object(t)["path"] != pathKey {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	checkDocumented(t, document(t, s), "POST", target, a)
	origin := service.Origin{Zone: "ac1", Local: true}
	want := []made{{"RegisterVolume", service.RegisterVolume{Origin: origin, Path: "/dev/sdb", Name: "v", Description: "d"}}}
	if diff := cmp.Diff(want, f.take()); diff != "" {
		t.Error(diff)
	}
}
