// Package compat proves that what earlier versions wrote is still read.
//
// testdata/vN is a repository that a program of format version N wrote, with
// its key file and what its points must read as. It is written once, with
// -update, and never again: a later program that cannot read it is wrong.
package compat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"cairn/internal/blobstore/file"
	"cairn/internal/engine"
	"cairn/internal/repo"
)

var update = flag.Bool("update", false, "write testdata/v1 anew with this program")

// current is the folder of the version that this program writes.
const current = "testdata/v1"

// golden is what stands in expected.json beside the repository.
type golden struct {
	RepositoryID string              `json:"repository_id"`
	Points       []goldenPoint       `json:"points"`
	Packs        []engine.PackRecord `json:"packs"`
}

type goldenPoint struct {
	Snapshot string `json:"snapshot_id"`
	Pack     string `json:"pack"`
	Hash     string `json:"hash"` // of the point pack's content
	Parent   string `json:"parent_id"`
	Resource string `json:"resource_id"`
	Name     string `json:"snapshot_name"`
	Size     int64  `json:"size_bytes"`
	SHA256   string `json:"sha256"` // of the volume's bytes
}

func (p goldenPoint) ref() engine.PointRef {
	return engine.PointRef{Snapshot: p.Snapshot, Pack: p.Pack, Hash: p.Hash}
}

// opened is a golden repository on a copy of its folder.
type opened struct {
	golden
	dir  string
	repo *repo.Repo
	e    *engine.Engine
}

func open(t *testing.T, folder string) opened {
	t.Helper()
	g := opened{dir: t.TempDir()}
	if err := os.CopyFS(g.dir, os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(g.dir, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &g.golden); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(g.dir, "repo.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := repo.ParseKey(string(text))
	if err != nil {
		t.Fatal(err)
	}
	store, err := file.Open(filepath.Join(g.dir, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	g.repo, err = repo.Open(t.Context(), store, key, filepath.Join(g.dir, "index"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.repo.Close()
		store.Close()
	})
	g.e = engine.New(g.repo, engine.Config{})
	return g
}

// blobFiles maps every file below a folder to its content.
func blobFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		out[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestGolden opens the repository of every version: all points read as they
// were recorded, by stream and by restore, scrub is clean, and nothing in the
// repository was changed by it.
func TestGolden(t *testing.T) {
	if *update {
		write(t)
	}
	folders, err := filepath.Glob("testdata/v*")
	if err != nil || !slices.Contains(folders, current) {
		t.Fatalf("found only %v (%v); go test ./test/compat -update writes %s", folders, err, current)
	}
	for _, folder := range folders {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			g := open(t, folder)
			if g.repo.RepoID() != g.RepositoryID {
				t.Errorf("repository %s, want %s", g.repo.RepoID(), g.RepositoryID)
			}
			refs := make([]engine.PointRef, len(g.Points))
			for i, p := range g.Points {
				refs[i] = p.ref()
				g.checkPoint(t, p)
			}
			report, err := g.e.Scrub(t.Context(), refs, g.Packs, nil)
			if err != nil || len(report.Damage) > 0 {
				t.Errorf("scrub: %+v, %v", report.Damage, err)
			}
			before, after := blobFiles(t, filepath.Join(folder, "repo")), blobFiles(t, filepath.Join(g.dir, "repo"))
			for name, b := range before {
				if after[name] != b {
					t.Errorf("blob %s was changed by reading", name)
				}
			}
			t.Logf("%d points, %d blobs, %d chunks, %d nodes, %d bytes", report.Points, report.Blobs, report.Chunks, report.Nodes, report.BytesRead)
			g.checkFeatures(t)
		})
	}
}

// checkPoint reads one point by every path.
func (g *opened) checkPoint(t *testing.T, p goldenPoint) {
	t.Helper()
	image, err := g.e.OpenImage(t.Context(), p.ref())
	if err != nil {
		t.Errorf("%s: %v", p.Snapshot, err)
		return
	}
	defer image.Close()
	sum := sha256.New()
	if err := image.WriteTo(t.Context(), sum, engine.FormatRaw); err != nil {
		t.Errorf("%s: %v", p.Snapshot, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != p.SHA256 || image.SizeBytes() != p.Size {
		t.Errorf("%s (%s): %d bytes with SHA-256 %s, want %d with %s", p.Snapshot, p.Name, image.SizeBytes(), got, p.Size, p.SHA256)
	}
	target := newSparse(p.Size)
	if err := target.WriteAt(t.Context(), bytes.Repeat([]byte{0xee}, int(min(p.Size, 3<<20))), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := g.e.Restore(t.Context(), p.ref(), target, nil); err != nil {
		t.Errorf("restore %s: %v", p.Snapshot, err)
	}
	if got := hashOf(t, target); got != p.SHA256 {
		t.Errorf("restore %s (%s): SHA-256 %s, want %s", p.Snapshot, p.Name, got, p.SHA256)
	}
}

// hashOf is the SHA-256 of a volume's bytes.
func hashOf(t *testing.T, v *sparse) string {
	t.Helper()
	sum := sha256.New()
	_, err := io.Copy(sum, io.NewSectionReader(readerAt{t.Context(), v}, 0, v.size))
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

type readerAt struct {
	ctx context.Context
	v   *sparse
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return len(p), r.v.ReadAt(r.ctx, p, off) }

// checkFeatures makes sure that the repository holds one of everything, so
// that a rewritten one cannot prove less.
func (g *opened) checkFeatures(t *testing.T) {
	t.Helper()
	have := map[string]int{}
	seen := map[repo.Pack]bool{}
	err := g.repo.Blobs(t.Context(), func(b repo.Blob) error {
		p, header, ok := repo.ParseBlob(b.Name)
		switch {
		case header:
			have["header"]++
			return nil
		case !ok || seen[p]:
			return nil
		}
		seen[p] = true
		copies, err := g.repo.InspectPack(t.Context(), p)
		if err != nil {
			return err
		}
		for _, r := range copies[0].Records {
			have[p.Kind.String()+" pack, "+r.Kind.String()+", "+r.Encoding.String()]++
			if n := len(r.IDs); n > 1 {
				have["frame of several chunks"]++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	owner := map[repo.PackID]string{}
	for _, p := range g.Points {
		g.pointFeatures(t, p, owner, have)
	}
	for _, want := range []string{
		"header", "data pack, frame, zstd", "data pack, frame, stored", "point pack, frame, zstd", "point pack, frame, stored",
		"node pack, node, stored", "point pack, node, stored", "point pack, manifest, stored", "frame of several chunks",
		"full", "increment", "zero tree", "tree of 3 levels", "node of another point", "chunk of another volume", "size that is no multiple of 64 KiB",
	} {
		if have[want] == 0 {
			t.Errorf("the repository holds no %s; it has %v", want, have)
		}
	}
	t.Logf("it holds %v", have)
}

// pointFeatures counts what a point's tree has. owner is the volume whose points
// named a pack first.
func (g *opened) pointFeatures(t *testing.T, p goldenPoint, owner map[repo.PackID]string, have map[string]int) {
	t.Helper()
	q, ok := repo.ParsePack("point/" + p.Snapshot + "." + p.Pack)
	if !ok {
		t.Fatalf("%s is no pack", p.Pack)
	}
	m, err := g.repo.ReadManifest(t.Context(), q, repo.ID{})
	if err != nil {
		t.Fatal(err)
	}
	if m.Name != p.Name || m.Resource != p.Resource || m.Parent != p.Parent || m.SizeBytes != p.Size || m.Full != (p.Parent == "") {
		t.Errorf("%s: the manifest says %+v", p.Snapshot, m)
	}
	if m.Full {
		have["full"]++
	} else {
		have["increment"]++
	}
	if m.SizeBytes%repo.ChunkSize != 0 {
		have["size that is no multiple of 64 KiB"]++
	}
	if m.Root.Ref.IsZero() {
		have["zero tree"]++
		return
	}
	if m.Root.Level >= 2 {
		have["tree of 3 levels"]++
	}
	foreign := func(l repo.Loc) bool { return l.Pack.Kind == repo.PointKind && l.Pack.Snapshot != p.Snapshot }
	err = g.repo.Walk(t.Context(), m.Root, 0, repo.Chunks(m.SizeBytes),
		func(ref repo.Ref, _ uint8, _ int64) (bool, error) {
			if foreign(ref.Loc) {
				have["node of another point"]++
			}
			return true, nil
		},
		func(_ int64, n *repo.Node) error {
			for _, slot := range n.Slots {
				if slot.IsZero() {
					continue
				}
				id := slot.Loc.Pack.ID
				if owner[id] == "" {
					owner[id] = m.Resource
				}
				if owner[id] != m.Resource {
					have["chunk of another volume"]++
				}
			}
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
}

// writer makes a golden repository.
type writer struct {
	t *testing.T
	g golden
	e *engine.Engine
	n int
}

// write replaces the folder of the present version.
func write(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	store, err := file.Open(filepath.Join(dir, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	key := repo.NewKey()
	created := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	if err := repo.Init(t.Context(), store, key, created); err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(t.Context(), store, key, filepath.Join(t.TempDir(), "index"))
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{t: t, e: engine.New(r, engine.Config{Workers: 1})}
	w.g.RepositoryID = r.RepoID()
	w.history(created)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := json.MarshalIndent(w.g, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"repo.key": []byte(key.Text()), "expected.json": append(b, '\n')} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, "repo", ".tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(current); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(current, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
}

// history takes the points: two chains with large and small increments, a
// sparse volume that shares chunks with another, and nothing but zeros.
func (w *writer) history(at time.Time) {
	t := w.t
	put := func(v *sparse, off int64, b []byte) {
		t.Helper()
		if err := v.WriteAt(t.Context(), b, off); err != nil {
			t.Fatal(err)
		}
	}
	one := newSparse(5<<20 + 512)
	put(one, 0, text(1, 300<<10))
	put(one, 1<<20, noise(1, 192<<10))
	put(one, 3<<20, text(2, 100<<10))
	two := newSparse(130 << 20)
	put(two, 1<<20, noise(1, 128<<10)) // which one has too
	put(two, 129<<20+77, text(3, 5000))
	zeros := newSparse(1 << 20)
	tiny := newSparse(70_001)
	put(tiny, 0, noise(4, 64<<10))
	// As many nodes as fill a pack of their own, over one chunk.
	wide := newSparse(200 << 20)
	chunk := text(7, repo.ChunkSize)
	for off := int64(0); off < wide.size; off += repo.ChunkSize {
		put(wide, off, chunk)
	}

	full := w.take(at, "", point{"vol-GOLD0001", "first, with ümläuts", one})
	put(one, 2<<20, text(4, 3000))
	small := w.take(at, full[0], point{"vol-GOLD0001", "a few pages", one})
	put(one, 4<<20, noise(5, 128<<10))
	put(one, 0, make([]byte, 200<<10))
	large := w.take(at, small[0], point{"vol-GOLD0001", "noise, and zeros over text", one})
	w.take(at, large[0], point{"vol-GOLD0001", "nothing changed", one})
	w.take(at, "", point{"vol-GOLD0002", "sparse", two}, point{"vol-GOLD0003", "zeros", zeros}, point{"vol-GOLD0004", "tiny", tiny})
	put(two, 65<<20, text(6, 70<<10))
	w.take(at, w.g.Points[len(w.g.Points)-3].Snapshot, point{"vol-GOLD0002", "sparse, more", two})
	w.take(at, "", point{"vol-GOLD0005", "wide", wide})
}

// point is one volume of a create call.
type point struct {
	resource, name string
	v              *sparse
}

// take captures points in one session, all on parent ("": fulls).
func (w *writer) take(at time.Time, parent string, points ...point) []string {
	t := w.t
	t.Helper()
	reg := &registry{packs: map[string]engine.PackRecord{}}
	job := "job-" + points[0].name
	s, err := w.e.OpenSession(t.Context(), job, 1, reg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var ids []string
	for _, p := range points {
		w.n++
		meta := engine.PointMeta{
			Snapshot: "ss-GOLD000" + string(rune('0'+w.n)), Resource: p.resource, ResourceType: "volume", ResourceName: "name of " + p.resource,
			Zone: "ac1", Group: job, Job: job, Name: p.name, Description: "made for the golden repository", Full: parent == "", Parent: parent,
			Root: "ss-GOLD0001", CreateTime: at, SnapshotTime: at.Add(time.Duration(w.n) * time.Hour), Consistency: "crash", CBT: "scan",
			Reason: "golden", SizeBytes: p.v.size,
		}
		spec := engine.CaptureSpec{Meta: meta, Source: p.v}
		for _, q := range w.g.Points {
			if q.Snapshot == parent {
				ref := q.ref()
				spec.Parent = &ref
			}
		}
		c, err := s.Capture(t.Context(), spec, nil)
		if err != nil {
			t.Fatal(err)
		}
		w.g.Points = append(w.g.Points, goldenPoint{
			Snapshot: meta.Snapshot, Pack: c.Ref.Pack, Hash: c.Ref.Hash, Parent: parent, Resource: p.resource, Name: p.name,
			Size: p.v.size, SHA256: hashOf(t, p.v),
		})
		ids = append(ids, meta.Snapshot)
	}
	for _, r := range reg.packs {
		w.g.Packs = append(w.g.Packs, r)
	}
	if err := s.Committed(t.Context()); err != nil {
		t.Fatal(err)
	}
	return ids
}
