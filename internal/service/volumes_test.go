package service_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

func TestRegister(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ctx := context.Background()
		r := p.register("/srv/disk.raw")
		if r.Driver != service.DriverRegistered || r.Status != service.VolumeAvailable || r.SizeBytes != volumeSize {
			t.Errorf("registered: %+v", r)
		}
		const uri = "nbd://host/export"
		if n := p.register(uri); n.Driver != service.DriverNBD || n.Path != uri {
			t.Errorf("registered by URI: %+v", n)
		}
		local := service.Origin{Zone: zone, Local: true}
		own := filepath.Join(filepath.Dir(p.w.path), "volumes", "vol-A.raw")
		p.w.disk.put(own, "ours", volumeSize)
		p.w.disk.put("/srv/empty", "", 0)
		tests := []struct {
			name  string
			in    service.RegisterVolume
			kind  errs.Kind
			words string
		}{
			{"over the network", service.RegisterVolume{Origin: origin, Path: "/srv/disk.raw", Name: "n"}, errs.Denied, "unix socket"},
			{"a URI over the network", service.RegisterVolume{Origin: origin, Path: uri, Name: "n"}, errs.Denied, "unix socket"},
			{"a URI twice", service.RegisterVolume{Origin: local, Path: uri, Name: "n"}, errs.Exists, uri},
			{"another scheme", service.RegisterVolume{Origin: local, Path: "http://host/", Name: "n"}, errs.NotFound, "nothing"},
			{"twice", service.RegisterVolume{Origin: local, Path: "/srv/disk.raw", Name: "n"}, errs.Exists, r.ID},
			{"our own file", service.RegisterVolume{Origin: local, Path: own, Name: "n"}, errs.Invalid, "belongs to this service"},
			{"relative", service.RegisterVolume{Origin: local, Path: "disk.raw", Name: "n"}, errs.Invalid, "not absolute"},
			{"nothing there", service.RegisterVolume{Origin: local, Path: "/srv/none", Name: "n"}, errs.NotFound, "nothing"},
			{"empty file", service.RegisterVolume{Origin: local, Path: "/srv/empty", Name: "n"}, errs.Invalid, "size"},
			{"no name", service.RegisterVolume{Origin: local, Path: "/srv/other", Name: " "}, errs.Invalid, "volume_name is empty"},
			{"unknown zone", service.RegisterVolume{Origin: service.Origin{Zone: "mars", Local: true}, Path: "/srv/other", Name: "n"}, errs.NotFound, "mars"},
		}
		for _, tt := range tests {
			_, err := p.RegisterVolume(ctx, tt.in)
			t.Run(tt.name, func(t *testing.T) { refused(t, tt.kind, tt.words, err) })
		}
		p.good(p.deleteVolumes(r.ID))
		p.register("/srv/disk.raw") // forgotten, so it may come back
	})
}

func TestImport(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		j := p.good(p.imported("0123456789", 10))
		v := p.volume(j.ResourceIDs[0])
		if v.SizeBytes != 10 || v.Status != service.VolumeAvailable || p.content(v.ID) != "0123456789" {
			t.Errorf("imported: %+v holds %q", v, p.content(v.ID))
		}
		j, err := p.imported("0123", 10)
		j = p.bad("ended after 4 of 10", j, err)
		if _, ok := p.w.disk.get(j.ResourceIDs[0]); ok || p.volume(j.ResourceIDs[0]).Status != service.VolumeCeased {
			t.Error("a cut import left a volume")
		}
	})
}

func TestAnImportWhoseClientVanishes(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ctx, cancel := context.WithCancel(context.Background())
		r, w := io.Pipe()
		go func() {
			_, _ = io.WriteString(w, "01234")
			cancel()
			_ = w.CloseWithError(errors.New("connection reset"))
		}()
		j, err := p.ImportVolume(ctx, service.ImportVolume{Origin: origin, Name: "n", SizeBytes: 10, Stream: service.Flat(r, 10)})
		j = p.bad("the client went away", j, err)
		if _, ok := p.w.disk.get(j.ResourceIDs[0]); ok {
			t.Error("it left data")
		}
	})
}

func TestAnImportDoesNotOutliveItsProcess(t *testing.T) {
	w := newWorld(t)
	p := w.start(nil)
	r, pipe := io.Pipe()
	got := make(chan job.Job)
	go func() {
		j, err := p.ImportVolume(context.Background(), service.ImportVolume{Origin: origin, Name: "n", SizeBytes: 10, Stream: service.Flat(r, 10)})
		if err != nil {
			t.Error(err)
		}
		got <- j
	}()
	if _, err := io.WriteString(pipe, "01234"); err != nil {
		t.Fatal(err)
	}
	p.cancel() // SIGTERM
	p.until("the stop has reached the jobs", func() bool {
		_, err := p.imported("x", 1)
		return errs.Is(err, errs.Unavailable)
	})
	// Only now does the server close its connections.
	_ = pipe.CloseWithError(errors.New("the server is stopping"))
	j := <-got
	if j.Status != job.Working {
		t.Errorf("the stop ended the job: %+v", j)
	}
	p.stop()
	p = w.start(nil)
	defer p.stop()
	p.bad("import the volume again", j, nil)
	p.idle() // the import that the stop refused is taken back too
	p.check()
}

func TestResize(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		v := p.volumes(2)
		p.good(p.resize(150, v...))
		if p.volume(v[0]).SizeBytes != 150 || p.w.disk.size[v[1]] != 150 {
			t.Error("they did not grow")
		}
		_, err := p.resize(150, v[0])
		refused(t, errs.Conflict, "only grow", err)
		_, err = p.resize(100, v[0])
		refused(t, errs.Conflict, "only grow", err)
		_, err = p.resize(0, v[0])
		refused(t, errs.Invalid, "1 byte to 1 PiB", err)
		_, err = p.resize(500, p.register("/srv/disk.raw").ID)
		refused(t, errs.Conflict, "is registered", err)
		p.f.fail("Grow", errs.New(errs.Full, "no space is left"))
		j, err := p.resize(500, v[0])
		p.bad("no space is left", j, err)
		if got := p.volume(v[0]); got.SizeBytes != 150 || got.Transition != "" {
			t.Errorf("after the failure: %+v", got)
		}
	})
}

func TestDeleteVolumes(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		v := p.volumes(3)
		id := p.point(v[0])
		p.good(p.deleteVolumes(v[0]))
		if s := p.snapshot(id); s.IsHead || s.HeadChain || s.ResourceName != "volume" {
			t.Errorf("the surviving point: %+v", s)
		}
		_, err := p.deleteVolumes(v[0])
		refused(t, errs.NotFound, v[0], err)
		p.f.fail("Remove", errors.New("I/O error"))
		j, err := p.deleteVolumes(v[1], v[2])
		p.bad("internal error", j, err)
		p.f.fail("Remove", nil)
		p.good(p.deleteVolumes(v[1], v[2]))
	})
}

func TestExport(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ctx := context.Background()
		v := p.volumes(1)[0]
		id := p.point(v)
		p.write(v, "live")
		live, err := p.ExportVolume(ctx, zone, v)
		if err != nil {
			t.Fatal(err)
		}
		point, err := p.ExportSnapshot(ctx, zone, id)
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.create(false, v)
		refused(t, errs.Busy, "being exported", err)
		_, err = p.delete(id)
		refused(t, errs.Busy, "being exported", err)
		for img, want := range map[engine.Image]string{live: "live", point: "first on " + v} {
			var b bytes.Buffer
			if err := errors.Join(img.WriteTo(ctx, &b, engine.FormatRaw), img.Close(), img.Close()); err != nil || b.String() != want {
				t.Errorf("exported %q, %v", b.String(), err)
			}
		}
		p.good(p.delete(p.point(v)))

		p.mover.during = func() { p.write(v, "changed meanwhile") }
		live, err = p.ExportVolume(ctx, zone, v)
		if err != nil {
			t.Fatal(err)
		}
		if err := live.WriteTo(ctx, io.Discard, engine.FormatRaw); !errs.Is(err, errs.Conflict) {
			t.Errorf("a mixture was exported as good: %v", err)
		}
		if err := live.Close(); err != nil {
			t.Error(err)
		}
		p.mover.during = nil
		p.w.disk.busy[v] = true
		_, err = p.ExportVolume(ctx, zone, v)
		refused(t, errs.Busy, "open for writing", err)
		_, err = p.ExportSnapshot(ctx, zone, v)
		refused(t, errs.Invalid, "is the id of a volume", err)
	})
}

func TestAnExportDoesNotOutliveItsProcess(t *testing.T) {
	w := newWorld(t)
	w.disk.reflink = true
	p := w.start(nil)
	v := p.volumes(1)[0]
	id := p.point(v)
	for _, open := range []func() (engine.Image, error){
		func() (engine.Image, error) { return p.ExportVolume(context.Background(), zone, v) },
		func() (engine.Image, error) { return p.ExportSnapshot(context.Background(), zone, id) },
	} {
		if _, err := open(); err != nil {
			t.Fatal(err)
		}
	}
	p.stop() // neither was closed
	p = w.start(nil)
	defer p.stop()
	p.check()
	p.point(v)
	p.idle()
}

func TestRename(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ctx := context.Background()
		v := p.volumes(2)
		id := p.point(v[0])
		name, text, empty, long := "new name", "new text", "", strings.Repeat("ä", 256)
		s, err := p.RenameSnapshot(ctx, service.Rename{Origin: origin, IDs: []string{id}, Name: &name})
		if err != nil || s.Name != name || s.Description != "" || p.snapshot(id).Name != name {
			t.Errorf("renamed: %+v, %v", s, err)
		}
		s, err = p.RenameSnapshot(ctx, service.Rename{Origin: origin, IDs: []string{id}, Description: &text})
		if err != nil || s.Name != name || s.Description != text {
			t.Errorf("described: %+v, %v", s, err)
		}
		_, err = p.RenameSnapshot(ctx, service.Rename{Origin: origin, IDs: []string{id}, Name: &empty})
		refused(t, errs.Invalid, "snapshot_name is empty", err)
		if err := p.RenameVolumes(ctx, service.Rename{Origin: origin, IDs: v, Name: &name, Description: &text}); err != nil {
			t.Error(err)
		}
		if got := p.volume(v[1]); got.Name != name || got.Description != text {
			t.Errorf("renamed: %+v", got)
		}
		refused(t, errs.Invalid, "256 characters", p.RenameVolumes(ctx, service.Rename{Origin: origin, IDs: v, Name: &long}))
		refused(t, errs.NotFound, "vol-NONE", p.RenameVolumes(ctx, service.Rename{Origin: origin, IDs: []string{v[0], "vol-NONE"}, Name: &text}))
		if p.volume(v[0]).Name != name {
			t.Error("a refused rename changed something")
		}
	})
}
