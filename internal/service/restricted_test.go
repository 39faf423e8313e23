package service_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

// refusing is a store that changes nothing, as the journal's is when the
// database is an older copy.
type refusing struct {
	service.Store
	reason string
}

func (r refusing) Update(context.Context, func(tx service.Tx) error) error {
	return errs.New(errs.Conflict, "%s", r.reason)
}

func (r refusing) ClaimJob(context.Context, string, []string, time.Time) (job.Job, bool, error) {
	return job.Job{}, false, nil
}

// Beside an older database points can be read, and nothing can be changed: no
// job goes on, and nobody is released.
func TestRestricted(t *testing.T) {
	w := newWorld(t)
	p := w.start(nil)
	v := p.volumes(1)[0]
	id := p.point(v)
	p.idle()
	p.stop()
	p = w.prepare(nil) // no workers: the job stays pending
	pending, err := p.create(false, v)
	if err != nil {
		t.Fatal(err)
	}
	p.stop()
	before := w.disk.clone()

	w.refused = "the database is an older copy"
	p = w.start(nil)
	defer p.stop()
	if got := p.CollectionRefused(); got != w.refused {
		t.Errorf("collection is refused because %q", got)
	}
	_, err = p.delete(id)
	refused(t, errs.Conflict, w.refused, err)
	_, err = p.create(true, v)
	refused(t, errs.Conflict, w.refused, err)
	_, err = p.ExportVolume(t.Context(), zone, v)
	refused(t, errs.Conflict, w.refused, err)
	image, err := p.ExportSnapshot(t.Context(), zone, id)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := image.WriteTo(t.Context(), &b, service.FormatRaw); err != nil {
		t.Error(err)
	}
	if err := image.Close(); err != nil {
		t.Error(err)
	}
	if j, err := p.Job(t.Context(), pending.ID); err != nil || j.Status != job.Pending {
		t.Errorf("the old job is %s, %v", j.Status, err)
	}
	if len(w.disk.blobs) != len(before.blobs) || len(w.disk.holds) != len(before.holds) {
		t.Error("the repository or a held instant was changed")
	}
	w.refused = ""
	q := w.prepare(nil)
	defer q.stop()
	if got := q.CollectionRefused(); got != "" {
		t.Errorf("a sound service refuses: %q", got)
	}
}
