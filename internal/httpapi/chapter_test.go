package httpapi_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/service"
)

// TestChapter sends the published chapter's own curl lines, verbatim but for
// the host, as curl sends them: --data means form-urlencoded, without line
// breaks.
func TestChapter(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	doc := document(t, s)
	for _, c := range []struct {
		line   string
		status int
		call   *made
	}{
		{`$ curl -XGET "http://api.51idc.com/v2/zone/ac1/volume_snapshots"`, 200, snapshots(service.SnapshotFilter{})},
		{`$ curl -XPOST "http://api.51idc.com/v2/zone/ac1/volume_snapshots" --data '
{
    "resources":["vol-SACNVJNS","vol-ascdvf"],
    "snapshot_name":"demos",
    "is_full":"IS_FULL"
}'`, 200, &made{"CreateSnapshots", service.CreateSnapshots{Origin: here, Resources: []string{"vol-SACNVJNS", "vol-ascdvf"}, Name: "demos", Full: true}}},
		{`$ curl -XDELETE "http://api.51idc.com/v2/zone/ac1/volume_snapshots/:snapshot_id"`, 400, nil},
		{`$ curl -XPOST "http://api.51idc.com/v2/zone/ac1/volume_snapshots/apply" --data '
{
    "snapshots":["s-sdDCVGBE","s-sdDCVGBE"]
}'`, 200, &made{"ApplySnapshots", service.ApplySnapshots{SnapshotSet: service.SnapshotSet{Origin: here, IDs: []string{"s-sdDCVGBE"}}}}},
		{`$ curl -XPOST "http://api.51idc.com/v2/zone/ac1/volume_snapshots/capture_instance/:snapshot_id" --data '
{
    "image_name":"demo"
}'`, 400, nil},
		{`$ curl -XPOST "http://api.51idc.com/v2/zone/ac1/volume_snapshots/create_volume/:snapshot_id" --data '
{
   
    "volume_name":"demo"
}'`, 400, nil},
		{`$ curl -XPUT "http://api.51idc.com/v2/zone/ac1/volume_snapshots/ss-qweqwrf" --data '
{
    "snapshot_name":"name",
    "description":"description"
}'`, 204, &made{"RenameSnapshot", service.Rename{Origin: here, IDs: []string{"ss-qweqwrf"}, Name: ptr("name"), Description: ptr("description")}}},
	} {
		method, target, data := curl(t, c.line)
		headers := fmt.Sprintf("Host: %s\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n", s.tcp)
		if data != "" {
			headers += "Content-Type: application/x-www-form-urlencoded\r\n"
		}
		a := send(t, "tcp", s.tcp, method, rawRequest(method, target, headers, data))
		if a.StatusCode != c.status {
			t.Errorf("%s\n%s: %s", c.line, a.Status, a.body)
		}
		var want []made
		if c.call != nil {
			want = []made{*c.call}
		}
		if diff := cmp.Diff(want, f.take()); diff != "" {
			t.Errorf("%s\n%s", c.line, diff)
		}
		if c.status == 400 {
			checkError(t, a, "1100") // the placeholder names no snapshot
		}
		checkDocumented(t, doc, method, target, a)
	}
}

// curl takes a line of the chapter apart.
func curl(t *testing.T, line string) (method, target, data string) {
	t.Helper()
	rest, ok := strings.CutPrefix(line, "$ curl -X")
	if !ok {
		t.Fatalf("not a curl line: %s", line)
	}
	method, rest, _ = strings.Cut(rest, ` "http://api.51idc.com`)
	target, rest, _ = strings.Cut(rest, `"`)
	if data, ok = strings.CutPrefix(rest, " --data '"); ok {
		data = strings.TrimSuffix(data, "'")
	}
	return method, target, data
}
