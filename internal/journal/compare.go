package journal

import (
	"context"
	"fmt"

	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/service"
)

const recoverAdvice = "stop the server and run cairn repo recover"

// compare looks whether the journal is older or newer than the database, and
// sets the writer up. refusal: it is newer, so nothing may be changed.
func (w *writer) compare(ctx context.Context) (refusal string, err error) {
	last, rows, err := w.load(ctx)
	if err != nil {
		return "", err
	}
	blobs, err := w.Log.JournalBlobs(ctx)
	if err != nil {
		return "", err
	}
	if w.notes.Database == "" {
		if len(blobs) > 0 {
			return "the repository has a journal that this database has never written to, so the database is an older copy; " + recoverAdvice, nil
		}
		w.notes.Database, w.notes.Rebase = newDatabase(), rows
		if err := w.Store.Update(ctx, w.notes.save); err != nil {
			return "", fmt.Errorf("name the database for the journal: %w", err)
		}
	}
	w.next = w.newest.Number + 1
	half := false
	for _, b := range blobs {
		w.next = max(w.next, b.Number+1)
		half = half || len(b.Lacks()) > 0
		if b.Number > w.notes.Base {
			w.blobs++
			w.bytes += b.Bytes
		} else if b.Number < w.newest.Number {
			w.old = append(w.old, b.Number) // not deleted in time
		}
		if b.Number <= w.newest.Number {
			continue
		}
		if refusal, err := w.judge(ctx, b.Number, last); err != nil || refusal != "" {
			return refusal, err
		}
		// Ours, put by a process that died before the database heard of it.
		// What it held goes out again.
		w.givenUp = append(w.givenUp, b.Number)
	}
	w.blobs -= w.notes.PartBlobs
	w.bytes -= w.notes.PartBytes
	if half {
		if err := w.findLeftovers(ctx); err != nil {
			return "", err
		}
	}
	return w.checkNewest(ctx, blobs)
}

// findLeftovers looks whether a blob with one copy is what a process left that
// died while it deleted; else it is damage, which scrub reports.
func (w *writer) findLeftovers(ctx context.Context) error {
	state, err := w.Log.JournalState(ctx)
	if err != nil {
		return err
	}
	if !state.Whole() || state.NewestPos != w.newest {
		return nil // what counts is not what the database goes on from
	}
	for _, n := range state.Leftovers {
		if n < w.newest.Number {
			w.givenUp = append(w.givenUp, n)
		}
	}
	return nil
}

// load reads the notes, the last change, and whether there is any row that
// the journal would keep.
func (w *writer) load(ctx context.Context) (last int64, rows bool, err error) {
	err = w.Store.View(ctx, func(tx service.Tx) error {
		if w.notes, err = loadNotes(tx); err != nil {
			return err
		}
		if last, err = tx.LastChange(); err != nil {
			return err
		}
		points, err := tx.SnapshotsAfter("", 1)
		if err != nil {
			return err
		}
		volumes, err := tx.VolumesAfter("", 1)
		rows = len(points) > 0 || len(volumes) > 0
		return err
	})
	if err != nil {
		return 0, false, fmt.Errorf("ask the database for the journal's place: %w", err)
	}
	w.newest, err = w.notes.pos()
	return last, rows, err
}

// judge looks at a blob above the newest that the database knows: if another
// database wrote it, or this one in a state that it is not in any more, then
// an older database was put back.
func (w *writer) judge(ctx context.Context, number uint64, last int64) (refusal string, err error) {
	c, err := w.Log.ReadJournal(ctx, number)
	switch {
	case errs.Is(err, errs.Corrupt):
		return fmt.Sprintf("journal blob %d, which the database does not know of, is damaged, so it cannot be told whether the database is an older copy; %s", number, recoverAdvice), nil
	case err != nil:
		return "", err
	case c.Head.Database != w.notes.Database:
		return fmt.Sprintf("journal blob %d was written by another database, so this one is an older copy; %s", number, recoverAdvice), nil
	case c.Head.Change > last:
		return fmt.Sprintf("the repository's journal has change %d and the database only %d, so the database is an older copy; %s", c.Head.Change, last, recoverAdvice), nil
	}
	return "", nil
}

// foreign reports whether another database wrote the blob; 0 is none.
func (w *writer) foreign(ctx context.Context, number uint64) (bool, error) {
	if number == 0 {
		return false, nil
	}
	c, err := w.Log.ReadJournal(ctx, number)
	if errs.Is(err, errs.Corrupt) {
		return false, nil
	}
	return c.Head.Database != w.notes.Database, err
}

// checkNewest looks at the blob that the database takes for the newest.
func (w *writer) checkNewest(ctx context.Context, blobs []engine.JournalBlob) (refusal string, err error) {
	if w.newest.Number == 0 {
		return "", nil
	}
	older := uint64(0) // the highest number that is stored, up to the newest
	for _, b := range blobs {
		if b.Number <= w.newest.Number {
			older = b.Number
		}
	}
	if older != w.newest.Number {
		other, err := w.foreign(ctx, older)
		if err != nil {
			return "", err
		}
		if other {
			return fmt.Sprintf("journal blob %d was written by another database, so this one is not the repository's; %s", older, recoverAdvice), nil
		}
		w.Logger.Error("the newest journal blob is missing: the journal was lost, or an older repository was put back; the journal is written anew from the database",
			"blob", w.newest.Number)
		w.notes.Rebase = true
		return "", nil
	}
	if w.newest.Content.IsZero() {
		return "", nil // it could not be read when the database was recovered
	}
	c, err := w.Log.ReadJournal(ctx, w.newest.Number)
	switch {
	case errs.Is(err, errs.Corrupt):
		w.Logger.Error("the newest journal blob is damaged; the journal is written anew from the database", "blob", w.newest.Number, "error", err)
		w.notes.Rebase = true
	case err != nil:
		return "", err
	case c.Pos != w.newest:
		return fmt.Sprintf("journal blob %d is not the one that the database knows, so the database is of another repository or an older copy; %s", w.newest.Number, recoverAdvice), nil
	}
	return "", nil
}
