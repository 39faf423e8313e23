package chain_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/chain"
)

var t0 = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// tree builds a chain out of "child<parent" words; a word without "<" is the
// full. The points' instants follow the order of the words.
func tree(words ...string) []chain.Point {
	var points []chain.Point
	root := ""
	for i, w := range words {
		id, parent, _ := strings.Cut(w, "<")
		if parent == "" {
			root = id
		}
		points = append(points, chain.Point{
			ID: id, ResourceID: "vol-A", ParentID: parent, RootID: root, Full: parent == "",
			Status: chain.Available, VirtualSize: 1 << 30, SizeBytes: int64(i + 1),
			SnapshotTime: t0.Add(time.Duration(i) * time.Hour),
		})
	}
	return points
}

func with(points []chain.Point, id string, change func(*chain.Point)) []chain.Point {
	points = slices.Clone(points)
	i := slices.IndexFunc(points, func(p chain.Point) bool { return p.ID == id })
	change(&points[i])
	return points
}

func head(points []chain.Point, id string) []chain.Point {
	return with(points, id, func(p *chain.Point) { p.IsHead = true })
}

func TestPlanPoint(t *testing.T) {
	long := []string{"F"}
	for i := range 29 {
		long = append(long, "I"+strings.Repeat("x", i)+"<"+strings.SplitN(long[i], "<", 2)[0])
	}
	two := head(tree("F", "I<F"), "I")
	tests := []struct {
		name     string
		points   []chain.Point
		headID   string
		wantFull bool
		size     int64
		max      int
		full     bool
		parent   string
		unasked  bool
		reason   string
	}{
		{name: "no head", size: 1 << 30, full: true, unasked: true, reason: "no snapshot to build on"},
		{name: "no head, full asked", wantFull: true, size: 1 << 30, full: true, reason: "asked for"},
		{name: "on the head", points: two, headID: "I", size: 1 << 30, parent: "I", reason: "incremental on I"},
		{name: "on an applied full", points: head(tree("F", "I<F"), "F"), headID: "F", size: 1 << 30, parent: "F"},
		{name: "full asked", points: two, headID: "I", wantFull: true, size: 1 << 30, full: true},
		{name: "grown", points: two, headID: "I", size: 2 << 30, full: true, unasked: true, reason: "size of vol-A changed"},
		{name: "shrunk", points: two, headID: "I", size: 1 << 20, full: true, unasked: true, reason: "size of vol-A changed"},
		{name: "damaged", points: with(two, "I", func(p *chain.Point) { p.Damaged = true }), headID: "I", size: 1 << 30,
			full: true, unasked: true, reason: "I is damaged"},
		{name: "deleted head", points: with(two, "I", func(p *chain.Point) { p.Status = chain.Deleted }), headID: "I",
			size: 1 << 30, full: true, unasked: true, reason: "I is deleted"},
		{name: "suspended head", points: with(two, "I", func(p *chain.Point) { p.Status = chain.Suspended }), headID: "I",
			size: 1 << 30, full: true, unasked: true, reason: "I is suspended"},
		{name: "29 of 30", points: tree(long[:29]...), headID: "F", size: 1 << 30, parent: "F"},
		{name: "30 of 30", points: tree(long...), headID: "F", size: 1 << 30, full: true, unasked: true, reason: "limit of 30"},
		{name: "own limit", points: two, headID: "I", size: 1 << 30, max: 2, full: true, unasked: true, reason: "limit of 2"},
		{name: "deleted ones do not count", points: with(tree(long...), "I", func(p *chain.Point) { p.Status = chain.Deleted }),
			headID: "F", size: 1 << 30, parent: "F"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := chain.PlanInput{ResourceID: "vol-A", WantFull: tt.wantFull, Chain: tt.points, VolumeSize: tt.size, MaxPoints: tt.max}
			for i := range tt.points {
				if tt.points[i].ID == tt.headID {
					in.Head = &tt.points[i]
				}
			}
			got := chain.PlanPoint(in)
			root := ""
			if !tt.full {
				root = "F"
			}
			if got.Full != tt.full || got.ParentID != tt.parent || got.Unasked != tt.unasked || got.RootID != root {
				t.Errorf("PlanPoint = %+v", got)
			}
			if got.Reason == "" || !strings.Contains(got.Reason, tt.reason) {
				t.Errorf("reason %q does not say %q", got.Reason, tt.reason)
			}
		})
	}
}

func TestPlanDelete(t *testing.T) {
	// F ── A ── B ── C      D was taken after A had been applied,
	//       └── D ── E      G after F had.
	//  └── G
	full := tree("F", "A<F", "B<A", "C<B", "D<A", "E<D", "G<F")
	tests := []struct {
		name   string
		points []chain.Point
		ids    []string
		want   []string
		head   string
		moves  bool
	}{
		{"leaf", head(full, "G"), []string{"C"}, []string{"C"}, "G", false},
		{"leaf that is the head", head(full, "C"), []string{"C"}, []string{"C"}, "B", true},
		{"middle takes its descendants", head(full, "G"), []string{"A"}, []string{"E", "D", "C", "B", "A"}, "G", false},
		{"head moves past all that goes", head(full, "E"), []string{"A"}, []string{"E", "D", "C", "B", "A"}, "F", true},
		{"a full takes its chain", head(full, "E"), []string{"F"}, []string{"G", "E", "D", "C", "B", "A", "F"}, "", true},
		{"several, one within the other", head(full, "F"), []string{"B", "C", "E"}, []string{"E", "C", "B"}, "F", false},
		{"head in another branch", head(full, "C"), []string{"D"}, []string{"E", "D"}, "C", false},
		{"no head at all", full, []string{"D"}, []string{"E", "D"}, "", false},
		{"unknown ids", head(full, "C"), []string{"X"}, nil, "C", false},
		{"deleted ones are not taken again", head(with(full, "C", func(p *chain.Point) { p.Status = chain.Deleted }), "G"),
			[]string{"B"}, []string{"B"}, "G", false},
		{"head skips deleted ancestors", head(with(full, "B", func(p *chain.Point) { p.Status = chain.Deleted }), "C"),
			[]string{"C"}, []string{"C"}, "A", true},
		{"a clock that was set back", with(head(tree("F", "A<F", "B<A"), "B"), "B", func(p *chain.Point) { p.SnapshotTime = t0.Add(-time.Hour) }),
			[]string{"A"}, []string{"B", "A"}, "F", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := chain.PlanDelete(tt.points, tt.ids)
			want := chain.DeletePlan{IDs: tt.want, NewHead: tt.head, HeadMoves: tt.moves}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestTotals(t *testing.T) {
	points := tree("F", "A<F", "B<A", "C<B")
	points = with(points, "B", func(p *chain.Point) { p.Status = chain.Deleted })
	points = with(points, "C", func(p *chain.Point) { p.Status = chain.Pending })
	got := chain.TotalsOf(points)
	if d := cmp.Diff(chain.Totals{Bytes: 1 + 2, Count: 2, Latest: t0.Add(time.Hour)}, got); d != "" {
		t.Error(d)
	}
	if got := chain.TotalsOf(nil); got != (chain.Totals{}) {
		t.Errorf("no points: %+v", got)
	}
}

func TestHeadFlags(t *testing.T) {
	points := tree("F", "A<F")
	if !chain.HeadChain(points[0], &points[1]) || !chain.HeadChain(points[0], &points[0]) {
		t.Error("the full of the head's chain has head_chain")
	}
	other := tree("G")[0]
	if chain.HeadChain(points[1], &points[1]) || chain.HeadChain(points[0], nil) || chain.HeadChain(points[0], &other) {
		t.Error("increments and other chains have none")
	}
	if chain.HeadAfterCreate(points[1]) != "A" || chain.HeadAfterApply(points[0]) != "F" {
		t.Error("create and apply move the head to their point")
	}
}

func TestMB(t *testing.T) {
	for bytes, want := range map[int64]int{0: 0, -1: 0, 1: 1, 1 << 20: 1, 1<<20 + 1: 2, 5 << 30: 5120, 1<<62 + 1: 1<<42 + 1} {
		if got := chain.MB(bytes); got != want {
			t.Errorf("MB(%d) = %d, want %d", bytes, got, want)
		}
	}
}
