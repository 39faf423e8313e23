package metadb

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/uptrace/bun"

	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

func (t *tx) InsertPack(p service.Pack) error {
	s, ok, err := t.Session(p.Session)
	if err != nil {
		return err
	}
	if !ok || s.State != service.SessionActive || s.Term != p.Term {
		return fmt.Errorf("register pack %s for session %s, term %d: %w", p.ID, p.Session, p.Term, job.ErrFenced)
	}
	row := packToRow(p)
	if _, err := t.db.NewInsert().Model(&row).Exec(t.ctx); err != nil {
		if taken(err) {
			return errs.Wrap(errs.Exists, err, "pack %s is registered already", p.ID)
		}
		return fmt.Errorf("register pack %s: %w", p.ID, explain(err))
	}
	return nil
}

func (t *tx) PacksOf(session string) ([]service.Pack, error) {
	var rows []packRow
	err := t.db.NewSelect().Model(&rows).Where("session_id = ?", session).OrderExpr("id").Scan(t.ctx)
	if err != nil {
		return nil, fmt.Errorf("list the packs of session %s: %w", session, explain(err))
	}
	return toPacks(rows), nil
}

func (t *tx) Packs(fn func(p service.Pack) error) error {
	return t.AllPacks(func(p service.Pack, session service.SessionState) error {
		if session != service.SessionCommitted {
			return nil
		}
		return fn(p)
	})
}

// packOfSession is a pack with its session's state.
type packOfSession struct {
	packRow      `bun:",extend"`
	SessionState service.SessionState
}

func (t *tx) AllPacks(fn func(p service.Pack, session service.SessionState) error) error {
	last := ""
	for {
		var rows []packOfSession
		err := t.db.NewSelect().Model(&rows).ColumnExpr("pack_row.*").ColumnExpr("s.state AS session_state").
			Join("JOIN sessions AS s ON s.id = pack_row.session_id").
			Where("pack_row.id > ?", last).OrderExpr("pack_row.id").Limit(streamRows).Scan(t.ctx)
		if err != nil {
			return fmt.Errorf("list packs: %w", explain(err))
		}
		for _, r := range rows {
			if err := fn(r.pack(), r.SessionState); err != nil {
				return err
			}
			last = r.ID
		}
		if len(rows) < streamRows {
			return nil
		}
	}
}

func (t *tx) PacksToVerify(limit int) ([]service.Pack, error) {
	var rows []packRow
	err := t.db.NewSelect().Model(&rows).Where("state <> ?", service.PackDeleting).
		Where("session_id IN (SELECT id FROM sessions WHERE state = ?)", service.SessionCommitted).
		OrderExpr("verified, id").Limit(int64(limit)).Scan(t.ctx)
	if err != nil {
		return nil, fmt.Errorf("list packs to verify: %w", explain(err))
	}
	return toPacks(rows), nil
}

func toPacks(rows []packRow) []service.Pack {
	out := make([]service.Pack, len(rows))
	for i, r := range rows {
		out[i] = r.pack()
	}
	return out
}

func (t *tx) LeavingPacks() ([]service.Pack, error) {
	var rows []packRow
	err := t.db.NewSelect().Model(&rows).Where("state <> 'LIVE'").OrderExpr("state, id").Scan(t.ctx)
	if err != nil {
		return nil, fmt.Errorf("list the packs that are leaving: %w", explain(err))
	}
	return toPacks(rows), nil
}

func (t *tx) Pack(id string) (service.Pack, bool, error) {
	var row packRow
	err := t.db.NewSelect().Model(&row).Where("id = ?", id).Scan(t.ctx)
	if errors.Is(err, sql.ErrNoRows) {
		return service.Pack{}, false, nil
	}
	if err != nil {
		return service.Pack{}, false, fmt.Errorf("read pack %s: %w", id, explain(err))
	}
	return row.pack(), true, nil
}

func (t *tx) UpdatePack(p service.Pack) error {
	row := packToRow(p)
	res, err := t.db.NewUpdate().Model(&row).WherePK().Exec(t.ctx)
	if err != nil {
		return fmt.Errorf("update pack %s: %w", p.ID, explain(err))
	}
	n, err := res.RowsAffected()
	if err == nil && n != 1 {
		err = errs.New(errs.NotFound, "pack %s does not exist", p.ID)
	}
	return err
}

func (t *tx) PutLeavingPack(p service.Pack) error {
	if p.State == service.PackLive {
		return errs.New(errs.Internal, "pack %s cannot be taken in as %s", p.ID, p.State)
	}
	row := packToRow(p)
	if _, err := t.db.NewInsert().Model(&row).Exec(t.ctx); err != nil {
		if taken(err) {
			return errs.Wrap(errs.Exists, err, "pack %s is registered already", p.ID)
		}
		return fmt.Errorf("take in pack %s: %w", p.ID, explain(err))
	}
	return nil
}

func (t *tx) DeletePacks(ids ...string) error {
	for start := 0; start < len(ids); start += maxIDs {
		part := ids[start:min(start+maxIDs, len(ids))]
		if _, err := t.db.NewDelete().Model((*packRow)(nil)).Where("id IN (?)", bun.List(part)).Exec(t.ctx); err != nil {
			return fmt.Errorf("delete pack rows: %w", explain(err))
		}
	}
	return nil
}
