package keys

import (
	"math/rand/v2"
	"testing"

	"cairn/internal/repo/addr"
)

// plain is a chunk hasher that does not go through wideChunk.
func plain(h *Hasher) *Hasher {
	p := h.Clone()
	p.wide = false
	return p
}

// The wide hash is the general one, for any bytes, wherever they lie.
func TestWideChunkAgrees(t *testing.T) {
	if !wideSupported() {
		t.Skip("this processor or build has no wide hash")
	}
	rng := rand.New(rand.NewPCG(1, 1))
	memory := make([]byte, addr.ChunkSize+64)
	for n := range 300 {
		h := NewMaster().Chunks()
		if !h.wide {
			t.Fatal("the wide hash was found to be wrong")
		}
		b := memory[rng.IntN(65):][:addr.ChunkSize]
		switch n % 4 {
		case 0:
			clear(b)
			b[rng.IntN(len(b))] = 1 << rng.IntN(8)
		case 1:
			for i := range b {
				b[i] = byte(n)
			}
		default:
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
		}
		if got, want := h.ID(b), plain(h).ID(b); got != want {
			t.Fatalf("chunk %d: %s, want %s", n, got, want)
		}
		// Other lengths, and parts, take the general way.
		if got, want := h.ID(b[:100]), plain(h).ID(b[:100]); got != want {
			t.Fatalf("100 bytes: %s, want %s", got, want)
		}
		if got, want := h.ID(b[:5], b[5:]), plain(h).ID(b); got != want {
			t.Fatalf("parts: %s, want %s", got, want)
		}
	}
}

func BenchmarkChunkID(b *testing.B) {
	chunk := make([]byte, addr.ChunkSize)
	h := NewMaster().Chunks()
	for _, c := range []struct {
		name string
		h    *Hasher
	}{{"any", h}, {"general", plain(h)}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(addr.ChunkSize)
			for b.Loop() {
				c.h.ID(chunk)
			}
		})
	}
}
