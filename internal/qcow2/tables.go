package qcow2

import (
	"encoding/binary"
	"io"
)

const (
	maxPage  = 64 << 10
	maxPages = 16
)

// tables reads L1 and L2 entries through a few remembered pages of the file.
type tables struct {
	file      io.ReaderAt
	length    int64 // of the file
	pageBytes int64 // a power of two; tables begin at multiples of it
	pages     []*page
	clock     uint64
}

type page struct {
	at   int64
	used uint64 // when, by the clock of tables
	b    []byte // shorter than a page where the file ends
}

// entry is the big-endian word at a multiple of 8.
func (t *tables) entry(at int64) (uint64, error) {
	begin := at &^ (t.pageBytes - 1)
	p, err := t.page(begin)
	if err != nil {
		return 0, err
	}
	if at-begin+8 > int64(len(p.b)) {
		return 0, cut(t.length, "one of its tables, at byte %d", at)
	}
	return binary.BigEndian.Uint64(p.b[at-begin:]), nil
}

// page reads what begins at byte at in place of what was not used for longest.
func (t *tables) page(at int64) (*page, error) {
	t.clock++
	var oldest *page
	for _, p := range t.pages {
		if p.at == at {
			p.used = t.clock
			return p, nil
		}
		if oldest == nil || p.used < oldest.used {
			oldest = p
		}
	}
	if at >= t.length {
		return nil, cut(t.length, "one of its tables, at byte %d", at)
	}
	if len(t.pages) < maxPages {
		oldest = &page{b: make([]byte, t.pageBytes)}
		t.pages = append(t.pages, oldest)
	}
	oldest.at = -1 // nowhere, until it is read
	oldest.b = oldest.b[:min(t.pageBytes, t.length-at)]
	if err := readFull(t.file, oldest.b, at); err != nil {
		return nil, err
	}
	oldest.at, oldest.used = at, t.clock
	return oldest, nil
}
