package journal

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"cairn/internal/service"
)

// derived are the fields that recover finds otherwise, that end with a job, or
// without which a volume is only filled.
var derived = []string{"Transition", "OnDemand", "BinClock", "HeadChain", "TotalBytes", "TotalCount", "LatestTime", "UniqueBytes", "UniqueKnown"}

// fill sets every field to something, so that none can be forgotten, also one
// that is added later.
func fill(t *testing.T, row reflect.Value) {
	t.Helper()
	for _, f := range reflect.VisibleFields(row.Type()) {
		if f.Anonymous || slices.Contains(derived, f.Name) {
			continue
		}
		v := row.FieldByIndex(f.Index)
		switch v.Kind() {
		case reflect.String:
			v.SetString(f.Name)
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Int, reflect.Int64:
			v.SetInt(int64(len(f.Name)))
		case reflect.Struct:
			v.Set(reflect.ValueOf(time.UnixMicro(int64(len(f.Name))).UTC()))
		default:
			t.Fatalf("%s is of kind %v, which this test does not know", f.Name, v.Kind())
		}
	}
}

func TestRowsSurviveTheJournal(t *testing.T) {
	var p service.Snapshot
	fill(t, reflect.ValueOf(&p).Elem())
	if got := snapshotOf(snapshotEntry(p)); got != p {
		t.Errorf("got %+v\nwant %+v", got, p)
	}
	var v service.Volume
	fill(t, reflect.ValueOf(&v).Elem())
	if got := volumeOf(volumeEntry(v)); got != v {
		t.Errorf("got %+v\nwant %+v", got, v)
	}
}
