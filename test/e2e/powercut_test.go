package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"cairn/test/e2e/harness"
	"cairn/test/e2e/powercut"
)

// powerDisk is the size of the disk that loses its power.
const powerDisk = 512 << 20

// TestPowerCut runs a server through everything that it can be asked for, on
// an ext4 whose disk logs what reaches it, and then cuts the power at many
// moments of that run. After each cut the server must start and end all jobs;
// what was answered before is there, what was asked for and not answered is
// there wholly or not at all, and nothing else is; all is as the model was at
// that moment, to the last byte; and it goes on from there.
func TestPowerCut(t *testing.T) {
	if !harness.Long() {
		t.Skip("skipped: only with CAIRN_LONG=1")
	}
	t.Parallel()
	p := newPowerRun(t)
	begin := time.Now()
	p.live(t, powerScript())
	history, err := p.disk.Finish()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d steps in %v: %d log entries, %d flushes", len(p.steps), time.Since(begin), history.Entries(), history.Flushes())
	begin = time.Now()
	cuts := p.cuts(history)
	for n, c := range cuts {
		if err := p.cut(history, n, c); err != nil {
			p.report(t, history, c, err)
			if p.seen["failed"]++; p.seen["failed"] == 3 {
				break
			}
		}
	}
	t.Logf("%d cuts in %v: %v", len(cuts), time.Since(begin), p.seen)
	for _, must := range []string{"torn at 512", "torn at 4096", "at a flush", "job resumed", "index lost", "database lost"} {
		if p.seen[must] == 0 {
			t.Errorf("of no cut it could be said: %s", must)
		}
	}
	if p.relocated == 0 {
		t.Error("the run moved no records to other packs")
	}
}

// TestPowerCutCatches takes the syncs away from a server: the cuts must find
// that what it answered is gone, or they would prove nothing of one that syncs.
func TestPowerCutCatches(t *testing.T) {
	if !harness.Long() {
		t.Skip("skipped: only with CAIRN_LONG=1")
	}
	t.Parallel()
	p := newPowerRun(t)
	p.lie = true
	p.live(t, []string{"register", "full", "edit", "point", "rename"})
	history, err := p.disk.Finish()
	if err != nil {
		t.Fatal(err)
	}
	cuts, caught := p.cuts(history), 0
	for n, c := range cuts {
		if err := p.cut(history, n, c); err != nil {
			if caught++; caught == 1 {
				t.Logf("caught: %v: %v", c, err)
			}
		}
	}
	t.Logf("%d log entries, %d flushes: %d of %d cuts caught it", history.Entries(), history.Flushes(), caught, len(cuts))
	if caught == 0 {
		t.Error("a server that syncs nothing survived every cut")
	}
}

// powerStep is one thing that was asked for.
type powerStep struct {
	what  string
	asked powercut.Position // nothing of it happened before
	// accepted is when a job was answered, which has to end from then on; 0 of
	// what has no job. done is when it was known to be over.
	accepted, done powercut.Position
	job            string
	finished       string // when the job says that it was
	writing        string // the volume that its owner was writing
	after          moment
}

// moment is what the model and the API said after a step.
type moment struct {
	vols   []*modelVolume
	points []*modelPoint
	rows   rows
}

// powerRun is one run of a server on a disk, and the cuts of it.
type powerRun struct {
	*world
	r     *rand.Rand
	disk  *powercut.Disk
	steps []powerStep
	lie   bool           // take the syncs away once the server runs
	seen  map[string]int // for the report

	relocated int // relocation blobs at the end
}

func newPowerRun(t *testing.T) *powerRun {
	seed := harness.Seed(t)
	p := &powerRun{r: harness.Rand(seed), disk: powercut.New(t, powerDisk), seen: map[string]int{}}
	srv := harness.NewServer(t, builder.Path(t), filepath.Join(p.disk.Mount, "data"), filepath.Join(t.TempDir(), "server.log"),
		"--reserve", "8", "--low-space", "0", "--scrub-every", "0")
	p.world = &world{srv: srv, dir: filepath.Join(p.disk.Mount, "files")}
	if err := errors.Join(os.Mkdir(p.dir, 0o700), syncPath(p.disk.Mount)); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *powerRun) now(t harness.TB) powercut.Position {
	t.Helper()
	at, err := p.disk.Now()
	if err != nil {
		t.Fatalf("%v", err)
	}
	return at
}

// step does one thing and records when it was answered and what it left.
func (p *powerRun) step(t *testing.T, what string, do func()) *powerStep {
	t.Helper()
	s := powerStep{what: what, asked: p.now(t)}
	answered := func(r harness.Response) {
		var j harness.Job
		if r.Status != http.StatusOK || json.Unmarshal(r.Body, &j) != nil || j.ID == "" {
			return // an answer of another kind
		}
		if s.job == "" {
			s.job, s.accepted = j.ID, p.now(t)
		}
		if s.job == j.ID && j.Status == "successful" && s.done == 0 {
			s.done, s.finished = p.now(t), j.FinishedTime
		}
	}
	p.api().Answered = answered
	do()
	p.api().Answered = nil
	if s.done == 0 {
		s.done = p.now(t)
	}
	s.after = moment{rows: p.allRows(t)}
	s.after.vols, s.after.points = copyModel(p.vols, p.points)
	p.steps = append(p.steps, s)
	return &p.steps[len(p.steps)-1]
}

func copyModel(vols []*modelVolume, points []*modelPoint) ([]*modelVolume, []*modelPoint) {
	vs, ps := make([]*modelVolume, len(vols)), make([]*modelPoint, len(points))
	for i, v := range vols {
		c := *v
		c.content = v.content.Clone()
		vs[i] = &c
	}
	for i, q := range points {
		c := *q // a point's content never changes
		ps[i] = &c
	}
	return vs, ps
}

// cuts are where the power goes: for each step, cuts between when it was asked
// for and done, at flushes and behind them, in the order of the log.
func (p *powerRun) cuts(h *powercut.History) []powercut.Cut {
	var cuts []powercut.Cut
	for _, s := range p.steps {
		first, last := h.FlushesBefore(s.asked), h.FlushesBefore(s.done)
		cuts = append(cuts, powercut.Cut{Flushes: last}, powercut.Cut{Flushes: first + p.r.IntN(last-first+1)})
		for range 2 {
			cuts = append(cuts, h.Random(p.r, first+p.r.IntN(last-first+1)))
		}
	}
	cuts = append(cuts, powercut.Cut{Flushes: h.Flushes()})
	slices.SortStableFunc(cuts, func(a, b powercut.Cut) int { return a.Flushes - b.Flushes })
	return slices.CompactFunc(cuts, func(a, b powercut.Cut) bool {
		return a.Flushes == b.Flushes && a.Later == 0 && b.Later == 0
	})
}

// cut shows the disk after a cut and says what is wrong with it.
func (p *powerRun) cut(h *powercut.History, n int, c powercut.Cut) (err error) {
	p.count(c)
	if err := h.Show(c); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, attempt(p.srv.Kill), h.Hide()) }()
	return attempt(func(t harness.TB) {
		switch n % 5 {
		case 1:
			p.loseIndex(t)
		case 3:
			p.survivesWithoutDatabase(t, h, c)
			return
		}
		p.survives(t, h, c)
	})
}

func (p *powerRun) count(c powercut.Cut) {
	switch {
	case c.Later == 0:
		p.seen["at a flush"]++
	case c.Torn == 0:
		p.seen["some writes lost"]++
	default:
		p.seen[fmt.Sprintf("torn at %d", c.Torn)]++
	}
}

// report keeps what a failure needs.
func (p *powerRun) report(t *testing.T, h *powercut.History, c powercut.Cut, err error) {
	t.Helper()
	done, next := p.place(h, c)
	during := "no step"
	if next != nil {
		during = next.what
	}
	t.Errorf("%v, %d steps done, during %s: %v", c, done, during, err)
	if p.seen["failed"] > 0 {
		return
	}
	image := filepath.Join(os.TempDir(), "cairn-powercut-failed.img")
	if err := h.Keep(c, image); err != nil {
		t.Logf("the disk could not be kept: %v", err)
		return
	}
	t.Logf("the disk after this cut is kept in %s; it belongs to %s", image, p.disk.Mount)
}
