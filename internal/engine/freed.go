package engine

import (
	"context"
	"fmt"

	"cairn/internal/repo"
)

// record names one record of a pack.
type record struct {
	pack repo.PackID
	off  uint32
}

// usage collects the records that some points use.
type usage struct {
	e       *Engine
	records map[record]int64 // bytes, all copies
}

// FreedBytes tells how many bytes of the repository only the doomed points
// use: their point packs whole, and elsewhere every record of which no
// survivor uses anything. What shares a pack with live records is given back
// when packs are compacted. Memory follows the doomed points' own records.
func (e *Engine) FreedBytes(ctx context.Context, doomed, survivors []PointRef) (int64, error) {
	u := usage{e: e, records: make(map[record]int64)}
	var freed int64
	for _, p := range doomed {
		n, err := u.add(ctx, p)
		if err != nil {
			return 0, err
		}
		freed += n
	}
	seen := make(map[repo.ID]bool)
	for _, p := range survivors {
		if len(u.records) == 0 {
			break
		}
		if err := u.drop(ctx, p, seen); err != nil {
			return 0, err
		}
	}
	for _, n := range u.records {
		freed += n
	}
	return freed, nil
}

func key(l repo.Loc) record { return record{l.Pack.ID, l.Off} }

// add notes every record that a doomed point uses and returns the size of its
// point pack, all copies.
func (u *usage) add(ctx context.Context, p PointRef) (int64, error) {
	pk, _, err := p.pack()
	if err != nil {
		return 0, err
	}
	size, err := u.e.r.BlobBytes(ctx, pk)
	if err != nil {
		return 0, fmt.Errorf("measure the point pack of %s: %w", p.Snapshot, err)
	}
	m, err := u.e.manifest(ctx, p)
	if err != nil {
		return 0, err
	}
	note := func(l repo.Loc) bool {
		if l.Pack.Kind == repo.PointKind {
			// Counted with its point pack, and only below its own point.
			return true
		}
		if _, ok := u.records[key(l)]; ok {
			return false
		}
		u.records[key(l)] = int64(l.Len) * int64(len(l.Pack.Copies()))
		return true
	}
	err = u.e.r.Walk(ctx, m.Root, 0, repo.Chunks(m.SizeBytes),
		func(ref repo.Ref, _ uint8, _ int64) (bool, error) { return note(ref.Loc), nil },
		func(_ int64, n *repo.Node) error {
			for i := range n.Slots {
				if !n.Slots[i].IsZero() {
					note(n.Slots[i].Loc)
				}
			}
			return nil
		})
	return size, err
}

// drop takes out what a survivor uses.
func (u *usage) drop(ctx context.Context, p PointRef, seen map[repo.ID]bool) error {
	m, err := u.e.manifest(ctx, p)
	if err != nil {
		return err
	}
	return u.e.r.Walk(ctx, m.Root, 0, repo.Chunks(m.SizeBytes),
		func(ref repo.Ref, _ uint8, _ int64) (bool, error) {
			delete(u.records, key(ref.Loc))
			if seen[ref.ID] {
				return false, nil
			}
			seen[ref.ID] = true
			return true, nil
		},
		func(_ int64, n *repo.Node) error {
			for i := range n.Slots {
				delete(u.records, key(n.Slots[i].Loc))
			}
			return nil
		})
}
