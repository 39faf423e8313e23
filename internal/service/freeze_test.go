package service_test

import (
	"slices"
	"testing"

	"cairn/internal/job"
)

// The volumes of all drivers are held at once: managed ones, whose clients wait,
// within the others.
func TestFreezesNest(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		v := p.volumes(2)
		ids := []string{v[0], p.register("/srv/disk.raw").ID, v[1], p.register("nbd://host/export").ID}
		p.w.disk.order = nil
		j := p.good(p.create(false, ids...))
		want := []string{"nbd begin", "registered begin", "managed begin", "managed end", "registered end", "nbd end"}
		if !slices.Equal(p.w.disk.order, want) {
			t.Errorf("the freezes went %v, want %v", p.w.disk.order, want)
		}
		for i, id := range j.ResourceIDs {
			if s := p.snapshot(id); s.ResourceID != ids[i] || !s.SnapshotTime.Equal(p.snapshot(j.ResourceIDs[0]).SnapshotTime) {
				t.Errorf("point %d is of %s at %v", i, s.ResourceID, s.SnapshotTime)
			}
		}
	})
}

// A freeze that fails within another one leaves nothing of both.
func TestAFreezeThatFailsWithinAnother(t *testing.T) {
	for _, reflink := range []bool{false, true} {
		w := newWorld(t)
		w.disk.reflink = reflink
		p := w.start(nil)
		v, r := p.volumes(1)[0], p.register("/srv/disk.raw").ID
		for _, key := range []string{v, "/srv/disk.raw"} {
			w.disk.busy[key] = true
			j, err := p.create(false, r, v)
			j = p.bad("please try later", j, err)
			w.disk.busy[key] = false
			if j.Status != job.Failed {
				t.Errorf("with %s busy the job is %s", key, j.Status)
			}
			p.idle()
			if len(w.disk.holds) != 0 {
				t.Errorf("with %s busy %v stay held", key, w.disk.holds)
			}
		}
		p.good(p.create(false, r, v))
		p.idle()
		p.check()
		p.stop()
	}
}
