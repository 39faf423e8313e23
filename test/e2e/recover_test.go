package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/test/e2e/harness"
)

// recoverReport is what `cairn repo recover -o json` prints.
type recoverReport struct {
	DryRun     bool     `json:"dry_run"`
	Database   string   `json:"database"`
	MovedAside []string `json:"moved_aside"`
	Report     struct {
		Journal struct {
			State    string   `json:"state"`
			Problems []string `json:"problems"`
		} `json:"journal"`
		Points []struct {
			ID     string `json:"snapshot_id"`
			Status string `json:"status"`
			Result string `json:"result"`
			Reason string `json:"reason"`
		} `json:"points"`
		Blocked string `json:"blocked"`
	} `json:"report"`
}

// repoRecover runs the command on a folder that no server has.
func repoRecover(t harness.TB, srv *harness.Server, args ...string) (code int, r recoverReport, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), toolLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, srv.Bin, append([]string{"repo", "recover", "--data-dir", srv.Dir, "-o", "json"}, args...)...)
	cmd.Env = harness.CleanEnv()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("cairn repo recover: %v", err)
	}
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			t.Fatalf("cairn repo recover printed no JSON document: %v\n%s", err, out.String())
		}
	}
	return cmd.ProcessState.ExitCode(), r, errOut.String()
}

// mustRecover recovers, and everything must come back.
func mustRecover(t harness.TB, srv *harness.Server) recoverReport {
	t.Helper()
	code, r, stderr := repoRecover(t, srv)
	if code != 0 || r.DryRun || r.Database != filepath.Join(srv.Dir, "cairn.db") || r.Report.Journal.State != "whole" || r.Report.Blocked != "" {
		t.Fatalf("recover: exit %d, %+v\n%s", code, r, stderr)
	}
	for _, p := range r.Report.Points {
		if p.Result == "damaged" {
			t.Fatalf("recover says that %s is damaged: %s", p.ID, p.Reason)
		}
	}
	return r
}

// databaseFiles are the files of the database that the server uses.
func databaseFiles(t harness.TB, dir string) []string {
	t.Helper()
	var out []string
	for _, suffix := range []string{"", "-wal", "-shm"} {
		path := filepath.Join(dir, "cairn.db"+suffix)
		if _, err := os.Stat(path); err == nil {
			out = append(out, path)
		}
	}
	if len(out) == 0 {
		t.Fatalf("there is no database in %s", dir)
	}
	return out
}

// rows is everything that the API shows of snapshots and volumes.
type rows struct {
	snapshots []harness.Snapshot
	volumes   []harness.Volume
}

// allRows lists them.
func (w *world) allRows(t harness.TB) rows {
	t.Helper()
	r := rows{volumes: w.listVolumes(t), snapshots: w.api().Snapshots(t, url.Values{"status": {harness.AllStatuses}})}
	for i := range r.volumes { // it is being filled, or was a moment ago
		r.volumes[i].MissingBytes = 0
	}
	return r
}

// listVolumes lists all volumes. A server that has just started serves its
// volumes one after the other: they are awaited, and one that never comes shows
// in the rows.
func (w *world) listVolumes(t harness.TB) (all []harness.Volume) {
	t.Helper()
	unserved := func(v harness.Volume) bool {
		return v.Driver == "managed" && v.Status == "available" && len(v.NBDURIs) == 0
	}
	harness.Poll(10*time.Second, func() bool {
		all = w.srv.Local().Volumes(t, url.Values{"status": {"pending,available,in-use,deleted,ceased"}})
		return !slices.ContainsFunc(all, unserved)
	})
	return all
}

// sameRows compares every field that the API shows.
func sameRows(t harness.TB, what string, got, want rows) {
	t.Helper()
	if len(got.snapshots) != len(want.snapshots) || len(got.volumes) != len(want.volumes) {
		t.Fatalf("%s: %d snapshots and %d volumes, want %d and %d", what, len(got.snapshots), len(got.volumes), len(want.snapshots), len(want.volumes))
	}
	for i := range want.snapshots {
		if !reflect.DeepEqual(got.snapshots[i], want.snapshots[i]) {
			t.Fatalf("%s: got  %+v\nwant %+v", what, got.snapshots[i], want.snapshots[i])
		}
	}
	for i := range want.volumes {
		if !reflect.DeepEqual(got.volumes[i], want.volumes[i]) {
			t.Fatalf("%s: got  %+v\nwant %+v", what, got.volumes[i], want.volumes[i])
		}
	}
}

// loseDatabase stops or kills the server, deletes the database, and recovers.
func (m *machine) loseDatabase(t *rapid.T) {
	want := m.allRows(t)
	if rapid.Bool().Draw(t, "kill") {
		m.srv.Kill(t)
	} else {
		m.srv.Stop(t)
	}
	for _, path := range databaseFiles(t, m.srv.Dir) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	mustRecover(t, m.srv)
	m.srv.Run(t)
	sameRows(t, "after the database was lost", m.allRows(t), want)
	m.count("lose the database")
}

// TestOldDatabase puts an older database back: the server shows what it has,
// reads points, and changes nothing until recover brings the newest state.
func TestOldDatabase(t *testing.T) {
	t.Parallel()
	srv := serve(t)
	w := &world{srv: srv, dir: t.TempDir()}
	img := harness.NewImage(mib)
	img.Apply(harness.Edit{Kind: harness.WriteNoise, Len: 300_000, Seed: 1})
	v := w.register(t, img)
	w.create(t, true, v)
	first := w.points[0]
	srv.Stop(t)
	old := map[string][]byte{}
	for _, path := range databaseFiles(t, srv.Dir) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		old[path] = b
	}
	srv.Run(t)
	v.edit(t, harness.Edit{Kind: harness.WriteNoise, Off: 1000, Len: 5000, Seed: 2})
	w.create(t, false, v)
	managed := w.importVolume(t, img)
	want := w.allRows(t)
	srv.Stop(t)
	for _, path := range databaseFiles(t, srv.Dir) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for path, b := range old {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	srv.Run(t)
	var health struct{ Status, Reason string }
	r, err := srv.API().Try(harness.Request{Method: http.MethodGet, Path: "/healthz"})
	if err != nil {
		t.Fatal(err)
	}
	r.Into(t, &health)
	if health.Status != "restricted" || !strings.Contains(health.Reason, "cairn repo recover") || !strings.Contains(srv.Log(t), "older") {
		t.Errorf("healthz says %+v", health)
	}
	for what, r := range map[string]harness.Response{
		"create": srv.API().Send(t, http.MethodPost, "volume_snapshots", map[string]any{"resources": []string{v.id}, "snapshot_name": "no"}),
		"delete": srv.API().Send(t, http.MethodDelete, "volume_snapshots/"+first.id, map[string]any{}),
		"apply":  srv.API().Send(t, http.MethodPost, "volume_snapshots/apply", map[string]any{"snapshots": []string{first.id}}),
		"rename": srv.API().Send(t, http.MethodPut, "volume_snapshots/"+first.id, map[string]any{"snapshot_name": "no"}),
		"scrub":  srv.API().Send(t, http.MethodPost, "repository/scrub", map[string]any{}),
	} {
		if r.Status != http.StatusConflict || !bytes.Contains(r.Body, []byte("cairn repo recover")) {
			t.Errorf("%s answered %d %s", what, r.Status, r.Body)
		}
	}
	srv.API().WantContent(t, "volume_snapshots", first.id, first.content)
	srv.Stop(t)

	got := mustRecover(t, srv)
	if len(got.MovedAside) == 0 {
		t.Error("the old database was not kept")
	}
	for _, path := range got.MovedAside {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	srv.Run(t)
	sameRows(t, "after recover", w.allRows(t), want)
	w.checkRows(t)
	w.checkContent(t)
	w.create(t, false, v, managed)
	w.checkRows(t)
	w.checkPaths(t)
	srv.API().ScrubClean(t)
	// The one that was moved away is older from now on.
	srv.Stop(t)
	if err := os.Rename(got.MovedAside[0], filepath.Join(srv.Dir, "cairn.db")); err != nil {
		t.Fatal(err)
	}
	srv.Run(t)
	if r := srv.API().Send(t, http.MethodPost, "repository/scrub", map[string]any{}); r.Status != http.StatusConflict {
		t.Errorf("beside the database that was moved away: %d %s", r.Status, r.Body)
	}
}

// TestRecoverDryRun: a trial tells the same and changes no file.
func TestRecoverDryRun(t *testing.T) {
	t.Parallel()
	srv := serve(t)
	w := &world{srv: srv, dir: t.TempDir()}
	w.create(t, true, w.register(t, harness.NewImage(mib)), w.importVolume(t, harness.NewImage(mib)))
	w.remove(t, w.points[0])
	if code, _, stderr := repoRecover(t, srv); code != 5 || !strings.Contains(stderr, "stop it first") {
		t.Errorf("beside a server: exit %d, %s", code, stderr)
	}
	srv.Stop(t)
	before := filesOf(t, srv.Dir)
	code, trial, stderr := repoRecover(t, srv, "--dry-run")
	if code != 0 || !trial.DryRun || trial.Database != "" || len(trial.MovedAside) > 0 || len(trial.Report.Points) != 2 {
		t.Errorf("dry run: exit %d, %+v\n%s", code, trial, stderr)
	}
	if after := filesOf(t, srv.Dir); !reflect.DeepEqual(after, before) {
		t.Errorf("the dry run changed files: %d before, %d after", len(before), len(after))
	}
	real := mustRecover(t, srv)
	if !reflect.DeepEqual(real.Report.Points, trial.Report.Points) {
		t.Errorf("the trial said %+v, then came %+v", trial.Report.Points, real.Report.Points)
	}
	srv.Run(t)
	w.checkRows(t)
	w.checkContent(t)
}

// TestRecoverWithoutJournal: manifests alone are listed, and taken in only if
// asked to.
func TestRecoverWithoutJournal(t *testing.T) {
	t.Parallel()
	srv := serve(t)
	w := &world{srv: srv, dir: t.TempDir()}
	img := harness.NewImage(mib)
	img.Apply(harness.Edit{Kind: harness.WriteNoise, Len: 100_000, Seed: 3})
	v := w.importVolume(t, img)
	w.create(t, true, v)
	w.create(t, false, v)
	srv.Stop(t)
	if err := os.RemoveAll(filepath.Join(srv.Dir, "repo", "journal")); err != nil {
		t.Fatal(err)
	}
	for _, path := range databaseFiles(t, srv.Dir) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	code, r, stderr := repoRecover(t, srv)
	if code != 5 || r.Report.Journal.State != "missing" || r.Database != "" || !strings.Contains(stderr, "--accept-uncommitted") || len(r.Report.Points) != 2 {
		t.Errorf("exit %d, %+v, %s", code, r, stderr)
	}
	if _, err := os.Stat(filepath.Join(srv.Dir, "cairn.db")); err == nil {
		t.Error("a database was made")
	}
	if code, r, stderr := repoRecover(t, srv, "--accept-uncommitted"); code != 0 || r.Database == "" {
		t.Fatalf("exit %d, %+v, %s", code, r, stderr)
	}
	srv.Run(t)
	w.checkRows(t)
	w.checkContent(t)
	w.create(t, false, v)
	w.checkRows(t)
	srv.API().ScrubClean(t)
}

// TestKillAndLoseDatabase kills the server in the middle of a call, deletes the
// database and recovers: the call was carried out whole or not at all, it was
// if its job was seen to succeed, and a volume that it had begun to overwrite
// is blocked until a point is applied to it.
func TestKillAndLoseDatabase(t *testing.T) {
	t.Parallel()
	rounds := 25
	if harness.Long() {
		rounds = 75
	}
	k := &killer{r: harness.Rand(harness.Seed(t)), typical: map[string]time.Duration{}, seen: map[string]int{}}
	k.world = &world{srv: serve(t), dir: t.TempDir()}
	for range 2 {
		k.world.register(t, k.content(6*mib))
	}
	k.importVolume(t, k.content(3*mib))
	k.create(t, true, k.vols...)
	for _, kind := range []string{"create", "apply", "clone", "delete"} {
		k.measure(t, kind)
	}
	for n := 1; n <= rounds; n++ {
		k.loseMidway(t, n)
		if t.Failed() {
			return
		}
		if n%10 == 0 {
			k.checkContent(t)
			k.api().ScrubClean(t)
			k.tidy(t)
		}
	}
	k.checkContent(t)
	k.checkPaths(t)
	k.api().ScrubClean(t)
	t.Logf("%d rounds; outcomes %v", rounds, k.seen)
}

// loseMidway is one round.
func (k *killer) loseMidway(t *testing.T, n int) {
	t.Helper()
	kind := []string{"create", "create", "apply", "apply", "clone", "delete"}[k.r.IntN(6)]
	for len(k.livePoints("")) < 5 {
		k.create(t, true, k.liveVols()...)
	}
	c := k.plan(t, kind)
	delay := time.Duration(k.r.Int64N(int64(k.typical[kind]*2) + 1))
	succeeded := make(chan bool, 1)
	go func() { succeeded <- k.sawSuccess(c) }()
	time.Sleep(delay)
	k.srv.Kill(t)
	sure := <-succeeded
	for _, path := range databaseFiles(t, k.srv.Dir) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	mustRecover(t, k.srv)
	k.srv.Run(t)
	var done bool
	switch kind {
	case "create":
		done = k.lostCreate(t, c)
	case "apply":
		done = k.lostApply(t, c)
	case "clone":
		done = k.lostClone(t, c)
	default:
		if done = k.api().MustSnapshot(t, c.points[0].id).Status == "deleted"; done {
			k.removed(c.points...)
		}
	}
	if sure && !done {
		t.Fatalf("round %d: %s was seen to succeed, and is gone with the database", n, kind)
	}
	k.seen[fmt.Sprintf("%s done: %v, seen: %v", kind, done, sure)]++
	k.checkRows(t)
}

// sawSuccess makes the call and asks for its job until the server is gone.
func (k *killer) sawSuccess(c call) bool {
	r, err := k.api().TrySend(c.method, c.path, c.body)
	if err != nil {
		return false
	}
	var j harness.Job
	if json.Unmarshal(r.Body, &j) != nil {
		return false
	}
	for range 100_000 {
		r, err := k.api().Try(harness.Request{Method: http.MethodGet, Path: "job/" + j.ID})
		if err != nil {
			return false
		}
		if json.Unmarshal(r.Body, &j) == nil && j.Status == "successful" {
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

func (k *killer) lostCreate(t *testing.T, c call) bool {
	t.Helper()
	found := k.api().Snapshots(t, url.Values{"search_word": {c.name}, "status": {harness.AllStatuses}})
	if len(found) == 0 {
		return false
	}
	made := make([]string, len(c.vols))
	for _, s := range found {
		i := slices.IndexFunc(c.vols, func(v *modelVolume) bool { return v.id == s.Resource.ID })
		if i < 0 || s.Status != "available" {
			t.Fatalf("after recover there is %+v", s)
		}
		made[i] = s.ID
	}
	if slices.Contains(made, "") {
		t.Fatalf("recover brought back %v of a call for %v: half a group", made, volumeIDs(c.vols))
	}
	k.record(t, c.name, c.full, c.vols, made, contents(c.vols))
	for i, id := range made {
		k.api().WantContent(t, "volume_snapshots", id, c.vols[i].content)
	}
	return true
}

// lostApply finds all volumes as they were, all as the points are, or those that
// were written to blocked; these are applied to again.
func (k *killer) lostApply(t *testing.T, c call) bool {
	t.Helper()
	done := true
	for i, p := range c.points {
		v := c.vols[i]
		row := k.srv.Local().MustVolume(t, v.id)
		if row.MixedJob != "" {
			if _, status := k.api().Export(t, "volumes", v.id); status != http.StatusConflict {
				t.Fatalf("%s holds a mixture, and its export answers %d", v.name, status)
			}
			k.apply(t, p)
			k.seen["apply left a blocked volume"]++
			continue
		}
		if k.api().MustSnapshot(t, p.id).IsHead == 1 && v.head != p.id {
			k.applied(p)
		}
		k.api().WantContent(t, "volumes", v.id, k.stillOrApplied(t, v, p))
		done = done && v.head == p.id
	}
	return done
}

// stillOrApplied is what a volume must hold. Applying the head again may have
// been done or not without any row telling.
func (k *killer) stillOrApplied(t *testing.T, v *modelVolume, p *modelPoint) *harness.Image {
	t.Helper()
	if v.head != p.id {
		return v.content
	}
	want := p.content.Resized(v.content.Size())
	if got, _ := k.api().Export(t, "volumes", v.id); want.Is(got) {
		v.content = want
	}
	return v.content
}

func (k *killer) lostClone(t *testing.T, c call) bool {
	t.Helper()
	for _, row := range k.api().Volumes(t, url.Values{}) {
		if row.Name != "clone" {
			continue
		}
		v := &modelVolume{id: row.ID, name: "clone", content: c.points[0].content.Clone()}
		k.api().WantContent(t, "volumes", v.id, v.content)
		k.vols = append(k.vols, v)
		k.forget(t, v)
		return true
	}
	return false
}

// filesOf are a folder's files and what they hold, the lock left out.
func filesOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			out[path] = "folder"
			return nil
		}
		if strings.HasSuffix(path, ".lock") || !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		out[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
