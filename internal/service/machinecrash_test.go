package service_test

import (
	"context"
	"strings"

	"cairn/internal/chain"
	"cairn/internal/job"
	"cairn/internal/service"
)

// prepareMachine gives a running machine with a volume, a point of each, and the
// image; both were written to since.
func prepareMachine(p *process) []string {
	image := p.image()
	m, v := p.machine(image), p.volumes(1)[0]
	p.good(p.attach(m, v))
	p.write(m, "old")
	p.write(v, "old")
	points := p.good(p.create(false, m, v)).ResourceIDs
	p.write(m, "new")
	p.write(v, "new")
	return []string{m, v, points[0], points[1], image}
}

func machineCases() []crashCase {
	ctx := context.Background()
	verifyRolled := func(p *process, ids []string, done bool) {
		for _, v := range ids[:2] {
			if done != (p.content(v) == "old") {
				p.t.Errorf("the apply succeeded: %v, %s holds %q", done, v, p.content(v))
			}
		}
		p.wantState(ids[0], service.InstanceRunning)
	}
	return []crashCase{
		{name: "apply around a machine", machines: true, prepare: prepareMachine, act: func(p *process, ids []string) (job.Job, error) { return p.apply(ids[2], ids[3]) }, verify: verifyRolled},
		{name: "run machines", machines: true, prepare: prepareMachine, act: func(p *process, ids []string) (job.Job, error) { return p.runMachines(ids[4], 2) }, verify: func(p *process, _ []string, done bool) {
			page, err := p.Instances(ctx, service.InstanceFilter{Zone: zone, Statuses: []service.InstanceStatus{service.InstanceRunning}, Limit: 10})
			if want := map[bool]int{true: 3, false: 1}[done]; err != nil || page.Total != want {
				p.t.Errorf("the run succeeded: %v, but %d machines run, %v", done, page.Total, err)
			}
		}},
		{name: "restart a machine", machines: true, prepare: prepareMachine, act: func(p *process, ids []string) (job.Job, error) { return p.RestartInstances(ctx, instances(ids[0])) }, verify: func(p *process, ids []string, done bool) {
			if done {
				p.wantState(ids[0], service.InstanceRunning)
			}
		}},
		{name: "delete a machine", machines: true, prepare: prepareMachine, act: func(p *process, ids []string) (job.Job, error) { return p.DeleteInstances(ctx, instances(ids[0])) }, verify: func(p *process, ids []string, done bool) {
			if got := p.volume(ids[1]).InstanceID; done != (got == "") {
				p.t.Errorf("the delete succeeded: %v, the volume is attached to %q", done, got)
			}
		}},
		{name: "detach", machines: true, prepare: prepareMachine, act: func(p *process, ids []string) (job.Job, error) { return p.detach(ids[1]) }, verify: func(p *process, ids []string, done bool) {
			if got := p.volume(ids[1]).InstanceID; done != (got == "") {
				p.t.Errorf("the detach succeeded: %v, the volume is attached to %q", done, got)
			}
		}},
		{name: "attach", machines: true, prepare: func(p *process) []string { return append(prepareMachine(p), p.volumes(1)[0]) }, act: func(p *process, ids []string) (job.Job, error) { return p.attach(ids[0], ids[5]) }, verify: func(p *process, ids []string, done bool) {
			if got := p.volume(ids[5]).InstanceID; done != (got == ids[0]) {
				p.t.Errorf("the attach succeeded: %v, the volume is attached to %q", done, got)
			}
		}},
		{name: "create of a machine", machines: true, prepare: prepareMachine, act: func(p *process, ids []string) (job.Job, error) { return p.create(false, ids[0], ids[1]) }},
		{name: "capture an instance", machines: true, prepare: prepareMachine, act: func(p *process, ids []string) (job.Job, error) { return p.capture(ids[2]) }, verify: verifyImages},
		{name: "import an image", machines: true, prepare: prepareMachine, act: func(p *process, _ []string) (job.Job, error) { return p.importImage(imageContent, volumeSize) }, verify: verifyImages},
		{name: "delete an image", machines: true, prepare: prepareMachine, act: func(p *process, ids []string) (job.Job, error) {
			return p.DeleteImages(ctx, service.ImageSet{Origin: origin, IDs: ids[4:5]})
		}, verify: func(p *process, ids []string, done bool) {
			if got := p.snapshot(ids[4]).Status; done != (got == chain.Deleted) {
				p.t.Errorf("the delete succeeded: %v, the image is %s", done, got)
			}
		}},
	}
}

func verifyImages(p *process, _ []string, done bool) {
	page, err := p.Images(context.Background(), service.ImageFilter{Zone: zone, Limit: 10})
	if want := map[bool]int{true: 2, false: 1}[done]; err != nil || page.Total != want {
		p.t.Errorf("the making of an image succeeded: %v, but there are %d, %v", done, page.Total, err)
	}
	p.w.disk.mu.Lock()
	defer p.w.disk.mu.Unlock()
	for key := range p.w.disk.content {
		if strings.HasPrefix(key, "img-") {
			p.t.Errorf("the staging volume of %s is left", key)
		}
	}
}
