package compat

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"

	"cairn/internal/engine"
	"cairn/internal/extent"
	"cairn/internal/volume"
)

const pageSize = 4096

type page [pageSize]byte

// sparse is a volume in memory that may be far larger than what it holds:
// equal pages are kept once.
type sparse struct {
	mu    sync.Mutex
	size  int64
	pages map[int64]*page
	kept  map[page]*page
}

func newSparse(size int64) *sparse {
	return &sparse{size: size, pages: map[int64]*page{}, kept: map[page]*page{}}
}

func (v *sparse) Size() int64                { return v.size }
func (v *sparse) Sync(context.Context) error { return nil }
func (v *sparse) Close() error               { return nil }

func (v *sparse) Changed(context.Context, volume.Checkpoint, int64) (extent.Range, error) {
	return extent.Range{}, volume.ErrNoBase
}

func (v *sparse) Release(context.Context, int64, int64) error { return nil }

func (v *sparse) Audit(context.Context, volume.Checkpoint) ([]extent.Range, error) { return nil, nil }

func (v *sparse) Data(_ context.Context, off int64) (extent.Range, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := off / pageSize; i*pageSize < v.size; i++ {
		if v.pages[i] != nil {
			start := max(off, i*pageSize)
			return extent.Range{Off: start, Len: min((i+1)*pageSize, v.size) - start}, nil
		}
	}
	return extent.Range{}, io.EOF
}

func (v *sparse) ReadAt(_ context.Context, buf []byte, off int64) error {
	return v.each(buf, off, func(part []byte, number, at int64) {
		clear(part)
		if p := v.pages[number]; p != nil {
			copy(part, p[at:])
		}
	})
}

func (v *sparse) WriteAt(_ context.Context, buf []byte, off int64) error {
	return v.each(buf, off, func(part []byte, number, at int64) {
		var p page
		if old := v.pages[number]; old != nil {
			p = *old
		}
		copy(p[at:], part)
		if v.kept[p] == nil {
			v.kept[p] = &p
		}
		v.pages[number] = v.kept[p]
	})
}

func (v *sparse) Zero(ctx context.Context, off, length int64) error {
	const step = 1 << 20
	for n := int64(0); n < length; n += step {
		if err := v.WriteAt(ctx, make([]byte, min(step, length-n)), off+n); err != nil {
			return err
		}
	}
	return nil
}

// each calls fn for the part of buf that lies in each page.
func (v *sparse) each(buf []byte, off int64, fn func(part []byte, number, at int64)) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if off < 0 || off+int64(len(buf)) > v.size {
		return fmt.Errorf("%d bytes at %d are outside of a volume of %d", len(buf), off, v.size)
	}
	for len(buf) > 0 {
		n := min(pageSize-off%pageSize, int64(len(buf)))
		fn(buf[:n], off/pageSize, off%pageSize)
		buf, off = buf[n:], off+n
	}
	return nil
}

// noise is n bytes that do not compress.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// text is n bytes that compress well.
func text(seed uint64, n int) []byte {
	words := []string{"volume ", "snapshot ", "chunk ", "frame ", "pack ", "tree ", "manifest ", "index ", "blob ", "scrub\n"}
	r := rand.New(rand.NewPCG(seed, 2))
	var b []byte
	for len(b) < n {
		b = append(b, words[r.IntN(len(words))]...)
	}
	return b[:n]
}

// registry is the database's part, in memory.
type registry struct {
	mu    sync.Mutex
	packs map[string]engine.PackRecord
}

func (r *registry) RegisterPack(_ context.Context, p engine.PackRecord) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.packs[p.ID] = p
	return nil
}

func (r *registry) SessionPacks(context.Context) ([]engine.PackRecord, error) { return nil, nil }

func (r *registry) DropPacks(context.Context, []string) error { return nil }

func (r *registry) ForgetPacks(context.Context, []string) error { return nil }

func (r *registry) PackUsable(context.Context, string) (bool, error) { return true, nil }
