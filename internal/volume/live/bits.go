package live

import (
	"math/bits"
	"sync/atomic"
)

// blockBits members share one block of 4 KiB.
const (
	blockWords = 512
	blockBits  = 64 * blockWords
)

type block [blockWords]atomic.Uint64

// fullBlock stands for every block with all bits set. Nobody writes to it.
var fullBlock = func() *block {
	b := new(block)
	for i := range b {
		b[i].Store(^uint64(0))
	}
	return b
}()

// set is a set of the numbers [0, n). Blocks are made when they are needed, so
// a sparse set of many numbers, and a set of all of them, cost little.
//
// Any number of goroutines may use it at once as long as all changes of the
// moment are adding or all are removing; what a change that runs beside
// another of the same kind does is never lost.
type set struct {
	n      int64
	blocks []atomic.Pointer[block]
}

func newSet(n int64) *set {
	return &set{n: n, blocks: make([]atomic.Pointer[block], (n+blockBits-1)/blockBits)}
}

// resized is a copy for another n, which may share no later change.
func (s *set) resized(n int64) *set {
	out := newSet(n)
	for i := range min(len(out.blocks), len(s.blocks)) {
		out.blocks[i].Store(s.blocks[i].Load().copied())
	}
	if n < s.n {
		if last := n % blockBits; last != 0 {
			out.removeRange(n, (n/blockBits+1)*blockBits)
		}
	}
	return out
}

func (b *block) copied() *block {
	if b == nil || b == fullBlock {
		return b
	}
	return b.clone()
}

func (s *set) has(i int64) bool {
	b := s.blocks[i/blockBits].Load()
	return b != nil && b[i%blockBits/64].Load()&(1<<(i%64)) != 0
}

// writable gives the block that holds i, made or copied if it is one of the
// two that nobody writes to.
func (s *set) writable(i int64, adding bool) *block {
	p := &s.blocks[i/blockBits]
	for {
		b := p.Load()
		switch {
		case b == nil && adding:
			p.CompareAndSwap(nil, new(block))
		case b == fullBlock && !adding:
			p.CompareAndSwap(fullBlock, fullBlock.clone())
		default:
			return b
		}
	}
}

func (b *block) clone() *block {
	c := new(block)
	for i := range b {
		c[i].Store(b[i].Load())
	}
	return c
}

// eachWord calls fn for the words of [from, to) with the bits concerned;
// whole blocks go to all, if that takes them.
func (s *set) eachWord(from, to int64, all func(p *atomic.Pointer[block]), fn func(i int64, mask uint64)) {
	for i := from; i < to; {
		if i%blockBits == 0 && to-i >= blockBits {
			all(&s.blocks[i/blockBits])
			i += blockBits
			continue
		}
		end := min((i/64+1)*64, to)
		mask := ^uint64(0) << (i % 64)
		if end%64 != 0 {
			mask &= 1<<(end%64) - 1
		}
		fn(i, mask)
		i = end
	}
}

func (s *set) add(i int64) {
	if b := s.writable(i, true); b != fullBlock {
		b[i%blockBits/64].Or(1 << (i % 64))
	}
}

func (s *set) addRange(from, to int64) {
	s.eachWord(from, to,
		func(p *atomic.Pointer[block]) { p.Store(fullBlock) },
		func(i int64, mask uint64) {
			b := s.writable(i, true)
			if b == fullBlock {
				return
			}
			// Most writes go where others went: look before a bus lock.
			if w := &b[i%blockBits/64]; w.Load()&mask != mask {
				w.Or(mask)
			}
		})
}

func (s *set) remove(i int64) {
	if b := s.writable(i, false); b != nil {
		b[i%blockBits/64].And(^(uint64(1) << (i % 64)))
	}
}

func (s *set) removeRange(from, to int64) {
	s.eachWord(from, to,
		func(p *atomic.Pointer[block]) { p.Store(nil) },
		func(i int64, mask uint64) {
			if b := s.writable(i, false); b != nil {
				b[i%blockBits/64].And(^mask)
			}
		})
}

// addAll adds another set's members.
func (s *set) addAll(o *set) {
	for k := range min(len(s.blocks), len(o.blocks)) {
		b := o.blocks[k].Load()
		switch {
		case b == nil:
		case b == fullBlock:
			s.blocks[k].Store(fullBlock)
		default:
			mine := s.writable(int64(k)*blockBits, true)
			if mine == fullBlock {
				continue
			}
			for w := range b {
				if v := b[w].Load(); v != 0 {
					mine[w].Or(v)
				}
			}
		}
	}
}

// next is the first member from i on, or n.
func (s *set) next(i int64) int64 { return s.find(i, s.n, 0) }

// nextGap is the first number from i on that is no member, or n.
func (s *set) nextGap(i int64) int64 { return s.find(i, s.n, ^uint64(0)) }

// find is the first number of [i, end) whose bit, xor flip, is set; else end.
func (s *set) find(i, end int64, flip uint64) int64 {
	for i < end {
		b := s.blocks[i/blockBits].Load()
		if b == nil && flip == 0 || b == fullBlock && flip != 0 {
			i = (i/blockBits + 1) * blockBits
			continue
		}
		word := uint64(0)
		if b != nil {
			word = b[i%blockBits/64].Load()
		}
		if word = (word ^ flip) >> (i % 64); word != 0 {
			return min(i+int64(bits.TrailingZeros64(word)), end)
		}
		i = (i/64 + 1) * 64
	}
	return end
}

// any reports whether a member lies in [from, to).
func (s *set) any(from, to int64) bool { return s.find(from, to, 0) < to }

// all reports whether every number of [from, to) is a member.
func (s *set) all(from, to int64) bool { return s.find(from, to, ^uint64(0)) >= to }

func (s *set) count() (n int64) {
	for k := range s.blocks {
		b := s.blocks[k].Load()
		switch b {
		case nil:
		case fullBlock:
			n += min(blockBits, s.n-int64(k)*blockBits)
		default:
			for w := range b {
				n += int64(bits.OnesCount64(b[w].Load()))
			}
		}
	}
	return n
}

// masks keeps, for each cluster, which of its pages are local although the
// cluster is the tree's. Like set: bits are only added while others look, and
// cleared when nobody does.
type masks struct {
	blocks []atomic.Pointer[maskBlock]
}

// maskClusters share one block of 8 KiB.
const maskClusters = 2048

type maskBlock [maskClusters]atomic.Uint32

func newMasks(clusters int64) *masks {
	return &masks{blocks: make([]atomic.Pointer[maskBlock], (clusters+maskClusters-1)/maskClusters)}
}

// resized is a copy for another number of clusters, which shares no later change.
func (m *masks) resized(clusters int64) *masks {
	out := newMasks(clusters)
	for i := range min(len(out.blocks), len(m.blocks)) {
		if b := m.blocks[i].Load(); b != nil {
			own := new(maskBlock)
			for c := range b {
				own[c].Store(b[c].Load())
			}
			out.blocks[i].Store(own)
		}
	}
	return out
}

func (m *masks) of(c int64) uint16 {
	b := m.blocks[c/maskClusters].Load()
	if b == nil {
		return 0
	}
	return uint16(b[c%maskClusters].Load())
}

// add adds pages and returns all.
func (m *masks) add(c int64, pages uint16) uint16 {
	p := &m.blocks[c/maskClusters]
	b := p.Load()
	if b == nil {
		p.CompareAndSwap(nil, new(maskBlock))
		b = p.Load()
	}
	return uint16(b[c%maskClusters].Or(uint32(pages))) | pages
}
