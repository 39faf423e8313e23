package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"cairn/test/e2e/harness"
)

// chapterHost is the host in the published chapter's examples.
const chapterHost = "http://api.51idc.com"

// chapterLines are the curl lines of the published chapter, as they stand.
var chapterLines = map[string]string{
	"list":   `curl -XGET "http://api.51idc.com/v2/zone/ac1/volume_snapshots"`,
	"delete": `curl -XDELETE "http://api.51idc.com/v2/zone/ac1/volume_snapshots/:snapshot_id"`,
	"create": `curl -XPOST "http://api.51idc.com/v2/zone/ac1/volume_snapshots" --data '
{
    "resources":["vol-SACNVJNS","vol-ascdvf"],
    "snapshot_name":"demos",
    "is_full":"IS_FULL"
}'`,
	"apply": `curl -XPOST "http://api.51idc.com/v2/zone/ac1/volume_snapshots/apply" --data '
{
    "snapshots":["s-sdDCVGBE","s-sdDCVGBE"]
}'`,
	"capture": `curl -XPOST "http://api.51idc.com/v2/zone/ac1/volume_snapshots/capture_instance/:snapshot_id" --data '
{
    "image_name":"demo"
}'`,
	"clone": `curl -XPOST "http://api.51idc.com/v2/zone/ac1/volume_snapshots/create_volume/:snapshot_id" --data '
{
   
    "volume_name":"demo"
}'`,
	"rename": `curl -XPUT "http://api.51idc.com/v2/zone/ac1/volume_snapshots/ss-qweqwrf" --data '
{
    "snapshot_name":"name",
    "description":"description"
}'`,
}

// TestChapterCurlLines runs the chapter's own lines through a shell: first
// verbatim but for the host, then with ids that exist.
func TestChapterCurlLines(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("skipped: no curl here")
	}
	f := newFixture(t)

	// The chapter's ids are made up: nothing is done, and the answer says what is wrong.
	for name, want := range map[string]string{
		"list": "200 ", "delete": "400 1100", "create": "404 2100", "apply": "404 2100",
		"capture": "400 1100", "clone": "400 1100", "rename": "404 2100",
	} {
		t.Run("verbatim "+name, func(t *testing.T) {
			body, status := curl(t, f, chapterLines[name])
			code, _ := body["code"].(string)
			if got := status + " " + code; got != want {
				t.Errorf("answered %s: %v; want %s", got, body, want)
			}
		})
	}

	a, b := f.vol(f.ids["{a}"]), f.vol(f.ids["{b}"])
	job := func(t *testing.T, action, line string) harness.Job {
		t.Helper()
		body, status := curl(t, f, line)
		if status != "200" || body["action"] != action || body["status"] != "pending" {
			t.Fatalf("answered %s %v, want a pending %s", status, body, action)
		}
		return f.api().OK(t, harness.Job{ID: body["job_id"].(string)})
	}
	t.Run("list", func(t *testing.T) {
		body, status := curl(t, f, chapterLines["list"])
		rows, _ := body["snapshots"].([]any)
		if status != "200" || float64(len(rows)) != body["total_count"] {
			t.Errorf("answered %s with %d rows, total_count %v", status, len(rows), body["total_count"])
		}
	})
	t.Run("create", func(t *testing.T) {
		line := strings.NewReplacer("vol-SACNVJNS", a.id, "vol-ascdvf", b.id).Replace(chapterLines["create"])
		j := job(t, "CreateSnapshots", line)
		vols := []*modelVolume{a, b}
		f.record(t, "demos", true, vols, orderedIDs(t, f.world, vols, j), contents(vols))
	})
	t.Run("apply", func(t *testing.T) {
		// The chapter names one id twice: duplicates are dropped.
		job(t, "ApplySnapshots", strings.ReplaceAll(chapterLines["apply"], "s-sdDCVGBE", f.ids["{inc}"]))
		f.applied(f.point(f.ids["{inc}"]))
		a.content.WantFile(t, a.path)
	})
	t.Run("capture", func(t *testing.T) {
		body, status := curl(t, f, strings.ReplaceAll(chapterLines["capture"], ":snapshot_id", f.ids["{full}"]))
		if status != "400" || body["code"] != "1100" {
			t.Errorf("a volume's point: %s %v, want 400", status, body)
		}
	})
	t.Run("clone", func(t *testing.T) {
		j := job(t, "CreateVolumeFromSnapshot", strings.ReplaceAll(chapterLines["clone"], ":snapshot_id", f.ids["{full}"]))
		f.api().WantContent(t, "volumes", j.ResourceIDs[0], f.point(f.ids["{full}"]).content)
	})
	t.Run("rename", func(t *testing.T) {
		body, status := curl(t, f, strings.ReplaceAll(chapterLines["rename"], "ss-qweqwrf", f.ids["{full}"]))
		if status != "204" || body != nil {
			t.Errorf("answered %s %v, want 204 and nothing", status, body)
		}
		p := f.point(f.ids["{full}"])
		p.name, p.desc = "name", "description"
	})
	t.Run("delete", func(t *testing.T) {
		job(t, "DeleteSnapshots", strings.ReplaceAll(chapterLines["delete"], ":snapshot_id", f.ids["{head}"]))
		f.removed(f.point(f.ids["{head}"]))
	})
	f.checkRows(t)
	f.checkContent(t)
}

// curl runs a line in a shell with the host replaced, and appends options
// that print the status.
func curl(t *testing.T, f *fixture, line string) (body map[string]any, status string) {
	t.Helper()
	line = strings.ReplaceAll(line, chapterHost, f.srv.BaseURL()) + ` -s -m 60 -w '\n%{http_code}'`
	cmd := exec.Command("sh", "-c", line)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	text, status, ok := cutLast(string(out), "\n")
	if !ok {
		t.Fatalf("%s: printed %q", line, out)
	}
	if strings.TrimSpace(text) == "" {
		return nil, status
	}
	if err := json.Unmarshal([]byte(text), &body); err != nil {
		t.Fatalf("%s: answer is not JSON: %v\n%s", line, err, text)
	}
	return body, status
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
