package metadb

import (
	"fmt"
	"path/filepath"
	"testing"

	"cairn/internal/chain"
	"cairn/internal/service"
)

// What was loaded without lists has them after the next Open.
func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.db")
	db, err := OpenToLoad(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	const n = 1000
	if err := db.Update(t.Context(), func(tx service.Tx) error {
		for i := range n {
			p := service.Snapshot{Point: chain.Point{ID: fmt.Sprintf("ss-%04d", i), ResourceID: "vol-A", RootID: "ss-R", Status: chain.Available}, Zone: "ac1", Name: "name"}
			if err := tx.InsertSnapshot(p); err != nil {
				return err
			}
			if p.Status = chain.Suspended; i%2 == 0 {
				if err := tx.UpdateSnapshot(p); err != nil {
					return err
				}
			}
		}
		found, _, err := tx.Snapshots(service.SnapshotFilter{IDs: []string{"ss-0001"}, Limit: 1})
		if err == nil && len(found) != 1 {
			err = fmt.Errorf("by id: %d found", len(found))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = openAt(t, path)
	defer db.Close()
	for want, f := range map[int]service.SnapshotFilter{
		n:     {Zone: "ac1"},
		n / 2: {ResourceID: "vol-A", Statuses: []chain.Status{chain.Suspended}},
		1:     {Zone: "ac1", Search: "SS-0042"},
	} {
		if err := db.View(t.Context(), func(tx service.Tx) error {
			_, total, err := tx.Snapshots(f)
			if err == nil && total != want {
				err = fmt.Errorf("%+v: %d found, want %d", f, total, want)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
}

// A row that is removed by hand leaves a change too: the journal must not keep
// it alive.
func TestRemovedRowsLeaveChanges(t *testing.T) {
	db := openAt(t, filepath.Join(t.TempDir(), "meta.db"))
	defer db.Close()
	err := db.updateTx(t.Context(), func(t *tx) error {
		if err := t.InsertSnapshot(service.Snapshot{Point: chain.Point{ID: "ss-A", Status: chain.Available}}); err != nil {
			return err
		}
		if err := t.InsertSnapshot(service.Snapshot{Point: chain.Point{ID: "ss-P", Status: chain.Pending}}); err != nil {
			return err
		}
		if err := t.InsertVolume(service.Volume{ID: "vol-A", Status: service.VolumeAvailable}); err != nil {
			return err
		}
		n, err := t.LastChange()
		if err != nil {
			return err
		}
		return t.ForgetChanges(n)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, stmt := range []string{"DELETE FROM snapshots", "DELETE FROM volumes"} {
		if _, err := db.write.ExecContext(t.Context(), stmt); err != nil {
			t.Fatal(err)
		}
	}
	var got []service.Change
	if err := db.View(t.Context(), func(tx service.Tx) (err error) { got, err = tx.Changes(0, 10); return err }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].ID != "ss-A" || got[0].Kind != service.SnapshotChange || got[1].ID != "vol-A" || got[1].Kind != service.VolumeChange {
		t.Errorf("got %+v", got)
	}
}
