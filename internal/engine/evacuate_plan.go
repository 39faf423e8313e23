package engine

import (
	"cmp"
	"math/bits"
	"slices"

	"cairn/internal/repo"
)

// Policy bounds what a collection copies to get at garbage.
type Policy struct {
	MaxCopy  int64   // bytes that are copied at most
	MinWaste float64 // share of a pack that must be garbage, 0..1
}

// mergeAt is how many small packs of like size become one: with fewer, each
// byte would be copied again and again.
const mergeAt = 4

// PlanEvacuation chooses the packs whose needed parts are worth copying: first
// those with the most garbage for each byte copied, then small ones of like
// size together. The packs must all have something needed in them.
func PlanEvacuation(packs []PackWaste, p Policy) []string {
	type kindTier struct {
		kind string
		tier int
	}
	var wasteful []PackWaste
	small := make(map[kindTier][]PackWaste)
	for _, w := range packs {
		full := int64(repo.PackSize(w.Kind))
		switch {
		case full == 0 || w.Stored <= 0:
		case float64(w.Stored-w.Needed) >= p.MinWaste*float64(w.Stored):
			wasteful = append(wasteful, w)
		case w.Stored <= full/2:
			t := kindTier{w.Kind, bits.Len64(uint64(w.Stored)) / 2}
			small[t] = append(small[t], w)
		}
	}
	slices.SortFunc(wasteful, func(a, b PackWaste) int {
		return cmp.Or(cmp.Compare(a.Needed*b.Stored, b.Needed*a.Stored), cmp.Compare(a.ID, b.ID))
	})
	var out []string
	left := p.MaxCopy
	take := func(w PackWaste) bool {
		if w.Needed > left {
			return false
		}
		left -= w.Needed
		out = append(out, w.ID)
		return true
	}
	for _, w := range wasteful {
		take(w)
	}
	tiers := make([]kindTier, 0, len(small))
	for t := range small {
		tiers = append(tiers, t)
	}
	slices.SortFunc(tiers, func(a, b kindTier) int { return cmp.Or(cmp.Compare(a.kind, b.kind), a.tier-b.tier) })
	for _, t := range tiers {
		group := small[t]
		if len(group) < mergeAt {
			continue
		}
		slices.SortFunc(group, func(a, b PackWaste) int { return cmp.Compare(a.ID, b.ID) })
		for _, w := range group {
			if !take(w) {
				break
			}
		}
	}
	return out
}
