package service

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/volume"
)

// Live is what the use cases need of managed volumes that serve clients,
// beyond what a driver does. Its methods are those of internal/volume/live.
type Live interface {
	// Serve lets clients connect; Exported tells who did, and how. Clients is how
	// many they are, without those that are about to leave.
	Serve(ctx context.Context, s volume.Spec) error
	Exported(ctx context.Context, s volume.Spec) (volume.Export, error)
	Clients(ctx context.Context, s volume.Spec) (int, error)
	// Clone makes a volume of a tree's content, a Roller gives one that is there
	// this content; both at once. The tree must stay readable until Base names
	// it no more. After a forced rollback the volume is not served until Serve.
	Clone(ctx context.Context, s volume.Spec, tree volume.Tree) error
	OpenRoller(ctx context.Context, s volume.Spec, force bool) (volume.Roller, error)
	Base(ctx context.Context, s volume.Spec) (ref string, err error)
	// Fill fetches what a volume still needs of its base, and lets go of it.
	Fill(ctx context.Context, s volume.Spec, pace func(ctx context.Context, n int64) error) error
	// ServePoint lets clients read the tree that ref names until UnservePoint or
	// the end of the process; PointExported tells who does, and how.
	ServePoint(ctx context.Context, name, ref string) error
	UnservePoint(ctx context.Context, name string, force bool) error
	PointExported(name string) volume.Export
}

// basePrefix marks the holder of the pin that a volume has on the point that
// its content still comes from. The driver knows that point durably; the pin
// is made after it at every start.
const basePrefix = "base:"

// bases is what those share who change from which point volumes are read.
type bases struct {
	// mu is held from a change of what the driver calls a volume's base until
	// the pin has followed: else the filler, who lets go of a base, might take
	// the pin of the next one away.
	mu   sync.Mutex
	wake chan struct{} // of size 1: there may be something to fill
	rate int64         // bytes a second at which the filler reads; 0: as fast as it goes
}

// isLive reports whether v is served by the live driver.
func (s *Service) isLive(v Volume) bool { return s.lives != nil && v.Driver == DriverManaged }

// eachLive calls fn with all managed volumes that have not ceased, some at a
// time. The first error is returned.
func (s *Service) eachLive(ctx context.Context, fn func(ctx context.Context, v Volume) error) error {
	if s.lives == nil {
		return nil
	}
	const page, atOnce = 256, 8
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for after := ""; ; {
		var rows []Volume
		err := s.store.View(ctx, func(tx Tx) (err error) {
			rows, err = tx.VolumesAfter(after, page)
			return err
		})
		if err != nil || len(rows) == 0 {
			g.Go(func() error { return err })
			return g.Wait()
		}
		for _, v := range rows {
			if after = v.ID; s.isLive(v) && v.hasContent() {
				g.Go(func() error { return fn(ctx, v) })
			}
		}
	}
}

// serveAll lets clients connect to all volumes that have a content, and to the
// points that were served before.
func (s *Service) serveAll(ctx context.Context) {
	if err := s.servePoints(ctx); err != nil && ctx.Err() == nil {
		s.log.Error("serve the snapshots", "error", err)
	}
	err := s.eachLive(ctx, func(ctx context.Context, v Volume) error {
		s.serve(ctx, v)
		return nil
	})
	if err != nil && ctx.Err() == nil {
		s.log.Error("serve the volumes", "error", err)
	}
}

// serve lets clients connect to a volume, unless a job replaces or removes its
// content: that serves it when it ends. Its failure is not the caller's.
func (s *Service) serve(ctx context.Context, v Volume) {
	if !s.isLive(v) || !v.hasContent() || v.MixedJob != "" || v.Transition == "applying" || v.Transition == "deleting" {
		return
	}
	if err := s.lives.Serve(ctx, v.spec()); err != nil && ctx.Err() == nil {
		s.log.Error("serve a volume; clients cannot connect to it", "volume", v.ID, "error", err)
	}
}

// serveByID is serve for volumes whose job has just ended.
func (s *Service) serveByID(ctx context.Context, ids ...string) {
	var volumes []Volume
	err := s.store.View(ctx, func(tx Tx) (err error) {
		volumes, err = loadVolumes(tx, ids)
		return err
	})
	if err != nil {
		s.log.Error("serve volumes; clients cannot connect to them until the next start", "volumes", ids, "error", err)
	}
	for _, v := range volumes {
		s.serve(ctx, v)
	}
}

// handOver runs commit, which ends the job that has live volumes open, by id.
// They are everybody's when the job is seen to be successful, not a moment
// later.
func handOver(rollers map[string]volume.Roller, commit func() error) error {
	for _, id := range slices.Backward(slices.Sorted(maps.Keys(rollers))) {
		inner := commit
		commit = func() error { return rollers[id].End(inner) }
	}
	return commit()
}

// refuseConnected refuses what must not happen to volumes under connected
// clients. Attached ones are refused, or taken from their machines, elsewhere.
func (s *Service) refuseConnected(ctx context.Context, zone string, ids []string, what string) error {
	return s.refuseClients(ctx, zone, ids, what, VolumeAvailable)
}

// refuseClients is that for volumes of a status. One that is not there is
// somebody else's to refuse.
func (s *Service) refuseClients(ctx context.Context, zone string, ids []string, what string, of VolumeStatus) error {
	if s.lives == nil {
		return nil
	}
	for _, id := range ids {
		var v Volume
		err := s.store.View(ctx, func(tx Tx) (err error) {
			v, err = tx.Volume(zone, id)
			return err
		})
		if errs.Is(err, errs.NotFound) || err == nil && (!s.isLive(v) || v.Status != of) {
			continue
		}
		clients := 0
		if err == nil {
			clients, err = s.lives.Clients(ctx, v.spec())
		}
		if err != nil {
			return err
		}
		if clients > 0 {
			return errs.New(errs.Conflict, "%s has %d client connection(s) and cannot be %s under them; disconnect them first", named(v.ID), clients, what)
		}
	}
	return nil
}

// adoptBases pins the points that volumes still need, and no others: what the
// driver knows counts, whatever the database was put back or rebuilt from.
func (s *Service) adoptBases(ctx context.Context) error {
	if s.lives == nil {
		return nil
	}
	needed, err := s.neededPoints(ctx)
	if err != nil {
		return err
	}
	var stale []string
	err = s.store.View(ctx, func(tx Tx) error {
		holders, err := tx.Holders()
		for _, h := range holders {
			id, is := strings.CutPrefix(h, basePrefix)
			if _, ok := needed[id]; is && !ok {
				stale = append(stale, id)
			}
		}
		return err
	})
	if err != nil || len(stale) == 0 && len(needed) == 0 {
		return err
	}
	return s.store.Update(ctx, func(tx Tx) error {
		for _, id := range stale {
			if err := rebase(tx, id, ""); err != nil {
				return err
			}
		}
		for id, snapshot := range needed {
			if snapshot == "" {
				continue // an older pin stays
			}
			if err := rebase(tx, id, snapshot); err != nil {
				return err
			}
		}
		return nil
	})
}

// neededPoints asks every volume which point it still needs; "": it cannot
// tell. Volumes that need none are absent.
func (s *Service) neededPoints(ctx context.Context) (map[string]string, error) {
	var mu sync.Mutex
	needed := map[string]string{}
	err := s.eachLive(ctx, func(ctx context.Context, v Volume) error {
		snapshot, err := s.neededPoint(ctx, v)
		if ctx.Err() != nil || err == nil && snapshot == "" {
			return ctx.Err()
		}
		if err != nil {
			s.log.Error("ask a volume which snapshot it needs", "volume", v.ID, "error", err)
		}
		mu.Lock()
		defer mu.Unlock()
		needed[v.ID] = snapshot
		return nil
	})
	return needed, err
}

// neededPoint asks a live volume which point it still needs; "": none.
func (s *Service) neededPoint(ctx context.Context, v Volume) (snapshot string, err error) {
	ref, err := s.lives.Base(ctx, v.spec())
	if err != nil || ref == "" {
		return "", err
	}
	p, err := engine.ParsePointRef(ref)
	return p.Snapshot, err
}

// rebase pins the point that a volume's content comes from now, instead of an
// earlier one. "": none.
func rebase(tx Tx, volumeID, snapshot string) error {
	if err := tx.Unpin(basePrefix + volumeID); err != nil || snapshot == "" {
		return err
	}
	return tx.Pin(basePrefix+volumeID, snapshot)
}
