package repo

import (
	"bytes"
	"cmp"
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

// Want is a chunk and where in the caller's memory it goes.
type Want struct {
	Ref Ref
	At  int // byte of dst, a multiple of ChunkSize
}

// ComparePlaces orders chunks as they lie in the repository.
func ComparePlaces(a, b Loc) int {
	if c := bytes.Compare(a.Pack.ID[:], b.Pack.ID[:]); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.Off, b.Off), cmp.Compare(a.Sub, b.Sub))
}

const (
	// readMost bytes of a pack are read with one call, if so much is wanted.
	readMost = 1 << 20
	// readGap bytes that nobody wants are rather read than skipped.
	readGap = 64 << 10
)

// Fetch fills dst with chunks, each checked. wants are in the order of
// ComparePlaces: frames that lie close together are read with one call and
// decoded to where they go. errs.Corrupt: missing or wrong in every copy.
func (x *Reader) Fetch(ctx context.Context, wants []Want, dst []byte) error {
	for len(wants) > 0 {
		n := together(wants)
		if x.fetchRun(ctx, wants[:n], dst) != nil {
			// One by one: it knows all copies, and what to say.
			for _, w := range wants[:n] {
				chunk, err := x.Chunk(ctx, w.Ref)
				if err != nil {
					return err
				}
				copy(dst[w.At:w.At+ChunkSize], chunk)
			}
		}
		wants = wants[n:]
	}
	return nil
}

// together is how many of the first wants are read with one call.
func together(wants []Want) int {
	first := wants[0].Ref.Loc
	end := first.Off + first.Len
	for i, w := range wants[1:] {
		l := w.Ref.Loc
		if l.Pack != first.Pack || int64(l.Off) > int64(end)+readGap || int64(l.Off)+int64(l.Len) > int64(first.Off)+readMost {
			return i + 1
		}
		end = max(end, l.Off+l.Len)
	}
	return len(wants)
}

// fetchRun reads frames of one pack with one call, from the first copy.
func (x *Reader) fetchRun(ctx context.Context, wants []Want, dst []byte) error {
	first, last := wants[0].Ref.Loc, wants[len(wants)-1].Ref.Loc
	blob := first.Pack.Copies()[0]
	aead, err := x.r.cipher(ctx, first.Pack, blob)
	if err != nil {
		return err
	}
	size := int64(last.Off) + int64(last.Len) - int64(first.Off)
	if size < 1 || size > readMost+pack.MaxPlain {
		return fmt.Errorf("%w: records cannot lie in %d bytes", pack.ErrDamaged, size)
	}
	x.sealed = grow(x.sealed, int(size))
	if _, err := x.r.store.ReadAt(ctx, blob, x.sealed, int64(first.Off)); err != nil {
		return err
	}
	for len(wants) > 0 {
		l := wants[0].Ref.Loc
		n := 1
		for n < len(wants) && wants[n].Ref.Loc.Off == l.Off {
			n++
		}
		at := int64(l.Off) - int64(first.Off)
		if at+int64(l.Len) > size {
			return fmt.Errorf("%w: records lie in each other", pack.ErrDamaged)
		}
		rec, err := pack.Open(aead, l.Pack.ID, x.sealed[at:at+int64(l.Len)])
		if err != nil {
			return err
		}
		if err := x.fetchFrame(rec, wants[:n], dst); err != nil {
			return err
		}
		wants = wants[n:]
	}
	return nil
}

// fetchFrame decodes one frame, straight to where its chunks go if all of it
// is wanted side by side.
func (x *Reader) fetchFrame(rec pack.Record, wants []Want, dst []byte) error {
	if rec.Kind != pack.Frame {
		return fmt.Errorf("%w: record %d is no frame", pack.ErrDamaged, rec.Slot)
	}
	at := wants[0].At
	whole := len(wants) == len(rec.IDs)
	for i, w := range wants {
		if int(w.Ref.Loc.Sub) >= len(rec.IDs) || rec.IDs[w.Ref.Loc.Sub] != w.Ref.ID || int(w.Ref.Loc.Len) != rec.Len {
			return fmt.Errorf("%w: record %d holds something else", pack.ErrDamaged, rec.Slot)
		}
		whole = whole && int(w.Ref.Loc.Sub) == i && w.At == at+i*ChunkSize
	}
	if whole {
		if err := x.decodeTo(dst[at:at+rec.PlainLen], rec); err != nil {
			return err
		}
	} else {
		x.frame = Loc{} // its bytes are overwritten
		if err := x.decode(rec); err != nil {
			return err
		}
		for _, w := range wants {
			i := int(w.Ref.Loc.Sub)
			copy(dst[w.At:w.At+ChunkSize], x.plain[i*ChunkSize:(i+1)*ChunkSize])
		}
	}
	for _, w := range wants {
		if x.chunks.ID(dst[w.At:w.At+ChunkSize]) != w.Ref.ID {
			return fmt.Errorf("%w: a chunk of record %d does not match its id", pack.ErrDamaged, rec.Slot)
		}
	}
	return nil
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
