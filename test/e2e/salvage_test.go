package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/test/e2e/harness"
)

// badRange is one of a salvage's or a scrub's.
type badRange struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Cause  string `json:"cause"`
}

// treeRow is one line of cairn debug tree.
type treeRow struct {
	Kind           string
	Level          int
	Offset, Length int64
	Place          struct {
		Blob           string
		Offset, Length int64
	}
}

// salvageTour is the state of one walk.
type salvageTour struct {
	srv  *harness.Server
	con  console
	p    *modelPoint
	tree []treeRow
}

// TestSalvage damages each kind of blob below a point: what can be had of it
// comes out right, and exactly the rest is told.
func TestSalvage(t *testing.T) {
	srv := serve(t)
	w := &world{srv: srv, dir: t.TempDir()}
	img := harness.NewImage(5*mib + 700)
	img.Apply(harness.Edit{Kind: harness.WriteNoise, Off: 200_000, Len: 900_000, Seed: 5})
	img.Apply(harness.Edit{Kind: harness.WriteText, Off: 4 * mib, Len: mib + 700, Seed: 6})
	v := w.register(t, img)
	w.create(t, true, v)
	v.edit(t, harness.Edit{Kind: harness.WriteText, Off: 3 * mib, Len: 100_000, Seed: 7})
	w.create(t, false, v)
	c := &salvageTour{srv: srv, con: console{srv.Bin, t.TempDir(), srv.BaseURL()}, p: w.point(v.head)}
	var doc struct{ Tree []treeRow }
	c.con.json(t, &doc, "debug", "tree", c.p.id, "--data-dir", srv.Dir)
	c.tree = doc.Tree

	c.con.ok(t, "snapshot", "export", c.p.id, "--salvage", "--to", "whole.raw")
	c.p.content.WantFile(t, filepath.Join(c.con.dir, "whole.raw"))
	row := func(what string, ok func(r treeRow) bool) treeRow {
		i := slices.IndexFunc(c.tree, ok)
		if i < 0 {
			t.Fatalf("the tree has no %s: %+v", what, c.tree)
		}
		return c.tree[i]
	}
	inData := row("chunk in a data pack", func(r treeRow) bool { return r.Kind == "chunk" && strings.HasPrefix(r.Place.Blob, "data/") })
	inPoint := row("chunk in a point pack", func(r treeRow) bool { return r.Kind == "chunk" && strings.HasPrefix(r.Place.Blob, "point/") })
	leaf := row("leaf", func(r treeRow) bool { return r.Kind == "node" && r.Level == 0 && r.Offset > 0 })
	root := row("root", func(r treeRow) bool { return r.Kind == "node" && r.Level > 0 })
	sameFrame := func(of treeRow) func(treeRow) bool {
		return func(r treeRow) bool { return r.Kind == "chunk" && r.Place == of.Place }
	}
	same := func(of treeRow) func(treeRow) bool { return func(r treeRow) bool { return r == of } }
	nothing := func(treeRow) bool { return false }
	middle := func(r treeRow) int64 { return r.Place.Offset + r.Place.Length - 20 }
	for name, d := range map[string]struct {
		blobs []string // ".a": of the point pack, see damage
		at    int64
		lost  func(treeRow) bool
	}{
		"a frame of a data pack":          {[]string{inData.Place.Blob}, middle(inData), sameFrame(inData)},
		"the header of a data pack":       {[]string{inData.Place.Blob}, 80, func(r treeRow) bool { return r.Kind == "chunk" && r.Place.Blob == inData.Place.Blob }},
		"a frame of a point pack, twice":  {[]string{inPoint.Place.Blob + ".a", inPoint.Place.Blob + ".b"}, middle(inPoint), sameFrame(inPoint)},
		"a frame of a point pack, once":   {[]string{inPoint.Place.Blob + ".b"}, middle(inPoint), nothing},
		"a leaf, twice":                   {[]string{leaf.Place.Blob + ".a", leaf.Place.Blob + ".b"}, middle(leaf), same(leaf)},
		"a leaf, once":                    {[]string{leaf.Place.Blob + ".a"}, middle(leaf), nothing},
		"the root, twice":                 {[]string{root.Place.Blob + ".a", root.Place.Blob + ".b"}, middle(root), same(root)},
		"the manifest's pack, once":       {[]string{root.Place.Blob + ".a"}, 30, nothing},
		"the manifest's directory, twice": {[]string{root.Place.Blob + ".a", root.Place.Blob + ".b"}, -100, nothing},
	} {
		t.Run(name, func(t *testing.T) { c.damage(t, d.blobs, d.at, d.lost) })
	}
	t.Run("nothing is left", c.nothingLeft)
	srv.API().ScrubClean(t)
	w.checkContent(t)
}

// flip changes a byte of blobs, with the server down, and returns what puts
// them right again. at counts from the end if it is negative.
func (c *salvageTour) flip(t *testing.T, blobs []string, at int64) (heal func()) {
	t.Helper()
	c.srv.Stop(t)
	whole := map[string][]byte{}
	for _, name := range blobs {
		path := filepath.Join(c.srv.Dir, "repo", name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		whole[path] = b
		hurt := slices.Clone(b)
		if at < 0 {
			at += int64(len(hurt))
		}
		hurt[at] ^= 0x10
		replaceFile(t, path, hurt)
	}
	c.srv.Run(t)
	return func() {
		c.srv.Stop(t)
		for path, b := range whole {
			replaceFile(t, path, b)
		}
		c.srv.Run(t)
	}
}

func (c *salvageTour) damage(t *testing.T, blobs []string, at int64, lost func(treeRow) bool) {
	want := []badRange{}
	for _, r := range c.tree {
		n := len(want)
		switch {
		case !lost(r):
		case n > 0 && want[n-1].Offset+want[n-1].Length == r.Offset:
			want[n-1].Length += r.Length
		default:
			want = append(want, badRange{r.Offset, r.Length, "damaged"})
		}
	}
	heal := c.flip(t, blobs, at)
	defer heal()
	code := 0
	if len(want) > 0 {
		code = 3
	}
	c.salvage(t, code, want)
	j := c.srv.API().Wait(t, c.srv.API().Send(t, http.MethodPost, "repository/scrub", map[string]any{}).Begin(t).ID)
	if j.Status != "failed" {
		t.Errorf("scrub is %s", j.Status)
	}
	var report struct {
		Damage []struct {
			badRange
			Snapshot string `json:"snapshot_id"`
		}
	}
	if err := json.Unmarshal([]byte(j.Extra), &report); err != nil {
		t.Fatal(err)
	}
	scrubbed := []badRange{}
	for _, d := range report.Damage {
		if n := len(scrubbed); d.Snapshot != c.p.id || d.Length == 0 {
			continue // 0: a sentence about its manifest
		} else if n > 0 && scrubbed[n-1].Offset+scrubbed[n-1].Length == d.Offset {
			scrubbed[n-1].Length += d.Length
		} else {
			scrubbed = append(scrubbed, badRange{d.Offset, d.Length, "damaged"})
		}
	}
	if !slices.Equal(scrubbed, want) {
		t.Errorf("scrub tells %+v, want %+v", scrubbed, want)
	}
	if len(want) > 0 {
		c.con.fails(t, 5, "salvage", "snapshot", "export", c.p.id, "--to", "no.raw")
		c.salvage(t, code, want) // a point that is marked can be salvaged all the same
	}
	if _, err := os.Stat(filepath.Join(c.con.dir, "no.raw")); err == nil {
		t.Error("a refused export left a file")
	}
}

// salvage saves the point in both ways and compares every byte.
func (c *salvageTour) salvage(t *testing.T, code int, want []badRange) {
	t.Helper()
	expected := c.p.content.Clone()
	for _, b := range want {
		expected.Write(make([]byte, b.Length), b.Offset)
	}
	o := c.con.run(t, "snapshot", "export", c.p.id, "--salvage", "--to", "out.raw", "--force", "-o", "json")
	var doc struct {
		Bytes     int64      `json:"bytes"`
		BadRanges []badRange `json:"bad_ranges"`
	}
	o.decode(t, &doc)
	if o.code != code || !slices.Equal(doc.BadRanges, want) || doc.BadRanges == nil || doc.Bytes != c.p.content.Size() {
		t.Errorf("exit %d, %s; want exit %d and %+v", o.code, o.out, code, want)
	}
	expected.WantFile(t, filepath.Join(c.con.dir, "out.raw"))
	o = c.con.run(t, "snapshot", "export", c.p.id, "--salvage", "--to", "-", "--bad-ranges", "bad.json", "--force")
	b, err := os.ReadFile(filepath.Join(c.con.dir, "bad.json"))
	if err == nil {
		err = json.Unmarshal(b, &doc)
	}
	if o.code != code || err != nil || !slices.Equal(doc.BadRanges, want) || !expected.Is([]byte(o.out)) {
		t.Errorf("to stdout: exit %d, %d bytes, %v, ranges %+v; want %+v", o.code, len(o.out), err, doc.BadRanges, want)
	}
}

// nothingLeft damages both headers of the point's pack, without which nothing
// opens.
func (c *salvageTour) nothingLeft(t *testing.T) {
	i := slices.IndexFunc(c.tree, func(r treeRow) bool { return r.Level > 0 })
	blob := c.tree[i].Place.Blob
	heal := c.flip(t, []string{blob + ".a", blob + ".b"}, 90)
	defer heal()
	c.con.fails(t, 1, "nothing of "+c.p.id, "snapshot", "export", c.p.id, "--salvage", "--to", "no.raw")
	if _, err := os.Stat(filepath.Join(c.con.dir, "no.raw")); err == nil {
		t.Error("a failed salvage left a file")
	}
}
