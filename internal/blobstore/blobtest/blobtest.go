// Package blobtest is the suite that every blob store driver passes: each
// sentence of blobstore's contract, one test.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
)

// Run runs the suite. open gives a new, empty store each time, whose end is
// t's end; a store may be opened several times in one test.
func Run(t *testing.T, open func(t *testing.T) blobstore.Store) {
	for _, tt := range []struct {
		name string
		test func(*testing.T, blobstore.Store)
	}{
		{"put and read back", testRoundTrip},
		{"empty and absent differ", testEmptyAndAbsent},
		{"a blob is never replaced", testImmutable},
		{"put keeps no slice", testSlicesStayOurs},
		{"big blob", testBig},
		{"short reads", testShortReads},
		{"good names", testGoodNames},
		{"bad names", testBadNames},
		{"list", testList},
		{"list stops at fn's error", testListStops},
		{"fn may use the store", testListReentrant},
		{"delete", testDelete},
		{"a name can be used again", testReuse},
		{"cancelled context", testCancelled},
		{"one of many puts wins", testConcurrentPut},
		{"readers, writers, deleters at once", testConcurrentMix},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, open(t)) })
	}
	t.Run("model", func(t *testing.T) { testModel(t, open) })
}

// Bytes makes n bytes that a seed decides.
func Bytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}

func mustPut(t testing.TB, s blobstore.Store, name string, parts ...[]byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, parts...); err != nil {
		t.Fatalf("Put %s: %v", name, err)
	}
}

// wantBlob checks Stat, a whole read and a read from the middle.
func wantBlob(t testing.TB, s blobstore.Store, name string, want []byte) {
	t.Helper()
	info, err := s.Stat(t.Context(), name)
	if err != nil || info != (blobstore.Info{Name: name, Size: int64(len(want))}) {
		t.Fatalf("Stat %s = %+v, %v; want %d bytes", name, info, err, len(want))
	}
	for _, off := range []int{0, len(want) / 2, len(want)} {
		got := make([]byte, len(want)-off)
		n, err := s.ReadAt(t.Context(), name, got, int64(off))
		if err != nil || n != len(got) || !bytes.Equal(got, want[off:]) {
			t.Fatalf("ReadAt %s from %d: %d bytes, %v; equal: %t", name, off, n, err, bytes.Equal(got, want[off:]))
		}
	}
}

func wantAbsent(t testing.TB, s blobstore.Store, name string) {
	t.Helper()
	if _, err := s.Stat(t.Context(), name); !errors.Is(err, blobstore.ErrNotFound) {
		t.Fatalf("Stat of absent %s: %v, want ErrNotFound", name, err)
	}
	if n, err := s.ReadAt(t.Context(), name, make([]byte, 1), 0); n != 0 || !errors.Is(err, blobstore.ErrNotFound) {
		t.Fatalf("ReadAt of absent %s: %d, %v, want ErrNotFound", name, n, err)
	}
}

// listed is List's answer as a map; a name that comes twice fails the test.
func listed(t testing.TB, s blobstore.Store, prefix string) map[string]int64 {
	t.Helper()
	got := make(map[string]int64)
	err := s.List(t.Context(), prefix, func(i blobstore.Info) error {
		if _, twice := got[i.Name]; twice {
			t.Errorf("List %q gave %s twice", prefix, i.Name)
		}
		got[i.Name] = i.Size
		return nil
	})
	if err != nil {
		t.Fatalf("List %q: %v", prefix, err)
	}
	return got
}

func wantList(t testing.TB, s blobstore.Store, prefix string, want ...string) {
	t.Helper()
	got := slices.Sorted(maps.Keys(listed(t, s, prefix)))
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("List %q = %q, want %q", prefix, got, want)
	}
}

func testRoundTrip(t *testing.T, s blobstore.Store) {
	mustPut(t, s, "data/00/one", []byte("a"), nil, []byte("bc"), []byte{}, []byte("def"))
	wantBlob(t, s, "data/00/one", []byte("abcdef"))
	mustPut(t, s, "top", []byte("level"))
	wantBlob(t, s, "top", []byte("level"))
	if got := listed(t, s, ""); got["data/00/one"] != 6 || got["top"] != 5 || len(got) != 2 {
		t.Fatalf("List = %v", got)
	}
}

func testEmptyAndAbsent(t *testing.T, s blobstore.Store) {
	wantAbsent(t, s, "none")
	wantAbsent(t, s, "no/folder/either")
	wantList(t, s, "")
	mustPut(t, s, "empty")
	mustPut(t, s, "also-empty", nil, []byte{})
	wantBlob(t, s, "empty", nil)
	wantBlob(t, s, "also-empty", nil)
	wantList(t, s, "", "also-empty", "empty")
	// What looks like a folder is no blob, nor is anything below a blob.
	mustPut(t, s, "f/x", []byte("x"))
	wantAbsent(t, s, "f")
	wantAbsent(t, s, "f/x/y")
	if err := s.Delete(t.Context(), "f"); err != nil {
		t.Fatalf("Delete of a folder's name: %v", err)
	}
	if err := s.Delete(t.Context(), "f/x/y"); err != nil {
		t.Fatalf("Delete below a blob: %v", err)
	}
	wantBlob(t, s, "f/x", []byte("x"))
}

func testImmutable(t *testing.T, s blobstore.Store) {
	mustPut(t, s, "n", []byte("first"))
	for _, b := range []string{"second, longer", "first", ""} {
		if err := s.Put(t.Context(), "n", []byte(b)); !errors.Is(err, blobstore.ErrExists) {
			t.Fatalf("Put over a blob: %v, want ErrExists", err)
		}
	}
	wantBlob(t, s, "n", []byte("first"))
	wantList(t, s, "", "n")
}

func testSlicesStayOurs(t *testing.T, s blobstore.Store) {
	a, b := []byte("aaaa"), []byte("bbbb")
	mustPut(t, s, "n", a, b)
	if string(a) != "aaaa" || string(b) != "bbbb" {
		t.Fatal("Put changed its slices")
	}
	copy(a, "XXXX")
	copy(b, "XXXX")
	wantBlob(t, s, "n", []byte("aaaabbbb"))
	buf := make([]byte, 8)
	if _, err := s.ReadAt(t.Context(), "n", buf, 0); err != nil {
		t.Fatal(err)
	}
	copy(buf, "XXXXXXXX")
	wantBlob(t, s, "n", []byte("aaaabbbb"))
}

func testBig(t *testing.T, s blobstore.Store) {
	b := Bytes(1, 33<<20+12345)
	mustPut(t, s, "data/ab/big", b[:7], b[7:1<<20], b[1<<20:])
	wantBlob(t, s, "data/ab/big", b)
}

func testShortReads(t *testing.T, s blobstore.Store) {
	mustPut(t, s, "n", []byte("0123456789"))
	for _, tt := range []struct {
		off  int64
		len  int
		want string
	}{
		{0, 11, "0123456789"}, {5, 6, "56789"}, {9, 2, "9"}, {10, 1, ""}, {11, 1, ""}, {1 << 40, 1, ""},
	} {
		buf := bytes.Repeat([]byte("x"), tt.len)
		n, err := s.ReadAt(t.Context(), "n", buf, tt.off)
		if !errors.Is(err, io.ErrUnexpectedEOF) || string(buf[:n]) != tt.want {
			t.Errorf("ReadAt(%d bytes, %d) = %q, %v; want %q and io.ErrUnexpectedEOF", tt.len, tt.off, buf[:n], err, tt.want)
		}
	}
	if n, err := s.ReadAt(t.Context(), "n", nil, 3); n != 0 || err != nil {
		t.Errorf("ReadAt of nothing: %d, %v", n, err)
	}
	if _, err := s.ReadAt(t.Context(), "n", make([]byte, 1), -1); !errs.Is(err, errs.Invalid) {
		t.Errorf("ReadAt from -1: %v, want Invalid", err)
	}
}

func testGoodNames(t *testing.T, s blobstore.Store) {
	names := []string{
		"a", "Z", "0", "_", "-", "a.", "a..b", "tmp/x", "put-1", "x-", "--", "A/b.C_d-e/9",
		strings.Repeat("n", blobstore.MaxName), strings.Repeat("d/", 99) + "dd",
		"point/ss-abc.0123.a", "lock", "list/list", "CON", "header/0000000000000001.a",
	}
	for _, n := range names {
		mustPut(t, s, n, []byte(n))
	}
	for _, n := range names {
		wantBlob(t, s, n, []byte(n))
	}
	wantList(t, s, "", slices.Clone(names)...)
	for _, n := range names {
		if err := s.Delete(t.Context(), n); err != nil {
			t.Fatalf("Delete %s: %v", n, err)
		}
	}
	wantList(t, s, "")
}

// BadNames are names that no driver may take.
var BadNames = []string{
	"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", "./a", "a/./b", ".a", "a/.b", ".tmp/x",
	"a b", "a\x00", "a\n", "ä", "a\\b", "a:b", "a*", "a?b", "a+b", "a~", "a%2e", "\xff", "a/\u200b",
	strings.Repeat("n", blobstore.MaxName+1), strings.Repeat("d/", 100) + "d",
}

func testBadNames(t *testing.T, s blobstore.Store) {
	for _, n := range BadNames {
		if err := s.Put(t.Context(), n, []byte("x")); !errs.Is(err, errs.Invalid) {
			t.Errorf("Put %q: %v, want Invalid", n, err)
		}
		if _, err := s.ReadAt(t.Context(), n, make([]byte, 1), 0); !errs.Is(err, errs.Invalid) {
			t.Errorf("ReadAt %q: %v, want Invalid", n, err)
		}
		if _, err := s.Stat(t.Context(), n); !errs.Is(err, errs.Invalid) {
			t.Errorf("Stat %q: %v, want Invalid", n, err)
		}
		if err := s.Delete(t.Context(), n); !errs.Is(err, errs.Invalid) {
			t.Errorf("Delete %q: %v, want Invalid", n, err)
		}
	}
	wantList(t, s, "")
}

func testList(t *testing.T, s blobstore.Store) {
	names := []string{"a", "ab/c", "ab/cd", "ab/d/e", "abc", "b/ab/c", "b/x"}
	for i, n := range names {
		mustPut(t, s, n, make([]byte, i))
	}
	for prefix, want := range map[string][]string{
		"":           names,
		"a":          {"a", "ab/c", "ab/cd", "ab/d/e", "abc"},
		"ab":         {"ab/c", "ab/cd", "ab/d/e", "abc"},
		"ab/":        {"ab/c", "ab/cd", "ab/d/e"},
		"ab/c":       {"ab/c", "ab/cd"},
		"ab/d":       {"ab/d/e"},
		"ab/d/":      {"ab/d/e"},
		"ab/d/e":     {"ab/d/e"},
		"ab/d/e/":    nil,
		"b":          {"b/ab/c", "b/x"},
		"c":          nil,
		"a/":         nil,
		"none/none/": nil,
		"/":          nil,
		"../":        nil,
		"./a":        nil,
		".":          nil,
		"ab//":       nil,
	} {
		wantList(t, s, prefix, slices.Clone(want)...)
	}
	for n, size := range listed(t, s, "") {
		if want := int64(slices.Index(names, n)); size != want {
			t.Errorf("List says %s has %d bytes, want %d", n, size, want)
		}
	}
}

func testListStops(t *testing.T, s blobstore.Store) {
	for _, n := range []string{"a/1", "a/2", "b/1", "c"} {
		mustPut(t, s, n)
	}
	mine := errors.New("mine")
	for stop := 1; stop <= 4; stop++ {
		calls := 0
		err := s.List(t.Context(), "", func(blobstore.Info) error {
			if calls++; calls == stop {
				return mine
			}
			return nil
		})
		if !errors.Is(err, mine) || calls != stop {
			t.Errorf("List stopped after %d calls with %v, want %d and fn's error", calls, err, stop)
		}
	}
}

func testListReentrant(t *testing.T, s blobstore.Store) {
	for _, n := range []string{"d/1", "d/2", "d/3", "e/1"} {
		mustPut(t, s, n, []byte(n))
	}
	err := s.List(t.Context(), "d/", func(i blobstore.Info) error {
		if err := s.Put(t.Context(), "copy/"+i.Name, []byte(i.Name)); err != nil {
			return err
		}
		return s.Delete(t.Context(), i.Name)
	})
	if err != nil {
		t.Fatal(err)
	}
	wantList(t, s, "", "copy/d/1", "copy/d/2", "copy/d/3", "e/1")
}

func testDelete(t *testing.T, s blobstore.Store) {
	mustPut(t, s, "d/x", []byte("x"))
	mustPut(t, s, "d/y", []byte("y"))
	wantBlob(t, s, "d/x", []byte("x"))
	for range 2 { // the second finds nothing, which is no error
		if err := s.Delete(t.Context(), "d/x"); err != nil {
			t.Fatal(err)
		}
		wantAbsent(t, s, "d/x")
	}
	if err := s.Delete(t.Context(), "never/was"); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, "d/y", []byte("y"))
	wantList(t, s, "", "d/y")
}

func testReuse(t *testing.T, s blobstore.Store) {
	for i := range 5 {
		b := Bytes(uint64(i), 100+i)
		mustPut(t, s, "d/n", b)
		wantBlob(t, s, "d/n", b)
		if err := s.Delete(t.Context(), "d/n"); err != nil {
			t.Fatal(err)
		}
		wantAbsent(t, s, "d/n")
	}
}

func testCancelled(t *testing.T, s blobstore.Store) {
	mustPut(t, s, "n", []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, readErr := s.ReadAt(ctx, "n", make([]byte, 1), 0)
	_, statErr := s.Stat(ctx, "n")
	for what, err := range map[string]error{
		"Put": s.Put(ctx, "m", []byte("y")), "Delete": s.Delete(ctx, "n"), "ReadAt": readErr, "Stat": statErr,
		"List": s.List(ctx, "", func(blobstore.Info) error { return nil }),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", what, err)
		}
	}
	wantAbsent(t, s, "m")
	wantBlob(t, s, "n", []byte("x"))
}
