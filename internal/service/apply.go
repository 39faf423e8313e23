package service

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/volume"
)

// applyParams is the input of an ApplySnapshots job.
type applyParams struct {
	Points  []chain.ID `json:"points"`
	Force   bool       `json:"force,omitempty"` // end the connections of clients
	Volumes []string   `json:"volumes"`         // the i-th is the i-th point's
	// Instances are the machines that have any of the volumes, "" for one that
	// no machine has: the i-th is the i-th volume's.
	Instances []string `json:"instances,omitempty"`
}

// applyNotes says how far an apply is.
type applyNotes struct {
	Begun bool `json:"begun,omitempty"` // volumes may have been written to
	// Running are the machines that are stopped for it and started again.
	Running []string `json:"running,omitempty"`
	Forced  []string `json:"forced,omitempty"` // of them, those that did not end by themselves
	// Owed are machines that an earlier apply stopped and left so: they are
	// started, too.
	Owed []string `json:"owed,omitempty"`
	// Rolled: all volumes have their points' content; only machines are still to
	// be started, which may write.
	Rolled bool `json:"rolled,omitempty"`
}

// starts reports whether machines are started in the end.
func (n applyNotes) starts() bool { return len(n.Running)+len(n.Owed) > 0 }

// ApplySnapshots starts rolling each point's volume back in place.
func (s *Service) ApplySnapshots(ctx context.Context, in ApplySnapshots) (job.Job, error) {
	ids, err := s.checkSnapshotSet(in.SnapshotSet)
	if err != nil {
		return job.Job{}, err
	}
	volumes, err := s.volumesOfPoints(ctx, ids)
	if err != nil {
		return job.Job{}, err
	}
	if err := s.refuseWriters(ctx, in, volumes); err != nil {
		return job.Job{}, err
	}
	if err := s.checkTargets(ctx, volumes); err != nil {
		return job.Job{}, err
	}
	return s.submit(ctx, in.Origin, job.ApplySnapshots, func(tx Tx, j *job.Job) (any, error) {
		params := applyParams{Points: ids, Force: in.Force}
		taken := map[string]chain.ID{}
		for _, id := range ids {
			p, err := tx.Snapshot(in.Zone, id)
			if err != nil {
				return nil, err
			}
			if other := taken[p.ResourceID]; other != "" {
				return nil, errs.New(errs.Invalid, "snapshots %s and %s are both of %s; apply one point per resource", other, id, p.ResourceID)
			}
			taken[p.ResourceID] = id
		}
		for _, id := range ids {
			volumeID, err := s.checkApply(tx, in.Zone, id)
			if err != nil {
				return nil, err
			}
			v, err := tx.Volume(in.Zone, volumeID)
			if err != nil {
				return nil, err
			}
			params.Volumes, params.Instances = append(params.Volumes, volumeID), append(params.Instances, v.InstanceID)
		}
		j.ResourceIDs = ids
		if err := tx.Pin(j.ID, ids...); err != nil {
			return nil, err
		}
		if err := s.lockApply(tx, j.ID, in.Zone, params); err != nil {
			return nil, err
		}
		return params, changeVolumes(tx, params.Volumes, func(v *Volume) { v.Transition = "applying" })
	})
}

// volumesOfPoints are those of the points that are there still.
func (s *Service) volumesOfPoints(ctx context.Context, points []chain.ID) (volumes []Volume, err error) {
	err = s.store.View(ctx, func(tx Tx) error {
		points, err := loadSnapshots(tx, points)
		if err != nil {
			return err
		}
		for _, p := range points {
			v, err := tx.Volume("", p.ResourceID)
			switch {
			case err == nil:
				volumes = append(volumes, v)
			case !errs.Is(err, errs.NotFound):
				return err
			}
		}
		return nil
	})
	return volumes, err
}

// refuseWriters refuses to roll volumes back under connected clients.
func (s *Service) refuseWriters(ctx context.Context, in ApplySnapshots, volumes []Volume) error {
	if in.Force || s.lives == nil {
		return nil
	}
	var ids []string
	for _, v := range volumes {
		ids = append(ids, v.ID)
	}
	return s.refuseConnected(ctx, in.Zone, ids, "rolled back")
}

// checkApply says why a point cannot be applied, or to which volume it goes.
// A volume that holds a mixture passes: this is its way out.
func (s *Service) checkApply(tx Tx, zone, id string) (volumeID string, err error) {
	p, err := restorablePoint(tx, zone, id)
	if err != nil {
		return "", err
	}
	v, err := idleVolume(tx, zone, p.ResourceID)
	if errs.Is(err, errs.NotFound) {
		instead := "make a new volume of the snapshot instead"
		if IsInstance(p.ResourceID) {
			instead = "make an image of the snapshot with capture_instance and run a new instance from that"
		}
		return "", errs.Wrap(errs.Conflict, err, "%s, of which %s was taken, is gone; %s", named(p.ResourceID), id, instead)
	}
	if err != nil {
		return "", err
	}
	if err := otherDisk(p, v); err != nil {
		return "", err
	}
	return v.ID, fits(p, v.ID, v.SizeBytes)
}

func fits(p Snapshot, volumeID string, size int64) error {
	if p.VirtualSize > size {
		return errs.New(errs.Conflict, "snapshot %s has %d bytes, more than the %d of %s; resize the %s first", p.ID, p.VirtualSize, size, named(volumeID), Noun(volumeID))
	}
	return nil
}

// applyJob overwrites volumes with points. Before the first write it opens
// all volumes, passes the point of no return and marks all of them as
// mixtures; it may run any number of times from the top.
type applyJob struct{ s *Service }

// application is one term of an apply job.
type application struct {
	s       *Service
	run     *job.Run
	params  applyParams
	notes   applyNotes
	points  []Snapshot
	volumes []Volume
	open    []opened // closed ones are empty
}

// opened is a volume that nobody else uses, in one of two ways.
type opened struct {
	target volume.Target
	roller volume.Roller // of a live one
}

func (h applyJob) Do(ctx context.Context, run *job.Run) error {
	a := &application{s: h.s, run: run}
	if err := a.load(ctx); err != nil {
		return err
	}
	if !a.notes.Rolled {
		if err := a.rollAll(ctx); err != nil {
			return err
		}
		a.s.fillSoon()
	}
	if !a.notes.starts() {
		return nil
	}
	return a.startMachines(ctx)
}

// rollAll overwrites all volumes and commits that.
func (a *application) rollAll(ctx context.Context) error {
	defer a.close()
	// What no machine has comes first: if it is busy no machine is stopped in vain.
	if err := a.openAll(ctx, func(v Volume) bool { return v.InstanceID == "" }); err != nil {
		return err
	}
	if err := a.stopMachines(ctx); err != nil {
		return err
	}
	if err := a.openAll(ctx, func(Volume) bool { return true }); err != nil {
		return err
	}
	if err := a.begin(ctx); err != nil {
		return err
	}
	m := &meter{run: a.run}
	for _, v := range a.volumes {
		m.totals = append(m.totals, v.SizeBytes)
	}
	if slices.ContainsFunc(a.volumes, a.s.isLive) {
		a.s.bases.mu.Lock()
		defer a.s.bases.mu.Unlock()
	}
	for i := range a.points {
		progress := m.part(i)
		if err := a.patiently(ctx, true, func() error { return a.overwrite(ctx, i, progress) }); err != nil {
			return err
		}
	}
	if err := a.run.Flush(ctx); err != nil {
		return err
	}
	return a.commit(ctx)
}

// openAll opens those of the volumes that are not open yet. Once volumes were
// written, giving up costs a volume: be patient then.
func (a *application) openAll(ctx context.Context, which func(v Volume) bool) error {
	for i, v := range a.volumes {
		if !which(v) {
			continue
		}
		err := a.patiently(ctx, a.notes.Begun, func() error { return a.openOne(ctx, i) })
		if err != nil {
			return err
		}
	}
	return nil
}

// commit gives the volumes to everybody. It ends the job too, unless machines
// are to be started: then it notes that only this is left.
func (a *application) commit(ctx context.Context) error {
	rollers := map[string]volume.Roller{}
	for i, v := range a.volumes {
		if r := a.open[i].roller; r != nil {
			rollers[v.ID] = r
		}
	}
	if !a.notes.starts() {
		return handOver(rollers, func() error {
			return a.s.store.Update(ctx, func(tx Tx) error {
				if err := a.moveAll(tx, ""); err != nil {
					return err
				}
				return a.s.finish(tx, a.run, job.Outcome{Status: job.Successful})
			})
		})
	}
	notes := a.notes
	notes.Rolled = true
	return a.run.SaveStateWith(notes, func(id string, term int64, raw json.RawMessage) error {
		return handOver(rollers, func() error {
			return a.s.store.Update(ctx, func(tx Tx) error {
				// A machine that is served again is not yet somebody else's.
				if err := a.moveAll(tx, restarting); err != nil {
					return err
				}
				return tx.SaveJobState(id, term, raw)
			})
		})
	})
}

// overwrite gives the i-th volume the content of its point.
func (a *application) overwrite(ctx context.Context, i int, progress engine.Progress) error {
	if err := a.openOne(ctx, i); err != nil {
		return err
	}
	v := a.volumes[i]
	if r := a.open[i].roller; r != nil {
		if err := a.roll(ctx, r, a.points[i], v); err != nil {
			return err
		}
		progress(v.SizeBytes, v.SizeBytes)
		return nil
	}
	done, err := a.s.engine.Restore(ctx, a.points[i].ref(), a.open[i].target, progress)
	if err != nil {
		// What the target holds now is unknown, a failed sync above all: never
		// go on with it.
		a.closeOne(i)
		return err
	}
	a.run.Log.Info("volume restored", "snapshot", a.points[i].ID, "volume", v.ID,
		"written_bytes", done.WrittenBytes, "zeroed_bytes", done.ZeroedBytes, "equal_bytes", done.EqualBytes)
	return nil
}

// roll gives a live volume the content of a point at once.
func (a *application) roll(ctx context.Context, r volume.Roller, p Snapshot, v Volume) error {
	tree, err := a.s.engine.OpenTree(ctx, p.ref())
	if err != nil {
		return err
	}
	from, err := a.head(ctx, v)
	if err != nil {
		// It only spares work.
		a.run.Log.Warn("open the head of a volume that is rolled back", "volume", v.ID, "error", err)
	}
	done, err := r.Roll(ctx, tree, from)
	if from != nil {
		err = errors.Join(err, from.Close())
	}
	if err = errors.Join(err, tree.Close()); err != nil {
		return err
	}
	a.run.Log.Info("volume rolled back", "snapshot", p.ID, "volume", v.ID, "swapped_bytes", done.Swapped, "equal_bytes", done.Relabelled)
	return nil
}

// head opens the point that a volume's content descends from; nil: it has none.
func (a *application) head(ctx context.Context, v Volume) (volume.Tree, error) {
	var head Snapshot
	var ok bool
	err := a.s.store.View(ctx, func(tx Tx) (err error) {
		head, ok, err = tx.Head(v.ID)
		return err
	})
	if err != nil || !ok || head.Damaged {
		return nil, err
	}
	return a.s.engine.OpenTree(ctx, head.ref())
}

func (a *application) load(ctx context.Context) error {
	if err := a.run.Params(&a.params); err != nil {
		return err
	}
	if err := a.run.LoadState(&a.notes); err != nil {
		return err
	}
	a.open = make([]opened, len(a.params.Volumes))
	return a.s.store.View(ctx, func(tx Tx) (err error) {
		if a.points, err = loadSnapshots(tx, a.params.Points); err != nil {
			return err
		}
		if a.volumes, err = loadVolumes(tx, a.params.Volumes); err != nil || a.notes.Begun {
			return err
		}
		a.notes.Owed, err = a.params.owed(tx)
		return err
	})
}

// openOne opens the i-th volume for being overwritten if it is not open.
func (a *application) openOne(ctx context.Context, i int) (err error) {
	v, o := a.volumes[i], &a.open[i]
	if o.target != nil || o.roller != nil {
		return nil
	}
	if a.s.isLive(v) {
		o.roller, err = a.s.lives.OpenRoller(ctx, v.spec(), a.params.Force)
		return err
	}
	d, err := a.s.driver(v)
	if err != nil {
		return err
	}
	if o.target, err = d.OpenTarget(ctx, v.spec()); err != nil {
		return err
	}
	return fits(a.points[i], v.ID, o.target.Size())
}

func (a *application) closeOne(i int) {
	o := a.open[i]
	a.open[i] = opened{}
	var err error
	switch {
	case o.roller != nil:
		err = o.roller.Close()
	case o.target != nil:
		err = o.target.Close()
	}
	if err != nil {
		// All that counts was synced, or is written again.
		a.run.Log.Warn("close a volume", "volume", a.volumes[i].ID, "error", err)
	}
}

func (a *application) close() {
	for i := range a.open {
		a.closeOne(i)
	}
}

// begin passes the point of no return and marks the volumes, in this order:
// a mark is a promise that the job goes on until the volume is whole.
func (a *application) begin(ctx context.Context) error {
	a.notes.Begun = true
	if err := a.run.SaveState(ctx, a.notes, true); err != nil {
		return err
	}
	// A live volume changes from one state to the other in one step.
	var mixed []string
	for _, v := range a.volumes {
		if !a.s.isLive(v) {
			mixed = append(mixed, v.ID)
		}
	}
	return a.s.store.Update(ctx, func(tx Tx) error {
		return changeVolumes(tx, mixed, func(v *Volume) { v.MixedJob = a.run.ID() })
	})
}

// moveAll clears the marks and moves the heads.
func (a *application) moveAll(tx Tx, transition string) error {
	err := changeVolumes(tx, a.params.Volumes, func(v *Volume) { v.MixedJob, v.Transition = "", transition })
	if err != nil {
		return err
	}
	for i, p := range a.points {
		if a.s.isLive(a.volumes[i]) {
			if err := rebase(tx, p.ResourceID, p.ID); err != nil {
				return err
			}
		}
		if err := moveHead(tx, p.ResourceID, chain.HeadAfterApply(p.Point)); err != nil {
			return err
		}
	}
	return nil
}

// patiently tries again a few times if the error may pass and if asked to.
func (a *application) patiently(ctx context.Context, again bool, try func() error) error {
	const tries = 4
	wait := a.s.retry
	for n := 1; ; n++ {
		err := try()
		if err == nil || !again || n == tries || ctx.Err() != nil || !mayPass(err) {
			return err
		}
		a.run.Log.Warn("apply stopped; trying again", "error", err, "after", wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), err)
		case <-timer.C:
		}
		wait *= 2
	}
}

// mayPass reports whether waiting may help.
func mayPass(err error) bool {
	switch errs.KindOf(err) {
	case errs.Busy, errs.Unavailable, errs.Full:
		return true
	}
	return false
}
