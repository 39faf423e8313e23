package metadb

import (
	"bytes"
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
	err := t.blockOf(l).Scan(t.ctx, &row)
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

// blockOf selects the first block that does not end before the snapshot.
func (t *tx) blockOf(l listed) *bun.SelectQuery {
	return t.db.NewSelect().Model((*blockRow)(nil)).Where("zone = ?", l.Zone).
		Where("last_time <= ?", l.CreateTime).
		Where("last_time < ? OR last_id >= ?", l.CreateTime, l.ID).
		OrderExpr("last_time DESC, last_id").Limit(1)
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

// pageOfBlocks answers a filter with a zone and no ids from the blocks. Without
// a search word it stops at the page's end: total is then no total.
func (t *tx) pageOfBlocks(f service.SnapshotFilter) (ids []string, total int, err error) {
	rows, err := t.db.QueryContext(t.ctx, blocksSQL(f), f.Zone)
	if err != nil {
		return nil, 0, fmt.Errorf("search snapshots: %w", explain(err))
	}
	defer func() { err = errors.Join(err, rows.Close()) }()

	s := newSearch(f)
	for rows.Next() && (f.Search != "" || s.total < s.end) {
		// RawBytes: valid until Next, not copied.
		var id int64
		var flags, keys, refs sql.RawBytes
		if err := rows.Scan(&id, &flags, &keys, &refs); err != nil {
			return nil, 0, fmt.Errorf("search snapshots: %w", explain(err))
		}
		if err := s.block(id, flags, keys, refs); err != nil {
			return nil, 0, blockDamaged(err)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, 0, fmt.Errorf("search snapshots: %w", explain(err))
	}
	ids, err = t.idsAt(s.page)
	return ids, s.total, err
}

// blocksSQL selects what the filter needs of all blocks of a zone.
func blocksSQL(f service.SnapshotFilter) string {
	keys, refs := "x''", "x''" // what is not needed is not read
	if f.Search != "" {
		keys = "keys"
	}
	if f.ResourceID != "" || f.RootID != "" {
		refs = "refs"
	}
	return "SELECT id, flags, " + keys + ", " + refs +
		" FROM snapshot_search WHERE zone = ? ORDER BY last_time DESC, last_id"
}

// place is an entry's place: its block and its number there.
type place struct {
	block int64
	entry int
}

// search counts matches and keeps those of one page.
type search struct {
	word           []byte // empty: all match
	wanted         [256]bool
	resource, root []byte // empty: any
	offset, end    int

	total int
	page  []place
	other []bool // scratch of one block: entries of other resources or roots
}

func newSearch(f service.SnapshotFilter) *search {
	s := &search{
		word: []byte(fold(f.Search)), resource: []byte(f.ResourceID), root: []byte(f.RootID),
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

// block looks through one block.
func (s *search) block(id int64, flags, keys, refs []byte) error {
	s.other = s.other[:0]
	if len(s.resource) > 0 || len(s.root) > 0 {
		err := eachRef(refs, len(flags), func(_ int, r ref) {
			s.other = append(s.other, (len(s.resource) > 0 && !bytes.Equal(r.resource, s.resource)) ||
				(len(s.root) > 0 && !bytes.Equal(r.root, s.root)))
		})
		if err != nil {
			return err
		}
	}
	hit := func(i int) {
		if len(s.other) > 0 && s.other[i] {
			return
		}
		if s.total >= s.offset && s.total < s.end {
			s.page = append(s.page, place{block: id, entry: i})
		}
		s.total++
	}
	if len(s.word) > 0 {
		return match(flags, keys, s.word, &s.wanted, hit)
	}
	s.passOver(flags, hit)
	return nil
}

// passOver calls hit for each wanted entry, or only counts them when the page
// begins behind this block.
func (s *search) passOver(flags []byte, hit func(i int)) {
	n := 0
	for _, f := range flags {
		if s.wanted[f] {
			n++
		}
	}
	if len(s.other) == 0 && s.total+n <= s.offset {
		s.total += n
		return
	}
	for i, f := range flags {
		if s.wanted[f] {
			hit(i)
		}
	}
}

// idsAt reads the ids at places; those of one block are neighbours.
func (t *tx) idsAt(places []place) ([]string, error) {
	ids := make([]string, 0, len(places))
	for len(places) > 0 {
		block := places[0].block
		var row blockRow
		err := t.db.NewSelect().Model(&row).Column("flags", "refs").Where("id = ?", block).Scan(t.ctx)
		if err != nil {
			return nil, fmt.Errorf("read a search block: %w", explain(err))
		}
		// Places are in the order of the entries.
		err = eachRef(row.Refs, len(row.Flags), func(i int, r ref) {
			if len(places) > 0 && places[0] == (place{block, i}) {
				ids = append(ids, string(r.id))
				places = places[1:]
			}
		})
		if err != nil {
			return nil, blockDamaged(err)
		}
		if len(places) > 0 && places[0].block == block {
			return nil, blockDamaged(fmt.Errorf("block %d has no entry %d", block, places[0].entry))
		}
	}
	return ids, nil
}
