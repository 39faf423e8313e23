package index

import (
	"bytes"
	"os"
	"testing"
)

// FuzzRun parses any bytes as a run file and looks everything up in it. With
// fix the header's checksum is made right first, so that what it guards is
// reached. Nothing may crash, and an entry found must have the id asked for.
func FuzzRun(f *testing.F) {
	dir := f.TempDir()
	temp, err := writeSorted(f.Context(), dir, makeEntries(1, 8), nil)
	if err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(temp)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, false)
	f.Add(b[:headSize], false)
	f.Add(b[:100], true)
	grown := bytes.Clone(b)
	grown[16]++
	f.Add(grown, true)
	fan := bytes.Clone(b)
	le.PutUint64(fan[fanOffset+8*3:], 1<<62)
	f.Add(fan, true)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix && len(b) >= headSize {
			b = bytes.Clone(b)
			copy(b, magic[:])
			le.PutUint32(b[8:], version)
			le.PutUint32(b[headCRC:], headSum(b))
		}
		v, err := newView(b)
		if err != nil {
			return
		}
		ids := []ID{{}, {0xff, 0xff}, {0x80}}
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
	})
}
