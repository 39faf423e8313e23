package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/repo"
	"cairn/internal/volume"
)

// tree is a point that is read on demand. It takes nodes from the repository's
// cache and chunks, unless whole frames are wanted, from its own.
type tree struct {
	e      *Engine
	ref    PointRef
	root   repo.Root
	size   int64
	chunks *chunkCache
}

var _ volume.Tree = (*tree)(nil)

// OpenTree opens a point for being read on demand; ParsePointRef of its Ref
// opens it again. The caller sees to it that the point is not deleted before
// Close. errs.Corrupt: its manifest is damaged in every copy; errs.Unavailable:
// the repository does not answer.
func (e *Engine) OpenTree(ctx context.Context, ref PointRef) (volume.Tree, error) {
	t := &tree{e: e, ref: ref, chunks: newChunkCache()}
	m, err := e.manifest(ctx, ref)
	if err != nil {
		return nil, t.failure(ctx, err)
	}
	t.root, t.size = m.Root, m.SizeBytes
	return t, nil
}

func (t *tree) Ref() string { return t.ref.String() }

func (t *tree) Checkpoint() volume.Checkpoint { return checkpoint(t.size, t.root) }

func (t *tree) Size() int64 { return t.size }

func (t *tree) Close() error {
	t.chunks.drop()
	return nil
}

// failure gives an error of the repository the kind that volume.Tree promises.
func (t *tree) failure(ctx context.Context, err error) error {
	if errors.Is(err, io.EOF) {
		err = errors.New(err.Error()) // nobody may take it for "only zeros follow"
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errs.Is(err, errs.Corrupt):
		return fmt.Errorf("read %s: %w", t.ref.Snapshot, err)
	}
	return errs.Wrap(errs.Unavailable, err, "the repository does not give the bytes of %s now; please try later", t.ref.Snapshot)
}

// inside refuses ranges that no caller may ask for.
func (t *tree) inside(off, length int64) error {
	if off < 0 || off > t.size-length {
		return errs.New(errs.Internal, "point %s: range %d+%d is outside its %d bytes", t.ref.Snapshot, off, length, t.size)
	}
	return nil
}

func (t *tree) ReadAt(ctx context.Context, buf []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.inside(off, int64(len(buf))); err != nil {
		return err
	}
	x, err := t.e.r.NewReader()
	if err != nil {
		return err
	}
	defer x.Close()
	for len(buf) > 0 {
		leaf := off / leafSize
		n := min(int64(len(buf)), (leaf+1)*leafSize-off)
		node, err := t.e.r.Leaf(ctx, t.root, leaf)
		if err == nil {
			err = t.readLeaf(ctx, x, node, buf[:n], off-leaf*leafSize)
		}
		if err != nil {
			return t.failure(ctx, err)
		}
		buf, off = buf[n:], off+n
	}
	return nil
}

// readLeaf fills buf from byte at of a leaf. Frames of which all is wanted that
// the leaf has of them go straight to buf, with few calls; of the others the
// rest is likely to be wanted soon.
func (t *tree) readLeaf(ctx context.Context, x *repo.Reader, node *repo.Node, buf []byte, at int64) error {
	if node == nil {
		clear(buf)
		return nil
	}
	var wants []repo.Want
	end := at + int64(len(buf))
	for done := int64(0); at < end; {
		i, skip := at/chunkSize, at%chunkSize
		n := min(end-at, chunkSize-skip)
		part, ref := buf[done:done+n], node.Slots[i]
		switch {
		case ref.IsZero():
			clear(part)
		case n == chunkSize && wholeFrame(node, i, at-done, end):
			wants = append(wants, repo.Want{Ref: ref, At: int(done)})
		default:
			err := t.chunks.read(ctx, ref, part, skip, func() error { return t.load(ctx, x, node, i, part, skip) })
			if err != nil {
				return err
			}
		}
		done, at = done+n, at+n
	}
	slices.SortFunc(wants, func(a, b repo.Want) int { return repo.ComparePlaces(a.Ref.Loc, b.Ref.Loc) })
	return x.Fetch(ctx, wants, buf)
}

// wholeFrame reports whether all chunks of the leaf that lie in the frame of
// chunk i are wanted whole by who reads the leaf from one byte to another.
func wholeFrame(node *repo.Node, i, from, to int64) bool {
	frame := frameOf(node.Slots[i].Loc)
	for k := range int64(fanout) {
		l := node.Slots[k].Loc
		if l.Off == frame.Off && frameOf(l) == frame && (k*chunkSize < from || (k+1)*chunkSize > to) {
			return false
		}
	}
	return true
}

// load reads the frame of chunk i, fills dst from the chunk's byte skip, and
// keeps the chunks of the leaf that lie in the same frame.
func (t *tree) load(ctx context.Context, x *repo.Reader, node *repo.Node, i int64, dst []byte, skip int64) error {
	chunk, err := x.Chunk(ctx, node.Slots[i])
	if err != nil {
		return err
	}
	copy(dst, chunk[skip:])
	t.chunks.put(node.Slots[i].ID, chunk)
	frame := frameOf(node.Slots[i].Loc)
	for k := range int64(fanout) {
		ref := node.Slots[k]
		if k == i || ref.IsZero() || frameOf(ref.Loc) != frame {
			continue
		}
		// It is decoded already. If it is damaged, whoever wants it is told.
		if chunk, err := x.Chunk(ctx, ref); err == nil {
			t.chunks.put(ref.ID, chunk)
		}
	}
	return nil
}

func (t *tree) Data(ctx context.Context, off int64) (extent.Range, error) {
	if err := ctx.Err(); err != nil {
		return extent.Range{}, err
	}
	if off < 0 {
		return extent.Range{}, t.inside(off, 0)
	}
	found, err := t.e.firstData(ctx, t.root, t.size, off)
	return t.answer(ctx, found, err)
}

// answer turns what a search found into what a caller is told.
func (t *tree) answer(ctx context.Context, found extent.Range, err error) (extent.Range, error) {
	switch {
	case err != nil:
		return extent.Range{}, t.failure(ctx, err)
	case found.Len == 0:
		return extent.Range{}, io.EOF
	}
	return found, nil
}
