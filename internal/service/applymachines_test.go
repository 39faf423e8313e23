package service_test

import (
	"context"
	"strings"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/service"
)

// A rollback that fails leaves its machines running on the old state, or stopped
// and the caller told, never running on a mixture.
func TestApplyThatFailsAroundMachines(t *testing.T) {
	failure := errs.New(errs.Internal, "it broke")
	for _, c := range []struct {
		call string // that fails
		info string
		want service.InstanceStatus
		old  bool // the content is the old one
	}{
		{"Stop", "it broke", service.InstanceRunning, true},
		{"OpenRoller", "it broke", service.InstanceRunning, true},
		{"Roll", "is left stopped", service.InstanceStopped, true},
		{"Start", "the volumes are rolled back", service.InstanceStopped, false},
	} {
		t.Run(c.call, func(t *testing.T) {
			inMachines(t, func(t *testing.T, p *process, image string) {
				m := p.machine(image)
				v := p.volumes(1)[0]
				p.good(p.attach(m, v))
				p.write(m, "old")
				points := p.good(p.create(false, m, v)).ResourceIDs
				p.write(m, "new")
				p.write(v, "new")
				p.f.fail(c.call, failure)
				j, err := p.apply(points...)
				p.bad(c.info, j, err)
				p.f.fail(c.call, nil)
				p.wantState(m, c.want)
				if got := p.content(m) == "new"; got != c.old {
					t.Errorf("the disk holds %q", p.content(m))
				}
				mixture := p.volume(m).MixedJob != ""
				if mixture != (c.call == "Roll") {
					t.Errorf("marked as a mixture: %v", mixture)
				}
				if mixture {
					k, err := p.StartInstances(context.Background(), instances(m))
					p.bad("mixture", k, err)
				}
				if mixture { // half of it leaves the machine stopped
					if j := p.good(p.apply(points[1])); !strings.Contains(j.Info, "is not started yet") {
						t.Errorf("one of two mixtures is gone: %q", j.Info)
					}
					p.wantState(m, service.InstanceStopped)
				}
				p.good(p.apply(points...)) // starts what the one that failed has stopped
				p.wantState(m, service.InstanceRunning)
				if p.content(m) != "old" {
					t.Errorf("in the end the disk holds %q", p.content(m))
				}
			})
		})
	}
}

// A machine that an apply left stopped is started by the next one, also where its
// volume is whole; not if it was stopped or started by hand since.
func TestApplyThatFailedIsTriedAgain(t *testing.T) {
	for _, c := range []struct {
		call, info string
		by         string // what is done by hand meanwhile
		runs       bool
	}{
		{"Roll", "is left stopped", "", true},
		{"Start", "the volumes are rolled back", "", true},
		{"Roll", "is left stopped", "stop", false},
		{"Roll", "is left stopped", "start", false},
	} {
		t.Run(c.call+c.by, func(t *testing.T) {
			inMachines(t, func(t *testing.T, p *process, image string) {
				ctx := context.Background()
				m := p.machine(image)
				point := p.point(m)
				p.f.fail(c.call, errs.New(errs.Internal, "it broke"))
				j, err := p.apply(point)
				p.bad(c.info, j, err)
				p.f.fail(c.call, nil)
				p.wantState(m, service.InstanceStopped)
				if c.by == "start" {
					p.good(p.StartInstances(ctx, instances(m)))
				}
				if c.by != "" {
					p.good(p.StopInstances(ctx, instances(m)))
				}
				p.good(p.apply(point))
				p.wantState(m, map[bool]service.InstanceStatus{true: service.InstanceRunning, false: service.InstanceStopped}[c.runs])
				// It is owed once.
				p.good(p.StopInstances(ctx, instances(m)))
				p.good(p.apply(point))
				p.wantState(m, service.InstanceStopped)
			})
		})
	}
}
