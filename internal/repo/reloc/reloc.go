// Package reloc is the table of a relocation record: where the records of one
// pack lie since they were copied out of it (../FORMAT.md §8).
//
// Invariants:
//   - a table names one old pack, and its entries ascend by old offset;
//   - the new place is in a pack of the same kind, so a chunk's number in its
//     frame stays.
//
// Plain values; any number of goroutines may read a Table.
package reloc

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"cairn/internal/repo/addr"
)

// ErrDamaged says that bytes are not a relocation table.
var ErrDamaged = errors.New("damaged relocation table")

// Bounds of one table, so that its record stays below 1 MiB. A pack with more
// records gets several tables.
const (
	MaxEntries = 64 << 10
	MaxTargets = 4 << 10

	fixedSize  = 4
	targetSize = 16
	entrySize  = 14
)

// Entry is one record's move.
type Entry struct {
	Old uint32   // offset in the old pack
	New addr.Loc // place of the same record; Sub is 0
}

// Table is the moves out of one pack.
type Table struct {
	Pack    addr.Pack
	Entries []Entry // ascending by Old
}

var le = binary.LittleEndian

// ID is what a record with a table of that pack carries as its id, so that a
// directory tells which packs a blob is about.
func ID(old addr.PackID) (id addr.ID) {
	copy(id[:], old[:])
	return id
}

// PackOf reads an id back; ok=false: it is no such id.
func PackOf(id addr.ID) (old addr.PackID, ok bool) {
	copy(old[:], id[:])
	return old, ID(old) == id
}

// Encode gives the table's plain bytes. The entries ascend.
func (t *Table) Encode() ([]byte, error) {
	var targets []addr.PackID
	index := make(map[addr.PackID]uint16)
	for _, e := range t.Entries {
		if _, ok := index[e.New.Pack.ID]; !ok {
			index[e.New.Pack.ID] = uint16(len(targets))
			targets = append(targets, e.New.Pack.ID)
		}
	}
	if len(t.Entries) == 0 || len(t.Entries) > MaxEntries || len(targets) > MaxTargets {
		return nil, fmt.Errorf("a relocation table of %d entries to %d packs cannot be stored", len(t.Entries), len(targets))
	}
	b := make([]byte, fixedSize, fixedSize+len(targets)*targetSize+len(t.Entries)*entrySize)
	b[0] = byte(t.Pack.Kind)
	le.PutUint16(b[2:], uint16(len(targets)))
	for _, id := range targets {
		b = append(b, id[:]...)
	}
	for _, e := range t.Entries {
		b = le.AppendUint32(b, e.Old)
		b = le.AppendUint16(b, index[e.New.Pack.ID])
		b = le.AppendUint32(b, e.New.Off)
		b = le.AppendUint32(b, e.New.Len)
	}
	return b, nil
}

// Decode reads the table of the old pack.
func Decode(old addr.PackID, b []byte) (*Table, error) {
	if len(b) < fixedSize || b[1] != 0 {
		return nil, fmt.Errorf("%w: its first bytes are wrong", ErrDamaged)
	}
	kind, n := addr.Kind(b[0]), int(le.Uint16(b[2:]))
	if kind != addr.Data && kind != addr.Node {
		return nil, fmt.Errorf("%w: records of a %s pack do not move", ErrDamaged, kind)
	}
	b = b[fixedSize:]
	if n < 1 || n > MaxTargets || len(b) < n*targetSize {
		return nil, fmt.Errorf("%w: its pack table is cut", ErrDamaged)
	}
	targets, rest := b[:n*targetSize], b[n*targetSize:]
	if len(rest) == 0 || len(rest)%entrySize != 0 || len(rest)/entrySize > MaxEntries {
		return nil, fmt.Errorf("%w: its length does not fit its entries", ErrDamaged)
	}
	t := &Table{Pack: addr.Pack{Kind: kind, ID: old}, Entries: make([]Entry, len(rest)/entrySize)}
	for i := range t.Entries {
		e := rest[i*entrySize:]
		at := int(le.Uint16(e[4:]))
		if at >= n {
			return nil, fmt.Errorf("%w: entry %d names pack %d of %d", ErrDamaged, i, at, n)
		}
		t.Entries[i] = Entry{Old: le.Uint32(e), New: addr.Loc{
			Pack: addr.Pack{Kind: kind, ID: addr.PackID(targets[at*targetSize:])}, Off: le.Uint32(e[6:]), Len: le.Uint32(e[10:])}}
		if i > 0 && t.Entries[i-1].Old >= t.Entries[i].Old {
			return nil, fmt.Errorf("%w: its entries do not ascend", ErrDamaged)
		}
	}
	return t, nil
}

// Find is the new place of the record at off.
func (t *Table) Find(off uint32) (addr.Loc, bool) {
	i, ok := slices.BinarySearchFunc(t.Entries, off, func(e Entry, off uint32) int { return cmp.Compare(e.Old, off) })
	if !ok {
		return addr.Loc{}, false
	}
	return t.Entries[i].New, true
}
