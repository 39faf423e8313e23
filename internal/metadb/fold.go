package metadb

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// fold maps s so that strings that strings.EqualFold calls equal become the
// same bytes: each rune becomes the smallest of its case-folding orbit.
func fold(s string) string {
	return strings.Map(foldRune, s)
}

func foldRune(r rune) rune {
	if r < utf8.RuneSelf && !('a' <= r && r <= 'z') {
		return r
	}
	least := r
	for n := unicode.SimpleFold(r); n != r; n = unicode.SimpleFold(n) {
		least = min(least, n)
	}
	return least
}

// keySep stands between id and name in a search key. In names it becomes
// wordSep and in search words noMatch, so no match spans both: the service
// refuses control characters in names anyway.
const (
	keySep  = '\x01'
	wordSep = '\x02'
)

// searchKey is what a row stores for search.
func searchKey(id, name string) string {
	return searchWord(id) + string(keySep) + searchWord(name)
}

// searchWord is what to look for in search keys.
func searchWord(word string) string {
	return strings.Map(func(r rune) rune {
		if r == keySep || r == 0 { // SQL text ends at a zero byte
			return wordSep
		}
		return foldRune(r)
	}, word)
}
