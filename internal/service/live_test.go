package service_test

import (
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/service"
	"cairn/internal/volume"
)

// tree is a point's content.
type tree struct{ ref, content string }

func (t tree) Ref() string                                 { return t.ref }
func (t tree) Checkpoint() volume.Checkpoint               { return volume.Checkpoint(t.content) }
func (t tree) Size() int64                                 { return volumeSize }
func (t tree) ReadAt(context.Context, []byte, int64) error { return nil }
func (t tree) Close() error                                { return nil }

func (t tree) Data(context.Context, int64) (extent.Range, error) { return extent.Range{}, io.EOF }

func (t tree) Differs(context.Context, volume.Tree, int64) (extent.Range, error) {
	return extent.Range{}, io.EOF
}

// liveDriver is the other half of a managed driver whose volumes are live.
type liveDriver struct {
	*driver
	own *ownership
}

// ownership is what one process has: volumes to itself, and points served.
type ownership struct {
	taken  map[string]bool
	points map[string]string // refs of served points, by name
	// alone is called when a roller is closed that End did not close.
	alone func(volumeID string)
	// filling is called before a volume is filled, which it may refuse.
	filling func(volumeID string) error
}

func (d liveDriver) Serve(context.Context, volume.Spec) error {
	return d.f.do("Serve", func() error { return nil })
}

func (d liveDriver) Exported(_ context.Context, s volume.Spec) (volume.Export, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := volume.Export{URIs: []string{"nbd+unix:///" + s.ID}}
	if d.busy[s.ID] || d.plugged[s.ID] {
		e.Clients = 1
	}
	return e, nil
}

func (d liveDriver) Clients(ctx context.Context, s volume.Spec) (int, error) {
	e, err := d.Exported(ctx, s)
	return e.Clients, err
}

// become gives a volume a tree's content.
func (d liveDriver) become(s volume.Spec, t volume.Tree) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.content[s.ID], d.size[s.ID], d.base[s.ID] = t.(tree).content, s.SizeBytes, t.Ref()
	return nil
}

func (d liveDriver) Clone(_ context.Context, s volume.Spec, t volume.Tree) error {
	return d.f.do("Clone", func() error { return d.become(s, t) })
}

// roller is a live volume that nobody else may use.
type roller struct {
	d    liveDriver
	s    volume.Spec
	once *sync.Once
}

func (d liveDriver) OpenRoller(_ context.Context, s volume.Spec, force bool) (r volume.Roller, err error) {
	err = d.f.do("OpenRoller", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if (d.busy[s.ID] || d.plugged[s.ID]) && !force {
			return errs.New(errs.Conflict, "volume %s has clients", s.ID)
		}
		if d.own.taken[s.ID] {
			return errs.New(errs.Busy, "volume %s is taken", s.ID)
		}
		d.own.taken[s.ID] = true
		r = roller{d, s, new(sync.Once)}
		return nil
	})
	return r, err
}

func (r roller) Roll(_ context.Context, t, _ volume.Tree) (volume.Rolled, error) {
	return volume.Rolled{}, r.d.f.do("Roll", func() error { return r.d.become(r.s, t) })
}

func (r roller) End(commit func() error) error {
	err := commit()
	if err == nil {
		r.free()
	}
	return err
}

func (r roller) Close() error {
	if r.free() && r.d.own.alone != nil {
		r.d.own.alone(r.s.ID)
	}
	return nil
}

// free lets others have the volume; false: they had it already.
func (r roller) free() (was bool) {
	r.once.Do(func() {
		r.d.mu.Lock()
		defer r.d.mu.Unlock()
		delete(r.d.own.taken, r.s.ID)
		was = true
	})
	return was
}

func (d liveDriver) Base(_ context.Context, s volume.Spec) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.base[s.ID], nil
}

func (d liveDriver) Fill(ctx context.Context, s volume.Spec, pace func(context.Context, int64) error) error {
	if err := pace(ctx, 1); err != nil {
		return err
	}
	return d.f.do("Fill", func() error {
		if d.own.filling != nil {
			if err := d.own.filling(s.ID); err != nil {
				return err
			}
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.base, s.ID)
		return nil
	})
}

// ServePoint and its like keep what is served in the process.
func (d liveDriver) ServePoint(_ context.Context, name, ref string) error {
	return d.f.do("ServePoint", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.own.points[name] = ref
		return nil
	})
}

func (d liveDriver) UnservePoint(_ context.Context, name string, force bool) error {
	return d.f.do("UnservePoint", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.busy[name] && !force {
			return errs.New(errs.Conflict, "snapshot %s has clients", name)
		}
		delete(d.own.points, name)
		return nil
	})
}

func (d liveDriver) PointExported(name string) (e volume.Export) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ref := d.own.points[name]; ref != "" {
		e.URIs = []string{"nbd:" + name}
	}
	return e
}

// wantBasesPinned fails unless what volumes still need cannot be deleted.
func (p *process) wantBasesPinned() {
	p.t.Helper()
	p.w.disk.mu.Lock()
	defer p.w.disk.mu.Unlock()
	for id, text := range p.w.disk.base {
		ref, err := engine.ParsePointRef(text)
		if err != nil {
			p.t.Fatal(err)
		}
		var pinned bool
		err = p.store.View(context.Background(), func(tx service.Tx) error {
			if _, err := tx.Volume("", id); err != nil {
				return nil //nolint:nilerr // it was never made, or is gone
			}
			_, _, pinned, err = tx.Pinned(ref.Snapshot)
			return err
		})
		if err != nil {
			p.t.Fatal(err)
		}
		if v := p.w.disk.content[id]; !pinned && v != "" {
			p.t.Errorf("volume %s comes from %s, which nothing pins", id, ref.Snapshot)
		}
	}
}

// A point that a volume comes from stays until the volume is filled, also if
// the database knows nothing of it.
func TestBaseStays(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.live, w.still = true, true
	p := w.start(nil)
	v := p.volumes(2)
	point, other := p.point(v[0]), p.point(v[1])
	clone := p.good(p.clone(point)).ResourceIDs[0]
	refuses := func(p *process) {
		t.Helper()
		_, err := p.delete(point)
		if !errs.Is(err, errs.Busy) || !strings.Contains(err.Error(), clone) {
			t.Errorf("delete of a point that a clone comes from: %v", err)
		}
	}
	refuses(p)
	// Somebody puts a database back, or rebuilds it, that lacks the pin.
	err := p.store.Update(ctx, func(tx service.Tx) error { return tx.Unpin("base:" + clone) })
	if err != nil {
		t.Fatal(err)
	}
	p.stop()
	p = w.start(nil)
	refuses(p)
	p.stop()
	w.still = false
	p = w.start(nil)
	p.idle()
	p.good(p.delete(point))
	p.stop()
	// And one that has a pin too many.
	p = w.start(nil)
	err = p.store.Update(ctx, func(tx service.Tx) error { return tx.Pin("base:"+clone, other) })
	if err != nil {
		t.Fatal(err)
	}
	p.stop()
	w.still = true // nor does the filler let go of it
	p = w.start(nil)
	p.good(p.delete(other))
	p.stop()
}

// A volume that is read on demand keeps its point until it is filled, over
// restarts and rollbacks.
func TestOnDemand(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.live = true
	p := w.start(nil)
	v := p.volumes(1)[0]
	id := p.point(v)
	clone := p.good(p.CreateVolumeFromSnapshot(ctx, service.CloneSnapshot{Origin: origin, Snapshot: id, VolumeName: "overlay", OnDemand: true})).ResourceIDs[0]
	set := service.VolumeSet{Origin: origin, IDs: []string{clone}}
	kept := func(p *process, id string) {
		t.Helper()
		p.until("the delete to be refused for good", func() bool {
			_, err := p.delete(id) // busy while a job lets go
			return errs.Is(err, errs.Conflict) && strings.Contains(err.Error(), "fill "+clone)
		})
		if !p.volume(clone).OnDemand {
			t.Error("the volume is not on demand any more")
		}
	}
	kept(p, id)
	p.stop()
	p = w.start(nil)
	kept(p, id)
	unknown := service.VolumeSet{Origin: origin, IDs: []string{clone, "vol-NOBODY00"}}
	if err := p.FillVolumes(ctx, unknown); !errs.Is(err, errs.NotFound) {
		t.Errorf("fill of an unknown volume: %v", err)
	}
	kept(p, id)
	own := p.point(clone)
	p.write(clone, "something else")
	p.good(p.apply(own))
	kept(p, own)
	for range 2 {
		if err := p.FillVolumes(ctx, set); err != nil {
			t.Fatal(err)
		}
	}
	p.until("the volume needs no point", func() bool {
		_, err := p.delete(own)
		return err == nil
	})
	p.idle()
	p.stop()
	w.live = false
	p = w.start(nil)
	if _, err := p.CreateVolumeFromSnapshot(ctx, service.CloneSnapshot{Origin: origin, Snapshot: own, VolumeName: "overlay", OnDemand: true}); !errs.Is(err, errs.Conflict) {
		t.Errorf("on demand without live volumes: %v", err)
	}
	p.stop()
}

// A volume that cannot let go of its base while it is read does so when that
// ends, not when volumes are looked after the next time.
func TestFilledAfterInstant(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.live, w.still = true, true
	p := w.start(nil)
	defer p.stop()
	v := p.volumes(1)[0]
	clone := p.good(p.clone(p.point(v))).ResourceIDs[0]
	for _, ends := range []struct {
		name  string
		tries int // at once: at its start, and because the clone was made
		read  func()
	}{
		{"point", 2, func() { p.point(clone) }},
		{"export", 1, func() {
			image, err := p.ExportVolume(ctx, zone, clone)
			if err != nil {
				t.Fatal(err)
			}
			if err := image.Close(); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(ends.name, func(t *testing.T) {
			tried := make(chan struct{}, 100)
			p.own.filling = func(id string) error {
				tried <- struct{}{}
				return errs.New(errs.Busy, "volume %s is being read by another job", id)
			}
			ctx, cancel := context.WithCancel(ctx)
			filler := make(chan struct{})
			go func() { defer close(filler); p.Fill(ctx) }()
			for range ends.tries {
				<-tried
			}
			ends.read()
			select {
			case <-tried:
			case <-time.After(patience / 4): // a quarter of the time until it would be tried anyway
				t.Error("nobody tried again")
			}
			cancel()
			<-filler
		})
	}
}

// Nobody rolls back or deletes a volume under its clients, unless forced.
func TestClientsAreNotRobbed(t *testing.T) {
	w := newWorld(t)
	w.live = true
	p := w.start(nil)
	defer p.stop()
	v := p.volumes(1)[0]
	point := p.point(v)
	p.write(v, "of a client")
	w.disk.mu.Lock()
	w.disk.busy[v] = true
	w.disk.mu.Unlock()
	if _, err := p.apply(point); !errs.Is(err, errs.Conflict) {
		t.Errorf("apply: %v", err)
	}
	if _, err := p.deleteVolumes(v); !errs.Is(err, errs.Conflict) {
		t.Errorf("delete: %v", err)
	}
	if got := p.content(v); got != "of a client" {
		t.Errorf("a refusal left %q", got)
	}
	p.good(p.ApplySnapshots(context.Background(), service.ApplySnapshots{
		SnapshotSet: service.SnapshotSet{Origin: origin, IDs: []string{point}}, Force: true,
	}))
	if got := p.content(v); got != "first on "+v {
		t.Errorf("a forced rollback left %q", got)
	}
}

// An apply that gets stuck has rolled some volumes back: the points that they
// need now stay, though the job that pinned them has ended.
func TestStuckApplyKeepsBases(t *testing.T) {
	w := newWorld(t)
	w.live, w.still = true, true
	p := w.start(nil)
	defer p.stop()
	v := p.volumes(2)
	first, second := p.point(v[0]), p.point(v[1])
	p.write(v[0], "later")
	p.mover.mu.Lock()
	p.mover.damaged[second] = true
	p.mover.mu.Unlock()
	j, err := p.apply(first, second)
	p.bad("", j, err)
	if got := p.content(v[0]); got != "first on "+v[0] {
		t.Fatalf("%s holds %q: this test shows nothing", v[0], got)
	}
	if _, err := p.delete(first); !errs.Is(err, errs.Busy) || !strings.Contains(err.Error(), v[0]) {
		t.Errorf("delete of a point that a volume comes from: %v", err)
	}
	p.wantBasesPinned()
}

// Whoever sees that a job is successful may use its volumes: they are given
// back with its end, not after it.
func TestVolumesAreFreeAtTheEnd(t *testing.T) {
	w := newWorld(t)
	w.live = true
	p := w.prepare(nil)
	p.own.alone = func(id string) {
		err := p.store.View(context.Background(), func(tx service.Tx) error {
			v, err := tx.Volume("", id)
			if err == nil && v.Status == service.VolumeAvailable && v.Transition == "" {
				t.Errorf("volume %s was available while a job had it", id)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	p.run()
	defer p.stop()
	v := p.volumes(3)
	points := []string{p.point(v[0]), p.point(v[1])}
	p.good(p.apply(points...))
	p.good(p.clone(points[0]))
	p.mover.mu.Lock()
	p.mover.damaged[points[1]] = true
	p.mover.mu.Unlock()
	j, err := p.apply(points...)
	p.bad("", j, err)
}

// A served point cannot be deleted, and is served again after a restart.
func TestServePoint(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.live = true
	p := w.start(nil)
	v := p.volumes(1)[0]
	id := p.point(v)
	if err := p.UnserveSnapshot(ctx, zone, id, false); !errs.Is(err, errs.Conflict) {
		t.Errorf("unserve of a point that is not served: %v", err)
	}
	for range 2 {
		if e, err := p.ServeSnapshot(ctx, zone, id); err != nil || len(e.URIs) != 1 {
			t.Fatalf("serve: %+v, %v", e, err)
		}
	}
	served := func(p *process, want int) {
		t.Helper()
		page, err := p.Snapshots(ctx, service.SnapshotFilter{Zone: zone, IDs: []string{id}, Limit: 1})
		if err != nil || len(page.Snapshots) != 1 || len(page.Snapshots[0].Export.URIs) != want {
			t.Errorf("shown as %+v, %v; want %d URIs", page, err, want)
		}
	}
	served(p, 1)
	if _, err := p.delete(id); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "served") {
		t.Errorf("delete: %v", err)
	}
	p.stop()
	p = w.start(nil)
	p.until("the point is served again", func() bool { return len(liveDriver{&driver{disk: w.disk}, p.own}.PointExported(id).URIs) > 0 })
	w.disk.mu.Lock()
	w.disk.busy[id] = true
	w.disk.mu.Unlock()
	if err := p.UnserveSnapshot(ctx, zone, id, false); !errs.Is(err, errs.Conflict) {
		t.Errorf("unserve under a client: %v", err)
	}
	if err := p.UnserveSnapshot(ctx, zone, id, true); err != nil {
		t.Error(err)
	}
	served(p, 0)
	p.good(p.delete(id))
	for name, err := range map[string]error{
		"deleted": second(p.ServeSnapshot(ctx, zone, id)),
		"unknown": second(p.ServeSnapshot(ctx, zone, "ss-NOBODY00")),
	} {
		if err == nil {
			t.Errorf("serve of a point that is %s", name)
		}
	}
	p.stop()
	// A failure leaves nothing behind.
	f := &fuse{}
	p = w.start(f)
	other := p.point(v)
	f.fail("ServePoint", errs.New(errs.Unavailable, "the repository is away"))
	if _, err := p.ServeSnapshot(ctx, zone, other); !errs.Is(err, errs.Unavailable) {
		t.Errorf("serve: %v", err)
	}
	p.good(p.delete(other))
	p.stop()
}

func second[T any](_ T, err error) error { return err }
