package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"cairn/internal/qcow2"
	"cairn/test/e2e/harness"
)

// importTour imports files into volumes and compares them by exporting.
type importTour struct {
	c   console
	img *harness.Image
	n   int
}

// same imports a file, told to be of a format unless that is "", and wants
// img as the volume's content.
func (i *importTour) same(t *testing.T, file, format string) {
	t.Helper()
	i.n++
	name, back := fmt.Sprint("volume-", i.n), fmt.Sprint("back-", i.n, ".raw")
	args := []string{"volume", "import", file, "--name", name, "--wait"}
	if format != "" {
		args = append(args, "--format", format)
	}
	var j harness.Job
	i.c.json(t, &j, args...)
	if j.Status != "successful" || len(j.ResourceIDs) != 1 {
		t.Fatalf("import of %s printed %+v", file, j)
	}
	i.c.ok(t, "volume", "export", j.ResourceIDs[0], "--to", back)
	i.img.WantFile(t, filepath.Join(i.c.dir, back))
}

func qemuImg(t *testing.T, dir string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), toolLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
}

func TestImportFiles(t *testing.T) {
	srv := serve(t)
	dir := t.TempDir()
	i := &importTour{c: console{srv.Bin, dir, srv.BaseURL()}, img: harness.NewImage(33*mib + 512)}
	i.img.Apply(harness.Edit{Kind: harness.WriteNoise, Off: 100_000, Len: 700_000, Seed: 1})
	i.img.Apply(harness.Edit{Kind: harness.WriteNoise, Off: 20 * mib, Len: 3 * mib, Seed: 2})
	i.img.Apply(harness.Edit{Kind: harness.WriteNoise, Off: i.img.Size() - 100, Len: 100, Seed: 3})
	i.img.NewFile(t, dir, "disk.raw")

	t.Run("raw", func(t *testing.T) { i.same(t, "disk.raw", "") })
	t.Run("our own qcow2", func(t *testing.T) {
		i.c.ok(t, "volume", "export", "volume-1", "--format", "qcow2", "--to", "own.qcow2")
		i.same(t, "own.qcow2", "")
		i.same(t, "own.qcow2", "qcow2")
	})
	t.Run("QEMU's qcow2", func(t *testing.T) {
		if _, err := exec.LookPath("qemu-img"); err != nil {
			t.Skip("skipped: no qemu-img here")
		}
		for n, options := range [][]string{
			{"-o", "compat=0.10"}, {"-o", "cluster_size=2M"}, {"-c"}, {"-c", "-o", "compression_type=zstd,cluster_size=4k"},
			{"-o", "extended_l2=on,cluster_size=128k"}, {"-o", "preallocation=metadata"},
		} {
			file := fmt.Sprint("qemu-", n, ".qcow2")
			qemuImg(t, dir, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...), "disk.raw", file)...)
			i.same(t, file, "")
		}
		qemuImg(t, dir, "create", "-q", "-f", "qcow2", "-b", "qemu-0.qcow2", "-F", "qcow2", "layer.qcow2")
		i.c.fails(t, 2, `its backing file "qemu-0.qcow2"; bring them together first: qemu-img convert`, "volume", "import", "layer.qcow2", "--name", "layer")
		qemuImg(t, dir, "convert", "-O", "qcow2", "layer.qcow2", "whole.qcow2")
		i.same(t, "whole.qcow2", "")
	})
}

// What is nearly all hole takes what its data takes: if zeros were sent, this
// test would not come to an end.
func TestImportOfHoles(t *testing.T) {
	srv := serve(t)
	dir := t.TempDir()
	c := console{srv.Bin, dir, srv.BaseURL()}
	const size = 3 << 40
	f, err := os.Create(filepath.Join(dir, "wide.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Skipf("skipped: this filesystem has no files of 3 TiB: %v", err)
	}
	marks := map[int64]string{0: "first", 1 << 40: "middle", size - 4: "last"}
	for off, mark := range marks {
		if _, err := f.WriteAt([]byte(mark), off); err != nil {
			t.Fatal(err)
		}
	}
	files := []string{"wide.raw"}
	if _, err := exec.LookPath("qemu-img"); err == nil {
		qemuImg(t, dir, "convert", "-f", "raw", "-O", "qcow2", "wide.raw", "wide.qcow2")
		files = append(files, "wide.qcow2")
	}
	for _, file := range files {
		var j harness.Job
		c.json(t, &j, "volume", "import", file, "--name", file, "--wait")
		if j.Status != "successful" {
			t.Fatalf("import of %s printed %+v", file, j)
		}
		var v harness.Volume
		c.json(t, &v, "volume", "show", j.ResourceIDs[0])
		if v.SizeBytes != size {
			t.Errorf("%s became a volume of %d bytes", file, v.SizeBytes)
		}
		c.ok(t, "volume", "export", v.ID, "--format", "qcow2", "--to", "back.qcow2", "--force")
		wantMarks(t, filepath.Join(dir, "back.qcow2"), size, marks)
	}
}

func wantMarks(t *testing.T, name string, size int64, marks map[int64]string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, err := qcow2.Open(f, st.Size())
	if err != nil || r.Size() != size {
		t.Fatalf("the export is not of %d bytes: %v", size, err)
	}
	for off, mark := range marks {
		got := make([]byte, len(mark))
		if err := r.ReadAt(t.Context(), got, off); err != nil || string(got) != mark {
			t.Errorf("at byte %d is %q, want %q: %v", off, got, mark, err)
		}
	}
	if st.Size() > mib {
		t.Errorf("the export has %d bytes: the holes were filled", st.Size())
	}
}
