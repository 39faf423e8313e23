package service_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"cairn/internal/compute"
	"cairn/internal/compute/fake"
	"cairn/internal/job"
	"cairn/internal/service"
)

// prepareForeign gives a foreign machine that runs and was written to since a
// point of its two disks: its id, the other disk's, and the points'.
func prepareForeign(p *process) []string {
	p.until("the machine's rows", func() bool { return len(p.instances()) == 1 })
	p.w.disk.put(systemDisk.URI, "old", volumeSize)
	p.w.disk.put(dataDisk.URI, "old", volumeSize)
	points := p.good(p.create(false, theirs, theirsData)).ResourceIDs
	p.w.disk.put(systemDisk.URI, "new", volumeSize)
	p.w.disk.put(dataDisk.URI, "new", volumeSize)
	p.good(p.create(false, theirs, theirsData))
	return append([]string{theirs, theirsData}, points...)
}

// foreignWorld makes a world one in which a foreign machine runs. It is looked for
// once in each process: calls must be the same each time.
func foreignWorld(t *testing.T, w *world) {
	w.withMachines(&fake.Host{})
	w.lookEvery = time.Hour
	o := w.withOthers()
	o.define("theirs", systemDisk, dataDisk)
	o.run(t)
}

func foreignCases() []crashCase {
	ctx := context.Background()
	runs := func(p *process) bool {
		m, err := fake.New(p.w.others).Describe(ctx, theirs)
		return err == nil && m.State == compute.Running
	}
	return []crashCase{
		{name: "apply around a foreign machine", foreign: true, prepare: prepareForeign, act: func(p *process, ids []string) (job.Job, error) { return p.apply(ids[2], ids[3]) }, verify: func(p *process, ids []string, done bool) {
			for i, disk := range []compute.Disk{systemDisk, dataDisk} {
				content, _ := p.w.disk.get(disk.URI)
				if done != (content == "old") || done != (p.head(ids[i]) == ids[2+i]) {
					p.t.Errorf("the apply succeeded: %v, %s holds %q and its head is %s", done, ids[i], content, p.head(ids[i]))
				}
			}
			if !runs(p) {
				p.t.Errorf("the apply succeeded: %v, and the machine does not run", done)
			}
		}},
		{name: "create of a foreign machine", foreign: true, prepare: prepareForeign, act: func(p *process, ids []string) (job.Job, error) { return p.create(false, ids[0], ids[1]) }, verify: func(p *process, ids []string, done bool) {
			page, err := p.Snapshots(ctx, service.SnapshotFilter{Zone: zone, Limit: 10})
			if want := map[bool]int{true: 6, false: 4}[done]; err != nil || page.Total != want {
				p.t.Errorf("the create succeeded: %v, and there are %d points, %v", done, page.Total, err)
			}
			if !runs(p) || p.w.others.Frozen(theirs) {
				p.t.Error("the machine does not run, or is at rest")
			}
		}},
		{name: "restart a foreign machine", foreign: true, prepare: prepareForeign, act: func(p *process, ids []string) (job.Job, error) { return p.RestartInstances(ctx, instances(ids[0])) }, verify: func(p *process, _ []string, done bool) {
			if done && !runs(p) {
				p.t.Error("it was restarted and does not run")
			}
		}},
		{name: "forget a foreign machine", foreign: true, prepare: prepareForeign, act: func(p *process, ids []string) (job.Job, error) { return p.DeleteInstances(ctx, instances(ids[0])) }, verify: func(p *process, ids []string, done bool) {
			for _, id := range ids[:2] {
				if got := p.volume(id).Status; done != (got == service.VolumeCeased) {
					p.t.Errorf("it was forgotten: %v, and %s is %s", done, id, got)
				}
			}
			if !runs(p) || !strings.HasPrefix(p.pointContent(ids[2]), "old") {
				p.t.Error("the machine does not run, or its point is not what it was")
			}
		}},
	}
}
