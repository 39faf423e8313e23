package pack

import (
	"bytes"
	"testing"

	"cairn/internal/repo/addr"
)

// A record that lies outside of the damage is found and opens, wherever a byte
// is flipped or the pack is cut.
func TestSurveyFindsWhatIsLeft(t *testing.T) {
	s := newSealer()
	p, blob, locs := sample(t, s, addr.Point, "ss-AAAA0000")
	aead, err := s.Key(p, blob)
	if err != nil {
		t.Fatal(err)
	}
	survey := func(b []byte, whole func(l addr.Loc) bool) {
		t.Helper()
		v := NewSurvey(p, aead, b)
		for i, l := range locs {
			opened := false
			for _, e := range v.Entries {
				if e.Off != l.Off {
					continue
				}
				r, err := OpenEntry(p, aead, b, e)
				opened = err == nil && r.Len == int(l.Len) && r.Slot == uint32(i)
			}
			if opened != whole(l) {
				t.Fatalf("record %d at %d+%d: opened=%t, whole=%t; %+v", i, l.Off, l.Len, opened, whole(l), v)
			}
		}
	}
	for i := range blob {
		b := bytes.Clone(blob)
		b[i] ^= 0x10
		v := NewSurvey(p, aead, b)
		if v.ContentErr == nil {
			t.Fatalf("byte %d: the content hash passes", i)
		}
		survey(b, func(l addr.Loc) bool { return i < int(l.Off) || i >= int(l.Off+l.Len) })
	}
	for n := range blob {
		survey(blob[:n], func(l addr.Loc) bool { return int(l.Off+l.Len) <= n })
	}
	t.Logf("%d flips and %d cuts", len(blob), len(blob))
	v := NewSurvey(p, aead, blob)
	if v.FooterErr != nil || v.ContentErr != nil || v.DirectoryErr != nil || v.Scanned || len(v.Entries) != len(locs) {
		t.Errorf("a whole pack: %+v", v)
	}
}

// Without a key the plain parts still tell what lies where.
func TestSurveyWithoutAKey(t *testing.T) {
	p, blob, locs := sample(t, newSealer(), addr.Data, "")
	v := NewSurvey(p, nil, blob)
	if v.FooterErr != nil || v.ContentErr != nil || v.DirectoryErr == nil || !v.Scanned || len(v.Entries) != len(locs) {
		t.Fatalf("%+v", v)
	}
	for i, e := range v.Entries {
		if e.Off != locs[i].Off || e.Len != locs[i].Len || len(e.IDs) == 0 {
			t.Errorf("record %d: %+v", i, e)
		}
		if _, err := OpenEntry(p, nil, blob, e); err == nil {
			t.Error("opened without a key")
		}
	}
}
