package live

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A state file is a row of records, each bound to its file and place:
//
//	length   u32  bytes of the payload
//	kind     u8
//	         3 zero bytes
//	crc      u32  CRC-32C of serial, offset, kind and payload
//	         4 zero bytes
//	payload, filled up with zeros to a multiple of 8
//
// All numbers are little-endian. The first record is the head. Whatever does
// not pass its check ends the file: it is the rest of an append that a crash
// cut, or the zeros that wait to be written over.
const (
	recordHead   = 1 // head, as JSON
	recordBits   = 2 // kind of set u8, 7 zero bytes, block u64, [4096 bytes; none: all set]
	recordMasks  = 3 // block u64, 2048 masks u16
	recordIntent = 4 // pairs of u64: first region, number of regions
	recordLocal  = 5 // pairs of u64: cluster, mask of pages that became local (all 16: the whole)
	recordWhole  = 7 // pairs of u64: first cluster, number of clusters that became local as wholes
	recordCommit = 6 // offset u64: of local and whole records that begin before it the data is durable
)

const recordHeadLen = 16

// Sets that a bits record can belong to.
const (
	setTree   = 1
	setDirty  = 2
	setIntent = 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged says that a state file cannot be what was written.
var errDamaged = errors.New("the state file is damaged")

func recordSum(serial uint64, off int64, kind byte, payload []byte) uint32 {
	var b [17]byte
	binary.LittleEndian.PutUint64(b[0:], serial)
	binary.LittleEndian.PutUint64(b[8:], uint64(off))
	b[16] = kind
	return crc32.Update(crc32.Checksum(b[:], castagnoli), castagnoli, payload)
}

// appendRecord appends a record that will lie at off of the file.
func appendRecord(into []byte, serial uint64, off int64, kind byte, payload []byte) []byte {
	var h [recordHeadLen]byte
	binary.LittleEndian.PutUint32(h[0:], uint32(len(payload)))
	h[4] = kind
	binary.LittleEndian.PutUint32(h[8:], recordSum(serial, off, kind, payload))
	into = append(into, h[:]...)
	into = append(into, payload...)
	for len(into)%8 != 0 {
		into = append(into, 0)
	}
	return into
}

// record is one that passed its check.
type record struct {
	off     int64
	kind    byte
	payload []byte
}

// nextRecord reads the record at off; ok=false: the file ends here.
func nextRecord(file []byte, serial uint64, off int64) (r record, next int64, ok bool) {
	if int64(len(file))-off < recordHeadLen {
		return r, off, false
	}
	h := file[off:]
	length := int64(binary.LittleEndian.Uint32(h))
	if length > int64(len(h))-recordHeadLen {
		return r, off, false
	}
	r = record{off: off, kind: h[4], payload: h[recordHeadLen : recordHeadLen+length]}
	if binary.LittleEndian.Uint32(h[8:]) != recordSum(serial, off, r.kind, r.payload) {
		return r, off, false
	}
	return r, off + (recordHeadLen+length+7)&^7, true
}

// pairs splits a payload into pairs of numbers.
func (r record) pairs(fn func(a, b uint64) error) error {
	if len(r.payload)%16 != 0 {
		return fmt.Errorf("%w: record at %d has %d bytes", errDamaged, r.off, len(r.payload))
	}
	for p := r.payload; len(p) > 0; p = p[16:] {
		if err := fn(binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])); err != nil {
			return err
		}
	}
	return nil
}

func appendPair(into []byte, a, b uint64) []byte {
	into = binary.LittleEndian.AppendUint64(into, a)
	return binary.LittleEndian.AppendUint64(into, b)
}

// appendSet appends the blocks of a set that are not empty.
func appendSet(into []byte, serial uint64, which byte, s *set) []byte {
	for k := range s.blocks {
		b := s.blocks[k].Load()
		if b == nil {
			continue
		}
		p := make([]byte, 8, 16+blockBits/8)
		p[0] = which
		p = binary.LittleEndian.AppendUint64(p, uint64(k))
		if b != fullBlock {
			for w := range b {
				p = binary.LittleEndian.AppendUint64(p, b[w].Load())
			}
		}
		into = appendRecord(into, serial, int64(len(into)), recordBits, p)
	}
	return into
}

// readBits puts a bits record into the set that it belongs to.
func (r record) readBits(sets map[byte]*set) error {
	if len(r.payload) < 16 {
		return fmt.Errorf("%w: record at %d has %d bytes", errDamaged, r.off, len(r.payload))
	}
	s, k, body := sets[r.payload[0]], binary.LittleEndian.Uint64(r.payload[8:]), r.payload[16:]
	if s == nil || k >= uint64(len(s.blocks)) || len(body) != 0 && len(body) != blockBits/8 {
		return fmt.Errorf("%w: record at %d names block %d of set %d", errDamaged, r.off, k, r.payload[0])
	}
	if len(body) == 0 {
		s.blocks[k].Store(fullBlock)
		return nil
	}
	b := new(block)
	for w := range b {
		b[w].Store(binary.LittleEndian.Uint64(body[8*w:]))
	}
	s.blocks[k].Store(b)
	return nil
}

func appendMasks(into []byte, serial uint64, m *masks) []byte {
	for k := range m.blocks {
		b := m.blocks[k].Load()
		if b == nil {
			continue
		}
		p := binary.LittleEndian.AppendUint64(make([]byte, 0, 8+2*maskClusters), uint64(k))
		for c := range b {
			p = binary.LittleEndian.AppendUint16(p, uint16(b[c].Load()))
		}
		into = appendRecord(into, serial, int64(len(into)), recordMasks, p)
	}
	return into
}

func (r record) readMasks(m *masks) error {
	if len(r.payload) != 8+2*maskClusters {
		return fmt.Errorf("%w: record at %d has %d bytes", errDamaged, r.off, len(r.payload))
	}
	k := binary.LittleEndian.Uint64(r.payload)
	if k >= uint64(len(m.blocks)) {
		return fmt.Errorf("%w: record at %d names block %d of the masks", errDamaged, r.off, k)
	}
	b := new(maskBlock)
	for c := range b {
		b[c].Store(uint32(binary.LittleEndian.Uint16(r.payload[8+2*c:])))
	}
	m.blocks[k].Store(b)
	return nil
}
