package engine

import (
	"encoding/hex"
	"fmt"
	"strings"

	"cairn/internal/errs"
	"cairn/internal/repo"
)

// String is the reference as text, for ParsePointRef.
func (p PointRef) String() string {
	s := p.Snapshot + "." + p.Pack
	if p.Hash != "" {
		s += "." + p.Hash
	}
	return s
}

// ParsePointRef reads what String gave. errs.Invalid: it never gave that.
func ParsePointRef(s string) (PointRef, error) {
	var p PointRef
	parts := strings.Split(s, ".")
	bad := errs.New(errs.Invalid, "%q is no reference of a point; it must be a snapshot's id, 32 and maybe 64 hex digits, joined by dots", s)
	switch len(parts) {
	case 2:
		p = PointRef{Snapshot: parts[0], Pack: parts[1]}
	case 3:
		p = PointRef{Snapshot: parts[0], Pack: parts[1], Hash: parts[2]}
	default:
		return PointRef{}, bad
	}
	pk, content, err := p.pack()
	if err != nil {
		return PointRef{}, errs.Wrap(errs.Invalid, err, "%s", bad.Msg)
	}
	// One text for each point: hex digits are small, and an empty hash has no dot.
	if !repo.ValidSnapshot(p.Snapshot) || pk.ID.String() != p.Pack || len(parts) == 3 && content.String() != p.Hash {
		return PointRef{}, bad
	}
	return p, nil
}

// pack is the point's pack, and its content hash if the caller knows it.
func (p PointRef) pack() (repo.Pack, repo.ID, error) {
	var content repo.ID
	id, err := repo.ParsePackID(p.Pack)
	if err != nil {
		return repo.Pack{}, content, fmt.Errorf("point %s: %w", p.Snapshot, err)
	}
	if p.Hash != "" {
		b, err := hex.DecodeString(p.Hash)
		if err != nil || len(b) != len(content) {
			return repo.Pack{}, content, fmt.Errorf("point %s: manifest hash %q is not 64 hex digits", p.Snapshot, p.Hash)
		}
		copy(content[:], b)
	}
	return repo.PointPack(p.Snapshot, id), content, nil
}
