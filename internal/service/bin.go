package service

import (
	"context"
	"fmt"
	"math"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/job"
)

// uptimeKey is the setting that adds up, in seconds, how long servers have run
// over this database. The recycle bin is measured in it, so that a clock that
// jumps, or a server that was off for a month, empties nothing.
const uptimeKey = "uptime"

// maxBinClock is a bin clock that every deleted point has reached.
const maxBinClock = math.MaxInt64

// expire ends deleted points whose bin clock is at most upTo: they cease, and
// what they alone need is garbage. guard, if not nil, is asked in each
// transaction. A point that is being brought back is passed over.
func (s *Service) expire(ctx context.Context, upTo int64, guard func(Tx) error) (ceased int, err error) {
	for {
		n, more := 0, false
		err := s.store.Update(ctx, func(tx Tx) error {
			n = 0
			if guard != nil {
				if err := guard(tx); err != nil {
					return err
				}
			}
			rows, err := tx.ExpiredPoints(upTo, rowsAtOnce)
			if err != nil {
				return err
			}
			more = len(rows) == rowsAtOnce
			for _, p := range rows {
				if p.Transition != "" {
					continue
				}
				p.Status, p.StatusTime = chain.Ceased, s.now()
				if err := tx.UpdateSnapshot(p); err != nil {
					return err
				}
				n++
			}
			if n == 0 {
				return nil
			}
			return setNumber(tx, pruneDueKey, 1)
		})
		ceased += n
		if err != nil {
			return ceased, fmt.Errorf("end deleted points: %w", err)
		}
		if !more || n == 0 {
			return ceased, nil
		}
	}
}

// undeleteParams is the input of a LeaseResources job.
type undeleteParams struct {
	Points []chain.ID `json:"points"` // the points asked for and their deleted ancestors
}

// Undelete starts bringing deleted points back out of the recycle bin, with
// their deleted ancestors, never descendants, all or none, and images. It moves
// no head.
func (s *Service) Undelete(ctx context.Context, in SnapshotSet) (job.Job, error) {
	check := s.checkSnapshotSet
	if len(in.IDs) > 0 && IsImage(in.IDs[0]) {
		check = func(in SnapshotSet) ([]string, error) { return s.checkImages(ImageSet(in)) }
	}
	ids, err := check(in)
	if err != nil {
		return job.Job{}, err
	}
	return s.submit(ctx, in.Origin, job.LeaseResources, func(tx Tx, j *job.Job) (any, error) {
		params := undeleteParams{}
		byRoot := map[chain.ID][]chain.ID{}
		var roots []chain.ID
		for _, id := range ids {
			p, err := deletedPoint(tx, in.Zone, id)
			if err != nil {
				return nil, err
			}
			if byRoot[p.RootID] == nil {
				roots = append(roots, p.RootID)
			}
			byRoot[p.RootID] = append(byRoot[p.RootID], id)
		}
		for _, root := range roots {
			rows, err := tx.Chain(root)
			if err != nil {
				return nil, err
			}
			back, err := chain.PlanUndelete(points(rows), byRoot[root], s.max)
			if err != nil {
				return nil, err
			}
			for _, id := range back {
				if _, err := deletedPoint(tx, in.Zone, id); err != nil {
					return nil, err
				}
			}
			params.Points = append(params.Points, back...)
		}
		j.ResourceIDs = params.Points
		if err := tx.Lock(j.ID, params.Points...); err != nil {
			return nil, err
		}
		return params, changeSnapshots(tx, params.Points, func(p *Snapshot) { p.Transition = "recovering" })
	})
}

// deletedPoint is the point if it is in the recycle bin and nobody works on it.
func deletedPoint(tx Tx, zone, id string) (Snapshot, error) {
	p, err := tx.Snapshot(zone, id)
	if err != nil {
		return p, err
	}
	switch {
	case p.Transition != "":
		return p, errs.New(errs.Busy, "%s is %s; please try later", named(id), p.Transition)
	case p.Status == chain.Ceased:
		return p, errs.New(errs.Conflict, "%s has ceased: its time in the recycle bin is over and it cannot be brought back", named(id))
	case p.Status != chain.Deleted:
		return p, errs.New(errs.Conflict, "%s is %s; only a deleted one can be brought back", named(id), p.Status)
	}
	return p, refuseLocked(tx, named(id), id)
}

// undeleteJob brings points back: rows only, one transaction.
type undeleteJob struct{ s *Service }

func (h undeleteJob) Do(ctx context.Context, run *job.Run) error {
	var params undeleteParams
	if err := run.Params(&params); err != nil {
		return err
	}
	return h.s.store.Update(ctx, func(tx Tx) error {
		rows, err := loadSnapshots(tx, params.Points)
		if err != nil {
			return err
		}
		roots := map[chain.ID]bool{}
		for _, p := range rows {
			roots[p.RootID] = true
		}
		err = changeSnapshots(tx, params.Points, func(p *Snapshot) {
			p.Status, p.StatusTime, p.Transition, p.BinClock = chain.Available, h.s.now(), "", 0
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

// Undo takes the transition back: nothing else was changed.
func (h undeleteJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params undeleteParams
	if err := run.Params(&params); err != nil {
		return err
	}
	return h.s.endTransition(ctx, run, params.Points, out)
}
