package index

import (
	"bytes"
	"os"
	"testing"
)

// FuzzRun damages a run file in any way, parses it and looks everything up in
// it. patch is a list of changes: place (3 bytes) and new byte; size is where
// the file ends. With fix the header's checksum is made right afterwards, so
// that what it guards is reached. Nothing may crash, and an entry that is
// found must have the id asked for.
//
// The input is a patch, not the file, because go test spends its time on
// making long inputs shorter.
func FuzzRun(f *testing.F) {
	dir := f.TempDir()
	entries := makeEntries(1, 8)
	temp, err := writeSorted(f.Context(), dir, entries, nil)
	if err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(temp)
	if err != nil {
		f.Fatal(err)
	}
	whole := uint32(len(good))
	f.Add([]byte{}, whole, false)
	f.Add([]byte{}, uint32(headSize), true)
	f.Add([]byte{16, 0, 0, 9}, whole+entrySize, true)                    // one entry more
	f.Add([]byte{23, 0, 0, 0x80}, whole, true)                           // a negative count
	f.Add([]byte{31, 0, 0, 0x80}, whole, true)                           // a huge filter
	f.Add([]byte{24, 0, 0, 0}, whole, true)                              // none
	f.Add([]byte{fanOffset + 80, 0, 0, 1}, whole, true)                  // fan-out not ascending
	f.Add([]byte{byte(whole - 64), byte(whole >> 8), 0, 0}, whole, true) // an id
	f.Fuzz(func(t *testing.T, patch []byte, size uint32, fix bool) {
		b := make([]byte, min(size, 2*whole))
		copy(b, good)
		for ; len(patch) >= 4; patch = patch[4:] {
			at := int(patch[0]) | int(patch[1])<<8 | int(patch[2])<<16
			if at < len(b) {
				b[at] = patch[3]
			}
		}
		if fix && len(b) >= headSize {
			le.PutUint32(b[headCRC:], headSum(b))
		}
		before := bytes.Clone(b)
		v, err := newView(b)
		if err != nil {
			return
		}
		lookAround(t, v, entries)
		if !bytes.Equal(b, before) {
			t.Fatal("reading changed the bytes")
		}
	})
}

func lookAround(t *testing.T, v view, entries []Entry) {
	t.Helper()
	ids := []ID{{}, {0xff, 0xff}, {0x80}}
	for _, e := range entries {
		ids = append(ids, e.ID)
	}
	for i := range min(v.count, 100) {
		ids = append(ids, ID(v.raw(i)))
	}
	for _, id := range ids {
		v.mayContain(&id)
		found, _ := v.lookup(&id, nil)
		for _, e := range found {
			if e.ID != id {
				t.Fatalf("asked for %x, got %x", id, e.ID)
			}
		}
	}
}
