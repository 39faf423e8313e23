package repo

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"cairn/internal/repo/pack"
)

// Owner says who uses a record: a point by its number, or one of the classes
// below. A record that two points use belongs to Many.
type Owner uint32

// Owners that are no single point. Numbers of points are below them.
const (
	// Many: several points, or something that is no point and keeps its tree.
	Many Owner = 1<<32 - 1
	// Bin: only points in the recycle bin, which are on their way out.
	Bin Owner = 1<<32 - 2
	// MaxPoints is how many points can be told apart.
	MaxPoints = 1<<32 - 2
)

// PackFate is what the collector read of a pack.
type PackFate struct {
	Live   bool // its row is LIVE and its session COMMITTED
	Stored bool // it is there: a copy was listed, or it is Live
}

// Marker finds what roots reach (DESIGN §4, docs/adr/0005-collection.md). It
// reads every stored node that a root reaches, past the cache, as two nodes of
// one content may have different hints. Any node that cannot be read, and any
// hint into nowhere, fails the whole mark: damage must never become mass
// deletion. Memory follows the number of records in use, about 12 bytes each.
// One goroutine.
type Marker struct {
	r      *Repo
	fates  map[PackID]PackFate
	used   map[PackID]*PackUse
	relocs map[PackID]bool // relocation blobs that some hint needs
	narrow bool            // see Narrow
}

// PackUse is the used part of one pack.
type PackUse struct {
	Pack   Pack
	Bytes  int64 // of the used records, one copy
	whole  Owner // point packs: who uses anything in it
	marked []marked
}

// marked is one used record.
type marked struct {
	off, len uint32
	owner    Owner
}

// NewMarker begins a mark. fates holds every pack that has a row or was
// listed; the listing came before the rows were read.
func (r *Repo) NewMarker(fates map[PackID]PackFate) *Marker {
	return &Marker{r: r, fates: fates, used: make(map[PackID]*PackUse), relocs: make(map[PackID]bool)}
}

// Point marks all that a point's manifest reaches. Points of owner Bin come
// last: they take nothing away from others. errs.Corrupt: something is missing
// or damaged.
func (m *Marker) Point(ctx context.Context, owner Owner, p Pack, content ID) error {
	man, err := m.r.ReadManifest(ctx, p, content)
	if err != nil {
		return fmt.Errorf("read the manifest of %s: %w", p.Snapshot, err)
	}
	// A point pack is kept or freed whole, whoever uses a record of it.
	m.use(Loc{Pack: p}, owner)
	if err := m.node(ctx, owner, man.Root.Ref, man.Root.Level); err != nil {
		return fmt.Errorf("mark %s: %w", p.Snapshot, err)
	}
	return nil
}

// node marks a node and, as far as that says anything new, all below it.
func (m *Marker) node(ctx context.Context, owner Owner, ref Ref, level uint8) error {
	if ref.IsZero() {
		return nil
	}
	at, err := m.place(ctx, ref.Loc)
	if err != nil {
		return err
	}
	if !m.use(at, owner) {
		// Whoever marked it marked all below it, for the same owner or for
		// Many, or we are Bin and change no owner.
		return nil
	}
	n, err := m.r.readNode(ctx, Ref{ID: ref.ID, Loc: at}, level)
	if err != nil {
		return err
	}
	for i := range n.Slots {
		if level > 0 {
			err = m.node(ctx, owner, n.Slots[i], level-1)
		} else if !n.Slots[i].IsZero() {
			err = m.chunk(ctx, owner, n.Slots[i].Loc)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *Marker) chunk(ctx context.Context, owner Owner, l Loc) error {
	at, err := m.place(ctx, l)
	if err == nil && (!m.narrow || m.Used(at.Pack.ID).holds(at.Off)) {
		m.use(at, owner)
	}
	return err
}

// Narrow makes the points marked from now on change the owners of chunks that
// are marked already, and mark no others.
func (m *Marker) Narrow() { m.narrow = true }

// Present is where the record that a hint names is now: where the hint says
// while live holds of that pack, else where it has moved to.
func (r *Repo) Present(ctx context.Context, l Loc, live func(PackID) bool) (Loc, error) {
	fates := make(map[PackID]PackFate)
	queue := []Loc{l}
	for n := 0; n < len(queue) && n < relocMax; n++ {
		id := queue[n].Pack.ID
		fates[id] = PackFate{Live: live(id), Stored: live(id)}
		hops, err := r.hops(ctx, queue[n])
		if err != nil {
			return Loc{}, err
		}
		for _, h := range hops {
			fates[h.by] = PackFate{Live: live(h.by), Stored: live(h.by)}
			queue = append(queue, h.to)
		}
	}
	return r.NewMarker(fates).place(ctx, l)
}

// place is where the record that a hint names is to be kept: where the hint
// says while that pack is LIVE, else where the record has moved to. A hint
// into a stored pack that is not LIVE and has not moved keeps that one.
func (m *Marker) place(ctx context.Context, l Loc) (Loc, error) {
	fate := m.fates[l.Pack.ID]
	if fate.Live && fate.Stored {
		return l, nil
	}
	to, by, err := m.moved(ctx, l, 0)
	if err != nil {
		return Loc{}, err
	}
	switch {
	case by != nil:
		for _, id := range by {
			m.relocs[id] = true
		}
		return to, nil
	case fate.Stored:
		return l, nil
	}
	return Loc{}, damage(l.Pack.Kind.String()+" pack "+l.Pack.ID.String(),
		fmt.Errorf("%w: a tree needs %s, which is not stored and has not moved", pack.ErrDamaged, l.Pack.Blob()))
}

// moved follows relocations to a LIVE pack and returns the blobs on the way;
// none: there is no such way.
func (m *Marker) moved(ctx context.Context, l Loc, depth int) (to Loc, by []PackID, err error) {
	if depth > relocMax {
		return Loc{}, nil, nil
	}
	hops, err := m.r.hops(ctx, l)
	if err != nil {
		return Loc{}, nil, err
	}
	slices.SortFunc(hops, func(a, b hop) int { return slices.Compare(a.by[:], b.by[:]) })
	for _, h := range hops {
		if !m.fates[h.by].Live {
			continue // of a session that was given up, and its copies with it
		}
		fate := m.fates[h.to.Pack.ID]
		if fate.Live && fate.Stored {
			return h.to, []PackID{h.by}, nil
		}
		to, by, err := m.moved(ctx, h.to, depth+1)
		if err != nil || by != nil {
			return to, append(by, h.by), err
		}
	}
	return Loc{}, nil, nil
}

// use notes a record's user. news: the record's owner changed, so what is
// below it must be told.
func (m *Marker) use(l Loc, owner Owner) (news bool) {
	u := m.used[l.Pack.ID]
	if u == nil {
		u = &PackUse{Pack: l.Pack, whole: owner}
		m.used[l.Pack.ID] = u
	} else {
		u.whole = join(u.whole, owner)
	}
	i, ok := slices.BinarySearchFunc(u.marked, l.Off, func(a marked, off uint32) int { return cmp.Compare(a.off, off) })
	if !ok {
		u.marked = slices.Insert(u.marked, i, marked{off: l.Off, len: l.Len, owner: owner})
		u.Bytes += int64(l.Len)
		return true
	}
	was := u.marked[i].owner
	u.marked[i].owner = join(was, owner)
	return u.marked[i].owner != was
}

// join is the owner of what a had and b uses too.
func join(a, b Owner) Owner {
	switch {
	case a == b, b == Bin:
		return a
	case a == Bin:
		return b
	}
	return Many
}

// Used is the used part of a pack; nil: nothing of it.
func (m *Marker) Used(id PackID) *PackUse { return m.used[id] }

// NeedsMoves reports whether some hint needs the relocation blob.
func (m *Marker) NeedsMoves(id PackID) bool { return m.relocs[id] }

// holds reports whether the record at off is used.
func (u *PackUse) holds(off uint32) bool {
	if u == nil {
		return false
	}
	_, ok := slices.BinarySearchFunc(u.marked, off, func(a marked, off uint32) int { return cmp.Compare(a.off, off) })
	return ok
}

// Unique adds up, for every point, the bytes that would be freed if it alone
// went, all copies: its own records, and its point pack unless another point
// uses something in it. sizes are the stored bytes of point packs.
func (m *Marker) Unique(points int, sizes func(PackID) int64) []int64 {
	out := make([]int64, points)
	for id, u := range m.used {
		if u.Pack.Kind == PointKind {
			if int64(u.whole) < int64(points) {
				out[u.whole] += sizes(id)
			}
			continue
		}
		copies := int64(len(u.Pack.Copies()))
		for _, r := range u.marked {
			if int64(r.owner) < int64(points) {
				out[r.owner] += copies * int64(r.len)
			}
		}
	}
	return out
}
