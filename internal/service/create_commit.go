package service

import (
	"context"
	"fmt"
	"strings"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/job"
)

// capture reads every volume into the repository, one after the other.
func (c *creation) capture(ctx context.Context, session engine.Session) error {
	m := &meter{run: c.run}
	for _, src := range c.sources {
		m.totals = append(m.totals, src.Size())
	}
	for i := range c.points {
		got, err := c.captureOne(ctx, session, i, m.part(i))
		if err != nil && !c.points[i].Full && errs.Is(err, errs.Corrupt) && ctx.Err() == nil {
			// Damage deeper in the parent's tree than VerifyReadable looks.
			c.run.Log.Error("the parent is damaged; taking a full", "snapshot", c.points[i].ID, "parent", c.points[i].ParentID, "error", err)
			plan := unreadableParent(c.points[i].ParentID)
			if err := c.replan(ctx, i, c.points[i].VirtualSize, plan); err != nil {
				return err
			}
			got, err = c.captureOne(ctx, session, i, m.part(i))
		}
		if err != nil {
			return err
		}
		c.run.Log.Info("volume captured", "snapshot", c.points[i].ID, "volume", c.points[i].ResourceID,
			"read_bytes", got.ReadBytes, "added_bytes", got.AddedBytes, "cbt", got.CBT, "audit_bytes", got.Audit.Bytes)
		if len(got.Audit.Wrong) > 0 {
			c.run.Log.Error("the change tracking of a volume was wrong; everything was read", "snapshot", c.points[i].ID,
				"volume", c.points[i].ResourceID, "audit_bytes", got.Audit.Bytes, "wrong", got.Audit.Wrong)
		}
		c.took = append(c.took, got)
	}
	return nil
}

func (c *creation) captureOne(ctx context.Context, session engine.Session, i int, progress engine.Progress) (engine.Captured, error) {
	p := c.points[i]
	spec := engine.CaptureSpec{Source: c.sources[i], Meta: p.meta(len(c.points))}
	spec.Meta.SnapshotTime = c.notes.Time
	if !p.Full {
		parent, err := c.parent(ctx, p)
		if err != nil {
			return engine.Captured{}, err
		}
		ref := parent.ref()
		spec.Parent = &ref
	}
	return session.Capture(ctx, spec, progress)
}

// commit makes the points real and ends the job: one transaction, whose
// compare-and-set only one of commit and abort can win.
func (c *creation) commit(tx Tx) error {
	if err := commitSession(tx, c.run.ID(), c.run.Term(), c.hits); err != nil {
		return err
	}
	now := c.s.now()
	for i, got := range c.took {
		if err := c.commitPoint(tx, i, got); err != nil {
			return err
		}
		err := changeVolumes(tx, []string{c.volumes[i].ID}, func(v *Volume) { v.SizeBytes = c.points[i].VirtualSize })
		if err != nil {
			return err
		}
	}
	return c.s.finish(tx, c.run, job.Outcome{Status: job.Successful, Info: c.info(), Time: now})
}

func (c *creation) commitPoint(tx Tx, i int, got engine.Captured) error {
	p, err := tx.Snapshot("", c.points[i].ID)
	if err != nil {
		return err
	}
	p.Status, p.StatusTime, p.Transition = chain.Available, c.s.now(), ""
	p.IsTaken, p.SnapshotTime = true, c.notes.Time
	p.SizeBytes = got.AddedBytes
	p.CBT, p.Reason, p.Consistency = got.CBT, got.Reason, c.points[i].Consistency
	p.ManifestPack, p.ManifestHash = got.Ref.Pack, got.Ref.Hash
	if err := tx.UpdateSnapshot(p); err != nil {
		return err
	}
	if err := moveHead(tx, p.ResourceID, chain.HeadAfterCreate(p.Point)); err != nil {
		return err
	}
	return sumChain(tx, p.RootID)
}

// info says which points are fulls although the caller did not ask for any,
// and why, and of which volumes the tracking was found wrong.
func (c *creation) info() string {
	var say []string
	for i, p := range c.points {
		if p.Full && !c.params.Full {
			say = append(say, fmt.Sprintf("%s is a full, because %s", p.ID, p.Reason))
		}
		if finding := c.took[i].Audit.Finding(p.ResourceID); finding != "" {
			say = append(say, p.ID+": "+finding)
		}
	}
	return strings.Join(say, "; ")
}

// Undo takes a create back: abort the session, and only after it was read
// back as aborted delete what it stored. If the session was committed after
// all, the job has ended.
func (h createJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params createParams
	if err := run.Params(&params); err != nil {
		return err
	}
	committed, err := h.s.abortSession(ctx, run.ID(), run.Term())
	if err != nil {
		return err
	}
	if committed {
		// The answer to the commit was lost, not the commit.
		h.s.letGo(ctx, run, nil)
		return fmt.Errorf("undo job %s: its session is committed: %w", run.ID(), job.ErrFenced)
	}
	if err := h.s.dropHold(ctx, run.ID()); err != nil {
		return err
	}
	return h.s.store.Update(ctx, func(tx Tx) error {
		err := changeSnapshots(tx, params.Points, func(p *Snapshot) {
			p.Status, p.StatusTime, p.Transition = chain.Ceased, h.s.now(), ""
		})
		if err != nil {
			return err
		}
		if err := release(tx, holdPrefix+run.ID()); err != nil {
			return err
		}
		return h.s.finish(tx, run, out)
	})
}
