package keys

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"cairn/internal/errs"
	"cairn/internal/repo/addr"
)

// Opener is what opens a key slot: a File, a Passphrase or a Recovery. Its
// String names it without a secret.
type Opener interface {
	fmt.Stringer
	kind() SlotKind
	// admit refuses, with errs.Denied, a repository that it is not for, as
	// far as it knows one.
	admit(repo addr.PackID) error
	// slotKey derives the key of a slot of its kind whose cost is usable.
	slotKey(s *slot) []byte
}

// SlotKind says what opens a slot.
type SlotKind uint8

// The kinds that this version knows.
const (
	KeyFileSlot    SlotKind = 1
	PassphraseSlot SlotKind = 2
	RecoverySlot   SlotKind = 3
)

func (k SlotKind) known() bool { return k >= KeyFileSlot && k <= RecoverySlot }

func (k SlotKind) String() string {
	switch k {
	case KeyFileSlot:
		return "key file"
	case PassphraseSlot:
		return "passphrase"
	case RecoverySlot:
		return "recovery key"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// SlotID names a slot. It is random and no secret.
type SlotID [16]byte

func (id SlotID) String() string { return hex.EncodeToString(id[:]) }

// SlotInfo describes a slot.
type SlotInfo struct {
	ID     SlotID
	Kind   SlotKind
	Added  time.Time // zero: not recorded
	Cost   Cost      // of a passphrase's slot
	Usable bool      // this version can open it with the right key
}

// slot is a slot as it is stored (FORMAT.md §3).
type slot [slotSize]byte

const (
	slotSize    = 144
	slotSealed  = 48 // offset of the wrapped master secret
	slotIDAt    = 128
	slotAADSize = 32
)

func (s *slot) kind() SlotKind { return SlotKind(s[0]) }
func (s *slot) salt() []byte   { return s[16:32] }
func (s *slot) nonce() []byte  { return s[32:44] }
func (s *slot) id() SlotID     { return SlotID(s[slotIDAt:]) }

func (s *slot) cost() Cost {
	le := binary.LittleEndian
	return Cost{Passes: le.Uint32(s[4:]), MemoryKiB: le.Uint32(s[8:]), Lanes: le.Uint32(s[12:])}
}

// reservedZero reports whether the slot is one that version 1 may hold.
func (s *slot) reservedZero() bool {
	if s[1]|s[2]|s[3] != 0 && s.kind().known() {
		return false
	}
	return s.kind() != KeyFileSlot && s.kind() != RecoverySlot || s.cost() == Cost{}
}

// usable reports whether this version can open the slot. The cost is outside
// input that nothing has proved yet.
func (s *slot) usable() bool {
	return s.kind().known() && (s.kind() != PassphraseSlot || s.cost().check() == nil)
}

func (s *slot) info() SlotInfo {
	i := SlotInfo{ID: s.id(), Kind: s.kind(), Usable: s.usable()}
	if i.Kind == PassphraseSlot {
		i.Cost = s.cost()
	}
	if sec := binary.LittleEndian.Uint32(s[44:]); sec != 0 {
		i.Added = time.Unix(int64(sec), 0).UTC()
	}
	return i
}

// aad binds the slot to its repository, kind, cost and salt.
func (s *slot) aad(repo addr.PackID) []byte {
	return append(repo[:], s[:slotAADSize]...)
}

func sealSlot(m Master, repo addr.PackID, o Opener, now time.Time) (s slot) {
	le := binary.LittleEndian
	s[0] = byte(o.kind())
	if p, ok := o.(Passphrase); ok {
		le.PutUint32(s[4:], p.cost.Passes)
		le.PutUint32(s[8:], p.cost.MemoryKiB)
		le.PutUint32(s[12:], p.cost.Lanes)
	}
	Random(s[16:44]) // salt and nonce
	if sec := now.Unix(); sec > 0 && sec < 1<<32 {
		le.PutUint32(s[44:], uint32(sec))
	}
	secret := append(m.id[:], m.enc[:]...)
	AEAD(o.slotKey(&s)).Seal(s[slotSealed:slotSealed], s.nonce(), secret, s.aad(repo))
	Random(s[slotIDAt:])
	return s
}

func (s *slot) open(repo addr.PackID, o Opener) (m Master, ok bool) {
	secret, err := AEAD(o.slotKey(s)).Open(nil, s.nonce(), s[slotSealed:slotIDAt], s.aad(repo))
	if err != nil {
		return m, false
	}
	copy(m.id[:], secret[:32])
	copy(m.enc[:], secret[32:])
	return m, true
}

// Slots describes the slots in order.
func (h *Header) Slots() []SlotInfo {
	out := make([]SlotInfo, len(h.slots))
	for i := range h.slots {
		out[i] = h.slots[i].info()
	}
	return out
}

// Opened is the slot by which Decode opened the header.
func (h *Header) Opened() SlotID { return h.slots[h.opened].id() }

// Next makes the header of the next generation: without the slots of drop,
// and with a new one for each of add, last and in order. errs.NotFound: a slot
// to drop is not there. errs.Exists: what is to be added opens a slot already.
// errs.Conflict: no slot would be left that this version can open, or too
// many.
func (h *Header) Next(m Master, add []Opener, drop []SlotID, now time.Time) (*Header, error) {
	n := &Header{Repo: h.Repo, Generation: h.Generation + 1, Created: h.Created}
	dropped := make(map[SlotID]bool)
	for _, id := range drop {
		dropped[id] = true
	}
	for i := range h.slots {
		if id := h.slots[i].id(); dropped[id] {
			delete(dropped, id)
			continue
		}
		n.slots = append(n.slots, h.slots[i])
	}
	for id := range dropped {
		return nil, errs.New(errs.NotFound, "repository %s has no key slot %s; cairn key list shows them", h.Repo, id)
	}
	for _, o := range add {
		if err := o.admit(h.Repo); err != nil {
			return nil, err
		}
		if i, _, ok := n.open(o); ok {
			return nil, errs.New(errs.Exists, "%s opens the repository already, by key slot %s; nothing was changed", o, n.slots[i].id())
		}
		n.slots = append(n.slots, sealSlot(m, h.Repo, o, now))
	}
	return n, n.checkSlots()
}

// checkSlots keeps a header from becoming one that nobody can open.
func (h *Header) checkSlots() error {
	usable, passphrases := 0, 0
	for i := range h.slots {
		if h.slots[i].usable() {
			usable++
		}
		if h.slots[i].kind() == PassphraseSlot {
			passphrases++
		}
	}
	switch {
	case usable == 0:
		return errs.New(errs.Conflict, "the last key slot of repository %s is never removed: nothing could be read any more; add another key first", h.Repo)
	case len(h.slots) > maxSlots:
		return errs.New(errs.Conflict, "repository %s would have more than %d key slots; remove one first", h.Repo, maxSlots)
	case passphrases > maxPassphrases:
		return errs.New(errs.Conflict, "repository %s would have more than %d passphrases; remove one first", h.Repo, maxPassphrases)
	}
	return nil
}
