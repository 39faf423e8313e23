package blobtest

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/internal/blobstore"
)

// machine drives a store beside a map of its blobs.
type machine struct {
	tb testing.TB
	s  blobstore.Store
	m  map[string][]byte
}

// modelNames lie close together, so that steps meet.
var modelNames = []string{"a", "b.c", "d/a", "d/ab", "d/b", "d/e/a", "d/e/b", "f/a", "f/g/h/i"}

// testModel runs random histories; rapid prints the seed of one that fails.
func testModel(t *testing.T, open func(t *testing.T) blobstore.Store) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &machine{tb: t, s: open(t), m: make(map[string][]byte)}
		rt.Repeat(map[string]func(*rapid.T){
			"put":    m.put,
			"read":   m.read,
			"delete": m.delete,
			"list":   m.list,
			"":       m.check,
		})
	})
}

func drawName(t *rapid.T) string { return rapid.SampledFrom(modelNames).Draw(t, "name") }

func (m *machine) put(t *rapid.T) {
	name := drawName(t)
	b := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "bytes")
	cut := rapid.IntRange(0, len(b)).Draw(t, "cut")
	err := m.s.Put(m.tb.Context(), name, b[:cut], b[cut:])
	if _, taken := m.m[name]; taken {
		if !errors.Is(err, blobstore.ErrExists) {
			t.Fatalf("Put over %s: %v", name, err)
		}
		return
	}
	if err != nil {
		t.Fatalf("Put %s: %v", name, err)
	}
	m.m[name] = b
}

func (m *machine) read(t *rapid.T) {
	name := drawName(t)
	off := rapid.IntRange(0, 50).Draw(t, "off")
	buf := make([]byte, rapid.IntRange(1, 50).Draw(t, "len"))
	n, err := m.s.ReadAt(m.tb.Context(), name, buf, int64(off))
	b, ok := m.m[name]
	if !ok {
		if !errors.Is(err, blobstore.ErrNotFound) {
			t.Fatalf("ReadAt of absent %s: %v", name, err)
		}
		return
	}
	want := b[min(off, len(b)):min(off+len(buf), len(b))]
	if !bytes.Equal(buf[:n], want) {
		t.Fatalf("ReadAt %s from %d: %x, want %x", name, off, buf[:n], want)
	}
	if short := n < len(buf); short != errors.Is(err, io.ErrUnexpectedEOF) || !short && err != nil {
		t.Fatalf("ReadAt %s: %d of %d bytes, %v", name, n, len(buf), err)
	}
}

func (m *machine) delete(t *rapid.T) {
	name := drawName(t)
	if err := m.s.Delete(m.tb.Context(), name); err != nil {
		t.Fatalf("Delete %s: %v", name, err)
	}
	delete(m.m, name)
}

func (m *machine) list(t *rapid.T) {
	name := drawName(t)
	prefix := name[:rapid.IntRange(0, len(name)).Draw(t, "prefix")]
	var want []string
	for n := range m.m {
		if strings.HasPrefix(n, prefix) {
			want = append(want, n)
		}
	}
	slices.Sort(want)
	got := slices.Sorted(maps.Keys(listed(m.tb, m.s, prefix)))
	if !slices.Equal(got, want) {
		t.Fatalf("List %q = %q, want %q", prefix, got, want)
	}
}

func (m *machine) check(t *rapid.T) {
	got := listed(m.tb, m.s, "")
	if len(got) != len(m.m) {
		t.Fatalf("List = %v, want %d blobs", got, len(m.m))
	}
	for name, b := range m.m {
		if size, ok := got[name]; !ok || size != int64(len(b)) {
			t.Fatalf("List says %s has %d bytes (%t), want %d", name, size, ok, len(b))
		}
	}
}
