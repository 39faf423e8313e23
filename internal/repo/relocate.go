package repo

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"cairn/internal/repo/addr"
	"cairn/internal/repo/pack"
	"cairn/internal/repo/reloc"
)

// relocMax bounds how often a record may have moved since a hint was written.
// Each move rewrites the nodes it meets, so real chains are short.
const relocMax = 64

// relocCache is how many tables are kept decoded, about 20 KiB each.
const relocCache = 64

// moves are the relocations of a repository: truth, and looked at only after a
// hint has failed. What is kept is which blob has a table for which pack; the
// tables themselves are read when they are wanted.
type moves struct {
	mu     sync.Mutex // guards what follows; a leaf of the lock order
	loaded bool
	places map[PackID][]Loc // old pack → records with its tables, in any order
	tables *lru[Loc, *reloc.Table]
}

func newMoves() *moves {
	return &moves{places: make(map[PackID][]Loc), tables: newLRU[Loc, *reloc.Table](relocCache)}
}

// loadMoves reads the directory of every relocation blob, once.
func (r *Repo) loadMoves(ctx context.Context) error {
	r.moves.mu.Lock()
	defer r.moves.mu.Unlock()
	if r.moves.loaded {
		return nil
	}
	places := make(map[PackID][]Loc)
	seen := make(map[PackID]bool)
	err := r.store.List(ctx, "reloc/", func(i Blob) error {
		p, header, ok := ParseBlob(i.Name)
		if !ok || header || seen[p.ID] {
			return nil
		}
		seen[p.ID] = true
		found, err := r.tablesIn(ctx, p)
		if isDamage(err) {
			// Scrub reports the blob; what it has moved is missed where it is
			// wanted, and the collector refuses to go on.
			return nil
		}
		for old, at := range found {
			places[old] = append(places[old], at...)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read the relocations: %w", err)
	}
	r.moves.places, r.moves.loaded = places, true
	return nil
}

// MovedPacks tells out of which packs records were copied.
func (r *Repo) MovedPacks(ctx context.Context) (map[PackID]bool, error) {
	if err := r.loadMoves(ctx); err != nil {
		return nil, err
	}
	r.moves.mu.Lock()
	defer r.moves.mu.Unlock()
	out := make(map[PackID]bool, len(r.moves.places))
	for id := range r.moves.places {
		out[id] = true
	}
	return out, nil
}

// LackingRelocations lists the missing copies of relocation blobs.
func (r *Repo) LackingRelocations(ctx context.Context) ([]string, error) {
	there := make(map[string]bool)
	var packs []Pack
	err := r.store.List(ctx, "reloc/", func(i Blob) error {
		if p, header, ok := ParseBlob(i.Name); ok && !header {
			there[i.Name] = true
			packs = append(packs, p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the relocations: %w", err)
	}
	var lacking []string
	for _, p := range packs {
		for _, name := range p.Copies() {
			if !there[name] {
				lacking = append(lacking, name)
			}
		}
	}
	return lacking, nil
}

// tablesIn tells which packs a relocation blob is about, and where.
func (r *Repo) tablesIn(ctx context.Context, p Pack) (map[PackID][]Loc, error) {
	out := make(map[PackID][]Loc)
	err := r.eachCopy(p, func(blob string) error {
		clear(out)
		_, entries, err := r.directory(ctx, p, blob)
		if err != nil {
			return err
		}
		for _, e := range entries {
			old, ok := reloc.PackOf(e.IDs[0])
			if e.Kind != pack.Reloc || !ok {
				return fmt.Errorf("%w: it holds a record that is no relocation", pack.ErrDamaged)
			}
			out[old] = append(out[old], Loc{Pack: p, Off: e.Off, Len: e.Len})
		}
		return nil
	})
	return out, err
}

// moved notes a new relocation blob.
func (m *moves) moved(found map[PackID][]Loc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.loaded {
		return // it will be read with the others
	}
	for old, at := range found {
		m.places[old] = append(m.places[old], at...)
	}
}

// drop forgets relocation blobs that are deleted.
func (m *moves) drop(gone map[PackID]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for old, at := range m.places {
		kept := at[:0:0]
		for _, l := range at {
			if !gone[l.Pack.ID] {
				kept = append(kept, l)
			}
		}
		if len(kept) == 0 {
			delete(m.places, old)
		} else {
			m.places[old] = kept
		}
	}
}

// hop is one move of a record: by which blob, and where to.
type hop struct {
	by PackID
	to Loc
}

// hops are the moves that the record at l has made, one step each. There may
// be several: a pack that came back to life can be moved again.
func (r *Repo) hops(ctx context.Context, l Loc) ([]hop, error) {
	if err := r.loadMoves(ctx); err != nil {
		return nil, err
	}
	r.moves.mu.Lock()
	at := r.moves.places[l.Pack.ID]
	r.moves.mu.Unlock()
	var out []hop
	for _, place := range at {
		t, err := r.table(ctx, place, l.Pack.ID)
		if isDamage(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if to, ok := t.Find(l.Off); ok && t.Pack.Kind == l.Pack.Kind {
			to.Sub = l.Sub
			out = append(out, hop{by: place.Pack.ID, to: to})
		}
	}
	return out, nil
}

// table reads one relocation table.
func (r *Repo) table(ctx context.Context, at Loc, old PackID) (*reloc.Table, error) {
	if t, ok := r.moves.tables.get(at); ok {
		return t, nil
	}
	x, err := r.NewReader()
	if err != nil {
		return nil, err
	}
	defer x.Close()
	var t *reloc.Table
	err = r.eachCopy(at.Pack, func(blob string) error {
		rec, err := x.record(ctx, at, blob)
		if err != nil {
			return err
		}
		t, err = x.relocation(rec, old)
		return err
	})
	if err != nil {
		return nil, err
	}
	r.moves.tables.put(at, t)
	return t, nil
}

// relocation decodes a relocation record of the old pack.
func (x *Reader) relocation(rec pack.Record, old PackID) (*reloc.Table, error) {
	if rec.Kind != pack.Reloc || rec.IDs[0] != reloc.ID(old) {
		return nil, fmt.Errorf("%w: record %d is no relocation of pack %s", pack.ErrDamaged, rec.Slot, old)
	}
	if err := x.decode(rec); err != nil {
		return nil, err
	}
	return reloc.Decode(old, x.plain)
}

// follow tries the places to which the record at l may have moved, however
// often, until try accepts one. It returns damage as it was when nothing did.
// try's error that is no damage ends the search.
func (r *Repo) follow(ctx context.Context, l Loc, damage error, try func(Loc) error) error {
	queue, seen := []Loc{l}, map[Loc]bool{l: true}
	all := []error{damage}
	for n := 0; n < len(queue) && n < relocMax; n++ {
		hops, err := r.hops(ctx, queue[n])
		if err != nil {
			return unsure("look where a record has moved to", damage, err)
		}
		for _, h := range hops {
			if seen[h.to] {
				continue
			}
			seen[h.to] = true
			queue = append(queue, h.to)
			err := try(h.to)
			if err == nil {
				return nil
			}
			if !isDamage(err) {
				return unsure("read what has moved", damage, err)
			}
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// writeMoves puts a relocation blob with the tables and takes it into use.
func (s *Session) writeMoves(ctx context.Context, tables []*reloc.Table) (Pack, error) {
	b := s.r.sealer.NewBuilder(addr.Reloc, "", nil)
	found := make(map[PackID][]Loc)
	for _, t := range tables {
		plain, err := t.Encode()
		if err != nil {
			return Pack{}, err
		}
		loc, err := b.Add(pack.Reloc, pack.Stored, []ID{reloc.ID(t.Pack.ID)}, len(plain), plain)
		if err != nil {
			return Pack{}, err
		}
		found[t.Pack.ID] = append(found[t.Pack.ID], loc)
	}
	blob, _ := b.Finish()
	if err := s.put(ctx, b.Pack, blob); err != nil {
		return Pack{}, err
	}
	s.r.moves.moved(found)
	return b.Pack, nil
}
