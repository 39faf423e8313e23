package repo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
	"cairn/internal/repo/keys"
)

// The words of key slots that callers need.
type (
	// Passphrase opens a slot at the cost that the slot names.
	Passphrase = keys.Passphrase
	// RecoveryKey opens a slot, and survives paper.
	RecoveryKey = keys.Recovery
	// KeySlotID names a key slot.
	KeySlotID = keys.SlotID
	// KeySlotKind says what opens a slot.
	KeySlotKind = keys.SlotKind
	// KeySlot describes a key slot.
	KeySlot = keys.SlotInfo
)

// The kinds of key slots.
const (
	KeyFileSlot    = keys.KeyFileSlot
	PassphraseSlot = keys.PassphraseSlot
	RecoverySlot   = keys.RecoverySlot
)

// RecoveryGroups is the number of groups that a recovery key has.
const RecoveryGroups = keys.RecoveryGroups

// ParsePassphrase takes a passphrase as it was typed, or a file's text. Its
// new slots have the default cost.
func ParsePassphrase(text string) (Passphrase, error) {
	return keys.ParsePassphrase(text, keys.DefaultCost())
}

// ParseRecoveryKey reads a recovery key as it was typed. errs.Invalid names
// the groups that are wrong.
func ParseRecoveryKey(text string) (RecoveryKey, error) { return keys.ParseRecovery(text) }

// TakeRecoveryGroups gives the leading groups of typed that are right, when its
// first is to be group from (counted from 1), and whether all are.
func TakeRecoveryGroups(from int, typed string) (good []string, ok bool) {
	return keys.TakeGroups(from, typed)
}

// KeySlotList is who can open a repository.
type KeySlotList struct {
	Repo       PackID
	Generation uint64
	Slots      []KeySlot
}

func keySlotList(h *keys.Header) KeySlotList {
	return KeySlotList{Repo: h.Repo, Generation: h.Generation, Slots: h.Slots()}
}

// PeekKeySlots lists the slots without a key, so nothing proves who wrote them.
func PeekKeySlots(ctx context.Context, store blobstore.Store) (KeySlotList, error) {
	var l KeySlotList
	err := newestHeader(ctx, store, func(b []byte) (*keys.Header, error) {
		h, err := keys.Peek(b)
		if err == nil {
			l = keySlotList(h)
		}
		return h, err
	})
	return l, err
}

// KeySlots is a repository's header, opened to see and change who can open it.
// One goroutine uses it; to change slots nobody else may have the repository
// open.
type KeySlots struct {
	store  blobstore.Store
	header *keys.Header
	master keys.Master
	opened KeySlotID
}

// OpenKeySlots opens the header and writes nothing. Errors are those of Open.
func OpenKeySlots(ctx context.Context, store blobstore.Store, key Opener) (*KeySlots, error) {
	h, m, err := openHeader(ctx, store, key)
	if err != nil {
		return nil, err
	}
	return &KeySlots{store: store, header: h, master: m, opened: h.Opened()}, nil
}

// List describes the slots.
func (s *KeySlots) List() KeySlotList { return keySlotList(s.header) }

// Opened is the slot that the key opened.
func (s *KeySlots) Opened() KeySlotID { return s.opened }

// NewKey draws a key file for this repository; Change makes a slot for it.
func (s *KeySlots) NewKey() Key { return keys.NewFile(s.header.Repo) }

// NewRecoveryKey draws a recovery key; Change makes a slot for it.
func (s *KeySlots) NewRecoveryKey() RecoveryKey { return keys.NewRecovery(s.header.Repo) }

// Change adds a slot for each of add and takes those of drop away, in one
// generation of the header. The keys of add must be durable in the operator's
// hands before. After an error, or a crash, either the old or the new slots
// are in effect, as the sentence says; the next Open, or Change, finishes what
// was begun. Errors: those of keys.Header.Next, and the store's.
func (s *KeySlots) Change(ctx context.Context, add []Opener, drop []KeySlotID, now time.Time) (added []KeySlot, err error) {
	next, err := s.header.Next(s.master, add, drop, now)
	if err != nil {
		return nil, err
	}
	b := next.Encode(s.master)
	for _, o := range add {
		if _, _, err := keys.Decode(b, o); err != nil {
			return nil, fmt.Errorf("check the new key slots before they are written: %w", err)
		}
	}
	names := headerCopies(next.Generation)
	if err := s.store.Put(ctx, names[0], b); err != nil {
		return nil, s.unwritten(ctx, names[0], err)
	}
	s.header = next
	if err := s.store.Put(ctx, names[1], b); err != nil {
		return nil, halfDone(err, "the new key slots are in effect, but the header's second copy could not be written; the next start of the server writes it")
	}
	if err := deleteOlderHeaders(ctx, s.store, next.Generation); err != nil {
		return nil, halfDone(err, "the new key slots are in effect, but the old header could not be deleted, and a removed key opens that; the next start of the server deletes it")
	}
	all := next.Slots()
	return all[len(all)-len(add):], nil
}

// unwritten says what a failed first copy means.
func (s *KeySlots) unwritten(ctx context.Context, name string, err error) error {
	_, serr := s.store.Stat(ctx, name)
	if errors.Is(serr, blobstore.ErrNotFound) {
		return halfDone(err, "the key slots could not be written and are unchanged")
	}
	return halfDone(errors.Join(err, serr), "the key slots could not be written for certain, so the old or the new ones are in effect; keep all keys and run cairn key list")
}

// halfDone keeps the cause's kind, such as errs.Full.
func halfDone(err error, sentence string) error {
	return errs.Wrap(errs.KindOf(err), err, "%s", sentence)
}
