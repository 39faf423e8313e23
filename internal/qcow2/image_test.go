package qcow2_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"cairn/internal/extent"
)

// piece is some bytes at an offset; the rest of a memImage is zeros.
type piece struct {
	off  int64
	data []byte
}

// memImage is an Image in memory. Pieces are sorted and do not overlap.
type memImage struct {
	size    int64
	pieces  []piece
	readErr error
	dataErr error
}

func newImage(size int64, pieces ...piece) *memImage {
	slices.SortFunc(pieces, func(a, b piece) int { return cmp.Compare(a.off, b.off) })
	return &memImage{size: size, pieces: pieces}
}

func (m *memImage) Size() int64 { return m.size }

func (m *memImage) Data(_ context.Context, off int64) (extent.Range, error) {
	if m.dataErr != nil {
		return extent.Range{}, m.dataErr
	}
	for _, p := range m.pieces {
		if end := p.off + int64(len(p.data)); end > off {
			from := max(off, p.off)
			return extent.Range{Off: from, Len: end - from}, nil
		}
	}
	return extent.Range{}, io.EOF
}

func (m *memImage) ReadAt(_ context.Context, buf []byte, off int64) error {
	if m.readErr != nil {
		return m.readErr
	}
	if off < 0 || off+int64(len(buf)) > m.size {
		return fmt.Errorf("read of %d bytes at %d is outside of %d", len(buf), off, m.size)
	}
	clear(buf)
	for _, p := range m.pieces {
		if p.off >= off {
			if p.off < off+int64(len(buf)) {
				copy(buf[p.off-off:], p.data)
			}
		} else if skip := off - p.off; skip < int64(len(p.data)) {
			copy(buf, p.data[skip:])
		}
	}
	return nil
}

// writeRaw lays the image down as a sparse raw file.
func (m *memImage) writeRaw(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "image.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(m.size); err != nil {
		t.Fatal(err)
	}
	for _, p := range m.pieces {
		if _, err := f.WriteAt(p.data, p.off); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// readBack is a second reading of the qcow2 specification, apart from the
// writer: it checks every refcount and returns the content by cluster.
func readBack(file []byte) (size int64, clusters map[int64][]byte, err error) {
	const cluster = 1 << 16
	be := binary.BigEndian
	if len(file) < cluster || len(file)%cluster != 0 {
		return 0, nil, fmt.Errorf("file of %d bytes is not whole clusters", len(file))
	}
	if be.Uint32(file) != 0x514649fb || be.Uint32(file[4:]) != 3 {
		return 0, nil, errors.New("no qcow2 version 3 header")
	}
	if be.Uint64(file[8:]) != 0 || be.Uint64(file[72:]) != 0 {
		return 0, nil, errors.New("backing file or incompatible features")
	}
	refs := make([]int, len(file)/cluster)
	use := func(at uint64) ([]byte, error) {
		if at%cluster != 0 || at+cluster > uint64(len(file)) {
			return nil, fmt.Errorf("offset %#x is not a cluster of the file", at)
		}
		refs[at/cluster]++
		return file[at : at+cluster], nil
	}
	refs[0]++
	size = int64(be.Uint64(file[24:]))
	clusters = make(map[int64][]byte)
	if err := readTables(file, use, clusters); err != nil {
		return 0, nil, err
	}
	stored, err := readRefcounts(file, use)
	if err != nil {
		return 0, nil, err
	}
	for i, n := range refs {
		if n != 1 || stored[i] != 1 {
			return 0, nil, fmt.Errorf("cluster %d: used %d times, refcount %d", i, n, stored[i])
		}
	}
	for i, n := range stored[len(refs):] {
		if n != 0 {
			return 0, nil, fmt.Errorf("cluster %d past the end has refcount %d", i+len(refs), n)
		}
	}
	return size, clusters, nil
}

func readTables(file []byte, use func(uint64) ([]byte, error), clusters map[int64][]byte) error {
	be := binary.BigEndian
	l1Entries, l1At := int64(be.Uint32(file[36:])), be.Uint64(file[40:])
	for c := int64(0); c*8192 < l1Entries; c++ {
		l1, err := use(l1At + uint64(c)<<16)
		if err != nil {
			return fmt.Errorf("L1: %w", err)
		}
		for i := range min(l1Entries-c*8192, 8192) {
			entry := be.Uint64(l1[i*8:])
			if entry == 0 {
				continue
			}
			l2, err := use(entry &^ (1 << 63))
			if err != nil || entry>>63 != 1 {
				return fmt.Errorf("L1 entry %#x: %w", entry, err)
			}
			for j := range int64(8192) {
				entry := be.Uint64(l2[j*8:])
				if entry == 0 {
					continue
				}
				data, err := use(entry &^ (1 << 63))
				if err != nil || entry>>63 != 1 {
					return fmt.Errorf("L2 entry %#x: %w", entry, err)
				}
				clusters[(c*8192+i)*8192+j] = data
			}
		}
	}
	return nil
}

func readRefcounts(file []byte, use func(uint64) ([]byte, error)) ([]uint16, error) {
	be := binary.BigEndian
	if be.Uint32(file[96:]) != 4 {
		return nil, errors.New("refcounts are not 16 bits wide")
	}
	var stored []uint16
	at := be.Uint64(file[48:])
	for c := range uint64(be.Uint32(file[56:])) {
		table, err := use(at + c<<16)
		if err != nil {
			return nil, fmt.Errorf("refcount table: %w", err)
		}
		for i := range 8192 {
			entry := be.Uint64(table[i*8:])
			if entry == 0 {
				continue
			}
			block, err := use(entry)
			if err != nil {
				return nil, fmt.Errorf("refcount block: %w", err)
			}
			for j := range 32768 {
				stored = append(stored, be.Uint16(block[j*2:]))
			}
		}
	}
	return stored, nil
}

// check compares what readBack found with the image, both ways.
func check(m *memImage, file []byte) error {
	size, clusters, err := readBack(file)
	if err != nil {
		return err
	}
	if want := (m.size + 511) / 512 * 512; size != want {
		return fmt.Errorf("virtual size %d, want %d", size, want)
	}
	for _, p := range m.pieces {
		for off := p.off &^ 0xffff; off < p.off+int64(len(p.data)); off += 1 << 16 {
			if _, ok := clusters[off>>16]; !ok {
				return fmt.Errorf("the cluster at %d is missing", off)
			}
		}
	}
	for i, got := range clusters {
		want := make([]byte, 1<<16)
		if err := m.ReadAt(context.Background(), want[:min(1<<16, m.size-i<<16)], i<<16); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("the cluster at %d differs", i<<16)
		}
	}
	return nil
}
