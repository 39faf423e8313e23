package metadb

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/internal/chain"
)

// A block holds some hundred snapshots of one zone that are neighbours
// in list order, column by column:
//
//	flags  one byte each: bit 0 full, the rest the status
//	keys   search keys, each followed by endMark
//	refs   time (8 bytes, little endian), then id and resource, each after
//	       its length as a uvarint
//
// A list reads flags, with a search word keys too, and refs only of the blocks
// it answers from, or when a search asks for a resource too.

// limits are the sizes that decide how searches run; tests make them small.
type limits struct {
	// A block is split when it holds more. Larger blocks search faster and
	// cost more to rewrite when a point changes its status: docs/adr/0002.
	blockEntries int
	blockBytes   int // of keys: names may be long
	// scanRows is how long a list may be for a search to look at its rows one
	// by one instead of at the blocks.
	scanRows int
	// walkRows is how far into a resource's list an index is walked; pages
	// behind it come from the blocks.
	walkRows int
}

func defaultLimits() limits {
	return limits{blockEntries: 256, blockBytes: 64 << 10, scanRows: 2000, walkRows: 20_000}
}

// statusFlags are stored; never renumber them.
var statusFlags = map[chain.Status]byte{
	chain.Pending:   0 << 1,
	chain.Available: 1 << 1,
	chain.Suspended: 2 << 1,
	chain.Deleted:   3 << 1,
	chain.Ceased:    4 << 1,
}

// flag is the byte that stands for a status and a type.
func flag(s chain.Status, full bool) byte {
	if full {
		return statusFlags[s] | 1
	}
	return statusFlags[s]
}

// entry is one snapshot in a block.
type entry struct {
	time     int64
	id       string
	resource string
	flag     byte
	key      string
}

func newEntry(l listed) entry {
	return entry{
		time: l.CreateTime, id: l.ID, resource: l.ResourceID,
		flag: flag(l.Status, l.IsFull), key: l.SearchKey,
	}
}

// listOrder compares places in a list: newest first, then by id.
func listOrder(aTime int64, aID string, bTime int64, bID string) int {
	return cmp.Or(cmp.Compare(bTime, aTime), strings.Compare(aID, bID))
}

// find returns where (time, id) is or belongs in es.
func find(es []entry, time int64, id string) (int, bool) {
	return slices.BinarySearchFunc(es, id, func(e entry, id string) int {
		return listOrder(e.time, e.id, time, id)
	})
}

// split divides es, in which the at-th is new, into blocks that fit. A new point usually comes in front
// of all others and then starts a block of its own, so that blocks stay full.
func (l limits) split(es []entry, at int) [][]entry {
	size := 0
	for _, e := range es {
		size += len(e.key) + 1
	}
	if len(es) < 2 || (len(es) <= l.blockEntries && size <= l.blockBytes) {
		return [][]entry{es}
	}
	half := len(es) / 2
	switch at {
	case 0:
		half = 1
	case len(es) - 1:
		half = at
	}
	return [][]entry{es[:half], es[half:]}
}

func encodeEntries(es []entry) (flags, keys, refs []byte) {
	for _, e := range es {
		flags = append(flags, e.flag)
		keys = append(append(keys, e.key...), endMark)
		refs = binary.LittleEndian.AppendUint64(refs, uint64(e.time))
		for _, s := range [...]string{e.id, e.resource} {
			refs = append(binary.AppendUvarint(refs, uint64(len(s))), s...)
		}
	}
	return flags, keys, refs
}

var errBlock = errors.New("a search block cannot be read")

// ref is an entry's cold part. Its slices point into the block.
type ref struct {
	time         int64
	id, resource []byte
}

// eachRef calls fn for each of n refs.
func eachRef(refs []byte, n int, fn func(i int, r ref)) error {
	for i := range n {
		var r ref
		if len(refs) < 8 {
			return fmt.Errorf("refs end early: %w", errBlock)
		}
		r.time = int64(binary.LittleEndian.Uint64(refs))
		refs = refs[8:]
		for _, s := range [...]*[]byte{&r.id, &r.resource} {
			size, w := binary.Uvarint(refs)
			if w <= 0 || size > uint64(len(refs)-w) {
				return fmt.Errorf("refs end early: %w", errBlock)
			}
			*s = refs[w : w+int(size)]
			refs = refs[w+int(size):]
		}
		fn(i, r)
	}
	if len(refs) > 0 {
		return fmt.Errorf("refs are too long: %w", errBlock)
	}
	return nil
}

func decodeEntries(flags, keys, refs []byte) ([]entry, error) {
	es := make([]entry, len(flags))
	err := eachRef(refs, len(flags), func(i int, r ref) {
		es[i] = entry{time: r.time, id: string(r.id), resource: string(r.resource)}
	})
	if err != nil {
		return nil, err
	}
	for i := range es {
		key, rest, ok := bytes.Cut(keys, []byte{endMark})
		if !ok {
			return nil, fmt.Errorf("keys end early: %w", errBlock)
		}
		es[i].flag, es[i].key = flags[i], string(key)
		keys = rest
	}
	if len(keys) > 0 {
		return nil, fmt.Errorf("keys are too long: %w", errBlock)
	}
	return es, nil
}

// match calls hit with the number of each entry whose key holds word and
// whose flag is wanted.
func match(flags, keys, word []byte, wanted *[256]bool, hit func(i int)) error {
	end := []byte{endMark}
	for i := 0; len(keys) > 0; {
		at := bytes.Index(keys, word)
		if at < 0 {
			return nil
		}
		i += bytes.Count(keys[:at], end)
		if i >= len(flags) {
			return fmt.Errorf("more keys than flags: %w", errBlock)
		}
		if wanted[flags[i]] {
			hit(i)
		}
		stop := bytes.IndexByte(keys[at:], endMark)
		if stop < 0 {
			return fmt.Errorf("keys end early: %w", errBlock)
		}
		keys = keys[at+stop+1:]
		i++
	}
	return nil
}
