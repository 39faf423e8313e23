package metadb

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Marks inside search keys. Ids and names never hold them: there, as in
// search words, otherMark takes their place, so no match spans two fields.
const (
	endMark   = '\x00' // after each key in a block
	fieldMark = '\x01' // between id and name
	otherMark = '\x02'
)

// searchKey is what a row keeps for search.
func searchKey(id, name string) string {
	return fold(id) + string(fieldMark) + fold(name)
}

// fold maps s so that strings that strings.EqualFold calls equal become the
// same bytes: each rune becomes the smallest of its case-folding orbit.
func fold(s string) string {
	return strings.Map(foldRune, s)
}

func foldRune(r rune) rune {
	switch {
	case r == endMark || r == fieldMark:
		return otherMark
	case r < utf8.RuneSelf && (r < 'a' || r > 'z'):
		return r
	}
	least := r
	for n := unicode.SimpleFold(r); n != r; n = unicode.SimpleFold(n) {
		least = min(least, n)
	}
	return least
}
