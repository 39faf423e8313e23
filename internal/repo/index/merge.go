package index

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math/bits"
	"os"
	"slices"
)

const (
	readBuffer = 128 << 10
	mergeAt    = 4    // runs of one tier
	tierBase   = 4096 // entries; smaller runs are tier 0
	ctxEvery   = 1 << 14
)

// Add makes entries part of the index, durably. It does not keep the slice.
// An error after they are durable, of a merge, leaves them in place.
func (x *Index) Add(ctx context.Context, entries []Entry) error {
	if len(entries) == 0 {
		return ctx.Err()
	}
	x.write.Lock()
	defer x.write.Unlock()
	if err := x.alive(ctx); err != nil {
		return errContext("add to the dedup index", err)
	}
	temp, err := writeSorted(ctx, x.dir, entries, x.sync)
	if err != nil {
		return errContext("write an index run", err)
	}
	r, err := x.publish(temp)
	if err != nil {
		return errContext("publish an index run", err)
	}
	return errContext("merge index runs", errors.Join(x.replace(nil, r), x.compact(ctx)))
}

// writeSorted writes entries, which may be in any order, to a temp run.
func writeSorted(ctx context.Context, dir string, entries []Entry, sync func(*os.File) error) (string, error) {
	// Sorting numbers leaves the caller's slice alone.
	order := make([]uint32, len(entries))
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(a, b uint32) int { return compare(&entries[a], &entries[b]) })
	w, err := newWriter(dir, int64(len(entries)))
	if err != nil {
		return "", err
	}
	for n, i := range order {
		if n%ctxEvery == 0 {
			err = ctx.Err()
		}
		if err == nil {
			err = w.add(&entries[i])
		}
		if err != nil {
			return "", errors.Join(err, w.abort())
		}
	}
	return w.finish(sync)
}

// RemovePacks takes out every entry that names one of the packs, durably.
// Running it twice is harmless; cut off halfway, some entries are still there.
func (x *Index) RemovePacks(ctx context.Context, packs [][16]byte) error {
	if len(packs) == 0 {
		return ctx.Err()
	}
	gone := make(map[[16]byte]struct{}, len(packs))
	for _, p := range packs {
		gone[p] = struct{}{}
	}
	keep := func(e *Entry) bool {
		_, out := gone[e.Pack]
		return !out
	}
	x.whole.Lock()
	defer x.whole.Unlock()
	x.write.Lock()
	defer x.write.Unlock()
	if err := x.alive(ctx); err != nil {
		return errContext("remove packs from the dedup index", err)
	}
	for _, r := range slices.Clone(x.runs) {
		all, err := x.keepsAll(ctx, r, keep)
		if err == nil && !all {
			err = x.merge(ctx, []*run{r}, keep)
		}
		if err != nil {
			return errContext("remove packs from an index run", err)
		}
	}
	return nil
}

// keepsAll reports whether a run is intact and keep holds for all its entries.
func (x *Index) keepsAll(ctx context.Context, r *run, keep func(*Entry) bool) (bool, error) {
	c := x.cursor(r)
	for n := 0; c.next(); n++ {
		if n%ctxEvery == 0 && ctx.Err() != nil {
			return false, ctx.Err()
		}
		if !keep(&c.e) {
			return false, nil
		}
	}
	return !c.bad, nil
}

// compact merges runs until no tier has too many. The caller holds write.
func (x *Index) compact(ctx context.Context) error {
	for {
		pick := x.pick()
		if pick == nil {
			return nil
		}
		if err := x.merge(ctx, pick, nil); err != nil {
			return err
		}
	}
}

// tier grows by one when a run grows fourfold.
func tier(count int64) int { return (bits.Len64(uint64(count)/tierBase) + 1) / 2 }

// pick chooses the runs of the lowest overfull tier, and at once those of the
// tiers above that the merge would overfill in turn.
func (x *Index) pick() []*run {
	tiers := make(map[int][]*run)
	top := 0
	for _, r := range x.runs {
		if r.seq > x.floor {
			t := tier(r.count)
			tiers[t] = append(tiers[t], r)
			top = max(top, t)
		}
	}
	var pick []*run
	var total int64
	for t := 0; t <= top; t++ {
		extra := 0
		if len(pick) > 0 && tier(total) == t {
			extra = 1
		}
		if len(tiers[t])+extra < mergeAt {
			continue
		}
		for _, r := range tiers[t] {
			pick = append(pick, r)
			total += r.count
		}
	}
	return pick
}

// merge puts one run in the place of several, without entries that keep
// refuses (nil keeps all), damaged ones, and doubles.
func (x *Index) merge(ctx context.Context, old []*run, keep func(*Entry) bool) error {
	temp, err := x.mergeFile(ctx, old, keep, x.sync)
	if err != nil {
		return err
	}
	if temp == "" {
		return x.replace(old)
	}
	r, err := x.publish(temp)
	if err != nil {
		return err
	}
	return x.replace(old, r)
}

// mergeFile merges runs into a temp file; "" if no entry was left.
func (x *Index) mergeFile(ctx context.Context, old []*run, keep func(*Entry) bool, sync func(*os.File) error) (string, error) {
	var total int64
	h := make(cursors, 0, len(old))
	for _, r := range old {
		total += r.count
		if c := x.cursor(r); c.next() {
			h = append(h, c)
		}
	}
	for i := len(h)/2 - 1; i >= 0; i-- {
		h.down(i)
	}
	w, err := newWriter(x.dir, total)
	if err != nil {
		return "", err
	}
	for n := 0; len(h) > 0; n++ {
		if n%ctxEvery == 0 {
			err = ctx.Err()
		}
		if err == nil && (keep == nil || keep(&h[0].e)) {
			err = w.add(&h[0].e)
		}
		if err != nil {
			return "", errors.Join(err, w.abort())
		}
		h.advance()
	}
	return w.finish(sync)
}

// cursors is a heap of cursors, the least entry first.
type cursors []*cursor

func (h cursors) down(i int) {
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(h); c++ {
			if compare(&h[c].e, &h[least].e) < 0 {
				least = c
			}
		}
		if least == i {
			return
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

// advance moves the first cursor on.
func (h *cursors) advance() {
	if !(*h)[0].next() {
		last := len(*h) - 1
		(*h)[0] = (*h)[last]
		*h = (*h)[:last]
	}
	h.down(0)
}

// cursor reads a run's entries from front to back. It reads the file, not the
// mapping, so that the kernel reads ahead and a bad sector is an error.
type cursor struct {
	x     *Index
	r     *run
	in    *bufio.Reader
	e     Entry
	begun bool
	bad   bool // something was passed over
	raw   [entrySize]byte
}

func (x *Index) cursor(r *run) *cursor {
	return &cursor{x: x, r: r, in: section(r, entriesOffset(r.blocks), r.count*entrySize)}
}

func section(r *run, off, length int64) *bufio.Reader {
	return bufio.NewReaderSize(io.NewSectionReader(r.f, off, length), int(min(length, readBuffer)))
}

// next goes to the next intact entry. A part that cannot be read ends the run
// early; an entry that is out of order cannot be merged and is passed over.
func (c *cursor) next() bool {
	for {
		if _, err := io.ReadFull(c.in, c.raw[:]); errors.Is(err, io.EOF) {
			return false
		} else if err != nil {
			c.damage("it cannot be read to its end")
			return false
		}
		var e Entry
		if !decodeEntry(c.raw[:], &e) {
			c.damage("an entry fails its checksum")
			continue
		}
		if c.begun && compare(&e, &c.e) < 0 {
			c.damage("an entry is out of order")
			continue
		}
		c.e, c.begun = e, true
		return true
	}
}

func (c *cursor) damage(what string) {
	c.bad = true
	c.x.noteOnce(c.r, what)
}

// filterReader reads a run's filter along with a cursor.
type filterReader struct {
	in     *bufio.Reader
	blocks uint64
	read   uint64 // blocks so far
	block  [blockSize]byte
}

func newFilterReader(r *run) *filterReader {
	return &filterReader{in: section(r, headSize, int64(r.blocks)*blockSize), blocks: r.blocks}
}

// has asks for ascending ids.
func (f *filterReader) has(id *ID) bool {
	for n := blockOf(id, f.blocks); f.read <= n; f.read++ {
		if _, err := io.ReadFull(f.in, f.block[:]); err != nil {
			return false
		}
	}
	return hasBits(f.block[:], id)
}
