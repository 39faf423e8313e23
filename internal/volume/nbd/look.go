package nbdvolume

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sync/errgroup"

	"cairn/internal/extent"
	"cairn/internal/nbd"
)

const (
	// maxEdges bounds what is remembered of where data or marks lie: 4 MiB. Of
	// a volume in more shreds only a hash is kept.
	maxEdges = 1 << 19
	// maxBitmaps of one export are looked at.
	maxBitmaps = 16
	// maxWitnesses of a bitmap are remembered: marks that must not go.
	maxWitnesses = 2048
)

// look is what an export looked like at one time, as far as a change since
// would show in it.
type look struct {
	size    int64
	data    layout
	marks   map[string]marks // by context
	samples []sample
}

// layout is where something lies: data, or the marks of a bitmap.
type layout struct {
	edges []int64 // beginning and end of each range; only if whole
	whole bool
	sum   [sha256.Size]byte
	bytes int64
}

// marks is what a dirty bitmap holds.
type marks struct {
	layout
	witnesses []extent.Range // some of the marks, spread over the volume
	lost      int            // of the witnesses of a record: marks that are gone
}

// summer hashes ranges.
type summer struct {
	h     hash.Hash
	bytes int64
}

func newSummer() *summer { return &summer{h: sha256.New()} }

func (s *summer) add(r extent.Range) {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(r.Off))
	binary.LittleEndian.PutUint64(b[8:], uint64(r.Len))
	s.h.Write(b[:])
	s.bytes += r.Len
}

func (s *summer) sum() (out [sha256.Size]byte) {
	s.h.Sum(out[:0])
	return out
}

// allocation is how the connection tells where data lies.
func (k *conn) allocation(size, window int64) *nbd.StatusMap {
	if !slices.Contains(k.offered(), baseAllocation) {
		return nbd.NewStatusMap(size, window, nil)
	}
	return k.statusMap(baseAllocation, size, window)
}

// dirtyBitmaps are the contexts that tell of changes.
func (k *conn) dirtyBitmaps() []string {
	names := slices.DeleteFunc(k.offered(), func(name string) bool { return !strings.HasPrefix(name, bitmaps) })
	return names[:min(len(names), maxBitmaps)]
}

// lookAt looks at the export; samples are chosen at random. Bitmaps that a
// record has are looked at for marks that were lost since.
func (k *conn) lookAt(ctx context.Context, since []bitmapRecord) (*look, error) {
	l := &look{size: k.size(), marks: map[string]marks{}}
	choice := newSampler(l.size)
	var err error
	if l.data, err = layoutOf(ctx, k.allocation(l.size, sourceWindow), nbd.HoldsData, maxEdges, choice.add); err != nil {
		return nil, err
	}
	for _, name := range k.dirtyBitmaps() {
		var base *bitmapRecord
		if i := slices.IndexFunc(since, func(b bitmapRecord) bool { return b.Context == name }); i >= 0 {
			base = &since[i]
		}
		m, err := k.marksOf(ctx, name, l.size, base)
		if err != nil {
			return nil, err
		}
		l.marks[name] = m
	}
	if l.samples, err = k.take(ctx, choice.blocks, l.size); err != nil {
		return nil, err
	}
	return l, nil
}

// layoutOf goes along all that matches; of more than most edges only the hash
// is kept. also, if not nil, is called for each range.
func layoutOf(ctx context.Context, p *nbd.StatusMap, match func(uint32) bool, most int, also func(extent.Range)) (layout, error) {
	l, s := layout{whole: true}, newSummer()
	err := p.Each(ctx, match, func(r extent.Range) {
		s.add(r)
		if also != nil {
			also(r)
		}
		if l.whole = l.whole && len(l.edges) < most; l.whole {
			l.edges = append(l.edges, r.Off, r.End())
		} else {
			l.edges = nil
		}
	})
	l.sum, l.bytes = s.sum(), s.bytes
	return l, err
}

// next returns the first range at or after off, or io.EOF. The layout is whole.
func (l *layout) next(off int64) (extent.Range, error) {
	i := sort.Search(len(l.edges)/2, func(i int) bool { return l.edges[2*i+1] > off }) * 2
	if i == len(l.edges) {
		return extent.Range{}, io.EOF
	}
	start := max(off, l.edges[i])
	return extent.Range{Off: start, Len: l.edges[i+1] - start}, nil
}

// bitmap is how the connection tells what a dirty bitmap holds.
func (k *conn) bitmap(name string, size int64) *nbd.StatusMap {
	return k.statusMap(name, size, sourceWindow)
}

// marksOf reads a bitmap. Where its marks are is only kept if base, what a
// record has of it, is not nil.
func (k *conn) marksOf(ctx context.Context, name string, size int64, base *bitmapRecord) (marks, error) {
	keep, still, most := thinner{}, witnesses{}, 0
	if base != nil {
		still.want, most = base.Witnesses, maxEdges
	}
	l, err := layoutOf(ctx, k.bitmap(name, size), nbd.IsDirty, most, func(r extent.Range) {
		keep.add(r)
		still.seen(r)
	})
	return marks{l, keep.kept, still.missing()}, err
}

// thinner keeps some of very many ranges, spread over all.
type thinner struct {
	kept        []extent.Range
	every, left int
}

func (t *thinner) add(r extent.Range) {
	if t.left > 0 {
		t.left--
		return
	}
	if len(t.kept) == maxWitnesses {
		half := t.kept[:0]
		for i := 0; i < maxWitnesses; i += 2 {
			half = append(half, t.kept[i])
		}
		t.kept, t.every = half, 2*t.every+1
	}
	t.kept = append(t.kept, r)
	t.left = t.every
}

// witnesses goes along ranges that must be marked still.
type witnesses struct {
	want []extent.Range // in order
	at   int
	lost int
}

// seen takes the marks in order.
func (w *witnesses) seen(r extent.Range) {
	for ; w.at < len(w.want) && w.want[w.at].End() <= r.End(); w.at++ {
		if w.want[w.at].Off < r.Off {
			w.lost++
		}
	}
}

// missing is how many had no mark, after the last one was seen.
func (w *witnesses) missing() int { return w.lost + len(w.want) - w.at }

// sample is a block and what it held.
type sample struct {
	at  extent.Range
	sum [sha256.Size]byte
}

const samplesAtOnce = 16

// take reads blocks.
func (k *conn) take(ctx context.Context, blocks []int64, size int64) ([]sample, error) {
	slices.Sort(blocks)
	blocks = slices.Compact(blocks)
	out := make([]sample, len(blocks))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(samplesAtOnce)
	for i, b := range blocks {
		g.Go(func() error {
			r := extent.Range{Off: b * sampleBlock, Len: min(sampleBlock, size-b*sampleBlock)}
			buf := make([]byte, r.Len)
			err := k.read(ctx, buf, r.Off)
			out[i] = sample{r, sha256.Sum256(buf)}
			return err
		})
	}
	return out, g.Wait()
}

// differs reports whether anything that l saw is not so any more on the
// connection, and what.
func (l *look) differs(ctx context.Context, k *conn) (string, error) {
	if now := k.size(); now != l.size {
		return "changed its size while it was read", nil
	}
	names := k.dirtyBitmaps()
	if len(names) != len(l.marks) {
		return "got or lost a dirty bitmap while it was read", nil
	}
	for _, name := range names {
		was, ok := l.marks[name]
		if !ok {
			return "got another dirty bitmap while it was read", nil
		}
		now, err := k.marksOf(ctx, name, l.size, nil)
		if err != nil {
			return "", err
		}
		if now.sum != was.sum {
			return "was written to while it was read, as a dirty bitmap of its NBD server tells", nil
		}
	}
	blocks := make([]int64, len(l.samples))
	for i, s := range l.samples {
		blocks[i] = s.at.Off / sampleBlock
	}
	now, err := k.take(ctx, blocks, l.size)
	if err != nil {
		return "", err
	}
	if !slices.Equal(now, l.samples) {
		return "was written to while it was read: blocks that were looked at before and after differ", nil
	}
	moved, err := l.moved(ctx, k)
	if moved {
		return "was written to while it was read: where it has data is not the same before and after", err
	}
	return "", err
}

// moved reports whether data lies where zeros were, or the other way round.
// What only became allocated and still holds zeros does not count: to read a
// file may be enough for that.
func (l *look) moved(ctx context.Context, k *conn) (bool, error) {
	now, err := layoutOf(ctx, k.allocation(l.size, sourceWindow), nbd.HoldsData, maxEdges, nil)
	if err != nil || now.sum == l.data.sum {
		return false, err
	}
	if !now.whole || !l.data.whole {
		return true, nil
	}
	fresh, gone := now.without(&l.data), l.data.without(&now)
	if len(gone) > 0 {
		return true, nil
	}
	buf := make([]byte, 1<<20)
	for _, r := range fresh {
		for off := r.Off; off < r.End(); {
			part := buf[:min(int64(len(buf)), r.End()-off)]
			if err := k.read(ctx, part, off); err != nil {
				return false, err
			}
			if slices.ContainsFunc(part, func(b byte) bool { return b != 0 }) {
				return true, nil
			}
			off += int64(len(part))
		}
	}
	return false, nil
}

// without lists the data of l that is none of other's; both are whole.
func (l *layout) without(other *layout) []extent.Range {
	var out []extent.Range
	for i := 0; i < len(l.edges); i += 2 {
		for off, end := l.edges[i], l.edges[i+1]; off < end; {
			r, err := other.next(off)
			if errors.Is(err, io.EOF) {
				r.Off = end
			}
			if upTo := min(r.Off, end); upTo > off {
				out = append(out, extent.Range{Off: off, Len: upTo - off})
				off = upTo
				continue
			}
			off = r.End()
		}
	}
	return out
}
