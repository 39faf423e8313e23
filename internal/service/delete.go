package service

import (
	"context"
	"slices"
	"strings"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/job"
)

// deleteParams is the input of a DeleteSnapshots job.
type deleteParams struct {
	Points []chain.ID `json:"points"` // all that go, newest first
}

// DeleteSnapshots starts deleting points and all their descendants.
func (s *Service) DeleteSnapshots(ctx context.Context, in SnapshotSet) (job.Job, error) {
	ids, err := s.checkSnapshotSet(in)
	if err != nil {
		return job.Job{}, err
	}
	return s.submit(ctx, in.Origin, job.DeleteSnapshots, func(tx Tx, j *job.Job) (any, error) {
		doomed, err := planDelete(tx, in.Zone, ids)
		if err != nil {
			return nil, err
		}
		params := deleteParams{Points: rowIDs(doomed)}
		j.ResourceIDs = params.Points
		if err := tx.Lock(j.ID, params.Points...); err != nil {
			return nil, err
		}
		return params, changeSnapshots(tx, params.Points, func(p *Snapshot) { p.Transition = "deleting" })
	})
}

// PlanDeleteSnapshots tells what DeleteSnapshots would take and free. It
// refuses what that would refuse, and changes nothing.
func (s *Service) PlanDeleteSnapshots(ctx context.Context, in SnapshotSet) (DeletePlan, error) {
	ids, err := s.checkSnapshotSet(in)
	if err != nil {
		return DeletePlan{}, err
	}
	var plan DeletePlan
	var gone, stay []engine.PointRef
	var packs []engine.PackRow
	err = s.store.View(ctx, func(tx Tx) error {
		doomed, err := planDelete(tx, in.Zone, ids)
		if err != nil {
			return err
		}
		plan.IDs = rowIDs(doomed)
		going := map[chain.ID]bool{}
		for _, p := range doomed {
			going[p.ID] = true
			gone = append(gone, p.ref())
		}
		err = tx.AllPacks(func(p Pack, session SessionState) error {
			packs = append(packs, p.row(session))
			return nil
		})
		if err != nil {
			return err
		}
		// A point in the recycle bin keeps nothing: it is on its way out, too.
		return tx.LivePoints(func(p Snapshot) error {
			if p.Live() && !going[p.ID] {
				stay = append(stay, p.ref())
			}
			return nil
		})
	})
	if err != nil {
		return DeletePlan{}, err
	}
	plan.FreedBytes, err = s.engine.FreedBytes(ctx, packs, gone, stay)
	return plan, err
}

func (s *Service) checkSnapshotSet(in SnapshotSet) ([]string, error) {
	if err := s.checkZone(in.Zone); err != nil {
		return nil, err
	}
	return checkIDs("snapshot", snapshotPrefix, in.IDs)
}

// planDelete is all that goes with ids, newest first, or why nothing can.
func planDelete(tx Tx, zone string, ids []string) ([]Snapshot, error) {
	wanted := map[chain.ID][]chain.ID{} // by root
	var roots []chain.ID
	for _, id := range ids {
		p, err := idlePoint(tx, zone, id)
		if err != nil {
			return nil, err
		}
		if wanted[p.RootID] == nil {
			roots = append(roots, p.RootID)
		}
		wanted[p.RootID] = append(wanted[p.RootID], id)
	}
	var doomed []Snapshot
	for _, root := range roots {
		rows, err := tx.Chain(root)
		if err != nil {
			return nil, err
		}
		for _, id := range chain.PlanDelete(points(rows), wanted[root]).IDs {
			p, err := idlePoint(tx, zone, id)
			if err != nil {
				return nil, err
			}
			doomed = append(doomed, p)
		}
	}
	// The rules order each chain so that children come first. Chains do not
	// depend on each other.
	slices.SortStableFunc(doomed, func(a, b Snapshot) int {
		if a.RootID == b.RootID {
			return 0
		}
		return b.SnapshotTime.Compare(a.SnapshotTime)
	})
	return doomed, refusePinned(tx, rowIDs(doomed))
}

// refusePinned answers errs.Busy if somebody reads or builds on a point.
func refusePinned(tx Tx, ids []chain.ID) error {
	id, holder, ok, err := tx.Pinned(ids...)
	if err != nil || !ok {
		return err
	}
	if volumeID, ok := strings.CutPrefix(holder, basePrefix); ok {
		v, err := tx.Volume("", volumeID)
		switch {
		case err != nil && !errs.Is(err, errs.NotFound):
			return err
		case err == nil && v.OnDemand:
			return errs.New(errs.Conflict, "snapshot %s is what volume %s is read from on demand; delete that, or fill it first (cairn volume fill %s)", id, volumeID, volumeID)
		}
		return errs.New(errs.Busy, "snapshot %s is still needed by %s, which is being filled from it; please try later", id, named(volumeID))
	}
	if strings.HasPrefix(holder, servePrefix) {
		return errs.New(errs.Conflict, "snapshot %s is served to clients; end that first (cairn snapshot unserve %s)", id, id)
	}
	j, err := tx.Job(holder)
	switch {
	case errs.Is(err, errs.NotFound):
		return errs.New(errs.Busy, "snapshot %s is being exported; please try later", id)
	case err != nil:
		return err
	}
	return errs.New(errs.Busy, "snapshot %s is needed by job %s (%s); please try later", id, j.ID, j.Action)
}

func rowIDs(rows []Snapshot) []chain.ID {
	out := make([]chain.ID, len(rows))
	for i, p := range rows {
		out[i] = p.ID
	}
	return out
}

// deleteJob moves points to the recycle bin: rows only, one transaction.
type deleteJob struct{ s *Service }

func (h deleteJob) Do(ctx context.Context, run *job.Run) error {
	var params deleteParams
	if err := run.Params(&params); err != nil {
		return err
	}
	return h.s.store.Update(ctx, func(tx Tx) error {
		rows, err := loadSnapshots(tx, params.Points)
		if err != nil {
			return err
		}
		uptime, err := numberSetting(tx, uptimeKey)
		if err != nil {
			return err
		}
		roots := map[chain.ID]string{} // root → resource
		for _, p := range rows {
			roots[p.RootID] = p.ResourceID
		}
		for root, resource := range roots {
			if err := headLeaves(tx, root, resource, params.Points); err != nil {
				return err
			}
		}
		err = changeSnapshots(tx, params.Points, func(p *Snapshot) {
			p.Status, p.StatusTime, p.Transition, p.BinClock = chain.Deleted, h.s.now(), "", uptime
		})
		if err != nil {
			return err
		}
		for root := range roots {
			if err := sumChain(tx, root); err != nil {
				return err
			}
		}
		return h.s.finish(tx, run, job.Outcome{Status: job.Successful})
	})
}

// headLeaves moves the resource's head to its nearest surviving ancestor if
// it is among the doomed. It may have moved since the delete was planned.
func headLeaves(tx Tx, root, resource string, doomed []chain.ID) error {
	rows, err := tx.Chain(root)
	if err != nil {
		return err
	}
	head, moves := chain.HeadAfterDelete(points(rows), doomed)
	if !moves {
		return nil
	}
	return moveHead(tx, resource, head)
}

// Undo takes the transition back: nothing else was changed.
func (h deleteJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params deleteParams
	if err := run.Params(&params); err != nil {
		return err
	}
	return h.s.endTransition(ctx, run, params.Points, out)
}

// endTransition ends a job that has changed nothing but the transition of
// points.
func (s *Service) endTransition(ctx context.Context, run *job.Run, points []chain.ID, out job.Outcome) error {
	return s.store.Update(ctx, func(tx Tx) error {
		if err := changeSnapshots(tx, points, func(p *Snapshot) { p.Transition = "" }); err != nil {
			return err
		}
		return s.finish(tx, run, out)
	})
}
