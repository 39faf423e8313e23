package index

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
)

// benchBatch is what one commit of about 8 GiB of new data adds.
const benchBatch = 128 << 10

// benchID is the i-th id of a sequence that looks random.
func benchID(i uint64) (id ID) {
	rng := rand.NewPCG(i, 1)
	for k := 0; k < len(id); k += 8 {
		binary.LittleEndian.PutUint64(id[k:], rng.Uint64())
	}
	return id
}

func benchIndex(b *testing.B, n uint64) *Index {
	b.Helper()
	x := open(b, b.TempDir())
	batch := make([]Entry, 0, benchBatch)
	for i := range n {
		batch = append(batch, Entry{ID: benchID(i), Offset: uint32(i)})
		if len(batch) == cap(batch) || i == n-1 {
			if err := x.Add(context.Background(), batch); err != nil {
				b.Fatal(err)
			}
			batch = batch[:0]
		}
	}
	return x
}

// BenchmarkLookup reports what one core does; -short leaves the 10 million out.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []uint64{1_000_000, 10_000_000} {
		if n > 1_000_000 && testing.Short() {
			continue
		}
		x := benchIndex(b, n)
		ids := make([]ID, 1<<20)
		for _, tt := range []struct {
			name string
			from uint64
		}{{"miss", 1 << 40}, {"hit", 0}} {
			for i := range ids {
				ids[i] = benchID(tt.from + rand.Uint64N(n))
			}
			b.Run(fmt.Sprintf("%s/entries=%d/runs=%d", tt.name, n, len(x.runs)), func(b *testing.B) {
				var buf [4]Entry
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					x.Lookup(ids[i%len(ids)], buf[:0])
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lookups/s")
			})
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	x := open(b, b.TempDir())
	batch := make([]Entry, benchBatch)
	var n uint64
	for b.Loop() {
		for i := range batch {
			batch[i] = Entry{ID: benchID(n), Offset: uint32(n)}
			n++
		}
		if err := x.Add(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "entries/s")
}
