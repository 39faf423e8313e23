package service_test

import (
	"context"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

// model is what ought to be there after a random history of operations,
// faults, kills and restarts.
type model struct {
	w       *world
	p       *process
	points  map[string]string // live point → content
	of      map[string]string // live point → volume
	volumes map[string]string // live volume → content; mixed ones hold mixed
	n       int               // makes contents unique
}

func (m *model) pick(t *rapid.T, from map[string]string) string {
	if len(from) == 0 {
		t.Skip("there is none")
	}
	return rapid.SampledFrom(slices.Sorted(maps.Keys(from))).Draw(t, "id")
}

// act runs one operation on a process that may be killed at a random call,
// and finishes it on the next one. ok: the job succeeded.
func (m *model) act(t *rapid.T, do func() (job.Job, error)) (j job.Job, ok bool) {
	before := m.p.all().jobs
	m.p.f.mu.Lock()
	m.p.f.calls, m.p.f.at = 0, 0
	if rapid.IntRange(0, 2).Draw(t, "kill") == 0 {
		m.p.f.at, m.p.f.after = rapid.IntRange(1, 15).Draw(t, "call"), rapid.Bool().Draw(t, "after")
	}
	m.p.f.mu.Unlock()
	j, err := do()
	if err == nil {
		m.p.until("the end or the death", func() bool {
			if m.p.f.isDead() {
				return true
			}
			got, err := m.p.Job(context.Background(), j.ID)
			return err == nil && got.Status.Ended() && m.p.released()
		})
	}
	if m.p.f.isDead() {
		m.restart()
	} else if err != nil {
		if k := errs.KindOf(err); k != errs.Conflict && k != errs.Invalid {
			t.Fatalf("refused: %v", err)
		}
		return j, false
	}
	m.p.idle()
	for id, now := range m.p.all().jobs {
		if _, old := before[id]; !old {
			return now, now.Status == job.Successful
		}
	}
	return j, false
}

func (m *model) restart() {
	m.p.stop()
	m.p = m.w.start(nil)
}

func (m *model) write(t *rapid.T) {
	v := m.pick(t, m.volumes)
	if m.volumes[v] == mixed {
		t.Skip("nobody knows what it holds")
	}
	m.n++
	m.volumes[v] = "content " + string(rune('A'+m.n%26)) + v
	size := m.p.volume(v).SizeBytes
	m.w.disk.put(v, m.volumes[v], size)
}

func (m *model) create(t *rapid.T) {
	v := []string{m.pick(t, m.volumes), m.pick(t, m.volumes)}
	j, ok := m.act(t, func() (job.Job, error) { return m.p.create(rapid.Bool().Draw(t, "full"), v...) })
	if !ok {
		return
	}
	for _, id := range j.ResourceIDs {
		s := m.p.snapshot(id)
		m.points[id], m.of[id] = m.volumes[s.ResourceID], s.ResourceID
	}
}

func (m *model) apply(t *rapid.T) {
	id := m.pick(t, m.points)
	v := m.of[id]
	if rapid.IntRange(0, 4).Draw(t, "fault") == 0 {
		m.p.f.fail("RestoreEnd", errs.New(errs.Corrupt, "a chunk is damaged"))
	}
	j, ok := m.act(t, func() (job.Job, error) { return m.p.apply(id) })
	m.p.f.fail("RestoreEnd", nil)
	if _, there := m.volumes[v]; !there {
		if ok {
			t.Fatalf("%s was applied to a volume that is gone", id)
		}
		return
	}
	switch {
	case ok:
		m.volumes[v] = m.points[id]
	case j.ID != "" && m.p.volume(v).MixedJob == j.ID:
		m.volumes[v] = mixed
	}
}

func (m *model) clone(t *rapid.T) {
	id := m.pick(t, m.points)
	if j, ok := m.act(t, func() (job.Job, error) { return m.p.clone(id) }); ok {
		m.volumes[j.ResourceIDs[0]] = m.points[id]
	}
}

func (m *model) delete(t *rapid.T) {
	id := m.pick(t, m.points)
	plan, err := m.p.PlanDeleteSnapshots(context.Background(), set(id))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := m.act(t, func() (job.Job, error) { return m.p.delete(id) }); !ok {
		return
	}
	for _, id := range plan.IDs {
		if _, live := m.points[id]; !live {
			t.Fatalf("%s was deleted twice", id)
		}
		delete(m.points, id)
	}
}

func (m *model) deleteVolume(t *rapid.T) {
	if len(m.volumes) < 3 {
		t.Skip("keep some")
	}
	v := m.pick(t, m.volumes)
	if _, ok := m.act(t, func() (job.Job, error) { return m.p.deleteVolumes(v) }); ok {
		delete(m.volumes, v)
	}
}

func (m *model) resize(t *rapid.T) {
	v := m.pick(t, m.volumes)
	size := m.p.volume(v).SizeBytes + int64(rapid.IntRange(0, 5).Draw(t, "more"))
	m.act(t, func() (job.Job, error) { return m.p.resize(size, v) })
}

// check compares the rows and the disk with the model.
func (m *model) check(t *rapid.T) {
	m.p.check()
	live := map[string]bool{}
	for _, s := range m.p.all().points {
		if s.Status != chain.Available {
			continue
		}
		live[s.ID] = true
		if want, ok := m.points[s.ID]; !ok || m.p.pointContent(s.ID) != want {
			t.Fatalf("point %s holds %q, want %q (%v)", s.ID, m.p.pointContent(s.ID), want, ok)
		}
	}
	if len(live) != len(m.points) {
		t.Fatalf("%d points are available, want %d", len(live), len(m.points))
	}
	for v, want := range m.volumes {
		row := m.p.volume(v)
		if got := m.p.content(v); row.Status != service.VolumeAvailable || got != want {
			t.Fatalf("volume %s is %s and holds %q, want %q", v, row.Status, got, want)
		}
		if (row.MixedJob != "") != (want == mixed) {
			t.Fatalf("volume %s is marked by %q and holds %q", v, row.MixedJob, want)
		}
	}
}

// TestHistories runs random histories; rapid prints the seed of a failure.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.max = rapid.IntRange(1, 4).Draw(rt, "max")
		w.disk.reflink = rapid.Bool().Draw(rt, "reflink")
		m := &model{w: w, p: w.start(nil), points: map[string]string{}, of: map[string]string{}, volumes: map[string]string{}}
		defer func() { m.p.stop() }()
		for _, v := range m.p.volumes(2) {
			m.volumes[v] = m.p.content(v)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": m.write, "create": m.create, "create again": m.create, "apply": m.apply, "clone": m.clone,
			"delete": m.delete, "delete volume": m.deleteVolume, "resize": m.resize,
			"restart": func(*rapid.T) { m.restart() }, "": m.check,
		})
	})
}
