package engine

import (
	"context"
	"slices"
	"time"

	"cairn/internal/repo"
)

// The words of the metadata journal for those above, who do not know the
// repository. FORMAT.md §11 says what they mean.
type (
	// JournalEntry is the whole state of one object.
	JournalEntry = repo.JournalEntry
	// JournalPoint is a point as it is now.
	JournalPoint = repo.JournalPoint
	// JournalVolume is a volume as it is now.
	JournalVolume = repo.JournalVolume
	// JournalHead is what a journal blob says of itself.
	JournalHead = repo.JournalHead
	// JournalPos names a journal blob and what it holds.
	JournalPos = repo.JournalPos
	// JournalBlob is one stored journal blob.
	JournalBlob = repo.JournalBlob
	// JournalContent is a journal blob as read.
	JournalContent = repo.JournalContent
	// JournalState says which blobs make the journal's state.
	JournalState = repo.JournalState
)

// Kinds of entries and of journal blobs.
const (
	PointEntry  = repo.PointEntry
	VolumeEntry = repo.VolumeEntry

	JournalChanges = repo.JournalChanges
	JournalPart    = repo.JournalPart
	JournalSummary = repo.JournalSummary
)

// ParseJournalPos reads what JournalPos.String wrote.
func ParseJournalPos(s string) (JournalPos, error) { return repo.ParseJournalPos(s) }

// JournalBlobs lists the journal, oldest first.
func (e *Engine) JournalBlobs(ctx context.Context) ([]JournalBlob, error) {
	return e.r.JournalBlobs(ctx)
}

// PutJournal makes a journal blob durable; see repo.PutJournal.
func (e *Engine) PutJournal(ctx context.Context, h JournalHead, entries []JournalEntry) (JournalPos, int64, error) {
	return e.r.PutJournal(ctx, h, entries)
}

// ReadJournal reads a journal blob. errs.Corrupt: in no copy.
func (e *Engine) ReadJournal(ctx context.Context, number uint64) (JournalContent, error) {
	return e.r.ReadJournal(ctx, number)
}

// DeleteJournal deletes journal blobs.
func (e *Engine) DeleteJournal(ctx context.Context, numbers ...uint64) error {
	return e.r.DeleteJournal(ctx, numbers...)
}

// JournalState finds out which blobs make the journal's state.
func (e *Engine) JournalState(ctx context.Context) (JournalState, error) {
	return e.r.JournalState(ctx)
}

// How long a scrub waits for the journal's writer: between the two copies of a
// blob lies a sync of the disk, and damage does not go away.
const (
	journalTries = 20
	journalPause = 250 * time.Millisecond
)

// journal finds what blob by blob does not show: lost copies and lost links.
// The journal is written meanwhile, so only what stays for seconds is damage.
func (s *scrub) journal(ctx context.Context) error {
	found, err := s.journalOnce(ctx)
	for try := 1; err == nil && len(found) > 0 && try < journalTries; try++ {
		select {
		case <-time.After(journalPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		var again []Damage
		again, err = s.journalOnce(ctx)
		found = slices.DeleteFunc(found, func(d Damage) bool { return !slices.Contains(again, d) })
	}
	if err != nil {
		return err
	}
	for _, d := range found {
		s.add(d)
		s.lost = append(s.lost, d.Blob)
	}
	return nil
}

func (s *scrub) journalOnce(ctx context.Context) ([]Damage, error) {
	var out []Damage
	blobs, err := s.e.r.JournalBlobs(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range blobs {
		for _, name := range b.Lacks() {
			out = append(out, Damage{Blob: name, What: "the blob is missing"})
		}
	}
	state, err := s.e.r.JournalState(ctx)
	for _, p := range state.Problems {
		out = append(out, Damage{Blob: p.Blob(), What: p.What + "; what it held of names and states is only in the database now"})
	}
	return out, err
}
