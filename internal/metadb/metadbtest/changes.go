package metadbtest

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"cairn/internal/chain"
	"cairn/internal/service"
)

// underived are the fields that the journal leaves out. Every other one must
// leave a change, also one that is added later.
var underived = []string{"BinClock", "Transition", "OnDemand", "HeadChain", "TotalBytes", "TotalCount", "LatestTime", "UniqueBytes", "UniqueKnown"}

func changes(t testing.TB, s service.Store) (all []service.Change) {
	t.Helper()
	view(t, s, func(tx service.Tx) (err error) { all, err = tx.Changes(0, 1000); return err })
	return all
}

func lastChange(t testing.TB, s service.Store) (n int64) {
	t.Helper()
	view(t, s, func(tx service.Tx) (err error) { n, err = tx.LastChange(); return err })
	return n
}

// forget takes all changes away.
func forget(t testing.TB, s service.Store) {
	t.Helper()
	update(t, s, func(tx service.Tx) error { return tx.ForgetChanges(lastIn(t, tx)) })
}

func lastIn(t testing.TB, tx service.Tx) int64 {
	t.Helper()
	n, err := tx.LastChange()
	must(t, err)
	return n
}

// names are the rows that changes are of, lowest number first.
func names(all []service.Change) []string {
	var out []string
	for _, c := range all {
		out = append(out, fmt.Sprintf("%d %s", c.Kind, c.ID))
	}
	return out
}

func testChanges(t *testing.T, s service.Store) {
	equal(t, "the number before the first change", lastChange(t, s), int64(0))
	pending := snapshot("ss-P", 0)
	pending.Status = chain.Pending
	making := volume("vol-P", 0)
	making.Status = service.VolumePending
	update(t, s, func(tx service.Tx) error {
		must(t, tx.InsertVolume(volume("vol-A", 0)))
		must(t, tx.InsertSnapshot(snapshot("ss-A", 0)))
		must(t, tx.InsertSnapshot(snapshot("ss-B", 0)))
		must(t, tx.InsertVolume(making))
		return tx.InsertSnapshot(pending)
	})
	all := changes(t, s)
	equal(t, "after inserts", names(all), []string{"2 vol-A", "1 ss-A", "1 ss-B"})
	equal(t, "the last number", lastChange(t, s), all[2].Number)
	view(t, s, func(tx service.Tx) error {
		page, err := tx.Changes(all[0].Number, 1)
		equal(t, "a page", page, all[1:2])
		return err
	})

	// A row that changes again has one change, of a higher number.
	renamed := snapshot("ss-A", 0)
	renamed.Name = "renamed"
	update(t, s, func(tx service.Tx) error { return tx.UpdateSnapshot(renamed) })
	again := changes(t, s)
	equal(t, "after an update", names(again), []string{"2 vol-A", "1 ss-B", "1 ss-A"})
	if again[2].Number <= all[2].Number {
		t.Errorf("the number went from %d to %d", all[2].Number, again[2].Number)
	}
	update(t, s, func(tx service.Tx) error { return tx.ForgetChanges(again[1].Number) })
	equal(t, "what a flush did not see stays", changes(t, s), again[2:])

	// A rolled back one never was.
	before := lastChange(t, s)
	if err := s.Update(t.Context(), func(tx service.Tx) error {
		must(t, tx.UpdateSnapshot(snapshot("ss-B", 5)))
		equal(t, "seen inside", lastIn(t, tx) > before, true)
		return errTest
	}); err != errTest {
		t.Fatal(err)
	}
	equal(t, "after a rollback", changes(t, s), again[2:])
	equal(t, "the last number after a rollback", lastChange(t, s), before)

	forget(t, s)
	equal(t, "forgotten", len(changes(t, s)), 0)
	equal(t, "the last number stays", lastChange(t, s), before)

	// Pending rows begin to count when they stop being pending.
	pending.Status, making.Status = chain.Ceased, service.VolumeAvailable
	update(t, s, func(tx service.Tx) error {
		must(t, tx.UpdateSnapshot(pending))
		return tx.UpdateVolume(making)
	})
	all = changes(t, s)
	equal(t, "no longer pending", names(all), []string{"1 ss-P", "2 vol-P"})
	if all[0].Number <= before {
		t.Errorf("number %d came again", all[0].Number)
	}
	// Nothing changed: nothing to tell.
	forget(t, s)
	update(t, s, func(tx service.Tx) error {
		must(t, tx.UpdateSnapshot(pending))
		return tx.UpdateVolume(making)
	})
	equal(t, "written back as it was", len(changes(t, s)), 0)
}

// testChangedFields: every field that is not derived leaves a change.
func testChangedFields(t *testing.T, s service.Store) {
	p, v := snapshot("ss-A", 0), volume("vol-A", 0)
	update(t, s, func(tx service.Tx) error {
		must(t, tx.InsertVolume(v))
		return tx.InsertSnapshot(p)
	})
	for _, f := range fieldsOf(reflect.TypeFor[service.Snapshot]()) {
		row := p
		vary(reflect.ValueOf(&row).Elem().FieldByIndex(f.Index))
		leaves(t, s, f.Name, func(tx service.Tx) error { return tx.UpdateSnapshot(row) }, func(tx service.Tx) error { return tx.UpdateSnapshot(p) })
	}
	for _, f := range fieldsOf(reflect.TypeFor[service.Volume]()) {
		row := v
		vary(reflect.ValueOf(&row).Elem().FieldByIndex(f.Index))
		leaves(t, s, f.Name, func(tx service.Tx) error { return tx.UpdateVolume(row) }, func(tx service.Tx) error { return tx.UpdateVolume(v) })
	}
}

// leaves checks whether a change of one field leaves a change, and puts the
// row back.
func leaves(t *testing.T, s service.Store, field string, change, back func(tx service.Tx) error) {
	t.Helper()
	forget(t, s)
	update(t, s, change)
	if got, want := len(changes(t, s)) == 1, !slices.Contains(underived, field); got != want {
		t.Errorf("a change of %s is left for the journal: %v, want %v", field, got, want)
	}
	update(t, s, back)
}

// fieldsOf lists the fields of a row, those of embedded structs too.
func fieldsOf(t reflect.Type) []reflect.StructField {
	return slices.DeleteFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool { return f.Anonymous || f.Name == "ID" })
}

// vary gives a field another value.
func vary(f reflect.Value) {
	switch v := f.Addr().Interface().(type) {
	case *chain.Status:
		*v = chain.Suspended
	case *service.VolumeStatus:
		*v = service.VolumeCeased
	case *time.Time:
		*v = v.Add(time.Microsecond)
	case *string:
		*v += "x"
	case *bool:
		*v = !*v
	case *int:
		*v++
	case *int64:
		*v++
	default:
		panic(fmt.Sprintf("a field of type %T is not known to this test", v))
	}
}

func testRowsAfter(t *testing.T, s service.Store) {
	const n = 25
	update(t, s, func(tx service.Tx) error {
		for i := range n {
			p, v := snapshot(fmt.Sprintf("ss-%02d", (i*7)%n), i), volume(fmt.Sprintf("vol-%02d", (i*7)%n), i)
			p.Status, v.Status = modelStatuses[i%len(modelStatuses)], []service.VolumeStatus{service.VolumeAvailable, service.VolumeCeased}[i%2]
			must(t, tx.InsertSnapshot(p))
			must(t, tx.InsertVolume(v))
		}
		return nil
	})
	view(t, s, func(tx service.Tx) error {
		points, volumes := "", ""
		for pages := 0; ; pages++ {
			ps, err := tx.SnapshotsAfter(points, 10)
			must(t, err)
			vs, err := tx.VolumesAfter(volumes, 10)
			must(t, err)
			if len(ps) == 0 && len(vs) == 0 {
				equal(t, "pages", pages, 3)
				break
			}
			equal(t, "rows on a page", len(ps), len(vs))
			for i := range ps {
				want := fmt.Sprintf("%02d", pages*10+i)
				equal(t, "the next rows", ps[i].ID+" "+vs[i].ID, "ss-"+want+" vol-"+want)
				points, volumes = ps[i].ID, vs[i].ID
			}
		}
		return nil
	})
}
