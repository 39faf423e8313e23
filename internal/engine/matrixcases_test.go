package engine

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/mem"
	"cairn/internal/foldertest"
	"cairn/internal/repo"
	"cairn/internal/repo/pack"
)

// This file enumerates damage: every byte that has a meaning of its own in
// every blob of two small repositories, and samples of the rest. What is
// checked after each is in matrix_test.go.

// matrixMasks is how many different bits are flipped at each place.
func matrixMasks() int {
	if os.Getenv("CAIRN_LONG") == "1" {
		return 2
	}
	return 1
}

// matrixStride passes over cases where all of them are ten times as slow.
func matrixStride() int {
	if raceDetector {
		return 41
	}
	return 1
}

// damageCase is one way in which the repository may be damaged.
type damageCase struct {
	kind  string // of the count that it belongs to
	what  string
	blobs map[string]func([]byte) []byte // nil: removed
}

// matrixRepo is a small repository and what its points read as.
type matrixRepo struct {
	t      *testing.T
	key    repo.Key
	store  *mem.Store
	index  string
	packs  []PackRecord
	points []PointRef
	want   map[string]*memVolume
	bytes  map[string][]byte // the same
	wide   bool              // its volumes are mostly holes
	buf    []byte
}

func freeze(r *rig, wide bool, want map[PointRef]*memVolume) *matrixRepo {
	m := &matrixRepo{
		t: r.t.(*testing.T), key: r.key, store: r.store.(*mem.Store), index: foldertest.InMemory(r.t), wide: wide,
		packs: slices.Collect(maps.Values(r.packs)), want: map[string]*memVolume{}, bytes: map[string][]byte{},
	}
	for ref, v := range want {
		m.points = append(m.points, ref)
		m.want[ref.Snapshot], m.bytes[ref.Snapshot] = v, v.bytes()
	}
	slices.SortFunc(m.points, func(a, b PointRef) int { return cmp.Compare(a.Snapshot, b.Snapshot) })
	return m
}

// narrowRepo has two data packs with stored and zstd frames, and a chain of
// three: a full, an increment within its point pack, and a larger one.
func narrowRepo(t *testing.T) *matrixRepo {
	r := newRig(t)
	rng := rand.New(rand.NewPCG(31, 1))
	v := newVolume(6*chunkSize + 100)
	put := func(b []byte, off int64) {
		if err := v.WriteAt(t.Context(), b, off); err != nil {
			t.Fatal(err)
		}
	}
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	put(random(3*chunkSize), 0)
	put(bytes.Repeat([]byte("compresses well "), 2048), 3*chunkSize)
	one := r.take(v, nil)
	want := map[PointRef]*memVolume{one.Ref: v.clone()}
	put([]byte("a few bytes"), 100_000)
	two := r.take(v, &one.Ref)
	want[two.Ref] = v.clone()
	put(random(2*chunkSize+100), 4*chunkSize)
	three := r.take(v, &two.Ref)
	want[three.Ref] = v.clone()
	return freeze(r, false, want)
}

// wideRepo has a node pack: as many leaves as fill one, no two of them equal,
// over one chunk.
func wideRepo(t *testing.T) *matrixRepo {
	r := newRig(t)
	v := newVolume(44 * leafSize)
	for i := range int64(44) {
		for _, slot := range []int64{i % fanout, (i + i/fanout) % fanout} {
			if err := v.WriteAt(t.Context(), []byte("the same"), i*leafSize+slot*chunkSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	return freeze(r, true, map[PointRef]*memVolume{r.take(v, nil).Ref: v})
}

// open opens the repository on a store.
func (m *matrixRepo) open(store blobstore.Store) (*Engine, func(), error) {
	rp, err := repo.Open(m.t.Context(), store, m.key, m.index)
	if err != nil {
		return nil, nil, err
	}
	return New(rp, Config{Workers: 1}), func() { rp.Close() }, nil
}

// blobs is the content of every blob.
func (m *matrixRepo) blobs() map[string][]byte {
	out := map[string][]byte{}
	err := m.store.List(m.t.Context(), "", func(i blobstore.Info) error {
		b := make([]byte, i.Size)
		_, err := m.store.ReadAt(m.t.Context(), i.Name, b, 0)
		out[i.Name] = b
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// kindOf is the first part of a blob's name.
func kindOf(name string) string {
	kind, _, _ := strings.Cut(name, "/")
	return kind
}

// part is a range of a blob's bytes with one meaning.
type part struct {
	kind     string
	from, to int
	sample   bool // bytes without a meaning of their own
}

// parts cuts a blob into its structures.
func (m *matrixRepo) parts(e *Engine, name string, b []byte) []part {
	p, header, _ := repo.ParseBlob(name)
	if header {
		return []part{{"header blob", 0, len(b), false}}
	}
	copies, err := e.r.InspectPack(m.t.Context(), p)
	if err != nil {
		m.t.Fatal(err)
	}
	c := copies[slices.IndexFunc(copies, func(c repo.PackCopy) bool { return c.Name == name })]
	if !c.Whole() {
		m.t.Fatalf("%s is not whole before it is damaged", name)
	}
	out := []part{{"pack header", 0, pack.HeaderSize, false}}
	for _, r := range c.Records {
		body := int(r.Off) + pack.RecordLen(len(r.IDs), 0) - 16
		end := int(r.Off + r.Len)
		out = append(out, part{"record header", int(r.Off), body, false}, part{"record body", body, end - 16, true}, part{"record tag", end - 16, end, false})
	}
	dir := int(c.Footer.DirOff)
	return append(out, part{"directory", dir, len(b) - pack.FooterSize, false}, part{"footer", len(b) - pack.FooterSize, len(b), false})
}

// cases lists all damage of one blob at a time. others has blobs of the same
// kinds, of this and of another repository.
func (m *matrixRepo) cases(e *Engine, others map[string][]byte) []damageCase {
	rng := rand.New(rand.NewPCG(33, 1))
	var out []damageCase
	add := func(kind, what, name string, f func([]byte) []byte) {
		out = append(out, damageCase{kind, name + " " + what, map[string]func([]byte) []byte{name: f}})
	}
	blobs := m.blobs()
	for _, name := range slices.Sorted(maps.Keys(blobs)) {
		b := blobs[name]
		cut := map[int]string{0: "cut at a boundary"}
		for _, p := range m.parts(e, name, b) {
			for _, at := range places(rng, p) {
				for range matrixMasks() {
					mask := byte(1) << rng.IntN(8)
					add("flipped, "+p.kind, fmt.Sprintf("byte %d ^ %#x", at, mask), name, func(b []byte) []byte {
						b[at] ^= mask
						return b
					})
				}
			}
			cut[p.from], cut[p.to-1] = "cut at a boundary", "cut at a boundary"
			for range 2 {
				cut[p.from+rng.IntN(p.to-p.from)] = "cut elsewhere"
			}
		}
		for _, n := range slices.Sorted(maps.Keys(cut)) {
			add(cut[n], fmt.Sprintf("cut to %d", n), name, func(b []byte) []byte { return b[:n] })
		}
		for _, n := range []int{1, pack.FooterSize, 5000} {
			add("lengthened", fmt.Sprintf("longer by %d zeros", n), name, func(b []byte) []byte { return append(b, make([]byte, n)...) })
			add("lengthened", fmt.Sprintf("longer by its own last %d", n), name, func(b []byte) []byte { return append(b, b[max(0, len(b)-n):]...) })
		}
		add("removed", "removed", name, nil)
		for _, other := range slices.Sorted(maps.Keys(others)) {
			if with := others[other]; kindOf(other) == kindOf(name) && !bytes.Equal(with, b) {
				add("swapped", "swapped with "+other, name, func([]byte) []byte { return bytes.Clone(with) })
			}
		}
	}
	return append(out, m.twice(out)...)
}

// places are the bytes of a part that are flipped: each, or a sample.
func places(rng *rand.Rand, p part) []int {
	var out []int
	if p.sample {
		for range min(8, p.to-p.from) {
			out = append(out, p.from+rng.IntN(p.to-p.from))
		}
		return append(out, p.from, p.to-1)
	}
	for at := p.from; at < p.to; at++ {
		out = append(out, at)
	}
	return out
}

// twice does to both copies of a blob what a sample of the cases does to one,
// and what two different cases do.
func (m *matrixRepo) twice(single []damageCase) []damageCase {
	rng := rand.New(rand.NewPCG(34, 1))
	byBlob := map[string][]damageCase{}
	for _, c := range single {
		for name := range c.blobs {
			byBlob[name] = append(byBlob[name], c)
		}
	}
	var out []damageCase
	for _, a := range slices.Sorted(maps.Keys(byBlob)) {
		base, isCopy := strings.CutSuffix(a, ".a")
		if !isCopy {
			continue
		}
		b := base + ".b"
		for i, c := range byBlob[a] {
			special := c.kind == "removed" || c.kind == "swapped" || c.kind == "cut at a boundary"
			if !special && i%11 != 0 {
				continue
			}
			out = append(out, damageCase{"both copies alike", c.what + ", both", map[string]func([]byte) []byte{a: c.blobs[a], b: c.blobs[a]}})
			d := byBlob[b][rng.IntN(len(byBlob[b]))]
			out = append(out, damageCase{"both copies differently", c.what + "; " + d.what, map[string]func([]byte) []byte{a: c.blobs[a], b: d.blobs[b]}})
		}
	}
	return out
}
