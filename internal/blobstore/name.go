package blobstore

import (
	"strings"

	"cairn/internal/errs"
)

// MaxName is the longest name in bytes.
const MaxName = 200

// CheckName refuses what the contract does not allow as a blob's name, with
// errs.Invalid. Every driver calls it first, so that a name that came from
// damaged bytes can never leave the store's folder.
func CheckName(name string) error {
	if len(name) == 0 || len(name) > MaxName {
		return errs.New(errs.Invalid, "a blob name has 1 to %d bytes, this one has %d", MaxName, len(name))
	}
	for part := range strings.SplitSeq(name, "/") {
		if !GoodPart(part) {
			return errs.New(errs.Invalid, "%q is not a blob name: parts of letters, digits, dot, underscore and minus, not starting with a dot, are joined by single slashes", name)
		}
	}
	return nil
}

// GoodPart reports whether s may stand between the slashes of a name.
func GoodPart(s string) bool {
	if s == "" || s[0] == '.' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}
