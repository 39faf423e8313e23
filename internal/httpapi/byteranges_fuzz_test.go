package httpapi

import (
	"bytes"
	"io"
	"testing"
)

// Whatever comes as multipart/byteranges: no panic, no range outside of the
// size, and each range as long as it says or an error.
func FuzzByteRanges(f *testing.F) {
	const size = 1000
	for _, body := range []string{
		"--e--\r\n",
		"--e\r\nContent-Range: bytes 0-4/1000\r\n\r\nabcde\r\n--e--\r\n",
		"--e\r\nContent-Range: bytes 0-1/1000\r\n\r\nab\r\n--e\r\nContent-Range: bytes 900-902/1000\r\n\r\nabc\r\n--e--\r\n",
		"--e\r\nContent-Range: bytes 0-99/1000\r\n\r\nabc\r\n--e--\r\n",
		"--e\nContent-Range: bytes 5-3/1000\n\nabc\n--e--",
		"--e\r\nA: b\r\n\r\n\r\n--e",
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		open, sized, err := inflow(&request{body: bytes.NewReader(body), kind: "multipart/byteranges; boundary=e"})
		if err != nil || sized {
			t.Fatal(sized, err)
		}
		in := open(size)
		for range len(body) + 2 {
			r, err := in.Next()
			if err != nil || r.Len == 0 {
				return
			}
			if r.Off < 0 || r.Len < 0 || r.Off > size-r.Len {
				t.Fatalf("range %d+%d of %d", r.Off, r.Len, size)
			}
			n, err := io.Copy(io.Discard, in)
			if err == nil && n != r.Len {
				if next, err := in.Next(); err == nil {
					t.Fatalf("range %d+%d had %d bytes, then %v", r.Off, r.Len, n, next)
				}
				return
			}
			if err != nil {
				return
			}
		}
		t.Fatal("it does not end")
	})
}
