package e2e

import (
	stdflag "flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"cairn/internal/foldertest"
	"cairn/test/e2e/harness"
)

// Bounds of one history, so that a step stays quick.
const (
	maxVolumes = 4
	maxPoints  = 14
)

// volumeSizes are no rounder than real images are.
var volumeSizes = []int64{
	512, 64 << 10, 100 << 10, 64<<10 + 512, mib, mib + 512, 2*mib - 512,
	mib + 4096, 3*mib + 64<<10 - 512, 4 * mib, 33 * 64 << 10, 32*64<<10 + 512,
}

// TestOracle drives the binary through random histories beside a map of
// bytes. After each step every row is as the model says and every live point
// reads back byte for byte by export, by a rollback in place and by a restore
// to a new volume.
func TestOracle(t *testing.T) {
	t.Parallel()
	checks, steps := "6", "30"
	if harness.Long() {
		checks, steps = "20", "60"
	}
	setFlag(t, "rapid.checks", checks)
	setFlag(t, "rapid.steps", steps)
	setFlag(t, "rapid.seed", strconv.FormatUint(harness.Seed(t), 10))
	const limit = 5 // so that histories meet it
	// Kills do not lose what the page cache holds, and a step has dozens of jobs:
	// in memory none of them waits for a disk.
	root := foldertest.InMemory(t)
	srv := harness.Start(t, builder.Path(t), root, "--max-chain", strconv.Itoa(limit))
	dir := filepath.Join(root, "disks")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	done := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		if srv.PID() == 0 {
			srv.Run(rt) // a history that failed may have left it down
		}
		m := &machine{world: &world{srv: srv, dir: dir, limit: limit}, done: done}
		m.world.register(rt, harness.NewImage(mib))
		rt.Repeat(map[string]func(*rapid.T){
			"register":     m.addRegistered,
			"import":       m.addImported,
			"write":        m.write,
			"write more":   m.write,
			"snapshot":     m.snapshot,
			"snapshot too": m.snapshot,
			"group":        m.group,
			"apply":        m.rollBack,
			"apply group":  m.rollBackGroup,
			"clone":        m.cloneOne,
			"delete":       m.deletePoint,
			"prune":        m.pruneNow,
			"empty bin":    m.emptyBin,
			"undelete":     m.bringBack,
			"forget":       m.forgetVolume,
			"rename":       m.rename,
			"grow":         m.growVolume,
			"stop":         m.restart,
			"kill":         m.kill,
			"lose":         m.loseDatabase,
			"":             m.check,
		})
		m.api().ScrubClean(rt)
		for _, v := range m.liveVols() {
			m.forget(rt, v)
		}
		for live := m.livePoints(""); len(live) > 0; live = m.livePoints("") {
			m.remove(rt, live[0])
		}
		m.world.prune(rt, true)
		m.checkRows(rt)
		m.api().ScrubClean(rt)
		wantNothingStored(rt, srv.Dir)
	})
	t.Logf("steps done: %v", done)
}

// machine is one random history.
type machine struct {
	*world
	done map[string]int // counts steps of the whole test
}

func (m *machine) check(t *rapid.T) {
	m.checkRows(t)
	m.checkContent(t)
	m.checkPaths(t)
}

func (m *machine) count(what string) { m.done[what]++ }

func (m *machine) drawContent(t *rapid.T) *harness.Image {
	img := harness.NewImage(rapid.SampledFrom(volumeSizes).Draw(t, "size"))
	r := harness.Rand(rapid.Uint64().Draw(t, "content"))
	for range r.IntN(6) {
		img.Apply(harness.RandomEdit(r, img.Size()))
	}
	return img
}

func (m *machine) drawVolume(t *rapid.T, from []*modelVolume) *modelVolume {
	if len(from) == 0 {
		t.Skip("no volume fits")
	}
	return from[rapid.IntRange(0, len(from)-1).Draw(t, "volume")]
}

func (m *machine) drawPoint(t *rapid.T, from []*modelPoint) *modelPoint {
	if len(from) == 0 {
		t.Skip("no point fits")
	}
	return from[rapid.IntRange(0, len(from)-1).Draw(t, "point")]
}

func (m *machine) addRegistered(t *rapid.T) {
	if len(m.liveVols()) >= maxVolumes {
		t.Skip("enough volumes")
	}
	m.world.register(t, m.drawContent(t))
	m.count("register")
}

func (m *machine) addImported(t *rapid.T) {
	if len(m.liveVols()) >= maxVolumes {
		t.Skip("enough volumes")
	}
	m.importVolume(t, m.drawContent(t))
	m.count("import")
}

func (m *machine) write(t *rapid.T) {
	v := m.drawVolume(t, m.liveVols())
	r := harness.Rand(rapid.Uint64().Draw(t, "edits"))
	var edits []harness.Edit
	for range 1 + r.IntN(4) {
		edits = append(edits, harness.RandomEdit(r, v.content.Size()))
	}
	m.edit(t, v, edits...)
	if v.path == "" {
		m.count("write as a client")
	} else {
		m.count("write")
	}
}

func (m *machine) snapshot(t *rapid.T) {
	if len(m.livePoints("")) >= maxPoints {
		t.Skip("enough points")
	}
	v := m.drawVolume(t, m.liveVols())
	m.create(t, rapid.IntRange(0, 5).Draw(t, "full") == 0, v)
	m.count("snapshot")
}

func (m *machine) group(t *rapid.T) {
	vols := m.liveVols()
	if len(vols) < 2 || len(m.livePoints("")) >= maxPoints {
		t.Skip("no group fits")
	}
	vols = rapid.Permutation(vols).Draw(t, "order")
	vols = vols[:rapid.IntRange(2, len(vols)).Draw(t, "count")]
	m.create(t, rapid.IntRange(0, 3).Draw(t, "full") == 0, vols...)
	news := m.points[len(m.points)-len(vols):]
	for _, p := range news[1:] {
		if p.snapTime != news[0].snapTime || p.group != news[0].group || p.group == "" {
			t.Fatalf("points of one call: times %q and %q, groups %q and %q; want the same",
				p.snapTime, news[0].snapTime, p.group, news[0].group)
		}
	}
	m.count("group")
}

// appliable are the points whose volume is still there and not smaller.
func (m *machine) appliable() []*modelPoint {
	return slices.DeleteFunc(m.livePoints(""), func(p *modelPoint) bool {
		v := m.vol(p.volume)
		return v.gone || p.content.Size() > v.content.Size()
	})
}

func (m *machine) rollBack(t *rapid.T) {
	m.apply(t, m.drawPoint(t, m.appliable()))
	m.count("apply")
}

func (m *machine) rollBackGroup(t *rapid.T) {
	a := m.drawPoint(t, m.appliable())
	others := slices.DeleteFunc(m.appliable(), func(p *modelPoint) bool { return p.volume == a.volume })
	b := m.drawPoint(t, others)
	m.apply(t, a, b)
	m.count("apply group")
}

func (m *machine) cloneOne(t *rapid.T) {
	if len(m.liveVols()) >= maxVolumes {
		t.Skip("enough volumes")
	}
	m.clone(t, m.drawPoint(t, m.livePoints("")))
	m.count("clone")
}

func (m *machine) deletePoint(t *rapid.T) {
	p := m.drawPoint(t, m.livePoints(""))
	var plan struct {
		Snapshots []string `json:"snapshots"`
		Freed     *int64   `json:"freed_bytes"`
	}
	m.api().Do(t, harness.Request{Method: http.MethodDelete,
		Path: "volume_snapshots/" + p.id + "?dry_run=1"}).Into(t, &plan)
	slices.Sort(plan.Snapshots)
	if want := ids(m.family(p)); !slices.Equal(plan.Snapshots, want) || plan.Freed == nil || *plan.Freed < 0 {
		t.Fatalf("dry run of deleting %s gave %+v, want %v and freed_bytes", p.id, plan, want)
	}
	m.check(t) // a dry run changes nothing
	if rapid.IntRange(0, 2).Draw(t, "really") > 0 {
		m.remove(t, p)
		m.count("delete")
	}
}

func (m *machine) forgetVolume(t *rapid.T) {
	if len(m.liveVols()) < 3 {
		t.Skip("too few volumes")
	}
	m.forget(t, m.drawVolume(t, m.liveVols()))
	m.count("forget")
}

func (m *machine) rename(t *rapid.T) {
	p := m.drawPoint(t, m.livePoints(""))
	m.made++
	body := map[string]any{}
	if rapid.Bool().Draw(t, "name") {
		p.name = fmt.Sprintf("näme %d", m.made)
		body["snapshot_name"] = p.name
	}
	if rapid.Bool().Draw(t, "description") {
		p.desc = fmt.Sprintf("描述 %d", m.made)
		body["description"] = p.desc
	}
	if r := m.api().Send(t, http.MethodPut, "volume_snapshots/"+p.id, body); r.Status != http.StatusNoContent {
		t.Fatalf("rename answered %d %s, want 204", r.Status, r.Body)
	}
	found := harness.IDs(m.api().Snapshots(t, url.Values{"search_word": {p.name}, "resource_id": {p.volume}}))
	if !slices.Contains(found, p.id) {
		t.Fatalf("search for %q finds %v, not %s", p.name, found, p.id)
	}
	m.count("rename")
}

func (m *machine) growVolume(t *rapid.T) {
	v := m.drawVolume(t, m.liveVols())
	by := rapid.SampledFrom([]int64{512, 4096, 64 << 10, 100<<10 + 512}).Draw(t, "by")
	if v.content.Size()+by > 5*mib {
		t.Skip("large enough")
	}
	m.grow(t, v, v.content.Size()+by)
	m.count("grow")
}

func (m *machine) restart(t *rapid.T) {
	m.srv.Stop(t)
	m.srv.Run(t)
	m.count("stop")
}

func (m *machine) kill(t *rapid.T) {
	m.srv.Kill(t)
	m.srv.Run(t)
	m.count("kill")
}

// setFlag sets a flag of the test binary for one test.
func setFlag(t *testing.T, name, value string) {
	t.Helper()
	f := stdflag.Lookup(name)
	if f == nil {
		t.Fatalf("no flag %s", name)
	}
	old := f.Value.String()
	if err := stdflag.Set(name, value); err != nil {
		t.Fatalf("set %s: %v", name, err)
	}
	t.Cleanup(func() {
		if err := stdflag.Set(name, old); err != nil {
			t.Errorf("reset %s: %v", name, err)
		}
	})
}
