package repo

import (
	"bytes"
	"context"
	"fmt"

	"cairn/internal/repo/codec"
	"cairn/internal/repo/pack"
	"cairn/internal/repo/tree"
)

// The words for those who build trees.
type (
	// Slot is one chunk of a leaf that is being built.
	Slot = tree.Slot
	// Slots are a leaf's.
	Slots = tree.Slots
)

// FrameChunks is how many neighbouring new chunks are compressed together:
// four cost 5 % less space than one and read back in a fifth of a millisecond.
const FrameChunks = 4

// Frames compresses chunks and proves the result before it is stored. One
// goroutine.
type Frames struct {
	codec codec.Codec
	room  []byte // encoded bytes of frames
	check []byte
	made  []*frame
}

// NewFrames makes a frame maker. Close it.
func NewFrames() (*Frames, error) {
	c, err := codec.New()
	if err != nil {
		return nil, err
	}
	return &Frames{codec: c, room: make([]byte, 0, Fanout*ChunkSize)}, nil
}

// Close gives memory back.
func (f *Frames) Close() { f.codec.Close() }

// Add makes a frame of plain, whose chunks have the ids: it compresses them,
// decodes the result again and compares. plain stays untouched until Store.
// The Place is filled by Store or, for a small point, at Finish.
func (f *Frames) Add(ids []ID, plain []byte) (*tree.Place, error) {
	enc, encoded, err := f.encode(plain)
	if err != nil {
		return nil, err
	}
	if enc == pack.Zstd {
		// It lies there: room has a whole window's size, and frames that do
		// not shrink take none of it.
		f.room = f.room[:len(f.room)+len(encoded)]
	}
	made := &frame{place: &tree.Place{}, ids: ids, encoding: enc, encoded: encoded}
	f.made = append(f.made, made)
	return made.place, nil
}

// encode compresses plain and proves the result, which lies in f's free room
// or is plain itself.
func (f *Frames) encode(plain []byte) (pack.Encoding, []byte, error) {
	enc, err := f.codec.Encode(f.room[len(f.room):], plain)
	if err != nil {
		return 0, nil, err
	}
	// Below 3 % the decoder's time is worth more than the space.
	if len(enc) > len(plain)-len(plain)/32 {
		return pack.Stored, plain, nil
	}
	f.check = grow(f.check, len(plain))
	if err := f.codec.Decode(f.check, enc); err != nil || !bytes.Equal(f.check, plain) {
		return 0, nil, fmt.Errorf("the compressor's output does not decode to its input (%d bytes); the memory or processor of this machine may be faulty: %w", len(plain), codec.ErrCorrupt)
	}
	return pack.Zstd, enc, nil
}

// Store stores the frames made since the last Store with w, next to each
// other, so that whoever reads one of them finds its neighbours there.
func (f *Frames) Store(ctx context.Context, w *PointWriter) error {
	err := w.addFrames(ctx, f.made)
	clear(f.made)
	f.made, f.room = f.made[:0], f.room[:0]
	return err
}

// Run returns the contiguous bytes of chunks that lie one after the other in
// one frame, each checked. The slice is the Reader's, valid until its next call.
func (x *Reader) Run(ctx context.Context, refs []Ref) ([]byte, error) {
	first, err := x.Chunk(ctx, refs[0])
	if err != nil {
		return nil, err
	}
	for _, ref := range refs[1:] {
		if _, err := x.take(ref); err != nil {
			return nil, err
		}
	}
	start := int(refs[0].Loc.Sub) * ChunkSize
	return x.plain[start : start+len(first)*len(refs)], nil
}

// Follows reports whether b is the chunk right behind a in a's frame.
func Follows(a, b Ref) bool {
	return a.Loc.Pack == b.Loc.Pack && a.Loc.Off == b.Loc.Off && a.Loc.Len == b.Loc.Len && a.Loc.Sub+1 == b.Loc.Sub
}

// Leaf loads the chunks idx*Fanout on of a tree; nil if all are zeros.
func (r *Repo) Leaf(ctx context.Context, root Root, idx int64) (*Node, error) {
	return tree.LeafAt(ctx, r, root, idx)
}

// Walk visits a tree; see tree.Walk.
func (r *Repo) Walk(ctx context.Context, root Root, first, last int64,
	enter func(ref Ref, level uint8, idx int64) (bool, error), leaf func(idx int64, n *Node) error) error {
	return tree.Walk(ctx, r, root, first, last, enter, leaf)
}

// Span is the number of chunks that a node of the level covers.
func Span(level uint8) int64 { return tree.Span(level) }
