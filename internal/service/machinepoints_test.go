package service_test

import (
	"context"
	"testing"

	"cairn/internal/chain"
	"cairn/internal/compute"
	"cairn/internal/compute/fake"
	"cairn/internal/errs"
	"cairn/internal/service"
)

// A point of a running machine that fails at any step leaves the machine running
// and not at rest, its volumes as they were, and no point; the next one is good.
func TestMachinePointThatFails(t *testing.T) {
	for _, call := range []string{"OpenSession", "Freeze", "Put", "Check"} {
		t.Run(call, func(t *testing.T) {
			inOthers(t, func(t *testing.T, p *process, o *others) {
				ours := p.machine(p.image())
				data := p.volumes(1)[0]
				p.good(p.attach(ours, data))
				resources := []string{ours, data, theirs, theirsData}
				before := p.good(p.create(false, resources...)).ResourceIDs
				heads := map[string]chain.ID{}
				for i, id := range resources {
					heads[id] = before[i]
				}
				p.f.fail(call, errs.New(errs.Internal, "it broke"))
				j, err := p.create(false, resources...)
				p.bad("it broke", j, err)
				p.f.fail(call, nil)
				p.idle()
				for _, id := range j.ResourceIDs {
					if s := p.snapshot(id); s.Status != chain.Ceased {
						t.Errorf("the point that failed: %+v", s)
					}
				}
				for _, id := range resources {
					if v := p.volume(id); v.Status != service.VolumeInUse || v.Transition != "" || v.MixedJob != "" || p.head(id) != heads[id] {
						t.Errorf("%s: %+v, its head is %s", id, v, p.head(id))
					}
				}
				p.wantState(ours, service.InstanceRunning)
				p.wantState(theirs, service.InstanceRunning)
				if p.w.host.Frozen(ours) || o.Frozen(theirs) {
					t.Error("a guest was left at rest")
				}
				for _, id := range p.good(p.create(false, resources...)).ResourceIDs {
					if s := p.snapshot(id); s.Full || s.Consistency != "filesystem" {
						t.Errorf("the next point: %+v", s)
					}
				}
			})
		})
	}
}

// A guest that cannot be brought to rest, or does not stay so, costs its point no
// more than that.
func TestMachinePointOfARestlessGuest(t *testing.T) {
	for name, disturb := range map[string]func(p *process, m string) (undo func()){
		"the agent does not answer": func(p *process, m string) func() {
			p.w.host.Before = func(method, id string) error {
				if method == "Freeze" && id == m {
					return errs.New(errs.Unavailable, "no answer")
				}
				return nil
			}
			return func() { p.w.host.Before = nil }
		},
		"the monitor does not answer": func(p *process, m string) func() {
			p.w.host.Before = func(method, id string) error {
				if (method == "Describe" || method == "Freeze") && id == m {
					return errs.New(errs.Unavailable, "no answer")
				}
				return nil
			}
			return func() { p.w.host.Before = nil }
		},
		"it ends while it is at rest": func(p *process, m string) func() {
			p.w.disk.atInstant = func() { p.w.host.Crash(m) }
			return func() {
				p.w.disk.atInstant = nil
				p.good(p.StartInstances(context.Background(), instances(m)))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inMachines(t, func(t *testing.T, p *process, image string) {
				j := p.good(p.runMachines(image, 2))
				m, calm := j.ResourceIDs[0], j.ResourceIDs[1]
				undo := disturb(p, m)
				points := p.good(p.create(false, m, calm)).ResourceIDs
				undo()
				if a, b := p.snapshot(points[0]).Consistency, p.snapshot(points[1]).Consistency; a != "crash" || b != "filesystem" {
					t.Errorf("the points are %s and %s", a, b)
				}
				for _, id := range []string{m, calm} {
					p.wantState(id, service.InstanceRunning)
					if p.w.host.Frozen(id) {
						t.Errorf("the guest of %s was left at rest", id)
					}
				}
				if got := p.snapshot(p.point(m)).Consistency; got != "filesystem" {
					t.Errorf("the next point is %s", got)
				}
			})
		})
	}
}

// A machine whose hypervisor does not answer is not rolled back, and not said to be
// stopped.
func TestApplyWhileTheMonitorIsGone(t *testing.T) {
	inMachines(t, func(t *testing.T, p *process, image string) {
		m := p.machine(image)
		p.write(m, "old")
		point := p.point(m)
		p.write(m, "new")
		p.w.host.Before = func(method, id string) error {
			if method == "Describe" && id == m {
				return errs.New(errs.Unavailable, "the monitor of %s does not answer", id)
			}
			return nil
		}
		j, err := p.apply(point)
		p.bad("the monitor", j, err)
		p.w.host.Before = nil
		p.idle()
		if s, err := fake.New(p.w.host).Describe(context.Background(), m); err != nil || s.State != compute.Running || p.content(m) != "new" || p.volume(m).MixedJob != "" {
			t.Errorf("the machine: %+v, %v; its disk holds %q", s, err, p.content(m))
		}
		p.good(p.apply(point))
		p.wantState(m, service.InstanceRunning)
	})
}
