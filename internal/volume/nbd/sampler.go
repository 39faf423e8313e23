package nbdvolume

import (
	"math"
	"math/rand/v2"

	"cairn/internal/extent"
)

const (
	sampleBlock = 4096
	// sampleBlocks are compared before and after: all of a volume of 1 MiB, of
	// a larger one a chance for each change that hits many blocks.
	sampleBlocks = 256
	// Where partition tables and superblocks lie is always looked at.
	sampleFirst = 16
	sampleLast  = 4
)

// sampler chooses blocks at random among those that it is shown, without
// knowing how many will come: "Algorithm L" of Li, Reservoir-Sampling
// Algorithms of Time Complexity O(n(1+log(N/n))), 1994. So a volume in shreds
// costs no draw per shred.
type sampler struct {
	blocks []int64 // numbers; the first fixed ones are not chosen by chance
	fixed  int
	all    bool  // every block of the volume is among them
	seen   int64 // blocks that were shown
	next   int64 // which of them is taken next
	w      float64
}

func newSampler(size int64) *sampler {
	s := &sampler{w: 1}
	all := (size + sampleBlock - 1) / sampleBlock
	first, last := int64(sampleFirst), all-sampleLast
	if s.all = all <= sampleBlocks; s.all {
		first, last = all, all
	}
	for b := range first {
		s.blocks = append(s.blocks, b)
	}
	for b := last; b < all; b++ {
		s.blocks = append(s.blocks, b)
	}
	s.fixed = len(s.blocks)
	return s
}

// add shows the blocks of a range. A block that two ranges share may be chosen
// twice, which only costs a place.
func (s *sampler) add(r extent.Range) {
	const places = sampleBlocks - sampleFirst - sampleLast
	first := r.Off / sampleBlock
	n := (r.End()+sampleBlock-1)/sampleBlock - first
	for n > 0 && !s.all {
		if len(s.blocks)-s.fixed < places {
			s.blocks = append(s.blocks, first)
			s.seen++
			first++
			n--
			if len(s.blocks)-s.fixed == places {
				s.skip()
			}
			continue
		}
		if s.next >= s.seen+n {
			s.seen += n
			return
		}
		taken := s.next - s.seen
		s.blocks[s.fixed+rand.IntN(places)] = first + taken
		s.seen, first, n = s.next+1, first+taken+1, n-taken-1
		s.skip()
	}
}

// skip draws which block is taken next.
func (s *sampler) skip() {
	const places = sampleBlocks - sampleFirst - sampleLast
	s.w *= math.Exp(math.Log(1-rand.Float64()) / places)
	gap := math.Floor(math.Log(1-rand.Float64()) / math.Log1p(-s.w))
	s.next = s.seen + int64(min(gap, math.MaxInt64/4))
}
