package crash_test

import "cairn/internal/service"

// pruneHistories are those that give space back.
func pruneHistories() []history {
	return []history{
		{name: "prune of nothing", base: twoPoints, act: func(h *hand) { h.prune(service.PruneOptions{}) }},
		{name: "prune in a dry run", base: shared, act: func(h *hand) { h.prune(service.PruneOptions{DryRun: true}) }},
		{name: "prune that deletes whole packs", base: twoChains, act: func(h *hand) { h.emptyBin() }},
		{name: "prune that keeps the bin", base: twoChains, act: func(h *hand) { h.prune(service.PruneOptions{}) }},
		{name: "prune that copies data packs", base: shared, act: func(h *hand) { h.emptyBin() }},
		{name: "prune that copies node packs", base: manyNodes, act: func(h *hand) { h.prune(service.PruneOptions{}) }},
		{name: "prune of what was copied before", base: copied, act: func(h *hand) {
			h.delete(1)
			h.emptyBin()
		}},
		{name: "prunes with nodes of several generations", base: func(h *hand) {
			manyNodes(h)
			h.prune(service.PruneOptions{})
			h.delete(0)
		}, act: func(h *hand) {
			h.emptyBin()
			h.delete(1)
			h.emptyBin()
		}},
		{name: "increment on nodes that were copied", base: func(h *hand) {
			manyNodes(h)
			h.prune(service.PruneOptions{})
			h.write(0, noise(200, 4*mib, 5000))
		}, act: func(h *hand) { h.take(false, 0) }},
		{name: "two prunes", base: shared, act: func(h *hand) {
			h.emptyBin()
			h.emptyBin()
		}},
		{name: "scrub, clone and increment of what was copied", base: copied, act: func(h *hand) {
			h.scrub(false)
			h.clone(1)
			h.take(false, 2)
		}},
		{name: "increment on what was copied", base: copied, act: func(h *hand) {
			h.write(1, noise(31, 0, 150*kib))
			h.take(false, 1)
			h.emptyBin()
		}},
		{name: "prune beside a create", base: hits, act: func(h *hand) {
			h.beforeCommit(func() { h.emptyBin() })
			h.take(true, 1)
			h.prune(service.PruneOptions{})
		}},
		{name: "prunes that a create must take up", base: hits, act: func(h *hand) {
			h.beforeCommit(func() {
				h.emptyBin()
				h.prune(service.PruneOptions{})
			})
			h.take(true, 1)
		}},
	}
}

// twoChains are a chain and one in the recycle bin that shares nothing.
func twoChains(h *hand) {
	onePoint(h)
	h.managed(mib)
	h.write(1, noise(11, 0, 300*kib))
	h.take(true, 1)
	h.write(1, noise(12, 0, 200*kib))
	h.take(false, 1)
	h.delete(1)
}

// shared are three chains; the first, in the bin, stored what the others need
// a part of.
func shared(h *hand) {
	h.managed(mib)
	h.write(0, noise(1, 0, 768*kib))
	h.take(true, 0)
	for i, part := range []int64{256, 512} {
		h.managed(mib)
		whole := newImage(mib)
		whole.noise(1, 0, 768*kib)
		h.write(1+i, func(m *image) {
			b := make([]byte, part*kib)
			if err := whole.read(b, 0); err != nil {
				h.t.Fatal(err)
			}
			if err := m.write(b, 0); err != nil {
				h.t.Fatal(err)
			}
		})
		h.take(true, 1+i)
	}
	h.delete(0)
}

// copied is what a prune that copied has left, and more points. Point 1 has
// the first 4 chunks of what was copied, point 2 the first 8.
func copied(h *hand) {
	shared(h)
	h.emptyBin()
	h.write(2, noise(41, 600*kib, 10*kib))
	h.take(false, 2)
	h.delete(1)
	h.undelete(1)
}

// manyNodes are four fulls of one volume: their chunks are shared, each has a
// node pack of its own, so small that a prune puts them together.
func manyNodes(h *hand) {
	wide(h)
	for i := range 4 {
		h.write(0, noise(uint64(100+i), 0, 700))
		h.take(true, 0)
	}
}

// hits are a point in the bin and a volume of the same content: its points
// refer to what nothing else needs any more.
func hits(h *hand) {
	onePoint(h)
	h.delete(0)
	h.managed(mib)
	h.write(1, noise(1, 0, 512*kib))
	h.write(1, noise(51, 512*kib, 200*kib))
}
