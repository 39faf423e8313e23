package index

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
)

const writeBuffer = 256 << 10

// writer makes a run file out of ascending entries, holding none of them.
type writer struct {
	f       *os.File
	head    head
	filter  *bufio.Writer
	entries *bufio.Writer
	block   [blockSize]byte // the filter block that is being filled
	blockNo uint64
	bucket  int // the fan-out slot to be set next
	last    Entry
	raw     [entrySize]byte
}

// newWriter begins a run of at most n entries in a temp file of dir.
func newWriter(dir string, n int64) (*writer, error) {
	f, err := os.CreateTemp(dir, tempPrefix+"*")
	if err != nil {
		return nil, err
	}
	w := &writer{f: f, head: head{blocks: filterBlocks(n)}}
	w.filter = bufio.NewWriterSize(io.NewOffsetWriter(f, headSize), int(min(w.head.blocks*blockSize, writeBuffer)))
	w.entries = bufio.NewWriterSize(io.NewOffsetWriter(f, entriesOffset(w.head.blocks)), int(min(n*entrySize, writeBuffer)))
	return w, nil
}

// add appends an entry; one that was just added is left out.
func (w *writer) add(e *Entry) error {
	if w.head.count > 0 {
		switch c := compare(&w.last, e); {
		case c == 0:
			return nil
		case c > 0:
			panic("index: entries do not ascend")
		}
	}
	if err := w.toBlock(blockOf(&e.ID, w.head.blocks)); err != nil {
		return err
	}
	setBits(w.block[:], &e.ID)
	w.toBucket(int(prefix(&e.ID) >> (64 - fanBits)))
	encodeEntry(w.raw[:], e)
	if _, err := w.entries.Write(w.raw[:]); err != nil {
		return err
	}
	w.head.count++
	w.last = *e
	return nil
}

// toBlock writes filter blocks until block n is the one being filled.
func (w *writer) toBlock(n uint64) error {
	for ; w.blockNo < n; w.blockNo++ {
		if _, err := w.filter.Write(w.block[:]); err != nil {
			return err
		}
		clear(w.block[:])
	}
	return nil
}

// toBucket says that the next entry is the first of bucket n and of all empty
// ones before it.
func (w *writer) toBucket(n int) {
	for ; w.bucket <= n; w.bucket++ {
		w.head.fan[w.bucket] = w.head.count
	}
}

// finish completes the temp file and returns its path, or "" if there was no
// entry. A file that is to outlive a crash needs a sync, others none (nil).
func (w *writer) finish(sync func(*os.File) error) (path string, err error) {
	if w.head.count == 0 {
		return "", w.abort()
	}
	w.toBucket(fanCount - 1)
	err = w.toBlock(w.head.blocks)
	if err == nil {
		err = w.filter.Flush()
	}
	if err == nil {
		err = w.entries.Flush()
	}
	if err == nil {
		_, err = w.f.WriteAt(w.head.encode(), 0)
	}
	if err == nil && sync != nil {
		err = sync(w.f)
	}
	if err != nil {
		return "", errors.Join(err, w.abort())
	}
	if err := w.f.Close(); err != nil {
		return "", errors.Join(err, os.Remove(w.f.Name()))
	}
	return w.f.Name(), nil
}

// abort throws the temp file away.
func (w *writer) abort() error {
	return errors.Join(w.f.Close(), os.Remove(w.f.Name()))
}

// publish gives a durable temp file its name and opens it. The caller holds
// write.
func (x *Index) publish(temp string) (*run, error) {
	x.seq++
	path := filepath.Join(x.dir, runName(x.seq))
	if err := os.Rename(temp, path); err != nil {
		return nil, errors.Join(err, os.Remove(temp))
	}
	if err := x.syncDir(); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	r, err := openRun(path, x.seq)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return r, nil
}
