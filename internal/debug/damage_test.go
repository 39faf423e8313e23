package debug

import (
	"bytes"
	"context"
	"encoding/hex"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/repo"
)

// Every blob in turn is flipped here and there, cut, or removed: the overview,
// the lists and the pack itself say so, and everything else is still shown.
func TestDamageIsNamedAndReadPast(t *testing.T) {
	r := newRig(t)
	rng := rand.New(rand.NewPCG(7, 7))
	whole := r.blobs()
	names := slices.Sorted(maps.Keys(whole))
	records := map[string]int{}
	for _, name := range names {
		if _, header, _ := repo.ParseBlob(name); !header {
			for _, c := range r.must(packOf(name)).Copies {
				records[c.Name] = len(c.Records)
			}
		}
	}
	cases := 0
	for _, name := range names {
		b := whole[name]
		for what, hurt := range map[string]func([]byte) []byte{
			"header": flip(60), "footer": flip(len(b) - 20), "magic": flip(len(b) - 1), "somewhere": flip(rng.IntN(len(b))),
			"cut": func(b []byte) []byte { return b[:len(b)-1] }, "empty": func([]byte) []byte { return nil }, "missing": nil,
		} {
			if hurt == nil {
				if err := r.store.Delete(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			} else {
				r.damage(name, hurt)
			}
			cases++
			r.checkDamaged(name, what, records)
			if hurt == nil {
				if err := r.store.Put(t.Context(), name, b); err != nil {
					t.Fatal(err)
				}
			} else {
				r.damage(name, func([]byte) []byte { return bytes.Clone(b) })
			}
		}
	}
	r.must(overview)
	t.Logf("%d damages of %d blobs", cases, len(names))
}

func (r *rig) checkDamaged(name, what string, records map[string]int) {
	t := r.t
	t.Helper()
	blobs, err := r.document(func(ctx context.Context, d *Inspector) error { return d.Blobs(ctx, "", true) })
	named := slices.ContainsFunc(blobs.Blobs, func(b blobDoc) bool { return b.Name == name && b.State != "ok" && b.State != "" })
	p, header, _ := repo.ParseBlob(name)
	lost := what == "missing" && (header || len(p.Copies()) == 1) // nothing tells that it ever was
	if named == lost || (err == nil) != lost {
		t.Errorf("%s %s: blobs: named=%t, %v", name, what, named, err)
	}
	others := 0
	for _, b := range blobs.Blobs {
		if b.State == "ok" {
			others++
		}
	}
	if others != 2+len(records)-1 {
		t.Errorf("%s %s: %d blobs are ok", name, what, others)
	}
	if _, err := r.document(overview); errs.Is(err, errs.Corrupt) != (header && what != "missing" || what == "missing" && !lost) {
		t.Errorf("%s %s: overview: %v", name, what, err)
	}
	if header {
		return
	}
	a, err := r.document(packOf(name))
	if !errs.Is(err, errs.Corrupt) {
		t.Errorf("%s %s: pack: %v", name, what, err)
	}
	for _, c := range a.Copies {
		switch {
		case c.Name != name && c.Header != "ok":
			t.Errorf("%s %s: the other copy's header is called %q", name, what, c.Header)
		case c.Name == name && (what == "header" || what == "footer" || what == "magic" || what == "cut") && len(c.Records) != records[name]:
			t.Errorf("%s %s: %d of %d records are found", name, what, len(c.Records), records[name])
		}
	}
	m, err := r.document(manifests(""))
	if len(m.Manifests) != 9 || errs.Is(err, errs.Corrupt) != (p.Kind == repo.PointKind) {
		t.Errorf("%s %s: %d manifests, %v", name, what, len(m.Manifests), err)
	}
	for _, doc := range m.Manifests {
		if doc.Error != "" {
			t.Errorf("%s %s: %s cannot be read: %s", name, what, doc.Snapshot, doc.Error)
		}
	}
}

// With both copies of a node pack damaged, what hangs on it is named and the
// rest of the tree is shown; why says that it cannot be sure.
func TestDamagedNodes(t *testing.T) {
	r := newRig(t)
	const wide = "ss-GOLD0009"
	before := r.must(treeOf(wide, TreeOptions{Depth: -1})).Tree
	chunk := before[len(before)-1].ID
	var node refDoc // the only one of its hash: an equal one elsewhere would do for it
	for _, row := range before {
		if row.Level == 1 {
			node = row
		}
	}
	lost := int(node.Length / repo.ChunkSize)
	for _, copyName := range []string{node.Place.Blob + ".a", node.Place.Blob + ".b"} {
		r.damage(copyName, flip(int(node.Place.Offset)+100))
		a, err := r.document(treeOf(wide, TreeOptions{Depth: -1}))
		if !errs.Is(err, errs.Corrupt) {
			t.Errorf("%v", err)
		}
		shown := 0
		for _, row := range a.Tree {
			if row.Kind == "chunk" {
				shown++
			}
			if bad := row.Level == 1 && row.Offset == node.Offset; bad != (row.State != "ok" && row.State != "") || bad && !strings.Contains(row.State, copyName) {
				t.Errorf("%s damaged: %+v", copyName, row)
			}
		}
		if want := map[string]int{".a": 3200, ".b": 3200 - lost}[copyName[len(copyName)-2:]]; shown != want {
			t.Errorf("%d chunks are shown, want %d", shown, want)
		}
	}
	a, err := r.document(whyOf(chunk))
	if len(a.References) != 3200-lost || !errs.Is(err, errs.Corrupt) {
		t.Errorf("%d references, %v", len(a.References), err)
	}
	if len(a.UnreadableParts) != 1 || a.UnreadableParts[0].Offset != node.Offset || a.UnreadableParts[0].Length != node.Length || a.UnreadableParts[0].Snapshot != wide {
		t.Errorf("%+v", a.UnreadableParts)
	}
}

// A manifest whose copies are both damaged is read as long as one header and
// one record of it are whole.
func TestManifestFromTwoHalves(t *testing.T) {
	r := newRig(t)
	name := ""
	for n := range r.blobs() {
		if strings.HasPrefix(n, "point/ss-GOLD0001.") {
			name = strings.TrimSuffix(strings.TrimSuffix(n, ".a"), ".b")
		}
	}
	r.damage(name+".a", flip(5))
	r.damage(name+".b", func(b []byte) []byte { return flip(len(b) - 200)(flip(len(b) - 5)(b)) })
	a, err := r.document(manifests("ss-GOLD0001"))
	if !errs.Is(err, errs.Corrupt) || len(a.Manifests) != 1 || a.Manifests[0].Error != "" || a.Manifests[0].Name != "first, with ümläuts" {
		t.Errorf("%+v, %v", a.Manifests, err)
	}
	r.damage(name+".b", flip(5))
	a, err = r.document(manifests("ss-GOLD0001"))
	if !errs.Is(err, errs.Corrupt) || len(a.Manifests) != 1 || a.Manifests[0].Error == "" {
		t.Errorf("without any header: %+v, %v", a.Manifests, err)
	}
	if _, err := r.ask(false, treeOf("ss-GOLD0001", TreeOptions{})); !errs.Is(err, errs.Corrupt) {
		t.Errorf("tree: %v", err)
	}
}

// Without the key what is plain is shown, and the rest says why not.
func TestWithoutKey(t *testing.T) {
	r := newRig(t)
	key := r.key
	r.key.Key[0] ^= 1
	a := r.must(overview)
	if a.Opens || len(a.Packs) != 3 || len(a.Headers) != 2 || a.Headers[0].State != "ok" {
		t.Errorf("%+v", a)
	}
	b := r.must(func(ctx context.Context, d *Inspector) error { return d.Blobs(ctx, "data/", false) })
	if len(b.Blobs) == 0 {
		t.Error("no blobs")
	}
	for name, do := range map[string]func(context.Context, *Inspector) error{
		"manifest": manifests(""), "tree": treeOf("ss-GOLD0001", TreeOptions{}), "pack": packOf("0"), "why": whyOf(strings.Repeat("1", 64)),
		"index": func(ctx context.Context, d *Inspector) error { return d.Index(ctx, "", false) },
		"blobs": func(ctx context.Context, d *Inspector) error { return d.Blobs(ctx, "", true) },
	} {
		if _, err := r.document(do); !errs.Is(err, errs.Denied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.key = key
	for _, suffix := range []string{".a", ".b"} {
		r.damage("header/0000000000000001"+suffix, flip(20))
	}
	if a, err := r.document(overview); a.Opens || !errs.Is(err, errs.Corrupt) || len(a.Packs) != 3 {
		t.Errorf("both headers damaged: %+v, %v", a, err)
	}
}

// Nothing that is shown holds a key or what volumes hold.
func TestNoSecrets(t *testing.T) {
	r := newRig(t)
	ask := []func(context.Context, *Inspector) error{
		overview, manifests(""), manifests("ss-GOLD0001"), treeOf("ss-GOLD0001", TreeOptions{Depth: -1, Check: true}),
		func(ctx context.Context, d *Inspector) error { return d.Blobs(ctx, "", true) },
		func(ctx context.Context, d *Inspector) error { return d.Index(ctx, "", true) },
	}
	for name := range r.blobs() {
		if !strings.HasPrefix(name, "header/") {
			ask = append(ask, packOf(name))
		}
	}
	for _, do := range ask {
		for _, asJSON := range []bool{false, true} {
			out, err := r.ask(asJSON, do)
			if err != nil {
				t.Error(err)
			}
			for _, secret := range []string{hex.EncodeToString(r.key.Key[:]), string(r.key.Key[:]), "CAIRN-KEY", "volume snapshot", "chunk frame"} {
				if strings.Contains(out, secret) {
					t.Errorf("an answer holds %q", secret)
				}
			}
		}
	}
}

// Names that steer a terminal come out harmless, and a list without rows says
// so.
func TestSheet(t *testing.T) {
	var out bytes.Buffer
	s := newSheet(&out, false)
	s.field("name", "\x1b[31mred\n", "")
	s.list("none", column{"a", 3})
	s.list("some", column{"a", 3}, column{"number", -6})
	s.row(nil, "\x07bell", "12")
	s.note("the\nend")
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	want := "name            \uFFFD[31mred\uFFFD\n\nno none\n\nA    NUMBER\n\uFFFDbell      12\n\nthe\nend\n"
	if out.String() != want {
		t.Errorf("got\n%q\nwant\n%q", out.String(), want)
	}
}
