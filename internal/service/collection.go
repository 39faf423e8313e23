package service

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/job"
)

// rowsAtOnce bounds the rows that one transaction of a collection changes, so
// that others need not wait for it.
const rowsAtOnce = 250

// collection is one term of a prune. The steps and their order are those of
// docs/adr/0005-collection.md.
type collection struct {
	s      *Service
	run    *job.Run
	opts   PruneOptions
	report PruneReport

	epoch  int64
	stored *engine.Stored
	packs  map[string]Pack // every row as it was when the mark began
	active map[string]bool // packs of sessions that were open then
	marks  engine.Marks
	wrote  int64 // bytes that the copies of the last session take
}

func (c *collection) collect(ctx context.Context) error {
	c.report.AsOf, c.report.DryRun, c.report.UntouchedWhy = c.s.now(), c.opts.DryRun, []string{}
	if err := c.begin(ctx); err != nil {
		return err
	}
	if err := c.mark(ctx); err != nil {
		return err
	}
	c.run.Log.Info("marked what is needed", "stored_bytes", c.report.StoredBytes, "epoch", c.epoch)
	if c.opts.DryRun {
		c.foresee()
		return nil
	}
	for _, step := range []func(context.Context) error{c.condemn, c.erase, c.takeStrays, c.evacuate, c.account} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// mine fails if another term has the job: a collector that was fenced off
// changes nothing more.
func (c *collection) mine(tx Tx) error {
	j, err := tx.Job(c.run.ID())
	if err != nil {
		return err
	}
	if j.Term != c.run.Term() || j.Status.Ended() {
		return fmt.Errorf("collect in term %d: %w", c.run.Term(), job.ErrFenced)
	}
	return nil
}

// update is a transaction of this collector.
func (c *collection) update(ctx context.Context, fn func(tx Tx) error) error {
	return c.s.store.Update(ctx, func(tx Tx) error {
		if err := c.mine(tx); err != nil {
			return err
		}
		return fn(tx)
	})
}

// begin empties the recycle bin if that was asked for, and opens a new epoch:
// whatever is written or taken into use from now on is none of this mark's.
func (c *collection) begin(ctx context.Context) error {
	if c.opts.DryRun {
		return nil
	}
	if c.opts.EmptyBin {
		n, err := c.s.expire(ctx, maxBinClock, c.mine)
		c.report.CeasedPoints = n
		if err != nil {
			return err
		}
	}
	return c.update(ctx, func(tx Tx) error {
		epoch, err := epochOf(tx)
		if err != nil {
			return err
		}
		c.epoch = epoch + 1
		return setNumber(tx, epochKey, c.epoch)
	})
}

// mark lists what is stored, then reads the rows, in this order, and finds
// what is needed.
func (c *collection) mark(ctx context.Context) error {
	var err error
	if c.stored, err = c.s.engine.Stored(ctx); err != nil {
		return err
	}
	spec := engine.MarkSpec{Stored: c.stored}
	c.packs, c.active = make(map[string]Pack), make(map[string]bool)
	err = c.s.store.View(ctx, func(tx Tx) error {
		err := tx.AllPacks(func(p Pack, session SessionState) error {
			c.packs[p.ID], c.active[p.ID] = p, session == SessionActive
			spec.Packs = append(spec.Packs, p.row(session))
			return nil
		})
		if err != nil {
			return err
		}
		return c.roots(tx, &spec)
	})
	if err != nil {
		return err
	}
	if c.marks, err = c.s.engine.Mark(ctx, spec); err != nil {
		return err
	}
	c.report.StoredBytes = c.marks.StoredBytes()
	return nil
}

// roots tells which manifests count: those that the row of a point names which
// is there or in the recycle bin, listed or not. A listed manifest that is not
// its point's (pending, ceased, or written again) counts for nothing; one of a
// point without a row, as an older database has, counts.
func (c *collection) roots(tx Tx, spec *engine.MarkSpec) error {
	err := tx.LivePoints(func(p Snapshot) error {
		if p.Status == chain.Deleted {
			spec.Bin = append(spec.Bin, p.ref())
		} else {
			spec.Points = append(spec.Points, p.ref())
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, m := range c.stored.Manifests() {
		_, err := tx.Snapshot("", m.Snapshot)
		if errs.Is(err, errs.NotFound) {
			spec.Unknown = append(spec.Unknown, m)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// condemnable reports whether a pack that nothing needs may go, as far as its
// row says: nobody wrote it or took it into use since the mark began.
func (c *collection) condemnable(p Pack) bool {
	return p.State == PackLive && p.Born < c.epoch && p.Stamped < c.epoch && !c.active[p.ID]
}

// condemn marks the packs that nothing needs, and takes back what an earlier
// collection had condemned and something needs after all.
func (c *collection) condemn(ctx context.Context) error {
	var ids []string
	for id, p := range c.packs {
		needed := c.marks.Needed(id)
		if needed && p.State == PackCondemned || !needed && c.condemnable(p) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return c.batches(ctx, ids, func(tx Tx, p Pack) error {
		switch {
		case c.marks.Needed(p.ID) && p.State == PackCondemned:
			p.State, p.Condemned, p.Stamped = PackLive, 0, c.epoch
		case !c.marks.Needed(p.ID) && c.condemnable(p):
			p.State, p.Condemned = PackCondemned, c.epoch
		default:
			return nil // somebody was faster
		}
		return tx.UpdatePack(p)
	})
}

// batches reads rows anew, some in one transaction, and lets change decide.
func (c *collection) batches(ctx context.Context, ids []string, change func(tx Tx, p Pack) error) error {
	for part := range slices.Chunk(ids, rowsAtOnce) {
		err := c.update(ctx, func(tx Tx) error {
			for _, id := range part {
				p, ok, err := tx.Pack(id)
				if err == nil && ok {
					err = change(tx, p)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// erase deletes condemned packs: those of earlier collections, and those of
// this one too unless a session is open that may refer to them. One that does
// would have to store its chunks again.
func (c *collection) erase(ctx context.Context) error {
	var all []Pack
	err := c.s.store.View(ctx, func(tx Tx) (err error) {
		all, err = tx.LeavingPacks()
		return err
	})
	if err != nil {
		return err
	}
	c.report.LeavingBytes = 0
	for part := range slices.Chunk(all, rowsAtOnce) {
		if err := c.erasePart(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

func (c *collection) erasePart(ctx context.Context, part []Pack) error {
	var doomed []engine.PackRecord
	leaving := int64(0)
	err := c.update(ctx, func(tx Tx) error {
		doomed, leaving = nil, 0
		open, err := c.othersAreOpen(tx)
		if err != nil {
			return err
		}
		for _, old := range part {
			p, ok, err := tx.Pack(old.ID)
			if err != nil {
				return err
			}
			if !ok || p.State == PackLive {
				continue // taken into use again
			}
			if p.State == PackCondemned {
				if open && p.Condemned >= c.epoch {
					leaving += p.Bytes
					continue
				}
				p.State = PackDeleting
				if err := tx.UpdatePack(p); err != nil {
					return err
				}
			}
			doomed = append(doomed, p.record())
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.report.LeavingBytes += leaving
	return c.deletePacks(ctx, doomed)
}

// othersAreOpen reports whether any session but this collection's may commit.
func (c *collection) othersAreOpen(tx Tx) (bool, error) {
	open, err := tx.ActiveSessions()
	return len(open) > 0, err
}

// deletePacks deletes blobs whose rows say DELETING, and then the rows.
func (c *collection) deletePacks(ctx context.Context, doomed []engine.PackRecord) error {
	if len(doomed) == 0 {
		return nil
	}
	if err := c.s.engine.DeletePacks(ctx, doomed); err != nil {
		return fmt.Errorf("delete packs that nothing needs: %w", err)
	}
	err := c.update(ctx, func(tx Tx) error { return tx.DeletePacks(recordIDs(doomed)...) })
	if err != nil {
		return err
	}
	for _, p := range doomed {
		c.report.FreedBytes += p.Bytes
		c.report.FreedPacks++
	}
	return nil
}

// takeStrays deletes stored packs that have no row: a row is written before
// its pack, so the sessions of these were given up before the rows were read.
func (c *collection) takeStrays(ctx context.Context) error {
	session := partOf(c.run.ID(), "strays")
	for part := range slices.Chunk(c.marks.Strays(), rowsAtOnce) {
		var doomed []engine.PackRecord
		err := c.update(ctx, func(tx Tx) error {
			doomed = nil
			if _, ok, err := tx.Session(session); err != nil {
				return err
			} else if !ok {
				if err := tx.PutSession(Session{ID: session, Term: c.run.Term(), State: SessionActive}); err != nil {
					return err
				}
				if _, err := tx.CASSession(session, c.run.Term(), SessionCommitted); err != nil {
					return err
				}
			}
			for _, rec := range part {
				if _, ok, err := tx.Pack(rec.ID); err != nil {
					return err
				} else if ok {
					continue
				}
				doomed = append(doomed, rec)
				err := tx.PutLeavingPack(Pack{ID: rec.ID, Kind: rec.Kind, Name: rec.Name, Bytes: rec.Bytes,
					Session: session, Term: c.run.Term(), State: PackDeleting, Condemned: c.epoch})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, p := range doomed {
			c.run.Log.Warn("a stored pack belongs to nobody; deleting it", "pack", p.Name, "bytes", p.Bytes)
			c.report.StrayBytes += p.Bytes
		}
		if err := c.deletePacks(ctx, doomed); err != nil {
			return err
		}
	}
	return nil
}

// account writes down what each point alone keeps.
func (c *collection) account(ctx context.Context) error {
	unique := c.marks.Unique()
	ids := make([]string, 0, len(unique))
	for id := range unique {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for part := range slices.Chunk(ids, rowsAtOnce) {
		err := c.update(ctx, func(tx Tx) error {
			var all []error
			for _, id := range part {
				all = append(all, tx.SetUnique(id, unique[id]))
			}
			return errors.Join(all...)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// foresee fills the report with what a prune would do now.
func (c *collection) foresee() {
	c.epoch = 1<<63 - 1 // all that there is was there before
	for id, p := range c.packs {
		if !c.marks.Needed(id) && (p.State != PackLive || c.condemnable(p)) {
			c.report.FreedBytes += p.Bytes
			c.report.FreedPacks++
		}
	}
	for _, p := range c.marks.Strays() {
		c.report.StrayBytes += p.Bytes
		c.report.FreedBytes += p.Bytes
		c.report.FreedPacks++
	}
	for _, id := range c.plan(c.opts.MaxCopy) {
		w := c.marks.Waste(id)
		c.report.CopiedBytes += w.Needed
		c.report.CopiedPacks++
	}
}

// info is the job's one sentence.
func (c *collection) info() string {
	verb := "freed"
	if c.opts.DryRun {
		verb = "would free"
	}
	text := fmt.Sprintf("%s %d bytes in %d packs", verb, c.report.FreedBytes, c.report.FreedPacks)
	if c.report.LeavingBytes > 0 {
		text += fmt.Sprintf("; %d bytes more go with the next prune, because a backup was running", c.report.LeavingBytes)
	}
	if n := len(c.report.UntouchedWhy); n > 0 {
		text += fmt.Sprintf("; %d packs are damaged and stay as they are: scrub tells more", n)
	}
	return text
}
