package service

import (
	"context"
	"errors"
	"slices"

	"cairn/internal/engine"
	"cairn/internal/errs"
)

const (
	// copyAtOnce is how many needed bytes one session copies: small, so that a
	// nearly full disk has room for it, and a crash throws little away.
	copyAtOnce = 256 << 20
	// minWaste is the share of a pack that must be garbage before the rest of
	// it is copied.
	minWaste = 0.25
)

// plan chooses what to copy. Packs that somebody wrote or took into use since
// the mark began are left alone: what is needed of them is not known.
func (c *collection) plan(maxCopy int64) []string {
	c.report.WasteBytes, c.report.ReachableBytes = 0, 0
	var candidates []engine.PackWaste
	for id, p := range c.packs {
		if !c.condemnable(p) || !c.marks.Needed(id) || p.Kind == "reloc" || p.Kind == "point" {
			continue
		}
		w := c.marks.Waste(id)
		c.report.WasteBytes += (w.Stored - w.Needed) * max(1, p.Bytes/max(1, w.Stored))
		candidates = append(candidates, w)
	}
	chosen := engine.PlanEvacuation(candidates, engine.Policy{MaxCopy: maxCopy, MinWaste: minWaste})
	for _, id := range chosen {
		w := c.marks.Waste(id)
		c.report.ReachableBytes += (w.Stored - w.Needed) * max(1, c.packs[id].Bytes/max(1, w.Stored))
	}
	return chosen
}

// evacuate copies the needed parts out of packs that are mostly garbage, and
// small packs together, session by session.
func (c *collection) evacuate(ctx context.Context) error {
	victims := c.plan(c.opts.MaxCopy)
	total := int64(0)
	for _, id := range victims {
		total += c.marks.Waste(id).Needed
	}
	c.report.ReachableBytes = 0
	for done := int64(0); len(victims) > 0; {
		n, bytes := 0, int64(0)
		for n < len(victims) && (n == 0 || bytes+c.marks.Waste(victims[n]).Needed <= copyAtOnce) {
			bytes += c.marks.Waste(victims[n]).Needed
			n++
		}
		err := c.copyOut(ctx, victims[:n])
		if errs.Is(err, errs.Full) {
			// What could be deleted is deleted. Copying has to wait for room. A
			// session that stayed open would look like a backup for ever.
			c.run.Log.Warn("no space to copy needed parts out of packs; leaving them", "packs", len(victims), "error", err)
			return c.s.abortParts(ctx, c.run)
		}
		if err != nil {
			return err
		}
		done += bytes
		c.run.Progress(done, total)
		victims = victims[n:]
	}
	return nil
}

// copyOut empties some packs in a session of its own.
func (c *collection) copyOut(ctx context.Context, victims []string) (err error) {
	id := partOf(c.run.ID(), newUUID())
	err = c.update(ctx, func(tx Tx) error {
		return tx.PutSession(Session{ID: id, Term: c.run.Term(), State: SessionActive})
	})
	if err != nil {
		return err
	}
	committed := false
	defer func() {
		if !committed && ctx.Err() == nil {
			_, aerr := c.s.abortSession(ctx, id, c.run.Term())
			err = errors.Join(err, aerr)
		}
	}()
	session, err := c.s.engine.OpenSession(ctx, id, c.run.Term(), registry{c.s.store, id, c.run.Term()})
	if err != nil {
		return err
	}
	defer session.Close() //nolint:errcheck // it frees memory only
	got, err := session.Evacuate(ctx, c.marks, victims)
	if err != nil {
		return err
	}
	if err := c.update(ctx, func(tx Tx) error { return c.commitCopies(tx, id, got) }); err != nil {
		return err
	}
	committed = true
	c.report.CopiedBytes += c.wrote
	c.report.FreedBytes -= c.wrote
	if err := session.Committed(ctx); err != nil {
		c.run.Log.Warn("publish copied chunks to the index", "error", err)
	}
	c.report.CopiedPacks += len(got.Emptied)
	c.report.HealedPacks += len(got.Healed)
	for pack, why := range got.Failed {
		c.report.UntouchedWhy = append(c.report.UntouchedWhy, pack+": "+why)
	}
	return c.erase(ctx)
}

// commitCopies makes the copies real and condemns what they were copied from,
// unless somebody took that into use since the mark: then it may hold needed
// records that were not copied, and it stays. A pack with healed damage goes
// beyond recall at once: else a commit that had hit it would bring it back to
// life, and then the next mark would prefer it to its healed copy.
func (c *collection) commitCopies(tx Tx, session string, got engine.Evacuated) error {
	if err := commitSession(tx, session, c.run.Term(), nil); err != nil {
		return err
	}
	own, err := tx.PacksOf(session)
	if err != nil {
		return err
	}
	c.wrote = 0
	for _, p := range own {
		c.wrote += p.Bytes
	}
	for _, id := range got.Emptied {
		p, ok, err := tx.Pack(id)
		if err != nil {
			return err
		}
		if !ok || !c.condemnable(p) {
			continue
		}
		p.State, p.Condemned = PackCondemned, c.epoch
		if slices.Contains(got.Healed, id) {
			p.State = PackDeleting
		}
		if err := tx.UpdatePack(p); err != nil {
			return err
		}
	}
	return nil
}

// heal empties damaged packs as far as every needed record of them can be read
// or is stored elsewhere too, and deletes those that nothing needs.
func (c *collection) heal(ctx context.Context, damaged []string) error {
	for _, step := range []func(context.Context) error{c.begin, c.mark, c.condemn, c.erase} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	for _, id := range damaged {
		p := c.packs[id]
		if !c.condemnable(p) || !c.marks.Needed(id) || p.Kind != "data" && p.Kind != "node" {
			continue
		}
		// One by one: what cannot be healed holds nothing else up.
		if err := c.copyOut(ctx, []string{id}); err != nil {
			return err
		}
	}
	return nil
}
