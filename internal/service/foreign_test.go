package service_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"cairn/internal/compute"
	"cairn/internal/compute/fake"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

// others is a hypervisor with machines that somebody else makes.
type others struct {
	*fake.Host
	w     *world
	lists atomic.Int64 // times that it was asked for its machines

	mu   sync.Mutex
	away error // what it answers
}

// withOthers gives a world a hypervisor that the server has not made anything
// of. Its machines open the world's volumes.
func (w *world) withOthers() *others {
	o := &others{Host: &fake.Host{Agent: true}, w: w}
	o.Before = func(method, _ string) error {
		if method == "List" {
			o.lists.Add(1)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.away
	}
	w.others = o.Host
	return o
}

func (o *others) answer(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.away = err
}

// hang says whether it does not answer at all.
func (o *others) hang(hangs bool) { o.w.othersHang.Store(hangs) }

// seen waits until the server knows all that was done before.
func (o *others) seen(p *process) {
	p.t.Helper()
	n := o.lists.Load()
	// A look that began before now may be under way.
	p.until("two more looks", func() bool { return o.lists.Load() >= n+3 })
}

// The ids of a foreign machine of two disks.
const (
	theirs     = "ins-FOREIGN1"
	theirsData = "vol-FOREIGN2"
)

func foreignDisk(id, device string) compute.Disk {
	return compute.Disk{ID: id, URI: "libvirt:///machine/" + device, Device: device}
}

// define makes or changes the machine; its disks have something on them.
func (o *others) define(name string, disks ...compute.Disk) {
	for _, k := range disks {
		if _, there := o.w.disk.get(k.URI); !there {
			o.w.disk.put(k.URI, "first on "+k.ID, volumeSize)
		}
	}
	o.AddForeign(compute.Spec{ID: theirs, Name: name, CPUs: 3, Memory: 1 << 30, Disks: disks})
}

func (o *others) run(t *testing.T) {
	t.Helper()
	if err := fake.New(o.Host).Start(context.Background(), theirs); err != nil {
		t.Fatal(err)
	}
}

func (o *others) write(k compute.Disk, content string) { o.w.disk.put(k.URI, content, volumeSize) }
func (o *others) read(k compute.Disk) string           { c, _ := o.w.disk.get(k.URI); return c }

// inOthers runs fn in a world with a foreign machine of two disks that runs.
func inOthers(t *testing.T, fn func(t *testing.T, p *process, o *others)) {
	t.Helper()
	w := newWorld(t)
	w.withMachines(&fake.Host{})
	o := w.withOthers()
	o.define("theirs", systemDisk, dataDisk)
	o.run(t)
	p := w.start(nil)
	defer func() { p.stop() }()
	o.seen(p)
	fn(t, p, o)
	p.idle()
	p.check()
}

var systemDisk, dataDisk = foreignDisk(theirs, "vda"), foreignDisk(theirsData, "vdb")

func (p *process) instances() (ids []string) {
	p.t.Helper()
	page, err := p.Instances(context.Background(), service.InstanceFilter{Zone: zone, Limit: 10})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, i := range page.Instances {
		ids = append(ids, i.ID)
	}
	return ids
}

// A foreign machine's rows come, follow it, cease and come back.
func TestForeignRows(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		i := p.instance(theirs)
		if i.Name != "theirs" || i.CPUs != 3 || i.Memory != 1<<30 || i.SizeBytes != volumeSize || i.State != service.InstanceRunning || i.Driver != service.DriverLibvirt {
			t.Errorf("the instance: %+v", i)
		}
		if len(i.Volumes) != 1 || i.Volumes[0].ID != theirsData || i.Volumes[0].Device != "vdb" || i.Volumes[0].Name != "theirs vdb" {
			t.Errorf("its volumes: %+v", i.Volumes)
		}
		page, err := p.Volumes(context.Background(), service.VolumeFilter{Zone: zone, Limit: 10})
		if err != nil || page.Total != 1 || page.Volumes[0].InstanceName != "theirs" || page.Volumes[0].Status != service.VolumeInUse {
			t.Errorf("the volumes: %+v, %v", page, err)
		}
		point := p.point(theirsData)
		o.define("renamed", systemDisk)
		o.seen(p)
		if i := p.instance(theirs); i.Name != "renamed" || len(i.Volumes) != 0 {
			t.Errorf("after a rename and a disk less: %+v", i)
		}
		if v := p.volume(theirsData); v.Status != service.VolumeCeased || p.snapshot(point).IsHead {
			t.Errorf("a disk that is gone: %+v", v)
		}
		o.define("renamed", systemDisk, dataDisk)
		o.RemoveForeign("nobody")
		o.seen(p)
		if v := p.volume(theirsData); v.Status != service.VolumeInUse || v.InstanceID != theirs {
			t.Errorf("a disk that is back: %+v", v)
		}
		if s := p.snapshot(p.point(theirsData)); !s.Full {
			t.Errorf("the first point of a disk that was gone has a parent: %+v", s)
		}
		o.RemoveForeign(theirs)
		o.seen(p)
		if ids := p.instances(); len(ids) != 0 {
			t.Errorf("still there: %v", ids)
		}
		o.define("again", systemDisk)
		o.seen(p)
		p.wantState(theirs, service.InstanceStopped)
	})
}

// Whoever finds nothing new writes nothing.
func TestForeignRowsRest(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		p.good(p.apply(p.point(theirs)))
		p.idle()
		o.seen(p)
		writes := p.f.count("Update")
		o.seen(p)
		if n := p.f.count("Update"); n != writes {
			t.Errorf("looks that find nothing new wrote %d times", n-writes)
		}
	})
}

// Another disk under an id is another volume: nothing descends from the old
// one's points.
func TestForeignDiskThatIsAnother(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		p.point(theirsData)
		other := compute.Disk{ID: theirsData, URI: "libvirt:///machine/vdc", Device: "vdc"}
		o.define("theirs", systemDisk, other)
		o.seen(p)
		o.seen(p) // it ceases in one look and comes in the next
		if v := p.volume(theirsData); v.Path != other.URI || v.Device != "vdc" || v.Status != service.VolumeInUse {
			t.Errorf("the row: %+v", v)
		}
		if s := p.snapshot(p.point(theirsData)); !s.Full {
			t.Errorf("its first point: %+v", s)
		}
	})
}

// To delete a foreign machine is to forget it, until it was gone.
func TestForeignForgotten(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		point := p.point(theirs)
		if j := p.good(p.DeleteInstances(context.Background(), instances(theirs))); !slices.Equal(j.ResourceIDs, []string{theirs}) {
			t.Errorf("the job is about %v", j.ResourceIDs)
		}
		o.seen(p)
		if ids := p.instances(); len(ids) != 0 || p.volume(theirsData).Status != service.VolumeCeased {
			t.Errorf("after it was forgotten: %v, %+v", ids, p.volume(theirsData))
		}
		if m, err := fake.New(o.Host).Describe(context.Background(), theirs); err != nil || m.State != compute.Running || len(m.Disks) != 2 {
			t.Errorf("the machine itself: %+v, %v", m, err)
		}
		if p.pointContent(point) != "first on "+theirs {
			t.Error("its point is not what it was")
		}
		o.RemoveForeign(theirs)
		o.seen(p)
		o.define("theirs", systemDisk, dataDisk)
		o.seen(p)
		if ids := p.instances(); !slices.Equal(ids, []string{theirs}) {
			t.Errorf("one that is made anew: %v", ids)
		}
	})
}

// A look that is under way while a machine is forgotten brings nothing back.
func TestForeignForgottenUnderALook(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		looking, forgot := make(chan struct{}), make(chan struct{})
		var once sync.Once
		third := foreignDisk("vol-FOREIGN3", "vdc")
		p.w.disk.mu.Lock()
		p.w.disk.atSize = func(key string) {
			if key == third.URI {
				once.Do(func() { close(looking); <-forgot })
			}
		}
		p.w.disk.mu.Unlock()
		o.define("theirs", systemDisk, dataDisk, third)
		<-looking
		p.good(p.DeleteInstances(context.Background(), instances(theirs)))
		close(forgot)
		o.seen(p)
		page, err := p.Volumes(context.Background(), service.VolumeFilter{Zone: zone, Limit: 10})
		if ids := p.instances(); err != nil || len(ids) != 0 || page.Total != 0 {
			t.Errorf("after it was forgotten: %v, %+v, %v", ids, page.Volumes, err)
		}
		if slices.ContainsFunc(p.all().volumes, func(v service.Volume) bool { return v.ID == third.ID }) {
			t.Error("a disk of a machine that was forgotten got a row")
		}
	})
}

// What was forgotten stays so over a restart.
func TestForeignForgottenOverRestart(t *testing.T) {
	w := newWorld(t)
	w.withMachines(&fake.Host{})
	o := w.withOthers()
	o.define("theirs", systemDisk, dataDisk)
	p := w.start(nil)
	o.seen(p)
	p.good(p.DeleteInstances(context.Background(), instances(theirs)))
	p.idle()
	p.stop()
	p = w.start(nil)
	defer p.stop()
	o.seen(p)
	if ids := p.instances(); len(ids) != 0 {
		t.Errorf("it is back: %v", ids)
	}
	p.check()
}

// Points, rollbacks, clones and images of foreign machines are as of ours.
func TestForeignPoints(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		o.write(systemDisk, "one")
		points := p.good(p.create(false, theirs, theirsData)).ResourceIDs
		for n, id := range points {
			s := p.snapshot(id)
			if s.Consistency != "filesystem" || s.ResourceType != []string{"instance", "volume"}[n] || s.ResourceName != []string{"theirs", "theirs vdb"}[n] {
				t.Errorf("point %s: %+v", id, s)
			}
		}
		if !p.snapshot(points[0]).SnapshotTime.Equal(p.snapshot(points[1]).SnapshotTime) {
			t.Error("they are of two moments")
		}
		o.write(systemDisk, "two")
		o.write(dataDisk, "two")
		if s := p.snapshot(p.point(theirs)); s.Full || s.ParentID != points[0] {
			t.Errorf("the second point: %+v", s)
		}
		p.mover.during = func() {
			if m, err := fake.New(o.Host).Describe(context.Background(), theirs); err != nil || m.State != compute.Stopped {
				t.Errorf("while its disks are overwritten the machine is %s, %v", m.State, err)
			}
		}
		p.good(p.apply(points...))
		p.mover.during = nil
		p.wantState(theirs, service.InstanceRunning)
		if o.read(systemDisk) != "one" || !strings.HasPrefix(o.read(dataDisk), "first on") || p.head(theirs) != points[0] || p.head(theirsData) != points[1] {
			t.Errorf("rolled back: %q, %q", o.read(systemDisk), o.read(dataDisk))
		}
		p.good(p.StopInstances(context.Background(), instances(theirs)))
		p.good(p.apply(points[1]))
		p.wantState(theirs, service.InstanceStopped)
		clone := p.good(p.clone(points[1])).ResourceIDs[0]
		if v := p.volume(clone); v.Driver != service.DriverManaged || !strings.HasPrefix(p.content(clone), "first on "+theirsData) {
			t.Errorf("the clone: %+v, %q", v, p.content(clone))
		}
		p.good(p.attach(p.machine(p.image()), clone))
		captured := p.good(p.capture(points[0])).ResourceIDs[0]
		if m := p.machine(captured); p.content(m) != "one" {
			t.Errorf("a machine of its image holds %q", p.content(m))
		}
		p.good(p.delete(points...))
		p.good(p.StartInstances(context.Background(), instances(theirs)))
		p.good(p.RestartInstances(context.Background(), instances(theirs)))
		p.wantState(theirs, service.InstanceRunning)
	})
}

// What only who made a machine changes is refused, with a word of how.
func TestForeignRefusals(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		ctx := context.Background()
		name := "mine"
		own := p.volumes(1)[0]
		for _, c := range []struct {
			kind  errs.Kind
			words string
			do    func() error
		}{
			{errs.Conflict, "virsh attach-disk", func() error { _, err := p.attach(theirs, own); return err }},
			{errs.Conflict, "virsh detach-disk", func() error { _, err := p.detach(theirsData); return err }},
			{errs.Conflict, "virsh domrename", func() error {
				return p.RenameInstances(ctx, service.Rename{Origin: origin, IDs: []string{theirs}, Name: &name})
			}},
			{errs.Conflict, "virsh blockresize", func() error { _, err := p.resize(2*volumeSize, theirsData); return err }},
			{errs.Conflict, "is attached to instance " + theirs, func() error { _, err := p.deleteVolumes(theirsData); return err }},
		} {
			refused(t, c.kind, c.words, c.do())
		}
		if p.instance(theirs).Name != "theirs" || p.volume(own).InstanceID != "" {
			t.Error("a refusal has changed something")
		}
	})
}

// While a hypervisor does not answer, rows stay and say that nothing is known.
func TestForeignAway(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		ctx := context.Background()
		point := p.point(theirs)
		o.answer(errs.New(errs.Unavailable, "the daemon does not answer"))
		o.seen(p)
		if i := p.instance(theirs); i.State != service.InstanceUnknown || i.Status != service.VolumeInUse {
			t.Errorf("the instance: %+v", i)
		}
		unknown, err := p.Instances(ctx, service.InstanceFilter{Zone: zone, Statuses: []service.InstanceStatus{service.InstanceUnknown}, Limit: 10})
		if err != nil || unknown.Total != 1 {
			t.Errorf("those that are unknown: %+v, %v", unknown, err)
		}
		j, err := p.apply(point)
		p.bad("the daemon does not answer", j, err)
		j, err = p.StopInstances(ctx, instances(theirs))
		p.bad("the daemon does not answer", j, err)
		o.answer(nil)
		p.wantState(theirs, service.InstanceRunning)
		p.good(p.apply(point))
	})
}

// A server that is started without the hypervisor says so, and loses nothing.
func TestForeignWithoutItsHypervisor(t *testing.T) {
	w := newWorld(t)
	w.withMachines(&fake.Host{})
	o := w.withOthers()
	o.define("theirs", systemDisk, dataDisk)
	o.run(t)
	p := w.start(nil)
	o.seen(p)
	point := p.point(theirs)
	p.idle()
	p.stop()
	w.others = nil
	p = w.start(nil)
	defer func() { p.stop() }()
	ctx := context.Background()
	if i := p.instance(theirs); i.State != service.InstanceUnknown {
		t.Errorf("the instance: %+v", i)
	}
	for _, do := range []func() (job.Job, error){
		func() (job.Job, error) { return p.StartInstances(ctx, instances(theirs)) },
		func() (job.Job, error) { return p.apply(point) },
		func() (job.Job, error) { return p.create(false, theirs) },
	} {
		_, err := do()
		refused(t, errs.Conflict, "--libvirt", err)
	}
	captured := p.good(p.capture(point)).ResourceIDs[0]
	if p.pointContent(captured) != "first on "+theirs {
		t.Error("an image of its point is not what the point was")
	}
	p.idle()
	p.stop()
	w.others = o.Host
	p = w.start(nil)
	o.seen(p)
	p.wantState(theirs, service.InstanceRunning)
	if s := p.snapshot(p.point(theirs)); s.Full {
		t.Error("its chain is broken")
	}
	p.idle()
	p.check()
}

// A row that a job has is left until the job has ended.
func TestForeignGoneUnderAJob(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		p.mover.during = func() {
			o.RemoveForeign(theirs)
			o.seen(p)
		}
		j := p.good(p.create(false, theirs))
		p.mover.during = nil
		if s := p.snapshot(j.ResourceIDs[0]); s.ResourceName != "theirs" {
			t.Errorf("its point: %+v", s)
		}
		p.idle()
		o.seen(p)
		if v := p.volume(theirs); v.Status != service.VolumeCeased {
			t.Errorf("the row: %+v", v)
		}
	})
}

// A rollback that fails leaves a foreign machine as it leaves one of ours.
func TestForeignApplyThatFails(t *testing.T) {
	for _, c := range []struct {
		call, info string
		want       service.InstanceStatus
		content    string
	}{
		{"Stop", "it broke", service.InstanceRunning, "new"},
		{"OpenTarget", "it broke", service.InstanceRunning, "new"},
		{"RestoreEnd", "is left stopped", service.InstanceStopped, mixed},
		{"Start", "the volumes are rolled back", service.InstanceStopped, "old"},
	} {
		t.Run(c.call, func(t *testing.T) {
			inOthers(t, func(t *testing.T, p *process, o *others) {
				o.write(systemDisk, "old")
				point := p.point(theirs)
				o.write(systemDisk, "new")
				p.f.fail(c.call, errs.New(errs.Internal, "it broke"))
				j, err := p.apply(point)
				p.bad(c.info, j, err)
				p.f.fail(c.call, nil)
				p.wantState(theirs, c.want)
				if got := o.read(systemDisk); got != c.content {
					t.Errorf("the disk holds %q", got)
				}
				if c.content == mixed {
					o.seen(p) // a look leaves the mark
					k, err := p.StartInstances(context.Background(), instances(theirs))
					p.bad("mixture", k, err)
				}
				p.good(p.apply(point))
				p.wantState(theirs, service.InstanceRunning)
				if got := o.read(systemDisk); got != "old" {
					t.Errorf("in the end the disk holds %q", got)
				}
			})
		})
	}
}
