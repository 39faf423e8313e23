package metadb

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/uptrace/bun"

	"cairn/internal/errs"
	"cairn/internal/service"
)

func (t *tx) InsertVolume(v service.Volume) error {
	row := volumeToRow(v)
	_, err := t.db.NewInsert().Model(&row).Exec(t.ctx)
	return volumeWriteError(v, "insert", err)
}

// volumeWriteError names what a unique index refused.
func volumeWriteError(v service.Volume, act string, err error) error {
	switch {
	case err == nil:
		return nil
	case taken(err):
		return errs.Wrap(errs.Exists, err, "volume %s cannot be stored: its id, or the file or device behind it, is a volume already", v.ID)
	}
	return fmt.Errorf("%s volume %s: %w", act, v.ID, explain(err))
}

func (t *tx) Volume(zone, id string) (service.Volume, error) {
	var row volumeRow
	q := t.db.NewSelect().Model(&row).Where("id = ?", id).Where("status <> ?", service.VolumeCeased)
	if zone != "" {
		q = q.Where("zone = ?", zone)
	}
	err := q.Scan(t.ctx)
	if errors.Is(err, sql.ErrNoRows) {
		return service.Volume{}, errs.New(errs.NotFound, "%s %s does not exist", service.Noun(id), id)
	}
	if err != nil {
		return service.Volume{}, fmt.Errorf("read volume %s: %w", id, explain(err))
	}
	return row.volume(), nil
}

func (t *tx) UpdateVolume(v service.Volume) error {
	row := volumeToRow(v)
	res, err := t.db.NewUpdate().Model(&row).WherePK().Exec(t.ctx)
	if err != nil {
		return volumeWriteError(v, "update", err)
	}
	return mustHit(res, "volume %s does not exist", v.ID)
}

// mustHit answers errs.NotFound if a statement by id changed no row.
func mustHit(res sql.Result, format string, args ...any) error {
	n, err := res.RowsAffected()
	if err != nil {
		return fmt.Errorf("count changed rows: %w", err)
	}
	if n == 0 {
		return errs.New(errs.NotFound, format, args...)
	}
	return nil
}

func (t *tx) Volumes(f service.VolumeFilter) ([]service.Volume, int, error) {
	where := func(q *bun.SelectQuery) *bun.SelectQuery {
		if f.Zone != "" {
			q = q.Where("zone = ?", f.Zone)
		}
		if f.Instances {
			q = q.Where("substr(id, 1, 4) = 'ins-'")
		} else {
			q = q.Where("substr(id, 1, 4) <> 'ins-'")
		}
		if len(f.IDs) > 0 {
			q = q.Where("id IN (?)", bun.List(f.IDs))
		}
		if f.Type != nil {
			q = q.Where("type = ?", *f.Type)
		}
		switch {
		case len(f.Statuses) > 0:
			q = q.Where("status IN (?)", bun.List(f.Statuses))
		case len(f.IDs) == 0:
			q = q.Where("status NOT IN (?)", bun.List([]service.VolumeStatus{service.VolumeDeleted, service.VolumeCeased}))
		}
		if f.Search != "" {
			q = q.Where("instr(search_key, ?) > 0", fold(f.Search))
		}
		return q
	}
	count, err := where(t.db.NewSelect().Model((*volumeRow)(nil))).Count(t.ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("count volumes: %w", explain(err))
	}
	total := int(count)
	if f.Offset >= total || f.Limit <= 0 {
		return nil, total, nil
	}
	var rows []volumeRow
	err = where(t.db.NewSelect().Model(&rows)).OrderExpr("create_time DESC, id").
		Offset(int64(f.Offset)).Limit(int64(f.Limit)).Scan(t.ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("list volumes: %w", explain(err))
	}
	return toVolumes(rows), total, nil
}

func (t *tx) VolumesOf(instanceID string) ([]service.Volume, error) {
	var rows []volumeRow
	err := t.db.NewSelect().Model(&rows).Where("instance_id = ?", instanceID).Where("instance_id <> ''").
		Where("status <> ?", service.VolumeCeased).OrderExpr("id <> instance_id, device, id").Scan(t.ctx)
	if err != nil {
		return nil, fmt.Errorf("list the volumes of %s: %w", instanceID, explain(err))
	}
	return toVolumes(rows), nil
}

func toVolumes(rows []volumeRow) []service.Volume {
	out := make([]service.Volume, len(rows))
	for i, r := range rows {
		out[i] = r.volume()
	}
	return out
}

func (t *tx) VolumeByIdentity(identity, path string) (service.Volume, bool, error) {
	// An empty identity or path is "none", not a value that two may share.
	var row volumeRow
	err := t.db.NewSelect().Model(&row).
		Where("status <> ?", service.VolumeCeased).
		Where("(identity <> '' AND identity = ?) OR (path <> '' AND path = ?)", identity, path).
		OrderExpr("id").Limit(1).Scan(t.ctx)
	if errors.Is(err, sql.ErrNoRows) {
		return service.Volume{}, false, nil
	}
	if err != nil {
		return service.Volume{}, false, fmt.Errorf("look up a volume by its file: %w", explain(err))
	}
	return row.volume(), true, nil
}
