package e2e

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/test/e2e/harness"
)

// TestFullDisk fills the disk of a server until a point does not fit any more,
// and then to the last byte. The failing job says so, what was there before
// stays, and deleting and pruning make room for the next point.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipped: mounting a small tmpfs needs root")
	}
	root := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", root).CombinedOutput(); err != nil {
		t.Skipf("skipped: no tmpfs can be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", root).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	srv := harness.Start(t, builder.Path(t), root, "--reserve", "24")
	w := &world{srv: srv, dir: t.TempDir()}
	v := w.register(t, harness.NewImage(40<<20))
	var failed harness.Job
	for n := uint64(1); n < 20; n++ {
		v.edit(t, harness.Edit{Kind: harness.WriteNoise, Len: 35 << 20, Seed: n})
		moment := v.content.Clone()
		j := srv.API().Wait(t, srv.API().Send(t, http.MethodPost, "volume_snapshots",
			map[string]any{"resources": []string{v.id}, "snapshot_name": "point", "is_full": 1}).Begin(t).ID)
		if j.Status == "failed" {
			failed = j
			break
		}
		w.record(t, "point", true, []*modelVolume{v}, j.ResourceIDs, []*harness.Image{moment})
	}
	if !strings.Contains(failed.Info, "are kept for deleting and pruning") || len(w.points) < 2 {
		t.Fatalf("after %d points: %q, want one that does not fit", len(w.points), failed.Info)
	}
	w.checkContent(t)

	// Somebody else takes the rest.
	filler := filepath.Join(root, "filler")
	fill(t, filler)
	w.remove(t, w.points[0])
	w.prune(t, true)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	w.checkContent(t)
	v.edit(t, harness.Edit{Kind: harness.WriteNoise, Len: 1 << 20, Seed: 99})
	w.create(t, true, v)
	w.checkContent(t)
	w.checkRows(t)
	srv.API().ScrubClean(t)
}

// fill writes a file until nothing more fits.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4 << 10, 1} {
		for b := bytes.Repeat([]byte{1}, size); ; {
			if _, err := f.Write(b); err != nil {
				break
			}
		}
	}
}
