package pack

import (
	"crypto/cipher"
	"fmt"
	"hash/crc32"

	"github.com/zeebo/blake3"

	"cairn/internal/repo/addr"
	"cairn/internal/repo/keys"
)

// Builder grows one pack in memory.
type Builder struct {
	Pack addr.Pack

	aead    cipher.AEAD
	buf     []byte
	dir     []byte // plain directory entries
	records uint32
	sealed  bool
}

// NewBuilder begins a pack of the kind with a fresh id and key. buf is its
// memory and is the Builder's until Finish's result is no longer used.
// snapshot names the point of a point pack.
func (s *Sealer) NewBuilder(kind addr.Kind, snapshot string, buf []byte) *Builder {
	b := &Builder{Pack: addr.Pack{Kind: kind, Snapshot: snapshot}}
	keys.Random(b.Pack.ID[:])
	var header []byte
	header, b.aead = s.newHeader(b.Pack)
	b.buf = append(buf[:0], header...)
	return b
}

// Add seals one record and returns its place. encoded is what the codec made
// of plainLen bytes; it is not kept.
func (b *Builder) Add(kind RecordKind, enc Encoding, ids []addr.ID, plainLen int, encoded []byte) (addr.Loc, error) {
	total := RecordLen(len(ids), len(encoded))
	if b.sealed || len(ids) < 1 || len(ids) > MaxIDs || plainLen > MaxPlain || len(encoded) > MaxPlain ||
		len(b.buf)+total+len(b.dir) > maxSize-1<<16 {
		return addr.Loc{}, fmt.Errorf("pack %s cannot take a record of %d bytes with %d ids", b.Pack.ID, len(encoded), len(ids))
	}
	off := len(b.buf)
	b.buf = append(b.buf, recordMagic[:]...)
	b.buf = le.AppendUint32(b.buf, b.records)
	b.buf = append(b.buf, byte(kind), byte(enc))
	b.buf = le.AppendUint16(b.buf, uint16(len(ids)))
	b.buf = le.AppendUint32(b.buf, uint32(plainLen))
	b.buf = le.AppendUint32(b.buf, uint32(len(encoded)+tagSize))
	b.buf = le.AppendUint32(b.buf, 0) // the CRC, when the ids stand
	for i := range ids {
		b.buf = append(b.buf, ids[i][:]...)
	}
	fixed, idBytes := b.buf[off:off+20], b.buf[off+recordFixed:]
	le.PutUint32(b.buf[off+20:], crc32.Update(crc32.Checksum(fixed, castagnoli), castagnoli, idBytes))
	n := nonce(recDomain, b.records)
	aad := recordAAD(b.Pack.ID, fixed, idBytes)
	b.dir = appendDirEntry(b.dir, uint32(off), uint32(total), kind, enc, uint32(plainLen), idBytes)
	b.buf = b.aead.Seal(b.buf, n[:], encoded, aad)
	b.records++
	return addr.Loc{Pack: b.Pack, Off: uint32(off), Len: uint32(total)}, nil
}

// Size is the number of bytes so far, without directory and footer.
func (b *Builder) Size() int { return len(b.buf) }

// SizeWith is the size of the finished blob if one more record with n ids and
// that many encoded bytes is added.
func (b *Builder) SizeWith(n, encoded int) int {
	dir := len(b.dir) + dirEntryFixed + n*idSize + tagSize
	return len(b.buf) + RecordLen(n, encoded) + dir + FooterSize
}

// Finish appends directory and footer and returns the blob's bytes and its
// content hash. The Builder takes no more records.
func (b *Builder) Finish() (blob []byte, content addr.ID) {
	b.sealed = true
	dirOff := uint32(len(b.buf))
	n := nonce(dirDomain, 0)
	b.buf = b.aead.Seal(b.buf, n[:], b.dir, dirAAD(b.Pack.ID, dirOff))
	dirLen := uint32(len(b.buf)) - dirOff
	content = addr.ID(blake3.Sum256(b.buf))
	f := make([]byte, 0, FooterSize)
	f = le.AppendUint32(f, dirOff)
	f = le.AppendUint32(f, dirLen)
	f = le.AppendUint32(f, b.records)
	f = le.AppendUint32(f, 0)
	f = append(f, content[:]...)
	f = append(f, b.Pack.ID[:]...)
	f = le.AppendUint32(f, crc32.Checksum(f, castagnoli))
	f = append(f, endMagic[:]...)
	b.buf = append(b.buf, f...)
	return b.buf, content
}

// Discard ends a pack that will not be finished and returns its memory.
func (b *Builder) Discard() []byte {
	b.sealed = true
	return b.buf[:0]
}

func dirAAD(id addr.PackID, dirOff uint32) []byte {
	aad := append([]byte(nil), id[:]...)
	aad = append(aad, "DIR1"...)
	return le.AppendUint32(aad, dirOff)
}

func appendDirEntry(d []byte, off, length uint32, kind RecordKind, enc Encoding, plainLen uint32, ids []byte) []byte {
	d = le.AppendUint32(d, off)
	d = le.AppendUint32(d, length)
	d = append(d, byte(kind), byte(enc))
	d = le.AppendUint16(d, uint16(len(ids)/idSize))
	d = le.AppendUint32(d, plainLen)
	return append(d, ids...)
}
