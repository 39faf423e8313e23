package e2e

import (
	"crypto/sha256"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/test/e2e/harness"
)

// folderState is every file below a folder but logs, with a hash of its bytes.
func folderState(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	out := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = sha256.Sum256(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestDebug looks into a repository beside its server, without a server,
// without a database, and with damage; nothing is changed by it.
func TestDebug(t *testing.T) {
	srv := serve(t)
	w := &world{srv: srv, dir: t.TempDir()}
	img := harness.NewImage(700_000)
	img.Apply(harness.Edit{Kind: harness.WriteNoise, Len: 400_000, Seed: 5})
	v := w.register(t, img)
	w.create(t, true, v)
	v.edit(t, harness.Edit{Kind: harness.WriteText, Off: 300_000, Len: 200_000, Seed: 6})
	w.create(t, false, v)
	con := console{srv.Bin, t.TempDir(), srv.BaseURL()}
	look := func(args ...string) []string {
		return append(append([]string{"debug"}, args...), "--data-dir", srv.Dir)
	}
	head := w.point(v.head)

	o := con.ok(t, look("repo")...)
	if !strings.Contains(o.err, "server") || !strings.Contains(o.out, "running") {
		t.Errorf("beside a server: stdout %q, stderr %q", o.out, o.err)
	}
	con.ok(t, look("tree", head.id, "--check")...)
	srv.Stop(t)
	before := folderState(t, srv.Dir)
	if o := con.ok(t, look("repo")...); o.err != "" || !strings.Contains(o.out, "not running") {
		t.Errorf("without a server: stdout %q, stderr %q", o.out, o.err)
	}
	var tree struct {
		Tree []struct {
			Kind, ID, State string
			Offset          int64
		}
	}
	con.json(t, &tree, look("tree", head.id, "--from", "400000", "--to", "400001", "--check")...)
	last := tree.Tree[len(tree.Tree)-1]
	if last.Kind != "chunk" || last.Offset != 400_000/65536*65536 || last.State != "ok" {
		t.Fatalf("tree shows %+v", tree)
	}
	var why struct {
		References []struct {
			Snapshot string `json:"snapshot_id"`
			Offset   int64
		}
		Stored []struct {
			Pack, State string
			KnownBy     []string `json:"known_by"`
		}
	}
	con.json(t, &why, look("why", last.ID)...)
	if len(why.References) != 1 || why.References[0].Snapshot != head.id || why.References[0].Offset != last.Offset || len(why.Stored) != 1 || why.Stored[0].State != "ok" {
		t.Errorf("why shows %+v", why)
	}
	con.ok(t, look("pack", why.Stored[0].Pack)...)
	con.ok(t, look("index", "--check")...)
	con.ok(t, look("blobs", "--check")...)
	con.ok(t, look("manifest", head.id)...)
	con.fails(t, 4, "there is no point", look("tree", "ss-NOTTHERE")...)
	con.fails(t, 2, "64 hex digits", look("why", "abc")...)
	con.fails(t, 2, "--data-dir", "debug", "repo")
	con.fails(t, 4, "there is no folder", "debug", "repo", "--data-dir", filepath.Join(con.dir, "none"))
	con.fails(t, 4, "key file", look("manifest", "--key-file", filepath.Join(con.dir, "none.key"))...)

	// The database and the index are lost, and a blob is damaged.
	for _, name := range []string{"cairn.db", "cairn.db-wal", "cairn.db-shm", "index"} {
		if err := os.RemoveAll(filepath.Join(srv.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if o := con.ok(t, look("manifest")...); strings.Count(o.out, "ss-") < 3 {
		t.Errorf("without a database manifest shows\n%s", o.out)
	}
	var hurt string
	for _, blob := range repositoryBlobs(t, srv.Dir) {
		if strings.Contains(blob, why.Stored[0].Pack) {
			hurt = blob
			b, err := os.ReadFile(blob)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)-100] ^= 4
			replaceFile(t, blob, b)
		}
	}
	o = con.run(t, look("pack", why.Stored[0].Pack)...)
	if o.code != 3 || !strings.Contains(o.out, filepath.Base(hurt)) || !strings.Contains(o.err, "damage") {
		t.Errorf("a damaged pack: exit %d, stdout %q, stderr %q", o.code, o.out, o.err)
	}
	after := folderState(t, srv.Dir)
	for path, sum := range before {
		if have, ok := after[path]; ok && have != sum && !strings.Contains(path, why.Stored[0].Pack) {
			t.Errorf("%s was changed", path)
		}
		delete(after, path)
	}
	for path := range after {
		t.Errorf("%s was made", path)
	}
}
