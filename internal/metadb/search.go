package metadb

import (
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"

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
		return t.storeBlock(after.Zone, []entry{newEntry(after)})
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
	return t.replaceBlock(row, t.limits.split(es, at))
}

// replaceBlock stores parts in a block's place.
func (t *tx) replaceBlock(row blockRow, parts [][]entry) error {
	if _, err := t.db.NewDelete().Model(&row).WherePK().Exec(t.ctx); err != nil {
		return fmt.Errorf("replace a search block: %w", explain(err))
	}
	for _, es := range parts {
		if err := t.storeBlock(row.Zone, es); err != nil {
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

// storeBlock stores es as a block of its own, under an id that no block of a
// committed transaction ever had: caches go by it.
func (t *tx) storeBlock(zone string, es []entry) error {
	last := es[len(es)-1]
	row := blockRow{Zone: zone, LastTime: last.time, LastID: last.id}
	row.Flags, row.Keys, row.Refs = encodeEntries(es)
	if _, err := t.db.NewInsert().Model(&row).Exec(t.ctx); err != nil {
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
		return t.replaceBlock(row, [][]entry{es})
	}
	return t.replaceBlock(row, nil)
}

// blocksAtOnce is how many blocks are read together: enough that queries do
// not count, few enough that memory does not.
const blocksAtOnce = 64

// firstBlocks is where a zone's first pages are looked for.
const firstBlocks = 4

// pageOfBlocks answers a filter with a zone, no ids and no root from the blocks. Without
// a search word it stops at the page's end: total is then no total.
func (t *tx) pageOfBlocks(f service.SnapshotFilter) (ids []string, total int, err error) {
	s := newSearch(f)
	s.owner = t.cache.owner(f.ResourceID)
	done := false
	if f.Search == "" && s.owner == 0 && f.Offset < t.limits.blockEntries {
		// The first pages of a zone's list are in its first blocks.
		if done, err = t.searchBlocks(s, f.Zone, firstBlocks); err != nil {
			return nil, 0, err
		}
	}
	if !done {
		s.total, s.page = 0, nil
		if _, err := t.searchBlocks(s, f.Zone, math.MaxInt32); err != nil {
			return nil, 0, err
		}
	}
	ids, err = t.idsAt(s.page)
	return ids, s.total, err
}

// searchBlocks looks through the first most blocks of a zone, or as far as the
// page needs. done: there is nothing behind it for this page.
func (t *tx) searchBlocks(s *search, zone string, most int) (done bool, err error) {
	ids, err := t.blockIDs(zone, most)
	if err != nil {
		return false, err
	}
	all := len(ids) < most
	if all && !t.writes {
		t.cache.sweep(zone, ids)
	}
	need := parts{keys: len(s.word) > 0, owners: s.owner != 0}
	for part := range slices.Chunk(ids, blocksAtOnce) {
		if len(s.word) == 0 && s.total >= s.end {
			return true, nil
		}
		contents, err := t.blocks(zone, part, need)
		if err != nil {
			return false, err
		}
		for i, b := range contents {
			if err := s.block(part[i], b); err != nil {
				return false, blockDamaged(err)
			}
		}
	}
	return all || s.total >= s.end, nil
}

// blockIDs lists the first blocks of a zone, at most so many.
func (t *tx) blockIDs(zone string, most int) (ids []int64, err error) {
	rows, err := t.db.QueryContext(t.ctx, blockIDsSQL, zone, most)
	if err != nil {
		return nil, fmt.Errorf("list search blocks: %w", explain(err))
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("list search blocks: %w", explain(err))
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list search blocks: %w", explain(err))
	}
	return ids, nil
}

const blockIDsSQL = "SELECT id FROM snapshot_search WHERE zone = ? ORDER BY last_time DESC, last_id LIMIT ?"

// place is an entry's place: its block and its number there.
type place struct {
	block int64
	entry int
}

// search counts matches and keeps those of one page.
type search struct {
	word        []byte // empty: all match
	wanted      [256]bool
	owner       uint32 // 0: any resource
	offset, end int

	total int
	page  []place
}

func newSearch(f service.SnapshotFilter) *search {
	s := &search{
		word: []byte(fold(f.Search)), offset: f.Offset, end: f.Offset + f.Limit,
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
func (s *search) block(id int64, b *block) error {
	hit := func(i int) {
		if s.owner != 0 && b.owners[i] != s.owner {
			return
		}
		if s.total >= s.offset && s.total < s.end {
			s.page = append(s.page, place{block: id, entry: i})
		}
		s.total++
	}
	if len(s.word) > 0 {
		return match(b.flags, b.keys, s.word, &s.wanted, hit)
	}
	n := 0
	for _, f := range b.flags {
		if s.wanted[f] {
			n++
		}
	}
	if s.owner == 0 && s.total+n <= s.offset { // the page begins behind this block
		s.total += n
		return nil
	}
	for i, f := range b.flags {
		if s.wanted[f] {
			hit(i)
		}
	}
	return nil
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
