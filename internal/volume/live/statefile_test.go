package live

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"cairn/internal/errs"
)

func listen(path string) (net.Listener, error) { return net.Listen("unix", path) }

// sample writes a state file with everything in it.
func sample(t testing.TB, dir string) string {
	c := newContent(head{Size: 5 << 30, Generation: 3, Base: "ref", Since: "point", Boot: "boot"})
	c.tree.addRange(100, 70000)
	c.pages.add(200, 0xF0)
	c.dirty.add(7)
	c.dirty.addRange(32768, 65536)
	c.intent.add(2)
	path := filepath.Join(dir, "vol-A.state")
	s, err := writeStateFile(path, 9, c)
	ok(t, err)
	for _, r := range []struct {
		kind byte
		p    []byte
	}{
		{recordLocal, appendPair(appendPair(nil, 100, allPages), 101, 0xF)},
		{recordIntent, appendPair(nil, 5, 2)},
		{recordLocal, appendPair(nil, 102, allPages)},
	} {
		ok(t, s.append(r.kind, r.p))
	}
	ok(t, s.sync())
	ok(t, s.close())
	return path
}

func TestStateFile(t *testing.T) {
	path := sample(t, t.TempDir())
	c, serial, err := readStateFile(path, "boot")
	ok(t, err)
	if serial != 9 || c.Size != 5<<30 || c.Generation != 3 || c.Base != "ref" || c.Since != "point" {
		t.Errorf("serial %d, head %+v", serial, c.head)
	}
	if c.tree.has(100) || !c.tree.has(101) || c.tree.has(102) || !c.tree.has(69999) || c.tree.has(70000) {
		t.Error("the tree's clusters are others")
	}
	if c.pages.of(101) != 0xF || c.pages.of(200) != 0xF0 {
		t.Error("the pages are others")
	}
	c.changed()
	for at, want := range map[int64]bool{7: true, 8: false, 512: true, 767: true, 768: false, 5 * 256: true, 7*256 - 1: true, 7 * 256: false, 40000: true} {
		if c.dirty.has(at) != want {
			t.Errorf("cluster %d counts as changed: %t", at, !want)
		}
	}
	// In another boot only what a commit covers is local.
	c, _, err = readStateFile(path, "later")
	ok(t, err)
	if !c.tree.has(100) || !c.tree.has(102) || c.pages.of(101) != 0 {
		t.Error("records of an earlier boot count without a commit")
	}
}

// Whatever byte of what was written at once is damaged, that is noticed; a
// file that is cut behind it loses appended records only.
func TestStateFileDamage(t *testing.T) {
	path := sample(t, t.TempDir())
	file, err := os.ReadFile(path)
	ok(t, err)
	c, _, err := parseState(file, "boot")
	ok(t, err)
	for off := int64(0); off < c.Whole; off += 7 {
		bad := bytes.Clone(file)
		bad[off] ^= 0x10
		if _, _, err := parseState(bad, "boot"); err == nil && !isPadding(file, off) {
			t.Fatalf("a flipped bit at %d passes", off)
		}
		if _, _, err := parseState(file[:off], "boot"); !errors.Is(err, errDamaged) {
			t.Fatalf("a file cut at %d passes: %v", off, err)
		}
	}
	ok(t, os.WriteFile(path, file[:c.Whole-1], 0o600))
	if _, _, err := readStateFile(path, "boot"); !errs.Is(err, errs.Corrupt) {
		t.Errorf("got %v", err)
	}
	if _, _, err := parseState(file[:c.Whole], "boot"); err != nil {
		t.Error(err)
	}
}

// isPadding reports whether a byte is one of those that no check covers, as
// they say nothing.
func isPadding(file []byte, at int64) bool {
	for off := int64(0); off <= at; {
		r, next, ok := nextRecord(file, 9, off)
		if !ok {
			return false
		}
		if at < next {
			in := at - off
			return in >= 5 && in < 8 || in >= 12 && in < 16 || in >= recordHeadLen+int64(len(r.payload))
		}
		off = next
	}
	return false
}

func FuzzStateFile(f *testing.F) {
	file, err := os.ReadFile(sample(f, f.TempDir()))
	ok(f, err)
	f.Add(file[:4096])
	f.Add(file)
	f.Fuzz(func(t *testing.T, file []byte) {
		c, _, err := parseState(file, "boot")
		if err != nil {
			return
		}
		c.changed()
		if c.dirty.n != clusters(c.Size) || c.tree.count() > c.tree.n {
			t.Fatalf("size %d, sets of %d", c.Size, c.dirty.n)
		}
	})
}

// The sets beside maps.
func TestSet(t *testing.T) {
	const n = 3*blockBits + 100
	s, want := newSet(n), map[int64]bool{}
	steps := []struct {
		from, to int64
		add      bool
	}{{5, 6, true}, {60, 70, true}, {blockBits - 3, 2*blockBits + 5, true}, {blockBits + 10, blockBits + 11, false},
		{0, n, true}, {1, blockBits * 2, false}, {blockBits, blockBits + 64, true}, {n - 1, n, false}}
	for _, st := range steps {
		for i := st.from; i < st.to; i++ {
			if st.add {
				want[i] = true
			} else {
				delete(want, i)
			}
		}
		if st.add {
			s.addRange(st.from, st.to)
		} else {
			s.removeRange(st.from, st.to)
		}
		if s.count() != int64(len(want)) {
			t.Fatalf("%+v: %d members, want %d", st, s.count(), len(want))
		}
		for i := int64(0); i < n; i += 31 {
			next, gap := i, i
			for next < n && !want[next] {
				next++
			}
			for gap < n && want[gap] {
				gap++
			}
			if s.next(i) != next || s.nextGap(i) != gap || s.has(i) != want[i] {
				t.Fatalf("%+v: from %d: next %d, gap %d, want %d, %d", st, i, s.next(i), s.nextGap(i), next, gap)
			}
			if next-i > 1000 {
				i = next - 32
			} else if gap-i > 1000 {
				i = gap - 32
			}
		}
	}
	if r := s.resized(blockBits + 7); r.count() != countBelow(want, blockBits+7) {
		t.Errorf("resized: %d members, want %d", r.count(), countBelow(want, blockBits+7))
	}
	other := newSet(n)
	other.add(n - 1)
	other.addAll(s)
	if other.count() != s.count()+1 {
		t.Errorf("added: %d members", other.count())
	}
}

func countBelow(m map[int64]bool, n int64) (k int64) {
	for i := range m {
		if i < n {
			k++
		}
	}
	return k
}
