package journal

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"cairn/internal/chain"
	"cairn/internal/service"
)

// link is what mending needs of one row.
type link struct {
	parent, root string
	full         bool
}

// mendChains gives points whose ancestors are gone a chain of their own: each
// point is a whole tree, so only the rules of chains need the ancestors. While
// the journal is whole there is nothing to mend.
func (r *recovery) mendChains(ctx context.Context) error {
	if !r.Accept {
		return nil
	}
	links := map[string]link{}
	err := r.eachRow(ctx, func(p *service.Snapshot) error {
		if p.Status != ceased {
			links[p.ID] = link{p.ParentID, p.RootID, p.Full}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.eachRow(ctx, func(p *service.Snapshot) error {
		if p.Status == ceased {
			return nil
		}
		root := top(links, p.ID)
		switch {
		case root == p.RootID:
		case root == p.ID:
			r.report.Notes = append(r.report.Notes, fmt.Sprintf("snapshot %s begins a chain now, because its parent %s is gone", p.ID, p.ParentID))
			p.Full, p.ParentID, p.RootID = true, "", p.ID
			p.Reason = "the point that it was taken against is gone"
		default:
			p.RootID = root
		}
		return nil
	})
}

// top is the root of the chain that a point is in: the farthest ancestor that
// is there. Rows that form a ring have none; there the point is its own.
func top(links map[string]link, id string) string {
	at := id
	for range len(links) + 1 {
		l := links[at]
		if _, ok := links[l.parent]; l.full || !ok {
			return at
		}
		at = l.parent
	}
	return id
}

// writeChains sets the heads and what fulls say of their chains.
func (r *recovery) writeChains(ctx context.Context) error {
	r.guessHeads()
	headed := map[string]bool{} // roots
	err := r.inPages(ctx, slices.Sorted(maps.Keys(r.heads)), func(tx service.Tx, resource string) error {
		p, err := tx.Snapshot("", r.heads[resource])
		if err != nil {
			return fmt.Errorf("set the head of %s: %w", resource, err)
		}
		if !p.Live() || p.ResourceID != resource {
			r.report.Notes = append(r.report.Notes, fmt.Sprintf("%s has no head, because %s is %s; its next snapshot is a full", resource, p.ID, p.Status))
			return nil
		}
		p.IsHead = true
		headed[p.RootID] = true
		return tx.UpdateSnapshot(p)
	})
	if err != nil {
		return err
	}
	return r.writeTotals(ctx, headed)
}

// writeTotals sets what fulls say of their chains; headed are the roots of
// those with a head. It reads all rows twice: one query a chain takes longer
// where most chains are short.
func (r *recovery) writeTotals(ctx context.Context, headed map[string]bool) error {
	totals := map[string]chain.Totals{} // by root
	err := r.eachRow(ctx, func(p *service.Snapshot) error {
		t := totals[p.RootID]
		t.Add(p.Point)
		totals[p.RootID] = t
		return nil
	})
	if err != nil {
		return err
	}
	return r.eachRow(ctx, func(p *service.Snapshot) error {
		if !p.Full || p.Status == ceased {
			return nil
		}
		t := totals[p.ID]
		p.TotalBytes, p.TotalCount, p.LatestTime, p.HeadChain = t.Bytes, t.Count, t.Latest, headed[p.ID]
		return nil
	})
}

// inPages runs fn for every id, many in one transaction.
func (r *recovery) inPages(ctx context.Context, ids []string, fn func(tx service.Tx, id string) error) error {
	for page := range slices.Chunk(ids, pageRows) {
		err := r.Store.Update(ctx, func(tx service.Tx) error {
			for _, id := range page {
				if err := fn(tx, id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// guessHeads takes the newest point of a volume for its head where the journal,
// being damaged or missing, does not tell. A wrong guess costs a point that
// calls itself incremental on another than the data descends from, never
// data: every point is a whole tree.
func (r *recovery) guessHeads() {
	if r.report.Journal.State == StateWhole {
		return
	}
	for resource, p := range r.latest {
		v, ok := r.volumes[resource]
		if _, has := r.heads[resource]; has || !ok || v.Status == service.VolumeCeased {
			continue
		}
		r.heads[resource] = p.ID
		r.report.Notes = append(r.report.Notes, fmt.Sprintf("the head of %s is not known; its newest snapshot %s is taken for it", resource, p.ID))
	}
}
