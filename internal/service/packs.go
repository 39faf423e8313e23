package service

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/job"
)

// This file is the database's side of the collection protocol
// (docs/adr/0005-collection.md): sessions, packs and the epoch.

// epochKey is the setting that counts collections. It only ever grows.
const epochKey = "epoch"

func epochOf(tx Tx) (int64, error) { return numberSetting(tx, epochKey) }

// numberSetting reads a number; 0 if it was never set.
func numberSetting(tx Tx, key string) (int64, error) {
	text, err := tx.Setting(key)
	if err != nil || text == "" {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, errs.Wrap(errs.Corrupt, err, "the setting %s of the database is no number; put the database back from a copy, or run recover", key)
	}
	return n, nil
}

func setNumber(tx Tx, key string, n int64) error {
	return tx.SetSetting(key, strconv.FormatInt(n, 10))
}

// registry is a session's packs in the database, as the engine sees them.
type registry struct {
	store   Store
	session string
	term    int64
}

func (r registry) RegisterPack(ctx context.Context, p engine.PackRecord) error {
	return r.store.Update(ctx, func(tx Tx) error {
		epoch, err := epochOf(tx)
		if err != nil {
			return err
		}
		return tx.InsertPack(Pack{
			ID: p.ID, Kind: p.Kind, Name: p.Name, Bytes: p.Bytes,
			Session: r.session, Term: r.term, State: PackLive, Born: epoch,
		})
	})
}

func (r registry) SessionPacks(ctx context.Context) (records []engine.PackRecord, err error) {
	err = r.store.View(ctx, func(tx Tx) error {
		packs, err := tx.PacksOf(r.session)
		for _, p := range packs {
			if p.State == PackLive {
				records = append(records, p.record())
			}
		}
		return err
	})
	return records, err
}

func (r registry) DropPacks(ctx context.Context, ids []string) error {
	return r.store.Update(ctx, func(tx Tx) error {
		have, ok, err := tx.Session(r.session)
		if err != nil {
			return err
		}
		if !ok || have.State != SessionActive || have.Term != r.term {
			return fmt.Errorf("drop packs of session %s, term %d: %w", r.session, r.term, job.ErrFenced)
		}
		for _, id := range ids {
			p, ok, err := tx.Pack(id)
			if err == nil && ok {
				p.State = PackDeleting
				err = tx.UpdatePack(p)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (r registry) ForgetPacks(ctx context.Context, ids []string) error {
	return r.store.Update(ctx, func(tx Tx) error { return tx.DeletePacks(ids...) })
}

func (r registry) PackUsable(ctx context.Context, id string) (usable bool, err error) {
	err = r.store.View(ctx, func(tx Tx) error {
		p, ok, err := tx.Pack(id)
		usable = ok && p.State == PackLive && !p.Damaged
		return err
	})
	return usable, err
}

func packRecords(tx Tx, session string) ([]engine.PackRecord, error) {
	packs, err := tx.PacksOf(session)
	if err != nil {
		return nil, err
	}
	out := make([]engine.PackRecord, len(packs))
	for i, p := range packs {
		out[i] = p.record()
	}
	return out, nil
}

func (p Pack) record() engine.PackRecord {
	return engine.PackRecord{ID: p.ID, Kind: p.Kind, Name: p.Name, Bytes: p.Bytes}
}

func (p Pack) row(session SessionState) engine.PackRow {
	return engine.PackRow{PackRecord: p.record(), Live: p.State == PackLive && session == SessionCommitted}
}

// goneError says that packs which a session refers to are being deleted: it
// must store what it wanted of them again.
type goneError struct{ packs []string }

func (e goneError) Error() string {
	return fmt.Sprintf("%d packs that the session refers to are being deleted", len(e.packs))
}

// commitSession moves a session to COMMITTED and takes all packs that it wrote
// or hit into use: what a collection has condemned meanwhile is LIVE again, and
// all of them are stamped with the epoch, so that a collection whose mark began
// before this commit leaves them alone. goneError: some hits are beyond that;
// the transaction must be given up.
func commitSession(tx Tx, session string, term int64, hits []string) error {
	swapped, err := tx.CASSession(session, term, SessionCommitted)
	if err != nil {
		return err
	}
	if !swapped {
		return fmt.Errorf("commit session %s: %w", session, job.ErrFenced)
	}
	epoch, err := epochOf(tx)
	if err != nil {
		return err
	}
	own, err := tx.PacksOf(session)
	if err != nil {
		return err
	}
	for _, p := range own {
		if p.State == PackDeleting {
			continue // the session dropped it itself: collections spare open ones
		}
		if err := takePack(tx, p, epoch); err != nil {
			return err
		}
	}
	var gone goneError
	for _, id := range hits {
		p, ok, err := tx.Pack(id)
		if err != nil {
			return err
		}
		if !ok || p.State == PackDeleting {
			gone.packs = append(gone.packs, id)
			continue
		}
		if err := takePack(tx, p, epoch); err != nil {
			return err
		}
	}
	if len(gone.packs) > 0 {
		return gone
	}
	return nil
}

func takePack(tx Tx, p Pack, epoch int64) error {
	if p.State == PackLive && p.Stamped == epoch {
		return nil
	}
	p.State, p.Condemned, p.Stamped = PackLive, 0, epoch
	return tx.UpdatePack(p)
}

// abortSession moves a session to ABORTED, whatever term opened it, and then
// deletes what it stored: only after ABORTED was read back. committed: it was
// COMMITTED already and nothing was done. Running it twice is harmless.
func (s *Service) abortSession(ctx context.Context, id string, term int64) (committed bool, err error) {
	err = s.store.Update(ctx, func(tx Tx) error {
		have, ok, err := tx.Session(id)
		if err != nil || !ok || have.State == SessionAborted {
			return err // never opened, or an earlier try got this far
		}
		if have.State == SessionCommitted {
			committed = true
			return nil
		}
		// Taking it over first fences off every earlier term.
		if err := tx.PutSession(Session{ID: id, Term: term, State: SessionActive}); err != nil {
			return err
		}
		swapped, err := tx.CASSession(id, term, SessionAborted)
		if err == nil && !swapped {
			err = fmt.Errorf("abort session %s: %w", id, job.ErrFenced)
		}
		return err
	})
	if err != nil || committed {
		return committed, err
	}
	return false, s.discardSession(ctx, id)
}

// discardSession deletes what an aborted session stored, and then its rows.
func (s *Service) discardSession(ctx context.Context, id string) error {
	var records []engine.PackRecord
	err := s.store.View(ctx, func(tx Tx) error {
		have, ok, err := tx.Session(id)
		if err != nil || !ok {
			return err
		}
		if have.State != SessionAborted {
			return errs.New(errs.Internal, "session %s is %s after its abort", id, have.State)
		}
		records, err = packRecords(tx, id)
		return err
	})
	if err != nil || len(records) == 0 {
		return err
	}
	if err := s.engine.DiscardSession(ctx, records); err != nil {
		return fmt.Errorf("discard what session %s stored: %w", id, err)
	}
	return s.store.Update(ctx, func(tx Tx) error { return tx.DeletePacks(recordIDs(records)...) })
}

func recordIDs(records []engine.PackRecord) []string {
	ids := make([]string, len(records))
	for i, r := range records {
		ids[i] = r.ID
	}
	return ids
}

// partOf names a session of a job that has several, one after the other.
func partOf(jobID, part string) string { return jobID + "." + part }

// abortParts aborts the sessions that earlier terms of a job left open.
func (s *Service) abortParts(ctx context.Context, run *job.Run) error {
	var open []Session
	err := s.store.View(ctx, func(tx Tx) (err error) {
		open, err = tx.ActiveSessions()
		return err
	})
	for _, session := range open {
		if strings.HasPrefix(session.ID, partOf(run.ID(), "")) {
			_, aerr := s.abortSession(ctx, session.ID, run.Term())
			err = errors.Join(err, aerr)
		}
	}
	return err
}
