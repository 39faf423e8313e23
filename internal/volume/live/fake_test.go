package live

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/volume"
)

// forest is a repository of trees in memory.
type forest struct {
	mu    sync.Mutex
	trees map[string][]byte
	away  atomic.Bool // does not answer
	open  atomic.Int64
}

func newForest() *forest { return &forest{trees: map[string][]byte{}} }

func (f *forest) plant(content []byte) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	ref := fmt.Sprintf("tree-%d", len(f.trees))
	f.trees[ref] = bytes.Clone(content)
	return ref
}

func (f *forest) Open(_ context.Context, ref string) (volume.Tree, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	content, ok := f.trees[ref]
	if !ok {
		return nil, errs.New(errs.NotFound, "no tree %s", ref)
	}
	f.open.Add(1)
	return &tree{f: f, ref: ref, content: content}, nil
}

// tree is one handle of a tree.
type tree struct {
	f       *forest
	ref     string
	content []byte
	closed  atomic.Bool
}

func (t *tree) Ref() string { return t.ref }

func (t *tree) Checkpoint() volume.Checkpoint { return checkpointOf(t.content) }

func checkpointOf(content []byte) volume.Checkpoint {
	sum := sha256.Sum256(content)
	return volume.Checkpoint(fmt.Sprintf("%d-%s", len(content), hex.EncodeToString(sum[:8])))
}

func (t *tree) Size() int64 { return int64(len(t.content)) }

func (t *tree) ReadAt(ctx context.Context, p []byte, off int64) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case t.closed.Load():
		return errs.New(errs.Internal, "tree %s is closed", t.ref)
	case t.f.away.Load():
		return errs.New(errs.Unavailable, "the repository is away")
	case off < 0 || off+int64(len(p)) > t.Size():
		return errs.New(errs.Internal, "range %d+%d is outside", off, len(p))
	}
	copy(p, t.content[off:])
	return nil
}

func (t *tree) chunk(at int64) []byte {
	return t.content[min(at*clusterSize, t.Size()):min((at+1)*clusterSize, t.Size())]
}

func (t *tree) Data(_ context.Context, off int64) (extent.Range, error) {
	for at := off / clusterSize; at < clusters(t.Size()); at++ {
		if !allZero(t.chunk(at)) {
			from := max(off, at*clusterSize)
			return extent.Range{Off: from, Len: min((at+1)*clusterSize, t.Size()) - from}, nil
		}
	}
	return extent.Range{}, io.EOF
}

func (t *tree) Differs(_ context.Context, from volume.Tree, off int64) (extent.Range, error) {
	o := from.(*tree)
	for at := off / clusterSize; at < clusters(min(t.Size(), o.Size())); at++ {
		if !bytes.Equal(t.chunk(at), o.chunk(at)) {
			return extent.Range{Off: at * clusterSize, Len: clusterSize}, nil
		}
	}
	return extent.Range{}, io.EOF
}

func (t *tree) Close() error {
	if t.closed.Swap(true) {
		return errs.New(errs.Internal, "tree %s is closed twice", t.ref)
	}
	t.f.open.Add(-1)
	return nil
}
