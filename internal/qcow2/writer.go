package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"cairn/internal/errs"
)

// writer is the second walk: it writes the file from front to back.
type writer struct {
	w      io.Writer
	img    Image
	size   int64
	counts []uint16 // of the first walk
	lay    layout
	at     int64 // bytes written
	buf    []byte
}

func (w *writer) put(ctx context.Context, p []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := w.w.Write(p)
	w.at += int64(n)
	if err != nil {
		return fmt.Errorf("write qcow2 image at byte %d: %w", w.at, err)
	}
	return nil
}

// metadata writes all that lies before the first L2 table.
func (w *writer) metadata(ctx context.Context) error {
	cluster := w.buf[:clusterBytes]
	clear(cluster)
	copy(cluster, header(w.size, w.lay))
	if err := w.put(ctx, cluster); err != nil {
		return err
	}
	refBlock := func(i int64) uint64 { return uint64((w.lay.refBlocksAt() + i) * clusterBytes) }
	if err := w.words(ctx, w.lay.refTable, w.lay.refBlocks, refBlock); err != nil {
		return err
	}
	if err := w.refcounts(ctx); err != nil {
		return err
	}
	next := w.lay.tablesAt()
	l1 := func(i int64) uint64 {
		n := int64(w.counts[i])
		if n == 0 {
			return 0
		}
		at := next
		next += 1 + n
		return uint64(at*clusterBytes) | copied
	}
	return w.words(ctx, w.lay.l1, int64(len(w.counts)), l1)
}

// words writes a table of n 64-bit entries, padded to whole clusters. entry is
// called for 0 … n-1 in order.
func (w *writer) words(ctx context.Context, clusters, n int64, entry func(int64) uint64) error {
	cluster := w.buf[:clusterBytes]
	for c := range clusters {
		clear(cluster)
		for i := c * l2Entries; i < min((c+1)*l2Entries, n); i++ {
			binary.BigEndian.PutUint64(cluster[(i%l2Entries)*8:], entry(i))
		}
		if err := w.put(ctx, cluster); err != nil {
			return err
		}
	}
	return nil
}

// refcounts writes a 1 for each cluster of the file.
func (w *writer) refcounts(ctx context.Context) error {
	cluster := w.buf[:clusterBytes]
	for left := w.lay.total; left > 0; left -= rbEntries {
		clear(cluster)
		for i := range min(left, rbEntries) {
			binary.BigEndian.PutUint16(cluster[i*2:], 1)
		}
		if err := w.put(ctx, cluster); err != nil {
			return err
		}
	}
	return nil
}

// tables writes each L2 table that maps anything, and its data behind it.
func (w *writer) tables(ctx context.Context) error {
	walk := walker{img: w.img, size: w.size}
	var used clusterSet
	for i, want := range w.counts {
		if err := walk.table(ctx, int64(i), &used); err != nil {
			return err
		}
		if used.count() != int(want) {
			return errs.New(errs.Conflict, "the volume changed while it was exported; start the export again")
		}
		if want == 0 {
			continue
		}
		next := w.at + clusterBytes
		l2 := func(c int64) uint64 {
			if !used.has(c) {
				return 0
			}
			at := next
			next += clusterBytes
			return uint64(at) | copied
		}
		if err := w.words(ctx, 1, l2Entries, l2); err != nil {
			return err
		}
		if err := w.data(ctx, int64(i)*l2Span, &used); err != nil {
			return err
		}
	}
	if w.at != w.lay.total*clusterBytes {
		return fmt.Errorf("wrote %d bytes of qcow2 image where the tables say %d", w.at, w.lay.total*clusterBytes)
	}
	return nil
}

// data writes the allocated clusters of the table that starts at byte base of
// the volume, neighbours together.
func (w *writer) data(ctx context.Context, base int64, used *clusterSet) error {
	for c := int64(0); c < l2Entries; {
		if !used.has(c) {
			c++
			continue
		}
		n := int64(1)
		for n < runBytes/clusterBytes && c+n < l2Entries && used.has(c+n) {
			n++
		}
		buf := w.buf[:n*clusterBytes]
		off := base + c*clusterBytes
		held := min(off+int64(len(buf)), w.size) - off
		clear(buf[held:]) // the last cluster goes on past the volume's end
		if err := w.img.ReadAt(ctx, buf[:held], off); err != nil {
			return fmt.Errorf("read %d bytes of the volume at %d: %w", held, off, err)
		}
		if err := w.put(ctx, buf); err != nil {
			return err
		}
		c += n
	}
	return nil
}
