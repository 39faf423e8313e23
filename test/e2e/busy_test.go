package e2e

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"cairn/test/e2e/harness"
)

// bigSize is what a volume must have for its jobs to last while a test makes
// a few calls.
const bigSize = 192 * mib

// busyWorld has one volume whose jobs last.
type busyWorld struct {
	*fixture
	big *modelVolume
	ss  string // an available point of it
}

// TestBusy meets jobs while they run: what their objects look like, what is
// refused, and what a cancel leaves.
func TestBusy(t *testing.T) {
	b := &busyWorld{fixture: &fixture{world: &world{srv: serve(t), dir: t.TempDir()}}}
	img := harness.NewImage(bigSize)
	for off := int64(0); off < bigSize; off += mib {
		img.Apply(harness.Edit{Kind: harness.WriteNoise, Off: off, Len: mib, Seed: uint64(off)})
	}
	b.big = b.world.register(t, img)
	b.ss = b.api().OK(t, b.startCreate(t)).ResourceIDs[0]

	t.Run("a point being created, and its busy volume", b.whileCreating)
	t.Run("a cancelled create leaves nothing behind", b.cancelCreate)
	t.Run("a point that a job reads cannot be deleted until then", b.deletePinned)
	t.Run("a cancelled create_volume leaves no volume", b.cancelClone)
	t.Run("a volume is free when its export has ended", b.exportThenUse)
	t.Run("an export of a volume that its owner writes to is never taken for whole", b.writeDuringExport)
	t.Run("an apply that has begun to write cannot be cancelled", b.cancelApply)
}

func (b *busyWorld) startCreate(t *testing.T) harness.Job {
	t.Helper()
	return b.api().Send(t, http.MethodPost, "volume_snapshots",
		map[string]any{"resources": []string{b.big.id}, "snapshot_name": "big", "is_full": 1}).Begin(t)
}

func (b *busyWorld) startClone(t *testing.T) harness.Job {
	t.Helper()
	return b.api().Send(t, http.MethodPost, "volume_snapshots/create_volume/"+b.ss, map[string]any{"volume_name": "copy"}).Begin(t)
}

func (b *busyWorld) startApply(t *testing.T) harness.Job {
	t.Helper()
	all := harness.Edit{Kind: harness.WriteNoise, Len: b.big.content.Size(), Seed: 1}
	if err := all.ApplyFile(b.big.path); err != nil {
		t.Fatal(err)
	}
	return b.api().Send(t, http.MethodPost, "volume_snapshots/apply", map[string]any{"snapshots": []string{b.ss}}).Begin(t)
}

// during starts a job and calls fn while it runs; fn reports whether it came
// in time. It tries a few times, so that a slow moment of the test itself
// decides nothing.
func (b *busyWorld) during(t *testing.T, start func(*testing.T) harness.Job, fn func(j harness.Job) (inTime bool)) harness.Job {
	t.Helper()
	for range 5 {
		j := start(t)
		inTime := fn(j)
		j = b.api().Wait(t, j.ID)
		if inTime {
			return j
		}
	}
	t.Fatalf("the job was always over before the calls that should meet it")
	return harness.Job{}
}

// busy reports whether a call was refused as it must be while a job runs.
func (b *busyWorld) busy(t *testing.T, what string, r harness.Response) bool {
	t.Helper()
	if r.Status == http.StatusOK {
		if strings.Contains(r.Call, "export") {
			return false
		}
		b.api().Wait(t, r.Begin(t).ID)
		return false
	}
	if msg := r.WantError(t, http.StatusConflict, "1400"); !strings.HasSuffix(msg, "please try later") {
		t.Errorf("%s: %q does not end in `please try later`", what, msg)
	}
	return true
}

// cancelled reports whether a cancel was taken.
func (b *busyWorld) cancelled(t *testing.T, j harness.Job) bool {
	t.Helper()
	return b.api().Send(t, http.MethodPost, "job/"+j.ID+"/cancel", map[string]any{}).Status == http.StatusOK
}

func (b *busyWorld) whileCreating(t *testing.T) {
	api := b.api()
	b.during(t, b.startCreate, func(j harness.Job) bool {
		s := api.MustSnapshot(t, j.ResourceIDs[0])
		if s.Status != "pending" {
			return false
		}
		if s.Transition != "creating" || s.IsHead != 0 || s.Progress >= 1 {
			t.Errorf("pending point %+v", s)
		}
		listed := false
		for _, u := range api.Unfinished(t) {
			listed = listed || u.ID == j.ID
		}
		return listed &&
			b.busy(t, "second create", api.Send(t, http.MethodPost, "volume_snapshots",
				map[string]any{"resources": []string{b.big.id}, "snapshot_name": "second"})) &&
			b.busy(t, "delete of the point", api.Do(t, harness.Request{Method: http.MethodDelete, Path: "volume_snapshots/" + s.ID})) &&
			b.busy(t, "apply of the point", api.Send(t, http.MethodPost, "volume_snapshots/apply", map[string]any{"snapshots": []string{s.ID}})) &&
			b.busy(t, "create_volume of the point", api.Send(t, http.MethodPost, "volume_snapshots/create_volume/"+s.ID, map[string]any{"volume_name": "x"})) &&
			b.busy(t, "apply of an older point", api.Send(t, http.MethodPost, "volume_snapshots/apply", map[string]any{"snapshots": []string{b.ss}}))
	})
}

func (b *busyWorld) head(t *testing.T) string {
	t.Helper()
	for _, s := range b.api().Snapshots(t, url.Values{"resource_id": {b.big.id}}) {
		if s.IsHead == 1 {
			return s.ID
		}
	}
	return ""
}

func (b *busyWorld) cancelCreate(t *testing.T) {
	var head string
	j := b.during(t, b.startCreate, func(j harness.Job) bool {
		head = b.head(t)
		return b.cancelled(t, j)
	})
	if j.Status == "successful" {
		t.Skip("skipped: the job had committed before the cancel was seen")
	}
	s := b.api().MustSnapshot(t, j.ResourceIDs[0])
	if j.Status != "failed" || j.Error == nil || s.Status != "ceased" || s.IsHead != 0 || b.head(t) != head {
		t.Errorf("job %+v, point %+v, head %s (was %s)", j, s, b.head(t), head)
	}
	b.api().ScrubClean(t)
	b.api().OK(t, b.startCreate(t)) // nothing stays locked
}

func (b *busyWorld) deletePinned(t *testing.T) {
	j := b.during(t, b.startClone, func(j harness.Job) bool {
		r := b.api().Do(t, harness.Request{Method: http.MethodDelete, Path: "volume_snapshots/" + b.ss})
		if r.Status == http.StatusOK {
			if !b.api().Job(t, j.ID).Ended() {
				t.Fatalf("%s was deleted while job %s reads it", b.ss, j.ID)
			}
			b.api().Wait(t, r.Begin(t).ID)
			b.ss = b.api().OK(t, b.startCreate(t)).ResourceIDs[0]
			return false
		}
		r.WantError(t, http.StatusConflict, "1400")
		return true
	})
	b.api().OK(t, j)
	b.api().WantContent(t, "volumes", j.ResourceIDs[0], b.big.content)
	b.api().DeleteVolumes(t, j.ResourceIDs[0])
}

func (b *busyWorld) cancelClone(t *testing.T) {
	j := b.during(t, b.startClone, func(j harness.Job) bool { return b.cancelled(t, j) })
	if j.Status == "successful" {
		t.Skip("skipped: the job was done before the cancel was seen")
	}
	rows := b.api().Volumes(t, url.Values{"volumes": {j.ResourceIDs[0]}})
	if j.Status != "failed" || len(rows) == 1 && rows[0].Status != "ceased" {
		t.Errorf("job %+v, volumes %+v", j, rows)
	}
	if r := b.api().Do(t, harness.Request{Method: http.MethodDelete, Path: "volume_snapshots/" + b.ss + "?dry_run=1"}); r.Status != http.StatusOK {
		t.Errorf("the point stays pinned: %d %s", r.Status, r.Body)
	}
}

// exportThenUse follows each export with a call that needs the volume alone.
func (b *busyWorld) exportThenUse(t *testing.T) {
	img := harness.NewImage(300_000)
	img.Apply(harness.Edit{Kind: harness.WriteNoise, Len: 300_000, Seed: 1})
	v := b.importVolume(t, img)
	for range 50 {
		b.api().WantContent(t, "volumes", v.id, img)
		b.create(t, true, v)
		b.api().WantContent(t, "volume_snapshots", v.head, img)
		b.remove(t, b.point(v.head))
	}
}

// writeDuringExport changes the end of a registered file while its export is
// held up at the start. The writer may be made to wait, or the export breaks;
// a whole answer is the old content.
func (b *busyWorld) writeDuringExport(t *testing.T) {
	old, wrote := b.big.content.Clone(), make(chan error, 1)
	e := harness.Edit{Kind: harness.WriteNoise, Off: bigSize - 5000, Len: 4000, Seed: 9}
	status, differs, err := b.api().SlowExport(b.big.id, old, func() {
		go func() { wrote <- e.ApplyFile(b.big.path) }()
		time.Sleep(100 * time.Millisecond) // the writer comes while the export lasts
	})
	if err == nil && status == http.StatusOK && differs != nil {
		t.Errorf("a mixture was served as whole: %v", differs)
	}
	t.Logf("export while its owner writes: status %d, error %v", status, err)
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	b.big.content.Apply(e)
	b.api().WantContent(t, "volumes", b.big.id, b.big.content) // and is free again
	b.ss = b.api().OK(t, b.startCreate(t)).ResourceIDs[0]
}

func (b *busyWorld) cancelApply(t *testing.T) {
	img, api := b.big.content.Clone(), b.api()
	j := b.during(t, b.startApply, func(j harness.Job) bool {
		harness.Poll(time.Minute, func() bool {
			return api.MustVolume(t, b.big.id).MixedJob != "" || api.Job(t, j.ID).Ended()
		})
		refused := b.busy(t, "create on a volume being applied", api.Send(t, http.MethodPost, "volume_snapshots",
			map[string]any{"resources": []string{b.big.id}, "snapshot_name": "x"}))
		refused = refused && b.busy(t, "export of a volume being applied", api.Get(t, "volumes/"+b.big.id+"/export"))
		r := api.Send(t, http.MethodPost, "job/"+j.ID+"/cancel", map[string]any{})
		r.WantError(t, http.StatusConflict, "1400") // it cannot be cancelled, or has ended
		return refused && !api.Job(t, j.ID).Ended()
	})
	if j.Status != "successful" {
		t.Errorf("job %+v", j)
	}
	b.big.content = img
	img.WantFile(t, b.big.path)
}
