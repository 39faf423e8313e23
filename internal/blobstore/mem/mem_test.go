package mem_test

import (
	"bytes"
	"errors"
	"testing"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/blobtest"
	"cairn/internal/blobstore/mem"
)

func TestConformance(t *testing.T) {
	blobtest.Run(t, func(*testing.T) blobstore.Store { return mem.New() })
}

func TestCloneIsApart(t *testing.T) {
	s := mem.New()
	if err := s.Put(t.Context(), "a", []byte("a")); err != nil {
		t.Fatal(err)
	}
	c := s.Clone()
	if err := errors.Join(s.Put(t.Context(), "b"), s.Delete(t.Context(), "a"), c.Put(t.Context(), "c")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		s    *mem.Store
		name string
		have bool
	}{{s, "a", false}, {s, "b", true}, {s, "c", false}, {c, "a", true}, {c, "b", false}, {c, "c", true}} {
		_, err := tt.s.Stat(t.Context(), tt.name)
		if have := !errors.Is(err, blobstore.ErrNotFound); have != tt.have {
			t.Errorf("%s: %v, want there: %t", tt.name, err, tt.have)
		}
	}
}

func TestDamage(t *testing.T) {
	s := mem.New()
	if err := s.Put(t.Context(), "a", []byte("abc")); err != nil {
		t.Fatal(err)
	}
	c := s.Clone()
	if err := s.Damage("a", func(b []byte) []byte { b[1] ^= 1; return b }); err != nil {
		t.Fatal(err)
	}
	for s, want := range map[*mem.Store]string{s: "acc", c: "abc"} {
		got := make([]byte, 3)
		if _, err := s.ReadAt(t.Context(), "a", got, 0); err != nil || !bytes.Equal(got, []byte(want)) {
			t.Errorf("read %q, %v; want %q", got, err, want)
		}
	}
	if err := s.Damage("b", bytes.Clone); !errors.Is(err, blobstore.ErrNotFound) {
		t.Errorf("Damage of an absent blob: %v", err)
	}
}
