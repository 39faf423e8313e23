package engine

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"cairn/internal/blobstore"
	"cairn/internal/repo"
)

// garden is a repository whose points come and go.
type garden struct {
	*rig
	rnd    *rand.Rand
	disks  []*memVolume
	points []*plant
	live   map[string]bool // packs whose row would be LIVE
}

type plant struct {
	ref     PointRef
	disk    int
	parent  *plant
	content []byte
	dead    bool
	bin     bool
}

func newGarden(t *testing.T, seed uint64) *garden {
	g := &garden{rig: newRig(t), rnd: rand.New(rand.NewPCG(seed, 5)), live: map[string]bool{}}
	for range 3 {
		g.disks = append(g.disks, newVolume(3<<20+4096))
	}
	return g
}

// grow writes to a disk and takes a point of it. Some writes repeat content
// that other disks have, so that points share chunks.
func (g *garden) grow() {
	i := g.rnd.IntN(len(g.disks))
	d := g.disks[i]
	for range 1 + g.rnd.IntN(4) {
		b := make([]byte, 1+g.rnd.IntN(600<<10))
		fill(rand.New(rand.NewPCG(g.rnd.Uint64N(6), 1)), b)
		off := g.rnd.Int64N(d.size-int64(len(b))) &^ 0xffff
		if g.rnd.IntN(5) == 0 {
			if err := d.Zero(g.t.Context(), off, int64(len(b))); err != nil {
				g.t.Fatal(err)
			}
		} else if err := d.WriteAt(g.t.Context(), b, off); err != nil {
			g.t.Fatal(err)
		}
	}
	p := &plant{disk: i, content: d.bytes()}
	if parents := g.alive(func(q *plant) bool { return q.disk == i && !q.bin }); len(parents) > 0 && g.rnd.IntN(4) > 0 {
		p.parent = parents[g.rnd.IntN(len(parents))]
	}
	before := maps.Clone(g.packs)
	var parent *PointRef
	if p.parent != nil {
		parent = &p.parent.ref
	}
	p.ref = g.take(d, parent).Ref
	for id := range g.packs {
		if _, ok := before[id]; !ok {
			g.live[id] = true
		}
	}
	// A commit takes what it hit into use again, also a pack that a prune
	// emptied and has not deleted: what was not copied out of it is only there.
	for _, id := range g.hits {
		g.live[id] = true
	}
	g.points = append(g.points, p)
}

// copy makes a point of its own of one that is there, as an image is made.
func (g *garden) copy() {
	g.t.Helper()
	ps := g.alive(func(p *plant) bool { return !p.bin })
	if len(ps) == 0 {
		return
	}
	of := ps[g.rnd.IntN(len(ps))]
	reg := newRegistry()
	s, err := g.e.OpenSession(g.t.Context(), "copy", 1, reg)
	if err != nil {
		g.t.Fatal(err)
	}
	defer s.Close()
	c, err := s.Copy(g.t.Context(), g.spec(nil, nil).Meta, of.ref)
	if err != nil {
		g.t.Fatal(err)
	}
	if len(reg.packs) != 1 || len(s.Hits()) != 0 || c.SourceBytes != int64(len(of.content)) {
		g.t.Fatalf("the copy of %s stored %v and hit %v: %+v", of.ref.Snapshot, reg.packs, s.Hits(), c)
	}
	g.commit(s, reg)
	for id := range reg.packs {
		g.live[id] = true
	}
	g.points = append(g.points, &plant{ref: c.Ref, disk: -1, content: of.content})
}

func (g *garden) alive(also func(*plant) bool) []*plant {
	return slices.DeleteFunc(slices.Clone(g.points), func(p *plant) bool { return p.dead || !also(p) })
}

func all(*plant) bool { return true }

// remove puts a point and its descendants into the bin, or out of it for good.
func (g *garden) remove(p *plant, bin bool) {
	p.dead, p.bin = !bin, bin
	for _, q := range g.alive(func(q *plant) bool { return q.parent == p }) {
		g.remove(q, bin)
	}
}

func refs(ps []*plant) []PointRef {
	out := make([]PointRef, len(ps))
	for i, p := range ps {
		out[i] = p.ref
	}
	return out
}

func (g *garden) rows() []PackRow {
	var rows []PackRow
	for id, p := range g.packs {
		rows = append(rows, PackRow{PackRecord: p, Live: g.live[id]})
	}
	return rows
}

func (g *garden) mark() Marks {
	g.t.Helper()
	stored, err := g.e.Stored(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	spec := MarkSpec{Stored: stored, Packs: g.rows(),
		Points: refs(g.alive(func(p *plant) bool { return !p.bin })), Bin: refs(g.alive(func(p *plant) bool { return p.bin }))}
	k, err := g.e.Mark(g.t.Context(), spec)
	if err != nil {
		g.t.Fatal(err)
	}
	return k
}

// prune deletes what nothing needs, copies the rest out of some packs, and
// deletes those.
func (g *garden) prune() {
	g.t.Helper()
	k := g.mark()
	g.checkUnique(k)
	var victims []string
	for _, id := range slices.Sorted(maps.Keys(g.packs)) {
		p := g.packs[id]
		switch {
		case !k.Needed(id):
			g.erase(id)
		case g.live[id] && (p.Kind == "data" || p.Kind == "node") && g.rnd.IntN(2) == 0:
			victims = append(victims, id)
		}
	}
	if len(victims) == 0 {
		return
	}
	reg := newRegistry()
	s, err := g.e.OpenSession(g.t.Context(), "prune", 1, reg)
	if err != nil {
		g.t.Fatal(err)
	}
	defer s.Close()
	got, err := s.Evacuate(g.t.Context(), k, victims)
	if err != nil || len(got.Failed) > 0 || len(got.Emptied) != len(victims) {
		g.t.Fatalf("evacuate %v: %+v, %v", victims, got, err)
	}
	g.commit(s, reg)
	for id := range reg.packs {
		g.live[id] = true
	}
	for _, id := range got.Emptied {
		g.live[id] = false
		if g.rnd.IntN(3) > 0 { // else a later prune does it
			g.erase(id)
		}
	}
}

func (g *garden) erase(id string) {
	g.t.Helper()
	if err := g.e.DeletePacks(g.t.Context(), []PackRecord{g.packs[id]}); err != nil {
		g.t.Fatal(err)
	}
	delete(g.packs, id)
	delete(g.live, id)
}

// checkUnique compares the marks with what deleting each point alone would
// free, worked out from scratch.
func (g *garden) checkUnique(k Marks) {
	g.t.Helper()
	uses := map[repo.PackID]map[repo.Loc]map[string]int64{}
	points := g.alive(func(p *plant) bool { return !p.bin })
	use := func(p *plant, l repo.Loc, bytes int64) {
		l.Sub = 0
		if l.Pack.Kind == repo.PointKind {
			l = repo.Loc{Pack: l.Pack}
		}
		if uses[l.Pack.ID] == nil {
			uses[l.Pack.ID] = map[repo.Loc]map[string]int64{}
		}
		if uses[l.Pack.ID][l] == nil {
			uses[l.Pack.ID][l] = map[string]int64{}
		}
		uses[l.Pack.ID][l][p.ref.Snapshot] = bytes
	}
	for _, p := range points {
		g.eachRecord(p, func(l repo.Loc) {
			bytes := int64(l.Len) * int64(len(l.Pack.Copies()))
			if l.Pack.Kind == repo.PointKind {
				bytes = g.packs[l.Pack.ID.String()].Bytes
			}
			use(p, l, bytes)
		})
	}
	want := map[string]int64{}
	for _, p := range points {
		want[p.ref.Snapshot] = 0
	}
	for _, records := range uses {
		for _, by := range records {
			if len(by) == 1 {
				for id, n := range by {
					want[id] += n
				}
			}
		}
	}
	if got := k.Unique(); !maps.Equal(got, want) {
		g.t.Fatalf("unique bytes are %v, want %v", got, want)
	}
	for _, p := range points {
		others := refs(slices.DeleteFunc(slices.Clone(points), func(q *plant) bool { return q == p }))
		got, err := g.e.FreedBytes(g.t.Context(), g.rows(), []PointRef{p.ref}, others)
		if err != nil || got != want[p.ref.Snapshot] {
			g.t.Fatalf("a delete of %s alone would free %d (%v), want %d", p.ref.Snapshot, got, err, want[p.ref.Snapshot])
		}
	}
}

// eachRecord calls fn with the present place of every record of a point.
func (g *garden) eachRecord(p *plant, fn func(repo.Loc)) {
	g.t.Helper()
	pk, _, err := p.ref.pack()
	if err != nil {
		g.t.Fatal(err)
	}
	fn(repo.Loc{Pack: pk})
	m, err := g.e.manifest(g.t.Context(), p.ref)
	if err != nil {
		g.t.Fatal(err)
	}
	var visit func(ref repo.Ref, level int)
	visit = func(ref repo.Ref, level int) {
		if ref.IsZero() {
			return
		}
		at, err := g.e.r.Present(g.t.Context(), ref.Loc, func(id repo.PackID) bool { return g.live[id.String()] })
		if err != nil {
			g.t.Fatalf("%s: %v", p.ref.Snapshot, err)
		}
		fn(at)
		if level < 0 {
			return
		}
		n, err := g.e.r.LoadNode(g.t.Context(), repo.Ref{ID: ref.ID, Loc: at}, uint8(level))
		if err != nil {
			g.t.Fatal(err)
		}
		for i := range n.Slots {
			visit(n.Slots[i], level-1)
		}
	}
	visit(m.Root.Ref, int(m.Root.Level))
}

func (g *garden) check(what string) {
	g.t.Helper()
	alive := g.alive(all)
	for _, p := range alive {
		got, err := g.export(p.ref)
		if err != nil || !bytes.Equal(got, p.content) {
			g.t.Fatalf("after %s %s does not read back: %v", what, p.ref.Snapshot, err)
		}
	}
	g.scrub(refs(alive)...)
	if g.t.Failed() {
		g.t.Fatalf("after %s the repository is damaged", what)
	}
}

// Random histories of points that come and go, beside their contents: whatever
// was pruned and copied, every point that is left reads back, by this process
// and by the next, and at the end nothing is stored that nothing needs.
func TestPruneNeverLosesAPoint(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			g := newGarden(t, seed)
			for range 30 {
				switch what := g.rnd.IntN(9); {
				case what < 4 || len(g.alive(all)) == 0:
					g.grow()
				case what == 4:
					ps := g.alive(all)
					g.remove(ps[g.rnd.IntN(len(ps))], false)
				case what == 5:
					ps := g.alive(func(p *plant) bool { return !p.bin })
					if len(ps) > 0 {
						g.remove(ps[g.rnd.IntN(len(ps))], true)
					}
				case what == 6:
					g.copy()
				case what == 7:
					g.prune()
					g.check("a prune")
				default:
					g.reopen()
					g.check("a restart")
				}
			}
			for _, p := range g.alive(all) {
				g.remove(p, false)
			}
			g.prune()
			g.prune()
			left := 0
			err := g.e.r.Blobs(t.Context(), func(b blobstore.Info) error {
				if b.Name[:6] != "header" {
					left++
					t.Errorf("%s is left of a repository without points", b.Name)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
