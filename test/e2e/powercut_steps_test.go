package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"cairn/test/e2e/harness"
)

// powerScript is a life of a server in which every act meets what others left.
func powerScript() []string {
	return []string{
		"import", "register", "register", "group full", "edit", "point", "edit", "edit", "group",
		"clone", "rename", "apply", "edit", "point", "kill in create", "delete", "undelete", "point",
		"import", "full", "scrub", "edit", "full", "delete chain", "prune", "group", "apply group",
		"kill in apply", "resize", "point", "rename volume", "delete chain", "empty bin",
		"edit", "point", "forget", "clone", "stop", "edit", "full", "delete", "undelete", "edit", "group",
		"delete chain", "empty bin", "apply", "kill in create", "group full", "delete chain", "empty bin", "point",
	}
}

// live starts the server and does what a script says, to volumes and points of
// chance.
func (p *powerRun) live(t *testing.T, script []string) {
	t.Helper()
	p.step(t, "start", func() { p.srv.Run(t) })
	if p.lie {
		takeSyncs(t, p.srv)
	}
	for _, act := range script {
		p.act(t, act)
	}
	p.srv.Kill(t)
	if moved, err := os.ReadDir(filepath.Join(p.srv.Dir, "repo", "reloc")); err == nil {
		p.relocated = len(moved)
	}
}

// act does one thing of the script; another where it finds nothing to do it to.
func (p *powerRun) act(t *testing.T, act string) {
	t.Helper()
	any, anyPoint := p.anyVolume(nil), p.anyPoint(nil)
	binned := p.inBin()
	switch act {
	case "import":
		p.step(t, act, func() { p.importVolume(t, filled(p.r, 2*mib)) })
	case "register":
		p.registerDurable(t, filled(p.r, 3*mib+64<<10))
	case "edit":
		p.writeDurable(t, p.anyVolume(func(v *modelVolume) bool { return v.path != "" }))
	case "point", "full":
		p.step(t, act, func() { p.create(t, act == "full", any) })
	case "group", "group full":
		p.step(t, act, func() { p.create(t, act == "group full", p.liveVols()...) })
	case "clone":
		p.step(t, act, func() { p.clone(t, anyPoint) })
	case "apply":
		p.step(t, act, func() { p.apply(t, anyPoint) })
	case "apply group":
		p.step(t, act, func() { p.apply(t, p.pointOfEach()...) })
	case "delete":
		p.step(t, act, func() { p.remove(t, anyPoint) })
	case "delete chain":
		oldest := p.anyPoint(func(q *modelPoint) bool { return q.full })
		p.step(t, act, func() { p.remove(t, oldest) })
	case "undelete":
		p.step(t, act, func() { p.undelete(t, binned[p.r.IntN(len(binned))]) })
	case "prune", "empty bin":
		p.step(t, act, func() { p.prune(t, act == "empty bin") })
	case "scrub":
		p.step(t, act, func() { p.api().ScrubClean(t) })
	case "resize":
		v := p.anyVolume(func(v *modelVolume) bool { return v.path == "" })
		p.step(t, act, func() { p.grow(t, v, v.content.Size()+512<<10) })
	case "rename":
		p.step(t, act, func() { p.rename(t, anyPoint) })
	case "rename volume":
		p.step(t, act, func() { p.renameVolume(t, any) })
	case "forget":
		v := p.anyVolume(func(v *modelVolume) bool { return v.path == "" })
		p.step(t, act, func() { p.forget(t, v) })
	case "stop":
		p.step(t, act, func() { p.srv.Stop(t); p.srv.Run(t) })
	case "kill in create":
		p.killInCreate(t)
	case "kill in apply":
		p.killInApply(t)
	default:
		t.Fatalf("nobody knows how to %q", act)
	}
}

// anyVolume is one of the live volumes that may be.
func (p *powerRun) anyVolume(may func(*modelVolume) bool) *modelVolume {
	return anyOf(p.r, p.liveVols(), may)
}

// anyPoint is one of the points that may be; its volume can be rolled back.
func (p *powerRun) anyPoint(may func(*modelPoint) bool) *modelPoint {
	live := slices.DeleteFunc(p.livePoints(""), func(q *modelPoint) bool { return p.vol(q.volume).gone })
	return anyOf(p.r, live, may)
}

// anyOf draws one of some; nil if there is none.
func anyOf[T any](r *rand.Rand, all []*T, may func(*T) bool) *T {
	if may != nil {
		all = slices.DeleteFunc(slices.Clone(all), func(x *T) bool { return !may(x) })
	}
	if len(all) == 0 {
		return nil
	}
	return all[r.IntN(len(all))]
}

// pointOfEach draws a point of each volume that has one.
func (p *powerRun) pointOfEach() []*modelPoint {
	var out []*modelPoint
	for _, v := range p.liveVols() {
		if q := anyOf(p.r, p.livePoints(v.id), nil); q != nil {
			out = append(out, q)
		}
	}
	return out
}

// filled is a content that is mostly not zeros.
func filled(r *rand.Rand, size int64) *harness.Image {
	img := harness.NewImage(size)
	for off := int64(0); off < size; off += mib / 2 {
		img.Apply(harness.Edit{Kind: harness.EditKind(r.IntN(3)), Off: off, Len: min(mib/2, size-off), Seed: r.Uint64()})
	}
	for range 5 {
		img.Apply(harness.RandomEdit(r, size))
	}
	return img
}

// registerDurable registers a file that its owner has synced.
func (p *powerRun) registerDurable(t *testing.T, content *harness.Image) {
	t.Helper()
	p.made++
	name := fmt.Sprintf("disk-%d", p.made)
	path := content.NewFile(t, p.dir, name+".raw")
	if err := errors.Join(syncPath(path), syncPath(p.dir)); err != nil {
		t.Fatal(err)
	}
	p.step(t, "register", func() {
		row := p.srv.Local().Register(t, name, path)
		p.vols = append(p.vols, &modelVolume{id: row.ID, name: name, path: path, content: content})
	})
}

// writeDurable changes a registered volume as its owner would, who syncs it.
func (p *powerRun) writeDurable(t *testing.T, v *modelVolume) {
	t.Helper()
	s := p.step(t, "edit", func() {
		for range 2 + p.r.IntN(3) {
			v.edit(t, harness.RandomEdit(p.r, v.content.Size()))
		}
		if err := syncPath(v.path); err != nil {
			t.Fatal(err)
		}
	})
	s.writing = v.id
}

func (p *powerRun) rename(t *testing.T, q *modelPoint) {
	t.Helper()
	p.made++
	q.name, q.desc = fmt.Sprintf("renamed-%d", p.made), "by somebody"
	r := p.api().Send(t, http.MethodPut, "volume_snapshots/"+q.id, map[string]any{"snapshot_name": q.name, "description": q.desc})
	if r.Status != http.StatusNoContent {
		t.Fatalf("rename: %d %s", r.Status, r.Body)
	}
}

func (p *powerRun) renameVolume(t *testing.T, v *modelVolume) {
	t.Helper()
	p.made++
	v.name = fmt.Sprintf("renamed-%d", p.made)
	if r := p.api().Send(t, http.MethodPut, "volumes/"+v.id, map[string]any{"volume_name": v.name}); r.Status != http.StatusNoContent {
		t.Fatalf("rename: %d %s", r.Status, r.Body)
	}
}

// killInCreate kills the server while it takes a group; the next one ends it.
func (p *powerRun) killInCreate(t *testing.T) {
	t.Helper()
	vols := p.liveVols()
	p.step(t, "kill in create", func() {
		p.made++
		name := fmt.Sprintf("point-%d", p.made)
		j := p.killIn(t, http.MethodPost, "volume_snapshots", map[string]any{"resources": volumeIDs(vols), "snapshot_name": name})
		p.record(t, name, false, vols, orderedIDs(t, p.world, vols, j), contents(vols))
	})
}

// killInApply kills the server while it rolls volumes back.
func (p *powerRun) killInApply(t *testing.T) {
	t.Helper()
	points := p.pointOfEach()
	p.step(t, "kill in apply", func() {
		p.killIn(t, http.MethodPost, "volume_snapshots/apply", map[string]any{"snapshots": pointIDs(points)})
		p.applied(points...)
	})
}

// killIn sends a call, kills the server a little later and starts it again.
func (p *powerRun) killIn(t *testing.T, method, path string, body any) harness.Job {
	t.Helper()
	j := p.api().Send(t, method, path, body).Begin(t)
	time.Sleep(time.Duration(p.r.IntN(40)) * time.Millisecond)
	p.srv.Kill(t)
	p.srv.Run(t)
	return p.api().OK(t, j)
}

// takeSyncs makes every sync of a running server do nothing and say that it
// went well, until the server ends.
func takeSyncs(t *testing.T, srv *harness.Server) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("skipped: no strace here (scripts/setup.sh test-long installs it)")
	}
	const syncs = "fsync,fdatasync,syncfs,sync,sync_file_range,msync"
	ctx, cancel := context.WithCancel(t.Context())
	out := filepath.Join(t.TempDir(), "strace.log")
	cmd := exec.CommandContext(ctx, "strace", "-f", "-qq", "-e", "trace="+syncs, "-e", "inject="+syncs+":retval=0", "-o", out, "-p", fmt.Sprint(srv.PID()))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it ended with the server or was ended now
	})
	// It holds all threads once it has written something of one of them.
	ok := harness.Poll(20*time.Second, func() bool {
		r := srv.API().Send(t, http.MethodPost, "volumes", map[string]any{"volume_name": "probe", "size_bytes": 4096})
		id := srv.API().OK(t, r.Begin(t)).ResourceIDs
		srv.API().DeleteVolumes(t, id...)
		st, err := os.Stat(out)
		return err == nil && st.Size() > 0
	})
	if !ok {
		t.Skip("skipped: strace cannot hold another process here")
	}
}

// syncPath makes a file or folder durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
