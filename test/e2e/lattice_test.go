package e2e

import (
	"testing"

	"cairn/test/e2e/harness"
)

// chunk is the product's unit (DESIGN §3): edges of it are where zeros,
// holes and data get confused.
const chunk = 64 << 10

const sector = 512

// cellState is what happens to a range of the volume between two points.
type cellState int

const (
	never cellState = iota // not touched
	dataA
	dataB
	zeros
	discarded
	cellStates
)

// latticeEdges shifts the start and the end of a cell against chunk edges.
var latticeEdges = []int64{-sector, 0, sector}

// cell is one case: three states in a row on one range. It lies on the second
// of its two chunks, and spills at most a sector into the chunks beside it,
// of which only the first of the next case takes part.
type cell struct {
	states [3]cellState
	off, n int64
	noise  uint64
}

// lattice lists every sequence of three states on every placement.
func lattice() (cells []cell, size int64) {
	for x := range cellStates {
		for y := range cellStates {
			for z := range cellStates {
				for _, from := range latticeEdges {
					for _, to := range latticeEdges {
						base := int64(len(cells)) * 2 * chunk
						cells = append(cells, cell{states: [3]cellState{x, y, z},
							off: base + chunk + from, n: chunk - from + to, noise: uint64(len(cells))})
					}
				}
			}
		}
	}
	return cells, int64(len(cells))*2*chunk + chunk + sector
}

// edits is what step i does to the volume.
func latticeEdits(cells []cell, i int) []harness.Edit {
	var out []harness.Edit
	for _, c := range cells {
		e := harness.Edit{Off: c.off, Len: c.n}
		switch c.states[i] {
		case never:
			continue
		case dataA:
			e.Kind, e.Seed = harness.WriteNoise, 2*c.noise
		case dataB:
			e.Kind, e.Seed = harness.WriteNoise, 2*c.noise+1
		case zeros:
			e.Kind = harness.WriteZeros
		case discarded:
			e.Kind = harness.Punch
		}
		out = append(out, e)
	}
	return out
}

// TestZeroLattice takes every sequence of three states of {never, A, B,
// zeros, discarded} on ranges that end on chunk edges and a sector beside
// them, as a full and two increments and as three fulls, and brings each of
// the points back to a new volume and over every other content. Of a live
// volume a client asks for the zeros, and trims.
func TestZeroLattice(t *testing.T) {
	t.Run("registered", func(t *testing.T) { zeroLattice(t, (*world).register) })
	t.Run("live", func(t *testing.T) { zeroLattice(t, (*world).importVolume) })
}

func zeroLattice(t *testing.T, volume func(*world, harness.TB, *harness.Image) *modelVolume) {
	srv := serve(t)
	w := &world{srv: srv, dir: t.TempDir()}
	cells, size := lattice()
	v := volume(w, t, harness.NewImage(size))
	for step := range 3 {
		w.edit(t, v, latticeEdits(cells, step)...)
		w.create(t, step == 0, v)
	}
	// The same three moments as fulls: a second chain, made by going back.
	inc := w.livePoints("")
	for _, p := range inc {
		w.apply(t, p)
		w.wantVolume(t, v)
		w.create(t, true, v)
	}
	w.checkRows(t)
	w.checkContent(t) // export of all six points
	full := w.livePoints("")[3:]
	for i := range inc {
		if !inc[i].content.Equal(full[i].content) {
			t.Fatalf("point %d of the two chains should be the same moment", i)
		}
	}

	// A new target, from an increment and from a full.
	for _, p := range []*modelPoint{inc[0], inc[1], inc[2], full[2]} {
		c := w.clone(t, p)
		w.api().WantContent(t, "volumes", c.id, p.content)
		w.forget(t, c)
	}
	// A reused target: every point over every other, and over a volume in
	// which nothing is a hole.
	for i, to := range inc {
		for j, from := range inc {
			if i == j {
				continue
			}
			w.apply(t, from)
			w.apply(t, to)
			w.wantVolume(t, v)
		}
		w.edit(t, v, harness.Edit{Kind: harness.WriteNoise, Len: v.content.Size(), Seed: 1})
		w.apply(t, to)
		w.wantVolume(t, v)
	}
	w.checkRows(t)
	w.api().ScrubClean(t)
	t.Logf("%d cells of %d states in a row on a volume of %d bytes", len(cells), 3, size)
}
