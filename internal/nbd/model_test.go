package nbd

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// stripe is what one worker of the model owns: every workers-th run of
// stripeBytes, so that workers' requests are side by side everywhere.
const stripeBytes = 64 << 10

// model is a volume behind clients, and beside it the bytes that it must have.
type model struct {
	t       *testing.T
	oracle  []byte
	unit    int64
	fast    bool // the server takes FastZero
	clients []*Client
}

// worker does random requests on its stripes and checks every read.
func (m *model) worker(ctx context.Context, rng *rand.Rand, w, workers, steps int) error {
	stripes := len(m.oracle) / stripeBytes
	for range steps {
		c := m.clients[rng.IntN(len(m.clients))]
		at := int64(rng.IntN(stripes/workers)*workers+w) * stripeBytes
		off := rng.Int64N(stripeBytes)
		n := rng.Int64N(stripeBytes - off)
		if rng.IntN(3) > 0 {
			n = min(n, 4096)
		}
		what := rng.IntN(10)
		if what < 6 {
			off, n = off&^(m.unit-1), n&^(m.unit-1)
		}
		off += at
		var flags Flags
		if rng.IntN(4) == 0 {
			flags |= FUA
		}
		if err := m.step(ctx, rng, c, what, off, n, flags); err != nil {
			return fmt.Errorf("step %d of %d bytes at %d: %w", what, n, off, err)
		}
	}
	return nil
}

func (m *model) step(ctx context.Context, rng *rand.Rand, c *Client, what int, off, n int64, flags Flags) error {
	mine := m.oracle[off : off+n]
	switch what {
	case 0, 1, 2:
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		copy(mine, p)
		return c.WriteAt(ctx, p, off, flags)
	case 3:
		clear(mine)
		if rng.IntN(2) == 0 {
			flags |= NoHole
		} else if m.fast {
			flags |= FastZero
		}
		return c.Zero(ctx, off, n, flags)
	case 4: // trimmed bytes may be anything until they are written
		if err := c.Trim(ctx, off, n, flags); err != nil {
			return err
		}
		clear(mine)
		return c.Zero(ctx, off, n, flags)
	case 5:
		return c.Flush(ctx)
	case 6:
		found, err := c.Status(ctx, BaseAllocation, off, n)
		if err != nil {
			return err
		}
		for _, e := range found {
			if e.Flags&Zero != 0 && !allZero(m.oracle[e.Off:e.End()]) {
				return fmt.Errorf("the extent %v is not zeroes", e)
			}
		}
		if n > 0 && (found[0].Off != off || found[len(found)-1].End() != off+n) {
			return fmt.Errorf("extents %v", found)
		}
		return nil
	}
	p := make([]byte, n)
	if err := c.ReadAt(ctx, p, off); err != nil {
		return err
	}
	if !bytes.Equal(p, mine) {
		return fmt.Errorf("other bytes than the oracle's")
	}
	return nil
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// run lets workers work, then compares everything.
func (m *model) run(seed uint64, workers, steps int) {
	m.t.Helper()
	m.t.Logf("seed %d", seed)
	g, ctx := errgroup.WithContext(m.t.Context())
	for w := range workers {
		rng := rand.New(rand.NewPCG(seed, uint64(w)))
		g.Go(func() error { return m.worker(ctx, rng, w, workers, steps) })
	}
	if err := g.Wait(); err != nil {
		m.t.Fatal(err)
	}
	got := make([]byte, len(m.oracle))
	if err := m.clients[0].ReadAt(m.t.Context(), got, 0); err != nil || !bytes.Equal(got, m.oracle) {
		m.t.Fatalf("in the end the volume differs from the oracle (%v)", err)
	}
}

func modelSteps() int {
	if os.Getenv("CAIRN_LONG") != "" {
		return 5000
	}
	return 300
}

func newSeed() uint64 { return uint64(time.Now().UnixNano()) }

// Server and client against the oracle: forms of replies, limits that bite,
// block sizes, many connections.
func TestModel(t *testing.T) {
	const size = 4 << 20
	for name, tt := range map[string]struct {
		limits Limits
		block  BlockSize
		opt    Options
	}{
		"roomy":   {},
		"tight":   {limits: Limits{Requests: 2, ConnBytes: 40 << 10, TotalBytes: 100 << 10}, opt: Options{InFlight: 3, MaxRequest: 10000}},
		"aligned": {block: BlockSize{Min: 512, Preferred: 4096, Max: 16 << 10}},
		"single":  {opt: Options{Connections: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, tt.limits)
			mem := newMemory(size)
			rng := rand.New(rand.NewPCG(1, 2))
			var slow int64
			for i := range 64 {
				slow |= int64(rng.IntN(8)/7) << i
			}
			mem.onCall(func(_ context.Context, _ string, off, _ int64) error {
				if slow>>(off/4096%64)&1 == 1 {
					time.Sleep(200 * time.Microsecond)
				}
				return nil
			})
			cfg := everything("v", size)
			cfg.BlockSize = tt.block
			s.add(cfg, mem)
			tt.opt.Contexts = []string{BaseAllocation}
			m := &model{t: t, oracle: make([]byte, size), unit: max(tt.block.Min, 1), fast: true}
			for range 3 {
				m.clients = append(m.clients, s.dial("v", tt.opt))
			}
			m.run(newSeed(), 8, modelSteps())
			if !bytes.Equal(mem.bytes(0, size), m.oracle) {
				t.Error("the backend differs from the oracle")
			}
			checkStatus(t, m.clients[0], mem)
		})
	}
}

// checkStatus compares what a client is told with what the backend knows.
func checkStatus(t *testing.T, c *Client, mem *memory) {
	t.Helper()
	size := int64(len(mem.data))
	want, err := mem.Status(t.Context(), nil, BaseAllocation, 0, size, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Status(t.Context(), BaseAllocation, 0, size)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("status %v, %v; want %v", got, err, want)
	}
}

// BenchmarkPipe is server and client together, without a disk.
func BenchmarkPipe(b *testing.B) {
	const size = 64 << 20
	s := serve(b, Limits{})
	m := newMemory(size)
	clear(m.holes)
	s.add(everything("v", size), m)
	for _, bb := range []struct {
		name  string
		n     int
		depth int
		write bool
	}{{"read-4k-1", 4096, 1, false}, {"read-4k-32", 4096, 32, false}, {"write-4k-32", 4096, 32, true}, {"read-1m-4", 1 << 20, 4, false}, {"write-1m-4", 1 << 20, 4, true}} {
		b.Run(bb.name, func(b *testing.B) {
			c := s.dial("v", Options{Connections: 1})
			b.SetBytes(int64(bb.n))
			b.ReportAllocs()
			b.SetParallelism(bb.depth / 2)
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, bb.n)
				rng := rand.New(rand.NewPCG(1, 2))
				for pb.Next() {
					off := rng.Int64N(size/int64(bb.n)) * int64(bb.n)
					var err error
					if bb.write {
						err = c.WriteAt(b.Context(), p, off, 0)
					} else {
						err = c.ReadAt(b.Context(), p, off)
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
