package reloc

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"cairn/internal/repo/addr"
)

func sample(n int, seed uint64) *Table {
	r := rand.New(rand.NewPCG(seed, 1))
	t := &Table{Pack: addr.Pack{Kind: addr.Data, ID: addr.PackID{9}}}
	off := uint32(112)
	for i := range n {
		t.Entries = append(t.Entries, Entry{Old: off, New: addr.Loc{
			Pack: addr.Pack{Kind: addr.Data, ID: addr.PackID{1, byte(r.IntN(5))}}, Off: r.Uint32(), Len: uint32(i + 1)}})
		off += 1 + r.Uint32N(1000)
	}
	return t
}

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{1, 2, 500, MaxEntries} {
		want := sample(n, 7)
		b, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 1<<20 {
			t.Errorf("%d entries take %d bytes, above a record's 1 MiB", n, len(b))
		}
		got, err := Decode(want.Pack.ID, b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%d entries: %v; the table differs", n, err)
		}
		for _, e := range want.Entries[:min(n, 100)] {
			if loc, ok := got.Find(e.Old); !ok || loc != e.New {
				t.Errorf("offset %d is found at %+v, %v; want %+v", e.Old, loc, ok, e.New)
			}
			if _, ok := got.Find(e.Old + 1); ok && n == 1 {
				t.Errorf("offset %d is found, though nothing moved there", e.Old+1)
			}
		}
	}
	if _, err := (&Table{}).Encode(); err == nil {
		t.Error("an empty table was encoded")
	}
	if _, err := sample(MaxEntries+1, 1).Encode(); err == nil {
		t.Error("a table above the bound was encoded")
	}
}

func TestIDsName(t *testing.T) {
	p := addr.PackID{1, 2, 3}
	if got, ok := PackOf(ID(p)); !ok || got != p {
		t.Errorf("the id of %s names %s, %v", p, got, ok)
	}
	if _, ok := PackOf(addr.ID{31: 1}); ok {
		t.Error("a chunk's id passes for a relocation's")
	}
}

func FuzzDecode(f *testing.F) {
	for _, n := range []int{1, 3, 40} {
		b, err := sample(n, uint64(n)).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := Decode(addr.PackID{9}, b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("unnamed error %v", err)
			}
			return
		}
		again, err := table.Encode()
		if err != nil {
			t.Fatalf("what was decoded does not encode: %v", err)
		}
		back, err := Decode(addr.PackID{9}, again)
		if err != nil || !reflect.DeepEqual(back, table) {
			t.Fatalf("a table changes on its way: %v", err)
		}
		if len(again) == len(b) && !bytes.Equal(again[fixedSize+targetSize:], b[fixedSize+targetSize:]) && b[2] == 1 {
			t.Fatal("two byte strings stand for one table")
		}
	})
}
