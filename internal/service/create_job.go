package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/volume"
)

// createJob takes the points of one create call. Its order is DESIGN §3 and
// §5: hold the instant → capture each volume → commit → let go.
type createJob struct{ s *Service }

// createNotes is what a restart must know.
type createNotes struct {
	Held bool      `json:"held,omitempty"` // the instant survives a crash; Time is the points'
	Time time.Time `json:"time,omitzero"`
	// Rested are the machines whose filesystems were at rest at that moment.
	Rested []string `json:"rested,omitempty"`
}

// creation is one term of a create job.
type creation struct {
	s       *Service
	run     *job.Run
	params  createParams
	notes   createNotes
	points  []Snapshot // the i-th is of the i-th volume
	volumes []Volume
	sources []volume.Source
	holds   []*hold
	took    []engine.Captured
	hits    []string // packs of others that the points refer to
}

// hold is the instant of those volumes that one driver serves.
type hold struct {
	kind    string // of its volumes: a key of Config.Drivers
	driver  volume.Driver
	members []int // indices of volumes
	specs   []volume.Spec
	instant volume.Instant // nil until held
}

// Do takes the points from the top, or from the instant that an earlier term
// holds durably.
func (h createJob) Do(ctx context.Context, run *job.Run) error {
	c := &creation{s: h.s, run: run}
	if err := c.load(ctx); err != nil {
		return err
	}
	defer c.logClose("instant", c.close)
	if err := c.holdInstant(ctx); err != nil {
		return err
	}
	if err := c.settlePlans(ctx); err != nil {
		return err
	}
	session, err := h.s.engine.OpenSession(ctx, run.ID(), run.Term(), registry{h.s.store, run.ID(), run.Term()})
	if err != nil {
		return fmt.Errorf("open the session: %w", err)
	}
	defer c.logClose("session", session.Close)
	if err := c.captureAndCommit(ctx, session); err != nil {
		return err
	}
	// The points are real. What fails from here on costs space or time, never
	// data, and must not look like a failure of the job. Nor may the job's end,
	// which fences this run off, keep it from letting go.
	ctx = context.WithoutCancel(ctx)
	if err := session.Committed(ctx); err != nil {
		run.Log.Warn("publish the session's chunks to the index", "error", err)
	}
	h.s.letGo(ctx, run, c.close())
	return nil
}

// captureAndCommit stores the points and makes them real. If packs that they
// refer to were being deleted meanwhile, it stores them again: that ends, as
// every try refers to fewer of the packs that were there when it began.
func (c *creation) captureAndCommit(ctx context.Context, session engine.Session) error {
	for {
		if err := c.capture(ctx, session); err != nil {
			return err
		}
		if err := c.checkInstants(ctx); err != nil {
			return err
		}
		if err := c.run.Flush(ctx); err != nil {
			return err
		}
		c.hits = session.Hits()
		var gone goneError
		if err := c.settle(ctx); !errors.As(err, &gone) {
			return err
		}
		c.run.Log.Info("packs that the points refer to are being deleted; storing the points again", "packs", len(gone.packs))
		if err := session.Retake(ctx, gone.packs, c.took); err != nil {
			return err
		}
		c.took = nil
		if err := c.renew(ctx); err != nil {
			return err
		}
	}
}

// renew holds a new instant, as what was captured was released. A durable one
// has everything still.
func (c *creation) renew(ctx context.Context) error {
	if c.notes.Held {
		return nil
	}
	if err := c.close(); err != nil {
		return err
	}
	c.holds = nil
	if err := c.holdInstant(ctx); err != nil {
		return err
	}
	return c.settlePlans(ctx)
}

// committed reports whether the points are real although the commit failed:
// only its answer was lost. The job's end, which fences this run off, must not
// keep it from finding that out.
func (c *creation) committed(ctx context.Context) bool {
	done := false
	err := c.s.store.View(context.WithoutCancel(ctx), func(tx Tx) error {
		session, ok, err := tx.Session(c.run.ID())
		done = ok && session.State == SessionCommitted
		return err
	})
	return err == nil && done
}

// settle makes the points real, and with that the volumes everybody's and the
// points what the drivers count changes from.
func (c *creation) settle(ctx context.Context) error {
	commit := func() error {
		err := c.s.store.Update(ctx, c.commit)
		if err != nil && !errors.As(err, new(goneError)) && c.committed(ctx) {
			return nil
		}
		return err
	}
	// Managed volumes are the last of the holds, so the others are given back
	// first: what was written to a managed one must be made durable before.
	for _, h := range c.holds {
		commit = c.settling(ctx, h, commit)
	}
	return commit()
}

// settling is commit within the settling of a hold. It fails only if commit
// does: the rest costs time at most.
func (c *creation) settling(ctx context.Context, h *hold, commit func() error) func() error {
	var checkpoints []volume.Checkpoint
	for _, i := range h.members {
		checkpoints = append(checkpoints, c.took[i].Checkpoint)
	}
	return func() error {
		refused := error(errs.New(errs.Internal, "driver %s did not commit the points of its instant", h.kind))
		err := h.instant.Settle(context.WithoutCancel(ctx), checkpoints, func() error {
			refused = commit()
			return refused
		})
		if refused == nil && err != nil {
			c.run.Log.Warn("begin to track changes from the new points on; the next ones read everything", "driver", h.kind, "error", err)
		}
		return refused
	}
}

// checkInstants fails if a volume changed while it was read. Durable instants
// cannot.
func (c *creation) checkInstants(ctx context.Context) error {
	for _, held := range c.holds {
		if held.instant.Durable() {
			continue
		}
		if err := held.instant.Check(ctx); err != nil {
			return err
		}
	}
	return nil
}

// letGo drops a job's instant after its end. If that fails the next start
// does it: the hold is still noted.
func (s *Service) letGo(ctx context.Context, run *job.Run, closed error) {
	err := errors.Join(closed, s.dropHold(ctx, run.ID()))
	if err == nil {
		err = s.store.Update(ctx, func(tx Tx) error { return release(tx, holdPrefix+run.ID()) })
	}
	if err != nil {
		run.Log.Warn("let go of the instant; the next start tries again", "error", err)
	}
	s.fillSoon() // while a volume is read it keeps its base
}

// load reads the rows, takes the session over and notes that drivers may hold
// something from now on.
func (c *creation) load(ctx context.Context) error {
	if err := c.run.Params(&c.params); err != nil {
		return err
	}
	if err := c.run.LoadState(&c.notes); err != nil {
		return err
	}
	return c.s.store.Update(ctx, func(tx Tx) error {
		var err error
		if c.points, err = loadSnapshots(tx, c.params.Points); err != nil {
			return err
		}
		var ids []string
		for _, p := range c.points {
			ids = append(ids, p.ResourceID)
		}
		if c.volumes, err = loadVolumes(tx, ids); err != nil {
			return err
		}
		if err := NoteHold(tx, c.run.ID()); err != nil {
			return err
		}
		return tx.PutSession(Session{ID: c.run.ID(), Term: c.run.Term(), State: SessionActive})
	})
}

// logClose closes what was only read from, or is thrown away: its failure is
// news for the log, and decides nothing about the points.
func (c *creation) logClose(what string, closer func() error) {
	if err := closer(); err != nil {
		c.run.Log.Warn("close what the job used", "what", what, "error", err)
	}
}

// close frees locks and descriptors; durable instants stay until dropped.
func (c *creation) close() error {
	var err error
	for _, h := range c.holds {
		if h.instant != nil {
			err = errors.Join(err, h.instant.Close())
			h.instant = nil
		}
	}
	return err
}

// group splits the volumes by driver, as a driver holds an instant of all its
// volumes at once.
func (c *creation) group() error {
	byDriver := map[volume.Driver]*hold{}
	for i, v := range c.volumes {
		d, err := c.s.driver(v)
		if err != nil {
			return err
		}
		h := byDriver[d]
		if h == nil {
			h = &hold{kind: v.Driver, driver: d}
			byDriver[d] = h
			c.holds = append(c.holds, h)
		}
		h.members, h.specs = append(h.members, i), append(h.specs, v.spec())
	}
	// Managed volumes last: they have clients that wait while they are held,
	// and locking somebody's files may take its time.
	rank := func(h *hold) int {
		if h.kind == DriverManaged {
			return 1
		}
		return 0
	}
	slices.SortFunc(c.holds, func(a, b *hold) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.kind, b.kind))
	})
	return nil
}

// holdInstant holds one instant of all volumes: the one that an earlier term
// held durably, else a new one.
func (c *creation) holdInstant(ctx context.Context) error {
	if err := c.group(); err != nil {
		return err
	}
	hold := c.freezeAll
	if c.notes.Held {
		hold = c.reopen
	}
	if err := hold(ctx); err != nil {
		return err
	}
	durable, at := true, time.Time{}
	for _, h := range c.holds {
		durable = durable && h.instant.Durable()
		if t := h.instant.Time().UTC().Truncate(time.Microsecond); t.After(at) {
			at = t
		}
	}
	c.sources = make([]volume.Source, len(c.volumes))
	for _, h := range c.holds {
		for n, i := range h.members {
			c.sources[i] = h.instant.Source(n)
		}
	}
	if !c.notes.Held {
		c.notes = createNotes{Held: durable, Time: at, Rested: c.notes.Rested}
	}
	for i, v := range c.volumes {
		c.points[i].Consistency = c.consistency(v)
	}
	if !durable {
		return nil
	}
	// The note first: what the points say must be what a restart goes on with.
	if err := c.run.SaveState(ctx, c.notes, false); err != nil {
		return err
	}
	return c.s.store.Update(ctx, func(tx Tx) error {
		return changeSnapshots(tx, c.params.Points, func(p *Snapshot) {
			p.IsTaken, p.SnapshotTime = true, c.notes.Time
		})
	})
}

// reopen opens the instant that an earlier term held durably.
func (c *creation) reopen(ctx context.Context) (err error) {
	for _, h := range c.holds {
		h.instant, err = h.driver.Reopen(ctx, c.run.ID(), h.specs)
		if errors.Is(err, volume.ErrNoInstant) {
			return errs.Wrap(errs.Conflict, err, "the instant of %s that was held at %s did not survive the restart; create the snapshot again",
				c.names(), c.notes.Time.Format(time.RFC3339))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// consistency is what can be said of a volume at the instant.
func (c *creation) consistency(v Volume) string {
	if v.InstanceID != "" && slices.Contains(c.notes.Rested, v.InstanceID) {
		return consistencyFilesystem
	}
	return consistencyCrash
}

// freezeAll holds a new instant of all volumes. Each driver holds its volumes
// still while the next one freezes its own, so the moment of the last, which
// has the latest time, is that of all. The guests that have them are brought to
// rest around that.
func (c *creation) freezeAll(ctx context.Context) error {
	for _, h := range c.holds {
		if err := h.driver.Drop(ctx, c.run.ID()); err != nil {
			return fmt.Errorf("drop what an earlier term held: %w", err)
		}
	}
	for _, h := range c.holds { // before any guest is at rest
		d, ok := h.driver.(volume.Foreign)
		if !ok {
			continue
		}
		// It may have to wait for as long as others take.
		err := c.run.Aside(func() error { return d.Reserve(ctx, c.run.ID(), h.specs) })
		if err != nil {
			return err
		}
	}
	guests := c.s.quiesce(ctx, c.volumes, c.run.Log)
	err := c.freeze(ctx, c.holds)
	c.notes.Rested = guests.thaw(ctx, c.run.Log)
	return err
}

// freeze freezes the volumes of the first hold and, within that, of the others.
func (c *creation) freeze(ctx context.Context, holds []*hold) error {
	first, rest := holds[0], holds[1:]
	var within func(context.Context) error
	if len(rest) > 0 {
		within = func(ctx context.Context) error { return c.freeze(ctx, rest) }
	}
	in, err := first.driver.Freeze(ctx, c.run.ID(), first.specs, within)
	if err != nil {
		return err
	}
	first.instant = in
	return nil
}

// names lists the volumes for people.
func (c *creation) names() string {
	var ids []string
	for _, v := range c.volumes {
		ids = append(ids, v.ID)
	}
	return strings.Join(ids, ", ")
}

// settlePlans looks at what the instant really shows: a volume that shrank
// fails the job; one that grew, or whose parent cannot be read, becomes a
// full that says why.
func (c *creation) settlePlans(ctx context.Context) error {
	for i := range c.points {
		v, size := c.volumes[i], c.sources[i].Size()
		if size < v.SizeBytes {
			return errs.New(errs.Conflict, "volume %s shrank from %d to %d bytes outside of this service; put its end back, or register it anew, then create the snapshot again",
				v.ID, v.SizeBytes, size)
		}
		if err := c.settlePlan(ctx, i, size); err != nil {
			return err
		}
	}
	return nil
}

func (c *creation) settlePlan(ctx context.Context, i int, size int64) error {
	p := c.points[i]
	if p.Full {
		if size == p.VirtualSize {
			return nil
		}
		return c.replan(ctx, i, size, chain.PlanOutput{Full: true, Reason: p.Reason})
	}
	parent, err := c.parent(ctx, p)
	if err != nil {
		return err
	}
	if size != parent.VirtualSize {
		var plan chain.PlanOutput
		err := c.s.store.View(ctx, func(tx Tx) (err error) {
			plan, err = c.s.planPoint(tx, p.ResourceID, c.params.Full, size)
			return err
		})
		if err != nil {
			return err
		}
		return c.replan(ctx, i, size, plan)
	}
	switch err := c.s.engine.VerifyReadable(ctx, parent.ref()); {
	case err == nil:
		return nil
	case ctx.Err() != nil || errs.Is(err, errs.Unavailable):
		return err
	default:
		c.run.Log.Error("the parent cannot be read", "snapshot", p.ID, "parent", parent.ID, "error", err)
		return c.replan(ctx, i, size, unreadableParent(parent.ID))
	}
}

func unreadableParent(id chain.ID) chain.PlanOutput {
	return chain.FullBecause(fmt.Sprintf("its parent %s cannot be read; a scrub tells more", id))
}

func (c *creation) parent(ctx context.Context, p Snapshot) (parent Snapshot, err error) {
	err = c.s.store.View(ctx, func(tx Tx) error {
		parent, err = tx.Snapshot("", p.ParentID)
		return err
	})
	return parent, err
}

// replan changes what a pending point will be.
func (c *creation) replan(ctx context.Context, i int, size int64, plan chain.PlanOutput) error {
	return c.s.store.Update(ctx, func(tx Tx) error {
		p, err := tx.Snapshot("", c.points[i].ID)
		if err != nil {
			return err
		}
		p.follow(plan)
		p.VirtualSize, p.Consistency = size, c.points[i].Consistency
		c.points[i] = p
		return tx.UpdateSnapshot(p)
	})
}
