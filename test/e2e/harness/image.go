package harness

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// pageSize is the grain of an Image. It is no multiple and no divisor of any
// unit of the product, so that a mistake of one is not hidden by the other.
const pageSize = 24 << 10

// Image is what a volume should hold: a sparse map of bytes. Pages are shared
// between clones and never changed in place.
type Image struct {
	size  int64
	pages [][]byte // nil = zeros; else pageSize long
}

// NewImage is size bytes of zeros.
func NewImage(size int64) *Image {
	return &Image{size: size, pages: make([][]byte, (size+pageSize-1)/pageSize)}
}

// Size is in bytes.
func (m *Image) Size() int64 { return m.size }

// Clone is a copy that shares pages.
func (m *Image) Clone() *Image {
	return &Image{size: m.size, pages: append([][]byte(nil), m.pages...)}
}

// Resized is a copy with another size: cut, or with zeros at the end.
func (m *Image) Resized(size int64) *Image {
	out := NewImage(size)
	copy(out.pages, m.pages)
	if size < m.size && size%pageSize != 0 && len(out.pages) > 0 {
		last := len(out.pages) - 1
		if p := out.pages[last]; p != nil {
			q := make([]byte, pageSize)
			copy(q, p[:size%pageSize])
			out.pages[last] = q
		}
	}
	return out
}

// Write puts b at off. What lies beyond the end is dropped.
func (m *Image) Write(b []byte, off int64) {
	if off+int64(len(b)) > m.size {
		b = b[:max(m.size-off, 0)]
	}
	for len(b) > 0 {
		i, in := off/pageSize, off%pageSize
		p := make([]byte, pageSize)
		copy(p, m.pages[i])
		n := copy(p[in:], b)
		m.pages[i] = p
		b, off = b[n:], off+int64(n)
	}
}

// read fills buf from off.
func (m *Image) read(buf []byte, off int64) {
	for len(buf) > 0 {
		i, in := off/pageSize, off%pageSize
		n := min(len(buf), int(pageSize-in))
		if p := m.pages[i]; p == nil {
			clear(buf[:n])
		} else {
			copy(buf[:n], p[in:])
		}
		buf, off = buf[n:], off+int64(n)
	}
}

// Reader streams the content.
func (m *Image) Reader() io.Reader { return io.NewSectionReader(imageAt{m}, 0, m.size) }

type imageAt struct{ m *Image }

// ReadAt serves io.SectionReader, which never asks beyond the end.
func (r imageAt) ReadAt(p []byte, off int64) (int, error) {
	r.m.read(p, off)
	return len(p), nil
}

// Differs reads got to its end and says where it first differs; nil if it is
// equal to the last byte and not longer.
func (m *Image) Differs(got io.Reader) error {
	have, want := make([]byte, 256<<10), make([]byte, 256<<10)
	var off int64
	for off < m.size {
		n := int(min(int64(len(have)), m.size-off))
		k, err := io.ReadFull(got, have[:n])
		m.read(want[:k], off)
		if !bytes.Equal(have[:k], want[:k]) {
			for i := range k {
				if have[i] != want[i] {
					return fmt.Errorf("byte %d of %d (64 KiB chunk %d) is %#02x, want %#02x",
						off+int64(i), m.size, (off+int64(i))>>16, have[i], want[i])
				}
			}
		}
		if err != nil {
			return fmt.Errorf("ends after %d of %d bytes: %w", off+int64(k), m.size, err)
		}
		off += int64(n)
	}
	if n, err := io.ReadFull(got, have[:1]); n != 0 || err != io.EOF {
		return fmt.Errorf("is longer than %d bytes (or its end is unclean: %v)", m.size, err)
	}
	return nil
}

// Equal compares two images.
func (m *Image) Equal(o *Image) bool { return m.size == o.size && m.Differs(o.Reader()) == nil }

// Is reports whether b is the whole content.
func (m *Image) Is(b []byte) bool { return m.Differs(bytes.NewReader(b)) == nil }

// Edit is one change of a volume.
type Edit struct {
	Kind EditKind
	Off  int64
	Len  int64
	Seed uint64 // of written bytes
}

// EditKind says how bytes change.
type EditKind int

// The ways a guest changes its disk.
const (
	WriteNoise EditKind = iota // bytes that do not compress and occur once
	WriteText                  // bytes that compress well
	WriteTwin                  // bytes that occur elsewhere too: dedup
	WriteZeros                 // zeros, written
	Punch                      // discarded: a hole
	EditKinds                  // how many there are
)

// RandomEdit draws an edit of a volume of the given size: often small, often
// near a chunk's edge, sometimes large.
func RandomEdit(r *rand.Rand, size int64) Edit {
	e := Edit{Kind: EditKind(r.IntN(int(EditKinds))), Seed: r.Uint64()}
	switch r.IntN(4) {
	case 0:
		e.Len = 1 + r.Int64N(4096)
	case 1:
		e.Len = 512 * (1 + r.Int64N(64))
	case 2:
		e.Len = 64 << 10 * (1 + r.Int64N(4))
	default:
		e.Len = 1 + r.Int64N(max(size/3, 1))
	}
	e.Off = r.Int64N(size)
	if r.IntN(2) == 0 {
		edge := e.Off &^ (64<<10 - 1)
		e.Off = min(max(edge+512*(r.Int64N(3)-1), 0), size-1)
	}
	e.Len = min(e.Len, size-e.Off)
	return e
}

// Bytes is what the edit writes; nil for a hole.
func (e Edit) Bytes() []byte {
	if e.Kind == Punch {
		return nil
	}
	b := make([]byte, e.Len)
	switch e.Kind {
	case WriteNoise:
		Noise(b, e.Seed)
	case WriteText:
		line := fmt.Sprintf("line %d of a log file that nobody reads\n", e.Seed%1000)
		for i := 0; i < len(b); i += len(line) {
			copy(b[i:], line)
		}
	case WriteTwin:
		// One of four stretches, aligned to the volume, whoever writes it.
		Noise(b, e.Seed%4)
	}
	return b
}

// Noise fills b with bytes that a seed determines.
func Noise(b []byte, seed uint64) {
	r := rand.NewPCG(seed, 77)
	i := 0
	for ; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	if i < len(b) {
		var last [8]byte
		binary.LittleEndian.PutUint64(last[:], r.Uint64())
		copy(b[i:], last[:])
	}
}

// Apply does the edit to an image.
func (m *Image) Apply(e Edit) {
	if b := e.Bytes(); b != nil {
		m.Write(b, e.Off)
		return
	}
	m.Write(make([]byte, e.Len), e.Off)
}

// ApplyFile does the same to a file.
func (e Edit) ApplyFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(e.ApplyTo(f), f.Close())
}

// ApplyTo does the same to an open file.
func (e Edit) ApplyTo(f *os.File) error {
	if b := e.Bytes(); b != nil {
		_, err := f.WriteAt(b, e.Off)
		return err
	}
	if e.Len == 0 {
		return nil
	}
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := unix.Fallocate(int(f.Fd()), mode, e.Off, e.Len); err != nil {
		return fmt.Errorf("punch a hole: %w", err)
	}
	return nil
}

// WriteFile makes a sparse file with the image's content.
func (m *Image) WriteFile(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(m.size); err != nil {
		return err
	}
	for i, p := range m.pages {
		off := int64(i) * pageSize
		if p == nil {
			continue
		}
		if _, err := f.WriteAt(p[:min(pageSize, m.size-off)], off); err != nil {
			return err
		}
	}
	return f.Close()
}

// NewFile makes a file of the image below dir and returns its path.
func (m *Image) NewFile(t testing.TB, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := m.WriteFile(path); err != nil {
		t.Fatalf("make %s: %v", name, err)
	}
	return path
}

// WantFile compares a file with the image.
func (m *Image) WantFile(t TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	defer f.Close()
	if err := m.Differs(f); err != nil {
		t.Fatalf("file %s: %v", filepath.Base(path), err)
	}
}
