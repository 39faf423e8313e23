package service_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

func set(ids ...string) service.SnapshotSet { return service.SnapshotSet{Origin: origin, IDs: ids} }

func TestDeleteTakesDescendantsAndMovesTheHead(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ids := prepareChain(p)
		v, points := ids[0], ids[1:]
		p.good(p.apply(points[0]))
		branch := p.point(v) // hangs from the full
		if s := p.snapshot(branch); s.ParentID != points[0] {
			t.Fatalf("after an apply the next point hangs from %s", s.ParentID)
		}
		plan, err := p.PlanDeleteSnapshots(context.Background(), set(points[1]))
		if err != nil || !slices.Equal(plan.IDs, []string{points[2], points[1]}) || plan.FreedBytes != 2002 {
			t.Errorf("the dry run: %+v, %v", plan, err)
		}
		if s := p.snapshot(points[1]); s.Status != chain.Available || s.Transition != "" {
			t.Errorf("the dry run changed %+v", s)
		}
		j := p.good(p.delete(points[1]))
		if !slices.Equal(j.ResourceIDs, plan.IDs) {
			t.Errorf("the delete took %v", j.ResourceIDs)
		}
		if got := p.head(v); got != branch {
			t.Errorf("the head is %s", got)
		}
		p.good(p.delete(branch))
		if got := p.head(v); got != points[0] {
			t.Errorf("the head is %s after its child went", got)
		}
		if full := p.snapshot(points[0]); full.TotalCount != 1 || !full.HeadChain {
			t.Errorf("the full: %+v", full)
		}
		p.good(p.delete(points[0]))
		if got := p.head(v); got != "" {
			t.Errorf("the head is %s of nothing", got)
		}
		_, err = p.delete(points[0])
		refused(t, errs.Conflict, "is deleted", err)
		if s := p.snapshot(p.point(v)); !s.Full {
			t.Error("a point without a chain is a full")
		}
	})
}

func TestApply(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ids := prepareApply(p)
		p.good(p.resize(2*volumeSize, ids[0])) // a smaller point fits
		p.good(p.apply(ids[2], ids[3], ids[2]))
		for i, v := range ids[:2] {
			if p.content(v) != "first on "+v || p.head(v) != ids[2+i] {
				t.Errorf("%s holds %q, its head is %s", v, p.content(v), p.head(v))
			}
		}
		p.good(p.resize(3*volumeSize, ids[0]))
		big := p.point(ids[0])
		p.w.disk.put(ids[0], "cut", volumeSize)
		j, err := p.apply(big)
		p.bad("resize the volume first", j, err)
		if p.content(ids[0]) != "cut" {
			t.Error("a refused apply wrote")
		}
		p.w.disk.put(ids[0], "cut", 3*volumeSize)
	})
}

func TestAnApplyThatFailsMidwayBlocksTheVolume(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ids := prepareApply(p)
		v, later := ids[0], p.head(ids[0])
		p.f.fail("RestoreEnd", errs.New(errs.Corrupt, "a chunk of %s is damaged", ids[2]))
		j, err := p.apply(ids[2])
		j = p.bad("volume "+v+" now holds a mixture", j, err)
		if !strings.HasPrefix(j.Info, "a chunk of") || p.head(v) != later || p.volume(v).MixedJob != j.ID {
			t.Errorf("info %q, head %s, marked by %q", j.Info, p.head(v), p.volume(v).MixedJob)
		}
		ctx := context.Background()
		_, err = p.create(false, v)
		refused(t, errs.Conflict, "mixture", err)
		_, err = p.resize(500, v)
		refused(t, errs.Conflict, "mixture", err)
		_, err = p.ExportVolume(ctx, zone, v)
		refused(t, errs.Conflict, "apply a snapshot to it again", err)
		p.f.fail("RestoreEnd", nil)
		p.good(p.apply(ids[2]))
		if p.volume(v).MixedJob != "" || p.content(v) != "first on "+v {
			t.Errorf("after another apply: %+v, %q", p.volume(v), p.content(v))
		}
		p.point(v)

		p.f.fail("RestoreEnd", errs.New(errs.Corrupt, "damaged again"))
		j, err = p.apply(ids[3])
		p.bad("mixture", j, err)
		p.good(p.deleteVolumes(ids[1])) // the other way out
	})
}

func TestApplyWaitsForErrorsThatMayPass(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ids := prepareApply(p)
		p.f.fail("RestoreEnd", errs.New(errs.Unavailable, "the repository does not answer"))
		n := 0
		p.mover.during = func() {
			if n++; n == 2 {
				p.f.fail("RestoreEnd", nil)
			}
		}
		p.good(p.apply(ids[2]))
		p.mover.during = nil
		p.f.fail("RestoreEnd", errs.New(errs.Unavailable, "the repository does not answer"))
		j, err := p.apply(ids[2])
		p.bad("mixture", j, err)
		p.f.fail("RestoreEnd", nil)
		p.w.disk.busy[ids[1]] = true
		j, err = p.apply(ids[2], ids[3]) // nothing is written before all are open
		p.bad("please try later", j, err)
		if got := p.volume(ids[1]); got.MixedJob != "" || p.content(ids[1]) != "live" {
			t.Errorf("%+v holds %q", got, p.content(ids[1]))
		}
		if p.volume(ids[0]).MixedJob == "" {
			t.Error("an older mark was cleared")
		}
		delete(p.w.disk.busy, ids[1])
		p.good(p.apply(ids[2], ids[3]))
	})
}

func TestAnApplyThatHasBegunCannotBeCancelled(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ids := prepareApply(p)
		reached, goOn := make(chan struct{}), make(chan struct{})
		p.mover.during = func() { close(reached); <-goOn }
		j, err := p.apply(ids[2])
		if err != nil {
			t.Fatal(err)
		}
		<-reached
		if got := p.volume(ids[0]); got.Transition != "applying" || got.MixedJob != j.ID {
			t.Errorf("meanwhile: %+v", got)
		}
		_, err = p.CancelJob(context.Background(), j.ID)
		refused(t, errs.Conflict, "can no longer be cancelled", err)
		_, err = p.delete(ids[2])
		refused(t, errs.Busy, "needed by job "+j.ID, err)
		_, err = p.create(false, ids[0])
		refused(t, errs.Busy, "applying", err)
		_, err = p.deleteVolumes(ids[0])
		refused(t, errs.Busy, "applying", err)
		_, err = p.apply(ids[2])
		refused(t, errs.Busy, "applying", err)
		close(goOn)
		p.good(j, nil)
		p.mover.during = nil
	})
}

func TestAPointInAnotherWayIsBusy(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ids := prepareChain(p)
		v, head := ids[0], ids[3]
		reached, goOn := make(chan struct{}), make(chan struct{})
		p.mover.during = func() { close(reached); <-goOn }
		j, err := p.create(false, v)
		if err != nil {
			t.Fatal(err)
		}
		<-reached
		_, err = p.delete(head)
		refused(t, errs.Busy, "", err) // as parent, and because its child is being created
		_, err = p.PlanDeleteSnapshots(context.Background(), set(ids[1]))
		refused(t, errs.Busy, "", err)
		_, err = p.apply(j.ResourceIDs[0])
		refused(t, errs.Busy, "creating", err)
		_, err = p.clone(j.ResourceIDs[0])
		refused(t, errs.Busy, "creating", err)
		_, err = p.create(false, v)
		refused(t, errs.Busy, "creating a snapshot (job "+j.ID, err)
		_, err = p.resize(500, v)
		refused(t, errs.Busy, v, err)
		name := "new"
		_, err = p.RenameSnapshot(context.Background(), service.Rename{Origin: origin, IDs: j.ResourceIDs, Name: &name})
		refused(t, errs.Busy, "creating", err)
		p.mover.during = nil
		close(goOn)
		p.good(j, nil)
	})
}

func TestClone(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		r := p.register("/srv/disk.raw")
		id := p.point(r.ID)
		j := p.good(p.clone(id))
		v := p.volume(j.ResourceIDs[0])
		if v.Driver != service.DriverManaged || v.SizeBytes != volumeSize || v.Status != service.VolumeAvailable || p.content(v.ID) != "first in /srv/disk.raw" {
			t.Errorf("the clone: %+v holds %q", v, p.content(v.ID))
		}
		p.f.fail("RestoreEnd", errs.New(errs.Corrupt, "a chunk is damaged"))
		j, err := p.clone(id)
		j = p.bad("a chunk is damaged", j, err)
		p.f.fail("RestoreEnd", nil)
		if got := p.volume(j.ResourceIDs[0]); got.Status != service.VolumeCeased {
			t.Errorf("the failed clone: %+v", got)
		}
		p.good(p.deleteVolumes(r.ID))
		if _, ok := p.w.disk.get("/srv/disk.raw"); !ok {
			t.Error("deleting a registered volume removed its file")
		}
		p.good(p.clone(id)) // points survive their volume
		_, err = p.apply(id)
		refused(t, errs.Conflict, "volume "+r.ID+", of which "+id+" was taken, is gone", err)
	})
}

func TestScrubMarksAndClears(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ids := prepareChain(p)
		ctx := context.Background()
		j := p.good(p.Scrub(ctx, origin, service.ScrubOptions{}))
		if !strings.Contains(j.Extra, `"points":3`) || !strings.Contains(j.Extra, `"damage":[]`) {
			t.Errorf("the report: %s", j.Extra)
		}
		p.mover.damaged[ids[2]] = true
		j, err := p.Scrub(ctx, origin, service.ScrubOptions{})
		j = p.bad("found 1 damaged", j, err)
		if j.ErrorCode != 5000 || !strings.Contains(j.Extra, ids[2]) || !p.snapshot(ids[2]).Damaged || p.snapshot(ids[3]).Damaged {
			t.Errorf("code %d, report %s", j.ErrorCode, j.Extra)
		}
		_, err = p.apply(ids[2])
		refused(t, errs.Conflict, "is damaged", err)
		_, err = p.clone(ids[2])
		refused(t, errs.Conflict, "is damaged", err)
		delete(p.mover.damaged, ids[2])
		p.good(p.Scrub(ctx, origin, service.ScrubOptions{}))
		if p.snapshot(ids[2]).Damaged {
			t.Error("a whole point is still marked")
		}
	})
}

func TestOneScrubAtATime(t *testing.T) {
	w := newWorld(t)
	p := w.prepare(nil) // nothing is carried out yet
	j, err := p.Scrub(context.Background(), origin, service.ScrubOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Scrub(context.Background(), origin, service.ScrubOptions{})
	refused(t, errs.Busy, "the repository is being scrubbed", err)
	jobs, err := p.UnfinishedJobs(context.Background(), zone)
	if err != nil || len(jobs) != 1 || jobs[0].Status != job.Pending {
		t.Errorf("unfinished: %+v, %v", jobs, err)
	}
	p.run()
	defer p.stop()
	p.good(j, nil)
	p.check()
}
