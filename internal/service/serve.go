package service

import (
	"context"
	"errors"
	"slices"
	"strings"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// servePrefix marks the holder of the pin on a point that is served. While it
// is there, each start serves the point again.
const servePrefix = "serve:"

// ServeSnapshot lets clients read a point as a block device until
// UnserveSnapshot; it cannot be deleted so long. Serving it twice is harmless.
// errs.Conflict: a scrub found it damaged.
func (s *Service) ServeSnapshot(ctx context.Context, zone, id string) (volume.Export, error) {
	ids, err := s.checkSnapshotSet(SnapshotSet{Origin: Origin{Zone: zone}, IDs: []string{id}})
	if err != nil {
		return volume.Export{}, err
	}
	id = ids[0]
	if s.lives == nil {
		return volume.Export{}, errs.New(errs.Conflict, "snapshot %s cannot be served: this server has no NBD server", id)
	}
	s.serving.Lock()
	defer s.serving.Unlock()
	var p Snapshot
	err = s.store.Update(ctx, func(tx Tx) (err error) {
		if p, err = restorablePoint(tx, zone, id); err != nil {
			return err
		}
		return tx.Pin(servePrefix+id, id)
	})
	if err == nil {
		err = s.lives.ServePoint(ctx, id, p.ref().String())
	}
	if err != nil {
		// Its pin may be there even if the transaction failed: only the answer
		// was lost.
		if e := s.lives.PointExported(id); len(e.URIs) == 0 {
			err = errors.Join(err, s.releaseHolder(ctx, servePrefix+id))
		}
		return volume.Export{}, err
	}
	s.log.Info("snapshot served", "snapshot", id)
	return s.lives.PointExported(id), nil
}

// UnserveSnapshot ends that. errs.Conflict: it is not served, or clients are
// connected, whose connections force ends.
func (s *Service) UnserveSnapshot(ctx context.Context, zone, id string, force bool) error {
	ids, err := s.checkSnapshotSet(SnapshotSet{Origin: Origin{Zone: zone}, IDs: []string{id}})
	if err != nil {
		return err
	}
	id = ids[0]
	s.serving.Lock()
	defer s.serving.Unlock()
	err = s.store.View(ctx, func(tx Tx) error {
		if _, err := tx.Snapshot(zone, id); err != nil {
			return err
		}
		holders, err := tx.Holders()
		if err == nil && !slices.Contains(holders, servePrefix+id) {
			err = errs.New(errs.Conflict, "snapshot %s is not served", id)
		}
		return err
	})
	if err != nil {
		return err
	}
	if s.lives != nil {
		if err := s.lives.UnservePoint(ctx, id, force); err != nil {
			return err
		}
	}
	if err := s.releaseHolder(ctx, servePrefix+id); err != nil {
		return err
	}
	s.log.Info("snapshot no longer served", "snapshot", id)
	return nil
}

// servePoints serves all points again that were served before the start.
func (s *Service) servePoints(ctx context.Context) error {
	if s.lives == nil {
		return nil
	}
	var points []Snapshot
	err := s.store.View(ctx, func(tx Tx) error {
		holders, err := tx.Holders()
		if err != nil {
			return err
		}
		for _, h := range holders {
			id, ok := strings.CutPrefix(h, servePrefix)
			if !ok {
				continue
			}
			p, err := tx.Snapshot("", id)
			if err != nil {
				return err
			}
			points = append(points, p)
		}
		return nil
	})
	for _, p := range points {
		if err := s.lives.ServePoint(ctx, p.ID, p.ref().String()); err != nil && ctx.Err() == nil {
			s.log.Error("serve a snapshot; clients cannot connect to it", "snapshot", p.ID, "error", err)
		}
	}
	return err
}
