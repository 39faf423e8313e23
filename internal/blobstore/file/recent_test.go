package file

import (
	"slices"
	"testing"
)

func TestRecent(t *testing.T) {
	r := recent{keep: 100 << 20}
	var gone []string
	for _, w := range []written{{"a", 40 << 20}, {"b", 40 << 20}, {"c", 40 << 20}, {"d", 10 << 20}, {"e", 200 << 20}, {"f", 1 << 20}} {
		for _, old := range r.displaced(w) {
			gone = append(gone, old.path)
		}
	}
	if want := []string{"a", "b", "c", "d", "e"}; !slices.Equal(gone, want) {
		t.Errorf("displaced %v, want %v", gone, want)
	}
	if len(r.blobs) != 1 || r.bytes != 1<<20 {
		t.Errorf("left are %v with %d bytes", r.blobs, r.bytes)
	}
	r.add("small ones do not count", forgetFrom-1)
	r.add("/one/that/is/gone", 100<<20)
	r.add("/another", 100<<20)
	if len(r.blobs) != 1 || r.bytes != 100<<20 {
		t.Errorf("left are %v with %d bytes", r.blobs, r.bytes)
	}
	if n := newRecent(); n.keep <= 0 || n.keep > keepMost {
		t.Errorf("%d bytes are kept on this machine", n.keep)
	}
}
