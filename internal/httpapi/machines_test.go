package httpapi_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/chain"
	"cairn/internal/service"
)

// This file holds TestWire's tables of instances and images.

func instanceRows() []row {
	list := func(f service.InstanceFilter) *made {
		f.Zone = "ac1"
		if f.IDs == nil {
			f.IDs = []string{}
		}
		if f.Limit == 0 {
			f.Limit = 20
		}
		return &made{"Instances", f}
	}
	run := func(says, body string, want service.RunInstances) row {
		want.Origin = here
		return row{says: says, method: "POST", target: "/instances", body: body, status: 200, has: jobID, call: &made{"RunInstances", want}}
	}
	power := func(says, path, body, call string, want service.InstanceSet) row {
		want.Origin = here
		return row{says: says, method: "POST", target: "/instances/" + path, body: body, status: 200, has: jobID, call: &made{call, want}}
	}
	name := "n"
	two := []string{"ins-A", "ins-B"}
	return []row{
		{says: "instances: limit 20 by default", method: "GET", target: "/instances", status: 200, call: list(service.InstanceFilter{}), has: `"total_count":2`},
		{says: "instances: filters", method: "GET", target: "/instances?instances[]=ins-A&status=running,stopped&search_word=x&limit=500&offset=2", status: 200, call: list(service.InstanceFilter{
			IDs: []string{"ins-A"}, Statuses: []service.InstanceStatus{service.InstanceRunning, service.InstanceStopped}, Search: "x", Limit: 100, Offset: 2,
		})},
		bad("instances: bad status", "GET", "/instances?status=paused", ""),
		bad("instances: bad paging", "GET", "/instances?limit=-3", ""),
		run("run: all there is", `{"instance":{"image_id":"img-A","instance_name":"n","cpu":2,"memory":512,"count":3}}`,
			service.RunInstances{Image: "img-A", Name: "n", CPUs: 2, Memory: 512 << 20, Count: 3}),
		run("run: defaults", `{"instance":{"image_id":"img-A","instance_name":"n"}}`,
			service.RunInstances{Image: "img-A", Name: "n", CPUs: 1, Memory: 1 << 30, Count: 1}),
		bad("run: no image", "POST", "/instances", `{"instance":{"instance_name":"n"}}`),
		bad("run: a placeholder is no image", "POST", "/instances", `{"instance":{"image_id":":image_id","instance_name":"n"}}`),
		bad("run: fractional memory", "POST", "/instances", `{"instance":{"image_id":"img-A","instance_name":"n","memory":1.5}}`),
		bad("run: count that overflows", "POST", "/instances", `{"instance":{"image_id":"img-A","instance_name":"n","count":4294967297}}`),
		power("start", "start", `{"instances":["ins-A","ins-B"]}`, "StartInstances", service.InstanceSet{IDs: two}),
		power("stop: one string", "stop", `{"instances":"ins-A"}`, "StopInstances", service.InstanceSet{IDs: two[:1]}),
		power("stop: force", "stop", `{"instances":["ins-A"],"force":true}`, "StopInstances", service.InstanceSet{IDs: two[:1], Force: true}),
		power("restart", "restart", `{"instances":["ins-A","ins-A"]}`, "RestartInstances", service.InstanceSet{IDs: two[:1]}),
		bad("start: nothing", "POST", "/instances/start", `{}`),
		{says: "instance delete", method: "DELETE", target: "/instances/ins-A,ins-B", status: 200, has: jobID, call: &made{"DeleteInstances", service.InstanceSet{Origin: here, IDs: two}}},
		bad("instance delete: placeholder alone", "DELETE", "/instances/:instance_ids", ""),
		{says: "instance rename", method: "PUT", target: "/instances/ins-A", body: `{"instance_name":"n"}`, status: 204, call: &made{"RenameInstances", service.Rename{Origin: here, IDs: two[:1], Name: &name}}},
		{says: "console", method: "GET", target: "/instances/ins-A/console", status: 200, has: "login:", call: &made{"InstanceConsole", "ac1/ins-A 0"}},
		{says: "console: the end of it", method: "GET", target: "/instances/ins-A/console?from=-5", status: 200, call: &made{"InstanceConsole", "ac1/ins-A -5"}},
		bad("console: from a word", "GET", "/instances/ins-A/console?from=end", ""),
		{says: "attach", method: "POST", target: "/volumes/attach", body: `{"instance_id":"ins-A","volumes":["vol-A","vol-B"]}`, status: 200, has: jobID,
			call: &made{"AttachVolumes", service.AttachVolumes{Origin: here, Instance: "ins-A", IDs: []string{"vol-A", "vol-B"}}}},
		{says: "attach: the older word", method: "POST", target: "/volumes/attach", body: `{"instance":"ins-A","volumes":"vol-A"}`, status: 200,
			call: &made{"AttachVolumes", service.AttachVolumes{Origin: here, Instance: "ins-A", IDs: []string{"vol-A"}}}},
		bad("attach: no instance", "POST", "/volumes/attach", `{"volumes":["vol-A"]}`),
		bad("attach: no volume", "POST", "/volumes/attach", `{"instance_id":"ins-A"}`),
		bad("attach: two instances", "POST", "/volumes/attach", `{"instance_id":"ins-A","instance":"ins-B","volumes":["vol-A"]}`),
		{says: "detach", method: "POST", target: "/volumes/detach", body: `{"volumes":["vol-A"]}`, status: 200, has: jobID,
			call: &made{"DetachVolumes", service.DetachVolumes{Origin: here, IDs: []string{"vol-A"}}}},
		{says: "detach from one", method: "POST", target: "/volumes/detach", body: `{"instance_id":"ins-A","volumes":["vol-A"]}`, status: 200,
			call: &made{"DetachVolumes", service.DetachVolumes{Origin: here, Instance: "ins-A", IDs: []string{"vol-A"}}}},
		bad("detach: no volume", "POST", "/volumes/detach", `{}`),
	}
}

func imageRows() []row {
	list := func(f service.ImageFilter) *made {
		f.Zone = "ac1"
		if f.IDs == nil {
			f.IDs = []string{}
		}
		if f.Limit == 0 {
			f.Limit = 20
		}
		return &made{"Images", f}
	}
	name := "n"
	return []row{
		{says: "images: limit 20 by default", method: "GET", target: "/images", status: 200, call: list(service.ImageFilter{}), has: `"total_count":4`},
		{says: "images: filters", method: "GET", target: "/images?images=img-A,img-B&status=deleted&search_word=x&limit=3&offset=2", status: 200, call: list(service.ImageFilter{
			IDs: []string{"img-A", "img-B"}, Statuses: []chain.Status{chain.Deleted}, Search: "x", Limit: 3, Offset: 2,
		})},
		bad("images: bad status", "GET", "/images?status=gone", ""),
		{says: "image delete", method: "DELETE", target: "/images/img-A", status: 200, has: jobID, call: &made{"DeleteImages", service.ImageSet{Origin: here, IDs: []string{"img-A"}}}},
		bad("image delete: placeholder alone", "DELETE", "/images/:image_ids", ""),
		{says: "image rename", method: "PUT", target: "/images/img-A", body: `{"image_name":"n"}`, status: 204, call: &made{"RenameImages", service.Rename{Origin: here, IDs: []string{"img-A"}, Name: &name}}},
		{says: "image import", method: "POST", target: "/images/import?image_name=n&size_bytes=4", body: "abcd", status: 200, has: jobID,
			call: &made{"ImportImage", service.ImportImage{Origin: here, Name: "n", SizeBytes: 4}}},
		bad("image import: another length", "POST", "/images/import?image_name=n&size_bytes=5", "abcd"),
		bad("image export: a format that is none", "GET", "/images/img-A/export?format=vmdk", ""),
	}
}

func TestMachineObjects(t *testing.T) {
	s := serve(t, newFake(), nil)
	want := parse(t, `{"total_count":2,"instances":[{
		"instance_id":"ins-AAAAAAAA","instance_name":"web","description":"","status":"running","transition_status":"",
		"create_time":"2026-11-23T00:00:00Z","status_time":"2026-11-23T00:00:00Z","vcpus_current":2,"memory_current":512,
		"image":{"image_id":"img-AAAAAAAA","image_name":"golden"},"size":2,"size_bytes":1073741825,
		"volumes":[{"volume_id":"vol-AAAAAAAA","volume_name":"data","device":"vdb","size_bytes":7}],
		"driver": "managed", "mixed_job":"","zone":"ac1","nbd_uris":["nbd://h/x"],"missing_bytes":5
	}]}`)
	if diff := cmp.Diff(want, s.do(t, "GET", zone+"/instances", "", "").json(t)); diff != "" {
		t.Error(diff)
	}
	want = parse(t, `{"total_count":4,"images":[{
		"image_id":"img-AAAAAAAA","image_name":"golden","description":"","size":2,"size_bytes":1073741825,"added_bytes":77,
		"platform":"","os_family":"","provider":"self","visibility":"private","status":"available","transition_status":"",
		"create_time":"2026-11-23T00:00:00Z","status_time":"2026-11-23T00:00:00Z","progress":1,"damaged":0,"origin":"it was imported","zone":"ac1"
	}]}`)
	if diff := cmp.Diff(want, s.do(t, "GET", zone+"/images", "", "").json(t)); diff != "" {
		t.Error(diff)
	}
	if a := s.do(t, "GET", zone+"/instances/ins-A/console", "", ""); !strings.HasPrefix(a.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("the console comes as %q", a.Header.Get("Content-Type"))
	}
}
