package metadb

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/uptrace/bun"

	"cairn/internal/errs"
	"cairn/internal/service"
)

// blockRow is one block of the search table.
type blockRow struct {
	bun.BaseModel `bun:"table:snapshot_search"`

	ID       int64 `bun:"id,pk,autoincrement"`
	Zone     string
	LastTime int64
	LastID   string
	Flags    []byte
	Keys     []byte
	Refs     []byte
}

// blockDamaged is what a reader hears: the rows themselves are unharmed.
func blockDamaged(err error) error {
	return errs.Wrap(errs.Corrupt, err, "%s", damagedMsg)
}

// reindex moves a snapshot's entry to where it belongs now.
func (t *tx) reindex(before *listed, after listed) error {
	if before != nil && (before.Zone != after.Zone || before.CreateTime != after.CreateTime) {
		if err := t.dropEntry(*before); err != nil {
			return err
		}
	}
	row, found, err := t.blockFor(after)
	if err != nil {
		return err
	}
	if !found {
		return t.storeBlock(blockRow{Zone: after.Zone}, []entry{newEntry(after)})
	}
	es, err := decodeEntries(row.Flags, row.Keys, row.Refs)
	if err != nil {
		return blockDamaged(err)
	}
	at, have := find(es, after.CreateTime, after.ID)
	if have {
		es[at] = newEntry(after)
	} else {
		es = append(es[:at], append([]entry{newEntry(after)}, es[at:]...)...)
	}
	parts := t.limits.split(es, at)
	// The last part keeps the row and goes first: its new end may be what makes
	// the old one free for the part before it.
	rest := parts[:len(parts)-1]
	if err := t.storeBlock(row, parts[len(parts)-1]); err != nil {
		return err
	}
	for _, part := range rest {
		if err := t.storeBlock(blockRow{Zone: row.Zone}, part); err != nil {
			return err
		}
	}
	return nil
}

// blockFor finds the block that holds the snapshot or should: the first whose
// last entry does not come before it, else the zone's oldest.
func (t *tx) blockFor(l listed) (blockRow, bool, error) {
	var row blockRow
	err := t.db.NewSelect().Model(&row).Where("zone = ?", l.Zone).
		Where("last_time <= ?", l.CreateTime).
		Where("last_time < ? OR last_id >= ?", l.CreateTime, l.ID).
		OrderExpr("last_time DESC, last_id").Limit(1).Scan(t.ctx)
	if errors.Is(err, sql.ErrNoRows) {
		err = t.db.NewSelect().Model(&row).Where("zone = ?", l.Zone).
			OrderExpr("last_time, last_id DESC").Limit(1).Scan(t.ctx)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return blockRow{}, false, nil
	}
	if err != nil {
		return blockRow{}, false, fmt.Errorf("find the search block of %s: %w", l.ID, explain(err))
	}
	return row, true, nil
}

// storeBlock writes es as the content of a block, new if it has no id yet.
func (t *tx) storeBlock(row blockRow, es []entry) error {
	last := es[len(es)-1]
	row.LastTime, row.LastID = last.time, last.id
	row.Flags, row.Keys, row.Refs = encodeEntries(es)
	var err error
	if row.ID == 0 {
		_, err = t.db.NewInsert().Model(&row).Exec(t.ctx)
	} else {
		_, err = t.db.NewUpdate().Model(&row).WherePK().Exec(t.ctx)
	}
	if err != nil {
		return fmt.Errorf("store a search block: %w", explain(err))
	}
	return nil
}

// dropEntry takes a snapshot out of the block that holds it.
func (t *tx) dropEntry(l listed) error {
	row, found, err := t.blockFor(l)
	if err != nil {
		return err
	}
	es, err := decodeEntries(row.Flags, row.Keys, row.Refs)
	if err != nil {
		return blockDamaged(err)
	}
	at, have := find(es, l.CreateTime, l.ID)
	if !found || !have {
		return blockDamaged(fmt.Errorf("snapshot %s is in no search block", l.ID))
	}
	if es = append(es[:at], es[at+1:]...); len(es) > 0 {
		return t.storeBlock(row, es)
	}
	if _, err := t.db.NewDelete().Model(&row).WherePK().Exec(t.ctx); err != nil {
		return fmt.Errorf("drop an empty search block: %w", explain(err))
	}
	return nil
}

// searchPage answers a filter with a zone and a search word from the blocks.
func (t *tx) searchPage(f service.SnapshotFilter) (ids []string, total int, err error) {
	columns := "id, flags, keys"
	scoped := f.ResourceID != "" || f.RootID != ""
	if scoped {
		columns += ", refs"
	}
	rows, err := t.db.QueryContext(t.ctx, "SELECT "+columns+
		" FROM snapshot_search WHERE zone = ? ORDER BY last_time DESC, last_id", f.Zone)
	if err != nil {
		return nil, 0, fmt.Errorf("search snapshots: %w", explain(err))
	}
	defer func() { err = errors.Join(err, rows.Close()) }()

	s := newSearch(f)
	for rows.Next() {
		// RawBytes: valid until Next, not copied.
		var id int64
		var flags, keys, refs sql.RawBytes
		into := []any{&id, &flags, &keys}
		if scoped {
			into = append(into, &refs)
		}
		if err := rows.Scan(into...); err != nil {
			return nil, 0, fmt.Errorf("search snapshots: %w", explain(err))
		}
		if err := s.block(id, flags, keys, refs); err != nil {
			return nil, 0, blockDamaged(err)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, 0, fmt.Errorf("search snapshots: %w", explain(err))
	}
	if err := rows.Close(); err != nil {
		return nil, 0, fmt.Errorf("search snapshots: %w", explain(err))
	}
	ids, err = t.idsAt(s.page)
	return ids, s.total, err
}

// place is an entry's place: its block and its number there.
type place struct {
	block int64
	entry int
}

// search counts matches and keeps those of one page.
type search struct {
	word           []byte
	wanted         [256]bool
	resource, root string
	offset, end    int

	total int
	page  []place
}

func newSearch(f service.SnapshotFilter) *search {
	s := &search{
		word: []byte(fold(f.Search)), resource: f.ResourceID, root: f.RootID,
		offset: f.Offset, end: f.Offset + f.Limit,
	}
	for _, st := range wantedStatuses(f) {
		for _, full := range wantedTypes(f) {
			if _, known := statusFlags[st]; known {
				s.wanted[flag(st, full)] = true
			}
		}
	}
	return s
}

// block searches one block.
func (s *search) block(id int64, flags, keys, refs []byte) error {
	var es []entry // decoded at the first match that needs them
	var broken error
	err := match(flags, keys, s.word, &s.wanted, func(i int) {
		if refs != nil && es == nil {
			es, broken = decodeRefs(refs, len(flags))
		}
		if broken != nil {
			return
		}
		if es != nil && ((s.resource != "" && es[i].resource != s.resource) || (s.root != "" && es[i].root != s.root)) {
			return
		}
		if s.total >= s.offset && s.total < s.end {
			s.page = append(s.page, place{block: id, entry: i})
		}
		s.total++
	})
	return errors.Join(err, broken)
}

// idsAt reads the ids at places; those of one block are neighbours.
func (t *tx) idsAt(places []place) ([]string, error) {
	ids := make([]string, 0, len(places))
	var have int64
	var es []entry
	for _, p := range places {
		if es == nil || have != p.block {
			var row blockRow
			if err := t.db.NewSelect().Model(&row).Where("id = ?", p.block).Scan(t.ctx); err != nil {
				return nil, fmt.Errorf("read a search block: %w", explain(err))
			}
			var err error
			if es, err = decodeRefs(row.Refs, len(row.Flags)); err != nil {
				return nil, blockDamaged(err)
			}
			have = p.block
		}
		ids = append(ids, es[p.entry].id)
	}
	return ids, nil
}
