package qcow2_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/qcow2"
)

var update = flag.Bool("update", false, "rewrite testdata")

const (
	cluster = 64 << 10
	mib     = 1 << 20
	gib     = 1 << 30
)

func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	_, _ = rand.NewChaCha8(key).Read(p) // never fails, says its documentation
	return p
}

var layouts = []struct {
	name string
	img  *memImage
}{
	{"empty volume", newImage(0)},
	{"one byte", newImage(1, piece{0, []byte{7}})},
	{"one sector of zeros", newImage(512)},
	{"all zero", newImage(10 * mib)},
	{"full", newImage(5*mib, piece{0, noise(1, 5*mib)})},
	{"full, odd tail", newImage(3*mib+777, piece{0, noise(2, 3*mib+777)})},
	{"size not a multiple of a cluster", newImage(cluster*3+1024, piece{cluster * 3, noise(3, 1024)})},
	{"size not a multiple of a sector", newImage(cluster+513, piece{cluster + 512, []byte{9}})},
	{"allocated zeros", newImage(mib, piece{cluster, make([]byte, cluster)})},
	{"two pieces in one cluster", newImage(mib, piece{10, []byte{1}}, piece{cluster - 1, []byte{2}})},
	{"a piece over a cluster's edge", newImage(mib, piece{cluster - 1, []byte{1, 2}})},
	{"a piece over an L2 table's edge", newImage(gib, piece{512*mib - 3, noise(4, 3*cluster)})},
	{"data only in the last table", newImage(3*gib+512, piece{3 * gib, noise(5, 512)})},
	{"1 TiB sparse", newImage(1<<40, piece{0, noise(6, 4096)}, piece{1 << 39, noise(7, 2*mib+5)}, piece{1<<40 - 1, []byte{1}})},
	{"L1 of several clusters", newImage(9<<40, piece{5 << 40, noise(8, 4096)}, piece{9<<40 - 7, noise(9, 7)})},
}

func TestLayouts(t *testing.T) {
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := qcow2.Write(t.Context(), &out, l.img); err != nil {
				t.Fatal(err)
			}
			if err := check(l.img, out.Bytes()); err != nil {
				t.Fatal(err)
			}
			qemuCheck(t, l.img, out.Bytes())
		})
	}
}

// drawImage makes a volume whose pieces like the edges of clusters and tables.
func drawImage(t *rapid.T) *memImage {
	size := rapid.OneOf(rapid.Int64Range(0, 4*mib), rapid.Int64Range(500*mib, 1200*mib)).Draw(t, "size")
	edge := rapid.OneOf(
		rapid.Int64Range(0, max(0, size-1)),
		rapid.Map(rapid.Int64Range(0, size/cluster), func(c int64) int64 { return c * cluster }),
		rapid.Just(int64(512*mib)), rapid.Just(size),
	)
	var rs []extent.Range
	for range rapid.IntRange(0, 12).Draw(t, "pieces") {
		off := max(0, edge.Draw(t, "edge")+rapid.Int64Range(-600, 600).Draw(t, "shift"))
		length := rapid.OneOf(rapid.Int64Range(1, 600), rapid.Int64Range(1, 3*cluster), rapid.Int64Range(mib, 2*mib)).Draw(t, "len")
		if end := min(off+length, size); end > off {
			rs = append(rs, extent.Range{Off: off, Len: end - off})
		}
	}
	var pieces []piece
	for i, r := range extent.Normalize(rs) {
		pieces = append(pieces, piece{r.Off, noise(uint64(i), int(r.Len))})
	}
	return newImage(size, pieces...)
}

func TestRandomLayouts(t *testing.T) {
	withQEMU := 25 // each costs two processes
	rapid.Check(t, func(rt *rapid.T) {
		img := drawImage(rt)
		var out bytes.Buffer
		if err := qcow2.Write(context.Background(), &out, img); err != nil {
			rt.Fatal(err)
		}
		if err := check(img, out.Bytes()); err != nil {
			rt.Fatal(err)
		}
		if withQEMU > 0 {
			withQEMU--
			qemuCheck(t, img, out.Bytes())
		}
	})
}

// Enough data for a second refcount block: more than 2 GiB of file.
func TestSecondRefcountBlock(t *testing.T) {
	img := newImage(5 * gib)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	chunk := noise(seed, 4096)
	for off := int64(0); off < 2*gib+64*mib; off += cluster {
		img.pieces = append(img.pieces, piece{off, chunk})
	}
	var head headWriter
	if err := qcow2.Write(t.Context(), &head, &uniform{img}); err != nil {
		t.Fatal(err)
	}
	if got := int(head.kept[59]); got != 1 {
		t.Fatalf("refcount table of %d clusters", got)
	}
	table := head.kept[cluster : 2*cluster]
	blocks := 0
	for i := 0; i < len(table); i += 8 {
		if !bytes.Equal(table[i:i+8], make([]byte, 8)) {
			blocks++
		}
	}
	if blocks != 2 {
		t.Fatalf("%d refcount blocks, want 2", blocks)
	}
	// The second block counts exactly the clusters that lie behind the first's.
	ones := bytes.Count(head.kept[3*cluster:4*cluster], []byte{0, 1})
	if want := int(head.total/cluster) - 32768; ones != want {
		t.Fatalf("second block counts %d clusters, want %d", ones, want)
	}
}

// uniform answers Data and ReadAt for evenly spread pieces without a search.
type uniform struct{ *memImage }

func (u *uniform) Data(_ context.Context, off int64) (extent.Range, error) {
	i := (off + cluster - 1) / cluster
	if i >= int64(len(u.pieces)) {
		return extent.Range{}, io.EOF
	}
	return extent.Range{Off: i * cluster, Len: 4096}, nil
}

func (u *uniform) ReadAt(_ context.Context, buf []byte, off int64) error {
	for at := 0; at < len(buf); at += cluster {
		copy(buf[at:], u.pieces[(off+int64(at))/cluster].data)
	}
	return nil
}

// headWriter keeps the first clusters and counts the rest.
type headWriter struct {
	kept  []byte
	total int64
}

func (h *headWriter) Write(p []byte) (int, error) {
	if len(h.kept) < 8*cluster {
		h.kept = append(h.kept, p...)
	}
	h.total += int64(len(p))
	return len(p), nil
}

func TestGolden(t *testing.T) {
	img := newImage(70_001, piece{3, []byte("first cluster")}, piece{69_990, []byte("odd tail...")})
	var out bytes.Buffer
	if err := qcow2.Write(t.Context(), &out, img); err != nil {
		t.Fatal(err)
	}
	got := dump(out.Bytes())
	path := filepath.Join("testdata", "tiny.hex")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Fatalf("the format changed; if that is meant, run with -update\ngot:\n%s", got)
	}
}

// dump writes 16 bytes a line, like hexdump -C: a star stands for repetition.
func dump(p []byte) string {
	var b strings.Builder
	starred := false
	for off := 0; off < len(p); off += 16 {
		line := p[off:min(off+16, len(p))]
		if off > 0 && off+16 < len(p) && bytes.Equal(line, p[off-16:off]) {
			if !starred {
				b.WriteString("*\n")
			}
			starred = true
			continue
		}
		starred = false
		fmt.Fprintf(&b, "%08x  %s\n", off, hex.EncodeToString(line))
	}
	return b.String()
}

var errBroken = errors.New("broken")

// brokenPipe fails at the n-th write.
type brokenPipe struct{ left int }

func (b *brokenPipe) Write(p []byte) (int, error) {
	if b.left--; b.left < 0 {
		return 0, errBroken
	}
	return len(p), nil
}

func TestEveryWriteMayFail(t *testing.T) {
	img := newImage(gib, piece{5, []byte{1}}, piece{700 * mib, noise(1, 3*mib)})
	for n := 0; ; n++ {
		if n > 100 {
			t.Fatal("Write does not come to an end")
		}
		err := qcow2.Write(t.Context(), &brokenPipe{left: n}, img)
		if err == nil {
			if n < 10 {
				t.Fatalf("only %d writes", n)
			}
			return
		}
		if !errors.Is(err, errBroken) {
			t.Fatalf("write %d: %v", n, err)
		}
	}
}

// fickle shows other data from the k-th call of Data on.
type fickle struct {
	*memImage
	calls, k int
	other    *memImage
}

func (f *fickle) Data(ctx context.Context, off int64) (extent.Range, error) {
	if f.calls++; f.calls > f.k {
		return f.other.Data(ctx, off)
	}
	return f.memImage.Data(ctx, off)
}

func TestErrors(t *testing.T) {
	one := newImage(mib, piece{0, []byte{1}})
	two := newImage(mib, piece{0, []byte{1}}, piece{2 * cluster, []byte{1}})
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name string
		ctx  context.Context
		img  qcow2.Image
		is   error
		kind errs.Kind
	}{
		{"negative size", t.Context(), &memImage{size: -1}, nil, errs.Invalid},
		{"too large for QEMU", t.Context(), &memImage{size: 1 << 52}, nil, errs.TooLarge},
		{"read fails", t.Context(), &memImage{size: mib, pieces: one.pieces, readErr: errBroken}, errBroken, errs.Internal},
		{"data fails", t.Context(), &memImage{size: mib, dataErr: errBroken}, errBroken, errs.Internal},
		{"data grew between the walks", t.Context(), &fickle{memImage: one, k: 2, other: two}, nil, errs.Conflict},
		{"data shrank between the walks", t.Context(), &fickle{memImage: two, k: 3, other: one}, nil, errs.Conflict},
		{"a range that goes backwards", t.Context(), backwards{one}, nil, errs.Internal},
		{"cancelled", cancelled, one, context.Canceled, errs.Internal},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := qcow2.Write(tt.ctx, io.Discard, tt.img)
			if err == nil || errs.KindOf(err) != tt.kind || (tt.is != nil && !errors.Is(err, tt.is)) {
				t.Fatalf("got %v (%v), want %v %v", err, errs.KindOf(err), tt.kind, tt.is)
			}
		})
	}
}

// backwards breaks the contract of Data.
type backwards struct{ *memImage }

func (backwards) Data(context.Context, int64) (extent.Range, error) {
	return extent.Range{Off: 0, Len: 1}, nil
}

// qemuCheck has QEMU's own tool check the file and compare it with the raw
// image, if it is installed.
func qemuCheck(t *testing.T, img *memImage, file []byte) {
	t.Helper()
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Log("qemu-img is not installed (Debian: qemu-utils): only checked by the test's own reader")
		return
	}
	dir, err := os.MkdirTemp(t.TempDir(), "qemu")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "image.qcow2")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, tool, args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("check", "-q", "-f", "qcow2", path)
	if img.size <= 1<<40 { // not every filesystem takes larger raw files
		raw := img.writeRaw(t, dir)
		run("compare", "-q", "-f", "raw", "-F", "qcow2", raw, path)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}
