package pack

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"cairn/internal/repo/addr"
	"cairn/internal/repo/keys"
)

func newSealer() *Sealer {
	var id addr.PackID
	keys.Random(id[:])
	return NewSealer(id, keys.NewMaster())
}

// sample builds a pack with one record of each kind and returns what went in.
func sample(t testing.TB, s *Sealer, kind addr.Kind, snapshot string) (p addr.Pack, blob []byte, locs []addr.Loc) {
	t.Helper()
	b := s.NewBuilder(kind, snapshot, nil)
	add := func(k RecordKind, ids []addr.ID, plain int, enc []byte) {
		loc, err := b.Add(k, Stored, ids, plain, enc)
		if err != nil {
			t.Fatal(err)
		}
		locs = append(locs, loc)
	}
	add(Frame, []addr.ID{{1}, {2}}, 2*addr.ChunkSize, bytes.Repeat([]byte("frame"), 100))
	add(NodeRec, []addr.ID{{3}}, 40, bytes.Repeat([]byte("n"), 40))
	size := b.SizeWith(1, 7)
	add(Manifest, []addr.ID{{4}}, 7, []byte("mmmmmmm"))
	blob, _ = b.Finish()
	if len(blob) != size {
		t.Fatalf("SizeWith foresaw %d bytes, the pack has %d", size, len(blob))
	}
	return b.Pack, blob, locs
}

func TestRoundTrip(t *testing.T) {
	s := newSealer()
	p, blob, locs := sample(t, s, addr.Data, "")
	n := 0
	err := s.Check(p, bytes.Clone(blob), func(e Entry, r Record) error {
		if e.Off != locs[n].Off || e.Len != locs[n].Len {
			t.Errorf("record %d lies at %d+%d, Add said %d+%d", n, e.Off, e.Len, locs[n].Off, locs[n].Len)
		}
		n++
		return nil
	})
	if err != nil || n != 3 {
		t.Fatalf("%d records, %v", n, err)
	}
	aead, err := s.Key(p, blob)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(aead, p.ID, bytes.Clone(blob[locs[1].Off:][:locs[1].Len]))
	if err != nil || r.Kind != NodeRec || string(r.Encoded) != string(bytes.Repeat([]byte("n"), 40)) {
		t.Fatalf("record 1: %+v, %v", r, err)
	}
}

// Every bit of a pack is checked by something.
func TestEveryFlippedByteIsNoticed(t *testing.T) {
	s := newSealer()
	p, blob, _ := sample(t, s, addr.Point, "ss-AAAA0000")
	for i := range blob {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(blob)
			b[i] ^= bit
			err := s.Check(p, b, func(Entry, Record) error { return nil })
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("byte %d ^ %#x: %v", i, bit, err)
			}
		}
	}
	for n := range blob {
		if err := s.Check(p, bytes.Clone(blob[:n]), func(Entry, Record) error { return nil }); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	t.Logf("%d flips and %d cuts", 2*len(blob), len(blob))
}

// A record read by itself, as restores do, is bound to its pack and its ids.
func TestRecordsCannotBeSwapped(t *testing.T) {
	s := newSealer()
	p, blob, locs := sample(t, s, addr.Data, "")
	q, other, _ := sample(t, s, addr.Data, "")
	aead, err := s.Key(p, blob)
	if err != nil {
		t.Fatal(err)
	}
	rec := func(b []byte) []byte { return bytes.Clone(b[locs[0].Off:][:locs[0].Len]) }
	if _, err := Open(aead, p.ID, rec(other)); !errors.Is(err, ErrDamaged) {
		t.Errorf("a record of another pack opened: %v", err)
	}
	if _, err := Open(aead, q.ID, rec(blob)); !errors.Is(err, ErrDamaged) {
		t.Errorf("a record opened under another pack's id: %v", err)
	}
	for i := range rec(blob) {
		b := rec(blob)
		b[i] ^= 4
		if _, err := Open(aead, p.ID, b); !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	if _, err := s.Key(q, blob); !errors.Is(err, ErrDamaged) {
		t.Errorf("a pack passes for another: %v", err)
	}
	if _, err := newSealer().Key(p, blob); !errors.Is(err, ErrDamaged) {
		t.Errorf("a pack of another repository opens: %v", err)
	}
}

func TestBuilderRefusesWhatCannotBe(t *testing.T) {
	b := newSealer().NewBuilder(addr.Data, "", nil)
	for name, bad := range map[string]func() error{
		"no ids":   func() error { _, err := b.Add(Frame, Stored, nil, 0, nil); return err },
		"17 ids":   func() error { _, err := b.Add(Frame, Stored, make([]addr.ID, 17), 0, nil); return err },
		"too long": func() error { _, err := b.Add(NodeRec, Stored, make([]addr.ID, 1), MaxPlain+1, nil); return err },
	} {
		if bad() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	b.Finish()
	if _, err := b.Add(NodeRec, Stored, make([]addr.ID, 1), 1, []byte{1}); err == nil {
		t.Error("a finished pack took a record")
	}
}

// Nobody may crash the parser, whatever he puts behind a valid key.
func FuzzOpen(f *testing.F) {
	s := newSealer()
	p, blob, locs := sample(f, s, addr.Data, "")
	aead, err := s.Key(p, blob)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(blob[locs[0].Off:][:locs[0].Len])
	f.Add(blob[locs[1].Off:])
	f.Add([]byte("CREC"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Open(aead, p.ID, bytes.Clone(b))
		if err == nil && !bytes.Contains(blob, b[:r.Len]) {
			t.Fatal("a record opened that was never sealed")
		}
	})
}

func FuzzDirectory(f *testing.F) {
	b := newSealer().NewBuilder(addr.Data, "", nil)
	if _, err := b.Add(NodeRec, Stored, make([]addr.ID, 1), 3, []byte("abc")); err != nil {
		f.Fatal(err)
	}
	f.Add(b.dir, uint32(len(b.buf)), uint32(1))
	f.Add([]byte{}, uint32(HeaderSize), uint32(0))
	f.Fuzz(func(t *testing.T, d []byte, dirOff, records uint32) {
		entries, err := parseDirectory(d, Footer{DirOff: dirOff, Records: records})
		if err != nil {
			return
		}
		next := uint32(HeaderSize)
		for _, e := range entries {
			if e.Off != next || e.Len == 0 {
				t.Fatalf("gap or overlap at %d", e.Off)
			}
			next += e.Len
		}
		if next != dirOff {
			t.Fatalf("entries end at %d, the directory begins at %d", next, dirOff)
		}
	})
}

func FuzzFooter(f *testing.F) {
	s := newSealer()
	p, blob, _ := sample(f, s, addr.Data, "")
	f.Add(blob[len(blob)-FooterSize:], int64(len(blob)))
	f.Fuzz(func(t *testing.T, tail []byte, size int64) {
		ft, err := ParseFooter(p.ID, tail, size)
		if err == nil && int64(ft.DirOff)+int64(ft.DirLen)+FooterSize != size {
			t.Fatal("the footer's lengths do not fit")
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	s := newSealer()
	enc := make([]byte, 100<<10)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range enc {
		enc[i] = byte(r.Uint32())
	}
	ids := make([]addr.ID, 4)
	buf := make([]byte, 0, 40<<20)
	b.SetBytes(int64(len(enc)))
	bd := s.NewBuilder(addr.Data, "", buf)
	for b.Loop() {
		if bd.Size() > 32<<20 {
			bd = s.NewBuilder(addr.Data, "", buf)
		}
		if _, err := bd.Add(Frame, Zstd, ids, 4*addr.ChunkSize, enc); err != nil {
			b.Fatal(err)
		}
	}
}

// Records that were given room may be sealed at once, in any order.
func TestSealedByMany(t *testing.T) {
	s := newSealer()
	b := s.NewBuilder(addr.Data, "", make([]byte, 0, 1<<20))
	want := map[addr.ID][]byte{}
	var wg sync.WaitGroup
	for i := range 200 {
		id, enc := addr.ID{byte(i), 1}, bytes.Repeat([]byte{byte(i)}, 10*i)
		r, err := b.Reserve(Frame, Stored, []addr.ID{id}, addr.ChunkSize, len(enc))
		if err != nil {
			t.Fatal(err)
		}
		want[id] = enc
		wg.Go(func() { r.Seal(enc) })
	}
	if _, err := b.Reserve(Frame, Stored, []addr.ID{{9}}, addr.ChunkSize, 1<<20); err == nil {
		t.Error("a record was given room that the pack's memory does not have")
	}
	wg.Wait()
	blob, _ := b.Finish()
	n := 0
	err := s.Check(b.Pack, blob, func(_ Entry, r Record) error {
		n++
		if !bytes.Equal(r.Encoded, want[r.IDs[0]]) {
			t.Errorf("record %d holds something else", r.Slot)
		}
		return nil
	})
	if err != nil || n != 200 {
		t.Fatalf("%d records, %v", n, err)
	}
}
