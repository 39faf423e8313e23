package service_test

import (
	"context"
	"slices"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/job"
	"cairn/internal/service"
)

// all is every row.
type all struct {
	points  []service.Snapshot
	volumes []service.Volume
	jobs    map[string]job.Job
	holders []string
	packs   []service.Pack
}

func (p *process) all() (a all) {
	p.t.Helper()
	a.jobs = map[string]job.Job{}
	const limit = 100000
	err := p.store.View(context.Background(), func(tx service.Tx) (err error) {
		statuses := []chain.Status{chain.Pending, chain.Available, chain.Suspended, chain.Deleted, chain.Ceased}
		if a.points, _, err = tx.Snapshots(service.SnapshotFilter{Statuses: statuses, Limit: limit}); err != nil {
			return err
		}
		for _, instances := range []bool{false, true} {
			rows, _, err := tx.Volumes(service.VolumeFilter{Limit: limit, Instances: instances, Statuses: []service.VolumeStatus{
				service.VolumePending, service.VolumeAvailable, service.VolumeInUse, service.VolumeDeleted, service.VolumeCeased,
			}})
			if err != nil {
				return err
			}
			a.volumes = append(a.volumes, rows...)
		}
		jobs, _, err := tx.Jobs(service.JobFilter{Limit: limit})
		if err != nil {
			return err
		}
		for _, j := range jobs {
			a.jobs[j.ID] = j
		}
		if a.holders, err = tx.Holders(); err != nil {
			return err
		}
		return tx.Packs(func(pk service.Pack) error { a.packs = append(a.packs, pk); return nil })
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return a
}

// released reports whether nobody has a lock or a pin.
func (p *process) released() bool {
	p.t.Helper()
	var holders []string
	err := p.store.View(context.Background(), func(tx service.Tx) (err error) {
		holders, err = tx.Holders()
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return len(holders) == 0
}

// check holds whenever no job is unfinished.
func (p *process) check() {
	p.t.Helper()
	a := p.all()
	for _, h := range a.holders {
		p.t.Errorf("%s still has a lock or a pin", h)
	}
	p.w.disk.mu.Lock()
	defer p.w.disk.mu.Unlock()
	for h := range p.w.disk.holds {
		p.t.Errorf("the instant %s is still held", h)
	}
	p.checkPoints(a)
	p.checkVolumes(a)
	p.checkMachines(a)
}

func (p *process) checkPoints(a all) {
	p.t.Helper()
	heads := map[string]service.Snapshot{}
	chains := map[string][]chain.Point{}
	blobs := map[string]bool{}
	for _, s := range a.points {
		if s.IsHead {
			if _, two := heads[s.ResourceID]; two || !s.Live() {
				p.t.Errorf("head %s is %s, or one of two", s.ID, s.Status)
			}
			heads[s.ResourceID] = s
		}
		chains[s.RootID] = append(chains[s.RootID], s.Point)
		if s.Status == chain.Pending || s.Transition != "" {
			p.t.Errorf("%s is %s, %q, although no job is unfinished", s.ID, s.Status, s.Transition)
		}
		if s.Status == chain.Ceased {
			continue
		}
		name := "point/" + s.ID + "." + s.ManifestPack
		content, ok := p.w.disk.blobs[name]
		if !s.IsTaken || s.SnapshotTime.IsZero() || !ok || s.ManifestHash != "hash-"+content {
			p.t.Errorf("%s is %s: taken %v at %v, blob there: %v, %q", s.ID, s.Status, s.IsTaken, s.SnapshotTime, ok, s.ManifestHash)
		}
		blobs[name] = true
	}
	for name := range p.w.disk.blobs {
		if !blobs[name] {
			p.t.Errorf("blob %s belongs to no point", name)
		}
	}
	for _, pk := range a.packs {
		if !blobs[pk.Name] {
			p.t.Errorf("pack row %s belongs to no point", pk.Name)
		}
	}
	for _, s := range a.points {
		if !s.Full || s.Status == chain.Ceased {
			continue
		}
		if want := chain.TotalsOf(chains[s.ID]); s.TotalBytes != want.Bytes || s.TotalCount != want.Count || !s.LatestTime.Equal(want.Latest) {
			p.t.Errorf("full %s says %d bytes, %d points, %v; its chain has %+v", s.ID, s.TotalBytes, s.TotalCount, s.LatestTime, want)
		}
		if head := heads[s.ResourceID]; s.HeadChain != (head.ID != "" && head.RootID == s.ID) {
			p.t.Errorf("full %s has head_chain %v, the head is %s of %s", s.ID, s.HeadChain, head.ID, head.RootID)
		}
	}
}

func (p *process) checkVolumes(a all) {
	p.t.Helper()
	for _, v := range a.volumes {
		key := v.ID
		if v.Driver != service.DriverManaged {
			key = v.Path
		}
		content, there := p.w.disk.content[key]
		want := service.VolumeAvailable
		if v.InstanceID != "" {
			want = service.VolumeInUse
		}
		if v.Transition != "" || v.Status != want && v.Status != service.VolumeCeased {
			p.t.Errorf("volume %s is %s, %q, although no job is unfinished", v.ID, v.Status, v.Transition)
		}
		if v.Status == service.VolumeCeased {
			if there && v.Driver == service.DriverManaged {
				p.t.Errorf("ceased volume %s has left data behind", v.ID)
			}
			if slices.ContainsFunc(a.points, func(s service.Snapshot) bool { return s.ResourceID == v.ID && s.IsHead }) {
				p.t.Errorf("ceased volume %s has a head", v.ID)
			}
			continue
		}
		if !there {
			p.t.Errorf("volume %s has no data", v.ID)
		}
		if content == mixed && v.MixedJob == "" {
			p.t.Errorf("volume %s holds a mixture and passes as good", v.ID)
		}
		if v.MixedJob != "" && a.jobs[v.MixedJob].Status != job.Failed {
			p.t.Errorf("volume %s is marked by job %s, which is %s", v.ID, v.MixedJob, a.jobs[v.MixedJob].Status)
		}
	}
}

// pointContent is what a point holds.
func (p *process) pointContent(id string) string {
	p.t.Helper()
	s := p.snapshot(id)
	content, err := p.mover.read(engine.PointRef{Snapshot: id, Pack: s.ManifestPack})
	if err != nil {
		p.t.Error(err)
	}
	return content
}
