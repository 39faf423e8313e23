package debug

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/faulty"
	"cairn/internal/blobstore/mem"
	"cairn/internal/errs"
	"cairn/internal/foldertest"
	"cairn/internal/repo"
	"cairn/internal/repo/index"
)

// goldenDir is the repository that these tests look into.
const goldenDir = "../../test/compat/testdata/v1"

// rig is a golden repository in memory.
type rig struct {
	t     *testing.T
	store *mem.Store
	seen  *faulty.Store // counts what reaches the store
	key   repo.Key
	text  string // of the key file
	index string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, store: mem.New(), index: foldertest.InMemory(t)}
	root := os.DirFS(goldenDir + "/repo")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		return r.store.Put(t.Context(), name, b)
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(goldenDir + "/repo.key")
	if err != nil {
		t.Fatal(err)
	}
	r.text = strings.TrimSpace(string(b))
	key, err := repo.ParseKey(r.text)
	if err != nil {
		t.Fatal(err)
	}
	r.key = key.(repo.Key)
	return r
}

// ask runs one command on the repository as it is now.
func (r *rig) ask(asJSON bool, do func(ctx context.Context, d *Inspector) error) (string, error) {
	r.t.Helper()
	r.seen = faulty.New(r.store, nil)
	rp, repoErr := repo.OpenReadOnly(r.t.Context(), r.seen, r.key, r.index)
	if rp != nil {
		defer rp.Close()
	}
	var out bytes.Buffer
	err := do(r.t.Context(), New(Config{Store: r.seen, Repo: rp, RepoErr: repoErr, Out: &out, JSON: asJSON, Facts: []Fact{{"folder", "x"}}}))
	if n := r.seen.Counts().Durable; n > 0 {
		r.t.Errorf("%d calls would have changed the repository", n)
	}
	return out.String(), err
}

// answer is what the documents of all commands hold.
type answer struct {
	ID              string        `json:"id"`
	Opens           bool          `json:"opens"`
	Headers         []headerDoc   `json:"headers"`
	Packs           []totalDoc    `json:"packs"`
	Blobs           []blobDoc     `json:"blobs"`
	Manifests       []manifestDoc `json:"manifests"`
	Tree            []refDoc      `json:"tree"`
	Copies          []packCopyDoc `json:"copies"`
	References      []whyRefDoc   `json:"references"`
	Stored          []whyPlaceDoc `json:"stored"`
	UnreadableParts []unreadDoc   `json:"unreadable_parts"`
	Index           []runDoc      `json:"index"`
	Intact          int64         `json:"intact_entries"`
	Stale           int64         `json:"stale_entries"`
	Places          []struct {
		Blob  string `json:"blob"`
		State string `json:"state"`
	} `json:"places"`
}

// document runs a command with JSON and without; both must end alike.
func (r *rig) document(do func(ctx context.Context, d *Inspector) error) (answer, error) {
	r.t.Helper()
	text, textErr := r.ask(false, do)
	out, err := r.ask(true, do)
	if fmt.Sprint(err) != fmt.Sprint(textErr) {
		r.t.Errorf("as text: %v; as JSON: %v", textErr, err)
	}
	if text == "" && (err == nil || errs.Is(err, errs.Corrupt)) {
		r.t.Error("no text")
	}
	var a answer
	d := json.NewDecoder(strings.NewReader(out))
	if out != "" {
		if jsonErr := d.Decode(&a); jsonErr != nil || d.More() {
			r.t.Fatalf("not one JSON document (%v):\n%.2000s", jsonErr, out)
		}
	}
	return a, err
}

func (r *rig) must(do func(ctx context.Context, d *Inspector) error) answer {
	r.t.Helper()
	a, err := r.document(do)
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

func overview(ctx context.Context, d *Inspector) error { return d.Overview(ctx) }

func manifests(which string) func(context.Context, *Inspector) error {
	return func(ctx context.Context, d *Inspector) error { return d.Manifests(ctx, which) }
}

func packOf(id string) func(context.Context, *Inspector) error {
	return func(ctx context.Context, d *Inspector) error { return d.Pack(ctx, id) }
}

func treeOf(snapshot string, o TreeOptions) func(context.Context, *Inspector) error {
	return func(ctx context.Context, d *Inspector) error { return d.Tree(ctx, snapshot, o) }
}

func whyOf(id string) func(context.Context, *Inspector) error {
	return func(ctx context.Context, d *Inspector) error { return d.Why(ctx, id) }
}

func (r *rig) blobs() map[string][]byte {
	r.t.Helper()
	out := map[string][]byte{}
	err := r.store.List(r.t.Context(), "", func(i blobstore.Info) error {
		b := make([]byte, i.Size)
		_, err := r.store.ReadAt(r.t.Context(), i.Name, b, 0)
		out[i.Name] = b
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *rig) damage(name string, change func([]byte) []byte) {
	r.t.Helper()
	if err := r.store.Damage(name, change); err != nil {
		r.t.Fatal(err)
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		b[at] ^= 0x20
		return b
	}
}

func TestWholeRepository(t *testing.T) {
	r := newRig(t)
	a := r.must(overview)
	if !a.Opens || len(a.Headers) != 2 || len(a.Packs) != 3 {
		t.Errorf("overview: %+v", a)
	}
	total := 2
	for _, p := range a.Packs {
		total += p.Blobs
	}
	blobs := r.blobs()
	if total != len(blobs) {
		t.Errorf("the overview counts %d blobs, there are %d", total, len(blobs))
	}
	b := r.must(func(ctx context.Context, d *Inspector) error { return d.Blobs(ctx, "", true) })
	for _, row := range b.Blobs {
		if int(row.Bytes) != len(blobs[row.Name]) || row.State != "ok" {
			t.Errorf("%+v", row)
		}
	}
	for name := range blobs {
		if p, header, _ := repo.ParseBlob(name); !header {
			c := r.must(packOf(name))
			for _, by := range []string{p.ID.String(), p.ID.String()[:8], p.Blob()} {
				if d := r.must(packOf(by)); fmt.Sprint(c) != fmt.Sprint(d) {
					t.Errorf("pack %s differs from pack %s", by, name)
				}
			}
			if len(c.Copies) != len(p.Copies()) || len(c.Copies[0].Records) == 0 {
				t.Errorf("%s: %+v", name, c.Copies)
			}
		}
	}
	m := r.must(manifests(""))
	if len(m.Manifests) != 9 {
		t.Fatalf("%d manifests", len(m.Manifests))
	}
	for _, doc := range m.Manifests {
		one := r.must(manifests(doc.Snapshot))
		if len(one.Manifests) != 1 || fmt.Sprintf("%+v", one.Manifests[0].Root) == "" || one.Manifests[0].Name != doc.Name || len(one.Manifests[0].Copies) != 2 {
			t.Errorf("%+v", one.Manifests)
		}
	}
}

// slots lists every chunk that a point's tree names, read without this package.
func (r *rig) slots(rp *repo.Repo, snapshot string) map[int64]repo.Ref {
	r.t.Helper()
	out := map[int64]repo.Ref{}
	err := r.store.List(r.t.Context(), "point/"+snapshot+".", func(b blobstore.Info) error {
		p, _, _ := repo.ParseBlob(b.Name)
		m, err := rp.ReadManifest(r.t.Context(), p, repo.ID{})
		if err != nil {
			return err
		}
		for leaf := int64(0); leaf*repo.Fanout < repo.Chunks(m.SizeBytes); leaf++ {
			n, err := rp.Leaf(r.t.Context(), m.Root, leaf)
			if err != nil {
				return err
			}
			for i := 0; n != nil && i < repo.Fanout; i++ {
				if !n.Slots[i].IsZero() {
					out[(leaf*repo.Fanout+int64(i))*repo.ChunkSize] = n.Slots[i]
				}
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// Trees and references are compared with what reading leaf by leaf gives.
func TestTreeAndWhyAgreeWithTheLeaves(t *testing.T) {
	r := newRig(t)
	rp, err := repo.OpenReadOnly(t.Context(), r.store, r.key, r.index)
	if err != nil {
		t.Fatal(err)
	}
	defer rp.Close()
	type ref struct {
		snapshot string
		off      int64
	}
	holders := map[string][]ref{}
	for _, m := range r.must(manifests("")).Manifests {
		want := r.slots(rp, m.Snapshot)
		got := map[int64]bool{}
		for _, row := range r.must(treeOf(m.Snapshot, TreeOptions{Depth: -1, Check: true})).Tree {
			if row.State != "ok" {
				t.Errorf("%s: %+v", m.Snapshot, row)
			}
			if row.Kind != "chunk" {
				continue
			}
			got[row.Offset] = true
			if want[row.Offset].ID.String() != row.ID {
				t.Errorf("%s at %d: %s", m.Snapshot, row.Offset, row.ID)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d chunks shown, want %d", m.Snapshot, len(got), len(want))
		}
		for off, slot := range want {
			holders[slot.ID.String()] = append(holders[slot.ID.String()], ref{m.Snapshot, off})
		}
	}
	for id, want := range holders {
		a := r.must(whyOf(id))
		if len(a.References) != len(want) || len(a.Stored) == 0 || len(a.UnreadableParts) != 0 {
			t.Errorf("%s: %d references, want %d; stored %+v", id, len(a.References), len(want), a.Stored)
		}
		for _, g := range a.References {
			if !slices.Contains(want, ref{g.Snapshot, g.Offset}) {
				t.Errorf("%s: %+v", id, g)
			}
		}
	}
	t.Logf("%d chunks", len(holders))
}

func TestTreeShowsWhatWasAskedFor(t *testing.T) {
	r := newRig(t)
	const wide = "ss-GOLD0009" // 200 MiB, 3200 chunks, three levels
	for _, c := range []struct {
		o           TreeOptions
		nodes, rest int
	}{
		{TreeOptions{Depth: 0}, 1, 0},
		{TreeOptions{Depth: 1}, 1 + 4, 0},
		{TreeOptions{Depth: 2}, 1 + 4 + 100, 0},
		{TreeOptions{Depth: -1}, 1 + 4 + 100, 3200},
		{TreeOptions{Depth: -1, From: 70<<20 + 5, To: 70<<20 + 6}, 3, 1},
		{TreeOptions{Depth: -1, From: 65535, To: 65537}, 3, 2},
		{TreeOptions{Depth: -1, From: 199 << 20, To: 1 << 50}, 3, 16},
	} {
		a := r.must(treeOf(wide, c.o))
		nodes := 0
		for _, row := range a.Tree {
			if row.Kind == "node" {
				nodes++
			}
		}
		if nodes != c.nodes || len(a.Tree)-nodes != c.rest {
			t.Errorf("%+v: %d nodes and %d chunks, want %d and %d", c.o, nodes, len(a.Tree)-nodes, c.nodes, c.rest)
		}
	}
	for _, o := range []TreeOptions{{From: -1}, {From: 5, To: 5}, {From: 1 << 40}} {
		if _, err := r.document(treeOf(wide, o)); !errs.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, do := range []func(context.Context, *Inspector) error{treeOf("ss-NONE0000", TreeOptions{}), treeOf("", TreeOptions{}), manifests("ss-NONE0000"), packOf("zz"), packOf("")} {
		if _, err := r.document(do); !errs.Is(err, errs.NotFound) {
			t.Errorf("got %v", err)
		}
	}
	for _, id := range []string{"xyz", strings.Repeat("0", 64)} {
		if _, err := r.document(whyOf(id)); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestIndex(t *testing.T) {
	r := newRig(t)
	var data repo.Pack
	for name := range r.blobs() {
		if p, header, _ := repo.ParseBlob(name); !header && strings.HasPrefix(name, "data/") {
			data = p
		}
	}
	record := r.must(packOf(data.ID.String())).Copies[0].Records[0]
	id, err := parseID(record.IDs[0])
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(r.index)
	if err != nil {
		t.Fatal(err)
	}
	there := index.Entry{ID: id, Pack: data.ID, Offset: record.Offset, Length: record.Length}
	gone, wrong := there, there
	gone.Pack[0] ^= 1
	wrong.Offset++
	if err := errors.Join(x.Add(t.Context(), []index.Entry{there, gone, wrong}), x.Close()); err != nil {
		t.Fatal(err)
	}
	a := r.must(func(ctx context.Context, d *Inspector) error { return d.Index(ctx, "", true) })
	if a.Intact != 3 || a.Stale != 1 || len(a.Index) != 1 || a.Index[0].Entries != 3 {
		t.Errorf("%+v", a)
	}
	a, err = r.document(func(ctx context.Context, d *Inspector) error { return d.Index(ctx, id.String(), false) })
	whole := 0
	for _, p := range a.Places {
		if p.State == "ok" && p.Blob == data.Blob() {
			whole++
		}
	}
	if len(a.Places) != 3 || whole != 1 || !errs.Is(err, errs.Corrupt) {
		t.Errorf("%+v, %v", a.Places, err)
	}
}
