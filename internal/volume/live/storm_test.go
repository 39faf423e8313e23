package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/foldertest"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

const (
	stormWriters = 3
	stormUnit    = 2048 // bytes; the n-th writer has each n-th unit to itself
)

// storm is a volume that everybody uses at once, beside what it must hold.
type storm struct {
	t     *testing.T
	d     *Driver
	v     *vol
	s     volume.Spec
	tree  []byte // content of its base
	round string // for messages

	mu   sync.Mutex
	want []byte
}

// newStorm is a clone, or a volume with other bytes that was rolled back, of a
// size and of grains of chance.
func newStorm(t *testing.T, rng *rand.Rand, round string) *storm {
	size := int64(1+rng.IntN(12))*clusterSize + []int64{0, 1, 4095, 4096, 5000, 9000, 33333}[rng.IntN(7)]
	tree := make([]byte, size)
	if rng.IntN(2) == 0 {
		tree = tree[:1+rng.Int64N(size)]
	}
	for at := 0; at < len(tree); at += pageSize {
		if rng.IntN(3) > 0 && at/clusterSize%3 > 0 {
			copy(tree[at:], bytes.Repeat([]byte{byte(at>>12) | 0x80}, min(pageSize, len(tree)-at)))
		}
	}
	f := newForest()
	d := open(t, config(foldertest.InMemory(t), f))
	d.grains = []int64{1, 8, 40, 1 << 20}[rng.IntN(4)]
	s := volume.Spec{ID: "vol-A", SizeBytes: size}
	base, err := f.Open(t.Context(), f.plant(tree))
	ok(t, err)
	if rng.IntN(2) == 0 {
		ok(t, d.Create(t.Context(), s))
		old, err := d.vol(s.ID)
		ok(t, err)
		ok(t, old.write(t.Context(), change{p: bytes.Repeat([]byte{0x77}, int(size)), n: size}))
		ok(t, roll(t.Context(), d, s, base, nil, false))
	} else {
		ok(t, d.Clone(t.Context(), s, base))
	}
	ok(t, base.Close())
	v, err := d.vol(s.ID)
	ok(t, err)
	st := &storm{t: t, d: d, v: v, s: s, tree: tree, round: round, want: make([]byte, size)}
	copy(st.want, tree)
	return st
}

// write writes, trims and zeroes units of one writer, and reads each back.
func (s *storm) write(writer int64, rng *rand.Rand, stop <-chan struct{}) {
	b, size := backend{s.v}, s.s.SizeBytes
	for {
		select {
		case <-stop:
			return
		default:
		}
		unit := rng.Int64N(size/stormUnit/stormWriters+1)*stormWriters + writer
		off := unit * stormUnit
		if off >= size {
			continue
		}
		n := min(stormUnit, size-off)
		if rng.IntN(2) == 0 {
			skip := rng.Int64N(n)
			off, n = off+skip, 1+rng.Int64N(n-skip)
		}
		p := bytes.Repeat([]byte{byte(1 + rng.IntN(120))}, int(n))
		var err error
		switch rng.IntN(6) {
		case 0:
			clear(p)
			err = b.Trim(s.t.Context(), off, n, 0)
		case 1:
			clear(p)
			err = b.Zero(s.t.Context(), off, n, nbd.NoHole)
		default:
			err = b.WriteAt(s.t.Context(), p, off, 0)
		}
		if err != nil {
			s.t.Errorf("%s: %v", s.round, err)
			return
		}
		s.mu.Lock()
		copy(s.want[off:], p)
		s.mu.Unlock()
		got := make([]byte, n)
		s.read(got, off, func(off int64) (extent.Range, error) { return s.v.data(s.t.Context(), s.v.view.Load(), off) },
			func(p []byte, off int64) error { return b.ReadAt(s.t.Context(), p, off) })
		if !bytes.Equal(got, p) {
			s.t.Errorf("%s: writer %d reads something else at %d, %d bytes", s.round, writer, off, n)
			return
		}
	}
}

// read reads what of a range is called data.
func (s *storm) read(got []byte, off int64, data func(off int64) (extent.Range, error), readAt func(p []byte, off int64) error) {
	for at, end := off, off+int64(len(got)); at < end; {
		r, err := data(at)
		if errors.Is(err, io.EOF) || err == nil && r.Off >= end {
			return
		}
		to := min(r.End(), end)
		if err == nil {
			err = readAt(got[r.Off-off:to-off], r.Off)
		}
		if err != nil {
			s.t.Errorf("%s: %v", s.round, err)
			return
		}
		at = to
	}
}

// now is what the volume holds, while nobody changes it.
func (s *storm) now() []byte {
	w, got := s.v.view.Load(), make([]byte, s.s.SizeBytes)
	ok(s.t, s.v.get(got, 0))
	for off := int64(0); w.base != nil && off < int64(len(got)); off += pageSize {
		if !w.foreign(off) {
			continue
		}
		page := got[off:min(off+pageSize, int64(len(got)))]
		clear(page)
		copy(page, s.tree[min(off, int64(len(s.tree))):])
	}
	return got
}

// instant takes one, reads it as a capture does and releases what it has read.
func (s *storm) instant(n int, rng *rand.Rand) {
	ctx := s.t.Context()
	var want []byte
	in, err := s.d.Freeze(ctx, fmt.Sprint("hold ", n), []volume.Spec{s.s}, func(context.Context) error {
		want = s.now()
		return nil
	})
	ok(s.t, err)
	src, step := in.Source(0), int64(1+rng.IntN(3))*clusterSize
	got := make([]byte, len(want))
	for off := int64(0); off < s.s.SizeBytes; {
		r, err := src.Data(ctx, off)
		if errors.Is(err, io.EOF) {
			break
		}
		ok(s.t, err)
		start := r.Off / clusterSize * clusterSize
		n := min(step, s.s.SizeBytes-start)
		ok(s.t, src.ReadAt(ctx, got[start:start+n], start))
		ok(s.t, src.Release(ctx, start, n))
		off = start + n
		time.Sleep(time.Duration(rng.IntN(1000)) * time.Microsecond)
	}
	if !bytes.Equal(got, want) {
		s.t.Errorf("%s: an instant shows something else", s.round)
	}
	ok(s.t, in.Check(ctx))
	if rng.IntN(2) == 0 {
		ok(s.t, in.Settle(ctx, []volume.Checkpoint{volume.Checkpoint(fmt.Sprint(n))}, func() error { return nil }))
	}
	ok(s.t, in.Close())
}

// fill fills slowly, and again as often as an instant keeps it from its end.
func (s *storm) fill(stop <-chan struct{}) {
	for {
		err := s.d.Fill(s.t.Context(), s.s, func(context.Context, int64) error {
			time.Sleep(time.Millisecond)
			return nil
		})
		if err == nil {
			return
		}
		if !errs.Is(err, errs.Busy) {
			s.t.Errorf("%s: %v", s.round, err)
			return
		}
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// Writers, a fill, instants and new state files at once: who wrote reads it,
// instants are moments, and what was acknowledged is there for the next process.
func TestStorm(t *testing.T) {
	rounds, seed := 10, rand.Uint64()
	if os.Getenv("CAIRN_LONG") == "1" {
		rounds = 100
	}
	t.Logf("seed %d", seed)
	for round := range rounds {
		rng := rand.New(rand.NewPCG(seed, uint64(round)))
		s := newStorm(t, rng, fmt.Sprintf("seed %d, round %d", seed, round))
		stop := make(chan struct{})
		var all sync.WaitGroup
		for writer := range int64(stormWriters) {
			mine := rand.New(rand.NewPCG(rng.Uint64(), 1))
			all.Go(func() { s.write(writer, mine, stop) })
		}
		all.Go(func() { s.fill(stop) })
		for n := range 4 {
			s.instant(n, rng)
			s.v.op.Lock()
			err := s.v.rewrite(false)
			s.v.op.Unlock()
			ok(t, err)
		}
		close(stop)
		all.Wait()
		got := make([]byte, s.s.SizeBytes)
		ok(t, s.v.read(t.Context(), got, 0))
		if !bytes.Equal(got, s.want) {
			t.Errorf("%s: in the end the volume holds something else", s.round)
		}
		next := open(t, s.d.cfg) // the process died, the machine did not
		v, err := next.vol(s.s.ID)
		ok(t, err)
		ok(t, v.read(t.Context(), got, 0))
		if !bytes.Equal(got, s.want) {
			t.Errorf("%s: the next process finds something else", s.round)
		}
		ok(t, next.Close())
		if t.Failed() {
			return
		}
	}
}
