package pack

import (
	"crypto/cipher"
	"hash/crc32"

	"github.com/zeebo/blake3"

	"cairn/internal/repo/addr"
)

// Footer is a pack's last 72 bytes.
type Footer struct {
	DirOff, DirLen uint32
	Records        uint32
	Content        addr.ID // BLAKE3 of everything before the footer
}

// ParseFooter reads the footer of a blob of the given size from its last
// FooterSize bytes.
func ParseFooter(id addr.PackID, tail []byte, size int64) (Footer, error) {
	var f Footer
	if len(tail) != FooterSize || size < HeaderSize+FooterSize || size > maxSize {
		return f, damaged("the pack is cut")
	}
	if [4]byte(tail[68:]) != endMagic || crc32.Checksum(tail[:64], castagnoli) != le.Uint32(tail[64:]) {
		return f, damaged("the pack footer fails its checksum")
	}
	f = Footer{DirOff: le.Uint32(tail), DirLen: le.Uint32(tail[4:]), Records: le.Uint32(tail[8:]), Content: addr.ID(tail[16:48])}
	if addr.PackID(tail[48:64]) != id || le.Uint32(tail[12:]) != 0 {
		return f, damaged("the footer belongs to pack %x", tail[48:64])
	}
	if f.DirOff < HeaderSize || f.DirLen < tagSize || int64(f.DirOff)+int64(f.DirLen)+FooterSize != size {
		return f, damaged("the footer's lengths do not fit the blob")
	}
	return f, nil
}

// Entry is one record as the directory tells it.
type Entry struct {
	Slot     uint32
	Off, Len uint32
	Kind     RecordKind
	Encoding Encoding
	PlainLen int
	IDs      []addr.ID
}

// OpenDirectory opens the sealed directory (in place) and checks its shape.
func OpenDirectory(aead cipher.AEAD, id addr.PackID, f Footer, sealed []byte) ([]Entry, error) {
	n := nonce(dirDomain, 0)
	plain, err := aead.Open(sealed[:0], n[:], sealed, dirAAD(id, f.DirOff))
	if err != nil {
		return nil, damaged("the directory does not open under its key")
	}
	return parseDirectory(plain, f)
}

// parseDirectory reads the plain directory. Entries stand in file order
// without gaps, so every byte of the pack belongs to something.
func parseDirectory(d []byte, f Footer) ([]Entry, error) {
	var out []Entry
	next := uint32(HeaderSize)
	for len(d) > 0 {
		if len(d) < dirEntryFixed {
			return nil, damaged("the directory is cut")
		}
		e := Entry{Slot: uint32(len(out)), Off: le.Uint32(d), Len: le.Uint32(d[4:]), Kind: RecordKind(d[8]), Encoding: Encoding(d[9]), PlainLen: int(le.Uint32(d[12:]))}
		ids := int(le.Uint16(d[10:]))
		d = d[dirEntryFixed:]
		if ids < 1 || ids > MaxIDs || len(d) < ids*idSize || e.PlainLen > MaxPlain || e.Off != next ||
			e.Len < uint32(RecordLen(ids, 0)) || e.Len > f.DirOff-e.Off {
			return nil, damaged("directory entry %d is impossible", len(out))
		}
		if err := checkShape(Record{Kind: e.Kind, Encoding: e.Encoding, PlainLen: e.PlainLen, Slot: uint32(len(out))}, ids); err != nil {
			return nil, err
		}
		e.IDs = make([]addr.ID, ids)
		for i := range e.IDs {
			e.IDs[i] = addr.ID(d[i*idSize:])
		}
		d = d[ids*idSize:]
		next += e.Len
		out = append(out, e)
	}
	if next != f.DirOff || len(out) != int(f.Records) {
		return nil, damaged("the directory does not cover the pack")
	}
	return out, nil
}

// Check verifies a whole blob: header, content hash, footer, directory and
// every record under its key. It calls fn for each record in order with the
// opened record; blob's bytes are overwritten by the plain ones.
func (s *Sealer) Check(p addr.Pack, blob []byte, fn func(e Entry, r Record) error) error {
	if len(blob) < HeaderSize+FooterSize {
		return damaged("the pack is cut")
	}
	f, err := ParseFooter(p.ID, blob[len(blob)-FooterSize:], int64(len(blob)))
	if err != nil {
		return err
	}
	if addr.ID(blake3.Sum256(blob[:len(blob)-FooterSize])) != f.Content {
		return damaged("the content hash does not match")
	}
	aead, err := s.Key(p, blob)
	if err != nil {
		return err
	}
	entries, err := OpenDirectory(aead, p.ID, f, blob[f.DirOff:f.DirOff+f.DirLen])
	if err != nil {
		return err
	}
	for i, e := range entries {
		r, err := Open(aead, p.ID, blob[e.Off:e.Off+e.Len])
		if err != nil {
			return err
		}
		if r.Slot != uint32(i) || r.Kind != e.Kind || r.Encoding != e.Encoding || r.PlainLen != e.PlainLen ||
			r.Len != int(e.Len) || !sameIDs(r.IDs, e.IDs) {
			return damaged("record %d is not what the directory says", i)
		}
		if err := fn(e, r); err != nil {
			return err
		}
	}
	return nil
}

func sameIDs(a, b []addr.ID) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
