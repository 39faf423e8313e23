package service_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"cairn/internal/chain"
	"cairn/internal/compute/fake"
	"cairn/internal/job"
	"cairn/internal/service"
)

// crashCase is one operation that is killed at each of its calls in turn.
type crashCase struct {
	name    string
	reflink bool // instants are durable
	live    bool // managed volumes are live
	// machines run
	machines bool
	// foreign: a machine that somebody else made runs
	foreign bool
	// prepare brings the world into the state before the operation and
	// returns the ids that act and verify need.
	prepare func(p *process) []string
	act     func(p *process, ids []string) (job.Job, error)
	// verify looks at the state after all jobs have ended. done says that
	// the job succeeded; otherwise it failed or never was.
	verify func(p *process, ids []string, done bool)
}

func crashCases() []crashCase {
	var cases []crashCase
	for _, reflink := range []bool{false, true} {
		cases = append(cases,
			crashCase{name: "create a group", reflink: reflink, prepare: prepareGroup, act: actCreate, verify: verifyCreate},
			crashCase{name: "create and cancel", reflink: reflink, prepare: prepareGroup, act: actCancelled, verify: verifyCreate},
		)
	}
	for _, live := range []bool{false, true} {
		cases = append(cases,
			crashCase{name: "apply", live: live, prepare: prepareApply, act: func(p *process, ids []string) (job.Job, error) { return p.apply(ids[2], ids[3]) }, verify: verifyApply},
			crashCase{name: "clone", live: live, prepare: prepareChain, act: func(p *process, ids []string) (job.Job, error) { return p.clone(ids[2]) }, verify: verifyClone},
			crashCase{name: "delete volumes", live: live, prepare: prepareVolumes, act: func(p *process, ids []string) (job.Job, error) { return p.deleteVolumes(ids...) }},
		)
	}
	return append(cases,
		crashCase{name: "delete", prepare: prepareChain, act: func(p *process, ids []string) (job.Job, error) { return p.delete(ids[2]) }, verify: verifyDelete},
		crashCase{name: "create volumes", prepare: prepareChain, act: func(p *process, _ []string) (job.Job, error) {
			return p.CreateVolumes(context.Background(), service.CreateVolumes{Origin: origin, Name: "new", SizeBytes: 5, Count: 3})
		}},
		crashCase{name: "resize", prepare: prepareVolumes, act: func(p *process, ids []string) (job.Job, error) { return p.resize(300, ids[:2]...) }, verify: verifyResize},
		crashCase{name: "import", prepare: prepareChain, act: func(p *process, _ []string) (job.Job, error) { return p.imported("0123456789", 10) }},
		crashCase{name: "undelete", prepare: prepareDeleted, act: func(p *process, ids []string) (job.Job, error) {
			return p.Undelete(context.Background(), service.SnapshotSet{Origin: origin, IDs: ids[3:4]})
		}, verify: verifyUndelete},
		crashCase{name: "prune", prepare: prepareDeleted, act: func(p *process, _ []string) (job.Job, error) {
			return p.Prune(context.Background(), origin, service.PruneOptions{})
		}, verify: func(p *process, ids []string, _ bool) { p.wantInBin(ids[2:4]) }},
		crashCase{name: "prune and empty the bin", prepare: prepareDeleted, act: func(p *process, _ []string) (job.Job, error) {
			return p.Prune(context.Background(), origin, service.PruneOptions{EmptyBin: true})
		}, verify: verifyEmptied},
		crashCase{name: "scrub and repair", prepare: prepareChain, act: func(p *process, _ []string) (job.Job, error) {
			return p.Scrub(context.Background(), origin, service.ScrubOptions{Repair: true})
		}},
		crashCase{name: "scrub a part", prepare: prepareChain, act: func(p *process, _ []string) (job.Job, error) {
			return p.Scrub(context.Background(), origin, service.ScrubOptions{Budget: 1 << 20})
		}},
		crashCase{name: "scrub", prepare: prepareChain, act: func(p *process, _ []string) (job.Job, error) {
			return p.Scrub(context.Background(), origin, service.ScrubOptions{})
		}},
	)
}

// prepareGroup gives three volumes, one of each driver, of which
// the first has a point.
func prepareGroup(p *process) []string {
	v := p.volumes(1)[0]
	p.point(v)
	p.write(v, "second on "+v)
	return []string{v, p.register("/srv/disk.raw").ID, p.register("nbd://host/export").ID}
}

func actCreate(p *process, ids []string) (job.Job, error) { return p.create(false, ids...) }

// actCancelled asks to cancel in the middle of the second capture.
func actCancelled(p *process, ids []string) (job.Job, error) {
	began, goOn := make(chan struct{}), make(chan struct{})
	n := 0
	p.mover.during = func() {
		if n++; n == 2 {
			close(began)
			<-goOn
		}
	}
	j, err := p.create(false, ids...)
	if err != nil {
		return j, err
	}
	p.until("the capture, the end or the death", func() bool {
		select {
		case <-began:
			return true
		default:
			return p.f.isDead()
		}
	})
	_, err = p.CancelJob(context.Background(), j.ID)
	close(goOn)
	return j, err
}

func verifyCreate(p *process, ids []string, done bool) {
	a := p.all()
	var times []string
	for _, s := range a.points {
		if s.ResourceID == ids[0] && strings.HasPrefix(s.Name, "point") && s.Full {
			continue // prepared
		}
		if done != (s.Status == chain.Available) {
			p.t.Errorf("the job succeeded: %v, but %s is %s", done, s.ID, s.Status)
		}
		if done {
			times = append(times, s.SnapshotTime.String())
			if got := p.pointContent(s.ID); !strings.HasPrefix(got, "second on") && !strings.HasPrefix(got, "first in") {
				p.t.Errorf("%s holds %q", s.ID, got)
			}
		}
	}
	if done && (len(times) != 3 || times[0] != times[1] || times[1] != times[2]) {
		p.t.Errorf("the points of one call show %v", times)
	}
	if s := p.snapshot(p.head(ids[0])); s.Full == done {
		p.t.Errorf("the head is %s, a full: %v; the job succeeded: %v", s.ID, s.Full, done)
	}
}

// prepareChain gives a volume and its three points, each on the one before.
func prepareChain(p *process) []string {
	v := p.volumes(1)[0]
	ids := []string{v}
	for i := range 3 {
		p.write(v, fmt.Sprintf("state %d", i+1))
		ids = append(ids, p.point(v))
	}
	return ids
}

func verifyDelete(p *process, ids []string, done bool) {
	want := ids[3]
	if done {
		want = ids[1]
	}
	if got := p.head(ids[0]); got != want {
		p.t.Errorf("the delete succeeded: %v, the head is %s of %v", done, got, ids)
	}
}

// prepareApply gives two volumes and a point of each that differs from them.
func prepareApply(p *process) []string {
	v := p.volumes(2)
	ids := append(v, p.point(v[0]), p.point(v[1]))
	for _, id := range v {
		p.write(id, "later")
		p.point(id)
		p.write(id, "live")
	}
	return ids
}

func verifyApply(p *process, ids []string, done bool) {
	for i, v := range ids[:2] {
		// A crash never fails an apply that has begun: it goes on.
		content, head := p.content(v), p.head(v)
		if done != (content == "first on "+v) || done != (head == ids[2+i]) {
			p.t.Errorf("the apply succeeded: %v, %s holds %q and its head is %s", done, v, content, head)
		}
		if p.volume(v).MixedJob != "" {
			p.t.Errorf("%s is marked as a mixture", v)
		}
	}
}

func verifyClone(p *process, _ []string, done bool) {
	a := p.all()
	i := slices.IndexFunc(a.volumes, func(v service.Volume) bool { return v.Name == "clone" && v.Status == service.VolumeAvailable })
	if done != (i >= 0) {
		p.t.Fatalf("the clone succeeded: %v, but there is one: %v", done, i >= 0)
	}
	if done && p.content(a.volumes[i].ID) != "state 2" {
		p.t.Errorf("the clone holds %q", p.content(a.volumes[i].ID))
	}
}

// prepareVolumes gives two managed volumes with points and a registered one.
func prepareVolumes(p *process) []string {
	v := p.volumes(2)
	p.point(v[0])
	p.point(v[1])
	return append(v, p.register("/srv/disk.raw").ID)
}

func verifyResize(p *process, ids []string, done bool) {
	for _, id := range ids[:2] {
		if got := p.volume(id).SizeBytes; done != (got == 300) {
			p.t.Errorf("the resize succeeded: %v, %s has %d bytes", done, id, got)
		}
	}
}

// TestCrashes kills the process at every call of every operation, before and
// after the call takes effect, and starts another on what is left.
func TestCrashes(t *testing.T) {
	var total atomic.Int64
	t.Cleanup(func() { t.Logf("%d runs", total.Load()) })
	for _, c := range slices.Concat(crashCases(), machineCases(), foreignCases()) {
		name := c.name
		if c.reflink {
			name += " by reflink"
		}
		if c.live {
			name += " of live volumes"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := newWorld(t)
			base.disk.reflink, base.live = c.reflink, c.live
			if c.machines {
				base.withMachines(&fake.Host{})
			}
			if c.foreign {
				foreignWorld(t, base)
			}
			p := base.start(nil)
			ids := c.prepare(p)
			p.idle()
			p.check()
			before := p.all().jobs
			p.stop()
			const most = 300 // calls; more means that it never ends
			for n := 1; n <= most; n++ {
				alive := 0
				for _, after := range []bool{false, true} {
					w := base.copyOf(t)
					if !crash(w, c, ids, before, &fuse{at: n, after: after}) {
						alive++
					}
					total.Add(1)
					if t.Failed() {
						t.Fatalf("killed at call %d, after it took effect: %v", n, after)
					}
				}
				if alive == 2 {
					t.Logf("%d calls", n-1)
					return
				}
			}
			t.Fatalf("the operation still makes calls after %d", most)
		})
	}
}

// crash runs one operation on a process that dies, and then another process.
// before are the jobs of the preparation. It reports whether the first one
// died.
func crash(w *world, c crashCase, ids []string, before map[string]job.Job, f *fuse) bool {
	p := w.start(f)
	j, err := c.act(p, ids)
	if err == nil {
		p.until("the end or the death", func() bool {
			if f.isDead() {
				return true
			}
			j, err := p.Job(context.Background(), j.ID)
			return err == nil && j.Status.Ended() && p.released()
		})
	} else if !errors.Is(err, errDead) {
		w.t.Fatal(err)
	}
	p.stop()
	p = w.start(nil)
	defer p.stop()
	p.idle()
	p.check()
	done := false
	for id, j := range p.all().jobs {
		if _, old := before[id]; !old {
			done = j.Status == job.Successful
		}
	}
	if c.verify != nil {
		c.verify(p, ids, done)
	}
	return f.isDead()
}
