package e2e

import (
	"errors"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"

	"pgregory.net/rapid"

	"cairn/test/e2e/harness"
)

// prune gives space back; it changes nothing that anybody sees, except what
// the bin held if that is emptied.
func (w *world) prune(t harness.TB, emptyBin bool) {
	t.Helper()
	path := "repository/prune"
	if emptyBin {
		path += "?empty_bin=1"
	}
	w.api().OK(t, w.api().Send(t, http.MethodPost, path, nil).Begin(t))
	if !emptyBin {
		return
	}
	for _, p := range w.points {
		p.ceased = p.ceased || p.deleted
	}
}

// inBin are the points that can be brought back.
func (w *world) inBin() []*modelPoint {
	var out []*modelPoint
	for _, p := range w.points {
		if p.deleted && !p.ceased {
			out = append(out, p)
		}
	}
	return out
}

// undelete brings a point back with its deleted ancestors, unless the chain
// would then be too long. It says whether it did.
func (w *world) undelete(t harness.TB, p *modelPoint) bool {
	t.Helper()
	var back []*modelPoint
	for q := p; q != nil; q = w.point(q.parent) {
		if q.ceased {
			t.Fatalf("%s is in the bin, but its ancestor %s has ceased", p.id, q.id)
		}
		if q.deleted {
			back = append(back, q)
		}
	}
	members := 0
	for _, q := range w.livePoints(p.volume) {
		if q.root == p.root {
			members++
		}
	}
	r := w.api().Send(t, http.MethodPost, "lease", map[string]any{"resources": []string{p.id}})
	if limit := w.limit; limit > 0 && members+len(back) > limit {
		if r.Status != http.StatusConflict {
			t.Fatalf("bringing %s back would make a chain of %d, but it answered %d %s", p.id, members+len(back), r.Status, r.Body)
		}
		return false
	}
	j := w.api().OK(t, r.Begin(t))
	for _, q := range back {
		q.deleted = false
	}
	got := slices.Sorted(slices.Values(j.ResourceIDs))
	if want := ids(back); !slices.Equal(got, want) {
		t.Fatalf("bringing %s back brought %v, want %v", p.id, got, want)
	}
	return true
}

func (m *machine) pruneNow(t *rapid.T) {
	m.world.prune(t, false)
	m.count("prune")
}

func (m *machine) emptyBin(t *rapid.T) {
	m.world.prune(t, true)
	m.count("empty bin")
}

func (m *machine) bringBack(t *rapid.T) {
	if m.world.undelete(t, m.drawPoint(t, m.inBin())) {
		m.count("undelete")
	}
}

// wantNothingStored fails if the repository keeps more than what describes it,
// although no point is left.
func wantNothingStored(t harness.TB, dataDir string) {
	t.Helper()
	for _, kind := range []string{"data", "node", "point", "reloc"} {
		err := filepath.WalkDir(filepath.Join(dataDir, "repo", kind), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				t.Errorf("%s is stored, though no point is left", path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		if err != nil {
			t.Fatalf("look through the repository: %v", err)
		}
	}
}
