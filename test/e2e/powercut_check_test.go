package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cairn/test/e2e/harness"
	"cairn/test/e2e/powercut"
)

// place says how many steps must be there after a cut, and which one may be,
// wholly or not at all; nil if none.
func (p *powerRun) place(h *powercut.History, c powercut.Cut) (done int, next *powerStep) {
	for done < len(p.steps) && h.FlushesBefore(p.steps[done].done) <= c.Flushes {
		done++
	}
	if done < len(p.steps) && p.steps[done].asked < h.Reached(c) {
		next = &p.steps[done]
	}
	return done, next
}

// before is what a cut after some steps must leave.
func (p *powerRun) before(done int) moment {
	if done == 0 {
		return moment{}
	}
	return p.steps[done-1].after
}

// survives starts the server after a cut and checks everything.
func (p *powerRun) survives(t harness.TB, h *powercut.History, c powercut.Cut) {
	done, next := p.place(h, c)
	p.start(t)
	p.api().WaitAll(t)
	a := aftermath{before: p.before(done), next: next}
	a.there = a.before
	p.noneFailed(t, a)
	if next != nil && next.job != "" {
		p.lookForJob(t, &a, h.FlushesBefore(next.accepted) <= c.Flushes)
	} else {
		p.either(t, &a)
	}
	w := p.worldAt(a.there)
	if a.resumed {
		p.seen["job resumed"]++
		w.takeResumed(t, a.before.points)
		w.checkRows(t)
	} else {
		sameRows(t, "after the cut", p.rowsOf(t, a), a.there.rows)
	}
	p.goesOn(t, w, a)
}

// start runs the server, which must be one that changes things: the jobs of a
// restricted one never end.
func (p *powerRun) start(t harness.TB) {
	t.Helper()
	p.srv.Run(t)
	var health struct{ Status, Reason string }
	p.api().Get(t, "/healthz").Into(t, &health)
	if health.Status != "ok" {
		t.Fatalf("the server is %s: %s", health.Status, health.Reason)
	}
}

// survivesWithoutDatabase loses the database, too. Jobs go with it, so that
// one that was accepted need not have happened.
func (p *powerRun) survivesWithoutDatabase(t harness.TB, h *powercut.History, c powercut.Cut) {
	done, next := p.place(h, c)
	if len(p.before(done).vols) == 0 {
		return // nothing was ever noted that recover could find
	}
	p.seen["database lost"]++
	for _, path := range databaseFiles(t, p.srv.Dir) {
		if err := os.Remove(path); err != nil {
			t.Fatalf("%v", err)
		}
	}
	mustRecover(t, p.srv)
	p.start(t)
	p.api().WaitAll(t)
	a := aftermath{before: p.before(done), next: next}
	p.either(t, &a)
	w := p.worldAt(a.there)
	if next != nil && next.what == "forget" {
		for i, v := range w.vols {
			_, err := os.Stat(filepath.Join(p.srv.Dir, "volumes", v.id+".raw"))
			if next.after.vols[i].gone && !v.gone && errors.Is(err, fs.ErrNotExist) {
				a.forgotten = v.id
			}
		}
	}
	p.goesOn(t, w, a)
}

// aftermath is what a cut may leave, and what it left.
type aftermath struct {
	before  moment
	next    *powerStep // may have happened, wholly or not at all; nil: none
	there   moment     // one of the two
	resumed bool       // the job of next went on after the cut
	mixed   []string   // volumes that an apply left half written, and blocked
	// forgotten is a volume whose file is gone, while the job that deleted it
	// went with the database.
	forgotten string
}

// rowsOf is what the API shows, without volumes that have ceased because the
// step that was to make them could not go on: an import's stream is gone.
func (p *powerRun) rowsOf(t harness.TB, a aftermath) rows {
	t.Helper()
	got := p.allRows(t)
	got.volumes = slices.DeleteFunc(got.volumes, func(v harness.Volume) bool {
		is := func(m *modelVolume) bool { return m.id == v.ID }
		return v.Status == "ceased" && a.next != nil &&
			!slices.ContainsFunc(a.there.vols, is) && slices.ContainsFunc(a.next.after.vols, is)
	})
	return got
}

// lookForJob finds out whether the next step's job was there to go on, which
// it must have been once it was accepted; it has then done what it was to do.
func (p *powerRun) lookForJob(t harness.TB, a *aftermath, accepted bool) {
	t.Helper()
	r := p.api().Get(t, "job/"+a.next.job)
	if r.Status == http.StatusNotFound && !accepted {
		return
	}
	var j harness.Job
	r.Into(t, &j) // also fails when an accepted job is gone
	if a.next.what == "import" && !accepted && j.Status == "failed" {
		p.seen["import cut off"]++
		return
	}
	if j.Status != "successful" {
		t.Fatalf("job %s %s is %s: %s", j.ID, j.Action, j.Status, j.Info)
	}
	a.there, a.resumed = a.next.after, j.FinishedTime != a.next.finished
}

// either finds out which of the two moments the rows show.
func (p *powerRun) either(t harness.TB, a *aftermath) {
	t.Helper()
	a.there = a.before
	got := p.rowsOf(t, *a)
	for i, v := range got.volumes {
		if a.next != nil && a.next.job != "" && v.MixedJob == a.next.job {
			a.mixed = append(a.mixed, v.ID)
			got.volumes[i].MixedJob = ""
		}
	}
	wrong := attempt(func(t harness.TB) { sameRows(t, "as before the step", got, a.before.rows) })
	if wrong != nil && a.next != nil && len(a.mixed) == 0 {
		a.there = a.next.after
		got = p.rowsOf(t, *a)
		if notAfter := attempt(func(t harness.TB) { sameRows(t, "as after the step", got, a.there.rows) }); notAfter != nil {
			wrong = errors.Join(wrong, notAfter)
		} else {
			wrong = nil
		}
	}
	if wrong != nil {
		t.Fatalf("%v", wrong)
	}
}

// noneFailed looks at the jobs: a cut is no reason to fail, except for an
// import, whose stream is gone.
func (p *powerRun) noneFailed(t harness.TB, a aftermath) {
	t.Helper()
	var page struct {
		Jobs []harness.Job `json:"jobs"`
	}
	p.api().Get(t, "jobs?status=failed&limit=5").Into(t, &page)
	for _, j := range page.Jobs {
		if a.next == nil || a.next.what != "import" || j.ID != a.next.job {
			t.Fatalf("job %s %s failed: %s", j.ID, j.Action, j.Info)
		}
	}
}

// worldAt is a copy of the model that may be led on.
func (p *powerRun) worldAt(m moment) *world {
	w := &world{srv: p.srv, dir: p.dir, made: 1000}
	w.vols, w.points = copyModel(m.vols, m.points)
	return w
}

// takeResumed takes into the model what a job that ran again after the cut
// may have done otherwise: another instant, and other chunks to share.
func (w *world) takeResumed(t harness.TB, before []*modelPoint) {
	t.Helper()
	for _, q := range w.points {
		if slices.ContainsFunc(before, func(b *modelPoint) bool { return b.id == q.id }) {
			continue
		}
		row := w.api().MustSnapshot(t, q.id)
		q.sizeBytes, q.snapTime = row.SizeBytes, row.SnapshotTime
	}
}

// goesOn reads everything, scrubs, and leads the server on: a point, a prune
// that empties the bin, and all of it again.
func (p *powerRun) goesOn(t harness.TB, w *world, a aftermath) {
	if a.next != nil && a.next.writing != "" {
		w.vol(a.next.writing).torn(t)
	}
	for _, id := range a.mixed {
		p.seen["mixture blocked"]++
		if got, status := w.api().Export(t, "volumes", id); status != http.StatusConflict {
			t.Fatalf("%s is half rolled back, but is given out: %d, %d bytes", id, status, len(got))
		}
		w.apply(t, anyOf(p.r, w.livePoints(id), nil))
	}
	if a.forgotten != "" {
		p.seen["volume without its file"]++
		w.forget(t, w.vol(a.forgotten))
	}
	w.checkContent(t)
	cli := console{bin: p.srv.Bin, dir: os.TempDir(), server: p.srv.BaseURL()}
	cli.ok(t, "scrub")
	if len(w.liveVols()) == 0 {
		w.importVolume(t, filled(p.r, mib))
	}
	vols := w.liveVols()
	v := vols[p.r.IntN(len(vols))]
	if v.path != "" {
		v.edit(t, harness.RandomEdit(p.r, v.content.Size()))
	}
	w.create(t, false, v)
	w.prune(t, true)
	w.checkRows(t)
	w.api().WantContent(t, "volume_snapshots", v.head, v.content)
	if p.r.IntN(4) == 0 {
		cli.ok(t, "scrub")
		w.checkContent(t)
	}
}

// torn takes what a volume holds whose owner was writing when the power went:
// any of his bytes may be there.
func (v *modelVolume) torn(t harness.TB) {
	t.Helper()
	b, err := os.ReadFile(v.path)
	if err != nil || int64(len(b)) != v.content.Size() {
		t.Fatalf("%s after the cut: %d bytes, %v", v.name, len(b), err)
	}
	v.content.Write(b, 0)
}

// loseIndex deletes the accelerator.
func (p *powerRun) loseIndex(t harness.TB) {
	t.Helper()
	p.seen["index lost"]++
	if err := os.RemoveAll(filepath.Join(p.srv.Dir, "index")); err != nil {
		t.Fatalf("%v", err)
	}
}

// trial is a test that ends alone: a check that fails says so to attempt.
type trial struct{ said []string }

func (*trial) Helper()             {}
func (*trial) Logf(string, ...any) {}
func (a *trial) Errorf(format string, args ...any) {
	a.said = append(a.said, fmt.Sprintf(format, args...))
}
func (a *trial) Fatalf(format string, args ...any) {
	a.Errorf(format, args...)
	panic(a)
}

// attempt runs checks and returns what they said.
func attempt(check func(t harness.TB)) (err error) {
	a := &trial{}
	defer func() {
		if r := recover(); r != nil && r != any(a) {
			panic(r)
		}
		if len(a.said) > 0 {
			err = errors.New(strings.Join(a.said, "\n"))
		}
	}()
	check(a)
	return nil
}
