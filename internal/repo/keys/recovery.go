package keys

import (
	"encoding/base32"
	"strconv"
	"strings"
	"unicode"

	"github.com/zeebo/blake3"

	"cairn/internal/errs"
	"cairn/internal/repo/addr"
)

// Recovery is a recovery key: a secret in a form that survives paper
// (FORMAT.md §2).
type Recovery struct {
	tag    string // of the repository: the first 20 bits of its id, as symbols
	secret [20]byte
}

const (
	// RecoveryGroups is the number of groups that a recovery key has.
	RecoveryGroups = 10
	groupSize      = 5
	groupData      = groupSize - 1 // the last symbol checks the others
	recoveryPrefix = "CAIRN-RECOVERY-1"
	symbols        = "0123456789ABCDEFGHJKMNPQRSTVWXYZ" // Crockford's base 32
)

func symbolCoding() *base32.Encoding {
	return base32.NewEncoding(symbols).WithPadding(base32.NoPadding)
}

// first20 is the first 20 bits of b as symbols.
func first20(b []byte) string { return symbolCoding().EncodeToString(b[:5])[:groupData] }

// NewRecovery draws a recovery key for the repository.
func NewRecovery(repo addr.PackID) Recovery {
	r := Recovery{tag: first20(repo[:])}
	Random(r.secret[:])
	return r
}

// Groups are the groups of the text. They are a secret.
func (r Recovery) Groups() []string {
	data := r.tag + symbolCoding().EncodeToString(r.secret[:])
	data += recoverySum(data)
	var out []string
	for n := 1; n <= RecoveryGroups; n++ {
		g := data[(n-1)*groupData : n*groupData]
		out = append(out, g+string(groupCheck(n, g)))
	}
	return out
}

// Text is what is printed: the first word, and the groups in two lines. It is
// a secret.
func (r Recovery) Text() string {
	g := r.Groups()
	half := len(g) / 2
	return recoveryPrefix + "\n" + strings.Join(g[:half], " ") + "\n" + strings.Join(g[half:], " ") + "\n"
}

func recoverySum(data string) string {
	sum := blake3.Sum256([]byte(data))
	return first20(sum[:])
}

// groupCheck is the last symbol of group n: x⁵n + x⁴v₁ + x³v₂ + x²v₃ + xv₄ in
// GF(2)[x]/(x⁵+x²+1), so that one wrong symbol, two swapped ones and a group
// in another's place always show.
func groupCheck(n int, data string) byte {
	c := n
	for i := range len(data) {
		c = timesX(c) ^ strings.IndexByte(symbols, data[i])
	}
	return symbols[timesX(c)]
}

func timesX(c int) int {
	if c <<= 1; c&0x20 != 0 {
		c ^= 0x25
	}
	return c
}

// canonical gives what was typed as symbols: capital letters, and the digits
// that some letters are taken for.
func canonical(typed string) string {
	return strings.NewReplacer("O", "0", "I", "1", "L", "1").Replace(strings.ToUpper(typed))
}

// goodGroup reports whether g, canonical, is right as group n by itself.
func goodGroup(n int, g string) bool {
	if len(g) != groupSize {
		return false
	}
	for i := range len(g) {
		if strings.IndexByte(symbols, g[i]) < 0 {
			return false
		}
	}
	return groupCheck(n, g[:groupData]) == g[groupData]
}

// splitTyped cuts what was typed at white space and dashes, without the first
// word of a printed key.
func splitTyped(text string) []string {
	upper := strings.ToUpper(strings.TrimSpace(text))
	upper = strings.TrimPrefix(upper, recoveryPrefix)
	return strings.FieldsFunc(upper, func(r rune) bool { return r == '-' || unicode.IsSpace(r) })
}

// TakeGroups gives the leading groups of typed that are right, when its first
// is to be group from (counted from 1), and whether all are.
func TakeGroups(from int, typed string) (good []string, ok bool) {
	for _, g := range splitTyped(typed) {
		n := from + len(good)
		if n > RecoveryGroups || !goodGroup(n, canonical(g)) {
			return good, false
		}
		good = append(good, g)
	}
	return good, true
}

// ParseRecovery reads a recovery key as it was typed. Its errors name the
// groups that are wrong, and never hold any of the text.
func ParseRecovery(text string) (Recovery, error) {
	var r Recovery
	groups := splitTyped(text)
	if whole := strings.Join(groups, ""); len(groups) != RecoveryGroups {
		groups = nil // cut otherwise than printed: count symbols
		for len(whole) > 0 {
			n := min(groupSize, len(whole))
			groups, whole = append(groups, whole[:n]), whole[n:]
		}
	}
	var data strings.Builder
	var bad []string
	for i, g := range groups {
		g = canonical(g)
		if i >= RecoveryGroups || !goodGroup(i+1, g) {
			bad = append(bad, strconv.Itoa(i+1))
			continue
		}
		data.WriteString(g[:groupData])
	}
	switch {
	case len(groups) != RecoveryGroups && len(bad) > 0:
		return r, errs.New(errs.Invalid, "the recovery key has %d groups of %d letters and digits; what was entered goes wrong in group %s", RecoveryGroups, groupSize, bad[0])
	case len(groups) != RecoveryGroups:
		return r, errs.New(errs.Invalid, "the recovery key has %d groups of %d letters and digits; what was entered ends after %d", RecoveryGroups, groupSize, len(groups))
	case len(bad) == 1:
		return r, errs.New(errs.Invalid, "the recovery key has a typing error in group %s; compare it with the paper", bad[0])
	case len(bad) > 1:
		return r, errs.New(errs.Invalid, "the recovery key has typing errors in the groups %s; compare them with the paper", strings.Join(bad, ", "))
	}
	all := data.String()
	body := all[:len(all)-groupData]
	if recoverySum(body) != all[len(body):] {
		return r, errs.New(errs.Invalid, "the recovery key has a typing error that no single group shows; compare all of it with the paper")
	}
	r.tag = body[:groupData]
	if _, err := symbolCoding().Decode(r.secret[:], []byte(body[groupData:])); err != nil {
		return Recovery{}, errs.Wrap(errs.Internal, err, "the recovery key cannot be decoded")
	}
	return r, nil
}

// ParseKey reads a key file's text, or a recovery key that was typed into a
// file. Its errors never hold any of the text.
func ParseKey(text string) (Opener, error) {
	line := strings.TrimSpace(text)
	if strings.HasPrefix(strings.ToUpper(line), "CAIRN-KEY-") {
		return ParseFile(text)
	}
	if strings.HasPrefix(strings.ToUpper(line), recoveryPrefix) {
		return ParseRecovery(text)
	}
	if r, err := ParseRecovery(text); err == nil {
		return r, nil
	}
	return nil, errs.New(errs.Invalid, "the key file is neither a Cairn key (one line that begins with %s) nor a recovery key (text that begins with %s); put the right file in its place", filePrefix, recoveryPrefix)
}

// String keeps the key out of logs and errors.
func (r Recovery) String() string { return "the recovery key" }

func (r Recovery) kind() SlotKind { return RecoverySlot }

func (r Recovery) admit(repo addr.PackID) error {
	if r.tag != first20(repo[:]) {
		return errs.New(errs.Denied, "the recovery key belongs to another repository than this one, %s", repo)
	}
	return nil
}

func (r Recovery) slotKey(s *slot) []byte {
	k := derive("cairn v1 recovery slot", append(r.secret[:], s.salt()...))
	return k[:]
}
