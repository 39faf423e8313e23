package journal

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"

	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/service"
)

// notesKey is the setting that holds the notes.
const notesKey = "journal"

// notes is what the database knows of the journal.
type notes struct {
	// Database names this database; a recovered one gets a new name.
	Database string `json:"database"`
	// Newest is the newest blob of the chain that the database heard of.
	// Content is empty if it could not be read when the database was made.
	Newest  uint64 `json:"newest"`
	Content string `json:"content,omitempty"`
	// Rebase: the journal does not hold this database's state, so a whole
	// summary comes before all else.
	Rebase bool `json:"rebase,omitempty"`

	// Of the newest summary: its base, and how much its parts are.
	Base      uint64 `json:"base,omitempty"`
	PartBlobs int    `json:"part_blobs,omitempty"`
	PartBytes int64  `json:"part_bytes,omitempty"`
}

func newDatabase() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func (n *notes) pos() (engine.JournalPos, error) {
	p := engine.JournalPos{Number: n.Newest}
	b, err := hex.DecodeString(n.Content)
	if err != nil || (len(b) != 0 && len(b) != len(p.Content)) {
		return p, errs.New(errs.Corrupt, "the database's note of its newest journal blob cannot be read; run cairn repo recover")
	}
	copy(p.Content[:], b)
	return p, nil
}

func (n *notes) setPos(p engine.JournalPos) {
	n.Newest, n.Content = p.Number, ""
	if !p.Content.IsZero() {
		n.Content = p.Content.String()
	}
}

func loadNotes(tx service.Tx) (n notes, err error) {
	text, err := tx.Setting(notesKey)
	if err != nil || text == "" {
		return n, err
	}
	if err := json.Unmarshal([]byte(text), &n); err != nil {
		return n, errs.Wrap(errs.Corrupt, err, "the database's notes of the journal cannot be read; run cairn repo recover")
	}
	return n, nil
}

func (n *notes) save(tx service.Tx) error {
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return tx.SetSetting(notesKey, string(text))
}
