package e2e

import (
	"slices"

	"cairn/test/e2e/harness"
)

// checkPaths restores every live point by every path: rollback in place where
// its volume still is, a new volume always. Export is checkContent's.
func (w *world) checkPaths(t harness.TB) {
	t.Helper()
	w.checkRollbacks(t)
	w.checkClones(t)
	w.checkRows(t)
}

// checkRollbacks rolls every volume back to each of its live points in turn,
// to the head last, and then puts back what its owner had written since. So
// the history goes on where it was, unless a volume's head was deleted: then
// it goes on from the last point applied, as if its owner had done that.
func (w *world) checkRollbacks(t harness.TB) {
	t.Helper()
	turns := map[*modelVolume][]*modelPoint{}
	owned := map[*modelVolume]*harness.Image{}
	most := 0
	for _, v := range w.liveVols() {
		turns[v] = w.rollbackOrder(v)
		owned[v] = v.content.Clone()
		most = max(most, len(turns[v]))
	}
	for i := range most {
		var batch []*modelPoint // of one call: at most one point of each volume
		for _, v := range w.liveVols() {
			if k := i - (most - len(turns[v])); k >= 0 {
				batch = append(batch, turns[v][k])
			}
		}
		w.apply(t, batch...)
		for _, p := range batch {
			w.wantVolume(t, w.vol(p.volume))
		}
	}
	for v, content := range owned {
		if v.path == "" || len(turns[v]) == 0 {
			continue
		}
		if err := content.WriteFile(v.path); err != nil {
			t.Fatalf("put the content of %s back: %v", v.name, err)
		}
		v.content = content
	}
}

// rollbackOrder is the volume's live points that fit into it, its head last.
func (w *world) rollbackOrder(v *modelVolume) []*modelPoint {
	order := slices.DeleteFunc(w.livePoints(v.id), func(p *modelPoint) bool {
		return p.content.Size() > v.content.Size() || p.id == v.head
	})
	if head := w.point(v.head); head != nil && !head.deleted {
		order = append(order, head)
	}
	return order
}

// wantVolume compares what a volume holds, byte for byte.
func (w *world) wantVolume(t harness.TB, v *modelVolume) {
	t.Helper()
	if v.path != "" {
		v.content.WantFile(t, v.path)
	} else {
		w.api().WantContent(t, "volumes", v.id, v.content)
	}
}

// checkClones restores every live point to a new volume, which goes again.
func (w *world) checkClones(t harness.TB) {
	t.Helper()
	for _, p := range w.livePoints("") {
		c := w.clone(t, p)
		w.api().WantContent(t, "volumes", c.id, p.content)
		w.forget(t, c)
	}
}
