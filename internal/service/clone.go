package service

import (
	"context"
	"errors"
	"fmt"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/volume"
)

// cloneParams is the input of a CreateVolumeFromSnapshot job.
type cloneParams struct {
	Point  chain.ID `json:"point"`
	Volume string   `json:"volume"`
}

// CreateVolumeFromSnapshot starts making a managed volume with a point's
// content, type and exact size, whatever kind of volume the point is of.
func (s *Service) CreateVolumeFromSnapshot(ctx context.Context, in CloneSnapshot) (job.Job, error) {
	ids, err := s.checkSnapshotSet(SnapshotSet{Origin: in.Origin, IDs: []string{in.Snapshot}})
	if err != nil {
		return job.Job{}, err
	}
	if err := checkName("volume_name", in.VolumeName); err != nil {
		return job.Job{}, err
	}
	if in.OnDemand && s.lives == nil {
		return job.Job{}, errs.New(errs.Conflict, "this server has no NBD server, so a volume cannot be read on demand; leave on_demand out")
	}
	return s.submit(ctx, in.Origin, job.CreateVolumeFromSnapshot, func(tx Tx, j *job.Job) (any, error) {
		p, err := restorablePoint(tx, in.Zone, ids[0])
		if err != nil {
			return nil, err
		}
		if p.ResourceType != resourceVolume {
			return nil, errs.New(errs.Invalid, "snapshot %s is of %s; only a volume's snapshot makes a volume, use capture_instance for this one", p.ID, named(p.ResourceID))
		}
		v := newManaged(in.Zone, in.VolumeName, p.VolumeType, p.VirtualSize, "creating", *j)
		v.OnDemand = in.OnDemand
		if err := tx.InsertVolume(v); err != nil {
			return nil, err
		}
		j.ResourceIDs = []string{v.ID}
		if err := tx.Pin(j.ID, p.ID); err != nil {
			return nil, err
		}
		return cloneParams{Point: p.ID, Volume: v.ID}, tx.Lock(j.ID, v.ID)
	})
}

// newManaged is the row of a managed volume that a job is about to make.
func newManaged(zone, name string, typ int, size int64, transition string, j job.Job) Volume {
	return Volume{
		ID: newID(volumePrefix), Zone: zone, Name: name, Type: typ, Driver: DriverManaged, SizeBytes: size,
		Status: VolumePending, Transition: transition, CreateTime: j.CreateTime, StatusTime: j.CreateTime,
	}
}

// cloneJob fills a new volume from a point.
type cloneJob struct{ s *Service }

func (h cloneJob) Do(ctx context.Context, run *job.Run) error {
	var params cloneParams
	if err := run.Params(&params); err != nil {
		return err
	}
	var p Snapshot
	var v Volume
	err := h.s.store.View(ctx, func(tx Tx) (err error) {
		if p, err = tx.Snapshot("", params.Point); err != nil {
			return err
		}
		v, err = tx.Volume("", params.Volume)
		return err
	})
	if err != nil {
		return err
	}
	if h.s.isLive(v) {
		return h.s.cloneLive(ctx, run, p, v)
	}
	err = h.s.fill(ctx, v, func(target volume.Target) error {
		done, err := h.s.engine.Restore(ctx, p.ref(), target, run.Progress)
		if err == nil {
			run.Log.Info("volume filled", "snapshot", p.ID, "volume", v.ID, "written_bytes", done.WrittenBytes)
		}
		return err
	})
	if err != nil {
		return err
	}
	return h.s.finishNewVolumes(ctx, run, v.ID)
}

// cloneLive makes a volume that is usable at once: its bytes are read from the
// point when somebody wants them, until the filler has fetched them all.
func (s *Service) cloneLive(ctx context.Context, run *job.Run, p Snapshot, v Volume) error {
	s.bases.mu.Lock()
	defer s.bases.mu.Unlock()
	if err := s.cloneTree(ctx, p, v); err != nil {
		return err
	}
	run.Progress(v.SizeBytes, v.SizeBytes)
	err := s.settleNew(ctx, run, []string{v.ID}, func(tx Tx) error {
		if err := rebase(tx, v.ID, p.ID); err != nil {
			return err
		}
		return s.finish(tx, run, job.Outcome{Status: job.Successful})
	})
	if err == nil {
		s.fillSoon()
	}
	return err
}

// cloneTree makes a live volume of a point. bases.mu is held until the pin has
// followed.
func (s *Service) cloneTree(ctx context.Context, p Snapshot, v Volume) error {
	tree, err := s.engine.OpenTree(ctx, p.ref())
	if err != nil {
		return err
	}
	if err := errors.Join(s.lives.Clone(ctx, v.spec(), tree), tree.Close()); err != nil {
		return fmt.Errorf("create %s: %w", named(v.ID), err)
	}
	return nil
}

// fill makes a new managed volume, or one that an earlier term left behind
// empty again, and lets write put its content there and sync it.
func (s *Service) fill(ctx context.Context, v Volume, write func(target volume.Target) error) error {
	d, err := s.driver(v)
	if err != nil {
		return err
	}
	if err := d.Create(ctx, v.spec()); err != nil {
		return fmt.Errorf("create volume %s: %w", v.ID, err)
	}
	target, err := d.OpenTarget(ctx, v.spec())
	if err != nil {
		return fmt.Errorf("open volume %s: %w", v.ID, err)
	}
	return errors.Join(write(target), target.Close())
}

// finishNewVolumes makes volumes available, ends their job and lets clients
// connect.
func (s *Service) finishNewVolumes(ctx context.Context, run *job.Run, ids ...string) error {
	return s.settleNew(ctx, run, ids, func(tx Tx) error {
		return s.finish(tx, run, job.Outcome{Status: job.Successful})
	})
}

// settleNew makes new volumes everybody's, or their machine's, in a transaction
// that ends with end.
func (s *Service) settleNew(ctx context.Context, run *job.Run, ids []string, end func(tx Tx) error) (err error) {
	if err := run.Flush(ctx); err != nil {
		return err
	}
	rollers := map[string]volume.Roller{}
	defer func() {
		for _, r := range rollers {
			err = errors.Join(err, r.Close())
		}
	}()
	if err := s.openNew(ctx, rollers, ids); err != nil {
		return err
	}
	return handOver(rollers, func() error {
		return s.store.Update(ctx, func(tx Tx) error {
			err := changeVolumes(tx, ids, func(v *Volume) {
				v.Status, v.StatusTime, v.Transition = VolumeAvailable, s.now(), ""
				if v.InstanceID != "" {
					v.Status = VolumeInUse
				}
			})
			if err != nil {
				return err
			}
			return end(tx)
		})
	})
}

// openNew opens those of new volumes that are live. Some may be open when it
// fails.
func (s *Service) openNew(ctx context.Context, rollers map[string]volume.Roller, ids []string) error {
	var volumes []Volume
	err := s.store.View(ctx, func(tx Tx) (err error) {
		volumes, err = loadVolumes(tx, ids)
		return err
	})
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if !s.isLive(v) {
			continue
		}
		r, err := s.lives.OpenRoller(ctx, v.spec(), false)
		if err != nil {
			return fmt.Errorf("open volume %s: %w", v.ID, err)
		}
		rollers[v.ID] = r
	}
	return nil
}

// Undo removes the volume.
func (h cloneJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params cloneParams
	if err := run.Params(&params); err != nil {
		return err
	}
	return h.s.removeNewVolumes(ctx, run, out, params.Volume)
}

// removeNewVolumes takes back the making of managed volumes and ends the job.
func (s *Service) removeNewVolumes(ctx context.Context, run *job.Run, out job.Outcome, ids ...string) error {
	var volumes []Volume
	err := s.store.View(ctx, func(tx Tx) (err error) {
		volumes, err = loadVolumes(tx, ids)
		return err
	})
	if errs.Is(err, errs.NotFound) {
		// Ceased already: an earlier try ended the job and its answer was lost.
		return fmt.Errorf("undo job %s: %w: %w", run.ID(), job.ErrFenced, err)
	}
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if v.Status != VolumePending {
			return fmt.Errorf("undo job %s: volume %s is %s: %w", run.ID(), v.ID, v.Status, job.ErrFenced)
		}
		d, err := s.driver(v)
		if err != nil {
			return err
		}
		if err := d.Remove(ctx, v.spec()); err != nil {
			return fmt.Errorf("remove volume %s: %w", v.ID, err)
		}
	}
	return s.store.Update(ctx, func(tx Tx) error {
		err := changeVolumes(tx, ids, func(v *Volume) {
			v.Status, v.StatusTime, v.Transition = VolumeCeased, s.now(), ""
		})
		if err != nil {
			return err
		}
		return s.finish(tx, run, out)
	})
}
