package service_test

import (
	"context"
	"reflect"
	"strings"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

// TestRefusals: each answers its kind, names the object, and changes nothing.
func TestRefusals(t *testing.T) {
	p := newWorld(t).start(nil)
	defer p.stop()
	ctx := context.Background()
	v := p.volumes(2)
	one, two := p.point(v[0]), p.point(v[0])
	mars := service.Origin{Zone: "mars"}
	create := func(in service.CreateSnapshots) error {
		if in.Zone == "" {
			in.Origin = origin
		}
		if in.Resources == nil {
			in.Resources = v
		}
		_, err := p.CreateSnapshots(ctx, in)
		return err
	}
	second := func(_ any, err error) error { return err }
	volumes := func(in service.CreateVolumes) error {
		in.Origin = origin
		return second(p.CreateVolumes(ctx, in))
	}
	capture := func(id, name string) error {
		return second(p.CaptureInstance(ctx, service.CaptureInstance{Origin: origin, Snapshot: id, ImageName: name}))
	}
	clone := func(id, name string) error {
		return second(p.CreateVolumeFromSnapshot(ctx, service.CloneSnapshot{Origin: origin, Snapshot: id, VolumeName: name}))
	}
	tests := []struct {
		name  string
		err   error
		kind  errs.Kind
		words string
	}{
		{"create in an unknown zone", create(service.CreateSnapshots{Origin: mars, Name: "n"}), errs.NotFound, "mars"},
		{"create without a name", create(service.CreateSnapshots{}), errs.Invalid, "snapshot_name is empty"},
		{"create with a long name", create(service.CreateSnapshots{Name: strings.Repeat("x", 256)}), errs.Invalid, "256 characters"},
		{"create with a control character", create(service.CreateSnapshots{Name: "a\x00b"}), errs.Invalid, "control"},
		{"create with bad UTF-8", create(service.CreateSnapshots{Name: "a\xff"}), errs.Invalid, "UTF-8"},
		{"create with a long description", create(service.CreateSnapshots{Name: "n", Description: strings.Repeat("x", 1001)}), errs.Invalid, "description"},
		{"create of nothing", create(service.CreateSnapshots{Name: "n", Resources: []string{}}), errs.Invalid, "no volume is named"},
		{"create of an unknown volume", create(service.CreateSnapshots{Name: "n", Resources: []string{v[0], "vol-NONE"}}), errs.NotFound, "vol-NONE"},
		{"create of an instance", create(service.CreateSnapshots{Name: "n", Resources: []string{"ins-NONE"}}), errs.NotFound, "ins-NONE"},
		{"create of a snapshot", create(service.CreateSnapshots{Name: "n", Resources: []string{one}}), errs.Invalid, one},
		{"create of something else", create(service.CreateSnapshots{Name: "n", Resources: []string{"what"}}), errs.NotFound, "what"},
		{"delete of nothing", second(p.delete()), errs.Invalid, "no snapshot is named"},
		{"delete of an unknown point", second(p.delete(one, "ss-NONE")), errs.NotFound, "ss-NONE"},
		{"delete of a volume", second(p.delete(v[0])), errs.Invalid, v[0]},
		{"dry run of an unknown point", second(p.PlanDeleteSnapshots(ctx, set("ss-NONE"))), errs.NotFound, "ss-NONE"},
		{"apply of two points of one volume", second(p.apply(one, two)), errs.Invalid, "one point per resource"},
		{"apply of an unknown point", second(p.apply("ss-NONE")), errs.NotFound, "ss-NONE"},
		{"apply in an unknown zone", second(p.ApplySnapshots(ctx, service.ApplySnapshots{SnapshotSet: service.SnapshotSet{Origin: mars, IDs: []string{one}}})), errs.NotFound, "mars"},
		{"capture of a volume's point", capture(one, "n"), errs.Invalid, "only an instance's snapshot"},
		{"capture of an unknown point", capture("ss-NONE", "n"), errs.NotFound, "ss-NONE"},
		{"capture without a name", capture(one, ""), errs.Invalid, "image_name"},
		{"clone of an unknown point", clone("ss-NONE", "n"), errs.NotFound, "ss-NONE"},
		{"clone without a name", clone(one, ""), errs.Invalid, "volume_name"},
		{"clone of a volume", clone(v[0], "n"), errs.Invalid, v[0]},
		{"volume of size 0", volumes(service.CreateVolumes{Name: "n", Count: 1}), errs.Invalid, "size"},
		{"volume of negative size", volumes(service.CreateVolumes{Name: "n", Count: 1, SizeBytes: -1}), errs.Invalid, "size"},
		{"volume of silly size", volumes(service.CreateVolumes{Name: "n", Count: 1, SizeBytes: 1 << 60}), errs.Invalid, "size"},
		{"no volumes", volumes(service.CreateVolumes{Name: "n", SizeBytes: 1}), errs.Invalid, "count"},
		{"too many volumes", volumes(service.CreateVolumes{Name: "n", SizeBytes: 1, Count: 101}), errs.Invalid, "count"},
		{"volume without a name", volumes(service.CreateVolumes{SizeBytes: 1, Count: 1}), errs.Invalid, "volume_name"},
		{"delete of an unknown volume", second(p.deleteVolumes(v[0], "vol-NONE")), errs.NotFound, "vol-NONE"},
		{"delete of a snapshot as a volume", second(p.deleteVolumes(one)), errs.Invalid, one},
		{"resize of an unknown volume", second(p.resize(500, "vol-NONE")), errs.NotFound, "vol-NONE"},
		{"import of size 0", second(p.imported("", 0)), errs.Invalid, "size"},
		{"list of an unknown zone", second(p.Snapshots(ctx, service.SnapshotFilter{Zone: "mars"})), errs.NotFound, "mars"},
		{"volumes of an unknown zone", second(p.Volumes(ctx, service.VolumeFilter{Zone: "mars"})), errs.NotFound, "mars"},
		{"jobs of an unknown zone", second(p.UnfinishedJobs(ctx, "mars")), errs.NotFound, "mars"},
		{"unknown job", second(p.Job(ctx, "none")), errs.NotFound, "none"},
		{"scrub of an unknown zone", second(p.Scrub(ctx, service.Origin{Zone: "mars"}, service.ScrubOptions{})), errs.NotFound, "mars"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { refused(t, tt.kind, tt.words, tt.err) })
	}
	p.idle()
	before := p.all()
	if len(before.jobs) != 3 || len(before.volumes) != 2 || len(before.points) != 2 {
		t.Errorf("%d jobs, %d volumes, %d points", len(before.jobs), len(before.volumes), len(before.points))
	}
	// Refusing again changes no row either.
	for _, again := range []error{second(p.apply(one, two)), second(p.delete(one, "ss-NONE")), second(p.deleteVolumes(v[0], "vol-NONE"))} {
		if again == nil {
			t.Error("it was not refused")
		}
	}
	if after := p.all(); !reflect.DeepEqual(before, after) {
		t.Errorf("rows changed from %+v to %+v", before, after)
	}
	p.check()
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := service.New(context.Background(), service.Config{}); !errs.Is(err, errs.Invalid) {
		t.Errorf("an empty configuration: %v", err)
	}
}

func TestSubscribersSeeEveryChange(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ctx, cancel := context.WithCancel(context.Background())
		feed := p.Subscribe(ctx)
		v := p.volumes(1)[0]
		id := p.point(v)
		got := map[job.Action]string{}
		for range 6 {
			j := <-feed
			got[j.Action] += string(j.Status) + " "
		}
		cancel()
		// Of each job in order; that one has ended may be told after the next began.
		want := "pending working successful "
		if len(got) != 2 || got[job.CreateVolume] != want || got[job.CreateSnapshots] != want {
			t.Errorf("got %v", got)
		}
		page, err := p.Jobs(context.Background(), service.JobFilter{Resource: id, Limit: 10})
		if err != nil || page.Total != 1 || page.Jobs[0].Fraction() != 1 {
			t.Errorf("jobs of %s: %+v, %v", id, page, err)
		}
	})
}
