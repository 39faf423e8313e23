package metadb

import (
	"path/filepath"
	"testing"

	"cairn/internal/chain"
	"cairn/internal/service"
)

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
