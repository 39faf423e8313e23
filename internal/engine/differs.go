package engine

import (
	"context"
	"io"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/repo"
	"cairn/internal/volume"
)

func (t *tree) Differs(ctx context.Context, from volume.Tree, off int64) (extent.Range, error) {
	if err := ctx.Err(); err != nil {
		return extent.Range{}, err
	}
	other, ok := from.(*tree)
	if !ok || other.e.r != t.e.r {
		return extent.Range{}, errs.New(errs.Internal, "point %s cannot be compared with %s, which is of another repository", t.ref.Snapshot, from.Ref())
	}
	size := min(t.size, other.size)
	if off < 0 {
		return extent.Range{}, t.inside(off, 0)
	}
	if off >= size {
		return extent.Range{}, io.EOF
	}
	d := differ{r: t.e.r, first: off / chunkSize, last: repo.Chunks(size)}
	level := max(t.root.Level, other.root.Level)
	run, err := d.visit(ctx, under(t.root, level), under(other.root, level), level, 0)
	start := max(off, run.Off*chunkSize)
	end := min(run.End()*chunkSize, size)
	return t.answer(ctx, extent.Range{Off: start, Len: max(0, end-start)}, err)
}

// side is a subtree of one of two trees that are compared. high levels lie
// between it and the place that it stands at: there its tree, which is the
// smaller one, has no nodes.
type side struct {
	ref  repo.Ref
	high uint8
}

// under is a tree as it looks from a level above its root, or at its root.
func under(root repo.Root, level uint8) side { return side{root.Ref, level - root.Level} }

// differ looks for the first chunks in which two trees differ.
type differ struct {
	r           *repo.Repo
	first, last int64 // chunks from first up to, but not including, last
}

// visit looks below node idx of a level; it returns a run of chunks within one
// leaf, or none. The run may go on behind last. Only what differs by hash is
// loaded; a hash covers the level, so equal ones stand at the same height.
func (d *differ) visit(ctx context.Context, a, b side, level uint8, idx int64) (none extent.Range, err error) {
	span := repo.Span(level)
	if a.ref.ID == b.ref.ID || (idx+1)*span <= d.first || idx*span >= d.last {
		return none, nil
	}
	as, err := d.children(ctx, a, level)
	if err != nil {
		return none, err
	}
	bs, err := d.children(ctx, b, level)
	if err != nil {
		return none, err
	}
	if level == 0 {
		return d.run(&as, &bs, idx*fanout), nil
	}
	for i := range as {
		found, err := d.visit(ctx, as[i], bs[i], level-1, idx*fanout+int64(i))
		if err != nil || found.Len > 0 {
			return found, err
		}
	}
	return none, nil
}

// children are the sides one level below.
func (d *differ) children(ctx context.Context, s side, level uint8) (out [fanout]side, err error) {
	if s.high > 0 {
		out[0] = side{s.ref, s.high - 1}
		return out, nil
	}
	if s.ref.IsZero() {
		return out, nil
	}
	n, err := d.r.LoadNode(ctx, s.ref, level)
	if err != nil {
		return out, err
	}
	for i := range n.Slots {
		out[i].ref = n.Slots[i]
	}
	return out, nil
}

// run is the first run of differing chunks of a leaf that begins with a chunk.
func (d *differ) run(as, bs *[fanout]side, leaf int64) extent.Range {
	differs := func(i int64) bool {
		return leaf+i >= d.first && as[i].ref.ID != bs[i].ref.ID
	}
	i := int64(0)
	for i < fanout && !differs(i) {
		i++
	}
	end := i
	for end < fanout && differs(end) {
		end++
	}
	return extent.Range{Off: leaf + i, Len: end - i}
}
