package metadbtest

import (
	"encoding/json"
	"testing"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

// machine is the row of a machine's system disk.
func machine(id string, created int) service.Volume {
	v := volume(id, created)
	v.Status, v.InstanceID, v.Device, v.CPUs, v.Memory, v.Image = service.VolumeInUse, id, "vda", 2, 1<<30, "img-A"
	return v
}

// testMachines: machines are volumes that no list of volumes shows.
func testMachines(t *testing.T, s service.Store) {
	attached := volume("vol-A", 1)
	attached.Status, attached.InstanceID, attached.Device = service.VolumeInUse, "ins-A", "vdc"
	second := attached
	second.ID, second.Device = "vol-B", "vdb"
	gone := attached
	gone.ID, gone.Status = "vol-C", service.VolumeCeased
	update(t, s, func(tx service.Tx) error {
		for _, v := range []service.Volume{attached, machine("ins-A", 2), second, gone, machine("ins-B", 3), volume("vol-F", 4)} {
			must(t, tx.InsertVolume(v))
		}
		return nil
	})
	ids := func(rows []service.Volume) (ids []string) {
		for _, r := range rows {
			ids = append(ids, r.ID)
		}
		return ids
	}
	view(t, s, func(tx service.Tx) error {
		got, err := tx.Volume("ac1", "ins-A")
		must(t, err)
		equal(t, "a stored machine", got, machine("ins-A", 2))
		rows, total, err := tx.Volumes(service.VolumeFilter{Zone: "ac1", Limit: 10})
		must(t, err)
		equal(t, "volumes", ids(rows), []string{"vol-F", "vol-A", "vol-B"})
		equal(t, "how many", total, 3)
		rows, total, err = tx.Volumes(service.VolumeFilter{Zone: "ac1", Instances: true, Limit: 10})
		must(t, err)
		equal(t, "machines", ids(rows), []string{"ins-B", "ins-A"})
		equal(t, "how many machines", total, 2)
		rows, _, err = tx.Volumes(service.VolumeFilter{Zone: "ac1", IDs: []string{"ins-A", "vol-A"}, Limit: 10})
		must(t, err)
		equal(t, "by id", ids(rows), []string{"vol-A"})
		rows, err = tx.VolumesOf("ins-A")
		must(t, err)
		equal(t, "of a machine, its system disk first", ids(rows), []string{"ins-A", "vol-B", "vol-A"})
		rows, err = tx.VolumesOf("")
		equal(t, "of none", len(rows), 0)
		_, absent := tx.Volume("", "ins-X")
		kind(t, absent, errs.NotFound, "instance ins-X")
		return err
	})
	twin := volume("vol-D", 0)
	twin.InstanceID, twin.Device = "ins-A", "vdb"
	kind(t, s.Update(t.Context(), func(tx service.Tx) error { return tx.InsertVolume(twin) }), errs.Exists, "vol-D")
}

// testImages: images are points that no list of points shows.
func testImages(t *testing.T, s service.Store) {
	image := snapshot("img-A", 2)
	image.ResourceID, image.ResourceType = "img-A", service.ResourceImage
	other := image
	other.ID, other.ResourceID, other.RootID, other.Zone = "img-B", "img-B", "img-B", "ac2"
	update(t, s, func(tx service.Tx) error {
		for _, p := range []service.Snapshot{snapshot("ss-A", 1), image, other} {
			must(t, tx.InsertSnapshot(p))
		}
		return nil
	})
	list := func(f service.SnapshotFilter) (ids []string) {
		f.Limit = 10
		view(t, s, func(tx service.Tx) error {
			rows, total, err := tx.Snapshots(f)
			equal(t, "total", total, len(rows))
			for _, r := range rows {
				ids = append(ids, r.ID)
			}
			return err
		})
		return ids
	}
	ss, img := []string{"ss-A"}, []string{"img-A"}
	equal(t, "points", list(service.SnapshotFilter{Zone: "ac1"}), ss)
	equal(t, "images", list(service.SnapshotFilter{Zone: "ac1", Images: true}), img)
	equal(t, "points by id", list(service.SnapshotFilter{Zone: "ac1", IDs: []string{"ss-A", "img-A"}}), ss)
	equal(t, "images by id", list(service.SnapshotFilter{Zone: "ac1", Images: true, IDs: []string{"ss-A", "img-A"}}), img)
	equal(t, "points by word", list(service.SnapshotFilter{Zone: "ac1", Search: "name of"}), ss)
	equal(t, "images by word", list(service.SnapshotFilter{Zone: "ac1", Images: true, Search: "OF IMG"}), img)
	equal(t, "points of an image", len(list(service.SnapshotFilter{Zone: "ac1", ResourceID: "img-A"})), 0)
	equal(t, "points under an image", len(list(service.SnapshotFilter{Zone: "ac1", RootID: "img-A"})), 0)
	image.Name, image.Status = "renamed", chain.Deleted
	update(t, s, func(tx service.Tx) error { return tx.UpdateSnapshot(image) })
	equal(t, "images without the deleted", len(list(service.SnapshotFilter{Zone: "ac1", Images: true})), 0)
	equal(t, "deleted images", list(service.SnapshotFilter{Zone: "ac1", Images: true, Statuses: []chain.Status{chain.Deleted}, Search: "renam"}), img)
	view(t, s, func(tx service.Tx) error {
		got, err := tx.Snapshot("ac1", "img-A")
		must(t, err)
		equal(t, "a stored image", got, image)
		_, absent := tx.Snapshot("ac2", "img-A")
		kind(t, absent, errs.NotFound, "image img-A")
		rows, err := tx.SnapshotsAfter("", 10)
		must(t, err)
		equal(t, "rows by id", []string{rows[0].Zone, rows[1].Zone, rows[2].Zone}, []string{"ac1", "ac2", "ac1"})
		return nil
	})
	// A pinned one does not expire.
	expired := func() (n int) {
		view(t, s, func(tx service.Tx) error {
			rows, err := tx.ExpiredPoints(99, 10)
			n = len(rows)
			return err
		})
		return n
	}
	update(t, s, func(tx service.Tx) error { return tx.Pin("base:ins-A", "img-A") })
	equal(t, "pinned in the bin", expired(), 0)
	update(t, s, func(tx service.Tx) error { return tx.Unpin("base:ins-A") })
	equal(t, "no longer pinned", expired(), 1)
}

// testSaveJobState: it belongs to the transaction, and is fenced.
func testSaveJobState(t *testing.T, s service.Store) {
	insertJobs(t, s, pendingJob("job-A", 0))
	claim(t, s, "p1", 1, "p1")
	must(t, s.SaveState(t.Context(), "job-A", 1, json.RawMessage(`1`), true))
	save := func(term int64, state string, end error) error {
		return s.Update(t.Context(), func(tx service.Tx) error {
			if err := tx.SaveJobState("job-A", term, json.RawMessage(state)); err != nil {
				return err
			}
			return end
		})
	}
	is(t, save(2, `2`, nil), job.ErrFenced)
	is(t, save(1, `3`, errTest), errTest)
	equal(t, "rolled back", string(readJob(t, s, "job-A").State), `1`)
	must(t, save(1, `4`, nil))
	j := readJob(t, s, "job-A")
	equal(t, "saved", []any{string(j.State), j.NoCancel}, []any{`4`, true})
	kind(t, s.Update(t.Context(), func(tx service.Tx) error { return tx.SaveJobState("job-X", 1, nil) }), errs.NotFound, "job-X")
}
