// Package addr names things in a repository: ids of content, ids of packs,
// and locations of records. Plain values; FORMAT.md §1 and §6 say how they
// are written.
package addr

import (
	"encoding/hex"
	"fmt"
)

// ChunkSize is the size of every chunk in bytes (FORMAT.md §5).
const ChunkSize = 1 << ChunkLog

// ChunkLog is log2 of ChunkSize: QEMU's default bitmap granularity, so one
// dirty bit is one chunk.
const ChunkLog = 16

// ID is a keyed BLAKE3-256 of content. The zero ID stands for all zeros.
type ID [32]byte

// IsZero reports whether id is the canonical zero.
func (id ID) IsZero() bool { return id == ID{} }

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// PackID is a pack's random 128-bit name.
type PackID [16]byte

func (p PackID) String() string { return hex.EncodeToString(p[:]) }

// ParsePackID reads 32 hex digits.
func ParsePackID(s string) (PackID, error) {
	var p PackID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(p) {
		return p, fmt.Errorf("pack id %q is not 32 hex digits", s)
	}
	copy(p[:], b)
	return p, nil
}

// Kind is a pack's kind (FORMAT.md §4). Zero means "nowhere".
type Kind uint8

// Pack kinds.
const (
	Data  Kind = 1
	Node  Kind = 2
	Point Kind = 3
	// Journal packs hold no records that a Loc names, and their blobs are
	// named by number: Pack.Snapshot is that, 16 hex digits, and Pack.ID is
	// known only once the header was read.
	Journal Kind = 4
	Reloc   Kind = 5
)

func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case Node:
		return "node"
	case Point:
		return "point"
	case Reloc:
		return "reloc"
	case Journal:
		return "journal"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Pack names one pack well enough to find its blob.
type Pack struct {
	Kind     Kind
	ID       PackID
	Snapshot string // point packs: ss-…; journal packs: their number
}

// Blob is the blob's name without its copy suffix.
func (p Pack) Blob() string {
	switch p.Kind {
	case Data:
		return "data/" + p.ID.String()[:2] + "/" + p.ID.String()
	case Node:
		return "node/" + p.ID.String()[:2] + "/" + p.ID.String()
	case Reloc:
		return "reloc/" + p.ID.String()
	case Journal:
		return "journal/" + p.Snapshot
	default:
		return "point/" + p.Snapshot + "." + p.ID.String()
	}
}

// Copies are the full blob names that hold the same bytes, best first.
func (p Pack) Copies() []string {
	if p.Kind == Data {
		return []string{p.Blob()}
	}
	return []string{p.Blob() + ".a", p.Blob() + ".b"}
}

// Loc is where a record lies. The zero Loc is nowhere.
type Loc struct {
	Pack Pack
	Off  uint32 // of the record in the blob, bytes
	Len  uint32 // of the whole record, bytes
	Sub  uint8  // number of the chunk in its frame
}

// Ref is a slot of a tree: content and where it lies. The zero Ref is zeros.
type Ref struct {
	ID  ID
	Loc Loc
}

// IsZero reports whether the slot stands for zeros.
func (r Ref) IsZero() bool { return r.ID.IsZero() }
