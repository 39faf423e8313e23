package nbdvolume

import (
	"math"
	"slices"
	"testing"

	"cairn/internal/extent"
)

// However much data there is and in how many shreds, so many blocks of it are
// chosen, none beside it, and the ends of the volume always.
func TestSampler(t *testing.T) {
	const chance = sampleBlocks - sampleFirst - sampleLast
	shreds := func(n, every int64) (out []extent.Range) {
		for i := range n {
			out = append(out, extent.Range{Off: i * every * sampleBlock, Len: sampleBlock})
		}
		return out
	}
	for name, tt := range map[string]struct {
		size int64
		data []extent.Range
		want int
	}{
		"no data":        {mib + 1, nil, 0},
		"few blocks":     {1 << 30, shreds(100, 7), 100},
		"just enough":    {1 << 30, shreds(chance, 7), chance},
		"many shreds":    {1 << 30, shreds(100_000, 2), chance},
		"one range":      {1 << 30, []extent.Range{{Off: 5 * mib, Len: 900 * mib}}, chance},
		"a huge range":   {math.MaxInt64 &^ 4095, []extent.Range{{Len: math.MaxInt64 &^ 4095}}, chance},
		"parts of block": {1 << 30, []extent.Range{{Off: 10*mib + 5, Len: 1}, {Off: 20*mib - 1, Len: 2}}, 3},
	} {
		s := newSampler(tt.size)
		blocks := (tt.size + sampleBlock - 1) / sampleBlock
		for _, r := range tt.data {
			s.add(r)
		}
		if s.all || s.fixed != sampleFirst+sampleLast || len(s.blocks) != s.fixed+tt.want {
			t.Errorf("%s: %d blocks, %d of them fixed; want %d more", name, len(s.blocks), s.fixed, tt.want)
		}
		for _, b := range s.blocks[s.fixed:] {
			at := extent.Range{Off: b * sampleBlock, Len: sampleBlock}
			if !slices.ContainsFunc(tt.data, func(r extent.Range) bool { return r.Off-at.Off < at.Len && at.Off-r.Off < r.Len }) {
				t.Errorf("%s: block %d holds no data", name, b)
			}
		}
		for b := range int64(sampleLast) {
			if !slices.Contains(s.blocks, blocks-1-b) || !slices.Contains(s.blocks, b) {
				t.Errorf("%s: block %d from the beginning or end is missing", name, b)
			}
		}
	}
}

// Each block has its chance: that any of 1000 never comes in 120 draws of 236
// would happen once in a hundred thousand million runs.
func TestSamplerIsFair(t *testing.T) {
	const blocks, draws = 1000, 120
	came := map[int64]int{}
	for range draws {
		s := newSampler(1 << 40)
		s.add(extent.Range{Off: mib, Len: blocks / 2 * sampleBlock})
		s.add(extent.Range{Off: 1 << 39, Len: blocks / 2 * sampleBlock})
		for _, b := range s.blocks[s.fixed:] {
			came[b]++
		}
	}
	if len(came) != blocks {
		t.Errorf("%d blocks of %d were ever chosen", len(came), blocks)
	}
}
