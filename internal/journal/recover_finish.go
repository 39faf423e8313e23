package journal

import (
	"context"
	"fmt"

	"cairn/internal/engine"
	"cairn/internal/service"
)

// writePacks stores a row for every pack that is there, under one session that
// is committed: whatever made them, they are durable, and a collection finds
// out what is needed. Packs out of which records were copied stay condemned, so
// that the copies count: the old records may be damaged. Half a pack that no
// point needs is what a cut-off put left: with a row it would pass for a pack
// that lost a copy.
func (r *recovery) writePacks(ctx context.Context) error {
	session := service.Session{ID: "recover-" + newDatabase(), Term: 1, State: service.SessionActive}
	if err := r.Store.Update(ctx, func(tx service.Tx) error { return tx.PutSession(session) }); err != nil {
		return err
	}
	moved, err := r.Repo.MovedPacks(ctx)
	if err != nil {
		return err
	}
	var page []engine.PackRecord
	flush := func() error {
		defer func() { page = page[:0] }()
		return r.Store.Update(ctx, func(tx service.Tx) error {
			for _, p := range page {
				state := service.PackLive
				if moved[p.ID] {
					state = service.PackCondemned
				}
				err := tx.InsertPack(service.Pack{
					ID: p.ID, Kind: p.Kind, Name: p.Name, Bytes: p.Bytes, Session: session.ID, Term: session.Term, State: state,
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	halves := 0
	err = r.Repo.StoredPacks(ctx, func(p engine.PackRecord, whole bool) error {
		if !whole && p.Kind != "reloc" && !r.checker.Uses(p) {
			halves++
			return nil
		}
		r.report.Packs++
		r.report.Bytes += p.Bytes
		if page = append(page, p); len(page) < pageRows {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	if err := flush(); err != nil {
		return err
	}
	if halves > 0 {
		r.report.Notes = append(r.report.Notes, fmt.Sprintf("%d packs that no snapshot needs are there in one copy only, as unfinished jobs left them; they stay where they are", halves))
	}
	return r.Store.Update(ctx, func(tx service.Tx) error {
		swapped, err := tx.CASSession(session.ID, session.Term, service.SessionCommitted)
		if err == nil && !swapped {
			err = fmt.Errorf("session %s was taken over", session.ID)
		}
		return err
	})
}

// finish makes the new database one of its own: the old one, put back later,
// must be told from it. The journal is written anew at the next start.
func (r *recovery) finish(ctx context.Context) error {
	r.report.Notes = append(r.report.Notes, "jobs, and what they had locked, are gone: what was running is to be asked for again")
	return r.Store.Update(ctx, func(tx service.Tx) error {
		last, err := tx.LastChange()
		if err != nil {
			return err
		}
		if err := tx.ForgetChanges(last); err != nil {
			return err
		}
		for _, h := range r.Holds {
			// Their jobs are gone: the next start lets go of them.
			if err := service.NoteHold(tx, h); err != nil {
				return err
			}
		}
		n := notes{Database: newDatabase(), Newest: r.newest, Rebase: true}
		return n.save(tx)
	})
}
