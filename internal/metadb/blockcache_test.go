package metadb

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"cairn/internal/chain"
	"cairn/internal/service"
)

func TestBlockCache(t *testing.T) {
	c := newBlockCache(10_000)
	flagsOnly := &block{flags: make([]byte, 100)}
	whole := &block{flags: make([]byte, 100), keys: make([]byte, 1000), owners: make([]uint32, 100)}
	c.put("ac1", 1, flagsOnly)
	if got := c.get("ac1", []int64{1, 2}, parts{}); got[0] != flagsOnly || got[1] != nil {
		t.Errorf("got %v", got)
	}
	if got := c.get("ac1", []int64{1}, parts{keys: true}); got[0] != nil {
		t.Error("a block without keys served a search")
	}
	if got := c.get("ac2", []int64{1}, parts{}); got[0] != nil {
		t.Error("another zone's block came")
	}
	c.put("ac1", 1, whole)
	if got := c.get("ac1", []int64{1}, parts{keys: true, owners: true}); got[0] != whole {
		t.Error("the fuller block did not take the other's place")
	}
	if c.size != whole.size() {
		t.Errorf("size %d, want %d", c.size, whole.size())
	}
	for id := int64(2); id < 100; id++ {
		c.put("ac1", id, whole)
	}
	if c.size > c.limit || len(c.zones["ac1"]) != c.limit/whole.size() {
		t.Errorf("%d blocks of %d bytes are kept, limit %d", len(c.zones["ac1"]), c.size, c.limit)
	}

	c = newBlockCache(1 << 20)
	for id := int64(1); id <= slack+20; id++ {
		c.put("ac1", id, flagsOnly)
	}
	c.sweep("ac1", []int64{1, 2, 7000})
	if len(c.zones["ac1"]) != 2 || c.size != 2*flagsOnly.size() {
		t.Errorf("after the sweep %d blocks of %d bytes are kept", len(c.zones["ac1"]), c.size)
	}
	first, other, again := c.owner("vol-A"), c.owner("vol-B"), c.owner("vol-A")
	if c.owner("") != 0 || first == 0 || other == 0 || first == other || first != again {
		t.Errorf("resources got the numbers %d, %d, %d", first, other, again)
	}
}

// A block id given out in a transaction that was rolled back comes again with
// another content: a list inside that transaction must not leave it behind.
func TestCacheAndRollback(t *testing.T) {
	db := openAt(t, filepath.Join(t.TempDir(), "meta.db"))
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	db.limits.scanRows = 0
	find := func(tx service.Tx, word string) int {
		_, total, err := tx.Snapshots(service.SnapshotFilter{Zone: "ac1", Search: word, Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		return total
	}
	point := func(id string) service.Snapshot {
		return service.Snapshot{Point: chain.Point{ID: id, RootID: id, Full: true, Status: chain.Available}, Zone: "ac1", Name: "name of " + id}
	}
	errBack := errors.New("back")
	for i := range 5 {
		err := db.Update(t.Context(), func(tx service.Tx) error {
			if err := tx.InsertSnapshot(point("ss-never")); err != nil {
				return err
			}
			if n := find(tx, "never"); n != 1 {
				t.Errorf("a transaction finds its own row %d times", n)
			}
			return errBack
		})
		if !errors.Is(err, errBack) {
			t.Fatal(err)
		}
		err = db.Update(t.Context(), func(tx service.Tx) error { return tx.InsertSnapshot(point(fmt.Sprintf("ss-%d", i))) })
		if err != nil {
			t.Fatal(err)
		}
		err = db.View(t.Context(), func(tx service.Tx) error {
			if never, all := find(tx, "never"), find(tx, "name"); never != 0 || all != i+1 {
				t.Errorf("found %d of a rolled back row and %d in all, want 0 and %d", never, all, i+1)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Searches run beside writers and always see one state: total and rows agree
// with the number of rows at that moment.
func TestSearchBesideWriters(t *testing.T) {
	db := openAt(t, filepath.Join(t.TempDir(), "meta.db"))
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	db.limits = limits{blockEntries: 3, blockBytes: 1000}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 60 {
			err := db.Update(t.Context(), func(tx service.Tx) error {
				s := service.Snapshot{Point: chain.Point{ID: fmt.Sprintf("ss-%d", i*37%60), ResourceID: "vol-A", Status: chain.Available}, Zone: "ac1"}
				if err := tx.InsertSnapshot(s); err != nil {
					return err
				}
				return tx.SetSetting("n", fmt.Sprint(i+1))
			})
			if err != nil {
				t.Errorf("insert: %v", err)
			}
		}
	})
	for range 3 {
		wg.Go(func() {
			for range 40 {
				err := db.View(t.Context(), func(tx service.Tx) error {
					want, err := tx.Setting("n")
					if err != nil {
						return err
					}
					rows, total, err := tx.Snapshots(service.SnapshotFilter{Zone: "ac1", ResourceID: "vol-A", Search: "ss", Limit: 100})
					if got := fmt.Sprint(total); got != want && want+got != "0" || len(rows) != total {
						t.Errorf("%d rows, total %s, want %q", len(rows), got, want)
					}
					return err
				})
				if err != nil {
					t.Errorf("search: %v", err)
				}
			}
		})
	}
	wg.Wait()
}
