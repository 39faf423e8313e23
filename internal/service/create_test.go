package service_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

// in runs fn on a process of a new world, and checks the rows at its end.
func in(t *testing.T, fn func(t *testing.T, p *process)) {
	t.Helper()
	p := newWorld(t).start(nil)
	defer p.stop()
	fn(t, p)
	p.idle()
	p.check()
}

func TestChainOfPoints(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		v := p.volumes(1)[0]
		j := p.good(p.create(false, v, v))
		if len(j.ResourceIDs) != 1 {
			t.Fatalf("duplicates were not dropped: %v", j.ResourceIDs)
		}
		full := p.snapshot(j.ResourceIDs[0])
		if !full.Full || full.RootID != full.ID || full.ParentID != "" || !full.IsHead || !full.HeadChain {
			t.Errorf("the first point: %+v", full)
		}
		if !strings.Contains(j.Info, full.ID+" is a full, because "+v+" has no snapshot") {
			t.Errorf("the job says %q", j.Info)
		}
		p.write(v, "two")
		second := p.snapshot(p.point(v))
		if second.Full || second.ParentID != full.ID || second.RootID != full.ID || !second.IsHead || second.HeadChain {
			t.Errorf("the second point: %+v", second)
		}
		if full = p.snapshot(full.ID); full.IsHead || !full.HeadChain || full.TotalCount != 2 ||
			full.TotalBytes != full.SizeBytes+second.SizeBytes || !full.LatestTime.Equal(second.SnapshotTime) {
			t.Errorf("the full of two: %+v", full)
		}
		if second.GroupID == "" || second.JobID == "" || second.ResourceName != "volume" || second.Consistency != "crash" || second.CBT != "scan" {
			t.Errorf("what it says of itself: %+v", second)
		}
		j = p.good(p.create(true, v))
		if third := p.snapshot(j.ResourceIDs[0]); !third.Full || !third.HeadChain || j.Info != "" {
			t.Errorf("a full was asked for: %+v, %q", third, j.Info)
		}
		if full = p.snapshot(full.ID); full.HeadChain {
			t.Error("the old chain still has head_chain")
		}
	})
}

func TestAFullThatWasNotAskedForSaysWhy(t *testing.T) {
	tests := []struct {
		name string
		harm func(p *process, v, head string)
		why  string
	}{
		{"the volume grew outside", func(p *process, v, _ string) { p.w.disk.put(v, "grown", volumeSize+7) }, "size of"},
		{"the volume was resized", func(p *process, v, _ string) { p.good(p.resize(volumeSize*2, v)) }, "size of"},
		{"the parent's manifest is gone", func(p *process, _, head string) { p.mover.damaged[head] = true }, "cannot be read"},
		{"a node of the parent is damaged", func(p *process, _, head string) { p.mover.deep[head] = true }, "cannot be read"},
		{"the parent was found damaged", func(p *process, _, head string) {
			p.mover.damaged[head] = true
			j, err := p.Scrub(context.Background(), origin, service.ScrubOptions{})
			p.bad("1 damaged", j, err)
		}, "is damaged"},
		{"the chain is at its limit", func(p *process, v, _ string) { p.point(v); p.point(v) }, "limit of 3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.max = 3
			p := w.start(nil)
			defer p.stop()
			v := p.volumes(1)[0]
			tt.harm(p, v, p.point(v))
			before := p.content(v)
			j := p.good(p.create(false, v))
			s := p.snapshot(j.ResourceIDs[0])
			if !s.Full || s.RootID != s.ID || !strings.Contains(s.Reason, tt.why) || !strings.Contains(j.Info, tt.why) {
				t.Errorf("full %v, reason %q, info %q", s.Full, s.Reason, j.Info)
			}
			if s.VirtualSize != p.volume(v).SizeBytes || s.VirtualSize != p.w.disk.size[v] {
				t.Errorf("sizes: point %d, row %d, volume %d", s.VirtualSize, p.volume(v).SizeBytes, p.w.disk.size[v])
			}
			clear(p.mover.damaged)
			clear(p.mover.deep)
			if got := p.pointContent(s.ID); got != before {
				t.Errorf("it holds %q, the volume %q", got, before)
			}
			p.idle()
			p.check()
		})
	}
}

func TestAFailedCreateLeavesNothing(t *testing.T) {
	tests := []struct {
		name string
		harm func(p *process, v string)
		info string
	}{
		{"shrunken", func(p *process, v string) { p.w.disk.put(v, "cut", volumeSize-1) }, "shrank"},
		{"vanished", func(p *process, v string) {
			p.w.disk.mu.Lock()
			defer p.w.disk.mu.Unlock()
			delete(p.w.disk.content, v)
		}, "vanished"},
		{"open elsewhere", func(p *process, v string) { p.w.disk.busy[v] = true }, "please try later"},
		{"changed while it was read", func(p *process, v string) {
			p.mover.during = func() { p.write(v, "changed meanwhile") }
		}, "changed while"},
		{"the repository does not answer", func(p *process, _ string) {
			p.f.fail("Put", errs.New(errs.Unavailable, "the repository does not answer"))
		}, "does not answer"},
		{"the engine panics", func(p *process, _ string) { p.mover.during = func() { panic("oops") } }, "fault of its own"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newWorld(t).start(nil)
			defer p.stop()
			v := p.volumes(2)
			head := p.point(v[1])
			content := p.content(v[1])
			tt.harm(p, v[1])
			j, err := p.create(false, v...)
			j = p.bad(tt.info, j, err)
			for _, id := range j.ResourceIDs {
				if s := p.snapshot(id); s.Status != chain.Ceased {
					t.Errorf("%s is %s", id, s.Status)
				}
			}
			if p.head(v[0]) != "" || p.head(v[1]) != head {
				t.Errorf("the heads are %s and %s", p.head(v[0]), p.head(v[1]))
			}
			p.w.disk.put(v[1], content, volumeSize)
			p.idle()
			p.check()
		})
	}
}

func TestAGroupShowsOneInstantOrNothing(t *testing.T) {
	for _, reflink := range []bool{false, true} {
		w := newWorld(t)
		w.disk.reflink = reflink
		p := w.start(nil)
		v := append(p.volumes(3), p.register("/srv/disk.raw").ID)
		taken := false
		p.mover.during = func() {
			if !reflink {
				return
			}
			taken = true
			for _, s := range p.all().points {
				if !s.IsTaken || s.SnapshotTime.IsZero() || s.Status != chain.Pending {
					t.Errorf("while it is captured: %+v", s)
				}
			}
			p.write(v[0], "the owner may write on") // and the reflink does not see it
		}
		j := p.good(p.create(false, v...))
		first := p.snapshot(j.ResourceIDs[0])
		for i, id := range j.ResourceIDs {
			s := p.snapshot(id)
			if s.ResourceID != v[i] || !s.SnapshotTime.Equal(first.SnapshotTime) || s.GroupID != first.GroupID {
				t.Errorf("point %d is of %s at %v, group %s", i, s.ResourceID, s.SnapshotTime, s.GroupID)
			}
		}
		if got := p.pointContent(first.ID); got != "first on "+v[0] || taken != reflink {
			t.Errorf("the first point holds %q", got)
		}
		p.idle()
		p.check()
		p.stop()
	}
}

func TestALostInstantFailsTheGroup(t *testing.T) {
	w := newWorld(t)
	w.disk.reflink = true
	p := w.start(nil)
	v := p.volumes(2)
	reached := make(chan struct{})
	p.mover.during = func() {
		select {
		case <-reached:
		default:
			close(reached)
		}
		p.cancel() // SIGTERM
	}
	j, err := p.create(false, v...)
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	p.stop()
	clear(w.disk.holds)
	p = w.start(nil)
	defer p.stop()
	p.bad("did not survive the restart", j, nil)
	p.idle()
	p.check()
}

func TestAResumedPointShowsItsFirstInstant(t *testing.T) {
	for _, reflink := range []bool{false, true} {
		w := newWorld(t)
		w.disk.reflink = reflink
		p := w.start(nil)
		v := p.volumes(1)[0]
		reached := make(chan struct{})
		p.mover.during = func() { close(reached); p.cancel() }
		j, err := p.create(false, v)
		if err != nil {
			t.Fatal(err)
		}
		<-reached
		p.stop()
		p.w.disk.put(v, "written after the stop", volumeSize)
		p = w.start(nil)
		j = p.good(j, nil)
		want := "written after the stop" // the restart took a new instant
		if reflink {
			want = "first on " + v
		}
		if got := p.pointContent(j.ResourceIDs[0]); got != want {
			t.Errorf("reflink %v: the point holds %q", reflink, got)
		}
		p.idle()
		p.check()
		p.stop()
	}
}

func TestCancelledCreate(t *testing.T) {
	t.Run("before it is claimed", func(t *testing.T) {
		w := newWorld(t)
		p := w.start(nil)
		v := p.volumes(1)[0]
		p.stop()
		p = w.prepare(nil)
		j, err := p.create(false, v)
		if err != nil || j.Status != job.Pending {
			t.Fatal(j.Status, err)
		}
		if _, err := p.CancelJob(context.Background(), j.ID); err != nil {
			t.Fatal(err)
		}
		p.run()
		defer p.stop()
		p.bad("was cancelled", j, nil)
		p.idle()
		p.check()
		_, err = p.CancelJob(context.Background(), j.ID)
		refused(t, errs.Conflict, "has ended", err)
		_, err = p.CancelJob(context.Background(), "no-such-job")
		refused(t, errs.NotFound, "no-such-job", err)
	})
	t.Run("while it runs", func(t *testing.T) {
		in(t, func(t *testing.T, p *process) {
			v := p.volumes(1)[0]
			reached, goOn := make(chan struct{}), make(chan struct{})
			p.mover.during = func() { close(reached); <-goOn }
			j, err := p.create(false, v)
			if err != nil {
				t.Fatal(err)
			}
			<-reached
			page, err := p.Snapshots(context.Background(), service.SnapshotFilter{Zone: zone, Limit: 10})
			if err != nil || len(page.Snapshots) != 1 || page.Snapshots[0].Progress != 1.0/volumeSize {
				t.Errorf("the pending point: %+v, %v", page, err)
			}
			if _, err := p.CancelJob(context.Background(), j.ID); err != nil {
				t.Fatal(err)
			}
			close(goOn)
			p.bad("was cancelled", j, nil)
			p.mover.during = nil
			p.point(v)
		})
	})
}

func TestUndoWaitsForTheRepository(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		v := p.volumes(1)[0]
		p.f.fail("Put", errors.New("the network is down"))
		p.f.fail("DiscardSession", errors.New("the network is down"))
		j, err := p.create(false, v)
		if err != nil {
			t.Fatal(err)
		}
		p.until("the undo to be tried", func() bool {
			row, err := p.Job(context.Background(), j.ID)
			return err == nil && strings.Contains(string(row.State), "undoing")
		})
		if row, err := p.Job(context.Background(), j.ID); err != nil || row.Status != job.Working {
			t.Errorf("a half-undone job is %s, %v", row.Status, err)
		}
		_, err = p.create(false, v)
		refused(t, errs.Busy, v, err)
		p.f.fail("Put", nil)
		p.f.fail("DiscardSession", nil)
		p.bad("an internal error happened", j, nil)
	})
}

// The worker that notices the end of its own job in the row must still let go
// of the instant.
func TestTheEndOfAJobDoesNotKeepItFromLettingGo(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		p.w.disk.reflink = true
		v := p.volumes(1)[0]
		p.mover.published = func(ctx context.Context) {
			// Progress is written twice a second: give it time to be refused.
			select {
			case <-ctx.Done():
				t.Error("the end of the job stopped its handler")
			case <-time.After(1500 * time.Millisecond):
			}
		}
		p.point(v)
	})
}
