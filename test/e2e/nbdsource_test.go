package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/nbd"
	"cairn/test/e2e/harness"
)

// TestNBDSource: an export of somebody else's server is a volume like a file:
// points, rollback in place, clones; to delete it is to forget it.
func TestNBDSource(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(harness.Seed(t))
	content := harness.NewImage(24<<20 + 512)
	edit := func(path string) {
		e := harness.RandomEdit(rng, content.Size())
		content.Apply(e)
		if err := e.ApplyFile(path); err != nil {
			t.Fatal(err)
		}
	}
	dir := socketDir(t)
	disk := content.NewFile(t, dir, "disk.raw")
	for range 20 {
		edit(disk)
	}
	socket := filepath.Join(dir, "s")
	stop := serveOther(t, socket, "-f", "raw", "--discard=unmap", disk)
	srv := serve(t)
	uri := unixURI("", socket)
	srv.API().Send(t, http.MethodPost, "volumes/register", map[string]any{"path": uri, "volume_name": "n"}).WantError(t, 403, "1400")
	v := srv.Local().Register(t, "other", uri)
	if v.Driver != "nbd" || v.SizeBytes != content.Size() {
		t.Errorf("registered as %+v", v)
	}
	if message := srv.Local().Send(t, http.MethodPost, "volumes/register", map[string]any{"path": uri, "volume_name": "n"}).WantError(t, 409, "2110"); !strings.Contains(message, v.ID) {
		t.Errorf("the refusal does not name the volume: %s", message)
	}
	first, before := srv.API().Create(t, "first", false, v.ID)[0], content.Clone()
	stop()
	// Its owner may change it by other means, too.
	edit(disk)
	message := srv.API().Wait(t, srv.API().Send(t, http.MethodPost, "volume_snapshots",
		map[string]any{"resources": []string{v.ID}, "snapshot_name": "p"}).Begin(t).ID).Info
	if !strings.Contains(message, v.ID) || strings.Contains(message, socket) {
		t.Errorf("without its server a point fails with %q", message)
	}
	stop = serveOther(t, socket, "-f", "raw", "--discard=unmap", disk)
	second, after := srv.API().Create(t, "second", false, v.ID)[0], content.Clone()
	if p := srv.API().MustSnapshot(t, second); p.ParentID != first || p.CBT != "scan" {
		t.Errorf("the second point is %+v", p)
	}
	srv.API().WantContent(t, "volume_snapshots", second, after)
	srv.Kill(t)
	srv.Run(t)
	srv.API().Apply(t, first)
	srv.API().WantContent(t, "volumes", v.ID, before)
	srv.API().WantContent(t, "volumes", srv.API().Clone(t, second, "clone"), after)
	stop()
	before.WantFile(t, disk)

	// For reading only it can be backed up and not rolled back.
	stop = serveOther(t, socket, "-r", "-f", "raw", disk)
	third := srv.API().Create(t, "third", false, v.ID)[0]
	srv.API().WantContent(t, "volume_snapshots", third, before)
	j := srv.API().Wait(t, srv.API().Send(t, http.MethodPost, "volume_snapshots/apply", map[string]any{"snapshots": []string{second}}).Begin(t).ID)
	if j.Status != "failed" || !strings.Contains(j.Info, "reading only") {
		t.Errorf("the rollback of an export that is for reading only: %s, %q", j.Status, j.Info)
	}
	stop()
	srv.API().DeleteVolumes(t, v.ID)
	before.WantFile(t, disk)
	srv.API().ScrubClean(t)
}

// TestNBDSourceTracks: where the owner says so, a dirty bitmap tells what
// changed.
func TestNBDSourceTracks(t *testing.T) {
	t.Parallel()
	need(t, "qemu-img", "qemu-io")
	dir := socketDir(t)
	disk, socket := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "s")
	const size = 32 << 20
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", disk, fmt.Sprint(size))
	tool(t, "qemu-img", "bitmap", "--add", "-g", "65536", disk, "cairn-day")
	content := harness.NewImage(size)
	write := func(fill byte, off, length int64) {
		tool(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d %d %d", fill, off, length), disk)
		b := make([]byte, length)
		for i := range b {
			b[i] = fill
		}
		content.Write(b, off)
	}
	write(1, 0, 8<<20)
	srv := serve(t)
	point := func(name string) harness.Snapshot {
		t.Helper()
		stop := serveOther(t, socket, "-r", "-f", "qcow2", "-B", "cairn-day", disk)
		defer stop()
		all := srv.API().Volumes(t, nil)
		if len(all) == 0 {
			all = append(all, srv.Local().Register(t, "tracked", unixURI("", socket)+"&cairn-bitmaps=trust"))
		}
		id := srv.API().Create(t, name, false, all[0].ID)[0]
		srv.API().WantContent(t, "volume_snapshots", id, content)
		return srv.API().MustSnapshot(t, id)
	}
	if p := point("first"); p.CBT != "scan" {
		t.Errorf("the first point says %q", p.CBT)
	}
	write(2, 9<<20, 100<<10)
	if p := point("second"); p.CBT != "tracked" {
		t.Errorf("the second point says %q", p.CBT)
	}
	write(3, 20<<20, 1<<20)
	tool(t, "qemu-img", "bitmap", "--clear", disk, "cairn-day")
	write(4, 1<<20, 512)
	if p := point("after the bitmap was cleared"); p.CBT != "scan" {
		t.Errorf("the third point says %q", p.CBT)
	}
}

// TestReplicate: a point that one server serves is a volume of another one.
func TestReplicate(t *testing.T) {
	t.Parallel()
	a, b := serve(t), serve(t)
	content := harness.NewImage(8 << 20)
	rng := harness.Rand(harness.Seed(t))
	for range 10 {
		content.Apply(harness.RandomEdit(rng, content.Size()))
	}
	id := a.API().Create(t, "p", false, a.API().Import(t, "v", content))[0]
	var served harness.Snapshot
	a.Local().Do(t, harness.Request{Method: http.MethodPost, Path: "volume_snapshots/serve/" + id}).Into(t, &served)
	there := b.Local().Register(t, "of another server", served.NBDURIs[0])
	copied := b.API().Create(t, "copy", false, there.ID)[0]
	a.Stop(t)
	b.API().WantContent(t, "volume_snapshots", copied, content)

	// Its own it does not register.
	own := b.API().Clone(t, copied, "own")
	uri := b.Local().MustVolume(t, own).NBDURIs[0]
	if message := b.Local().Send(t, http.MethodPost, "volumes/register", map[string]any{"path": uri, "volume_name": "n"}).WantError(t, 400, "1100"); !strings.Contains(message, "itself") {
		t.Errorf("its own volume is refused with %q", message)
	}
}

// socketDir is a folder whose name leaves room for a socket's.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func unixURI(export, socket string) string {
	return nbd.URI{Network: "unix", Address: socket, Export: export}.String()
}

// serveOther runs qemu-nbd at a socket until stop, or the test's end.
func serveOther(t *testing.T, socket string, args ...string) (stop func()) {
	t.Helper()
	need(t, "qemu-nbd")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	cmd := exec.CommandContext(ctx, "qemu-nbd", append([]string{"-t", "-e", "8", "-k", socket}, args...)...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := false
	stop = func() {
		if !ended {
			ended = true
			_ = cmd.Process.Signal(os.Interrupt) // it may have ended
			_ = cmd.Wait()                       // of a signal
			cancel()
		}
	}
	t.Cleanup(stop)
	if !harness.Poll(20*time.Second, func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			err = c.Close()
		}
		return err == nil
	}) {
		stop()
		t.Fatalf("qemu-nbd does not listen: %s", out.String())
	}
	return stop
}
