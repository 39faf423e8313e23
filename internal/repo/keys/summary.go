package keys

import (
	"time"

	"cairn/internal/repo/addr"
)

// Summary is what a header tells without a key. It holds no secret.
type Summary struct {
	Repo       addr.PackID
	Generation uint64
	Created    time.Time
	Slots      []SlotSummary
}

// SlotSummary names a key slot.
type SlotSummary struct {
	Kind string
	ID   string // 32 hex digits
}

// Summarize reads a header's plain part and checks its checksum. Whether its
// writer knew the master secret only Decode or Verify can tell.
func Summarize(b []byte) (Summary, error) {
	h, err := Peek(b)
	if err != nil {
		return Summary{}, err
	}
	s := Summary{Repo: h.Repo, Generation: h.Generation, Created: h.Created}
	for _, slot := range h.Slots() {
		s.Slots = append(s.Slots, SlotSummary{Kind: slot.Kind.String(), ID: slot.ID.String()})
	}
	return s, nil
}
