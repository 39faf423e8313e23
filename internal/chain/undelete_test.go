package chain

import (
	"slices"
	"strings"
	"testing"

	"cairn/internal/errs"
)

func TestPlanUndelete(t *testing.T) {
	point := func(id, parent string, status Status) Point {
		root := "full"
		return Point{ID: id, ParentID: parent, RootID: root, Full: parent == "", Status: status}
	}
	line := []Point{
		point("full", "", Deleted), point("a", "full", Deleted), point("b", "a", Deleted), point("c", "b", Deleted), point("side", "full", Deleted),
	}
	half := slices.Clone(line)
	half[0].Status, half[1].Status = Available, Available
	loop := []Point{point("x", "y", Deleted), point("y", "x", Deleted)}
	for _, c := range []struct {
		name   string
		points []Point
		ids    []ID
		max    int
		want   []ID
		refuse string
	}{
		{"the full alone", line, []ID{"full"}, 30, []ID{"full"}, ""},
		{"ancestors come along, first", line, []ID{"b"}, 30, []ID{"full", "a", "b"}, ""},
		{"never descendants", half, []ID{"b"}, 30, []ID{"b"}, ""},
		{"each once", line, []ID{"b", "a", "side"}, 30, []ID{"full", "a", "b", "side"}, ""},
		{"the limit counts what is there", half, []ID{"b", "c"}, 4, []ID{"b", "c"}, ""},
		{"above the limit", half, []ID{"b", "c"}, 3, nil, "would have 4 snapshots"},
		{"an ancestor has ceased", line[1:], []ID{"b"}, 30, nil, "needs full, which has ceased"},
		{"rows that form a cycle end", loop, []ID{"x"}, 30, []ID{"y", "x"}, ""},
	} {
		got, err := PlanUndelete(c.points, c.ids, c.max)
		switch {
		case c.refuse != "":
			if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), c.refuse) {
				t.Errorf("%s: %v, %v; want a refusal that says %q", c.name, got, err, c.refuse)
			}
		case c.name == "rows that form a cycle end":
			if err != nil || len(got) == 0 {
				t.Errorf("%s: %v, %v", c.name, got, err)
			}
		case err != nil || !slices.Equal(got, c.want):
			t.Errorf("%s: %v, %v; want %v", c.name, got, err, c.want)
		}
	}
}
