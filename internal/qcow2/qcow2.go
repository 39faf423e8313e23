// Package qcow2 writes and reads qcow2 files. Format: QEMU's
// docs/interop/qcow2.txt; golden bytes: testdata/.
//
// Write streams a volume as a version 3 image to a plain io.Writer: no seek,
// no staging copy. The file lies in the order in which it is written:
//
//	header | refcount table | refcount blocks | L1 | { L2, its data clusters }…
//
// Offsets must be known before the data is read, so the image is walked twice:
// once to count the allocated clusters below each L2 table, once to write.
//
// Invariants of Write:
//   - every cluster of the file is used exactly once, so each refcount is 1
//     and every L1 and L2 entry carries the "copied" flag;
//   - a cluster that is not allocated reads as zeros: there is no backing file;
//   - memory is two bytes per 512 MiB of volume, one L2 table and one buffer;
//   - both walks must find the same clusters, else Write fails before it has
//     written an offset that would be wrong.
//
// Open reads what others wrote: versions 2 and 3, every cluster size,
// compressed clusters and subclusters; what else the format can say is refused
// with a sentence that tells what to do.
//
// Invariants of a Reader:
//   - it needs one file and opens no other: what names a backing file or a
//     data file is refused, as a file from a stranger could name any;
//   - every offset and length that the file tells is checked before it is
//     used; where QEMU takes what lies behind the file's end for zeros, a
//     Reader says that the file is cut;
//   - memory is bounded, whatever the file says: 1 MiB of tables, and for
//     compressed clusters two buffers of up to 4 MiB and a zstd window;
//   - refcounts are never looked at: they say what is free, not what is data.
//
// Write serves one goroutine per Image, and so does a Reader.
package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"cairn/internal/errs"
	"cairn/internal/extent"
)

// What Write chooses where the format leaves it free.
const (
	clusterBits  = 16
	clusterBytes = 1 << clusterBits

	l2Entries = clusterBytes / 8         // clusters that one L2 table maps
	l2Span    = l2Entries * clusterBytes // 512 MiB of volume
	rbEntries = clusterBytes / 2         // 16-bit refcounts in one block
	runBytes  = 1 << 20                  // largest single read and write
)

// Image is a volume's content: what Write needs, and what a Reader is. Both
// walks of Write and all reads must see the same moment.
type Image interface {
	Size() int64 // bytes
	// Data returns the first range at or after off that may hold anything
	// but zeros, or io.EOF when only zeros follow.
	Data(ctx context.Context, off int64) (extent.Range, error)
	// ReadAt fills buf whole from byte off, holes included.
	ReadAt(ctx context.Context, buf []byte, off int64) error
}

// Write streams img to w. The virtual size is img's size rounded up to 512
// bytes with zeros, because QEMU would cut the odd tail off. After an error
// what w got is a cut image that nobody may take for whole.
func Write(ctx context.Context, w io.Writer, img Image) error {
	size := img.Size()
	if size < 0 {
		return errs.New(errs.Invalid, "a volume of %d bytes cannot be written as qcow2", size)
	}
	if tables := ceilDiv(size, l2Span); tables > maxL1 {
		return errs.New(errs.TooLarge, "a volume of %d bytes is larger than qcow2 can hold (%d bytes); export it as raw", size, int64(maxL1)*l2Span)
	}
	counts, err := countClusters(ctx, img)
	if err != nil {
		return err
	}
	out := &writer{w: w, img: img, size: size, counts: counts, lay: plan(size, counts), buf: make([]byte, runBytes)}
	if err := out.metadata(ctx); err != nil {
		return err
	}
	return out.tables(ctx)
}

// layout holds the sizes of the file's areas in clusters; each starts where
// the one before it ends, the header taking cluster 0.
type layout struct {
	refTable  int64
	refBlocks int64
	l1        int64
	total     int64 // of the whole file
}

func (l layout) refBlocksAt() int64 { return 1 + l.refTable }
func (l layout) l1At() int64        { return 1 + l.refTable + l.refBlocks }
func (l layout) tablesAt() int64    { return l.l1At() + l.l1 }

func plan(size int64, counts []uint16) layout {
	var lay layout
	lay.l1 = ceilDiv(ceilDiv(size, l2Span)*8, clusterBytes)
	var content int64
	for _, n := range counts {
		if n > 0 {
			content += 1 + int64(n)
		}
	}
	// Refcount areas count themselves, so grow them until they suffice.
	for {
		lay.total = lay.tablesAt() + content
		blocks := ceilDiv(lay.total, rbEntries)
		table := ceilDiv(blocks*8, clusterBytes)
		if blocks == lay.refBlocks && table == lay.refTable {
			return lay
		}
		lay.refBlocks, lay.refTable = blocks, table
	}
}

// countClusters is the first walk: allocated clusters below each L2 table.
func countClusters(ctx context.Context, img Image) ([]uint16, error) {
	counts := make([]uint16, ceilDiv(img.Size(), l2Span))
	walk := walker{img: img, size: img.Size()}
	var used clusterSet
	for i := range counts {
		if err := walk.table(ctx, int64(i), &used); err != nil {
			return nil, err
		}
		counts[i] = uint16(used.count())
	}
	return counts, nil
}

// clusterSet is a bit per cluster of one L2 table.
type clusterSet [l2Entries / 64]uint64

func (s *clusterSet) has(i int64) bool { return s[i/64]>>(i%64)&1 == 1 }

func (s *clusterSet) count() int {
	n := 0
	for _, word := range s {
		n += bits.OnesCount64(word)
	}
	return n
}

// walker goes through the image's data ranges once, from start to end.
type walker struct {
	img  Image
	size int64
	cur  extent.Range // what Data gave last and is not used up
	end  bool         // only zeros follow cur
}

// table finds the allocated clusters of L2 table i; i only grows.
func (w *walker) table(ctx context.Context, i int64, used *clusterSet) error {
	*used = clusterSet{}
	start, end := i*l2Span, min((i+1)*l2Span, w.size)
	for {
		if w.cur.Len > 0 {
			if w.cur.Off >= end {
				return nil
			}
			first := max(w.cur.Off, start) / clusterBytes
			last := (min(w.cur.End(), end) - 1) / clusterBytes
			for c := first; c <= last; c++ {
				used[(c%l2Entries)/64] |= 1 << (c % 64)
			}
			if w.cur.End() > end {
				return nil
			}
		}
		if w.end || w.cur.End() >= w.size {
			w.cur, w.end = extent.Range{}, true
			return nil
		}
		if err := w.next(ctx); err != nil {
			return err
		}
	}
}

// next asks for the range after cur. The rest of cur's last cluster is
// allocated already, so it is skipped.
func (w *walker) next(ctx context.Context) error {
	from := ceilDiv(w.cur.End(), clusterBytes) * clusterBytes
	if from >= w.size {
		w.cur, w.end = extent.Range{}, true
		return nil
	}
	r, err := w.img.Data(ctx, from)
	if errors.Is(err, io.EOF) {
		w.cur, w.end = extent.Range{}, true
		return nil
	}
	if err != nil {
		return fmt.Errorf("find data from byte %d: %w", from, err)
	}
	if r.Off < from || r.Len <= 0 || r.Off >= w.size {
		return fmt.Errorf("find data from byte %d of %d: got the impossible range %d+%d", from, w.size, r.Off, r.Len)
	}
	r.Len = min(r.Len, w.size-r.Off)
	w.cur = r
	return nil
}

func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }

// header is the file's first cluster, without its zero padding. The zeros that
// follow double as the end marker of the (empty) list of header extensions.
func header(size int64, lay layout) []byte {
	be := binary.BigEndian
	h := make([]byte, headerLen)
	be.PutUint32(h[atMagic:], magic)
	be.PutUint32(h[atVersion:], 3)
	be.PutUint32(h[atClusterBits:], clusterBits)
	be.PutUint64(h[atSize:], uint64(ceilDiv(size, sector)*sector))
	be.PutUint32(h[atL1Entries:], uint32(ceilDiv(size, l2Span)))
	be.PutUint64(h[atL1Offset:], uint64(lay.l1At()*clusterBytes))
	be.PutUint64(h[atRefTable:], clusterBytes) // right after the header
	be.PutUint32(h[atRefTableClusters:], uint32(lay.refTable))
	be.PutUint32(h[atRefcountOrder:], 4) // 1<<4 bits each
	be.PutUint32(h[atHeaderLen:], headerLen)
	return h
}
