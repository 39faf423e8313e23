package codec

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestRoundTrip(t *testing.T) {
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := rand.New(rand.NewPCG(1, 1))
	var dst []byte
	for _, n := range []int{1, 4096, 65536, 262144} {
		for _, alphabet := range []uint32{1, 4, 256} {
			src := make([]byte, n)
			for i := range src {
				src[i] = byte(r.Uint32N(alphabet))
			}
			if dst, err = c.Encode(dst, src); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, n)
			if err := c.Decode(got, dst); err != nil || !bytes.Equal(got, src) {
				t.Fatalf("%d bytes of %d values: %v", n, alphabet, err)
			}
			if err := c.Decode(make([]byte, n-1), dst); !errors.Is(err, ErrCorrupt) {
				t.Errorf("a frame of %d bytes went into %d: %v", n, n-1, err)
			}
			if err := c.Decode(make([]byte, n+1), dst); !errors.Is(err, ErrCorrupt) {
				t.Errorf("a frame of %d bytes filled %d: %v", n, n+1, err)
			}
			// The bytes are zstd whoever wrote them: an independent decoder reads them.
			dec, err := zstd.NewReader(nil)
			if err != nil {
				t.Fatal(err)
			}
			if out, err := dec.DecodeAll(dst, nil); err != nil || !bytes.Equal(out, src) {
				t.Fatalf("the pure Go decoder disagrees: %v", err)
			}
			dec.Close()
		}
	}
}

func FuzzDecode(f *testing.F) {
	c, err := New()
	if err != nil {
		f.Fatal(err)
	}
	enc, err := c.Encode(nil, bytes.Repeat([]byte("abcd"), 1000))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(enc, 4000)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 0 || n > 1<<20 {
			return
		}
		guard := make([]byte, n+64)
		if err := c.Decode(guard[:n:n], b); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("unnamed error %v", err)
		}
		if !bytes.Equal(guard[n:], make([]byte, 64)) {
			t.Fatal("wrote past the end")
		}
	})
}
