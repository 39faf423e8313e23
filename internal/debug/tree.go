package debug

import (
	"context"
	"fmt"

	"cairn/internal/errs"
	"cairn/internal/repo"
)

// TreeOptions choose what of a tree is shown.
type TreeOptions struct {
	From, To int64 // bytes of the volume; To 0: its end
	Depth    int   // levels below the root; negative: all, chunks too
	Check    bool  // read every chunk that is shown
}

// refDoc is one node or chunk of a tree.
type refDoc struct {
	Kind   string `json:"kind"`            // node or chunk
	Level  int    `json:"level"`           // of a node; its children have the one below, chunks -1
	Offset int64  `json:"offset"`          // bytes of the volume
	Length int64  `json:"length"`          // cut at the volume's end
	Slots  int    `json:"slots,omitempty"` // of a node that are not zeros
	ID     string `json:"id"`
	Place  *place `json:"place"`
	State  string `json:"state"`
}

// treeWalk is one walk of Inspector.Tree.
type treeWalk struct {
	d        *Inspector
	o        TreeOptions
	m        *repo.Manifest
	x        *repo.Reader
	low, top int64 // chunks that are shown
}

// Tree shows a point's tree, node by node and chunk by chunk, in the order of
// the volume. A span that is not shown is zeros.
func (d *Inspector) Tree(ctx context.Context, snapshot string, o TreeOptions) error {
	p, err := d.onePoint(ctx, snapshot)
	if err != nil {
		return err
	}
	size := p.manifest.SizeBytes
	if o.To == 0 {
		o.To = size
	}
	if o.From < 0 || o.From >= o.To || o.From >= size {
		return errs.New(errs.Invalid, "bytes %d to %d are not within the %d bytes of %s; give --from below --to", o.From, o.To, size, snapshot)
	}
	x, err := d.Repo.NewReader()
	if err != nil {
		return err
	}
	defer x.Close()
	d.field("snapshot_id", snapshot, "")
	d.field("size_bytes", size, "")
	d.field("levels", int(p.manifest.Root.Level)+1, "")
	d.list("tree", column{"level", -5}, column{"offset", -16}, column{"length", -16}, column{"slots", -5}, column{"id", 64}, column{"where", 64}, column{"state", 0})
	w := treeWalk{d: d, o: o, m: p.manifest, x: x, low: o.From / repo.ChunkSize, top: repo.Chunks(min(o.To, size))}
	return d.finish(w.visit(ctx, p.manifest.Root.Ref, int(p.manifest.Root.Level), 0, 0))
}

// visit shows the node, or at level -1 the chunk, with the number idx among
// those of its level, and what is below it.
func (w *treeWalk) visit(ctx context.Context, ref repo.Ref, level int, idx int64, depth int) error {
	span := spanOf(level)
	if ref.IsZero() || (idx+1)*span <= w.low || idx*span >= w.top {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if level < 0 {
		w.chunk(ctx, ref, idx)
		return nil
	}
	n, bad, err := w.d.Repo.NodeCopies(ctx, ref, uint8(level))
	if err != nil {
		return err
	}
	w.node(ref, level, idx, n, bad)
	if n == nil || w.o.Depth >= 0 && depth >= w.o.Depth {
		return nil
	}
	for i := range n.Slots {
		if err := w.visit(ctx, n.Slots[i], level-1, idx*repo.Fanout+int64(i), depth+1); err != nil {
			return err
		}
	}
	return nil
}

// spanOf is the number of chunks below a node; a chunk's level is -1.
func spanOf(level int) int64 {
	if level < 0 {
		return 1
	}
	return repo.Span(uint8(level))
}

func (w *treeWalk) node(ref repo.Ref, level int, idx int64, n *repo.Node, bad []repo.CopyError) {
	doc := w.doc(ref, level, idx)
	if n != nil {
		for i := range n.Slots {
			if !n.Slots[i].IsZero() {
				doc.Slots++
			}
		}
	}
	for _, c := range bad {
		doc.State = join(doc.State, c.Blob+": "+w.d.why(c.Err))
	}
	if n == nil {
		doc.State = join("no copy is whole", doc.State)
	}
	if doc.State == "" {
		doc.State = "ok"
	}
	w.row(doc, fmt.Sprint(level))
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

func (w *treeWalk) chunk(ctx context.Context, ref repo.Ref, idx int64) {
	doc := w.doc(ref, -1, idx)
	if w.o.Check {
		_, err := w.x.Chunk(ctx, ref)
		doc.State = w.d.state(err)
	}
	w.row(doc, "chunk")
}

func (w *treeWalk) doc(ref repo.Ref, level int, idx int64) refDoc {
	span := spanOf(level) * repo.ChunkSize
	doc := refDoc{Kind: "node", Level: level, Offset: idx * span, ID: ref.ID.String(), Place: newPlace(ref.Loc)}
	doc.Length = min(span, w.m.SizeBytes-doc.Offset)
	if level < 0 {
		doc.Kind = "chunk"
	}
	return doc
}

func (w *treeWalk) row(doc refDoc, level string) {
	slots := ""
	if doc.Slots > 0 {
		slots = fmt.Sprint(doc.Slots)
	}
	at := fmt.Sprintf("%s %d+%d", doc.Place.Blob, doc.Place.Offset, doc.Place.Length)
	if doc.Kind == "chunk" {
		at += fmt.Sprintf(" #%d", doc.Place.Sub)
	}
	w.d.row(doc, level, fmt.Sprint(doc.Offset), fmt.Sprint(doc.Length), slots, doc.ID, at, doc.State)
}
