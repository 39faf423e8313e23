package index

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

// machine drives an index beside a set of its entries. Ids and packs come from
// small pools, so that steps meet; damage makes entries optional.
type machine struct {
	t    *testing.T
	dir  string
	x    *Index
	have map[Entry]bool // true: must be found; false: damage may have hidden it
}

// open opens the index without fsyncs: nothing here crashes the machine.
func (m *machine) open() (*Index, error) {
	x, err := Open(m.dir)
	if err == nil {
		x.sync = func(*os.File) error { return nil }
	}
	return x, err
}

func (m *machine) draw(t *rapid.T) []Entry {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Entry {
		var e Entry
		n := rapid.Uint64Range(0, 40).Draw(t, "id")
		// Spread like a hash would, and equal prefixes too.
		binary.BigEndian.PutUint64(e.ID[:], n/2*0x9e3779b97f4a7c15)
		e.ID[31] = byte(n)
		e.Pack[0] = rapid.Byte().Draw(t, "pack") % 5
		e.Offset = rapid.Uint32Range(0, 2).Draw(t, "offset")
		e.Sub = rapid.Uint8Range(0, 3).Draw(t, "sub")
		return e
	}), 1, 12).Draw(t, "entries")
}

func (m *machine) add(t *rapid.T) {
	entries := m.draw(t)
	if err := m.x.Add(m.t.Context(), entries); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		m.have[e] = true
	}
}

func (m *machine) removePack(t *rapid.T) {
	var p [16]byte
	p[0] = rapid.Byte().Draw(t, "pack") % 5
	if err := m.x.RemovePacks(m.t.Context(), [][16]byte{p}); err != nil {
		t.Fatal(err)
	}
	for e := range m.have {
		if e.Pack == p {
			delete(m.have, e)
		}
	}
}

func (m *machine) rebuild(t *rapid.T) {
	entries := m.draw(t)
	m.x.sortBytes = rapid.IntRange(1, 400).Draw(t, "memory")
	err := m.x.Rebuild(m.t.Context(), func(put func(Entry) error) error {
		for _, e := range entries {
			if err := put(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	clear(m.have)
	for _, e := range entries {
		m.have[e] = true
	}
}

func (m *machine) reopen(t *rapid.T) {
	if err := m.x.Close(); err != nil {
		t.Fatal(err)
	}
	x, err := m.open()
	if err != nil {
		t.Fatal(err)
	}
	m.x = x
}

// damage flips one byte of one file while the index is closed. From then on
// nothing that is there must be found, but nothing else may be.
func (m *machine) damage(t *rapid.T) {
	if err := m.x.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(m.dir, runPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) > 0 {
		p := rapid.SampledFrom(files).Draw(t, "file")
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		for e := range m.have {
			m.have[e] = false
		}
	}
	if m.x, err = m.open(); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) check(t *rapid.T) {
	byID := make(map[ID][]Entry)
	for e := range m.have {
		byID[e.ID] = nil
	}
	for id := range byID {
		seen := make(map[Entry]bool)
		for _, e := range m.x.Lookup(id, nil) {
			if _, ok := m.have[e]; !ok || e.ID != id {
				t.Fatalf("Lookup(%x) gave %+v, which is not there", id, e)
			}
			seen[e] = true
		}
		for e, must := range m.have {
			if must && e.ID == id && !seen[e] {
				t.Fatalf("Lookup(%x) misses %+v", id, e)
			}
		}
	}
	if err := m.x.Scan(func(e Entry) error {
		if _, ok := m.have[e]; !ok {
			t.Fatalf("Scan gave %+v, which is not there", e)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestModel runs random histories; rapid prints the seed of one that fails.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &machine{t: t, dir: t.TempDir(), have: make(map[Entry]bool)}
		var err error
		if m.x, err = m.open(); err != nil {
			rt.Fatal(err)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"add": m.add, "add2": m.add, "add3": m.add,
			"removePack": m.removePack, "rebuild": m.rebuild, "reopen": m.reopen, "damage": m.damage,
			"": m.check,
		})
		if err := m.x.Close(); err != nil {
			rt.Fatal(err)
		}
	})
}
