package crash_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"

	"cairn/internal/extent"
	"cairn/test/e2e/harness"
)

// pageSize is the grain of an image: what a page cache writes back at once.
const pageSize = 4096

// image is a volume's content. Pages are never changed in place, so clones
// share them; a page that is not there reads as zeros.
type image struct {
	size  int64
	pages map[int64][]byte
}

func newImage(size int64) *image { return &image{size: size, pages: map[int64][]byte{}} }

func (m *image) clone() *image { return &image{size: m.size, pages: maps.Clone(m.pages)} }

// resized is a copy with zeros at the end, or cut.
func (m *image) resized(size int64) *image {
	c := newImage(size)
	for i, p := range m.pages {
		off := i * pageSize
		if off >= size {
			continue
		}
		if off+pageSize > size {
			p = bytes.Clone(p)
			clear(p[size-off:])
		}
		c.pages[i] = p
	}
	return c
}

func (m *image) inside(n, off int64) error {
	if off < 0 || off+n > m.size {
		return fmt.Errorf("%d bytes at %d are outside of a volume of %d", n, off, m.size)
	}
	return nil
}

func (m *image) write(b []byte, off int64) error {
	if err := m.inside(int64(len(b)), off); err != nil {
		return err
	}
	for len(b) > 0 {
		n := min(pageSize-off%pageSize, int64(len(b)))
		p := make([]byte, pageSize)
		copy(p, m.pages[off/pageSize])
		copy(p[off%pageSize:], b[:n])
		m.pages[off/pageSize] = p
		b, off = b[n:], off+n
	}
	return nil
}

// zero makes the range zeros, and whole pages of it holes.
func (m *image) zero(off, length int64) error {
	if err := m.inside(length, off); err != nil {
		return err
	}
	for end := off + length; off < end; {
		n := min(pageSize-off%pageSize, end-off)
		if n == pageSize {
			delete(m.pages, off/pageSize)
		} else if err := m.write(make([]byte, n), off); err != nil {
			return err
		}
		off += n
	}
	return nil
}

func (m *image) read(buf []byte, off int64) error {
	if err := m.inside(int64(len(buf)), off); err != nil {
		return err
	}
	for len(buf) > 0 {
		n := min(pageSize-off%pageSize, int64(len(buf)))
		if p := m.pages[off/pageSize]; p != nil {
			copy(buf[:n], p[off%pageSize:])
		} else {
			clear(buf[:n])
		}
		buf, off = buf[n:], off+n
	}
	return nil
}

// data is the first run of pages at or after off, or io.EOF.
func (m *image) data(off int64) (extent.Range, error) {
	last := (m.size + pageSize - 1) / pageSize
	for i := off / pageSize; i < last; i++ {
		if m.pages[i] == nil {
			continue
		}
		end := i + 1
		for end < last && m.pages[end] != nil {
			end++
		}
		start := max(off, i*pageSize)
		return extent.Range{Off: start, Len: min(end*pageSize, m.size) - start}, nil
	}
	return extent.Range{}, io.EOF
}

// noise writes bytes that do not compress, as many as there is room for.
func (m *image) noise(seed uint64, off, length int64) {
	b := make([]byte, max(min(length, m.size-off), 0))
	harness.Noise(b, seed)
	if err := m.write(b, min(off, m.size)); err != nil {
		panic(err) // it was cut to fit
	}
}

// equal compares contents, whatever is a hole.
func (m *image) equal(o *image) bool {
	if m.size != o.size {
		return false
	}
	covers := func(a, b *image) bool {
		for i, p := range a.pages {
			if q := b.pages[i]; !bytes.Equal(p, q) && (q != nil || !zeros(p)) {
				return false
			}
		}
		return true
	}
	return covers(m, o) && covers(o, m)
}

var zeroPage [pageSize]byte

func zeros(p []byte) bool { return bytes.Equal(p, zeroPage[:len(p)]) }

// torn is what a power cut may leave of volatile, of which only durable was
// synced: of every unit that differs the old or the new bytes.
func torn(durable, volatile *image, unit int, rng *rand.Rand) *image {
	out := durable.resized(volatile.size)
	mix := func(i int64) {
		old, now := make([]byte, pageSize), make([]byte, pageSize)
		copy(old, durable.pages[i])
		copy(now, volatile.pages[i])
		for at := 0; at < pageSize; at += unit {
			if rng.IntN(2) == 0 {
				copy(old[at:at+unit], now[at:])
			}
		}
		out.pages[i] = old
	}
	for i, p := range volatile.pages {
		if q := durable.pages[i]; q == nil || &p[0] != &q[0] {
			mix(i)
		}
	}
	for i := range durable.pages {
		if volatile.pages[i] == nil && i*pageSize < volatile.size {
			mix(i)
		}
	}
	return out
}

// differ compares a stream with an image as it comes.
type differ struct {
	want *image
	off  int64
}

func (d *differ) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		n := min(pageSize-d.off%pageSize, int64(len(rest)))
		if d.off+n > d.want.size {
			return 0, fmt.Errorf("the stream is longer than the %d bytes of the volume", d.want.size)
		}
		want := zeroPage[:n]
		if p := d.want.pages[d.off/pageSize]; p != nil {
			want = p[d.off%pageSize:][:n]
		}
		if !bytes.Equal(rest[:n], want) {
			return 0, fmt.Errorf("the bytes at %d are not those of the volume", d.off)
		}
		rest, d.off = rest[n:], d.off+n
	}
	return len(b), nil
}

func (d *differ) whole() error {
	if d.off != d.want.size {
		return fmt.Errorf("the stream has %d bytes, the volume %d", d.off, d.want.size)
	}
	return nil
}
