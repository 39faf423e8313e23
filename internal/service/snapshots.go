package service

import (
	"context"

	"cairn/internal/chain"
	"cairn/internal/errs"
)

// Snapshots lists snapshots, with the progress of those being created.
func (s *Service) Snapshots(ctx context.Context, f SnapshotFilter) (SnapshotPage, error) {
	if err := s.checkZone(f.Zone); err != nil {
		return SnapshotPage{}, err
	}
	var page SnapshotPage
	err := s.store.View(ctx, func(tx Tx) error {
		rows, total, err := tx.Snapshots(f)
		if err != nil {
			return err
		}
		page = SnapshotPage{Snapshots: make([]SnapshotView, len(rows)), Total: total}
		for i, row := range rows {
			page.Snapshots[i] = SnapshotView{Snapshot: row, Progress: 1}
			if s.lives != nil {
				page.Snapshots[i].Export = s.lives.PointExported(row.ID)
			}
			if row.Status != chain.Pending {
				continue
			}
			j, err := tx.Job(row.JobID)
			if err != nil {
				return err
			}
			page.Snapshots[i].Progress = s.live(j).Progress.Fraction()
		}
		return nil
	})
	return page, err
}

// RenameSnapshot changes a snapshot's name and description.
func (s *Service) RenameSnapshot(ctx context.Context, in Rename) (Snapshot, error) {
	ids, err := s.checkSnapshotSet(SnapshotSet{Origin: in.Origin, IDs: in.IDs})
	if err != nil {
		return Snapshot{}, err
	}
	if len(ids) != 1 {
		return Snapshot{}, errs.New(errs.Invalid, "%d snapshots are named; rename one at a time", len(ids))
	}
	if err := in.check("snapshot_name"); err != nil {
		return Snapshot{}, err
	}
	var p Snapshot
	err = s.store.Update(ctx, func(tx Tx) error {
		if p, err = idlePoint(tx, in.Zone, ids[0]); err != nil {
			return err
		}
		p.Name, p.Description = in.apply(p.Name, p.Description)
		return tx.UpdateSnapshot(p)
	})
	return p, err
}
