package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/mem"
)

var errBroken = errors.New("broken")

// brokenTarget fails at its n-th change or sync.
type brokenTarget struct {
	*memVolume
	mu     sync.Mutex
	left   int
	failed bool
}

func (b *brokenTarget) step() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left--; b.left < 0 {
		b.failed = true
		return errBroken
	}
	return nil
}

func (b *brokenTarget) WriteAt(ctx context.Context, buf []byte, off int64) error {
	if err := b.step(); err != nil {
		return err
	}
	return b.memVolume.WriteAt(ctx, buf, off)
}

func (b *brokenTarget) Zero(ctx context.Context, off, length int64) error {
	if err := b.step(); err != nil {
		return err
	}
	return b.memVolume.Zero(ctx, off, length)
}

func (b *brokenTarget) Sync(context.Context) error { return b.step() }

// mixed is a volume of many leaves with data, zeros, holes and chunks that
// occur more than once.
func mixed(t *testing.T, size int64, seed uint64) *memVolume {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	v := newVolume(size)
	again, pattern := make([]byte, chunkSize), make([]byte, 3*leafSize)
	fill(rng, again)
	fill(rng, pattern)
	for off := int64(0); off < size; {
		n := min(size-off, int64(1+rng.IntN(2*leafSize)))
		b := make([]byte, n)
		switch rng.IntN(4) {
		case 0: // a hole
			off += n
			continue
		case 1:
			for i := range b {
				b[i] = again[(off+int64(i))%chunkSize]
			}
		case 2: // written zeros
		default:
			copy(b, pattern[rng.IntN(leafSize):])
			for i := 0; i+8 <= len(b); i += pageSize {
				binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
			}
		}
		if err := v.WriteAt(t.Context(), b, off); err != nil {
			t.Fatal(err)
		}
		off += n
	}
	return v
}

// A target that fails at its n-th step fails the restore, which never said
// that all was done.
func TestRestoreFailsWithItsTarget(t *testing.T) {
	r := newRig(t)
	v := mixed(t, 140<<20, 1)
	p := r.take(v, nil)
	for n := 0; ; n += 13 {
		b := &brokenTarget{memVolume: newVolume(v.size), left: n}
		if n%2 == 0 { // something to be zeroed, too
			if err := b.memVolume.WriteAt(t.Context(), []byte{1}, v.size-1); err != nil {
				t.Fatal(err)
			}
		}
		whole := false
		_, err := r.e.Restore(t.Context(), p.Ref, b, func(done, total int64) { whole = done == total })
		if !b.failed {
			if err != nil || !whole || !bytes.Equal(b.bytes(), v.bytes()) {
				t.Fatalf("step %d: %v, whole %v", n, err, whole)
			}
			if n < 20 {
				t.Fatalf("a restore had only %d steps", n)
			}
			return
		}
		if !errors.Is(err, errBroken) || whole {
			t.Fatalf("step %d: %v, whole %v", n, err, whole)
		}
	}
}

// Progress ascends and counts only what was synced.
func TestRestoreProgressIsDurable(t *testing.T) {
	r := newRig(t)
	rng := rand.New(rand.NewPCG(2, 1))
	v, target := newVolume(20<<30+5000), &syncedTarget{memVolume: newVolume(20<<30 + 5000)}
	for range 300 { // here and there, the same places or not
		b := make([]byte, 1+rng.IntN(3*chunkSize))
		fill(rng, b)
		for _, x := range []*memVolume{v, target.memVolume}[rng.IntN(2):] {
			if err := x.WriteAt(t.Context(), b, rng.Int64N(v.size-int64(len(b)))); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := r.take(v, nil)
	last, calls := int64(-1), 0
	_, err := r.e.Restore(t.Context(), p.Ref, target, func(done, total int64) {
		if done <= last || total != v.size {
			t.Errorf("progress went from %d to %d of %d", last, done, total)
		}
		if done > 0 && !samePages(target.synced, v, done) {
			t.Errorf("%d bytes are said to be done, but were not when the target was synced", done)
		}
		last = done
		calls++
	})
	if err != nil || last != v.size || calls < 5 {
		t.Fatalf("%v; %d calls, the last at %d", err, calls, last)
	}
}

// samePages compares the first bytes of two volumes.
func samePages(a, b *memVolume, size int64) bool {
	zero := make([]byte, pageSize)
	for _, v := range []*memVolume{a, b} {
		for i := range v.pages {
			if i*pageSize >= size {
				continue
			}
			p, q := a.pages[i], b.pages[i]
			if p == nil {
				p = zero
			}
			if q == nil {
				q = zero
			}
			if !bytes.Equal(p, q) {
				return false
			}
		}
	}
	return true
}

// syncedTarget remembers its content of the last Sync.
type syncedTarget struct {
	*memVolume
	synced *memVolume
}

func (s *syncedTarget) Sync(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = s.clone()
	return nil
}

// A restore reads the copy that is whole, and says what is damaged if none is.
func TestRestoreReadsTheOtherCopy(t *testing.T) {
	st := mem.New()
	r := newRigOn(t, st)
	v := newVolume(1 << 20)
	b := make([]byte, 100<<10)
	fill(rand.New(rand.NewPCG(3, 3)), b)
	if err := v.WriteAt(t.Context(), b, 64<<10); err != nil {
		t.Fatal(err)
	}
	p := r.take(v, nil)
	for _, suffix := range []string{".a", ".b"} {
		err := st.List(t.Context(), "point/", func(i blobstore.Info) error {
			if !strings.HasSuffix(i.Name, suffix) {
				return nil
			}
			blob := make([]byte, i.Size)
			if _, err := st.ReadAt(t.Context(), i.Name, blob, 0); err != nil {
				return err
			}
			// A bit of the first record's sealed bytes: a frame.
			blob[112+24+32+50] ^= 1
			return errors.Join(st.Delete(t.Context(), i.Name), st.Put(t.Context(), i.Name, blob))
		})
		if err != nil {
			t.Fatal(err)
		}
		m, err := r.e.manifest(t.Context(), p.Ref) // of memory or of the whole copy
		if suffix == ".b" {
			if err == nil {
				t.Fatalf("two damaged copies gave %+v", m)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		got := newVolume(v.size)
		if _, err := r.e.Restore(t.Context(), p.Ref, got, nil); err != nil || !bytes.Equal(got.bytes(), v.bytes()) {
			t.Fatalf("with %s damaged: %v", suffix, err)
		}
	}
}
