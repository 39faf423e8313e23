package service_test

import (
	"context"
	"database/sql"
	"strings"
	"testing"

	"cairn/internal/compute"
	"cairn/internal/compute/fake"
	"cairn/internal/errs"
	"cairn/internal/service"
	"cairn/internal/volume"
)

// This file is what the owners of foreign machines do to them beside us, and what
// we leave in them.

// foreignDriver serves the volumes of foreign machines.
type foreignDriver struct{ *driver }

var _ volume.Foreign = foreignDriver{}

func (d foreignDriver) Reserve(context.Context, string, []volume.Spec) error {
	return d.f.do("Reserve", func() error { return nil })
}

func (d foreignDriver) CheckTarget(_ context.Context, s volume.Spec) error {
	return d.f.do("CheckTarget", func() error {
		d.mu.Lock()
		check := d.atCheck
		d.mu.Unlock()
		if check == nil {
			return nil
		}
		return check(d.key(s))
	})
}

func (d foreignDriver) Freeze(ctx context.Context, hold string, specs []volume.Spec, within func(context.Context) error) (volume.Instant, error) {
	in, err := d.driver.Freeze(ctx, hold, specs, within)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range specs {
		if d.marked == nil {
			d.marked = map[string]bool{}
		}
		d.marked[d.key(s)] = true
	}
	return in, err
}

func (d foreignDriver) Forget(_ context.Context, s volume.Spec) error {
	return d.f.do("Forget", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.marked, d.key(s))
		return nil
	})
}

func (d foreignDriver) Tidy(context.Context) error {
	return d.f.do("Tidy", func() error { return nil })
}

// A mixture is one when its machine was away for a while, too.
func TestForeignMixtureThatWasGone(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		ctx := context.Background()
		o.write(systemDisk, "old")
		point := p.point(theirs)
		o.write(systemDisk, "new")
		p.f.fail("RestoreEnd", errs.New(errs.Internal, "it broke"))
		j, err := p.apply(point)
		p.bad("is left stopped", j, err)
		p.f.fail("RestoreEnd", nil)
		p.idle()
		o.RemoveForeign(theirs)
		o.seen(p)
		if v := p.volume(theirs); v.Status != service.VolumeCeased {
			t.Errorf("a machine that is gone: %+v", v)
		}
		o.define("theirs", systemDisk, dataDisk)
		o.seen(p)
		k, err := p.StartInstances(ctx, instances(theirs))
		p.bad("mixture", k, err)
		_, err = p.create(false, theirs)
		refused(t, errs.Conflict, "apply a snapshot to it again", err)
		p.good(p.apply(point))
		if got := o.read(systemDisk); got != "old" {
			t.Errorf("the disk holds %q", got)
		}
		p.good(p.StartInstances(ctx, instances(theirs)))
	})
}

// The machine's own id is that of its first disk, whichever that is: a point of
// the one before is not written over it.
func TestForeignSystemDiskThatIsAnother(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		before := p.point(theirs)
		p.idle()
		other := compute.Disk{ID: theirs, URI: "libvirt:///machine/sda", Device: "sda"}
		o.define("theirs", other, dataDisk)
		o.seen(p)
		o.seen(p) // it ceases in one look and comes in the next
		if v := p.volume(theirs); v.Path != other.URI || v.Status != service.VolumeInUse {
			t.Fatalf("the row: %+v", v)
		}
		_, err := p.apply(before)
		refused(t, errs.Conflict, "another disk", err)
		if got := o.read(other); !strings.HasPrefix(got, "first on") {
			t.Errorf("the other disk holds %q", got)
		}
		after := p.point(theirs)
		o.write(other, "new")
		p.good(p.apply(after))
		if got := o.read(other); !strings.HasPrefix(got, "first on") {
			t.Errorf("rolled back it holds %q", got)
		}
		p.good(p.capture(before))
	})
}

// Points of a machine whose row a lost database took with it are still its own.
func TestForeignRowThatWasLost(t *testing.T) {
	w := newWorld(t)
	w.withMachines(&fake.Host{})
	o := w.withOthers()
	o.define("theirs", systemDisk, dataDisk)
	p := w.start(nil)
	o.seen(p)
	point := p.point(theirs)
	p.idle()
	p.stop()
	db, err := sql.Open("sqlite", w.path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("DELETE FROM volumes WHERE id = ?", theirs); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	p = w.start(nil)
	defer p.stop()
	o.seen(p)
	o.write(systemDisk, "new")
	p.good(p.apply(point))
	if got := o.read(systemDisk); !strings.HasPrefix(got, "first on") {
		t.Errorf("rolled back it holds %q", got)
	}
}

// A machine that an apply left stopped and its owner started and stopped since is
// no longer owed a start.
func TestForeignStartedByItsOwner(t *testing.T) {
	for _, started := range []bool{false, true} {
		inOthers(t, func(t *testing.T, p *process, o *others) {
			ctx := context.Background()
			point := p.point(theirs)
			p.idle()
			p.f.fail("Start", errs.New(errs.Internal, "it broke"))
			j, err := p.apply(point)
			p.bad("not all of the machines run", j, err)
			p.f.fail("Start", nil)
			p.idle()
			owner := fake.New(o.Host)
			if started {
				o.run(t)
				o.seen(p)
				if _, err := owner.Stop(ctx, theirs, 0); err != nil {
					t.Fatal(err)
				}
			}
			p.good(p.apply(point))
			p.wantState(theirs, map[bool]service.InstanceStatus{false: service.InstanceRunning, true: service.InstanceStopped}[started])
		})
	}
}

// No machine is stopped while a point of any of its disks is under way, nor
// is there one while it is rolled back.
func TestForeignApplyHasAllDisks(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		point := p.point(theirs)
		p.idle()
		p.mover.during = func() {
			_, err := p.apply(point)
			refused(t, errs.Busy, theirsData, err)
		}
		p.good(p.create(false, theirsData))
		p.idle()
		p.mover.during = func() {
			_, err := p.create(false, theirsData)
			refused(t, errs.Busy, theirsData, err)
		}
		p.good(p.apply(point))
		p.mover.during = nil
		p.wantState(theirs, service.InstanceRunning)
		p.idle()
		p.good(p.create(false, theirsData))
	})
}

// A machine is not stopped for a rollback that its disk could not have.
func TestForeignTargetThatCannotBe(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		point := p.point(theirs)
		p.idle()
		asked := 0
		for _, from := range []int{1, 2} { // at once, and when the job is at it
			asked = 0
			p.w.disk.mu.Lock()
			p.w.disk.atCheck = func(key string) error {
				if key != systemDisk.URI {
					t.Errorf("%s was asked for", key)
				}
				if asked++; asked >= from {
					return errs.New(errs.Conflict, "others are built on it")
				}
				return nil
			}
			p.w.disk.mu.Unlock()
			stops := p.f.count("Stop")
			j, err := p.apply(point)
			if from == 1 {
				refused(t, errs.Conflict, "others are built on it", err)
			} else {
				p.bad("others are built on it", j, err)
			}
			if n := p.f.count("Stop"); n != stops {
				t.Errorf("the machine was stopped %d times", n-stops)
			}
			p.idle()
			p.wantState(theirs, service.InstanceRunning)
		}
		p.w.disk.mu.Lock()
		p.w.disk.atCheck = nil
		p.w.disk.mu.Unlock()
		p.good(p.apply(point))
	})
}

// What is forgotten leaves nothing in its machine; if that cannot be removed it is
// forgotten all the same.
func TestForeignForgottenWhole(t *testing.T) {
	for _, broken := range []bool{false, true} {
		inOthers(t, func(t *testing.T, p *process, o *others) {
			p.good(p.create(false, theirs, theirsData))
			p.idle()
			if broken {
				p.f.fail("Forget", errs.New(errs.Unavailable, "the daemon does not answer"))
			}
			p.good(p.DeleteInstances(context.Background(), instances(theirs)))
			p.idle()
			p.w.disk.mu.Lock()
			left := len(p.w.disk.marked)
			p.w.disk.mu.Unlock()
			if want := map[bool]int{false: 0, true: 2}[broken]; left != want {
				t.Errorf("%d disks are marked, want %d", left, want)
			}
			if p.volume(theirsData).Status != service.VolumeCeased {
				t.Error("it was not forgotten")
			}
		})
	}
}

// Each look ends what is left in machines; that it cannot changes no row.
func TestForeignTidied(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		n := p.f.count("Tidy")
		p.f.fail("Tidy", errs.New(errs.Unavailable, "the daemon does not answer"))
		o.seen(p)
		if p.f.count("Tidy") == n {
			t.Error("looks do not tidy")
		}
		o.define("renamed", systemDisk, dataDisk)
		o.seen(p)
		if i := p.instance(theirs); i.Name != "renamed" {
			t.Errorf("the instance: %+v", i)
		}
		p.f.fail("Tidy", nil)
	})
}

// A hypervisor that hangs does not hang whoever lists machines.
func TestForeignHangs(t *testing.T) {
	inOthers(t, func(t *testing.T, p *process, o *others) {
		own := p.machine(p.image())
		o.hang(true)
		defer o.hang(false)
		for _, id := range p.instances() {
			if i := p.instance(id); (i.State == service.InstanceUnknown) != (id == theirs) {
				t.Errorf("%s is %s", id, i.State)
			}
		}
		p.wantState(own, service.InstanceRunning)
	})
}
