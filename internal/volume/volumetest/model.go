package volumetest

import (
	"bytes"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"cairn/internal/volume"
)

// testTargetModel plays random changes on a target beside a slice of bytes.
// Both start from what the volume holds, so one volume serves all runs.
func testTargetModel(t *testing.T, h Harness) {
	s := h.New(t, 256<<10)
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{t: t, h: h, spec: s}
		m.open(rt)
		m.want = readAll(rt, m.target)
		defer func() { // a failed run must not leave the volume taken
			if m.target != nil {
				if err := m.target.Close(); err != nil {
					rt.Error(err)
				}
			}
		}()
		rt.Repeat(map[string]func(*rapid.T){
			"write":  m.write,
			"zero":   m.zero,
			"both":   m.both,
			"read":   m.read,
			"freeze": m.freeze,
			"":       m.check,
		})
	})
}

type model struct {
	t      *testing.T
	h      Harness
	spec   volume.Spec
	target volume.Target
	want   []byte
}

// span draws a range; edges of sectors, pages and chunks are likely.
func (m *model) span(rt *rapid.T, most int) (off, end int) {
	unit := rapid.SampledFrom([]int{1, 512, 4096, 65536}).Draw(rt, "unit")
	off = rapid.IntRange(0, (len(m.want)-1)/unit).Draw(rt, "off") * unit
	length := rapid.IntRange(1, most/unit+1).Draw(rt, "length") * unit
	return off, min(off+length, len(m.want))
}

func (m *model) fill(rt *rapid.T, off, end int) []byte {
	return bytes.Repeat([]byte{rapid.Byte().Draw(rt, "fill")}, end-off)
}

func (m *model) write(rt *rapid.T) {
	off, end := m.span(rt, 128<<10)
	buf := m.fill(rt, off, end)
	ok(rt, m.target.WriteAt(m.t.Context(), buf, int64(off)))
	copy(m.want[off:], buf)
}

func (m *model) zero(rt *rapid.T) {
	off, end := m.span(rt, 256<<10)
	ok(rt, m.target.Zero(m.t.Context(), int64(off), int64(end-off)))
	clear(m.want[off:end])
}

// both writes and zeroes neighbouring ranges at the same time.
func (m *model) both(rt *rapid.T) {
	off, end := m.span(rt, 64<<10)
	middle := rapid.IntRange(off, end).Draw(rt, "middle")
	buf := m.fill(rt, off, middle)
	var werr, zerr error
	var all sync.WaitGroup
	all.Go(func() { werr = m.target.WriteAt(m.t.Context(), buf, int64(off)) })
	all.Go(func() { zerr = m.target.Zero(m.t.Context(), int64(middle), int64(end-middle)) })
	all.Wait()
	ok(rt, werr)
	ok(rt, zerr)
	copy(m.want[off:], buf)
	clear(m.want[middle:end])
}

func (m *model) read(rt *rapid.T) {
	off, end := m.span(rt, 64<<10)
	got := make([]byte, end-off)
	ok(rt, m.target.ReadAt(m.t.Context(), got, int64(off)))
	if !bytes.Equal(got, m.want[off:end]) {
		rt.Fatalf("bytes %d to %d differ", off, end)
	}
}

func (m *model) open(rt *rapid.T) {
	g, err := m.h.Driver.OpenTarget(m.t.Context(), m.spec)
	ok(rt, err)
	m.target = g
}

func (m *model) close(rt *rapid.T) {
	g := m.target
	m.target = nil
	serr := g.Sync(m.t.Context())
	ok(rt, g.Close())
	ok(rt, serr)
}

// freeze closes the target, looks at the volume as a Source, and opens it again.
func (m *model) freeze(rt *rapid.T) {
	m.close(rt)
	ctx := m.t.Context()
	in, err := m.h.Driver.Freeze(ctx, "model", []volume.Spec{m.spec}, nil)
	ok(rt, err)
	got := make([]byte, len(m.want))
	rerr := in.Source(0).ReadAt(ctx, got, 0)
	cerr := in.Check(ctx)
	ok(rt, in.Close())
	ok(rt, m.h.Driver.Drop(ctx, "model"))
	ok(rt, rerr)
	ok(rt, cerr)
	if !bytes.Equal(got, m.want) {
		rt.Fatal("the frozen volume differs from the model")
	}
	m.open(rt)
}

func (m *model) check(rt *rapid.T) {
	same(rt, "target", readAll(rt, m.target), m.want)
	dataCovers(rt, m.target, m.want)
}
