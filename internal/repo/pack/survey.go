package pack

import (
	"bytes"
	"crypto/cipher"
	"fmt"

	"github.com/zeebo/blake3"

	"cairn/internal/repo/addr"
)

func (k RecordKind) String() string {
	switch k {
	case Frame:
		return "frame"
	case NodeRec:
		return "node"
	case Manifest:
		return "manifest"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

func (e Encoding) String() string {
	switch e {
	case Stored:
		return "stored"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %d", uint8(e))
}

// Survey is what can be told of a blob that may be damaged. An error that is
// nil says that the part is whole.
type Survey struct {
	Footer  Footer // zero if FooterErr is set
	Entries []Entry
	Scanned bool // Entries were found by scanning, not in the directory

	FooterErr    error
	ContentErr   error // the content hash; set without a footer too
	DirectoryErr error
}

// NewSurvey looks at a blob's parts one by one. Without a directory it scans
// for records, so that what lies between damage is still found. aead is the
// pack's, from whichever copy of its header is whole; nil if none is.
func NewSurvey(p addr.Pack, aead cipher.AEAD, blob []byte) Survey {
	var s Survey
	tail := blob[max(0, len(blob)-FooterSize):]
	s.Footer, s.FooterErr = ParseFooter(p.ID, tail, int64(len(blob)))
	switch {
	case s.FooterErr != nil:
		s.ContentErr = damaged("without a footer the content hash is unknown")
		s.DirectoryErr = damaged("without a footer the directory is not found")
	case addr.ID(blake3.Sum256(blob[:len(blob)-FooterSize])) != s.Footer.Content:
		s.ContentErr = damaged("the content hash does not match")
	}
	if s.FooterErr == nil && aead == nil {
		s.DirectoryErr = damaged("without a key the directory does not open")
	}
	if s.DirectoryErr == nil {
		f := s.Footer
		sealed := bytes.Clone(blob[f.DirOff : f.DirOff+f.DirLen])
		s.Entries, s.DirectoryErr = OpenDirectory(aead, p.ID, f, sealed)
	}
	if s.DirectoryErr != nil {
		s.Entries, s.Scanned = scan(blob), true
	}
	return s
}

// scan finds records by their magic and checksum; FORMAT.md §4 has both for
// this.
func scan(blob []byte) []Entry {
	var out []Entry
	for at := 0; ; {
		i := bytes.Index(blob[at:], recordMagic[:])
		if i < 0 {
			return out
		}
		at += i
		r, _, err := parseRecord(blob[at:])
		if err != nil {
			at++
			continue
		}
		out = append(out, Entry{Slot: r.Slot, Off: uint32(at), Len: uint32(r.Len), Kind: r.Kind, Encoding: r.Encoding, PlainLen: r.PlainLen, IDs: r.IDs})
		at += r.Len
	}
}

// OpenEntry opens the record that e tells of, on a copy of its bytes, so blob
// stays as it is.
func OpenEntry(p addr.Pack, aead cipher.AEAD, blob []byte, e Entry) (Record, error) {
	if int64(e.Off)+int64(e.Len) > int64(len(blob)) {
		return Record{}, damaged("the blob ends before the record does")
	}
	if aead == nil {
		return Record{}, damaged("without a key it does not open")
	}
	r, err := Open(aead, p.ID, bytes.Clone(blob[e.Off:e.Off+e.Len]))
	if err == nil && (r.Kind != e.Kind || r.Encoding != e.Encoding || r.PlainLen != e.PlainLen || r.Len != int(e.Len) || !sameIDs(r.IDs, e.IDs)) {
		err = damaged("the record is not what the directory says")
	}
	return r, err
}
