package e2e

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/test/e2e/harness"
)

// TestDamageIsFound flips one byte in every blob of the repository in turn.
// A scrub always says so, and no export ever gives wrong bytes as whole.
func TestDamageIsFound(t *testing.T) {
	srv := serve(t)
	w := &world{srv: srv, dir: t.TempDir()}
	img := harness.NewImage(600_000)
	img.Apply(harness.Edit{Kind: harness.WriteNoise, Len: 400_000, Seed: 5})
	v := w.register(t, img)
	w.create(t, true, v)
	v.edit(t, harness.Edit{Kind: harness.WriteText, Off: 300_000, Len: 200_000, Seed: 6})
	w.create(t, false, v)

	blobs := repositoryBlobs(t, srv.Dir)
	if len(blobs) < 3 {
		t.Fatalf("found only %v in the repository", blobs)
	}
	for _, blob := range blobs {
		t.Run(filepath.Base(blob), func(t *testing.T) {
			whole, err := os.ReadFile(blob)
			if err != nil {
				t.Fatal(err)
			}
			srv.Stop(t)
			hurt := append([]byte(nil), whole...)
			hurt[len(hurt)/2] ^= 0x40
			replaceFile(t, blob, hurt)
			srv.Run(t)

			j := srv.API().Wait(t, srv.API().Send(t, http.MethodPost, "repository/scrub", map[string]any{}).Begin(t).ID)
			if j.Status != "failed" || j.Info == "" || !json.Valid([]byte(j.Extra)) {
				t.Errorf("scrub of a damaged repository: %s, info %q, report %s", j.Status, j.Info, j.Extra)
			}
			for _, p := range w.livePoints("") {
				readsRightOrFails(t, srv.API(), p)
			}

			srv.Stop(t)
			replaceFile(t, blob, whole)
			srv.Run(t)
			srv.API().ScrubClean(t) // and clears what the damaged one marked
			w.checkContent(t)
			w.checkRows(t)
		})
	}
}

// TestDamagedParent has a point made on a damaged head: the system makes a
// full and says why, and it restores.
func TestDamagedParent(t *testing.T) {
	srv := serve(t)
	w := &world{srv: srv, dir: t.TempDir()}
	img := harness.NewImage(300_000)
	img.Apply(harness.Edit{Kind: harness.WriteNoise, Len: 300_000, Seed: 5})
	v := w.register(t, img)
	w.create(t, true, v)
	old := w.point(v.head)
	srv.Stop(t)
	for _, blob := range repositoryBlobs(t, srv.Dir) {
		if !strings.Contains(blob, "/header/") {
			whole, err := os.ReadFile(blob)
			if err != nil {
				t.Fatal(err)
			}
			for i := len(whole) / 4; i < len(whole)*3/4; i += 1000 {
				whole[i] ^= 0xff
			}
			replaceFile(t, blob, whole)
		}
	}
	srv.Run(t)
	j := srv.API().Wait(t, srv.API().Send(t, http.MethodPost, "repository/scrub", map[string]any{}).Begin(t).ID)
	if j.Status != "failed" {
		t.Fatalf("scrub says %s", j.Status)
	}
	readsRightOrFails(t, srv.API(), old)
	j = srv.API().OK(t, srv.API().Send(t, http.MethodPost, "volume_snapshots",
		map[string]any{"resources": []string{v.id}, "snapshot_name": "after"}).Begin(t))
	s := srv.API().MustSnapshot(t, j.ResourceIDs[0])
	if s.Type != "IS_FULL" || j.Info == "" {
		t.Errorf("on a damaged head: %s, info %q; want a full and a reason", s.Type, j.Info)
	}
	srv.API().WantContent(t, "volume_snapshots", s.ID, v.content)
}

// readsRightOrFails exports a point: right bytes, an error answer, or a cut
// stream are fine; wrong bytes as a whole answer never are.
func readsRightOrFails(t *testing.T, c *harness.Client, p *modelPoint) {
	t.Helper()
	r, err := c.Try(harness.Request{Method: http.MethodGet, Path: "volume_snapshots/" + p.id + "/export?format=raw"})
	if err == nil && r.Status == http.StatusOK && !p.content.Is(r.Body) {
		t.Errorf("export of %s gave wrong bytes as a whole answer", p.id)
	}
}

// repositoryBlobs are the files below the repository's folder.
func repositoryBlobs(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(filepath.Join(dir, "repo"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// replaceFile puts new content under a path, whatever its mode.
func replaceFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}
