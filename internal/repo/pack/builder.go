package pack

import (
	"crypto/cipher"
	"fmt"
	"hash/crc32"
	"slices"

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

// Reservation is a record's slot and room in a pack that is being built.
type Reservation struct {
	Loc addr.Loc

	aead cipher.AEAD
	slot uint32
	rec  []byte // the whole record; header and ids stand
	body int    // where the sealed bytes begin
}

// Add seals one record and returns its place. encoded is what the codec made
// of plainLen bytes; it is not kept.
func (b *Builder) Add(kind RecordKind, enc Encoding, ids []addr.ID, plainLen int, encoded []byte) (addr.Loc, error) {
	b.buf = slices.Grow(b.buf, RecordLen(len(ids), len(encoded)))
	r, err := b.Reserve(kind, enc, ids, plainLen, len(encoded))
	if err != nil {
		return addr.Loc{}, err
	}
	r.Seal(encoded)
	return r.Loc, nil
}

// Reserve makes room for one record in the memory that the Builder was given;
// more than that it does not take. Seal must follow, before Finish. Several
// reserved records may be sealed at once, each by a goroutine of its own.
func (b *Builder) Reserve(kind RecordKind, enc Encoding, ids []addr.ID, plainLen, encodedLen int) (Reservation, error) {
	total := RecordLen(len(ids), encodedLen)
	if b.sealed || len(ids) < 1 || len(ids) > MaxIDs || plainLen > MaxPlain || encodedLen > MaxPlain ||
		len(b.buf)+total+len(b.dir) > maxSize-1<<16 || total > cap(b.buf)-len(b.buf) {
		return Reservation{}, fmt.Errorf("pack %s cannot take a record of %d bytes with %d ids", b.Pack.ID, encodedLen, len(ids))
	}
	off := len(b.buf)
	b.buf = append(b.buf, recordMagic[:]...)
	b.buf = le.AppendUint32(b.buf, b.records)
	b.buf = append(b.buf, byte(kind), byte(enc))
	b.buf = le.AppendUint16(b.buf, uint16(len(ids)))
	b.buf = le.AppendUint32(b.buf, uint32(plainLen))
	b.buf = le.AppendUint32(b.buf, uint32(encodedLen+tagSize))
	b.buf = le.AppendUint32(b.buf, 0) // the CRC, when the ids stand
	for i := range ids {
		b.buf = append(b.buf, ids[i][:]...)
	}
	fixed, idBytes := b.buf[off:off+20], b.buf[off+recordFixed:]
	le.PutUint32(b.buf[off+20:], crc32.Update(crc32.Checksum(fixed, castagnoli), castagnoli, idBytes))
	b.dir = appendDirEntry(b.dir, uint32(off), uint32(total), kind, enc, uint32(plainLen), idBytes)
	r := Reservation{
		Loc:  addr.Loc{Pack: b.Pack, Off: uint32(off), Len: uint32(total)},
		aead: b.aead, slot: b.records, body: len(b.buf) - off,
	}
	b.buf = b.buf[:off+total]
	r.rec = b.buf[off : off+total : off+total]
	b.records++
	return r, nil
}

// Seal fills the reserved room with encoded, which has the length that was
// announced and is not kept.
func (r *Reservation) Seal(encoded []byte) {
	n := nonce(recDomain, r.slot)
	aad := recordAAD(r.Loc.Pack.ID, r.rec[:20], r.rec[recordFixed:r.body])
	if got := r.aead.Seal(r.rec[r.body:r.body], n[:], encoded, aad); r.body+len(got) != len(r.rec) {
		panic(fmt.Sprintf("a record of %d bytes was sealed into room for %d", r.body+len(got), len(r.rec)))
	}
}

// Records is the number of records so far.
func (b *Builder) Records() int { return int(b.records) }

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
