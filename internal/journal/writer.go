package journal

import (
	"context"
	"fmt"
	"slices"
	"time"

	"cairn/internal/engine"
	"cairn/internal/service"
)

const (
	// blobBytes bounds the plain bytes of a blob, so that it is small in
	// memory; one entry more may come on top.
	blobBytes = 4 << 20
	// The database hears of blobs when nobody changes anything for a while, or
	// when they are many: telling it costs as much as a change.
	settleDelay = 200 * time.Millisecond
	settleAfter = 64
)

// writer writes the journal. One goroutine.
type writer struct {
	Config
	notes   notes             // as the database has them
	newest  engine.JournalPos // of the chain
	next    uint64            // number of the next blob
	flushed int64             // changes up to it are in the journal
	blobs   int               // since the newest summary's base, its parts not counted
	bytes   int64
	behind  int       // blobs that the database has not heard of
	quiet   time.Time // when it is to hear of them
	givenUp []uint64  // numbers of failed puts, to be deleted
	old     []uint64  // numbers that a summary has replaced, to be deleted

	summary  *summary // being written; nil if none is
	troubled bool     // the last try failed
	wait     time.Duration
	retryAt  time.Time
}

// run serves the gate until quit is closed.
func (w *writer) run(g *gate, quit <-chan struct{}) {
	ctx := context.Background()
	for {
		if tickets := g.take(); len(tickets) > 0 {
			// They were committed before: the flush sees what they stand for.
			w.turn(ctx, w.flush)
			g.settle(tickets)
			if w.behind < settleAfter {
				continue
			}
		}
		work := w.work()
		if !w.pause(g, quit, work != nil) {
			w.dropSummary()
			w.turn(ctx, w.catchUp)
			for len(w.old) > 0 && !w.troubled {
				w.turn(ctx, w.deleteOld)
			}
			return
		}
		if work != nil {
			w.turn(ctx, work)
		}
	}
}

// work is what is to be done when nobody waits; nil: nothing, or not yet.
func (w *writer) work() func(context.Context) error {
	switch {
	case w.troubled && time.Now().Before(w.retryAt):
		return nil
	case w.troubled:
		return w.catchUp
	case w.summary != nil || w.long():
		return w.summaryStep
	case w.behind >= settleAfter || len(w.givenUp) > 0 || w.behind > 0 && !time.Now().Before(w.quiet):
		return w.settle
	case len(w.old) > 0:
		return w.deleteOld
	}
	return nil
}

// deleteOld deletes some of what a summary has replaced: few, as somebody may
// come who waits.
func (w *writer) deleteOld(ctx context.Context) error {
	const few = 8
	n := min(few, len(w.old))
	if err := w.Log.DeleteJournal(ctx, w.old[:n]...); err != nil {
		return err
	}
	w.old = w.old[n:]
	return nil
}

// pause waits for work, unless there is some; false: no more comes.
func (w *writer) pause(g *gate, quit <-chan struct{}, work bool) bool {
	if work {
		select {
		case <-quit:
			return false
		default:
			return true
		}
	}
	var later <-chan time.Time
	if w.troubled || w.behind > 0 {
		at := w.quiet
		if w.troubled {
			at = w.retryAt
		}
		timer := time.NewTimer(time.Until(at))
		defer timer.Stop()
		later = timer.C
	}
	select {
	case <-quit:
		return false
	case <-g.wake:
	case <-later:
	}
	return true
}

// turn makes one try and notes how it went.
func (w *writer) turn(ctx context.Context, try func(context.Context) error) {
	if err := try(ctx); err != nil {
		w.failed(err)
		return
	}
	if w.troubled {
		w.Logger.Info("the journal is written again")
	}
	w.troubled, w.wait = false, 0
}

// failed notes a failed try. A summary that was being written is given up:
// it is begun anew.
func (w *writer) failed(err error) {
	w.wait = min(max(w.RetryDelay, 2*w.wait), 64*w.RetryDelay)
	w.troubled, w.retryAt = true, time.Now().Add(w.wait)
	w.dropSummary()
	w.Logger.Error("the journal cannot be written; what changes now would be lost together with the database", "error", err, "again_in", w.wait)
}

// catchUp writes all that the journal lacks, and tells the database.
func (w *writer) catchUp(ctx context.Context) error {
	if err := w.flush(ctx); err != nil {
		return err
	}
	return w.settle(ctx)
}

// flush puts every change that is committed now.
func (w *writer) flush(ctx context.Context) error {
	if w.notes.Rebase {
		return w.rebase(ctx)
	}
	for above := w.flushed; ; {
		b, err := w.collect(ctx, above)
		if err != nil {
			return err
		}
		if len(b.entries) == 0 {
			w.flushed = b.upTo
			return nil
		}
		h := engine.JournalHead{Kind: engine.JournalChanges, Change: b.upTo, More: b.more}
		if err := w.put(ctx, h, b.entries); err != nil {
			return err
		}
		if above = b.upTo; !b.more {
			w.flushed = above
			return nil
		}
	}
}

// put stores one blob and makes it the chain's newest, unless it is a part.
func (w *writer) put(ctx context.Context, h engine.JournalHead, entries []engine.JournalEntry) error {
	_, err := w.putBlob(ctx, h, entries)
	return err
}

func (w *writer) putBlob(ctx context.Context, h engine.JournalHead, entries []engine.JournalEntry) (engine.JournalPos, error) {
	h.Number, h.Prev, h.Database, h.Written = w.next, w.newest, w.notes.Database, w.Clock().UTC().Truncate(time.Microsecond)
	w.next++
	ctx, cancel := context.WithTimeout(ctx, w.Timeout)
	defer cancel()
	pos, size, err := w.Log.PutJournal(ctx, h, entries)
	if err != nil {
		w.givenUp = append(w.givenUp, h.Number)
		return pos, err
	}
	if h.Kind == engine.JournalPart {
		w.summary.bytes += size
		return pos, nil
	}
	w.newest = pos
	w.behind++
	w.quiet = time.Now().Add(settleDelay)
	w.blobs++
	w.bytes += size
	return pos, nil
}

// batch is what one View showed of the changes.
type batch struct {
	entries []engine.JournalEntry
	upTo    int64 // all changes up to this number are in it or before it
	more    bool  // there were more
}

// collect reads the present state of rows that changed, as many as fit into a
// blob.
func (w *writer) collect(ctx context.Context, above int64) (batch, error) {
	b := batch{upTo: above}
	err := w.Store.View(ctx, func(tx service.Tx) error {
		changes, err := tx.Changes(above, w.PageRows+1)
		if err != nil {
			return err
		}
		if b.more = len(changes) > w.PageRows; b.more {
			changes = changes[:w.PageRows]
		}
		rows, err := changedRows(tx, changes)
		if err != nil {
			return err
		}
		size := 0
		for _, c := range changes {
			if size > blobBytes {
				b.more = true
				break
			}
			e := rows[c]
			size += entrySize(e)
			b.entries, b.upTo = append(b.entries, e), c.Number
		}
		if b.more {
			return nil
		}
		b.upTo, err = tx.LastChange()
		return err
	})
	if err != nil {
		return b, fmt.Errorf("read what the journal lacks: %w", err)
	}
	return b, nil
}

// changedRows reads the rows of changes; one that is not there is removed.
func changedRows(tx service.Tx, changes []service.Change) (map[service.Change]engine.JournalEntry, error) {
	found := map[string]engine.JournalEntry{}
	var points, volumes []string
	for _, c := range changes {
		if c.Kind == service.SnapshotChange {
			points = append(points, c.ID)
		} else {
			volumes = append(volumes, c.ID)
		}
	}
	if len(points) > 0 {
		rows, _, err := tx.Snapshots(service.SnapshotFilter{IDs: points, Limit: len(points)})
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			found[r.ID] = snapshotEntry(r)
		}
	}
	if len(volumes) > 0 {
		rows, _, err := tx.Volumes(service.VolumeFilter{IDs: volumes, Limit: len(volumes)})
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			found[r.ID] = volumeEntry(r)
		}
	}
	out := make(map[service.Change]engine.JournalEntry, len(changes))
	for _, c := range changes {
		e, ok := found[c.ID]
		if !ok {
			e = engine.JournalEntry{Kind: engine.PointEntry, ID: c.ID, Removed: true}
			if c.Kind == service.VolumeChange {
				e.Kind = engine.VolumeEntry
			}
		}
		out[c] = e
	}
	return out, nil
}

// entrySize is about what an entry takes in a blob, uncompressed.
func entrySize(e engine.JournalEntry) int {
	const fixed = 400
	p, v := &e.Point, &e.Volume
	return fixed + len(p.Name) + len(p.Description) + len(p.ResourceName) + len(p.Reason) + len(v.Name) + len(v.Description) + len(v.Path)
}

// settle tells the database what the journal has, then deletes what failed
// puts left. Before, a newer blob must be there: it keeps the numbers from being
// used again, and nobody takes what is left for the chain's end.
func (w *writer) settle(ctx context.Context) error {
	if len(w.givenUp) > 0 && slices.Max(w.givenUp) > w.newest.Number {
		if err := w.put(ctx, engine.JournalHead{Kind: engine.JournalChanges, Change: w.flushed}, nil); err != nil {
			return err
		}
	}
	if w.behind > 0 {
		w.notes.setPos(w.newest)
		err := w.Store.Update(ctx, func(tx service.Tx) error {
			if err := tx.ForgetChanges(w.flushed); err != nil {
				return err
			}
			return w.notes.save(tx)
		})
		if err != nil {
			return fmt.Errorf("note what the journal has: %w", err)
		}
		w.behind = 0
	}
	if len(w.givenUp) == 0 {
		return nil
	}
	if err := w.Log.DeleteJournal(ctx, w.givenUp...); err != nil {
		return err
	}
	w.givenUp = nil
	return nil
}
