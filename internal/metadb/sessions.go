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

// PutSession always stores ACTIVE: CASSession alone leads out of it.
func (t *tx) PutSession(s service.Session) error {
	have, ok, err := t.Session(s.ID)
	if err != nil {
		return err
	}
	row := sessionRow{ID: s.ID, Term: s.Term, State: service.SessionActive}
	switch {
	case !ok:
		_, err = t.db.NewInsert().Model(&row).Exec(t.ctx)
	case have.State != service.SessionActive || have.Term > s.Term:
		return fmt.Errorf("open session %s, term %d: %w", s.ID, s.Term, job.ErrFenced)
	default:
		_, err = t.db.NewUpdate().Model(&row).WherePK().Exec(t.ctx)
	}
	if err != nil {
		return fmt.Errorf("store session %s: %w", s.ID, explain(err))
	}
	return nil
}

func (t *tx) Session(id string) (service.Session, bool, error) {
	var row sessionRow
	err := t.db.NewSelect().Model(&row).Where("id = ?", id).Scan(t.ctx)
	if errors.Is(err, sql.ErrNoRows) {
		return service.Session{}, false, nil
	}
	if err != nil {
		return service.Session{}, false, fmt.Errorf("read session %s: %w", id, explain(err))
	}
	return service.Session{ID: row.ID, Term: row.Term, State: row.State}, true, nil
}

func (t *tx) CASSession(id string, term int64, to service.SessionState) (bool, error) {
	if to != service.SessionCommitted && to != service.SessionAborted {
		return false, errs.New(errs.Internal, "session %s cannot go to state %q", id, string(to))
	}
	res, err := t.db.NewUpdate().Model((*sessionRow)(nil)).Set("state = ?", to).
		Where("id = ? AND term = ? AND state = ?", id, term, service.SessionActive).Exec(t.ctx)
	if err != nil {
		return false, fmt.Errorf("move session %s to %s: %w", id, to, explain(err))
	}
	n, err := res.RowsAffected()
	if err != nil {
		return false, fmt.Errorf("move session %s to %s: %w", id, to, err)
	}
	return n == 1, nil
}

func (t *tx) InsertPack(p service.Pack) error {
	s, ok, err := t.Session(p.Session)
	if err != nil {
		return err
	}
	if !ok || s.State != service.SessionActive || s.Term != p.Term {
		return fmt.Errorf("register pack %s for session %s, term %d: %w", p.ID, p.Session, p.Term, job.ErrFenced)
	}
	row := packRow{
		ID: p.ID, Kind: p.Kind, Name: p.Name, SessionID: p.Session, Term: p.Term,
		State: p.State, Born: p.Born, Stamped: p.Stamped, Bytes: p.Bytes,
	}
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
	out := make([]service.Pack, len(rows))
	for i, r := range rows {
		out[i] = r.pack()
	}
	return out, nil
}

func (t *tx) Packs(fn func(p service.Pack) error) error {
	last := ""
	for {
		var rows []packRow
		err := t.db.NewSelect().Model(&rows).Where("id > ?", last).
			Where("session_id IN (SELECT id FROM sessions WHERE state = ?)", service.SessionCommitted).
			OrderExpr("id").Limit(streamRows).Scan(t.ctx)
		if err != nil {
			return fmt.Errorf("list packs: %w", explain(err))
		}
		for _, r := range rows {
			if err := fn(r.pack()); err != nil {
				return err
			}
			last = r.ID
		}
		if len(rows) < streamRows {
			return nil
		}
	}
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

func (t *tx) Setting(key string) (string, error) {
	var row settingRow
	err := t.db.NewSelect().Model(&row).Where("key = ?", key).Scan(t.ctx)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read setting %s: %w", key, explain(err))
	}
	return row.Value, nil
}

func (t *tx) SetSetting(key, value string) error {
	row := settingRow{Key: key, Value: value}
	_, err := t.db.NewInsert().Model(&row).On("CONFLICT (key) DO UPDATE").Set("value = EXCLUDED.value").Exec(t.ctx)
	if err != nil {
		return fmt.Errorf("store setting %s: %w", key, explain(err))
	}
	return nil
}
