package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/qcow2"
)

// whole reads all of r twice: flat, in steps of step bytes, and by Data alone.
func whole(ctx context.Context, r *qcow2.Reader, step int) (flat []byte, err error) {
	flat = bytes.Repeat([]byte{0xaa}, int(r.Size()))
	for off := 0; off < len(flat); off += step {
		if err := r.ReadAt(ctx, flat[off:min(off+step, len(flat))], int64(off)); err != nil {
			return nil, err
		}
	}
	sparse := make([]byte, r.Size())
	ranges, err := dataOf(ctx, r)
	if err != nil {
		return nil, err
	}
	for _, d := range ranges {
		if err := r.ReadAt(ctx, sparse[d.Off:d.End()], d.Off); err != nil {
			return nil, err
		}
	}
	if i := differs(flat, sparse); i >= 0 {
		return nil, fmt.Errorf("byte %d is %#x, and Data tells of a hole there", i, flat[i])
	}
	return flat, nil
}

// dataOf collects the ranges of Data and checks them.
func dataOf(ctx context.Context, r *qcow2.Reader) ([]extent.Range, error) {
	var ranges []extent.Range
	for off := int64(0); ; {
		d, err := r.Data(ctx, off)
		if errors.Is(err, io.EOF) {
			return ranges, nil
		}
		if err != nil {
			return nil, err
		}
		if d.Off < off || d.Len <= 0 || d.End() > r.Size() {
			return nil, fmt.Errorf("Data(%d) of %d bytes gave %d+%d", off, r.Size(), d.Off, d.Len)
		}
		ranges = append(ranges, d)
		off = d.End()
	}
}

// differs is the first place where a and b do, or -1.
func differs(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func openBytes(t testing.TB, file []byte) *qcow2.Reader {
	t.Helper()
	r, err := qcow2.Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sameAs compares a Reader with an image that may be far larger than memory.
func sameAs(ctx context.Context, r *qcow2.Reader, want *memImage) error {
	if size := (want.size + 511) / 512 * 512; r.Size() != size {
		return fmt.Errorf("size %d, want %d", r.Size(), size)
	}
	ranges, err := dataOf(ctx, r)
	if err != nil {
		return err
	}
	var got, expected [70_001]byte
	for _, d := range ranges {
		for off := d.Off; off < d.End(); off += int64(len(got)) {
			n := min(int64(len(got)), d.End()-off)
			if err := r.ReadAt(ctx, got[:n], off); err != nil {
				return err
			}
			clear(expected[:])
			if err := want.ReadAt(ctx, expected[:max(0, min(n, want.size-off))], off); err != nil {
				return err
			}
			if i := differs(got[:n], expected[:n]); i >= 0 {
				return fmt.Errorf("byte %d is %#x, want %#x", off+int64(i), got[i], expected[i])
			}
		}
	}
	for _, p := range want.pieces {
		missed := bytes.Clone(p.data)
		for _, d := range ranges {
			from, to := max(d.Off-p.off, 0), min(d.End()-p.off, int64(len(missed)))
			if from < to {
				clear(missed[from:to])
			}
		}
		if i := differs(missed, make([]byte, len(missed))); i >= 0 {
			return fmt.Errorf("Data tells of a hole at byte %d", p.off+int64(i))
		}
	}
	return nil
}

func TestReadOurOwn(t *testing.T) {
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := qcow2.Write(t.Context(), &out, l.img); err != nil {
				t.Fatal(err)
			}
			if err := sameAs(t.Context(), openBytes(t, out.Bytes()), l.img); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A Reader is an Image: writing what was read gives the same bytes again.
func TestReadAndWriteAgain(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		img := drawImage(rt)
		var first, second bytes.Buffer
		if err := qcow2.Write(context.Background(), &first, img); err != nil {
			rt.Fatal(err)
		}
		r, err := qcow2.Open(bytes.NewReader(first.Bytes()), int64(first.Len()))
		if err != nil {
			rt.Fatal(err)
		}
		if err := sameAs(context.Background(), r, img); err != nil {
			rt.Fatal(err)
		}
		if err := qcow2.Write(context.Background(), &second, r); err != nil {
			rt.Fatal(err)
		}
		if i := differs(first.Bytes(), second.Bytes()); i >= 0 {
			rt.Fatalf("written again, byte %d differs", i)
		}
	})
}

func TestReadGolden(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			r := openBytes(t, g.file(t))
			got, err := whole(t.Context(), r, 1777)
			if err != nil {
				t.Fatal(err)
			}
			if i := differs(got, g.content()); i >= 0 {
				t.Fatalf("byte %d of %d differs", i, len(got))
			}
			seed := rand.Uint64()
			rnd := rand.New(rand.NewPCG(seed, 0))
			for range 300 { // anywhere, so that nothing depends on the order
				off := rnd.IntN(len(got))
				buf := make([]byte, rnd.IntN(min(len(got)-off, 40_000))+1)
				if err := r.ReadAt(t.Context(), buf, int64(off)); err != nil || !bytes.Equal(buf, got[off:off+len(buf)]) {
					t.Fatalf("seed %d: %d bytes at %d differ: %v", seed, len(buf), off, err)
				}
			}
		})
	}
}

// A file that was cut anywhere is never taken for whole with other content.
func TestCutAnywhere(t *testing.T) {
	total := 0
	t.Cleanup(func() { t.Logf("%d cuts", total) })
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			file, want := g.file(t), g.content()
			whole, cuts := 0, 0
			for n := 0; n < len(file); n += 97 {
				total++
				got, err := readCut(t.Context(), file[:n])
				switch {
				case err == nil && differs(got, want) < 0:
					whole++ // only padding is gone
				case err == nil:
					t.Fatalf("cut to %d of %d bytes: byte %d is wrong", n, len(file), differs(got, want))
				case errs.KindOf(err) != errs.Corrupt && n > 8:
					t.Fatalf("cut to %d of %d bytes: %v (%v)", n, len(file), err, errs.KindOf(err))
				default:
					cuts++
				}
			}
			if cuts == 0 {
				t.Errorf("all %d cuts went unnoticed", whole)
			}
		})
	}
}

func readCut(ctx context.Context, file []byte) ([]byte, error) {
	r, err := qcow2.Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		return nil, err
	}
	return whole(ctx, r, 4096)
}

func TestOutside(t *testing.T) {
	r := openBytes(t, goldens[0].file(t))
	for _, tt := range []struct {
		off int64
		n   int
	}{{-1, 1}, {r.Size(), 1}, {r.Size() - 1, 2}, {1 << 62, 1}, {0, int(r.Size()) + 1}} {
		if err := r.ReadAt(t.Context(), make([]byte, tt.n), tt.off); err == nil {
			t.Errorf("%d bytes at %d were read of %d", tt.n, tt.off, r.Size())
		}
	}
	if _, err := r.Data(t.Context(), -1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("Data(-1): %v", err)
	}
	for _, off := range []int64{r.Size(), r.Size() + 1, 1 << 62} {
		if _, err := r.Data(t.Context(), off); !errors.Is(err, io.EOF) {
			t.Errorf("Data(%d): %v", off, err)
		}
	}
	if err := r.ReadAt(t.Context(), nil, r.Size()); err != nil {
		t.Errorf("nothing at the end: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errBroken)
	if _, err := r.Data(ctx, 0); !errors.Is(err, errBroken) {
		t.Errorf("Data when cancelled: %v", err)
	}
	if err := r.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, errBroken) {
		t.Errorf("ReadAt when cancelled: %v", err)
	}
}

// failingAt is a file whose n-th read fails, and those after it.
type failingAt struct {
	*bytes.Reader
	n int
}

func (f *failingAt) ReadAt(p []byte, off int64) (int, error) {
	if f.n--; f.n < 0 {
		return 0, errBroken
	}
	return f.Reader.ReadAt(p, off)
}

func TestEveryReadMayFail(t *testing.T) {
	for _, g := range goldens {
		file := g.file(t)
		for n := 0; ; n++ {
			r, err := qcow2.Open(&failingAt{bytes.NewReader(file), n}, int64(len(file)))
			if err == nil {
				_, err = whole(t.Context(), r, 4096)
			}
			if err == nil {
				if n < 4 {
					t.Errorf("%s: only %d reads", g.name, n)
				}
				break
			}
			if !errors.Is(err, errBroken) || errs.KindOf(err) != errs.Internal {
				t.Fatalf("%s, read %d: %v (%v)", g.name, n, err, errs.KindOf(err))
			}
		}
	}
}

// A file that shrinks while it is read is told from one that was always cut.
func TestShrinks(t *testing.T) {
	file := goldens[0].file(t)
	r, err := qcow2.Open(bytes.NewReader(file[:len(file)/2]), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := whole(t.Context(), r, 4096); errs.KindOf(err) != errs.Conflict {
		t.Errorf("got %v", err)
	}
}

// An odd size is given as it stands; QEMU makes none, others may.
func TestOddSize(t *testing.T) {
	file := goldens[0].file(t)
	want := goldenContent()
	size := len(want) - 333
	binary.BigEndian.PutUint64(file[24:], uint64(size))
	got, err := readCut(t.Context(), file)
	if err != nil || !bytes.Equal(got, want[:size]) {
		t.Errorf("%d bytes, want the first %d: %v", len(got), size, err)
	}
}
