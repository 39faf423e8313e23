package engine

import (
	"fmt"
	"slices"
	"testing"
)

func TestPlanEvacuation(t *testing.T) {
	const mib = 1 << 20
	data := func(id string, stored, needed int64) PackWaste {
		return PackWaste{ID: id, Kind: "data", Stored: stored, Needed: needed}
	}
	few := []PackWaste{data("a", mib, mib), data("b", mib, mib), data("c", mib, mib)}
	four := append(slices.Clone(few), data("d", mib, mib))
	for _, c := range []struct {
		name  string
		packs []PackWaste
		max   int64
		want  []string
	}{
		{"nothing", nil, 100 * mib, nil},
		{"full packs stay", []PackWaste{data("a", 32*mib, 32*mib)}, 100 * mib, nil},
		{"a little garbage stays", []PackWaste{data("a", 32*mib, 25*mib)}, 100 * mib, nil},
		{"a quarter goes", []PackWaste{data("a", 32*mib, 24*mib)}, 100 * mib, []string{"a"}},
		{"the most garbage first", []PackWaste{data("a", 32*mib, 20*mib), data("b", 32*mib, 1*mib), data("c", 32*mib, 10*mib)}, 100 * mib, []string{"b", "c", "a"}},
		{"within the budget", []PackWaste{data("a", 32*mib, 20*mib), data("b", 32*mib, 1*mib)}, 20 * mib, []string{"b"}},
		{"three small ones stay", few, 100 * mib, nil},
		{"four small ones become one", four, 100 * mib, []string{"a", "b", "c", "d"}},
		{"small ones of other sizes do not count", append(slices.Clone(few), data("d", 8*mib, 8*mib)), 100 * mib, nil},
		{"kinds do not mix", append(slices.Clone(few), PackWaste{ID: "d", Kind: "node", Stored: mib, Needed: mib}), 100 * mib, nil},
		{"points are not copied", []PackWaste{{ID: "a", Kind: "point", Stored: mib, Needed: 1}}, 100 * mib, nil},
	} {
		got := PlanEvacuation(c.packs, Policy{MaxCopy: c.max, MinWaste: 0.25})
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// Merging ends: what came of a merge is not merged again alone.
func TestMergingEnds(t *testing.T) {
	packs := map[string]int64{}
	for i := range 1000 {
		packs[fmt.Sprintf("p%04d", i)] = 100 << 10
	}
	copied := int64(0)
	for round := 0; ; round++ {
		if round > 100 {
			t.Fatal("merging never ends")
		}
		var list []PackWaste
		for id, size := range packs {
			list = append(list, PackWaste{ID: id, Kind: "data", Stored: size, Needed: size})
		}
		plan := PlanEvacuation(list, Policy{MaxCopy: 1 << 40, MinWaste: 0.25})
		if len(plan) == 0 {
			break
		}
		total := int64(0)
		for _, id := range plan {
			total += packs[id]
			delete(packs, id)
		}
		copied += total
		for n := 0; total > 0; n++ {
			size := min(total, 32<<20)
			packs[fmt.Sprintf("m%d-%d", round, n)] = size
			total -= size
		}
	}
	if len(packs) > 20 || copied > 4*1000*100<<10 {
		t.Errorf("1000 small packs became %d, and %d bytes were copied", len(packs), copied)
	}
}
