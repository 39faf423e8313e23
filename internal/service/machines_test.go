package service_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/internal/chain"
	"cairn/internal/compute"
	"cairn/internal/compute/fake"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

// fusedMachines is a driver whose changes burn the fuse.
type fusedMachines struct {
	compute.Driver
	f     *fuse
	hangs *atomic.Bool // List does
}

func (d fusedMachines) List(ctx context.Context) ([]compute.Machine, error) {
	if d.hangs != nil && d.hangs.Load() {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return d.Driver.List(ctx)
}

func (d fusedMachines) Define(ctx context.Context, s compute.Spec) error {
	return d.f.do("Define", func() error { return d.Driver.Define(ctx, s) })
}

func (d fusedMachines) Start(ctx context.Context, id string) error {
	return d.f.do("Start", func() error { return d.Driver.Start(ctx, id) })
}

func (d fusedMachines) Stop(ctx context.Context, id string, grace time.Duration) (how compute.Stop, err error) {
	err = d.f.do("Stop", func() error { how, err = d.Driver.Stop(ctx, id, grace); return err })
	return how, err
}

func (d fusedMachines) Attach(ctx context.Context, id string, disk compute.Disk) error {
	return d.f.do("Attach", func() error { return d.Driver.Attach(ctx, id, disk) })
}

func (d fusedMachines) Detach(ctx context.Context, id, disk string) error {
	return d.f.do("Detach", func() error { return d.Driver.Detach(ctx, id, disk) })
}

func (d fusedMachines) Delete(ctx context.Context, id string) error {
	return d.f.do("DeleteMachine", func() error { return d.Driver.Delete(ctx, id) })
}

func (d fusedMachines) Describe(ctx context.Context, id string) (compute.Machine, error) {
	if d.f.isDead() {
		return compute.Machine{}, errDead
	}
	return d.Driver.Describe(ctx, id)
}

// withMachines gives the world a host whose machines open the world's volumes.
func (w *world) withMachines(h *fake.Host) {
	w.host, w.live = h, true
	h.Agent = true
	h.Open = func(_ string, d compute.Disk) error {
		w.disk.mu.Lock()
		defer w.disk.mu.Unlock()
		if _, ok := w.disk.content[d.ID]; !ok || d.URI != "nbd+unix:///"+d.ID {
			return errs.New(errs.Unavailable, "there is no disk %s at %s", d.ID, d.URI)
		}
		if w.disk.plugged[d.ID] {
			return errs.New(errs.Busy, "disk %s has two machines", d.ID)
		}
		w.disk.plugged[d.ID] = true
		return nil
	}
	h.Closed = func(_ string, d compute.Disk) {
		w.disk.mu.Lock()
		defer w.disk.mu.Unlock()
		delete(w.disk.plugged, d.ID)
	}
}

// checkMachines holds whenever no job is unfinished.
func (p *process) checkMachines(a all) {
	p.t.Helper()
	if p.w.host == nil {
		return
	}
	machines, err := fake.New(p.w.host).List(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	rows := map[string][]string{} // disks of machines that are there, as rows say
	for _, v := range a.volumes {
		if v.InstanceID != "" && v.Status != service.VolumeCeased {
			rows[v.InstanceID] = append(rows[v.InstanceID], v.ID)
		}
	}
	busy := map[string]bool{}
	for _, m := range machines {
		if rows[m.ID] == nil {
			p.t.Errorf("machine %s belongs to no instance", m.ID)
		}
		if m.State == compute.Stopped {
			continue
		}
		var disks []string
		for _, d := range m.Disks {
			disks = append(disks, d.ID)
			busy[d.ID] = true
		}
		slices.Sort(disks)
		slices.Sort(rows[m.ID])
		if !slices.Equal(disks, rows[m.ID]) {
			p.t.Errorf("machine %s runs with %v, its rows say %v", m.ID, disks, rows[m.ID])
		}
		for _, v := range a.volumes {
			if v.InstanceID == m.ID && v.MixedJob != "" {
				p.t.Errorf("machine %s runs on the mixture %s", m.ID, v.ID)
			}
		}
	}
	for id := range p.w.disk.plugged {
		if !busy[id] {
			p.t.Errorf("disk %s is open, but no machine runs with it", id)
		}
	}
}

// inMachines runs fn in a world with an image.
func inMachines(t *testing.T, fn func(t *testing.T, p *process, image string)) {
	t.Helper()
	w := newWorld(t)
	w.withMachines(&fake.Host{})
	p := w.start(nil)
	defer p.stop()
	fn(t, p, p.image())
	p.idle()
	p.check()
}

// imageContent is what images of tests hold; it is as long as a volume.
var imageContent = "an image" + strings.Repeat(".", volumeSize-len("an image"))

func (p *process) importImage(content string, size int64) (job.Job, error) {
	return p.ImportImage(context.Background(), service.ImportImage{
		Origin: origin, Name: "image", SizeBytes: size, Stream: service.Flat(strings.NewReader(content), size),
	})
}

func (p *process) image() string {
	p.t.Helper()
	return p.good(p.importImage(imageContent, volumeSize)).ResourceIDs[0]
}

func (p *process) runMachines(image string, n int) (job.Job, error) {
	return p.RunInstances(context.Background(), service.RunInstances{Origin: origin, Image: image, Name: "machine", CPUs: 2, Memory: 64 << 20, Count: n})
}

func (p *process) machine(image string) string {
	p.t.Helper()
	return p.good(p.runMachines(image, 1)).ResourceIDs[0]
}

func (p *process) instance(id string) service.Instance {
	p.t.Helper()
	page, err := p.Instances(context.Background(), service.InstanceFilter{Zone: zone, IDs: []string{id}, Limit: 1})
	if err != nil || len(page.Instances) != 1 {
		p.t.Fatalf("instance %s: %d found, %v", id, len(page.Instances), err)
	}
	return page.Instances[0]
}

func (p *process) wantState(id string, want service.InstanceStatus) {
	p.t.Helper()
	if got := p.instance(id); got.State != want || got.Transition != "" {
		p.t.Errorf("instance %s is %s, %q; want %s", id, got.State, got.Transition, want)
	}
}

func instances(ids ...string) service.InstanceSet {
	return service.InstanceSet{Origin: origin, IDs: ids}
}

func (p *process) attach(instance string, volumes ...string) (job.Job, error) {
	return p.AttachVolumes(context.Background(), service.AttachVolumes{Origin: origin, Instance: instance, IDs: volumes})
}

func (p *process) detach(volumes ...string) (job.Job, error) {
	return p.DetachVolumes(context.Background(), service.DetachVolumes{Origin: origin, IDs: volumes})
}

func (p *process) capture(point string) (job.Job, error) {
	return p.CaptureInstance(context.Background(), service.CaptureInstance{Origin: origin, Snapshot: point, ImageName: "captured"})
}

func TestMachineLife(t *testing.T) {
	inMachines(t, func(t *testing.T, p *process, image string) {
		ctx := context.Background()
		j := p.good(p.runMachines(image, 2))
		a, b := j.ResourceIDs[0], j.ResourceIDs[1]
		for _, id := range []string{a, b} {
			i := p.instance(id)
			if i.State != service.InstanceRunning || i.CPUs != 2 || i.Memory != 64<<20 || i.Image != image || i.ImageName != "image" || i.SizeBytes != volumeSize {
				t.Errorf("a new instance: %+v", i)
			}
			if p.content(id) != imageContent {
				t.Errorf("its disk holds %q", p.content(id))
			}
		}
		page, err := p.Volumes(ctx, service.VolumeFilter{Zone: zone, Limit: 10})
		if err != nil || len(page.Volumes) != 0 {
			t.Errorf("system disks are listed as volumes: %+v, %v", page, err)
		}
		p.good(p.StopInstances(ctx, instances(a)))
		p.wantState(a, service.InstanceStopped)
		p.wantState(b, service.InstanceRunning)
		stopped, err := p.Instances(ctx, service.InstanceFilter{Zone: zone, Statuses: []service.InstanceStatus{service.InstanceStopped}, Limit: 10})
		if err != nil || stopped.Total != 1 || stopped.Instances[0].ID != a {
			t.Errorf("the stopped ones: %+v, %v", stopped, err)
		}
		p.good(p.StopInstances(ctx, instances(a)))
		p.good(p.StartInstances(ctx, instances(a, b)))
		p.wantState(a, service.InstanceRunning)
		p.w.host.Crash(b)
		p.wantState(b, service.InstanceStopped)
		p.good(p.RestartInstances(ctx, instances(b)))
		p.wantState(b, service.InstanceRunning)
		text, err := p.InstanceConsole(ctx, zone, b, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(text); err != nil || strings.Count(string(got), "boots") != 1 {
			t.Errorf("the console says %q, %v", got, err)
		}
		name := "renamed"
		if err := p.RenameInstances(ctx, service.Rename{Origin: origin, IDs: []string{a}, Name: &name}); err != nil || p.instance(a).Name != name {
			t.Errorf("rename: %v", err)
		}
		p.good(p.DeleteInstances(ctx, instances(a)))
		left, err := p.Instances(ctx, service.InstanceFilter{Zone: zone, Limit: 10})
		if err != nil || left.Total != 1 || left.Instances[0].ID != b {
			t.Errorf("after a delete: %+v, %v", left, err)
		}
	})
}

// A point of an instance is of its system disk, and rolls it back around a
// restart; a stopped one stays stopped.
func TestMachinePoints(t *testing.T) {
	inMachines(t, func(t *testing.T, p *process, image string) {
		ctx := context.Background()
		m := p.machine(image)
		v := p.volumes(1)[0]
		p.good(p.attach(m, v))
		if got := p.instance(m); len(got.Volumes) != 1 || got.Volumes[0].ID != v || got.Volumes[0].Device != "vdb" {
			t.Errorf("attached: %+v", got.Volumes)
		}
		p.write(m, "one")
		j := p.good(p.create(false, m, v))
		point, data := j.ResourceIDs[0], j.ResourceIDs[1]
		s := p.snapshot(point)
		if s.ResourceType != "instance" || s.ResourceName != "machine" || s.Consistency != "filesystem" || p.snapshot(data).Consistency != "filesystem" {
			t.Errorf("the points: %+v", s)
		}
		if !s.SnapshotTime.Equal(p.snapshot(data).SnapshotTime) {
			t.Error("they are of two moments")
		}
		p.write(m, "two")
		p.write(v, "two")
		second := p.point(m)
		if s := p.snapshot(second); s.Full || s.ParentID != point {
			t.Errorf("the second point: %+v", s)
		}
		p.good(p.apply(point, data))
		p.wantState(m, service.InstanceRunning)
		if p.content(m) != "one" || !strings.HasPrefix(p.content(v), "first on") || p.head(m) != point || p.head(v) != data {
			t.Errorf("rolled back: %q, %q", p.content(m), p.content(v))
		}
		console, err := p.InstanceConsole(ctx, zone, m, 0)
		if err != nil {
			t.Fatal(err)
		}
		if text, _ := io.ReadAll(console); strings.Count(string(text), "boots") != 1 {
			t.Errorf("the console says %q", text)
		}
		p.good(p.StopInstances(ctx, instances(m)))
		p.good(p.apply(second))
		p.wantState(m, service.InstanceStopped)
		if p.content(m) != "two" || p.snapshot(p.point(m)).Consistency != "crash" {
			t.Errorf("the stopped machine: %q", p.content(m))
		}
	})
}

// What a guest that cannot be frozen wrote is as after a power cut, and so it is
// said.
func TestConsistencyIsNoGuess(t *testing.T) {
	inMachines(t, func(t *testing.T, p *process, image string) {
		m := p.machine(image)
		v := p.volumes(1)[0]
		j := p.good(p.create(false, m, v))
		if p.snapshot(j.ResourceIDs[0]).Consistency != "filesystem" || p.snapshot(j.ResourceIDs[1]).Consistency != "crash" {
			t.Error("a volume that no machine has counts as one that has")
		}
		p.w.host.Agent = false
		if got := p.snapshot(p.point(m)).Consistency; got != "crash" {
			t.Errorf("without an agent it is %s", got)
		}
		p.w.host.Agent = true
		// It is at rest at the instant, and goes on before anything is read.
		p.w.disk.atInstant = func() {
			if !p.w.host.Frozen(m) {
				t.Error("at the instant the guest is not at rest")
			}
		}
		p.mover.during = func() {
			if p.w.host.Frozen(m) {
				t.Error("the guest is kept at rest while its disk is read")
			}
		}
		p.point(m)
		p.w.disk.atInstant, p.mover.during = nil, nil
	})
}

func TestImages(t *testing.T) {
	inMachines(t, func(t *testing.T, p *process, image string) {
		ctx := context.Background()
		m := p.machine(image)
		p.write(m, "configured")
		point := p.point(m)
		_, err := p.clone(point)
		refused(t, errs.Invalid, "use capture_instance", err)
		v := p.volumes(1)[0]
		_, err = p.capture(p.point(v))
		refused(t, errs.Invalid, "use create_volume", err)
		captured := p.good(p.capture(point)).ResourceIDs[0]
		if s := p.snapshot(captured); s.Status != chain.Available || p.pointContent(captured) != "configured" || s.ResourceType != service.ResourceImage {
			t.Errorf("the image: %+v", s)
		}
		page, err := p.Snapshots(ctx, service.SnapshotFilter{Zone: zone, Limit: 10})
		if err != nil || page.Total != 2 {
			t.Errorf("images are listed as snapshots: %d, %v", page.Total, err)
		}
		images, err := p.Images(ctx, service.ImageFilter{Zone: zone, Limit: 10})
		if err != nil || images.Total != 2 || images.Snapshots[0].ID != captured || images.Snapshots[1].ID != image {
			t.Errorf("the images: %+v, %v", images, err)
		}
		p.good(p.delete(point))
		p.good(p.DeleteInstances(ctx, instances(m)))
		p.emptyBin()
		again := p.machine(captured)
		if p.content(again) != "configured" {
			t.Errorf("a machine of it holds %q", p.content(again))
		}
		name := "golden"
		if err := p.RenameImages(ctx, service.Rename{Origin: origin, IDs: []string{captured}, Name: &name}); err != nil || p.snapshot(captured).Name != name {
			t.Errorf("rename: %v", err)
		}
		e, err := p.ExportImage(ctx, zone, captured)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := errors.Join(e.WriteTo(ctx, &b, service.FormatRaw), e.Close()); err != nil || b.String() != "configured" {
			t.Errorf("the export: %q, %v", b.String(), err)
		}
		p.good(p.DeleteImages(ctx, service.ImageSet{Origin: origin, IDs: []string{image}}))
		_, err = p.runMachines(image, 1)
		refused(t, errs.Conflict, "is deleted", err)
	})
}

func (p *process) emptyBin() {
	p.t.Helper()
	p.good(p.Prune(context.Background(), origin, service.PruneOptions{EmptyBin: true}))
}

// An image that is deleted while a machine reads from it stays until it need not.
func TestImageStaysForItsMachines(t *testing.T) {
	w := newWorld(t)
	w.withMachines(&fake.Host{})
	w.still = true
	p := w.start(nil)
	image := p.image()
	m := p.machine(image)
	p.good(p.DeleteImages(context.Background(), service.ImageSet{Origin: origin, IDs: []string{image}}))
	p.emptyBin()
	if s := p.snapshot(image); s.Status != chain.Deleted {
		t.Errorf("the image is %s although a machine reads from it", s.Status)
	}
	p.wantBasesPinned()
	p.stop()
	w.still = false
	p = w.start(nil)
	defer p.stop()
	p.idle() // filled
	p.emptyBin()
	if s := p.snapshot(image); s.Status != chain.Ceased {
		t.Errorf("the image is %s although nobody needs it", s.Status)
	}
	p.wantState(m, service.InstanceRunning)
	p.check()
}

func TestAttach(t *testing.T) {
	inMachines(t, func(t *testing.T, p *process, image string) {
		ctx := context.Background()
		j := p.good(p.runMachines(image, 2))
		a, b := j.ResourceIDs[0], j.ResourceIDs[1]
		v := p.volumes(3)
		p.good(p.attach(a, v[0], v[1]))
		if got := p.volume(v[1]); got.Status != service.VolumeInUse || got.InstanceID != a || got.Device != "vdc" {
			t.Errorf("attached: %+v", got)
		}
		_, err := p.attach(b, v[0])
		refused(t, errs.Conflict, "is attached to instance "+a, err)
		_, err = p.attach(a, v[0])
		refused(t, errs.Conflict, "already", err)
		_, err = p.deleteVolumes(v[0])
		refused(t, errs.Conflict, "detach it first", err)
		_, err = p.attach(a, p.register("/srv/disk.raw").ID)
		refused(t, errs.Conflict, "only managed volumes", err)
		_, err = p.attach("ins-NONEXIST", v[2])
		refused(t, errs.NotFound, "instance ins-NONEXIST does not exist", err)
		_, err = p.detach(v[2])
		refused(t, errs.Conflict, "is not attached", err)
		_, err = p.DetachVolumes(ctx, service.DetachVolumes{Origin: origin, Instance: b, IDs: v[:1]})
		refused(t, errs.Conflict, "not to "+b, err)
		p.good(p.detach(v[0]))
		p.good(p.attach(b, v[0]))
		p.good(p.StopInstances(ctx, instances(b)))
		p.good(p.attach(b, v[2])) // gets it when it starts
		p.good(p.detach(v[0]))
		p.good(p.StartInstances(ctx, instances(b)))
		if got := p.volume(v[2]); got.Device != "vdc" {
			t.Errorf("the device: %+v", got)
		}
		p.w.host.Deaf = true
		k, err := p.detach(v[2])
		p.bad("please try later", k, err)
		if got := p.volume(v[2]); got.InstanceID != b || got.Status != service.VolumeInUse {
			t.Errorf("after a detach that the guest refused: %+v", got)
		}
		p.w.host.Deaf = false
		p.good(p.DeleteInstances(ctx, instances(a, b)))
		for _, id := range v {
			if got := p.volume(id); got.Status != service.VolumeAvailable || got.InstanceID != "" {
				t.Errorf("after its machine went: %+v", got)
			}
		}
		p.good(p.deleteVolumes(v...))
	})
}

// A guest that does not end when asked is ended, and the job says so.
func TestForcedStop(t *testing.T) {
	inMachines(t, func(t *testing.T, p *process, image string) {
		m := p.machine(image)
		point := p.point(m)
		p.w.host.Deaf = true
		if j := p.good(p.apply(point)); !strings.Contains(j.Info, m) || !strings.Contains(j.Info, "power cut") {
			t.Errorf("the apply says %q", j.Info)
		}
		if j := p.good(p.StopInstances(context.Background(), instances(m))); !strings.Contains(j.Info, "power cut") {
			t.Errorf("the stop says %q", j.Info)
		}
		set := instances(m)
		set.Force = true
		if j := p.good(p.StopInstances(context.Background(), set)); j.Info != "" {
			t.Errorf("a forced stop says %q", j.Info)
		}
	})
}

func TestMachineRefusals(t *testing.T) {
	ctx := context.Background()
	inMachines(t, func(t *testing.T, p *process, image string) {
		for _, c := range []struct {
			kind  errs.Kind
			words string
			in    service.RunInstances
		}{
			{errs.NotFound, "image img-NONEXIST does not exist", service.RunInstances{Image: "img-NONEXIST", Name: "x", CPUs: 1, Memory: 64 << 20, Count: 1}},
			{errs.Invalid, "is the id of a volume", service.RunInstances{Image: "vol-AAAAAAAA", Name: "x", CPUs: 1, Memory: 64 << 20, Count: 1}},
			{errs.Invalid, "instance_name is empty", service.RunInstances{Image: image, CPUs: 1, Memory: 64 << 20, Count: 1}},
			{errs.Invalid, "cpu is 0", service.RunInstances{Image: image, Name: "x", Memory: 64 << 20, Count: 1}},
			{errs.Invalid, "memory is 1 MB", service.RunInstances{Image: image, Name: "x", CPUs: 1, Memory: 1 << 20, Count: 1}},
			{errs.Invalid, "count is 0", service.RunInstances{Image: image, Name: "x", CPUs: 1, Memory: 64 << 20}},
		} {
			c.in.Origin = origin
			_, err := p.RunInstances(ctx, c.in)
			refused(t, c.kind, c.words, err)
		}
		_, err := p.StartInstances(ctx, instances("ins-NONEXIST"))
		refused(t, errs.NotFound, "instance ins-NONEXIST does not exist", err)
		_, err = p.create(false, "ins-NONEXIST")
		refused(t, errs.NotFound, "instance ins-NONEXIST does not exist", err)
		_, err = p.StartInstances(ctx, instances("vol-AAAAAAAA"))
		refused(t, errs.Invalid, "is the id of a volume", err)
		m := p.machine(image)
		err = p.store.Update(ctx, func(tx service.Tx) error { return tx.Lock("somebody", m) })
		if err != nil {
			t.Fatal(err)
		}
		for _, do := range []func() error{
			func() error { _, err := p.StopInstances(ctx, instances(m)); return err },
			func() error { _, err := p.DeleteInstances(ctx, instances(m)); return err },
			func() error { _, err := p.create(false, m); return err },
			func() error { _, err := p.attach(m, p.volumes(1)[0]); return err },
		} {
			refused(t, errs.Busy, "instance "+m, do())
		}
		err = p.store.Update(ctx, func(tx service.Tx) error { return tx.Unlock("somebody") })
		if err != nil {
			t.Fatal(err)
		}
	})
	in(t, func(t *testing.T, p *process) {
		_, err := p.runMachines("img-AAAAAAAA", 1)
		refused(t, errs.NotFound, "img-AAAAAAAA does not exist", err)
		_, err = p.runMachines(p.image(), 1)
		refused(t, errs.Conflict, "runs no machines", err)
	})
}

// A machine that cannot be started is not left behind.
func TestRunThatFails(t *testing.T) {
	inMachines(t, func(t *testing.T, p *process, image string) {
		p.f.fail("Start", errs.New(errs.Unavailable, "no memory"))
		j, err := p.runMachines(image, 2)
		p.bad("no memory", j, err)
		p.f.fail("Start", nil)
		page, err := p.Instances(context.Background(), service.InstanceFilter{Zone: zone, Limit: 10})
		if err != nil || page.Total != 0 {
			t.Errorf("left behind: %+v, %v", page, err)
		}
	})
}
