package service

import (
	"context"
	"errors"
	"fmt"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/job"
)

// ImageFilter selects a page of images, newest first, then ID.
type ImageFilter struct {
	Zone     string
	IDs      []string
	Statuses []chain.Status // empty: all but deleted and ceased, unless IDs are given
	Search   string
	Offset   int
	Limit    int
}

// ImageSet names images.
type ImageSet struct {
	Origin
	IDs []string
}

// Images lists images: the rows of their points.
func (s *Service) Images(ctx context.Context, f ImageFilter) (SnapshotPage, error) {
	return s.Snapshots(ctx, SnapshotFilter{
		Zone: f.Zone, IDs: f.IDs, Statuses: f.Statuses, Search: f.Search, Offset: f.Offset, Limit: f.Limit, Images: true,
	})
}

// RenameImages changes name and description of images, all or none.
func (s *Service) RenameImages(ctx context.Context, in Rename) error {
	ids, err := s.checkImages(ImageSet{Origin: in.Origin, IDs: in.IDs})
	if err != nil {
		return err
	}
	if err := in.check("image_name"); err != nil {
		return err
	}
	return s.store.Update(ctx, func(tx Tx) error {
		for _, id := range ids {
			p, err := idlePoint(tx, in.Zone, id)
			if err != nil {
				return err
			}
			p.Name, p.Description = in.apply(p.Name, p.Description)
			if err := tx.UpdateSnapshot(p); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Service) checkImages(in ImageSet) ([]string, error) {
	if err := s.checkZone(in.Zone); err != nil {
		return nil, err
	}
	return checkIDs("image", imagePrefix, in.IDs)
}

// ExportImage opens an image for streaming. Its content stays until Close.
func (s *Service) ExportImage(ctx context.Context, zone, id string) (engine.Image, error) {
	if _, err := s.checkImages(ImageSet{Origin: Origin{Zone: zone}, IDs: []string{id}}); err != nil {
		return nil, err
	}
	return s.exportPoint(ctx, zone, id)
}

// DeleteImages starts deleting images. Machines that were run from one, and
// still read from it, keep its content until they have fetched all of it.
func (s *Service) DeleteImages(ctx context.Context, in ImageSet) (job.Job, error) {
	ids, err := s.checkImages(in)
	if err != nil {
		return job.Job{}, err
	}
	return s.submit(ctx, in.Origin, job.DeleteImages, func(tx Tx, j *job.Job) (any, error) {
		for _, id := range ids {
			if _, err := idlePoint(tx, in.Zone, id); err != nil {
				return nil, err
			}
		}
		j.ResourceIDs = ids
		if err := tx.Lock(j.ID, ids...); err != nil {
			return nil, err
		}
		return deleteParams{Points: ids}, changeSnapshots(tx, ids, func(p *Snapshot) { p.Transition = "deleting" })
	})
}

// deleteImagesJob moves images to the recycle bin: rows only. There they cease
// when their time is over and nobody pins them.
type deleteImagesJob struct{ s *Service }

func (h deleteImagesJob) Do(ctx context.Context, run *job.Run) error {
	return deleteJob(h).Do(ctx, run)
}

func (h deleteImagesJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	return deleteJob(h).Undo(ctx, run, out)
}

// newImage is the pending row of an image that a job is about to make.
func (s *Service) newImage(o Origin, name string, typ int, size int64, j job.Job) Snapshot {
	id := newID(imagePrefix)
	return Snapshot{
		Point: chain.Point{
			ID: id, ResourceID: id, RootID: id, Full: true, Status: chain.Pending, VirtualSize: size, SnapshotTime: j.CreateTime,
		},
		Zone: o.Zone, Name: name, Transition: "creating", CreateTime: j.CreateTime, StatusTime: j.CreateTime,
		ResourceType: ResourceImage, ResourceName: name, VolumeType: typ, GroupID: j.ID, JobID: j.ID,
		Consistency: consistencyCrash, CBT: engine.CBTScan,
	}
}

// captureParams is the input of a CaptureInstanceFromSnapshot job.
type captureParams struct {
	Point chain.ID `json:"point"`
	Image chain.ID `json:"image"`
}

// CaptureInstance starts making an image of an instance's point. The image is
// independent of the point: it lives on when that is deleted.
func (s *Service) CaptureInstance(ctx context.Context, in CaptureInstance) (job.Job, error) {
	ids, err := s.checkSnapshotSet(SnapshotSet{Origin: in.Origin, IDs: []string{in.Snapshot}})
	if err != nil {
		return job.Job{}, err
	}
	if err := checkName("image_name", in.ImageName); err != nil {
		return job.Job{}, err
	}
	return s.submit(ctx, in.Origin, job.CaptureInstanceFromSnapshot, func(tx Tx, j *job.Job) (any, error) {
		p, err := restorablePoint(tx, in.Zone, ids[0])
		if err != nil {
			return nil, err
		}
		if p.ResourceType != resourceInstance {
			return nil, errs.New(errs.Invalid, "snapshot %s is of %s; only an instance's snapshot makes an image, use create_volume for this one", p.ID, named(p.ResourceID))
		}
		image := s.newImage(in.Origin, in.ImageName, p.VolumeType, p.VirtualSize, *j)
		image.SnapshotTime, image.Consistency = p.SnapshotTime, p.Consistency
		image.Reason = fmt.Sprintf("it has the content of %s, a snapshot of %s", p.ID, named(p.ResourceID))
		if err := tx.InsertSnapshot(image); err != nil {
			return nil, err
		}
		j.ResourceIDs = []string{image.ID}
		if err := tx.Pin(j.ID, p.ID); err != nil {
			return nil, err
		}
		return captureParams{Point: p.ID, Image: image.ID}, tx.Lock(j.ID, image.ID)
	})
}

// captureInstanceJob makes an image of a point: a manifest, no data.
type captureInstanceJob struct{ s *Service }

func (h captureInstanceJob) Do(ctx context.Context, run *job.Run) error {
	var params captureParams
	if err := run.Params(&params); err != nil {
		return err
	}
	var p Snapshot
	err := h.s.store.View(ctx, func(tx Tx) (err error) {
		p, err = tx.Snapshot("", params.Point)
		return err
	})
	if err != nil {
		return err
	}
	if err := h.s.engine.VerifyReadable(ctx, p.ref()); err != nil {
		return err
	}
	return h.s.storeImage(ctx, run, params.Image, func(ctx context.Context, session engine.Session, image Snapshot) (engine.Captured, error) {
		return session.Copy(ctx, image.meta(1), p.ref())
	})
}

func (h captureInstanceJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params captureParams
	if err := run.Params(&params); err != nil {
		return err
	}
	return h.s.undoImage(ctx, run, params.Image, out)
}

// storeImage makes an image's content durable, makes the image real, and ends
// the job in the same transaction.
func (s *Service) storeImage(ctx context.Context, run *job.Run, id chain.ID,
	store func(ctx context.Context, session engine.Session, image Snapshot) (engine.Captured, error),
) error {
	var image Snapshot
	err := s.store.Update(ctx, func(tx Tx) (err error) {
		if image, err = tx.Snapshot("", id); err != nil {
			return err
		}
		return tx.PutSession(Session{ID: run.ID(), Term: run.Term(), State: SessionActive})
	})
	if err != nil {
		return err
	}
	session, err := s.engine.OpenSession(ctx, run.ID(), run.Term(), registry{s.store, run.ID(), run.Term()})
	if err != nil {
		return fmt.Errorf("open the session: %w", err)
	}
	defer func() {
		if err := session.Close(); err != nil {
			run.Log.Warn("close the session", "error", err)
		}
	}()
	for {
		got, err := store(ctx, session, image)
		if err != nil {
			return err
		}
		if err := run.Flush(ctx); err != nil {
			return err
		}
		hits := session.Hits()
		err = s.store.Update(ctx, func(tx Tx) error {
			if err := commitSession(tx, run.ID(), run.Term(), hits); err != nil {
				return err
			}
			if err := s.commitImage(tx, id, got); err != nil {
				return err
			}
			return s.finish(tx, run, job.Outcome{Status: job.Successful})
		})
		var gone goneError
		if !errors.As(err, &gone) {
			if err != nil {
				return err
			}
			break
		}
		run.Log.Info("packs that the image refers to are being deleted; storing it again", "packs", len(gone.packs))
		if err := session.Retake(ctx, gone.packs, []engine.Captured{got}); err != nil {
			return err
		}
	}
	if err := session.Committed(context.WithoutCancel(ctx)); err != nil {
		run.Log.Warn("publish the session's chunks to the index", "error", err) // costs space, never data
	}
	return nil
}

func (s *Service) commitImage(tx Tx, id chain.ID, got engine.Captured) error {
	p, err := tx.Snapshot("", id)
	if err != nil {
		return err
	}
	p.Status, p.StatusTime, p.Transition, p.IsTaken = chain.Available, s.now(), "", true
	p.SizeBytes, p.CBT = got.AddedBytes, got.CBT
	p.ManifestPack, p.ManifestHash = got.Ref.Pack, got.Ref.Hash
	if err := tx.UpdateSnapshot(p); err != nil {
		return err
	}
	return sumChain(tx, id)
}

// undoImage takes the making of an image back, as createJob.Undo does a
// point's.
func (s *Service) undoImage(ctx context.Context, run *job.Run, id chain.ID, out job.Outcome) error {
	committed, err := s.abortSession(ctx, run.ID(), run.Term())
	if err != nil {
		return err
	}
	if committed {
		return fmt.Errorf("undo job %s: its session is committed: %w", run.ID(), job.ErrFenced)
	}
	return s.store.Update(ctx, func(tx Tx) error {
		err := changeSnapshots(tx, []string{id}, func(p *Snapshot) {
			p.Status, p.StatusTime, p.Transition = chain.Ceased, s.now(), ""
		})
		if err != nil {
			return err
		}
		return s.finish(tx, run, out)
	})
}
