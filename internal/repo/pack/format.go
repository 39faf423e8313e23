// Package pack reads and writes packs: immutable blobs of sealed records with
// a directory at the end. Layout: ../FORMAT.md §4.
//
// Invariants:
//   - a pack's key and slots are used by one Builder only, in memory, once;
//   - a record is opened only with its pack, slot, kind and ids as additional
//     data, so a moved or swapped record fails;
//   - every length read from outside is checked before it is used.
//
// A Builder serves one goroutine, but for sealing what it reserved. Functions
// that read serve any number.
package pack

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"cairn/internal/repo/addr"
	"cairn/internal/repo/keys"
)

// RecordKind says what a record holds.
type RecordKind uint8

// Record kinds.
const (
	Frame    RecordKind = 1
	NodeRec  RecordKind = 2
	Manifest RecordKind = 3
	Journal  RecordKind = 4
	Reloc    RecordKind = 5
)

// Encoding of a record's plain bytes.
type Encoding uint8

// Encodings.
const (
	Stored Encoding = 0
	Zstd   Encoding = 1
)

// Sizes in bytes.
const (
	HeaderSize  = 112
	FooterSize  = 72
	recordFixed = 24
	idSize      = 32
	tagSize     = 16
	MaxIDs      = 16      // chunks in a frame
	MaxPlain    = 1 << 20 // of any record: 16 chunks
	maxSize     = 1<<31 - 1
	// MaxBlob is the largest pack that is read whole; writers close at 32 MiB.
	MaxBlob            = 64 << 20
	version            = 1
	cipherGCM          = 1
	dirEntryFixed      = 16
	dirDomain     byte = 2
	recDomain     byte = 1
)

// ErrDamaged says that bytes of a pack fail a check. It is wrapped with what
// and where; the caller adds the blob's name.
var ErrDamaged = errors.New("damaged")

var (
	packMagic   = [8]byte([]byte("CAIRNPCK"))
	recordMagic = [4]byte([]byte("CREC"))
	endMagic    = [4]byte([]byte("CEND"))
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
	le          = binary.LittleEndian
)

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// RecordLen is the length of a record with n ids and encoded bytes of the
// given length.
func RecordLen(n, encoded int) int { return recordFixed + n*idSize + encoded + tagSize }

// nonce builds the 12-byte nonce of a domain and slot.
func nonce(domain byte, slot uint32) (n [12]byte) {
	n[0] = domain
	binary.BigEndian.PutUint32(n[8:], slot)
	return n
}

// Sealer wraps and unwraps pack keys for one repository.
type Sealer struct {
	Repo addr.PackID
	wrap cipher.AEAD
}

// NewSealer makes the Sealer of a repository.
func NewSealer(repo addr.PackID, m keys.Master) *Sealer {
	return &Sealer{Repo: repo, wrap: m.PackWrap()}
}

// newHeader makes a pack header and the cipher of its fresh key.
func (s *Sealer) newHeader(p addr.Pack) ([]byte, cipher.AEAD) {
	b := make([]byte, 60, HeaderSize)
	copy(b, packMagic[:])
	le.PutUint16(b[8:], version)
	b[10] = byte(p.Kind)
	b[11] = cipherGCM
	copy(b[16:], p.ID[:])
	copy(b[32:], s.Repo[:])
	keys.Random(b[48:60])
	var key [32]byte
	keys.Random(key[:])
	aead := keys.AEAD(key[:])
	b = s.wrap.Seal(b, b[48:60], key[:], b[:48])
	clear(key[:])
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli)), aead
}

// HeaderID reads the pack id from a header, unchecked: Key checks it with all
// the rest. Journal blobs have it nowhere else.
func HeaderID(header []byte) (id addr.PackID, err error) {
	if len(header) < HeaderSize {
		return id, damaged("the pack header is cut")
	}
	copy(id[:], header[16:32])
	return id, nil
}

// Key opens a pack's header and returns the cipher of its records.
func (s *Sealer) Key(p addr.Pack, header []byte) (cipher.AEAD, error) {
	if len(header) < HeaderSize {
		return nil, damaged("the pack header is cut")
	}
	b := header[:HeaderSize]
	if [8]byte(b) != packMagic || crc32.Checksum(b[:108], castagnoli) != le.Uint32(b[108:]) {
		return nil, damaged("the pack header fails its checksum")
	}
	if v := le.Uint16(b[8:]); v != version || b[11] != cipherGCM || le.Uint32(b[12:]) != 0 {
		return nil, damaged("the pack header has version %d and cipher %d, which are unknown", v, b[11])
	}
	if addr.Kind(b[10]) != p.Kind || addr.PackID(b[16:32]) != p.ID {
		return nil, damaged("the blob holds %s pack %x instead", addr.Kind(b[10]), b[16:32])
	}
	if addr.PackID(b[32:48]) != s.Repo {
		return nil, damaged("the pack belongs to repository %x", b[32:48])
	}
	key, err := s.wrap.Open(nil, b[48:60], b[60:108], b[:48])
	if err != nil {
		return nil, damaged("the pack key does not unwrap")
	}
	return keys.AEAD(key), nil
}

// Record is one opened record. Plain bytes are still encoded.
type Record struct {
	Slot     uint32
	Kind     RecordKind
	Encoding Encoding
	PlainLen int
	IDs      []addr.ID
	Encoded  []byte // as handed to the codec; aliases the buffer given
	Len      int    // whole record, bytes
}

// Open checks and opens the record at the start of b. Ciphertext is opened in
// place: b's bytes change. extra bytes after the record are ignored.
func Open(aead cipher.AEAD, id addr.PackID, b []byte) (Record, error) {
	r, sealed, err := parseRecord(b)
	if err != nil {
		return r, err
	}
	aad := recordAAD(id, b[:20], b[recordFixed:recordFixed+len(r.IDs)*idSize])
	n := nonce(recDomain, r.Slot)
	r.Encoded, err = aead.Open(sealed[:0], n[:], sealed, aad)
	if err != nil {
		return r, damaged("record %d does not open under its key", r.Slot)
	}
	return r, nil
}

func recordAAD(id addr.PackID, fixed, ids []byte) []byte {
	aad := make([]byte, 0, 16+20+MaxIDs*idSize)
	aad = append(aad, id[:]...)
	aad = append(aad, fixed...)
	return append(aad, ids...)
}

// parseRecord reads the plain part of a record.
func parseRecord(b []byte) (r Record, sealed []byte, err error) {
	if len(b) < recordFixed || [4]byte(b) != recordMagic {
		return r, nil, damaged("no record where one should be")
	}
	n := int(le.Uint16(b[10:]))
	r = Record{Slot: le.Uint32(b[4:]), Kind: RecordKind(b[8]), Encoding: Encoding(b[9]), PlainLen: int(le.Uint32(b[12:]))}
	sealedLen := int(le.Uint32(b[16:]))
	if n < 1 || n > MaxIDs || r.PlainLen > MaxPlain || sealedLen < tagSize || sealedLen > MaxPlain+tagSize {
		return r, nil, damaged("a record header has impossible lengths")
	}
	body := recordFixed + n*idSize
	r.Len = body + sealedLen
	if len(b) < r.Len {
		return r, nil, damaged("record %d is cut", r.Slot)
	}
	crc := crc32.Update(crc32.Checksum(b[:20], castagnoli), castagnoli, b[recordFixed:body])
	if crc != le.Uint32(b[20:]) {
		return r, nil, damaged("the header of record %d fails its checksum", r.Slot)
	}
	if err := checkShape(r, n); err != nil {
		return r, nil, err
	}
	r.IDs = make([]addr.ID, n)
	for i := range r.IDs {
		r.IDs[i] = addr.ID(b[recordFixed+i*idSize:])
	}
	return r, b[body:r.Len], nil
}

func checkShape(r Record, n int) error {
	if r.Encoding > Zstd {
		return damaged("record %d has the unknown codec %d", r.Slot, r.Encoding)
	}
	switch r.Kind {
	case Frame:
		if r.PlainLen != n*addr.ChunkSize {
			return damaged("frame %d says %d bytes for %d chunks", r.Slot, r.PlainLen, n)
		}
	case NodeRec, Manifest, Journal, Reloc:
		if n != 1 {
			return damaged("record %d has %d ids, not one", r.Slot, n)
		}
	default:
		return damaged("record %d has the unknown kind %d", r.Slot, r.Kind)
	}
	return nil
}
