package service_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/extent"
)

// trackedFrom is what the driver was told to track changes of a volume from.
func (p *process) trackedFrom(key string) string {
	p.w.disk.mu.Lock()
	defer p.w.disk.mu.Unlock()
	return string(p.w.disk.tracked[key])
}

// Committed points are what changes count from, each its own volume's, whatever
// order the call names them in; also if the answer to the commit is lost, and if
// the job's end has fenced the run off by the time that shows.
func TestTrackingIsSettled(t *testing.T) {
	for _, tt := range []struct {
		name    string
		reflink bool
		lost    bool
		late    time.Duration
	}{
		{name: "locks"},
		{name: "reflinks", reflink: true},
		{name: "the answer is lost", lost: true},
		{name: "the answer is lost, late", lost: true, late: 1500 * time.Millisecond}, // progress is written twice a second
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.disk.reflink = tt.reflink
			p := w.start(nil)
			defer p.stop()
			v := p.volumes(2)
			ids := []string{v[1], p.register("/srv/disk.raw").ID, v[0], p.register("/srv/other.raw").ID}
			captures := 0
			p.mover.during = func() {
				if captures++; tt.lost && captures == len(ids) { // what is updated next is the commit
					p.f.lose("Update", tt.late)
				}
			}
			p.good(p.create(false, ids...))
			p.idle()
			for _, key := range []string{v[0], v[1], "/srv/disk.raw", "/srv/other.raw"} {
				if got, want := p.trackedFrom(key), p.content(key); got != want {
					t.Errorf("%s is tracked from %q, the point holds %q", key, got, want)
				}
			}
			p.check()
		})
	}
}

// A job that fails settles nothing; a driver that cannot settle fails nothing.
func TestTrackingIsNotSettled(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		v := p.volumes(1)[0]
		p.point(v)
		p.idle()
		before := p.trackedFrom(v)
		p.write(v, "second")
		p.f.fail("Put", errs.New(errs.Unavailable, "the repository does not answer"))
		j, err := p.create(false, v)
		p.bad("does not answer", j, err)
		p.f.fail("Put", nil)
		p.idle()
		if got := p.trackedFrom(v); got != before {
			t.Errorf("after a failed job it is tracked from %q, before from %q", got, before)
		}
		p.f.fail("Settle", errors.New("broken"))
		p.point(v)
		p.idle()
		if got := p.trackedFrom(v); got != before {
			t.Errorf("Settle failed, but it is tracked from %q", got)
		}
	})
}

// Whoever sees that a point is there may take the next one: the end of a job is
// committed while its drivers still have the volumes, and wait for them no more.
func TestInstantsAreHeldUntilTheEnd(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ids := append(p.volumes(2), p.register("/srv/disk.raw").ID)
		settled := 0
		p.w.disk.settle = func(commit func() error) error {
			unfinished := func() int {
				jobs, err := p.UnfinishedJobs(context.Background(), zone)
				if err != nil {
					t.Error(err)
				}
				return len(jobs)
			}
			if n := unfinished(); n != 1 {
				t.Errorf("%d jobs are under way before the commit", n)
			}
			err := commit()
			if n := unfinished(); err == nil && n != 0 {
				t.Errorf("%d jobs are under way after the commit", n)
			}
			settled++
			return err
		}
		p.good(p.create(false, ids...))
		p.idle()
		if settled != 2 {
			t.Errorf("%d drivers settled, want 2", settled)
		}
	})
}

// The row says how changes were found. If tracking was wrong, row, job and log
// say so.
func TestWhatAnAuditFound(t *testing.T) {
	w := newWorld(t)
	var log bytes.Buffer
	w.log = slog.New(slog.NewTextHandler(&log, nil))
	p := w.start(nil)
	v := p.volumes(2)
	p.good(p.create(false, v...))
	p.mover.audit = map[string]engine.Audit{v[0]: {Bytes: 4 << 20}, v[1]: {Bytes: 2 << 20, Wrong: []extent.Range{{Off: 65536, Len: 131072}}}}
	j := p.good(p.create(false, v...))
	right, wrong := p.snapshot(j.ResourceIDs[0]), p.snapshot(j.ResourceIDs[1])
	const finding = "was wrong (of 2097152 bytes that it called unchanged and that were compared, 131072 had changed), so everything was read"
	if right.CBT != engine.CBTTracked || strings.Contains(right.Reason, "wrong") {
		t.Errorf("tracked: %q, %q", right.CBT, right.Reason)
	}
	if wrong.CBT != engine.CBTScan || !strings.HasPrefix(wrong.Reason, "incremental on ") || !strings.HasSuffix(wrong.Reason, "; the change tracking of "+v[1]+" "+finding) {
		t.Errorf("wrongly tracked: %q, %q", wrong.CBT, wrong.Reason)
	}
	if j.Info != wrong.ID+": the change tracking of "+v[1]+" "+finding {
		t.Errorf("the job says %q", j.Info)
	}
	p.idle()
	p.check()
	p.stop()
	var lines []string
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "level=ERROR") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 || !strings.Contains(lines[0], v[1]) || !strings.Contains(lines[0], "[{Off:65536 Len:131072}]") {
		t.Errorf("the log says %q", lines)
	}
}
