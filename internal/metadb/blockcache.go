package metadb

import (
	"fmt"
	"slices"
	"sync"

	"github.com/uptrace/bun"
)

// block is what lists read of a stored block. It never changes: a changed
// block is stored under a new id.
type block struct {
	flags  []byte
	keys   []byte   // nil: not read yet
	owners []uint32 // each entry's resource, as numbered by the cache; nil: not read yet
}

// parts are what a list needs of its blocks besides the flags.
type parts struct{ keys, owners bool }

func (b *block) has(p parts) bool {
	return b != nil && (b.keys != nil || !p.keys) && (b.owners != nil || !p.owners)
}

func (b *block) size() int { return len(b.flags) + len(b.keys) + 4*len(b.owners) + 200 }

// blockCache keeps blocks between searches: reading them again would be most
// of a search. Only Views fill it, from committed rows, because an id given
// out in a transaction that was rolled back is given out again.
type blockCache struct {
	mu      sync.Mutex // guards all below
	zones   map[string]map[int64]*block
	numbers map[string]uint32 // of resources
	size    int
	limit   int // bytes; what does not fit is read each time
}

func newBlockCache(limit int) *blockCache {
	return &blockCache{zones: make(map[string]map[int64]*block), numbers: make(map[string]uint32), limit: limit}
}

// number gives a resource its number, the same as long as the cache lives. 0
// is never given. The caller holds mu.
func (c *blockCache) number(resource []byte) uint32 {
	n, ok := c.numbers[string(resource)]
	if !ok {
		n = uint32(len(c.numbers) + 1)
		c.numbers[string(resource)] = n
	}
	return n
}

// owner is the number of the resource that a filter asks for, 0 for any.
func (c *blockCache) owner(resource string) uint32 {
	if resource == "" {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.number([]byte(resource))
}

// get returns the blocks that are there with all parts wanted; others are nil.
func (c *blockCache) get(zone string, ids []int64, p parts) []*block {
	c.mu.Lock()
	defer c.mu.Unlock()
	have := c.zones[zone]
	out := make([]*block, len(ids))
	for i, id := range ids {
		if b := have[id]; b.has(p) {
			out[i] = b
		}
	}
	return out
}

// put keeps a block if it fits.
func (c *blockCache) put(zone string, id int64, b *block) {
	c.mu.Lock()
	defer c.mu.Unlock()
	have := c.zones[zone]
	if have == nil {
		have = make(map[int64]*block)
		c.zones[zone] = have
	}
	grow := b.size()
	if old := have[id]; old != nil {
		grow -= old.size()
	}
	if c.size+grow > c.limit {
		return
	}
	have[id] = b
	c.size += grow
}

// slack is how many blocks that exist no more may stay until they are swept.
const slack = 256

// sweep drops blocks that are not among ids, all of the zone's.
func (c *blockCache) sweep(zone string, ids []int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	have := c.zones[zone]
	if len(have) <= len(ids)+slack {
		return
	}
	kept := make(map[int64]*block, len(ids))
	for _, id := range ids {
		if b := have[id]; b != nil {
			kept[id] = b
			delete(have, id)
		}
	}
	for _, b := range have {
		c.size -= b.size()
	}
	c.zones[zone] = kept
}

// blocks returns blocks of a zone with the parts wanted, from the cache and,
// where it lacks them, from the database.
func (t *tx) blocks(zone string, ids []int64, p parts) ([]*block, error) {
	out := t.cache.get(zone, ids, p)
	var missing []int64
	at := make(map[int64]int)
	for i, b := range out {
		if b == nil {
			missing = append(missing, ids[i])
			at[ids[i]] = i
		}
	}
	if len(missing) == 0 {
		return out, nil
	}
	columns := []string{"id", "flags"}
	if p.keys {
		columns = append(columns, "keys")
	}
	if p.owners {
		columns = append(columns, "refs")
	}
	var rows []blockRow
	err := t.db.NewSelect().Model(&rows).Column(columns...).Where("id IN (?)", bun.List(missing)).Scan(t.ctx)
	if err != nil {
		return nil, fmt.Errorf("read search blocks: %w", explain(err))
	}
	for _, r := range rows {
		b := &block{flags: r.Flags, keys: r.Keys}
		if p.owners {
			if b.owners, err = t.cache.owners(r); err != nil {
				return nil, blockDamaged(err)
			}
		}
		out[at[r.ID]] = b
		if !t.writes {
			t.cache.put(zone, r.ID, b)
		}
	}
	if slices.Contains(out, nil) {
		return nil, blockDamaged(fmt.Errorf("a search block is listed but not there: %w", errBlock))
	}
	return out, nil
}

// owners numbers the resources of a block.
func (c *blockCache) owners(r blockRow) ([]uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]uint32, 0, len(r.Flags))
	err := eachRef(r.Refs, len(r.Flags), func(_ int, r ref) {
		out = append(out, c.number(r.resource))
	})
	return out, err
}
