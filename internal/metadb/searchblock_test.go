package metadb

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/internal/chain"
	"cairn/internal/service"
)

func TestFold(t *testing.T) {
	for _, tt := range []struct{ a, b string }{
		{"abc", "ABC"}, {"ä", "Ä"}, {"ς", "Σ"}, {"σ", "Σ"}, {"K", "k"}, {"ſ", "S"}, {"ǆ", "ǅ"}, {"日本", "日本"}, {"", ""},
	} {
		if fold(tt.a) != fold(tt.b) {
			t.Errorf("%q and %q fold to %q and %q", tt.a, tt.b, fold(tt.a), fold(tt.b))
		}
	}
	if fold("ß") == fold("ss") || fold("a") == fold("b") {
		t.Error("different strings fold together")
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.String().Draw(t, "a"), rapid.String().Draw(t, "b")
		if strings.ContainsAny(a+b, "\x00\x01\x02") {
			t.Skip("marks")
		}
		for _, s := range []string{strings.ToUpper(a), strings.ToLower(a), b} {
			if (fold(a) == fold(s)) != strings.EqualFold(a, s) {
				t.Fatalf("fold of %q and %q is not EqualFold", a, s)
			}
		}
	})
}

func someEntries(n int) []entry {
	var es []entry
	for i := range n {
		l := listed{ID: fmt.Sprintf("ss-%d", i), ResourceID: "vol-A", RootID: "ss-0", IsFull: i == 0,
			Status: chain.Available, CreateTime: int64(-i)}
		l.SearchKey = searchKey(l.ID, fmt.Sprintf("Name %d", i))
		es = append(es, newEntry(l))
	}
	return es
}

func TestBlockRoundTrip(t *testing.T) {
	for _, n := range []int{1, 2, 300} {
		es := someEntries(n)
		flags, keys, refs := encodeEntries(es)
		got, err := decodeEntries(flags, keys, refs)
		if err != nil || !slices.Equal(got, es) {
			t.Errorf("%d entries came back as %v, %v", n, got, err)
		}
	}
}

// Golden bytes: what is stored today must be read tomorrow, or listVersion
// must change.
func TestBlockGolden(t *testing.T) {
	flags, keys, refs := encodeEntries([]entry{newEntry(listed{
		ID: "ss-A", ResourceID: "v", RootID: "ss-A", IsFull: true, Status: chain.Suspended, CreateTime: 258, SearchKey: searchKey("ss-A", "né"),
	})})
	want := []string{"\x05", "SS-A\x01NÉ\x00", "\x02\x01\x00\x00\x00\x00\x00\x00\x04ss-A\x01v"}
	for i, got := range [][]byte{flags, keys, refs} {
		if string(got) != want[i] {
			t.Errorf("column %d is %q, want %q", i, got, want[i])
		}
	}
}

func TestBlockCut(t *testing.T) {
	flags, keys, refs := encodeEntries(someEntries(5))
	for n := range refs {
		if _, err := decodeEntries(flags, keys, refs[:n]); !errors.Is(err, errBlock) {
			t.Errorf("refs cut at %d: %v", n, err)
		}
	}
	for n := range keys {
		if _, err := decodeEntries(flags, keys[:n], refs); !errors.Is(err, errBlock) {
			t.Errorf("keys cut at %d: %v", n, err)
		}
	}
	for n := range flags {
		if _, err := decodeEntries(flags[:n], keys, refs); !errors.Is(err, errBlock) {
			t.Errorf("flags cut at %d: %v", n, err)
		}
	}
}

func TestSplit(t *testing.T) {
	l := limits{blockEntries: 4, blockBytes: 1000}
	sizes := func(parts [][]entry) (out []int) {
		for _, p := range parts {
			out = append(out, len(p))
		}
		return out
	}
	long := someEntries(3)
	long[1].key = strings.Repeat("x", 2000)
	for _, tt := range []struct {
		name string
		es   []entry
		at   int
		want []int
	}{
		{"fits", someEntries(4), 0, []int{4}},
		{"newest comes first and starts a block", someEntries(5), 0, []int{1, 4}},
		{"oldest starts a block too", someEntries(5), 4, []int{4, 1}},
		{"in the middle", someEntries(5), 2, []int{2, 3}},
		{"long names", long, 1, []int{1, 2}},
		{"one is never split", long[1:2], 0, []int{1}},
	} {
		if got := sizes(l.split(tt.es, tt.at)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: parts of %v, want %v", tt.name, got, tt.want)
		}
	}
}

// FuzzBlock: no stored bytes make decoding or searching panic, and what
// decodes encodes to the same bytes.
func FuzzBlock(f *testing.F) {
	flags, keys, refs := encodeEntries(someEntries(3))
	f.Add(flags, keys, refs, []byte("NAME"))
	f.Add(flags[:1], keys, refs[:len(refs)-1], []byte("2"))
	f.Add([]byte{}, []byte{}, []byte{}, []byte{})
	f.Add([]byte{255}, []byte{0}, bytes.Repeat([]byte{255}, 20), []byte{1})
	f.Fuzz(func(t *testing.T, flags, keys, refs, word []byte) {
		es, err := decodeEntries(flags, keys, refs)
		if err == nil {
			gotFlags, gotKeys, gotRefs := encodeEntries(es)
			back, err := decodeEntries(gotFlags, gotKeys, gotRefs)
			if err != nil || !slices.Equal(back, es) {
				t.Errorf("%v came back as %v, %v", es, back, err)
			}
		}
		if len(word) == 0 || bytes.IndexByte(word, endMark) >= 0 {
			return
		}
		var all [256]bool
		for i := range all {
			all[i] = true
		}
		var hits []int
		matchErr := match(flags, keys, word, &all, func(i int) { hits = append(hits, i) })
		if err != nil {
			return
		}
		var want []int
		for i, e := range es {
			if bytes.Contains([]byte(e.key), word) {
				want = append(want, i)
			}
		}
		if matchErr != nil || !slices.Equal(hits, want) {
			t.Errorf("%q is in entries %v, %v; want %v", word, hits, matchErr, want)
		}
	})
}

// What is kept up to date step by step is what rebuilding makes of the rows.
func TestRebuildEqualsUpkeep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.db")
	db := openAt(t, path)
	db.limits.blockEntries = 4
	statuses := []chain.Status{chain.Pending, chain.Available, chain.Suspended, chain.Deleted, chain.Ceased}
	rapid.Check(t, func(rt *rapid.T) {
		err := db.updateTx(t.Context(), func(x *tx) error {
			for range rapid.IntRange(1, 10).Draw(rt, "steps") {
				n := rapid.IntRange(0, 60).Draw(rt, "snapshot")
				s := service.Snapshot{
					Point: chain.Point{ID: fmt.Sprintf("ss-%d", n), ResourceID: fmt.Sprintf("vol-%d", n%3), RootID: fmt.Sprintf("ss-%d", n%5),
						Status: rapid.SampledFrom(statuses).Draw(rt, "status")},
					Zone:       rapid.SampledFrom([]string{"ac1", "ac2"}).Draw(rt, "zone"),
					Name:       rapid.SampledFrom([]string{"", "Ä", "b"}).Draw(rt, "name"),
					CreateTime: time.Unix(int64(rapid.IntRange(1, 9).Draw(rt, "created")), 0),
				}
				write := x.UpdateSnapshot
				if _, err := x.Snapshot("", s.ID); err != nil {
					write = x.InsertSnapshot
				}
				if err := write(s); err != nil {
					return err
				}
			}
			kept := derived(t, x)
			if err := x.rebuild(); err != nil {
				return err
			}
			if rebuilt := derived(t, x); kept != rebuilt {
				rt.Fatalf("kept:\n%s\nrebuilt:\n%s", kept, rebuilt)
			}
			return nil
		})
		if err != nil {
			rt.Fatal(err)
		}
	})
	// A database with another version of what is derived is brought up to date.
	err := db.updateTx(t.Context(), func(x *tx) error {
		for _, stmt := range []string{"DELETE FROM snapshot_search", "UPDATE snapshot_counts SET n = 7", "UPDATE snapshots SET search_key = 'old'"} {
			if _, err := x.db.ExecContext(x.ctx, stmt); err != nil {
				return err
			}
		}
		return x.SetSetting(listVersionKey, "0")
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	db = openAt(t, path)
	err = db.View(t.Context(), func(st service.Tx) error {
		x := st.(*tx)
		f := service.SnapshotFilter{Zone: "ac1", Search: "s", Statuses: statuses, Limit: 100}
		ids, total, err := x.pageOfBlocks(f)
		if err != nil {
			return err
		}
		all, err := everyRow(x)
		if err != nil {
			return err
		}
		want, wantTotal := plainly(all, f)
		if !slices.Equal(ids, want) || total != wantTotal {
			t.Errorf("after the rebuild: %v of %d, want %v of %d", ids, total, want, wantTotal)
		}
		l, err := x.list(f)
		if l.total != wantTotal {
			t.Errorf("after the rebuild: counted %d, want %d", l.total, wantTotal)
		}
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// derived is everything derived from the rows, in words; how entries are
// spread over blocks does not count.
func derived(t *testing.T, x *tx) string {
	t.Helper()
	var b strings.Builder
	var counts []countRow
	if err := x.db.NewSelect().Model(&counts).Where("n <> 0").OrderExpr("scope, key, zone, status, is_full").Scan(x.ctx); err != nil {
		t.Fatal(err)
	}
	for _, c := range counts {
		fmt.Fprintln(&b, c.Scope, c.Key, c.Zone, c.Status, c.IsFull, c.N)
	}
	var blocks []blockRow
	if err := x.db.NewSelect().Model(&blocks).OrderExpr("zone, last_time DESC, last_id").Scan(x.ctx); err != nil {
		t.Fatal(err)
	}
	for _, r := range blocks {
		es, err := decodeEntries(r.Flags, r.Keys, r.Refs)
		if err != nil {
			t.Fatal(err)
		}
		if last := es[len(es)-1]; last.time != r.LastTime || last.id != r.LastID {
			t.Errorf("block %d ends with %s, its row says %s", r.ID, last.id, r.LastID)
		}
		for _, e := range es {
			fmt.Fprintf(&b, "%s %+v\n", r.Zone, e)
		}
	}
	return b.String()
}
