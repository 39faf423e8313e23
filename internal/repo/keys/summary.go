package keys

import (
	"encoding/hex"
	"fmt"
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
	h, err := parse(b)
	if err != nil {
		return Summary{}, err
	}
	s := Summary{Repo: h.Repo, Generation: h.Generation, Created: h.Created}
	for i := range h.slots {
		slot := SlotSummary{Kind: fmt.Sprintf("unknown kind %d", h.slots[i][0]), ID: hex.EncodeToString(h.slots[i][128:144])}
		switch h.slots[i][0] {
		case slotFile:
			slot.Kind = "key file"
		case 2: // FORMAT.md §3
			slot.Kind = "passphrase"
		}
		s.Slots = append(s.Slots, slot)
	}
	return s, nil
}
