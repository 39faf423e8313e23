package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A run file, little-endian:
//
//	0      magic CAIRNIDX (8)
//	8      version, 1 (4)
//	12     entry size, 64 (4)
//	16     number of entries n, at least 1 (8)
//	24     number of filter blocks b, at least 1 (8)
//	32     reserved, zero (28)
//	60     CRC-32C of bytes 0..59 and the fan-out table (4)
//	64     fan-out: 1025 numbers (8 each); the i-th is the place of the first
//	       entry whose id begins with at least the ten bits i
//	8264   zero, up to 12288
//	12288  filter: b blocks of 64 bytes
//	…      zero, up to a multiple of 4096
//	…      n entries of 64 bytes, ascending; the file ends with them
//
// An entry: id (32), pack (16), offset (4), length (4), sub (1), zero (3),
// CRC-32C of the 60 bytes before (4).
//
// The filter is a Bloom filter of 512-bit blocks (Putze, Sanders, Singler:
// Cache-, Hash- and Space-Efficient Bloom Filters, 2007) with 12 bits an entry
// and 7 probes: about 1 % of misses pass it. The block is chosen by the first
// 64 bits of the id, so ascending entries fill the blocks in order, and a
// filter of any size is written without holding it. The next 63 bits are the
// probes. It has no checksum: a flipped bit hides an entry or lets a miss in.
const (
	version    = 1
	entrySize  = 64
	entryCRC   = entrySize - 4
	fanBits    = 10
	fanCount   = 1<<fanBits + 1
	fanOffset  = 64
	headCRC    = 60
	headSize   = 12288
	pageSize   = 4096
	blockSize  = 64
	blockBits  = blockSize * 8
	bitsPerKey = 12
	probes     = 7
	probeBits  = 9 // of 512
)

var (
	magic      = [8]byte([]byte("CAIRNIDX"))
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
	errDamaged = errors.New("damaged")
)

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errDamaged, fmt.Sprintf(format, args...))
}

// head is what the first 12 KiB of a run file say.
type head struct {
	count  int64
	blocks uint64
	fan    [fanCount]int64
}

// filterBlocks is the size of a filter for n entries.
func filterBlocks(n int64) uint64 {
	return max(1, (uint64(n)*bitsPerKey+blockBits-1)/blockBits)
}

// entriesOffset is where the entries begin after a filter.
func entriesOffset(blocks uint64) int64 {
	return (headSize + int64(blocks)*blockSize + pageSize - 1) &^ (pageSize - 1)
}

func (h *head) size() int64 { return entriesOffset(h.blocks) + h.count*entrySize }

func (h *head) encode() []byte {
	b := make([]byte, headSize)
	copy(b, magic[:])
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], entrySize)
	le.PutUint64(b[16:], uint64(h.count))
	le.PutUint64(b[24:], h.blocks)
	for i, n := range h.fan {
		le.PutUint64(b[fanOffset+8*i:], uint64(n))
	}
	le.PutUint32(b[headCRC:], headSum(b))
	return b
}

func headSum(b []byte) uint32 {
	sum := crc32.Update(0, castagnoli, b[:headCRC])
	return crc32.Update(sum, castagnoli, b[fanOffset:fanOffset+8*fanCount])
}

// parseHead checks the first headSize bytes of a file of the given size, so
// that no later step can reach outside of it.
func parseHead(b []byte, size int64) (*head, error) {
	if len(b) < headSize || size < headSize {
		return nil, damaged("%d bytes are too few", size)
	}
	if [8]byte(b) != magic {
		return nil, damaged("no index run")
	}
	if v := le.Uint32(b[8:]); v != version {
		return nil, damaged("version %d, this program knows %d", v, version)
	}
	if le.Uint32(b[headCRC:]) != headSum(b) {
		return nil, damaged("the header fails its checksum")
	}
	h := &head{count: int64(le.Uint64(b[16:])), blocks: le.Uint64(b[24:])}
	limit := size / entrySize // also keeps size() from running over
	if le.Uint32(b[12:]) != entrySize || h.count < 1 || h.count > limit || h.blocks < 1 || h.blocks > uint64(limit) {
		return nil, damaged("the header holds impossible numbers")
	}
	if h.size() != size {
		return nil, damaged("%d bytes, the header says %d", size, h.size())
	}
	var last int64
	for i := range h.fan {
		h.fan[i] = int64(le.Uint64(b[fanOffset+8*i:]))
		if h.fan[i] < last || h.fan[i] > h.count {
			return nil, damaged("the fan-out table does not ascend")
		}
		last = h.fan[i]
	}
	if h.fan[0] != 0 || last != h.count {
		return nil, damaged("the fan-out table does not cover the entries")
	}
	return h, nil
}

// view is a run file's content.
type view struct {
	*head
	filter  []byte
	entries []byte
}

// newView lays a view over a whole file.
func newView(b []byte) (view, error) {
	h, err := parseHead(b, int64(len(b)))
	if err != nil {
		return view{}, err
	}
	return h.view(b), nil
}

func (h *head) view(b []byte) view {
	return view{head: h, filter: b[headSize : headSize+h.blocks*blockSize], entries: b[entriesOffset(h.blocks):h.size()]}
}

// prefix is the part of an id that decides its place.
func prefix(id *ID) uint64 { return binary.BigEndian.Uint64(id[:8]) }

// blockOf is the number of the filter block of an id; it ascends with ids.
func blockOf(id *ID, blocks uint64) uint64 {
	n, _ := bits.Mul64(prefix(id), blocks)
	return n
}

func setBits(block []byte, id *ID) {
	h := le.Uint64(id[8:])
	for range probes {
		block[h%blockBits/8] |= 1 << (h % 8)
		h >>= probeBits
	}
}

func hasBits(block []byte, id *ID) bool {
	block = block[:blockSize]
	h := le.Uint64(id[8:])
	for range probes {
		if block[h%blockBits/8]&(1<<(h%8)) == 0 {
			return false
		}
		h >>= probeBits
	}
	return true
}

// mayContain is false for nearly all ids that are not in the run.
func (v *view) mayContain(id *ID) bool {
	return hasBits(v.filter[blockOf(id, v.blocks)*blockSize:], id)
}

func (v *view) raw(i int64) []byte { return v.entries[i*entrySize : (i+1)*entrySize] }

// lookup appends the intact entries of id; bad says that another one was not.
func (v *view) lookup(id *ID, found []Entry) (_ []Entry, bad bool) {
	i, end := v.lowerBound(id)
	for ; i < end; i++ {
		b := v.raw(i)
		if [32]byte(b) != *id {
			break
		}
		var e Entry
		if !decodeEntry(b, &e) {
			bad = true
			continue
		}
		found = append(found, e)
	}
	return found, bad
}

// lowerBound finds the first entry not below id, and the end of its bucket.
// In a bucket of n random ids the one we want lies within about √n of where
// it would be if they were spaced evenly, so a search that widens from there
// touches one or two pages. Ids of any kind cost O(log n).
func (v *view) lowerBound(id *ID) (i, end int64) {
	p := prefix(id)
	bucket := p >> (64 - fanBits)
	lo, hi := v.fan[bucket], v.fan[bucket+1]
	end = hi
	if lo == hi {
		return lo, end
	}
	ahead, _ := bits.Mul64(p<<fanBits, uint64(hi-lo))
	guess := lo + int64(ahead)
	step := int64(16)
	if v.below(guess, id) {
		for lo = guess + 1; guess+step < hi && v.below(guess+step, id); step *= 2 {
			lo = guess + step + 1
		}
		hi = min(hi, guess+step)
	} else {
		for hi = guess; guess-step >= lo && !v.below(guess-step, id); step *= 2 {
			hi = guess - step
		}
		lo = max(lo, guess-step)
	}
	for lo < hi {
		if m := lo + (hi-lo)/2; v.below(m, id) {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo, end
}

func (v *view) below(i int64, id *ID) bool {
	return bytes.Compare(v.entries[i*entrySize:i*entrySize+32], id[:]) < 0
}

func encodeEntry(b []byte, e *Entry) {
	copy(b, e.ID[:])
	copy(b[32:], e.Pack[:])
	le.PutUint32(b[48:], e.Offset)
	le.PutUint32(b[52:], e.Length)
	le.PutUint32(b[56:], uint32(e.Sub))
	le.PutUint32(b[entryCRC:], crc32.Checksum(b[:entryCRC], castagnoli))
}

func decodeEntry(b []byte, e *Entry) bool {
	if le.Uint32(b[entryCRC:]) != crc32.Checksum(b[:entryCRC], castagnoli) {
		return false
	}
	e.ID, e.Pack = [32]byte(b), [16]byte(b[32:])
	e.Offset, e.Length, e.Sub = le.Uint32(b[48:]), le.Uint32(b[52:]), b[56]
	return true
}

// run is an open run file.
type run struct {
	view
	path   string
	seq    uint64
	f      *os.File
	mapped []byte
	refs   atomic.Int32 // the index holds one, a Scan one
	dead   atomic.Bool  // a page could not be read
	noted  atomic.Bool  // its damage was reported
}

// openRun opens a run file. errDamaged: it is not whole.
func openRun(path string, seq uint64) (_ *run, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() < headSize {
		return nil, damaged("%d bytes are too few", st.Size())
	}
	b := make([]byte, headSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, err
	}
	h, err := parseHead(b, st.Size())
	if err != nil {
		return nil, err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	r := &run{view: h.view(m), path: path, seq: seq, f: f, mapped: m}
	// Lookups hop about, so reading ahead is waste. Only advice: it may fail.
	_ = unix.Madvise(r.entries, unix.MADV_RANDOM)
	r.refs.Store(1)
	return r, nil
}

func (r *run) close() error {
	return errors.Join(unix.Munmap(r.mapped), r.f.Close())
}
