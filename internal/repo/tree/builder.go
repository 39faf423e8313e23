package tree

import (
	"context"
	"fmt"

	"cairn/internal/repo/addr"
	"cairn/internal/repo/keys"
)

// Place is where a record will lie. It is filled by whoever writes the record
// and read only afterwards.
type Place struct{ Loc addr.Loc }

// Slot is a slot of a node that is being built: its content is known, its
// place maybe later. The zero Slot stands for zeros.
type Slot struct {
	ID   addr.ID
	Loc  addr.Loc // used if Late is nil
	Late *Place
	Sub  uint8 // chunk's number in the frame at Late
}

// Ref resolves the slot once its place is filled.
func (s Slot) Ref() addr.Ref {
	if s.Late == nil {
		return addr.Ref{ID: s.ID, Loc: s.Loc}
	}
	loc := s.Late.Loc
	loc.Sub = s.Sub
	return addr.Ref{ID: s.ID, Loc: loc}
}

// Slots are one node's.
type Slots [Fanout]Slot

// Sink takes finished nodes, children before parents.
type Sink interface {
	// PutNode takes a node that is new. It keeps slots only if it copies
	// them. The Place may be filled later.
	PutNode(ctx context.Context, level uint8, id addr.ID, slots *Slots) (*Place, error)
}

// Builder makes a tree from leaves that come in ascending order.
type Builder struct {
	h      *keys.Hasher
	loader Loader
	sink   Sink
	level  uint8
	parent Root
	keep   bool

	open  [maxLevel + 2]*openNode // by level; level 0 is never open
	cache [maxLevel + 2]struct {
		idx  int64
		node *Node
		ok   bool
	}
	root Slot
	last int64 // the last leaf's index; -1 before the first
	done bool
}

type openNode struct {
	idx   int64
	slots Slots
}

// NewBuilder begins a tree for a volume of that many chunks. parent is the
// tree to inherit from; nil writes every node afresh. With keep, leaves that
// are not given stay as in the parent; without it they are zeros. A parent of
// another level cannot be inherited from and is an error.
func NewBuilder(h *keys.Hasher, loader Loader, sink Sink, chunks int64, parent *Root, keep bool) (*Builder, error) {
	b := &Builder{h: h, loader: loader, sink: sink, level: LevelFor(chunks), last: -1}
	if parent == nil {
		if keep {
			return nil, fmt.Errorf("nothing to keep without a parent")
		}
		b.parent.Level = b.level
		return b, nil
	}
	if parent.Level != b.level {
		return nil, fmt.Errorf("the parent's tree has level %d, the volume needs %d", parent.Level, b.level)
	}
	b.parent, b.keep = *parent, keep
	return b, nil
}

// Leaf sets the leaf idx (the chunks from idx*Fanout on). Indices ascend.
func (b *Builder) Leaf(ctx context.Context, idx int64, slots *Slots) error {
	if b.done || idx <= b.last || idx<<fanoutLog >= Span(b.level) {
		return fmt.Errorf("leaf %d after %d in a tree of level %d", idx, b.last, b.level)
	}
	b.last = idx
	s, err := b.complete(ctx, 0, idx, slots)
	if err != nil {
		return err
	}
	return b.put(ctx, 1, idx, s)
}

// Finish closes all nodes and returns the root.
func (b *Builder) Finish(ctx context.Context) (level uint8, root Slot, err error) {
	b.done = true
	if b.last < 0 {
		if b.keep {
			return b.level, Slot{ID: b.parent.Ref.ID, Loc: b.parent.Ref.Loc}, nil
		}
		return b.level, Slot{}, nil
	}
	for l := uint8(1); l <= b.level; l++ {
		if err := b.close(ctx, l); err != nil {
			return 0, Slot{}, err
		}
	}
	return b.level, b.root, nil
}

// put sets the slot for node child, of the level below, in its parent node.
func (b *Builder) put(ctx context.Context, level uint8, child int64, s Slot) error {
	if level > b.level {
		b.root = s
		return nil
	}
	idx := child >> fanoutLog
	if n := b.open[level]; n != nil && n.idx != idx {
		if err := b.close(ctx, level); err != nil {
			return err
		}
	}
	if b.open[level] == nil {
		n := &openNode{idx: idx}
		if b.keep {
			if err := b.keepSlots(ctx, level, idx, &n.slots); err != nil {
				return err
			}
		}
		b.open[level] = n
	}
	b.open[level].slots[child&(Fanout-1)] = s
	return nil
}

func (b *Builder) keepSlots(ctx context.Context, level uint8, idx int64, slots *Slots) error {
	p, err := b.parentNode(ctx, level, idx)
	if err != nil || p == nil {
		return err
	}
	for i := range p.Slots {
		slots[i] = Slot{ID: p.Slots[i].ID, Loc: p.Slots[i].Loc}
	}
	return nil
}

func (b *Builder) close(ctx context.Context, level uint8) error {
	n := b.open[level]
	if n == nil {
		return nil
	}
	b.open[level] = nil
	s, err := b.complete(ctx, level, n.idx, &n.slots)
	if err != nil {
		return err
	}
	return b.put(ctx, level+1, n.idx, s)
}

// complete turns a node's slots into the slot that names it: zeros, the
// parent's own node, or a new one.
func (b *Builder) complete(ctx context.Context, level uint8, idx int64, slots *Slots) (Slot, error) {
	zero := true
	for i := range slots {
		if !slots[i].ID.IsZero() {
			zero = false
			break
		}
	}
	if zero {
		return Slot{}, nil
	}
	id := hash(b.h, level, func(i int) addr.ID { return slots[i].ID })
	old, err := b.parentRef(ctx, level, idx)
	if err != nil {
		return Slot{}, err
	}
	if old.ID == id {
		return Slot{ID: id, Loc: old.Loc}, nil
	}
	place, err := b.sink.PutNode(ctx, level, id, slots)
	if err != nil {
		return Slot{}, err
	}
	return Slot{ID: id, Late: place}, nil
}

// parentRef is the parent's reference to its node idx of the level.
func (b *Builder) parentRef(ctx context.Context, level uint8, idx int64) (addr.Ref, error) {
	if level == b.level || b.parent.Ref.IsZero() {
		return b.parent.Ref, nil
	}
	n, err := b.parentNode(ctx, level+1, idx>>fanoutLog)
	if err != nil || n == nil {
		return addr.Ref{}, err
	}
	return n.Slots[idx&(Fanout-1)], nil
}

// parentNode loads the parent's node; nil if its whole span is zeros. The
// last one of each level is remembered, since leaves come in order.
func (b *Builder) parentNode(ctx context.Context, level uint8, idx int64) (*Node, error) {
	c := &b.cache[level]
	if c.ok && c.idx == idx {
		return c.node, nil
	}
	ref, err := b.parentRef(ctx, level, idx)
	if err != nil {
		return nil, err
	}
	c.idx, c.node, c.ok = idx, nil, true
	if ref.IsZero() {
		return nil, nil
	}
	if c.node, err = b.loader.LoadNode(ctx, ref, level); err != nil {
		c.ok = false
		return nil, err
	}
	return c.node, nil
}
