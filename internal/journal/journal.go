// Package journal keeps in the repository what only the database knows: which
// points were committed, their present names and states, heads, and volumes.
// Store does so on the way of each change; Recover makes a database from it.
// FORMAT.md §11 has the bytes, ADR 0006 the reasons.
//
// Invariants:
//   - the database is the truth. A change is committed there first, together
//     with a note that the journal lacks it; the note goes once it is durable
//     in the repository;
//   - while the repository can be written, nobody is answered with, or shown,
//     a change that would be lost with the database;
//   - no transaction spans a write to the repository;
//   - a database that is older than the journal changes nothing.
//
// A Store serves any number of goroutines. One goroutine writes the journal.
package journal

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

// Log is the repository's side; *engine.Engine has it.
type Log interface {
	// JournalBlobs lists the journal, oldest first.
	JournalBlobs(ctx context.Context) ([]engine.JournalBlob, error)
	// PutJournal makes a blob durable and tells its size. After an error it
	// may be there all the same.
	PutJournal(ctx context.Context, h engine.JournalHead, entries []engine.JournalEntry) (engine.JournalPos, int64, error)
	// ReadJournal reads a blob. errs.Corrupt: missing or damaged.
	ReadJournal(ctx context.Context, number uint64) (engine.JournalContent, error)
	// JournalState finds out which blobs make the journal's state.
	JournalState(ctx context.Context) (engine.JournalState, error)
	// DeleteJournal deletes blobs; absent ones are fine.
	DeleteJournal(ctx context.Context, numbers ...uint64) error
}

// Config is all that a Store needs. Fields without a default are required.
type Config struct {
	Store service.Store // becomes the Store's
	Log   Log

	// SummaryBlobs is the length of the log that a summary cuts; 1024,
	// and more behind a large summary.
	SummaryBlobs int
	PageRows     int           // rows of a blob; 1000
	Timeout      time.Duration // of writing one blob; 30 s
	RetryDelay   time.Duration // between tries, doubles up to 64 times this; 1 s
	Clock        func() time.Time
	Logger       *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.SummaryBlobs <= 0 {
		c.SummaryBlobs = 1024
	}
	if c.PageRows <= 0 {
		c.PageRows = 1000
	}
	if c.Timeout <= 0 {
		c.Timeout = 30 * time.Second
	}
	if c.RetryDelay <= 0 {
		c.RetryDelay = time.Second
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Store is a service.Store whose changes go to the journal.
type Store struct {
	service.Store // the database
	gate          gate
	refusal       string // why nothing may be changed
	quit, done    chan struct{}
	close         func() error
}

var _ service.Store = (*Store)(nil)

// Open compares the database with the journal and writes what the journal
// lacks. A journal that cannot be written is logged and tried again later; one
// that cannot be read is an error, since it may be newer. If it is newer, the
// Store changes nothing: see Refusal. Close it; the database is closed with it.
func Open(ctx context.Context, c Config) (*Store, error) {
	c = c.withDefaults()
	w := &writer{Config: c}
	refusal, err := w.compare(ctx)
	if err != nil {
		return nil, err
	}
	s := &Store{Store: c.Store, refusal: refusal, gate: newGate(), quit: make(chan struct{}), done: make(chan struct{})}
	s.close = sync.OnceValue(func() error {
		close(s.quit)
		<-s.done
		return c.Store.Close()
	})
	if refusal != "" {
		c.Logger.Error("the database is older than the repository; nothing is changed until it is recovered", "reason", refusal)
		close(s.done)
		return s, nil
	}
	if err := w.catchUp(ctx); err != nil {
		w.failed(err)
	}
	go func() { //nolint:contextcheck // it outlives the call, until Close
		defer close(s.done)
		w.run(&s.gate, s.quit)
	}()
	return s, nil
}

// Refusal says why the Store changes nothing: an older database was put back.
// "" if all is well.
func (s *Store) Refusal() string { return s.refusal }

// Close writes what the journal lacks, if it can, and closes the database.
func (s *Store) Close() error { return s.close() }

// View is the database's. It returns when what fn may have seen is durable in
// the repository, or could not be made so.
func (s *Store) View(ctx context.Context, fn func(tx service.Tx) error) error {
	if err := s.Store.View(ctx, fn); err != nil {
		return err
	}
	return s.gate.wait(ctx)
}

// Update is the database's. If fn changed what the journal keeps, it returns
// when that is durable in the repository, or could not be made so; either way
// the change is committed.
func (s *Store) Update(ctx context.Context, fn func(tx service.Tx) error) error {
	if s.refusal != "" {
		return s.refuse()
	}
	var t *ticket
	err := s.Store.Update(ctx, func(tx service.Tx) error {
		before, err := tx.LastChange()
		if err != nil {
			return err
		}
		if err := fn(tx); err != nil {
			return err
		}
		after, err := tx.LastChange()
		if err == nil && after > before {
			// Before the commit: whoever sees it finds the ticket.
			t = s.gate.open()
		}
		return err
	})
	if t == nil {
		return err
	}
	// After an error the outcome may be unknown: the writer looks then, too.
	s.gate.commit(t)
	if err == nil {
		<-t.done
	}
	return err
}

func (s *Store) refuse() error { return errs.New(errs.Conflict, "%s", s.refusal) }

// ClaimJob finds none if nothing may be changed: an old job carried out again
// could undo what was done since.
func (s *Store) ClaimJob(ctx context.Context, owner string, alive []string, now time.Time) (job.Job, bool, error) {
	if s.refusal != "" {
		return job.Job{}, false, nil
	}
	return s.Store.ClaimJob(ctx, owner, alive, now)
}

// SaveProgress is the database's.
func (s *Store) SaveProgress(ctx context.Context, id string, term int64, p job.Progress) (bool, error) {
	if s.refusal != "" {
		return false, s.refuse()
	}
	return s.Store.SaveProgress(ctx, id, term, p)
}

// SaveState is the database's.
func (s *Store) SaveState(ctx context.Context, id string, term int64, state json.RawMessage, noCancel bool) error {
	if s.refusal != "" {
		return s.refuse()
	}
	return s.Store.SaveState(ctx, id, term, state, noCancel)
}

// RequestCancel is the database's.
func (s *Store) RequestCancel(ctx context.Context, id string) (job.Job, error) {
	if s.refusal != "" {
		return job.Job{}, s.refuse()
	}
	return s.Store.RequestCancel(ctx, id)
}
