package repo

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sync/errgroup"
)

// Sessions that come and go, fill packs and give them back, never wait for
// each other without end, and in the end one piece is left, without memory.
func TestPackMemory(t *testing.T) {
	m := newPackMemory()
	var g errgroup.Group
	for seed := range uint64(20) {
		g.Go(func() error {
			rng := rand.New(rand.NewPCG(seed, 1))
			for range 20 {
				if err := m.join(); err != nil {
					return err
				}
				for range rng.IntN(5) {
					b, err := m.get(t.Context(), nil)
					if err != nil {
						return err
					}
					if len(b) != packTarget+packSlack {
						t.Errorf("a piece has %d bytes", len(b))
					}
					b[rng.IntN(len(b))] = 1
					m.put(b)
				}
				m.leave()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(m.free) != 1 || m.excess != 0 {
		t.Fatalf("%d pieces are left, %d in excess", len(m.free), m.excess)
	}
	if b := <-m.free; b != nil {
		t.Error("memory that nobody uses was kept")
	}
}

// Who waits for memory is woken by its own end, and by the putter's failure.
func TestPackMemoryWaits(t *testing.T) {
	m := newPackMemory()
	b, err := m.get(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if _, err := m.get(ctx, nil); !errors.Is(err, stop) {
		t.Errorf("a cancelled wait gave %v", err)
	}
	failed := make(chan struct{})
	close(failed)
	if _, err := m.get(t.Context(), failed); !errors.Is(err, errPutFailed) {
		t.Errorf("a failed putter gave %v", err)
	}
	// A session that left while its piece was lent: the piece does not come back.
	if err := m.join(); err != nil {
		t.Fatal(err)
	}
	c, err := m.get(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	m.leave()
	m.put(b)
	m.put(c)
	if len(m.free) != 1 {
		t.Errorf("%d pieces are left", len(m.free))
	}
}
