package engine

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"cairn/internal/errs"
	"cairn/internal/repo"
)

// badListed bounds the ranges that a salvage tells apart; 24 bytes each.
const badListed = 256 << 10

// BadRange is a part of a volume that a salvage could not read.
type BadRange struct {
	Offset int64
	Length int64
	// Damaged: its bytes are missing or wrong. Else the store did not give
	// them, so another try may.
	Damaged bool
}

// Salvaged is what a salvage could not read: ranges in ascending order that do
// not overlap.
type Salvaged struct {
	Bad []BadRange
	// Joined: there were so many that some were joined over good bytes.
	// Those are in the stream all the same.
	Joined bool
}

// BadBytes is the sum of the ranges.
func (s Salvaged) BadBytes() int64 {
	var n int64
	for _, b := range s.Bad {
		n += b.Length
	}
	return n
}

// Salvage streams what is left of a point.
type Salvage interface {
	SizeBytes() int64
	// WriteTo streams the volume's bytes. Zeros stand for what it could not
	// read, which it tells. An error midway leaves a cut stream.
	WriteTo(ctx context.Context, w io.Writer) (Salvaged, error)
	Close() error
}

// OpenSalvage opens a point of which parts may be damaged. errs.Corrupt:
// nothing can be had, since no copy of its manifest can be read.
func (e *Engine) OpenSalvage(ctx context.Context, ref PointRef) (Salvage, error) {
	m, err := e.salvageManifest(ctx, ref)
	if errs.Is(err, errs.Corrupt) {
		return nil, errs.Wrap(errs.Corrupt, err, "nothing of %s can be salvaged: its manifest, which names its chunks, is damaged in both copies", ref.Snapshot)
	}
	if err != nil {
		return nil, err
	}
	s := &salvage{bad: badList{limit: badListed}}
	s.image = image{size: m.SizeBytes, workers: e.workers, open: func() (content, func(), error) {
		x, err := e.r.NewReader()
		if err != nil {
			return nil, nil, err
		}
		return &salvager{point: point{e: e, m: m, x: x}, bad: &s.bad}, x.Close, nil
	}}
	return s, nil
}

// salvageManifest reads a point's manifest from what is left of its copies.
func (e *Engine) salvageManifest(ctx context.Context, ref PointRef) (*repo.Manifest, error) {
	pk, hash, err := ref.pack()
	if err != nil {
		return nil, err
	}
	m, err := e.r.SalvageManifest(ctx, pk, hash)
	if err != nil {
		return nil, fmt.Errorf("read the manifest of %s: %w", ref.Snapshot, err)
	}
	return m, nil
}

type salvage struct {
	image image
	bad   badList
}

func (s *salvage) SizeBytes() int64 { return s.image.size }

func (s *salvage) Close() error { return nil }

func (s *salvage) WriteTo(ctx context.Context, w io.Writer) (Salvaged, error) {
	s.bad.ranges, s.bad.joined = nil, false
	if err := s.image.raw(ctx, w); err != nil {
		return Salvaged{}, err
	}
	s.bad.normalize()
	return Salvaged{Bad: s.bad.ranges, Joined: s.bad.joined}, nil
}

// salvager reads a point like a point does, but goes on behind what it cannot
// read. One goroutine.
type salvager struct {
	point
	bad *badList
}

// ReadAt fails only when ctx ends.
func (s *salvager) ReadAt(ctx context.Context, buf []byte, off int64) error {
	for len(buf) > 0 {
		leaf := off / leafSize
		n := min(int64(len(buf)), (leaf+1)*leafSize-off)
		node, err := s.e.r.Leaf(ctx, s.m.Root, leaf)
		if err == nil {
			err = s.leaf(ctx, node, buf[:n], off)
		} else if err = s.lose(ctx, off, n, err); err == nil {
			clear(buf[:n])
		}
		if err != nil {
			return err
		}
		buf, off = buf[n:], off+n
	}
	return nil
}

// leaf reads buf, which lies at off in the volume and within one leaf.
func (s *salvager) leaf(ctx context.Context, node *repo.Node, buf []byte, off int64) error {
	for len(buf) > 0 {
		n := min(int64(len(buf)), chunkSize-off%chunkSize)
		err := s.readLeaf(ctx, node, buf[:n], off%leafSize)
		if err != nil && !s.elsewhere(ctx, node.Slots[off%leafSize/chunkSize].ID, buf[:n], off%chunkSize) {
			if err := s.lose(ctx, off, n, err); err != nil {
				return err
			}
			clear(buf[:n])
		}
		buf, off = buf[n:], off+n
	}
	return nil
}

// elsewhere reads a chunk that is damaged where the tree has it from another
// place that the dedup index knows. Its id proves it.
func (s *salvager) elsewhere(ctx context.Context, id repo.ID, buf []byte, at int64) bool {
	for _, l := range s.e.r.IndexPlaces(id) {
		if chunk, err := s.x.Chunk(ctx, repo.Ref{ID: id, Loc: l}); err == nil {
			copy(buf, chunk[at:])
			return true
		}
	}
	return false
}

// lose notes that bytes could not be read, unless it was because ctx ended.
func (s *salvager) lose(ctx context.Context, off, length int64, why error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.bad.add(BadRange{Offset: off, Length: length, Damaged: repo.IsDamage(why)})
	return nil
}

// badList collects ranges in any order, in bounded memory.
type badList struct {
	limit int

	mu     sync.Mutex // guards what follows; a leaf of the lock order
	ranges []BadRange
	joined bool
}

func (b *badList) add(r BadRange) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ranges) >= b.limit {
		b.normalize()
		if len(b.ranges) > b.limit/2 {
			b.halve()
		}
	}
	b.ranges = append(b.ranges, r)
}

// normalize sorts the ranges and joins those that touch and are alike.
func (b *badList) normalize() {
	slices.SortFunc(b.ranges, func(x, y BadRange) int { return cmp.Compare(x.Offset, y.Offset) })
	out := b.ranges[:0]
	for _, r := range b.ranges {
		if n := len(out); n > 0 && r.Offset <= out[n-1].Offset+out[n-1].Length {
			last := &out[n-1]
			// Ranges overlap only after halve.
			if r.Damaged == last.Damaged || r.Offset < last.Offset+last.Length {
				last.Length = max(last.Length, r.Offset+r.Length-last.Offset)
				last.Damaged = last.Damaged || r.Damaged
				continue
			}
		}
		out = append(out, r)
	}
	b.ranges = out
}

// halve joins each two neighbours with what lies between them.
func (b *badList) halve() {
	b.joined = true
	out := b.ranges[:0]
	for i := 0; i < len(b.ranges); i += 2 {
		r := b.ranges[i]
		if i+1 < len(b.ranges) {
			next := b.ranges[i+1]
			r.Length = next.Offset + next.Length - r.Offset
			r.Damaged = r.Damaged || next.Damaged
		}
		out = append(out, r)
	}
	b.ranges = out
}
