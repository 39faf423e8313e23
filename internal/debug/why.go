package debug

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"cairn/internal/repo"
)

// cleanCap bounds what is remembered of subtrees without the chunk, about 80
// bytes each. Forgetting costs time only.
const cleanCap = 256 << 10

type whyRefDoc struct {
	Snapshot string `json:"snapshot_id"`
	Offset   int64  `json:"offset"`
	Length   int64  `json:"length"`
	Kind     string `json:"kind"` // chunk or node
	Place    *place `json:"place"`
}

type unreadDoc struct {
	Snapshot string `json:"snapshot_id"`
	Offset   int64  `json:"offset"`
	Length   int64  `json:"length"`
	What     string `json:"what"`
}

type whyPlaceDoc struct {
	place
	KnownBy []string `json:"known_by"` // tree, index, pack
	State   string   `json:"state"`
}

// why is one search of Inspector.Why.
type why struct {
	d      *Inspector
	id     repo.ID
	clean  map[repo.ID]bool      // nodes below which it is not
	places map[repo.Loc][]string // who names each
	unread []unreadDoc
	points int
	refs   int64
}

// Why shows who holds a chunk or a node: every point and byte range that
// refers to it, and every place where it lies. Points whose tree cannot be
// read whole are listed, since they may hold it too.
func (d *Inspector) Why(ctx context.Context, id string) error {
	if err := d.needRepo(); err != nil {
		return err
	}
	want, err := parseID(id)
	if err != nil {
		return err
	}
	points, err := d.points(ctx, "")
	if err != nil {
		return err
	}
	w := &why{d: d, id: want, clean: make(map[repo.ID]bool), places: make(map[repo.Loc][]string)}
	return d.finish(w.run(ctx, points))
}

func (w *why) run(ctx context.Context, points []point) error {
	w.d.field("id", w.id.String(), "")
	w.d.list("references", column{"snapshot", 12}, column{"offset", -16}, column{"length", -16}, column{"kind", 5}, column{"where", 0})
	for i := range points {
		p := &points[i]
		if p.manifest == nil {
			w.unread = append(w.unread, unreadDoc{Snapshot: p.name(), What: w.d.why(p.err)})
			continue
		}
		before := w.refs
		if _, err := w.visit(ctx, p.manifest, p.manifest.Root.Ref, int(p.manifest.Root.Level), 0); err != nil {
			return err
		}
		if w.refs > before {
			w.points++
		}
	}
	if err := w.search(ctx); err != nil {
		return err
	}
	if err := w.stored(ctx); err != nil {
		return err
	}
	w.d.list("unreadable_parts", column{"snapshot", 12}, column{"offset", -16}, column{"length", -16}, column{"cannot be read, so it may be here too", 0})
	for _, u := range w.unread {
		w.d.row(u, u.Snapshot, fmt.Sprint(u.Offset), fmt.Sprint(u.Length), u.What)
	}
	w.d.note("%d places in %d points refer to it; it is stored %d times.", w.refs, w.points, len(w.places))
	return nil
}

// visit looks for the id at and below the node, or at level -1 the chunk, with
// the number idx of its level. clean: it is certainly not there.
func (w *why) visit(ctx context.Context, m *repo.Manifest, ref repo.Ref, level int, idx int64) (clean bool, err error) {
	if ref.IsZero() || ref.ID != w.id && (level < 0 || w.clean[ref.ID]) {
		return true, nil
	}
	if err := ctx.Err(); err != nil {
		return false, context.Cause(ctx)
	}
	if ref.ID == w.id {
		w.found(m, ref, level, idx)
		return false, nil
	}
	n, err := w.d.Repo.LoadNode(ctx, ref, uint8(level))
	if err != nil {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		off, length := extentOf(m, level, idx)
		w.unread = append(w.unread, unreadDoc{m.Snapshot, off, length, w.d.why(err)})
		return false, nil
	}
	clean = true
	for i := range n.Slots {
		below, err := w.visit(ctx, m, n.Slots[i], level-1, idx*repo.Fanout+int64(i))
		if err != nil {
			return false, err
		}
		clean = clean && below
	}
	if clean {
		if len(w.clean) >= cleanCap {
			clear(w.clean)
		}
		w.clean[ref.ID] = true
	}
	return clean, nil
}

func extentOf(m *repo.Manifest, level int, idx int64) (off, length int64) {
	span := spanOf(level) * repo.ChunkSize
	return idx * span, min(span, m.SizeBytes-idx*span)
}

func (w *why) found(m *repo.Manifest, ref repo.Ref, level int, idx int64) {
	w.refs++
	w.place(ref.Loc, "tree")
	doc := whyRefDoc{Snapshot: m.Snapshot, Kind: "chunk", Place: newPlace(ref.Loc)}
	if level >= 0 {
		doc.Kind = "node"
	}
	doc.Offset, doc.Length = extentOf(m, level, idx)
	w.d.row(doc, doc.Snapshot, fmt.Sprint(doc.Offset), fmt.Sprint(doc.Length), doc.Kind, where(ref.Loc))
}

func (w *why) place(l repo.Loc, by string) {
	if !slices.Contains(w.places[l], by) {
		w.places[l] = append(w.places[l], by)
	}
}

// search looks for places that no tree names: in the index and in every pack.
func (w *why) search(ctx context.Context) error {
	for _, l := range w.d.Repo.IndexPlaces(w.id) {
		w.place(l, "index")
	}
	packs, err := w.d.packs(ctx, "", func(p repo.Pack) bool { return repo.Collected(p.Kind) })
	if err != nil {
		return err
	}
	for _, s := range packs {
		found, err := w.d.Repo.Find(ctx, s.pack, w.id)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			w.unread = append(w.unread, unreadDoc{What: s.pack.Blob() + ": " + w.d.why(err)})
		}
		for _, l := range found {
			w.place(l, "pack")
		}
	}
	return nil
}

// stored shows the places and whether it is there.
func (w *why) stored(ctx context.Context) error {
	x, err := w.d.Repo.NewReader()
	if err != nil {
		return err
	}
	defer x.Close()
	all := make([]repo.Loc, 0, len(w.places))
	for l := range w.places {
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b repo.Loc) int {
		return cmp.Or(cmp.Compare(a.Pack.Blob(), b.Pack.Blob()), cmp.Compare(a.Off, b.Off), cmp.Compare(a.Sub, b.Sub))
	})
	w.d.list("stored", column{"offset", -9}, column{"length", -8}, column{"sub", -3}, column{"pack", 50}, column{"known by", 16}, column{"state", 0})
	for _, l := range all {
		doc := whyPlaceDoc{*newPlace(l), w.places[l], w.d.state(x.CheckPlace(ctx, l, w.id))}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		w.d.row(doc, fmt.Sprint(l.Off), fmt.Sprint(l.Len), fmt.Sprint(l.Sub), doc.Blob, strings.Join(doc.KnownBy, " "), doc.State)
	}
	return nil
}
