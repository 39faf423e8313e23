package httpapi_test

import (
	"strings"

	"cairn/internal/chain"
	"cairn/internal/job"
	"cairn/internal/service"
)

// This file holds the tables of TestWire.

func snapshots(f service.SnapshotFilter) *made {
	f.Zone = "ac1"
	if f.IDs == nil {
		f.IDs = []string{}
	}
	if f.Limit == 0 {
		f.Limit = 20
	}
	return &made{"Snapshots", f}
}

func listRows() []row {
	const path = "/volume_snapshots"
	ids := func(ids ...string) *made { return snapshots(service.SnapshotFilter{IDs: ids}) }
	ab := ids("ss-A", "ss-B")
	get := func(says, query string, call *made) row {
		return row{says: says, method: "GET", target: path + query, status: 200, call: call, has: `"total_count":7`}
	}
	return []row{
		get("list: offset 0 and limit 20 by default", "", ids()),
		get("list: trailing ?", "?", ids()),
		get("list: trailing ? and &", "?snapshots=ss-A&", ids("ss-A")),
		get("list: several stray &", "?&&limit=5&&offset=3&", snapshots(service.SnapshotFilter{Offset: 3, Limit: 5})),
		get("list: trailing ? after a value", "?limit=5?", snapshots(service.SnapshotFilter{Limit: 5})),
		get("list spelling a,b unescaped", "?snapshots=ss-A,ss-B", ab),
		get("list spelling a%2Cb", "?snapshots=ss-A%2Css-B", ab),
		get("list spelling repeated", "?snapshots=ss-A&snapshots=ss-B", ab),
		get("list spelling x[]=", "?snapshots[]=ss-A&snapshots[]=ss-B", ab),
		get("list spelling x%5B%5D=", "?snapshots%5B%5D=ss-A&snapshots%5B%5D=ss-B", ab),
		get("list spelling x[0]=", "?snapshots[0]=ss-A&snapshots[1]=ss-B", ab),
		get("list spelling x.1=", "?snapshots.1=ss-A&snapshots.2=ss-B", ab),
		get("list spelling ['a', 'b']", "?snapshots=%5B'ss-A',%20'ss-B'%5D", ab),
		get("list spelling ['a','b'] with +", "?snapshots=['ss-A',+'ss-B']", ab),
		get(`list spelling ["a","b"]`, `?snapshots=%5B%22ss-A%22,%22ss-B%22%5D`, ab),
		get("list spellings mixed, duplicates dropped", "?snapshots=ss-A&snapshots[]=ss-A,ss-B", ab),
		get("list: empty items are none", "?snapshots=,ss-A,,&snapshots=", ids("ss-A")),
		get("list: a placeholder is no id", "?snapshots=:snapshot_id", ids()),
		get("list: a leading colon is stripped", "?snapshots=:ss-A", ids("ss-A")),
		get("list: x[1 is another key", "?snapshots[1=ss-A&snapshots.x=ss-B&snapshotsx=ss-C", ids()),
		get("list: unknown keys are ignored", "?frobnicate=1&owner=me", ids()),
		get("filter resource_id", "?resource_id=vol-A", snapshots(service.SnapshotFilter{ResourceID: "vol-A"})),
		get("filter root_id", "?root_id=ss-A", snapshots(service.SnapshotFilter{RootID: "ss-A"})),
		get("filter snapshot_type IS_FULL", "?snapshot_type=IS_FULL", snapshots(service.SnapshotFilter{Full: &yes})),
		get("filter snapshot_type 1", "?snapshot_type=1", snapshots(service.SnapshotFilter{Full: &yes})),
		get("filter snapshot_type IS_INCREMENTAL", "?snapshot_type=IS_INCREMENTAL", snapshots(service.SnapshotFilter{Full: &no})),
		get("filter snapshot_type 0", "?snapshot_type=0", snapshots(service.SnapshotFilter{Full: &no})),
		get("filter status list", "?status=deleted,ceased", snapshots(service.SnapshotFilter{Statuses: []chain.Status{chain.Deleted, chain.Ceased}})),
		get("filter status repeated", "?status=pending&status=available&status=suspended", snapshots(service.SnapshotFilter{Statuses: []chain.Status{chain.Pending, chain.Available, chain.Suspended}})),
		get("filter search_word, escaped", "?search_word=a%20b%2C%E5%A4%87", snapshots(service.SnapshotFilter{Search: "a b,备"})),
		get("tags and verbose are accepted", "?tags=a,b&verbose=1", ids()),
		get("limit above 100 is clamped", "?limit=101", snapshots(service.SnapshotFilter{Limit: 100})),
		get("limit far above is clamped", "?limit=99999999999999999999999", snapshots(service.SnapshotFilter{Limit: 100})),
		get("an offset beyond all numbers is past the end", "?offset=99999999999999999999999", snapshots(service.SnapshotFilter{Offset: 1<<63 - 1})),
		get("empty paging is the default", "?offset=&limit=", ids()),
		{says: "limit=0 gives the count alone", method: "GET", target: path + "?limit=0", status: 200,
			call: snapshots(service.SnapshotFilter{Limit: 1}), has: `{"snapshots":[],"total_count":7}`},
		{says: "/snapshots is an alias", method: "GET", target: "/snapshots?snapshots=ss-A", status: 200, call: ids("ss-A")},
		{says: "GET with a body: drained, ignored", method: "GET", target: path, body: `{"limit":"x"`, status: 200, call: ids()},
		{says: "HEAD is GET without the body", method: "HEAD", target: path, status: 200, call: ids()},
		{says: "a slash at the end and doubled ones are fine", method: "GET", target: "/" + zone + "//volume_snapshots/", status: 200, call: ids()},
		bad("negative offset", "GET", path+"?offset=-1", ""),
		bad("negative limit", "GET", path+"?limit=-1", ""),
		bad("non-numeric limit", "GET", path+"?limit=ten", ""),
		bad("fractional offset", "GET", path+"?offset=1.5", ""),
		bad("hexadecimal offset", "GET", path+"?offset=0x10", ""),
		bad("bad status", "GET", path+"?status=gone", ""),
		bad("one bad status among good", "GET", path+"?status=available,gone", ""),
		bad("bad type", "GET", path+"?snapshot_type=2", ""),
		bad("broken escape in the query", "GET", path+"?search_word=%zz", ""),
		bad("query that is not UTF-8", "GET", path+"?search_word=%ff", ""),
		bad("too many ids", "GET", path+"?snapshots="+manyIDs(1001), ""),
	}
}

func manyIDs(n int) string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = "ss-" + strings.Repeat("A", i%20+1) + strings.Repeat("B", i/20+1)
	}
	return strings.Join(ids, ",")
}

func createRows() []row {
	const path = "/volume_snapshots"
	post := func(says, body string, want service.CreateSnapshots) row {
		want.Origin = here
		return row{says: says, method: "POST", target: path, body: body, status: 200, call: &made{"CreateSnapshots", want}, has: `"status":"pending"`}
	}
	one := []string{"vol-A"}
	with := func(isFull string) string { return `{"resources":["vol-A"],"snapshot_name":"n"` + isFull + `}` }
	rows := []row{
		post("create: a list of resources, description too", `{"resources":["vol-A","ins-B"],"snapshot_name":"n","description":"d"}`,
			service.CreateSnapshots{Resources: []string{"vol-A", "ins-B"}, Name: "n", Description: "d"}),
		post("create: one string is a list of one", `{"resources":"vol-A","snapshot_name":"n"}`, service.CreateSnapshots{Resources: one, Name: "n"}),
		post("create: duplicates are dropped", `{"resources":["vol-A","vol-A"],"snapshot_name":"n"}`, service.CreateSnapshots{Resources: one, Name: "n"}),
		post("create: unknown keys are ignored", `{"resources":["vol-A"],"snapshot_name":"n","zone":"x","deep":{"a":[1]}}`, service.CreateSnapshots{Resources: one, Name: "n"}),
		post("create: null is absent", `{"resources":["vol-A"],"snapshot_name":"n","description":null}`, service.CreateSnapshots{Resources: one, Name: "n"}),
		post("create: names are UTF-8 and pass unchanged", `{"resources":["vol-A"],"snapshot_name":"备份 <1>"}`, service.CreateSnapshots{Resources: one, Name: "备份 <1>"}),
		post("create: an empty name is the service's to judge", `{"resources":["vol-A"],"snapshot_name":""}`, service.CreateSnapshots{Resources: one}),
		post("create: a byte order mark is skipped", "\xef\xbb\xbf"+with(""), service.CreateSnapshots{Resources: one, Name: "n"}),
		bad("create: no body", "POST", path, ""),
		bad("create: no resources", "POST", path, `{"snapshot_name":"n"}`),
		bad("create: empty resources", "POST", path, `{"resources":[],"snapshot_name":"n"}`),
		bad("create: only a placeholder", "POST", path, `{"resources":[":resource_id"],"snapshot_name":"n"}`),
		bad("create: resources of numbers", "POST", path, `{"resources":[1],"snapshot_name":"n"}`),
		bad("create: resources an object", "POST", path, `{"resources":{"a":"vol-A"},"snapshot_name":"n"}`),
		bad("create: name a number", "POST", path, `{"resources":["vol-A"],"snapshot_name":7}`),
		bad("create: broken JSON", "POST", path, `{"resources":["vol-A"]`),
		bad("create: a form", "POST", path, `resources=vol-A&snapshot_name=n`),
		bad("create: JSON of another kind", "POST", path, `["vol-A"]`),
		bad("create: two objects", "POST", path, with("")+with("")),
		bad("create: not UTF-8", "POST", path, "{\"resources\":[\"vol-A\"],\"snapshot_name\":\"\xff\"}"),
	}
	for _, auto := range []string{``, `,"is_full":0`, `,"is_full":"0"`, `,"is_full":false`, `,"is_full":null`, `,"is_full":""`,
		`,"is_full":"IS_INCREMENTAL"`, `,"is_full":"IS_AUTO"`, `,"is_full":"IS_AUTH"`} {
		rows = append(rows, post("is_full: the rules decide"+auto, with(auto), service.CreateSnapshots{Resources: one, Name: "n"}))
	}
	for _, full := range []string{`1`, `"1"`, `true`, `"IS_FULL"`} {
		rows = append(rows, post("is_full: full "+full, with(`,"is_full":`+full), service.CreateSnapshots{Resources: one, Name: "n", Full: true}))
	}
	for _, wrong := range []string{`2`, `-1`, `0.5`, `"2"`, `"yes"`, `"is_full"`, `"true"`, `[]`, `[1]`, `{}`, `1e999`} {
		rows = append(rows, bad("is_full: anything else "+wrong, "POST", path, with(`,"is_full":`+wrong)))
	}
	for _, kind := range []string{"", "Content-Type: application/x-www-form-urlencoded\r\n", "Content-Type: text/plain\r\n",
		"Content-Type: application/json; charset=gbk\r\n", "Content-Type: multipart/form-data\r\n", "Content-Type: ;;;\r\n",
		"Content-Type: application/xml\r\nAccept: text/html\r\nAccept-Encoding: gzip\r\n",
		"Authorization: Bearer stale\r\nAuthorization: Bearer fresh\r\n"} {
		r := post("any Content-Type is JSON: "+kind, with(""), service.CreateSnapshots{Resources: one, Name: "n"})
		r.headers = kind
		rows = append(rows, r)
	}
	return rows
}

func deleteRows() []row {
	const path = "/volume_snapshots"
	del := func(says, target string, ids ...string) row {
		return row{says: says, method: "DELETE", target: path + target, status: 200, has: jobID,
			call: &made{"DeleteSnapshots", service.SnapshotSet{Origin: here, IDs: ids}}}
	}
	plan := func(says, target string) row {
		return row{says: says, method: "DELETE", target: path + target, status: 200, has: `{"snapshots":["ss-BBBBBBBB","ss-AAAAAAAA"],"freed_bytes":4096}`,
			call: &made{"PlanDeleteSnapshots", service.SnapshotSet{Origin: here, IDs: []string{"ss-A"}}}}
	}
	return []row{
		del("delete: id in the path", "/ss-A", "ss-A"),
		del("delete: comma list in the path", "/ss-A,ss-B", "ss-A", "ss-B"),
		del("delete: escaped comma list in the path", "/ss-A%2Css-B", "ss-A", "ss-B"),
		del("delete: ids in the query", "?snapshot=ss-A,ss-B", "ss-A", "ss-B"),
		del("delete: ids in the query, slash at the end", "/?snapshot=ss-A", "ss-A"),
		del("delete: placeholder, then the query", "/:snapshot_id?snapshot=ss-A&snapshot=ss-B", "ss-A", "ss-B"),
		del("delete: placeholder, then x[0]=", "/:snapshot_id?snapshot[0]=ss-A", "ss-A"),
		del("delete: leading colon stripped", "/:ss-A", "ss-A"),
		del("delete: same ids twice", "/ss-A,ss-B?snapshot=ss-B,ss-A", "ss-A", "ss-B"),
		del("delete: dry_run=0 is none", "/ss-A?dry_run=0", "ss-A"),
		plan("delete: dry_run=1 changes nothing", "/ss-A?dry_run=1"),
		plan("delete: dry_run=true with the query", "/:snapshot_id?snapshot=ss-A&dry_run=true"),
		{says: "delete: the alias", method: "DELETE", target: "/snapshots/ss-A", status: 200, call: &made{"DeleteSnapshots", service.SnapshotSet{Origin: here, IDs: []string{"ss-A"}}}},
		{says: "delete: a body is ignored", method: "DELETE", target: path + "/ss-A", body: "{{{", status: 200, call: &made{"DeleteSnapshots", service.SnapshotSet{Origin: here, IDs: []string{"ss-A"}}}},
		bad("delete: no id at all", "DELETE", path, ""),
		bad("delete: a placeholder alone", "DELETE", path+"/:snapshot_id", ""),
		bad("delete: another placeholder alone", "DELETE", path+"/:id", ""),
		bad("delete: an empty query", "DELETE", path+"/:snapshot_id?snapshot=", ""),
		bad("delete: a placeholder in the query too", "DELETE", path+"/:snapshot_id?snapshot=:snapshot", ""),
		bad("delete: path and query differ", "DELETE", path+"/ss-A?snapshot=ss-B", ""),
		bad("delete: the query names more", "DELETE", path+"/ss-A?snapshot=ss-A,ss-B", ""),
		bad("delete: dry_run is never guessed", "DELETE", path+"/ss-A?dry_run=yes", ""),
		bad("delete: a colon alone", "DELETE", path+"/:", ""),
	}
}

func applyRows() []row {
	const path = "/volume_snapshots/apply"
	apply := func(says, body string, ids ...string) row {
		return row{says: says, method: "POST", target: path, body: body, status: 200, has: `"id_prefix":""`,
			call: &made{"ApplySnapshots", service.ApplySnapshots{SnapshotSet: service.SnapshotSet{Origin: here, IDs: ids}}}}
	}
	return []row{
		apply("apply: a list", `{"snapshots":["ss-A","ss-B"]}`, "ss-A", "ss-B"),
		apply("apply: one string", `{"snapshots":"ss-A"}`, "ss-A"),
		apply("apply: duplicates are dropped", `{"snapshots":["ss-A","ss-A"]}`, "ss-A"),
		apply("apply: leading colon stripped", `{"snapshots":[":ss-A"]}`, "ss-A"),
		bad("apply: nothing", "POST", path, `{}`),
		bad("apply: null", "POST", path, `{"snapshots":null}`),
		bad("apply: a placeholder", "POST", path, `{"snapshots":[":snapshot_id"]}`),
	}
}

func cloneRows() []row {
	var rows []row
	for _, c := range []struct {
		path, key string
		call      made
	}{
		{"/volume_snapshots/create_volume", "volume_name", made{"CreateVolumeFromSnapshot", service.CloneSnapshot{Origin: here, Snapshot: "ss-A", VolumeName: "n"}}},
		{"/volume_snapshots/capture_instance", "image_name", made{"CaptureInstance", service.CaptureInstance{Origin: here, Snapshot: "ss-A", ImageName: "n"}}},
		{"/snapshots/create_volume", "volume_name", made{"CreateVolumeFromSnapshot", service.CloneSnapshot{Origin: here, Snapshot: "ss-A", VolumeName: "n"}}},
	} {
		name := `"` + c.key + `":"n"`
		for says, r := range map[string][2]string{
			"id in the path":                      {"/ss-A", "{" + name + "}"},
			"id in the body":                      {"", `{"snapshot":"ss-A",` + name + "}"},
			"id in the body, slash at the end":    {"/", `{"snapshot":"ss-A",` + name + "}"},
			"placeholder in the path":             {"/:snapshot_id", `{"snapshot":"ss-A",` + name + "}"},
			"same id twice":                       {"/ss-A", `{"snapshot":"ss-A",` + name + "}"},
			"placeholder in the body":             {"/ss-A", `{"snapshot":":snapshot_id",` + name + "}"},
			"leading colon in the path":           {"/:ss-A", "{" + name + "}"},
			"empty id in the body counts as none": {"/ss-A", `{"snapshot":"",` + name + "}"},
		} {
			rows = append(rows, row{says: c.path + ": " + says, method: "POST", target: c.path + r[0], body: r[1], status: 200, call: &c.call, has: jobID})
		}
		for says, r := range map[string][2]string{
			"neither":                {"", "{" + name + "}"},
			"only a placeholder":     {"/:snapshot_id", "{" + name + "}"},
			"both and different":     {"/ss-A", `{"snapshot":"ss-B",` + name + "}"},
			"two ids in the path":    {"/ss-A,ss-B", "{" + name + "}"},
			"id in the body a list":  {"", `{"snapshot":["ss-A"],` + name + "}"},
			"broken JSON":            {"/ss-A", "{" + name},
			"name of the wrong type": {"/ss-A", `{"` + c.key + `":["n"]}`},
		} {
			rows = append(rows, bad(c.path+": "+says, "POST", c.path+r[0], r[1]))
		}
	}
	return rows
}

func renameRows() []row {
	const path = "/volume_snapshots"
	put := func(says, target, body string, name, description *string) row {
		return row{says: says, method: "PUT", target: path + target, body: body, status: 204,
			call: &made{"RenameSnapshot", service.Rename{Origin: here, IDs: []string{"ss-A"}, Name: name, Description: description}}}
	}
	return []row{
		put("rename: both", "/ss-A", `{"snapshot_name":"n","description":"d"}`, ptr("n"), ptr("d")),
		put("rename: absent fields stay", "/ss-A", `{"snapshot_name":"n"}`, ptr("n"), nil),
		put("rename: empty is not absent", "/ss-A", `{"description":""}`, nil, ptr("")),
		put("rename: no body", "/ss-A", ``, nil, nil),
		put("rename: old PUT with snapshot in the body", "", `{"snapshot":"ss-A","snapshot_name":"n"}`, ptr("n"), nil),
		put("rename: placeholder in the path", "/:snapshot_id", `{"snapshot":"ss-A","snapshot_name":"n"}`, ptr("n"), nil),
		bad("rename: nobody", "PUT", path, `{"snapshot_name":"n"}`),
		bad("rename: two", "PUT", path+"/ss-A,ss-B", `{"snapshot_name":"n"}`),
		bad("rename: both and different", "PUT", path+"/ss-A", `{"snapshot":"ss-B","snapshot_name":"n"}`),
	}
}

func serveRows() []row {
	const path = "/volume_snapshots/"
	return []row{
		{says: "serve", method: "POST", target: path + "serve/ss-A", status: 200, call: &made{"ServeSnapshot", "ac1/ss-A"}},
		{says: "unserve", method: "DELETE", target: path + "serve/ss-A", status: 204, call: &made{"UnserveSnapshot", "ac1/ss-A false"}},
		{says: "unserve by force", method: "DELETE", target: path + "serve/ss-A?force=1", status: 204, call: &made{"UnserveSnapshot", "ac1/ss-A true"}},
		bad("serve: two", "POST", path+"serve/ss-A,ss-B", ""),
		bad("unserve: two", "DELETE", path+"serve/ss-A,ss-B", ""),
		bad("unserve: odd force", "DELETE", path+"serve/ss-A?force=perhaps", ""),
	}
}

func volumes(f service.VolumeFilter) *made {
	f.Zone = "ac1"
	if f.IDs == nil {
		f.IDs = []string{}
	}
	if f.Limit == 0 {
		f.Limit = 10
	}
	return &made{"Volumes", f}
}

func volumeRows() []row {
	create := func(says, body string, want service.CreateVolumes) row {
		want.Origin = here
		return row{says: says, method: "POST", target: "/volumes", body: body, status: 200, has: jobID, call: &made{"CreateVolumes", want}}
	}
	const gb = int64(1) << 30
	return []row{
		{says: "volumes: limit 10 by default", method: "GET", target: "/volumes", status: 200, call: volumes(service.VolumeFilter{}), has: `"total_count":3`},
		{says: "volumes: at most 100", method: "GET", target: "/volumes?limit=500&offset=2", status: 200, call: volumes(service.VolumeFilter{Limit: 100, Offset: 2})},
		{says: "volumes: filters", method: "GET", target: "/volumes?volumes[]=vol-A&volume_type=2&status=in-use,available&search_word=x", status: 200,
			call: volumes(service.VolumeFilter{IDs: []string{"vol-A"}, Type: ptr(2), Statuses: []service.VolumeStatus{service.VolumeInUse, service.VolumeAvailable}, Search: "x"})},
		bad("volumes: bad status", "GET", "/volumes?status=suspended", ""),
		bad("volumes: bad type", "GET", "/volumes?volume_type=ssd", ""),
		bad("volumes: bad paging", "GET", "/volumes?offset=-3", ""),
		create("volume: size in GB", `{"volume_name":"v","size":10}`, service.CreateVolumes{Name: "v", SizeBytes: 10 * gb, Count: 1}),
		create("volume: size as a string", `{"volume_name":"v","size":"10","volume_type":3,"count":2}`, service.CreateVolumes{Name: "v", SizeBytes: 10 * gb, Type: 3, Count: 2}),
		create("volume: size_bytes is exact", `{"volume_name":"v","size_bytes":4097}`, service.CreateVolumes{Name: "v", SizeBytes: 4097, Count: 1}),
		create("volume: both that agree", `{"volume_name":"v","size":1,"size_bytes":4097}`, service.CreateVolumes{Name: "v", SizeBytes: 4097, Count: 1}),
		bad("volume: no size", "POST", "/volumes", `{"volume_name":"v"}`),
		bad("volume: size 0", "POST", "/volumes", `{"volume_name":"v","size":0}`),
		bad("volume: negative size", "POST", "/volumes", `{"volume_name":"v","size":-1}`),
		bad("volume: size_bytes 0", "POST", "/volumes", `{"volume_name":"v","size_bytes":0}`),
		bad("volume: fractional size", "POST", "/volumes", `{"volume_name":"v","size":1.5}`),
		bad("volume: size that overflows", "POST", "/volumes", `{"volume_name":"v","size":9007199254740993}`),
		bad("volume: sizes that contradict", "POST", "/volumes", `{"volume_name":"v","size":2,"size_bytes":4097}`),
		bad("volume: count 0", "POST", "/volumes", `{"volume_name":"v","size":1,"count":0}`),
		bad("volume: count that overflows", "POST", "/volumes", `{"volume_name":"v","size":1,"count":4294967297}`),
		{says: "resize: GB", method: "POST", target: "/volumes/resize", body: `{"volumes":["vol-A"],"size":2}`, status: 200,
			call: &made{"ResizeVolumes", service.ResizeVolumes{Origin: here, IDs: []string{"vol-A"}, SizeBytes: 2 * gb}}},
		{says: "resize: bytes, one string", method: "POST", target: "/volumes/resize", body: `{"volumes":"vol-A","size_bytes":4097}`, status: 200,
			call: &made{"ResizeVolumes", service.ResizeVolumes{Origin: here, IDs: []string{"vol-A"}, SizeBytes: 4097}}},
		bad("resize: nothing", "POST", "/volumes/resize", `{"size":2}`),
		{says: "fill", method: "POST", target: "/volumes/fill", body: `{"volumes":["vol-A","vol-B"]}`, status: 204,
			call: &made{"FillVolumes", service.VolumeSet{Origin: here, IDs: []string{"vol-A", "vol-B"}}}},
		bad("fill: nothing", "POST", "/volumes/fill", `{}`),
		{says: "clone that is read on demand", method: "POST", target: "/volume_snapshots/create_volume/ss-A", body: `{"volume_name":"n","on_demand":true}`, status: 200,
			call: &made{"CreateVolumeFromSnapshot", service.CloneSnapshot{Origin: here, Snapshot: "ss-A", VolumeName: "n", OnDemand: true}}},
		bad("resize: no size", "POST", "/volumes/resize", `{"volumes":["vol-A"]}`),
		{says: "volume delete: ids in the path", method: "DELETE", target: "/volumes/vol-A,vol-B", status: 200,
			call: &made{"DeleteVolumes", service.VolumeSet{Origin: here, IDs: []string{"vol-A", "vol-B"}}}},
		{says: "volume delete: placeholder and query", method: "DELETE", target: "/volumes/:volume_ids?volumes=vol-A", status: 200,
			call: &made{"DeleteVolumes", service.VolumeSet{Origin: here, IDs: []string{"vol-A"}}}},
		bad("volume delete: placeholder alone", "DELETE", "/volumes/:volume_id", ""),
		bad("volume delete: path and query differ", "DELETE", "/volumes/vol-A?volume=vol-B", ""),
		{says: "volume rename", method: "PUT", target: "/volumes/vol-A,vol-B", body: `{"volume_name":"n"}`, status: 204,
			call: &made{"RenameVolumes", service.Rename{Origin: here, IDs: []string{"vol-A", "vol-B"}, Name: ptr("n")}}},
		bad("volume rename: placeholder alone", "PUT", "/volumes/:id", `{"volume_name":"n"}`),
		{says: "register over TCP is denied", method: "POST", target: "/volumes/register", body: `{"path":"/etc/shadow","volume_name":"v"}`, status: 403, code: "1400"},
		{says: "register over TCP is denied, whatever the body", method: "POST", target: "/volumes/register", body: `{{`, status: 403, code: "1400"},
	}
}

func jobRows() []row {
	return []row{
		{says: "job", method: "GET", target: "/job/" + jobID, status: 200, call: &made{"Job", jobID}, has: `"job_id":"` + jobID + `"`},
		{says: "job: whatever the zone", method: "GET", target: "//v2/zone/nowhere/job/" + jobID, status: 200, call: &made{"Job", jobID}},
		{says: "job: leading colon", method: "GET", target: "/job/:" + jobID, status: 200, call: &made{"Job", jobID}},
		bad("job: placeholder", "GET", "/job/:job_id", ""),
		{says: "cancel", method: "POST", target: "/job/" + jobID + "/cancel", status: 200, call: &made{"CancelJob", jobID}, has: jobID},
		bad("cancel: placeholder", "POST", "/job/:job_id/cancel", ""),
		{says: "unfinished_jobs: a bare array, never null", method: "GET", target: "/unfinished_jobs", status: 200, call: &made{"UnfinishedJobs", "ac1"}, has: "[]"},
		{says: "jobs: limit 20 by default", method: "GET", target: "/jobs", status: 200, call: &made{"Jobs", service.JobFilter{Zone: "ac1", Limit: 20}}, has: `{"jobs":[],"total_count":0}`},
		{says: "jobs: filters", method: "GET", target: "/jobs?status=pending,working&resource_id=ss-A&offset=1&limit=101", status: 200,
			call: &made{"Jobs", service.JobFilter{Zone: "ac1", Statuses: []job.Status{job.Pending, job.Working}, Resource: "ss-A", Offset: 1, Limit: 100}}},
		bad("jobs: bad status", "GET", "/jobs?status=done", ""),
		{says: "scrub", method: "POST", target: "/repository/scrub", status: 200, call: &made{"Scrub", service.ScrubOptions{}}, has: jobID},
		{says: "scrub: repair", method: "POST", target: "/repository/scrub?repair=1", status: 200, call: &made{"Scrub", service.ScrubOptions{Repair: true}}},
		{says: "scrub: budget", method: "POST", target: "/repository/scrub?budget=1000", status: 200, call: &made{"Scrub", service.ScrubOptions{Budget: 1000}}},
		bad("scrub: repair is never guessed", "POST", "/repository/scrub?repair=all", ""),
		bad("scrub: budget is no number", "POST", "/repository/scrub?budget=-1", ""),
		{says: "prune", method: "POST", target: "/repository/prune", status: 200, call: &made{"Prune", service.PruneOptions{}}, has: jobID},
		{says: "prune: options", method: "POST", target: "/repository/prune?empty_bin=1&max_copy=4096", status: 200, call: &made{"Prune", service.PruneOptions{EmptyBin: true, MaxCopy: 4096}}},
		{says: "prune: dry run", method: "POST", target: "/repository/prune?dry_run=true", status: 200, call: &made{"Prune", service.PruneOptions{DryRun: true}}},
		bad("prune: dry_run is never guessed", "POST", "/repository/prune?dry_run=maybe", ""),
		bad("prune: empty_bin is never guessed", "POST", "/repository/prune?empty_bin=2", ""),
		bad("prune: max_copy is no number", "POST", "/repository/prune?max_copy=much", ""),
		bad("prune: max_copy of nothing", "POST", "/repository/prune?max_copy=0", ""),
		{says: "lease", method: "POST", target: "/lease", body: `{"resources":["ss-A","ss-B","ss-A"]}`, status: 200,
			call: &made{"Undelete", service.SnapshotSet{Origin: service.Origin{Zone: "ac1"}, IDs: []string{"ss-A", "ss-B"}}}, has: jobID},
		{says: "lease: one string is a list of one", method: "POST", target: "/lease", body: `{"resources":"ss-A"}`, status: 200,
			call: &made{"Undelete", service.SnapshotSet{Origin: service.Origin{Zone: "ac1"}, IDs: []string{"ss-A"}}}},
		bad("lease: nothing named", "POST", "/lease", `{"resources":[]}`),
		bad("lease: broken JSON", "POST", "/lease", `{"resources":`),
		{says: "healthz", method: "GET", target: "//healthz", status: 200, has: `{"status":"ok","version":"1.2.3"}`},
	}
}

func routeRows() []row {
	missing := func(says, method, target string) row {
		return row{says: says, method: method, target: target, status: 404, code: "2100"}
	}
	wrong := func(says, method, target string) row {
		return row{says: says, method: method, target: target, status: 405, code: "1100"}
	}
	return []row{
		missing("404 of the router", "GET", "//nothing"),
		missing("404 of the root", "GET", "//"),
		missing("404 below the zone", "GET", "/routers"),
		missing("404 below a call", "GET", "/volume_snapshots/apply/more/still"),
		missing("unknown zone", "GET", "//v2/zone/nowhere/volume_snapshots"),
		missing("unknown zone, escaped", "GET", "//v2/zone/%61c9/jobs"),
		missing("dots lead nowhere", "GET", "/../ac2/jobs"),
		{says: "an escaped zone is the zone", method: "GET", target: "//v2/zone/%61c1/unfinished_jobs", status: 200, call: &made{"UnfinishedJobs", "ac1"}},
		{says: "the other zone", method: "GET", target: "//v2/zone/ac2/unfinished_jobs", status: 200, call: &made{"UnfinishedJobs", "ac2"}},
		wrong("405", "PATCH", "/volume_snapshots"),
		wrong("405 of a path with an id", "GET", "/volume_snapshots/ss-A"),
		wrong("405 of a stream", "DELETE", "/notifier/stream"),
		bad("bad escape in the path", "GET", "/volume_snapshots/%00", ""),
		bad("path that is not UTF-8", "DELETE", "/volume_snapshots/%ff", ""),
	}
}
