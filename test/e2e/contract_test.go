package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"cairn/test/e2e/harness"
)

// row is one sentence of the wire contract that a client can observe.
type row struct {
	says string // the sentence, shortened
	// A request and what it must be answered with …
	method, path, body string
	header             http.Header
	want               int
	code               string // on errors
	msg                string // regexp that the error's message matches
	check              func(t *testing.T, f *fixture, r harness.Response)
	// … or a few steps of its own.
	do func(t *testing.T, f *fixture)
}

// fixture is a small world that rows read; rows that change something make
// objects of their own.
type fixture struct {
	*world
	ids map[string]string // placeholder, with braces, → id
}

// newFixture makes two volumes with points of every kind.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{world: &world{srv: serve(t), dir: t.TempDir()}, ids: map[string]string{}}
	r := harness.Rand(harness.Seed(t))
	content := func(size int64) *harness.Image {
		img := harness.NewImage(size)
		for range 5 {
			img.Apply(harness.RandomEdit(r, size))
		}
		return img
	}
	a := f.world.register(t, content(2*mib+512))
	b := f.importVolume(t, content(mib))
	gone := f.importVolume(t, content(100<<10))
	f.ids["{a}"], f.ids["{b}"], f.ids["{gonevol}"] = a.id, b.id, gone.id
	take := func(key string, full bool, v *modelVolume) {
		f.create(t, full, v)
		f.ids[key] = v.head
		if v.path != "" {
			v.edit(t, harness.RandomEdit(r, v.content.Size()))
		}
	}
	take("{full}", true, a)
	take("{inc}", false, a)
	take("{dead}", false, a)
	f.remove(t, f.point(f.ids["{dead}"]))
	take("{head}", false, a)
	take("{bfull}", true, b)
	take("{orphan}", false, gone)
	f.forget(t, gone)
	return f
}

// fill replaces placeholders.
func (f *fixture) fill(s string) string {
	for k, v := range f.ids {
		s = strings.ReplaceAll(s, k, v)
	}
	return s
}

// fresh makes a small managed volume for a row of its own.
func (f *fixture) fresh(t *testing.T) *modelVolume {
	t.Helper()
	img := harness.NewImage(70_000)
	img.Apply(harness.Edit{Kind: harness.WriteText, Off: 100, Len: 60_000, Seed: uint64(f.made)})
	return f.importVolume(t, img)
}

// freshPoint makes a volume and a point of it.
func (f *fixture) freshPoint(t *testing.T) *modelPoint {
	t.Helper()
	v := f.fresh(t)
	f.create(t, false, v)
	return f.point(v.head)
}

// run plays a table.
func (f *fixture) run(t *testing.T, rows []row) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.says, func(t *testing.T) {
			if r.do != nil {
				r.do(t, f)
				return
			}
			f.play(t, r)
		})
	}
}

func (f *fixture) play(t *testing.T, r row) {
	t.Helper()
	got := f.api().Do(t, harness.Request{Method: r.method, Path: f.fill(r.path), Body: f.fill(r.body), Header: r.header})
	if r.want >= 400 {
		msg := got.WantError(t, r.want, r.code)
		if r.msg != "" && !regexp.MustCompile(f.fill(r.msg)).MatchString(msg) {
			t.Errorf("message %q does not match %q", msg, r.msg)
		}
		return
	}
	if got.Status != r.want {
		t.Fatalf("%s %s: answered %d %s, want %d", r.method, f.fill(r.path), got.Status, got.Body, r.want)
	}
	if strings.HasPrefix(got.Header.Get("Content-Type"), "application/json") && len(got.Body) > 0 && got.Body[0] == '{' {
		m := got.Object(t)
		if _, code := m["code"]; code {
			if _, message := m["message"]; message {
				t.Errorf("a 2xx has both code and message: %s", got.Body)
			}
		}
	}
	if r.check != nil {
		r.check(t, f, got)
	}
}

// lists gives a check that a snapshot list shows exactly these points.
func lists(want ...string) func(*testing.T, *fixture, harness.Response) {
	return func(t *testing.T, f *fixture, r harness.Response) {
		t.Helper()
		got, total := page(t, r)
		have, expect := map[string]bool{}, map[string]bool{}
		for _, s := range got {
			have[s.ID] = true
		}
		for _, w := range want {
			expect[f.fill(w)] = true
		}
		if fmt.Sprint(have) != fmt.Sprint(expect) || total != len(want) {
			t.Errorf("lists %v (total_count %d), want %v", have, total, expect)
		}
	}
}

func page(t *testing.T, r harness.Response) ([]harness.Snapshot, int) {
	t.Helper()
	var p struct {
		Snapshots []harness.Snapshot `json:"snapshots"`
		Total     *int               `json:"total_count"`
	}
	r.Into(t, &p)
	if p.Total == nil || p.Snapshots == nil {
		t.Fatalf("a list needs snapshots and total_count: %s", r.Body)
	}
	return p.Snapshots, *p.Total
}

// endsOK is a check that the answer is a job that goes on to succeed.
func endsOK(action string) func(*testing.T, *fixture, harness.Response) {
	return func(t *testing.T, f *fixture, r harness.Response) {
		t.Helper()
		j := r.Begin(t)
		if j.Action != action || j.Status != "pending" {
			t.Errorf("answered job %s in status %s, want %s pending", j.Action, j.Status, action)
		}
		f.api().OK(t, j)
	}
}

// raw decodes the first snapshot of a list as it came.
func rawSnapshot(t *testing.T, f *fixture, id string) map[string]any {
	t.Helper()
	var p struct {
		Snapshots []map[string]any `json:"snapshots"`
	}
	r := f.api().Get(t, "volume_snapshots?snapshots="+f.fill(id))
	if err := json.Unmarshal(r.Body, &p); err != nil || len(p.Snapshots) != 1 {
		t.Fatalf("list of %s: %v %s", id, err, r.Body)
	}
	return p.Snapshots[0]
}

var (
	timeForm = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`)
	snapForm = regexp.MustCompile(`^ss-[A-Z0-9]{8}$`)
	volForm  = regexp.MustCompile(`^vol-[A-Z0-9]{8}$`)
	uuidForm = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

// TestContract holds the running binary against API.md, sentence by sentence.
func TestContract(t *testing.T) {
	f := newFixture(t)
	for _, part := range []struct {
		name string
		rows []row
	}{
		{"1 snapshot object", snapshotObjectRows()},
		{"2 list", listRows()},
		{"2 create", createRows()},
		{"2 delete", deleteRows()},
		{"2 apply", applyRows()},
		{"2 capture, create_volume, rename", otherOperationRows()},
		{"3 jobs", jobRows()},
		{"4 leniency", leniencyRows()},
		{"5 errors", errorRows()},
		{"6 volumes", volumeRows()},
		{"6 volumes of files", registerRows()},
		{"guards and pages", guardRows()},
	} {
		t.Run(part.name, func(t *testing.T) { f.run(t, part.rows) })
	}
	f.checkRows(t)
	f.checkContent(t)
	f.api().ScrubClean(t)
}
