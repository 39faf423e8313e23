package metadb

import (
	"database/sql"
	"errors"
	"fmt"

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

func (t *tx) ActiveSessions() ([]service.Session, error) {
	var rows []sessionRow
	err := t.db.NewSelect().Model(&rows).Where("state = 'ACTIVE'").OrderExpr("id").Scan(t.ctx)
	if err != nil {
		return nil, fmt.Errorf("list the active sessions: %w", explain(err))
	}
	out := make([]service.Session, len(rows))
	for i, r := range rows {
		out[i] = service.Session{ID: r.ID, Term: r.Term, State: r.State}
	}
	return out, nil
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
