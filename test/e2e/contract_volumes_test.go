package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/test/e2e/harness"
)

func volumeRows() []row {
	var rows []row
	add := func(says, method, path, body string, want int, code, msg string) {
		rows = append(rows, refused(row{says: says, method: method, path: path, body: body, want: want, code: code, msg: msg}))
	}
	add("POST: size 0", "POST", "volumes", `{"volume_name":"x","size":0}`, 400, "1100", "size")
	add("POST: size negative", "POST", "volumes", `{"volume_name":"x","size":-1}`, 400, "1100", "size")
	add("POST: no size", "POST", "volumes", `{"volume_name":"x"}`, 400, "1100", "size")
	add("POST: size_bytes 0", "POST", "volumes", `{"volume_name":"x","size_bytes":0}`, 400, "1100", "size")
	add("POST: size_bytes negative", "POST", "volumes", `{"volume_name":"x","size_bytes":-512}`, 400, "1100", "size")
	add("POST: size is no number", "POST", "volumes", `{"volume_name":"x","size":"big"}`, 400, "1100", "")
	add("POST: empty name", "POST", "volumes", `{"volume_name":"","size":1}`, 400, "1100", "volume_name")
	add("POST: no name", "POST", "volumes", `{"size":1}`, 400, "1100", "volume_name")
	add("POST: name over 255 characters", "POST", "volumes", `{"volume_name":"`+strings.Repeat("x", 256)+`","size":1}`, 400, "1100", "255")
	add("POST: control character", "POST", "volumes", `{"volume_name":"a\tb","size":1}`, 400, "1100", "")
	add("POST: count above 100", "POST", "volumes", `{"volume_name":"x","size":1,"count":101}`, 400, "1100", "count")
	add("POST: negative count", "POST", "volumes", `{"volume_name":"x","size":1,"count":-1}`, 400, "1100", "count")
	add("GET: bad status", "GET", "volumes?status=broken", "", 400, "1100", "")
	add("GET: bad type", "GET", "volumes?volume_type=ssd", "", 400, "1100", "")
	add("GET: negative offset", "GET", "volumes?offset=-1", "", 400, "1100", "")
	add("GET: limit that is no number", "GET", "volumes?limit=all", "", 400, "1100", "")
	add("DELETE: unknown id", "DELETE", "volumes/vol-NOTTHERE", "", 404, "2100", "vol-NOTTHERE")
	add("DELETE: a known and an unknown id", "DELETE", "volumes/{a},vol-NOTTHERE", "", 404, "2100", "vol-NOTTHERE")
	add("DELETE: wrong kind", "DELETE", "volumes/{full}", "", 400, "1100", "{full}")
	add("DELETE: no id", "DELETE", "volumes/:volume_id", "", 400, "1100", "")
	add("PUT: unknown id", "PUT", "volumes/vol-NOTTHERE", `{"volume_name":"x"}`, 404, "2100", "vol-NOTTHERE")
	add("PUT: empty name", "PUT", "volumes/{a}", `{"volume_name":""}`, 400, "1100", "volume_name")
	add("resize: unknown id", "POST", "volumes/resize", `{"volumes":["vol-NOTTHERE"],"size":2}`, 404, "2100", "vol-NOTTHERE")
	add("resize: no size", "POST", "volumes/resize", `{"volumes":["{b}"]}`, 400, "1100", "size")
	add("resize: no volumes", "POST", "volumes/resize", `{"size":2}`, 400, "1100", "volumes")
	add("resize: a registered volume is its owner's", "POST", "volumes/resize", `{"volumes":["{a}"],"size":2}`, 409, "1400", "{a}")
	add("import: size_bytes 0", "POST", "volumes/import?volume_name=x&size_bytes=0", "abc", 400, "1100", "size_bytes")
	add("import: no name", "POST", "volumes/import?size_bytes=3", "abc", 400, "1100", "volume_name")
	add("export: unknown id", "GET", "volumes/vol-NOTTHERE/export", "", 404, "2100", "vol-NOTTHERE")
	add("export: unknown format", "GET", "volumes/{b}/export?format=vdi", "", 400, "1100", "")
	return append(rows, []row{
		{says: "GET: the fields", do: volumeFields},
		{says: "GET: filters, search and paging; 10 by default", do: volumeList},
		{says: "POST: size is GB of 2^30; the job answers the new id", do: func(t *testing.T, f *fixture) {
			j := f.api().Send(t, "POST", "volumes", map[string]any{"volume_name": "gig", "size": 2, "volume_type": 1}).Begin(t)
			if j.Action != "CreateVolume" || j.Status != "pending" || len(j.ResourceIDs) != 1 || !volForm.MatchString(j.ResourceIDs[0]) {
				t.Fatalf("answered %+v", j)
			}
			f.api().OK(t, j)
			if v := f.api().MustVolume(t, j.ResourceIDs[0]); v.SizeBytes != 2<<30 || v.Size != 2 || v.Type != 1 || v.Status != "available" {
				t.Errorf("volume %+v", v)
			}
			f.api().DeleteVolumes(t, j.ResourceIDs[0])
		}},
		{says: "POST: size_bytes is exact; a new volume reads as zeros", do: func(t *testing.T, f *fixture) {
			id := f.api().CreateVolume(t, "exact", 123_457)
			v := f.api().MustVolume(t, id)
			if v.SizeBytes != 123_457 || v.Size != 1 {
				t.Errorf("volume %+v", v)
			}
			f.api().WantContent(t, "volumes", id, harness.NewImage(123_457))
		}},
		{says: "POST: count makes several", do: func(t *testing.T, f *fixture) {
			j := f.api().OK(t, f.api().Send(t, "POST", "volumes", map[string]any{"volume_name": "many", "size_bytes": 4096, "count": 3}).Begin(t))
			if rows := f.api().Volumes(t, url.Values{"volumes": {strings.Join(j.ResourceIDs, ",")}}); len(j.ResourceIDs) != 3 || len(rows) != 3 {
				t.Errorf("ids %v, %d rows", j.ResourceIDs, len(rows))
			}
		}},
		{says: "resize: grows, the new tail is zeros; never shrinks", do: resizeGrows},
		{says: "PUT: 204, absent fields stay", do: func(t *testing.T, f *fixture) {
			v := f.fresh(t)
			r := f.api().Send(t, "PUT", "volumes/"+v.id, map[string]any{"description": "d"})
			if got := f.api().MustVolume(t, v.id); r.Status != 204 || got.Name != v.name || got.Description != "d" {
				t.Errorf("%d %s %+v", r.Status, r.Body, got)
			}
		}},
		{says: "DELETE: its snapshots survive; the row is gone from the list", do: func(t *testing.T, f *fixture) {
			p := f.freshPoint(t)
			f.forget(t, f.vol(p.volume))
			f.checkRows(t)
			f.api().WantContent(t, "volume_snapshots", p.id, p.content)
			for _, v := range f.api().Volumes(t, url.Values{}) {
				if v.ID == p.volume {
					t.Errorf("a deleted volume is listed: %+v", v)
				}
			}
		}},
		{says: "import and export: every byte, odd sizes", do: func(t *testing.T, f *fixture) {
			for _, size := range []int64{1, 511, 4097, 64<<10 + 1, 3*64<<10 - 1} {
				img := harness.NewImage(size)
				img.Apply(harness.Edit{Kind: harness.WriteNoise, Off: size / 2, Len: size - size/2, Seed: uint64(size)})
				f.api().WantContent(t, "volumes", f.api().Import(t, "odd", img), img)
			}
		}},
		{says: "import: a stream of unknown length needs size_bytes", do: func(t *testing.T, f *fixture) {
			nothingMade(t, f, func() {
				body := struct{ io.Reader }{strings.NewReader("abc")}
				f.api().Upload(t, "volumes/import?volume_name=x", body, -1).WantError(t, 400, "1100")
			})
		}},
		{says: "import: a stream shorter or longer than it says leaves no volume", do: importWrongLength},
	}...)
}

func volumeFields(t *testing.T, f *fixture) {
	r := f.api().Get(t, "volumes?volumes="+f.ids["{b}"])
	vols, _ := r.Object(t)["volumes"].([]any)
	if len(vols) != 1 {
		t.Fatalf("answered %s", r.Body)
	}
	v := vols[0].(map[string]any)
	for _, k := range []string{"volume_id", "volume_name", "description", "status", "transition_status", "create_time", "status_time"} {
		if _, ok := v[k].(string); !ok {
			t.Errorf("%s is %v, want a string", k, v[k])
		}
	}
	inst, _ := v["instance"].(map[string]any)
	for _, k := range []string{"device", "instance_id", "instance_name"} {
		if inst[k] != "" {
			t.Errorf("instance.%s is %v, want \"\"", k, inst[k])
		}
	}
	if v["size"] != 1.0 || v["size_bytes"] != float64(mib) || v["volume_type"] != 0.0 || v["status"] != "available" {
		t.Errorf("volume %v", v)
	}
	for _, c := range []struct {
		api  *harness.Client
		want bool
	}{{f.api(), false}, {f.srv.Local(), true}} {
		row := c.api.MustVolume(t, f.ids["{a}"])
		if (row.Path != "") != c.want {
			t.Errorf("path %q; want one only on the unix socket", row.Path)
		}
	}
}

func volumeList(t *testing.T, f *fixture) {
	var made []string
	for i := range 12 {
		made = append(made, f.api().CreateVolume(t, fmt.Sprintf("Listed-%02d", i), 4096))
	}
	for query, want := range map[string]int{
		"search_word=listed-": 10, "search_word=listed-&limit=100": 12, "search_word=LISTED-03": 1,
		"search_word=listed-&offset=10": 2, "search_word=listed-&status=available&limit=3": 3,
		"search_word=listed-&status=ceased": 0, "search_word=listed-&volume_type=9": 0,
		"volumes=" + made[0] + "," + made[1]: 2, "volumes=vol-NOTTHERE": 0,
	} {
		var page struct {
			Volumes []harness.Volume `json:"volumes"`
			Total   int              `json:"total_count"`
		}
		f.api().Get(t, "volumes?"+query).Into(t, &page)
		if len(page.Volumes) != want || page.Volumes == nil {
			t.Errorf("volumes?%s: %d rows, want %d", query, len(page.Volumes), want)
		}
	}
	f.api().DeleteVolumes(t, made...)
}

func resizeGrows(t *testing.T, f *fixture) {
	v := f.fresh(t)
	f.grow(t, v, 200_000)
	f.api().WantContent(t, "volumes", v.id, v.content)
	for _, size := range []int64{100_000, 1} {
		r := f.api().Send(t, "POST", "volumes/resize", map[string]any{"volumes": []string{v.id}, "size_bytes": size})
		if r.Status != http.StatusBadRequest && r.Status != http.StatusConflict {
			t.Errorf("shrinking to %d answered %d %s", size, r.Status, r.Body)
		}
	}
	f.api().WantContent(t, "volumes", v.id, v.content)
}

func importWrongLength(t *testing.T, f *fixture) {
	before := len(f.api().Volumes(t, url.Values{}))
	for _, n := range []int{10, 5000} {
		body := strings.Repeat("x", n)
		r := f.api().Upload(t, "volumes/import?volume_name=wrong&size_bytes=4096", strings.NewReader(body), int64(n))
		if r.Status == http.StatusOK {
			if j := f.api().Wait(t, r.Begin(t).ID); j.Status != "failed" {
				t.Errorf("%d bytes for 4096: job %+v", n, j)
			}
		}
	}
	f.api().WaitAll(t)
	if after := len(f.api().Volumes(t, url.Values{})); after != before {
		t.Errorf("%d volumes before, %d after", before, after)
	}
}

func registerRows() []row {
	return []row{
		{says: "register over TCP: 403, whatever the path", do: func(t *testing.T, f *fixture) {
			for _, path := range []string{f.vol(f.ids["{a}"]).path, "/nothing/here", ""} {
				f.api().Send(t, "POST", "volumes/register", map[string]any{"path": path, "volume_name": "x"}).WantError(t, 403, "1400")
			}
		}},
		{says: "register: the volume object", do: func(t *testing.T, f *fixture) {
			v := f.world.register(t, harness.NewImage(70_000))
			row := f.srv.Local().MustVolume(t, v.id)
			if row.SizeBytes != 70_000 || row.Path != v.path || row.Driver != "registered" || row.Status != "available" || row.Name != v.name {
				t.Errorf("volume %+v", row)
			}
		}},
		{says: "the same file again, by any name: 409 exists", do: func(t *testing.T, f *fixture) {
			v := f.world.register(t, harness.NewImage(4096))
			link, hard := v.path+".symlink", v.path+".hardlink"
			if err := os.Symlink(v.path, link); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(v.path, hard); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{v.path, link, hard, filepath.Dir(v.path) + "/./" + filepath.Base(v.path)} {
				f.srv.Local().Send(t, "POST", "volumes/register", map[string]any{"path": path, "volume_name": "again"}).WantError(t, 409, "2110")
			}
			f.forget(t, v) // and free again once it was forgotten
			f.srv.Local().Register(t, "again", hard)
		}},
		{says: "what cannot be a volume is refused", do: unfitPaths},
		{says: "deleting a registered volume only forgets it", do: func(t *testing.T, f *fixture) {
			v := f.world.register(t, harness.NewImage(4096))
			f.forget(t, v) // compares the file
		}},
		{says: "a file replaced by another, then put back", do: func(t *testing.T, f *fixture) {
			v := f.world.register(t, harness.NewImage(70_000))
			moveAway(t, v.path)
			if err := harness.NewImage(70_000).WriteFile(v.path); err != nil {
				t.Fatal(err)
			}
			j := f.api().Wait(t, f.api().Send(t, "POST", "volume_snapshots",
				map[string]any{"resources": []string{v.id}, "snapshot_name": "other"}).Begin(t).ID)
			if j.Status != "failed" || !strings.Contains(j.Info, v.id) {
				t.Errorf("a point of another file than was registered: %+v", j)
			}
			if err := os.Remove(v.path); err != nil {
				t.Fatal(err)
			}
			moveBack(t, v.path)
			f.create(t, false, v)
		}},
	}
}

func unfitPaths(t *testing.T, f *fixture) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.raw")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	qcow := filepath.Join(dir, "image.raw")
	if err := os.WriteFile(qcow, append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 65536)...), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string][]int{
		filepath.Join(dir, "missing"):        {404},
		dir:                                  {400},
		"/dev/null":                          {400},
		"relative.raw":                       {400},
		"":                                   {400},
		empty:                                {400},
		qcow:                                 {400},
		filepath.Join(f.srv.Dir, "repo.key"): {400},
		f.srv.Socket():                       {400},
	} {
		r := f.srv.Local().Send(t, "POST", "volumes/register", map[string]any{"path": what, "volume_name": "unfit"})
		if !slices.Contains(want, r.Status) {
			t.Errorf("register %q answered %d %s, want %v", what, r.Status, r.Body, want)
		}
	}
}

func moveAway(t *testing.T, path string) {
	t.Helper()
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
}

func moveBack(t *testing.T, path string) {
	t.Helper()
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
}
