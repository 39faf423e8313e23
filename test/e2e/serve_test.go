package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/nbd"
	"cairn/test/e2e/harness"
)

// TestServedSnapshot: clients read a point while its volume goes on, it cannot
// be deleted meanwhile, and it is there again after the server was killed.
func TestServedSnapshot(t *testing.T) {
	t.Parallel()
	l := newLiveRig(t)
	c := l.dial(t, l.id)
	want := harness.NewImage(livePages * livePage)
	for range 50 {
		e := harness.RandomEdit(l.rng, want.Size())
		want.Apply(e)
		err := c.Zero(t.Context(), e.Off, e.Len, 0)
		if b := e.Bytes(); b != nil {
			err = c.WriteAt(t.Context(), b, e.Off, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	id := l.srv.API().Create(t, "p", false, l.id)[0]
	p := make([]byte, want.Size())
	harness.Noise(p, 3)
	if err := c.WriteAt(t.Context(), p, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	serve := harness.Request{Method: http.MethodPost, Path: "volume_snapshots/serve/" + id}
	unserve := harness.Request{Method: http.MethodDelete, Path: serve.Path}
	l.srv.API().Do(t, unserve).WantError(t, 409, "1400")
	var answer harness.Snapshot
	l.srv.Local().Do(t, serve).Into(t, &answer)
	uris := func() []string { return l.srv.Local().MustSnapshot(t, id).NBDURIs }
	if shown := l.srv.API().MustSnapshot(t, id).NBDURIs; len(shown) > 0 {
		t.Errorf("a caller of another host learns of %q", shown)
	}
	first := uris()
	if len(first) != 1 || len(answer.NBDURIs) != 1 || answer.NBDURIs[0] != first[0] {
		t.Fatalf("served at %q, shown at %q", answer.NBDURIs, first)
	}
	readsAs(t, first[0], want)
	if message := l.srv.API().Do(t, harness.Request{Method: http.MethodDelete, Path: "volume_snapshots/" + id}).WantError(t, 409, "1400"); !strings.Contains(message, "unserve") {
		t.Errorf("the refusal does not say what to do: %s", message)
	}
	l.srv.API().DeleteVolumes(t, l.id) // a point does not need its volume

	l.srv.Kill(t)
	l.srv.Run(t)
	c = dialExport(t.Context(), t, uris)
	if again := uris(); again[0] != first[0] {
		t.Errorf("served as %s after a restart, before as %s", again[0], first[0])
	}
	got := make([]byte, want.Size())
	if err := c.ReadAt(t.Context(), got, 0); err != nil || !want.Is(got) {
		t.Errorf("after a restart it is something else, or cannot be read: %v", err)
	}
	if err := c.WriteAt(t.Context(), numbered(1), 0, 0); err == nil {
		t.Error("a write to a point passes")
	}
	if n := l.srv.API().MustSnapshot(t, id).Clients; n == 0 {
		t.Error("no clients are shown")
	}
	l.srv.API().Do(t, unserve).WantError(t, 409, "1400")
	unserve.Path += "?force=1"
	if r := l.srv.API().Do(t, unserve); r.Status != http.StatusNoContent {
		t.Fatalf("unserve by force: %d %s", r.Status, r.Body)
	}
	if err := c.ReadAt(t.Context(), got[:1], 0); err == nil {
		t.Error("a client reads on after a forced end")
	}
	_ = c.Close() // its connections have ended
	if left := uris(); len(left) > 0 {
		t.Errorf("still served at %q", left)
	}
	l.srv.API().DeleteSnapshots(t, id)
}

// readsAs reads an export by our own client and by other people's.
func readsAs(t *testing.T, uri string, want *harness.Image) {
	t.Helper()
	parsed, err := nbd.ParseURI(uri)
	if err != nil {
		t.Fatal(err)
	}
	c, err := nbd.Dial(t.Context(), parsed, nbd.Options{Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, c.Size())
	if err := c.ReadAt(t.Context(), got, 0); err != nil || !want.Is(got) {
		t.Errorf("the export holds something else, or cannot be read: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	need(t, "nbdinfo", "nbdcopy", "qemu-img")
	var info struct {
		Exports []struct {
			Size     int64 `json:"export-size"`
			ReadOnly bool  `json:"is_read_only"`
		} `json:"exports"`
	}
	if err := json.Unmarshal(tool(t, "nbdinfo", "--json", uri), &info); err != nil || len(info.Exports) != 1 ||
		info.Exports[0].Size != want.Size() || !info.Exports[0].ReadOnly {
		t.Errorf("nbdinfo says %+v, %v", info, err)
	}
	dir := t.TempDir()
	copied, converted := filepath.Join(dir, "nbdcopy.raw"), filepath.Join(dir, "qemu.raw")
	tool(t, "nbdcopy", uri, copied)
	want.WantFile(t, copied)
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, converted)
	want.WantFile(t, converted)
}

// tool runs another program and returns what it prints.
func tool(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var failed strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, failed.String())
	}
	return out
}

// need skips a test without other people's programs.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("skipped: %s is not installed", tool)
		}
	}
}
