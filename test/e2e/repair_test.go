package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/test/e2e/harness"
)

// TestRepair damages every blob of a repository in one of its copies, and the
// data packs in their only one. A scrub says so and changes nothing; a full
// that comes afterwards stores the damaged chunks again; then a repair heals
// everything, and every point restores.
func TestRepair(t *testing.T) {
	srv := serve(t)
	w := &world{srv: srv, dir: t.TempDir()}
	img := harness.NewImage(900_000)
	img.Apply(harness.Edit{Kind: harness.WriteNoise, Len: 700_000, Seed: 5})
	v := w.register(t, img)
	w.create(t, true, v)
	v.edit(t, harness.Edit{Kind: harness.WriteNoise, Off: 200_000, Len: 300_000, Seed: 6})
	w.create(t, false, v)
	first := w.livePoints("")[0]

	srv.Stop(t)
	var hurt []string
	for _, blob := range repositoryBlobs(t, srv.Dir) {
		kind := filepath.Base(filepath.Dir(filepath.Dir(blob)))
		if kind != "data" && !strings.HasSuffix(blob, ".b") || strings.Contains(blob, "/journal/") {
			continue
		}
		b, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/3] ^= 1
		replaceFile(t, blob, b)
		hurt = append(hurt, blob)
	}
	srv.Run(t)
	before := snapshotOf(t, srv.Dir)
	j := scrub(t, srv, "")
	if j.Status != "failed" || !strings.Contains(j.Extra, "damaged_snapshots") {
		t.Fatalf("scrub of %d damaged blobs: %s, %s", len(hurt), j.Status, j.Extra)
	}
	if after := snapshotOf(t, srv.Dir); after != before {
		t.Errorf("a plain scrub changed the repository:\n%s\nwas\n%s", after, before)
	}
	// Without another copy the chunks cannot be healed, and are not.
	if j = scrub(t, srv, "?repair=1"); j.Status != "failed" || !strings.Contains(j.Extra, `"healed_blobs":["`) {
		t.Errorf("the first repair: %s, %s", j.Status, j.Extra)
	}
	readsRightOrFails(t, srv.API(), first)

	// The first point's content comes back, and with it its chunks.
	if err := first.content.WriteFile(v.path); err != nil {
		t.Fatal(err)
	}
	v.content = first.content.Clone()
	w.create(t, true, v)
	second := w.points[1]
	if err := second.content.WriteFile(v.path); err != nil {
		t.Fatal(err)
	}
	v.content = second.content.Clone()
	w.create(t, true, v)

	j = srv.API().OK(t, scrub(t, srv, "?repair=1"))
	if !strings.Contains(j.Extra, `"healed_packs":`) {
		t.Errorf("the repair's report: %s", j.Extra)
	}
	srv.API().ScrubClean(t)
	w.checkContent(t)
	w.checkRows(t)
	w.checkPaths(t)
}

func scrub(t *testing.T, srv *harness.Server, query string) harness.Job {
	t.Helper()
	return srv.API().Wait(t, srv.API().Send(t, http.MethodPost, "repository/scrub"+query, nil).Begin(t).ID)
}

// snapshotOf is the names and contents of all blobs.
func snapshotOf(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	for _, blob := range repositoryBlobs(t, dir) {
		if strings.Contains(blob, "/journal/") {
			continue // it follows the rows, which a scrub marks
		}
		b, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString(filepath.Base(blob) + " " + harness.Sum(b) + "\n")
	}
	return all.String()
}
