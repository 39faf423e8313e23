package journal

import (
	"context"
	"fmt"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/service"
)

// summary is one that is being written, page by page between the changes.
// A page is at most as new as the changes that are put before the end, so base,
// pages and changes together are one state (FORMAT.md §11).
type summary struct {
	base    engine.JournalPos
	parts   []engine.JournalPos
	bytes   int64
	volumes bool   // the snapshots are through
	after   string // the last row that is stored
	read    bool   // all rows are stored
}

// long reports whether the log is long enough to be cut. Behind a large
// summary it may grow longer, so that writing it anew costs little for each
// change.
func (w *writer) long() bool {
	const (
		freeBytes = 16 << 20
		perBlob   = 32 << 10 // of the summary
	)
	return w.blobs > w.SummaryBlobs+int(w.notes.PartBytes/perBlob) || w.bytes > freeBytes+w.notes.PartBytes
}

// summaryStep begins a summary, stores a page of it, or ends it.
func (w *writer) summaryStep(ctx context.Context) error {
	switch {
	case w.summary == nil:
		w.summary = &summary{base: w.newest}
		return nil
	case !w.summary.read:
		return w.putPage(ctx, w.PageRows)
	}
	if err := w.flush(ctx); err != nil {
		return err
	}
	return w.endSummary(ctx)
}

// putPage stores the next page of rows as a part.
func (w *writer) putPage(ctx context.Context, limit int) error {
	var entries []engine.JournalEntry
	var last int64
	next := *w.summary
	err := w.Store.View(ctx, func(tx service.Tx) (err error) {
		if last, err = tx.LastChange(); err != nil {
			return err
		}
		entries, err = next.page(tx, limit)
		return err
	})
	if err != nil {
		return fmt.Errorf("read rows for a summary: %w", err)
	}
	*w.summary = next
	return w.putPart(ctx, last, entries)
}

func (w *writer) putPart(ctx context.Context, change int64, entries []engine.JournalEntry) error {
	if len(entries) == 0 {
		return nil
	}
	pos, err := w.putBlob(ctx, engine.JournalHead{Kind: engine.JournalPart, Change: change}, entries)
	if err != nil {
		return err
	}
	w.summary.parts = append(w.summary.parts, pos)
	return nil
}

// page reads the next rows, as many as fit into a blob, and moves on.
func (c *summary) page(tx service.Tx, limit int) (entries []engine.JournalEntry, err error) {
	if c.volumes {
		rows, err := tx.VolumesAfter(c.after, limit)
		size := 0
		for _, r := range rows {
			if size > blobBytes {
				return entries, nil
			}
			if c.after = r.ID; r.Status != service.VolumePending {
				entries = append(entries, volumeEntry(r))
				size += entrySize(entries[len(entries)-1])
			}
		}
		c.read = len(rows) < limit
		return entries, err
	}
	rows, err := tx.SnapshotsAfter(c.after, limit)
	size := 0
	for _, r := range rows {
		if size > blobBytes {
			return entries, nil
		}
		if c.after = r.ID; r.Status != chain.Pending {
			entries = append(entries, snapshotEntry(r))
			size += entrySize(entries[len(entries)-1])
		}
	}
	if len(rows) < limit {
		c.volumes, c.after = true, ""
	}
	return entries, err
}

// endSummary makes the summary count and finds out what it replaces.
func (w *writer) endSummary(ctx context.Context) error {
	c := w.summary
	head := engine.JournalHead{Kind: engine.JournalSummary, Change: w.flushed, Base: c.base, Parts: c.parts}
	if err := w.put(ctx, head, nil); err != nil {
		return err
	}
	w.summary = nil
	w.notes.Base, w.notes.PartBlobs, w.notes.PartBytes, w.notes.Rebase = c.base.Number, len(c.parts), c.bytes, false
	if err := w.settle(ctx); err != nil {
		return err
	}
	blobs, err := w.Log.JournalBlobs(ctx)
	if err != nil {
		return err
	}
	w.old = nil
	w.blobs, w.bytes = -w.notes.PartBlobs, -w.notes.PartBytes
	for _, b := range blobs {
		if b.Number <= c.base.Number {
			w.old = append(w.old, b.Number)
			continue
		}
		w.blobs++
		w.bytes += b.Bytes
	}
	w.Logger.Info("the journal was cut by a summary", "parts", len(c.parts), "bytes", c.bytes, "blobs_replaced", len(w.old))
	return nil
}

// dropSummary gives up a summary that is being written.
func (w *writer) dropSummary() {
	if w.summary == nil {
		return
	}
	for _, p := range w.summary.parts {
		w.givenUp = append(w.givenUp, p.Number)
	}
	w.summary = nil
}

// rebase writes a whole summary at one go, with the latest changes as its
// last parts: until it is there, changes could not stand on anything.
func (w *writer) rebase(ctx context.Context) error {
	const pages = 8 // at once: nobody waits in between
	w.Logger.Info("writing the whole journal; this takes seconds for each 100,000 snapshots")
	w.summary = &summary{base: w.newest}
	for !w.summary.read {
		if err := w.putPage(ctx, pages*w.PageRows); err != nil {
			return err
		}
	}
	above := w.flushed
	for more := true; more; {
		b, err := w.collect(ctx, above)
		if err != nil {
			return err
		}
		if err := w.putPart(ctx, b.upTo, b.entries); err != nil {
			return err
		}
		above, more = b.upTo, b.more
	}
	w.flushed = above
	return w.endSummary(ctx)
}
