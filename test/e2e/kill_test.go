package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/test/e2e/harness"
)

// TestKill kills the server with -9 at random moments of create, apply,
// clone and delete. After each restart every job ends well, the rows are as
// the model says, and no volume and no point holds a mixture.
func TestKill(t *testing.T) {
	t.Parallel() // it mostly waits for the disk
	kills := 200
	if harness.Long() {
		kills = 400
	}
	runKills(t, t.TempDir(), kills)
}

// TestKillWithReflinks is the same on a filesystem that can hold an instant
// durably, so that a resumed point must show the moment before the kill.
func TestKillWithReflinks(t *testing.T) {
	t.Parallel()
	kills := 40
	if harness.Long() {
		kills = 80
	}
	runKills(t, reflinkFolder(t), kills)
}

// reflinkFolder mounts a small xfs through a loop device.
func reflinkFolder(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipped: mounting an xfs needs root")
	}
	for _, tool := range []string{"mkfs.xfs", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("skipped: no %s here", tool)
		}
	}
	dir := t.TempDir()
	img, mnt := filepath.Join(dir, "xfs.img"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	script := `truncate -s 1536M "$1" && mkfs.xfs -q -m reflink=1 "$1" && mount -o loop "$1" "$2"`
	if out, err := exec.Command("sh", "-c", script, "sh", img, mnt).CombinedOutput(); err != nil {
		t.Skipf("skipped: no xfs through a loop device here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return mnt
}

// killer is one run of kills on one server.
type killer struct {
	*world
	r       *rand.Rand
	typical map[string]time.Duration // how long an undisturbed call takes
	slowest time.Duration            // from restart to the end of all jobs
	seen    map[string]int           // outcomes, for the report
}

// call is one call that will be cut off.
type call struct {
	kind   string
	method string
	path   string
	body   any
	vols   []*modelVolume // whose content matters
	points []*modelPoint
	name   string
	full   bool
}

func runKills(t *testing.T, root string, kills int) {
	k := &killer{r: harness.Rand(harness.Seed(t)), typical: map[string]time.Duration{}, seen: map[string]int{}}
	files := filepath.Join(root, "files")
	if err := os.Mkdir(files, 0o700); err != nil {
		t.Fatal(err)
	}
	k.world = &world{srv: harness.Start(t, builder.Path(t), root), dir: files}
	for range 3 {
		k.world.register(t, k.content(12*mib))
	}
	k.importVolume(t, k.content(6*mib))
	k.create(t, true, k.vols...)
	for _, kind := range []string{"create", "apply", "clone", "delete"} {
		k.measure(t, kind)
	}
	for n := 1; n <= kills; n++ {
		k.round(t, n)
		if t.Failed() {
			return
		}
		if n%25 == 0 {
			k.checkContent(t)
			k.api().ScrubClean(t)
			k.tidy(t)
		}
	}
	k.checkContent(t)
	k.checkPaths(t)
	k.api().ScrubClean(t)
	t.Logf("%d kills; outcomes %v; undisturbed calls take %v; slowest restart until all jobs had ended %v",
		kills, k.seen, k.typical, k.slowest)
}

// content is mostly filled, so that calls last long enough to be cut off.
func (k *killer) content(size int64) *harness.Image {
	img := harness.NewImage(size)
	for off := int64(0); off < size; off += mib {
		img.Apply(harness.Edit{Kind: harness.EditKind(k.r.IntN(3)), Off: off, Len: mib, Seed: k.r.Uint64()})
	}
	for range 10 {
		img.Apply(harness.RandomEdit(k.r, size))
	}
	return img
}

// scribble changes registered volumes as their owner would, and says how.
func (k *killer) scribble(t *testing.T, vols []*modelVolume) map[*modelVolume][]harness.Edit {
	t.Helper()
	done := map[*modelVolume][]harness.Edit{}
	for _, v := range vols {
		if v.path == "" {
			continue
		}
		for range 2 + k.r.IntN(4) {
			e := harness.RandomEdit(k.r, v.content.Size())
			v.edit(t, e)
			done[v] = append(done[v], e)
		}
	}
	return done
}

// plan draws a call of a kind that can succeed.
func (k *killer) plan(t *testing.T, kind string) call {
	t.Helper()
	live := k.livePoints("")
	switch kind {
	case "create":
		vols := slices.Clone(k.liveVols())
		k.r.Shuffle(len(vols), func(i, j int) { vols[i], vols[j] = vols[j], vols[i] })
		c := call{kind: kind, vols: vols[:1+k.r.IntN(len(vols))], full: k.r.IntN(3) == 0}
		k.scribble(t, c.vols)
		k.made++
		c.name = fmt.Sprintf("point-%d", k.made)
		c.method, c.path = http.MethodPost, "volume_snapshots"
		c.body = map[string]any{"resources": volumeIDs(c.vols), "snapshot_name": c.name, "is_full": flag(c.full)}
		return c
	case "apply":
		c := call{kind: kind, method: http.MethodPost, path: "volume_snapshots/apply"}
		for _, v := range k.liveVols() {
			if ps := k.livePoints(v.id); len(ps) > 0 && (len(c.points) == 0 || k.r.IntN(2) == 0) {
				c.points = append(c.points, ps[k.r.IntN(len(ps))])
				c.vols = append(c.vols, v)
			}
		}
		k.scribble(t, c.vols)
		c.body = map[string]any{"snapshots": pointIDs(c.points)}
		return c
	case "clone":
		p := live[k.r.IntN(len(live))]
		return call{kind: kind, method: http.MethodPost, path: "volume_snapshots/create_volume/" + p.id,
			points: []*modelPoint{p}, body: map[string]any{"volume_name": "clone"}}
	default: // delete; a chain of its own, so that points do not run out
		p := live[k.r.IntN(len(live))]
		return call{kind: "delete", method: http.MethodDelete, path: "volume_snapshots/" + p.id,
			points: []*modelPoint{p}, body: map[string]any{}}
	}
}

// measure runs a call of a kind undisturbed.
func (k *killer) measure(t *testing.T, kind string) {
	t.Helper()
	c := k.plan(t, kind)
	before := time.Now()
	j := k.api().OK(t, k.api().Send(t, c.method, c.path, c.body).Begin(t))
	k.typical[kind] = time.Since(before)
	k.settle(t, c, j, nil)
	k.checkRows(t)
}

// cut is what is known of a call that was cut off.
type cut struct {
	old        []*harness.Image                // per volume: its content at the kill
	later      map[*modelVolume][]harness.Edit // made before the server was back
	taken      bool                            // is_taken was seen before the kill
	unfinished bool                            // the job went on after the restart
	killed     string                          // wire times of the kill
	restarted  string                          // and of the restart
}

// round cuts one call off and checks the truth afterwards.
func (k *killer) round(t *testing.T, n int) {
	t.Helper()
	kind := []string{"create", "create", "create", "apply", "apply", "clone", "delete"}[k.r.IntN(7)]
	if len(k.livePoints("")) < 3 {
		kind = "create"
	}
	c := k.plan(t, kind)
	known := k.jobCount(t)
	delay := time.Duration(k.r.Int64N(int64(k.typical[kind]*5/4) + 1))
	answered, taken := make(chan *harness.Response, 1), make(chan bool, 1)
	go func() {
		r, err := k.api().TrySend(c.method, c.path, c.body)
		if err != nil {
			answered <- nil // the kill came first: the outcome is unknown
			return
		}
		answered <- &r
	}()
	go func() { taken <- c.kind == "create" && k.sawTaken(c.name) }()
	time.Sleep(delay)
	k.srv.Kill(t)
	answer, cut := <-answered, &cut{taken: <-taken, old: contents(c.vols), killed: wireTime()}
	if answer != nil && answer.Status != http.StatusOK {
		t.Fatalf("round %d: %s answered %d %s", n, kind, answer.Status, answer.Body)
	}
	// The owner may write on while no server runs: a resumed apply must not
	// trust what it had compared, a resumed create must not mix two moments.
	if (kind == "create" || kind == "apply") && k.r.IntN(2) == 0 {
		cut.later = k.scribble(t, c.vols)
	}
	begin := time.Now()
	cut.restarted = wireTime()
	k.srv.Run(t)
	cut.unfinished = len(k.api().Unfinished(t)) > 0
	k.noMixture(t, n, c, cut)
	k.api().WaitAll(t)
	k.slowest = max(k.slowest, time.Since(begin))

	j, ok := k.newJob(t, known)
	switch {
	case !ok && answer != nil:
		t.Fatalf("round %d: %s was answered with a job, which is gone after kill -9: %s", n, kind, answer.Body)
	case !ok:
		k.seen[kind+" never begun"]++
	case j.Status != "successful":
		t.Fatalf("round %d: %s after kill -9 at %v: job %s is %s: %s", n, kind, delay, j.ID, j.Status, j.Info)
	case cut.unfinished && cut.taken:
		k.seen[kind+" resumed from its held instant"]++
	case cut.unfinished:
		k.seen[kind+" resumed"]++
	default:
		k.seen[kind+" was done"]++
	}
	if ok {
		k.settle(t, c, j, cut)
	}
	if j.FinishedTime != "" && cut.unfinished && j.FinishedTime < cut.restarted {
		t.Fatalf("round %d: job %s says it finished at %s, before the restart at %s", n, j.ID, j.FinishedTime, cut.restarted)
	}
	k.checkRows(t)
	if k.r.IntN(5) == 0 {
		k.checkContent(t)
	}
}

// sawTaken polls until the server is gone and reports whether a point of the
// call was seen with is_taken 1.
func (k *killer) sawTaken(name string) bool {
	seen := false
	for range 100_000 {
		r, err := k.api().Try(harness.Request{Method: http.MethodGet, Path: "volume_snapshots?search_word=" + name})
		if err != nil {
			return seen
		}
		var page struct {
			Snapshots []harness.Snapshot `json:"snapshots"`
		}
		// A body that the kill cut off shows nothing.
		if json.Unmarshal(r.Body, &page) == nil && len(page.Snapshots) > 0 {
			seen = seen || page.Snapshots[0].IsTaken == 1
		}
		time.Sleep(2 * time.Millisecond)
	}
	return seen
}

// settle enters a successful call into the model, having looked at what its
// points and volumes hold now. cut is nil if nothing disturbed the call.
func (k *killer) settle(t *testing.T, c call, j harness.Job, cut *cut) {
	t.Helper()
	switch c.kind {
	case "create":
		k.settleCreate(t, c, j, cut)
	case "apply":
		for i, p := range c.points {
			k.settleApply(t, c.vols[i], p, cut)
		}
	case "clone":
		p := c.points[0]
		if len(j.ResourceIDs) != 1 {
			t.Fatalf("create_volume gave ids %v", j.ResourceIDs)
		}
		v := &modelVolume{id: j.ResourceIDs[0], name: "clone", content: p.content.Clone()}
		k.api().WantContent(t, "volumes", v.id, v.content)
		k.vols = append(k.vols, v)
		k.forget(t, v)
	case "delete":
		k.removed(c.points...)
	}
}

// settleCreate finds out which of the two possible moments the points show:
// all the same one, whole, and the one that snapshot_time says.
func (k *killer) settleCreate(t *testing.T, c call, j harness.Job, cut *cut) {
	t.Helper()
	moments, found := contents(c.vols), orderedIDs(t, k.world, c.vols, j)
	if cut != nil && len(cut.later) > 0 {
		old, sure := k.showsOld(t, c, found, cut)
		at := k.api().MustSnapshot(t, found[0]).SnapshotTime
		switch {
		case sure && old && at > cut.killed:
			t.Fatalf("%s shows the moment before the kill at %s, but says %s", found[0], cut.killed, at)
		case sure && !old && at < cut.restarted:
			t.Fatalf("%s shows the moment after the restart at %s, but says %s", found[0], cut.restarted, at)
		case sure && !old && cut.taken:
			t.Fatalf("%s had is_taken 1 before the kill, but shows the moment after it", found[0])
		}
		if old {
			moments = cut.old
		}
	}
	for i := range c.vols {
		k.api().WantContent(t, "volume_snapshots", found[i], moments[i])
	}
	k.record(t, c.name, c.full, c.vols, found, moments)
}

// showsOld looks at the first point that can tell the two moments apart.
func (k *killer) showsOld(t *testing.T, c call, found []string, cut *cut) (old, sure bool) {
	t.Helper()
	for i, v := range c.vols {
		if !v.content.Equal(cut.old[i]) {
			got, _ := k.api().Export(t, "volume_snapshots", found[i])
			return cut.old[i].Is(got), true
		}
	}
	return true, false
}

// settleApply takes what a volume holds after an apply into the model: the
// point, or the point with the owner's later edits if the job had ended
// before they were made.
func (k *killer) settleApply(t *testing.T, v *modelVolume, p *modelPoint, cut *cut) {
	t.Helper()
	want := p.content.Resized(v.content.Size())
	if cut != nil && !cut.unfinished && len(cut.later[v]) > 0 {
		edited := edited(want, cut.later[v])
		if got, _ := k.api().Export(t, "volumes", v.id); edited.Is(got) {
			want = edited
		}
	}
	k.api().WantContent(t, "volumes", v.id, want)
	v.content, v.head = want, p.id
}

// noMixture reads every volume of a cut-off apply right after the restart: an
// answer with bytes must be a content that the volume had or was to get.
func (k *killer) noMixture(t *testing.T, n int, c call, cut *cut) {
	t.Helper()
	if c.kind != "apply" {
		return
	}
	for i, p := range c.points {
		v := c.vols[i]
		got, status := k.api().Export(t, "volumes", v.id)
		if status == http.StatusConflict {
			k.seen["apply blocked its volume"]++
			continue
		}
		want := p.content.Resized(v.content.Size())
		if !slices.ContainsFunc([]*harness.Image{want, edited(want, cut.later[v]), v.content, cut.old[i]},
			func(m *harness.Image) bool { return m.Is(got) }) {
			t.Fatalf("round %d: right after the restart %s is served (%d, %d bytes) with a content that it never had",
				n, v.name, status, len(got))
		}
	}
}

// edited is a copy with edits done.
func edited(m *harness.Image, edits []harness.Edit) *harness.Image {
	out := m.Clone()
	for _, e := range edits {
		out.Apply(e)
	}
	return out
}

// wireTime is now as the API writes it.
func wireTime() string { return time.Now().UTC().Format("2006-01-02T15:04:05Z") }

// tidy deletes old chains so that a run does not grow.
func (k *killer) tidy(t *testing.T) {
	t.Helper()
	for _, v := range k.liveVols() {
		for live := k.livePoints(v.id); len(live) > 6; live = k.livePoints(v.id) {
			k.remove(t, live[0])
		}
	}
	k.checkRows(t)
}

func (k *killer) jobCount(t *testing.T) int {
	t.Helper()
	var page struct {
		Total int `json:"total_count"`
	}
	k.api().Get(t, "jobs?limit=1").Into(t, &page)
	return page.Total
}

// newJob is the one job that came after the first known ones.
func (k *killer) newJob(t *testing.T, known int) (harness.Job, bool) {
	t.Helper()
	var page struct {
		Jobs  []harness.Job `json:"jobs"`
		Total int           `json:"total_count"`
	}
	k.api().Get(t, "jobs?limit=2").Into(t, &page)
	switch page.Total - known {
	case 0:
		return harness.Job{}, false
	case 1:
		return page.Jobs[0], true
	}
	t.Fatalf("one call made %d jobs: %+v", page.Total-known, page.Jobs)
	return harness.Job{}, false
}

// orderedIDs are a create job's points in the order of the volumes.
func orderedIDs(t *testing.T, w *world, vols []*modelVolume, j harness.Job) []string {
	t.Helper()
	out := make([]string, len(vols))
	for _, id := range j.ResourceIDs {
		row := w.api().MustSnapshot(t, id)
		i := slices.IndexFunc(vols, func(v *modelVolume) bool { return v.id == row.Resource.ID })
		if i < 0 {
			t.Fatalf("job %s made %s of %s, which nobody asked for", j.ID, id, row.Resource.ID)
		}
		out[i] = id
	}
	if slices.Contains(out, "") {
		t.Fatalf("job %s made %s, want one point for each of %d volumes", j.ID, strings.Join(out, ","), len(vols))
	}
	return out
}

func contents(vols []*modelVolume) []*harness.Image {
	out := make([]*harness.Image, len(vols))
	for i, v := range vols {
		out[i] = v.content.Clone()
	}
	return out
}

func volumeIDs(vols []*modelVolume) []string {
	out := make([]string, len(vols))
	for i, v := range vols {
		out[i] = v.id
	}
	return out
}

func pointIDs(points []*modelPoint) []string {
	out := make([]string, len(points))
	for i, p := range points {
		out[i] = p.id
	}
	return out
}
