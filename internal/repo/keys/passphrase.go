package keys

import (
	"runtime/debug"
	"strings"

	"golang.org/x/crypto/argon2"

	"cairn/internal/errs"
	"cairn/internal/repo/addr"
)

// Cost is what one guess at a passphrase costs (Argon2id, RFC 9106).
type Cost struct {
	Passes    uint32
	MemoryKiB uint32
	Lanes     uint32
}

// DefaultCost is the second choice of RFC 9106 §4. Its 64 MiB are the most
// that fits the server's memory beside everything else, and more than that is
// computed for no header.
func DefaultCost() Cost { return Cost{Passes: 3, MemoryKiB: maxMemoryKiB, Lanes: 4} }

const (
	maxPasses      = 16
	maxLanes       = 16
	maxMemoryKiB   = 64 << 10
	laneMinKiB     = 8 // RFC 9106 §3.1
	maxPassphrases = 8 // slots of this kind in a header
)

// check refuses what no header may ask a reader to compute.
func (c Cost) check() error {
	if c.Passes < 1 || c.Passes > maxPasses || c.Lanes < 1 || c.Lanes > maxLanes ||
		c.MemoryKiB < laneMinKiB*c.Lanes || c.MemoryKiB > maxMemoryKiB {
		return errs.New(errs.Invalid, "an Argon2id cost of %d passes, %d KiB and %d lanes is beyond 1 to %d passes, 1 to %d lanes and %d KiB a lane to %d KiB",
			c.Passes, c.MemoryKiB, c.Lanes, maxPasses, maxLanes, laneMinKiB, maxMemoryKiB)
	}
	return nil
}

// Passphrase opens a slot by what a person remembers or a file holds.
type Passphrase struct {
	secret string
	cost   Cost // of slots that are made for it
}

const (
	// passphraseMin is the least for a new one: whoever holds the blobs can
	// guess for as long as he likes.
	passphraseMin = 8
	passphraseMax = 1024
)

// ParsePassphrase takes a passphrase as it was typed, or a file's text. One
// line end is not part of it. Slots made for it will have the cost.
func ParsePassphrase(text string, cost Cost) (Passphrase, error) {
	if err := cost.check(); err != nil {
		return Passphrase{}, err
	}
	p := Passphrase{secret: strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r"), cost: cost}
	switch {
	case p.secret == "":
		return Passphrase{}, errs.New(errs.Invalid, "the passphrase is empty")
	case len(p.secret) > passphraseMax:
		return Passphrase{}, errs.New(errs.Invalid, "the passphrase is longer than %d bytes", passphraseMax)
	case strings.ContainsAny(p.secret, "\r\n"):
		return Passphrase{}, errs.New(errs.Invalid, "the passphrase has more than one line")
	}
	return p, nil
}

// CheckNew refuses what is too short for a new passphrase.
func (p Passphrase) CheckNew() error {
	if len(p.secret) < passphraseMin {
		return errs.New(errs.Invalid, "the new passphrase is shorter than %d bytes; take a longer one, for example some words drawn by dice", passphraseMin)
	}
	return nil
}

// String keeps the passphrase out of logs and errors.
func (p Passphrase) String() string { return "the passphrase" }

func (p Passphrase) kind() SlotKind { return PassphraseSlot }

func (p Passphrase) admit(addr.PackID) error { return nil }

func (p Passphrase) slotKey(s *slot) []byte {
	c := s.cost()
	raw := argon2.IDKey([]byte(p.secret), s.salt(), c.Passes, c.MemoryKiB, uint8(c.Lanes), 32)
	// The collector would let the heap grow to twice these MiB before it
	// looked again.
	debug.FreeOSMemory()
	k := derive("cairn v1 passphrase slot", raw)
	return k[:]
}
