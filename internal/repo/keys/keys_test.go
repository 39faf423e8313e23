package keys

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/repo/addr"
)

func newFile() File {
	var id addr.PackID
	Random(id[:])
	return NewFile(id)
}

func TestKeyFileText(t *testing.T) {
	f := newFile()
	got, err := ParseFile(f.Text())
	if err != nil || got != f {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := ParseFile("  " + strings.TrimSpace(f.Text()) + "\r\n"); err != nil {
		t.Errorf("white space around the key: %v", err)
	}
	line := strings.TrimSpace(f.Text())
	for i := range line {
		b := []byte(line)
		b[i] ^= 1
		g, err := ParseFile(string(b))
		if err == nil {
			t.Fatalf("character %d changed, accepted as %v", i, g == f)
		}
		if strings.Contains(err.Error(), line[50:80]) {
			t.Fatal("the error holds key material")
		}
	}
}

func TestHeader(t *testing.T) {
	f, m := newFile(), NewMaster()
	h := NewHeader(m, f.Repo, f, time.Unix(1, 2000))
	b := h.Encode(m)
	got, gm, err := Decode(b, f)
	if err != nil || gm != m || got.Repo != f.Repo || got.Generation != 1 || !got.Created.Equal(h.Created) {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := h.Verify(m, 1, b); err != nil {
		t.Error(err)
	}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 0x10
		if _, _, err := Decode(c, f); !errs.Is(err, errs.Corrupt) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		if h.Verify(m, 1, c) == nil {
			t.Fatalf("byte %d flipped: passes", i)
		}
	}
	for n := range b {
		if _, _, err := Decode(b[:n], f); !errs.Is(err, errs.Corrupt) {
			t.Fatalf("cut to %d: %v", n, err)
		}
	}
	other := newFile()
	if _, _, err := Decode(b, other); !errs.Is(err, errs.Denied) {
		t.Errorf("another repository's key: %v", err)
	}
	other.Repo = f.Repo
	if _, _, err := Decode(b, other); !errs.Is(err, errs.Denied) {
		t.Errorf("a wrong key: %v", err)
	}
}

func TestIDsAreKeyed(t *testing.T) {
	a, b := NewMaster(), NewMaster()
	x := []byte("same content")
	if a.Chunks().ID(x) == b.Chunks().ID(x) || a.Chunks().ID(x) == a.Nodes().ID(x) || a.Nodes().ID(x) == a.Manifests().ID(x) {
		t.Fatal("ids do not depend on the key and the kind")
	}
	if a.Chunks().ID(x) != a.Chunks().ID(x[:4], x[4:]) || a.Chunks().Clone().ID(x) != a.Chunks().ID(x) {
		t.Fatal("ids differ for equal content")
	}
}

func FuzzKeyFile(f *testing.F) {
	f.Add(newFile().Text())
	f.Add("CAIRN-KEY-1-")
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParseFile(s); err == nil && strings.TrimSpace(k.Text()) != strings.TrimSpace(s) && !strings.EqualFold(strings.TrimSpace(k.Text()), strings.TrimSpace(s)) {
			t.Fatal("accepted, but reads back differently")
		}
	})
}
