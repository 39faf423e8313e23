package service

import (
	"context"
	"fmt"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/job"
	"cairn/internal/volume"
)

// ImportImage makes an image from content that a client sends; see
// ImportVolume.
type ImportImage struct {
	Origin
	Name      string
	SizeBytes int64
	Stream    Inflow
}

// importImageParams is the input of an ImportImage job.
type importImageParams struct {
	Image     chain.ID `json:"image"`
	SizeBytes int64    `json:"size_bytes"`
}

// staging is the managed volume, without a row, through which an image is
// imported: the stream comes in the client's order and once, and is captured
// only when it is whole.
func (p importImageParams) staging() Volume {
	return Volume{ID: p.Image, Driver: DriverManaged, SizeBytes: p.SizeBytes}
}

// stagingPrefix marks the holder of a lock that stands for an image's staging
// volume, so that a crash between the job's end and its removal is not
// forgotten.
const stagingPrefix = "staging:"

// ImportImage makes an image from a stream. It returns when the job has ended:
// the job says whether the stream is stored whole.
func (s *Service) ImportImage(ctx context.Context, in ImportImage) (job.Job, error) {
	if err := s.checkZone(in.Zone); err != nil {
		return job.Job{}, err
	}
	if err := checkName("image_name", in.Name); err != nil {
		return job.Job{}, err
	}
	if err := checkSize(in.SizeBytes); err != nil {
		return job.Job{}, err
	}
	var params importImageParams
	insert := func(owner string) (job.Job, error) {
		j := s.newJob(in.Origin, job.ImportImage)
		j.Status, j.BeginTime, j.Owner, j.Term = job.Working, j.CreateTime, owner, 1
		return s.insertJob(ctx, j, func(tx Tx, j *job.Job) (any, error) {
			image := s.newImage(in.Origin, in.Name, 0, in.SizeBytes, *j)
			image.Reason = "it was imported"
			if err := tx.InsertSnapshot(image); err != nil {
				return nil, err
			}
			j.ResourceIDs = []string{image.ID}
			params = importImageParams{Image: image.ID, SizeBytes: in.SizeBytes}
			if err := tx.Lock(stagingPrefix+image.ID, stagingPrefix+image.ID); err != nil {
				return nil, err
			}
			return params, tx.Lock(j.ID, image.ID)
		})
	}
	j, err := s.runner.Inline(ctx, insert, func(ctx context.Context, run *job.Run) error {
		return s.importImage(ctx, run, params, in.Stream)
	})
	if err != nil {
		return job.Job{}, err
	}
	return s.Job(context.WithoutCancel(ctx), j.ID)
}

func (s *Service) importImage(ctx context.Context, run *job.Run, params importImageParams, in Inflow) error {
	v := params.staging()
	m := &meter{run: run, totals: []int64{v.SizeBytes, v.SizeBytes}}
	err := s.fill(ctx, v, func(target volume.Target) error {
		if err := s.engine.ImportTo(ctx, in, v.SizeBytes, target, m.part(0)); err != nil {
			return err
		}
		return s.storeImage(ctx, run, params.Image, func(ctx context.Context, session engine.Session, image Snapshot) (engine.Captured, error) {
			return session.Capture(ctx, engine.CaptureSpec{Meta: image.meta(1), Source: stagedSource{target}}, m.part(1))
		})
	})
	if err != nil {
		return err
	}
	// The image is real; what is left costs space, and the next start does it.
	if err := s.removeStaging(context.WithoutCancel(ctx), params.Image); err != nil {
		run.Log.Warn("remove what an image was imported through", "image", params.Image, "error", err)
	}
	return nil
}

// removeStaging may be run again, also if there is nothing.
func (s *Service) removeStaging(ctx context.Context, image chain.ID) error {
	v := importImageParams{Image: image}.staging()
	if err := s.drivers[DriverManaged].Remove(ctx, v.spec()); err != nil {
		return fmt.Errorf("remove what image %s was imported through: %w", image, err)
	}
	return s.store.Update(ctx, func(tx Tx) error { return release(tx, stagingPrefix+image) })
}

// stagedSource is a volume that nobody else has, being captured.
type stagedSource struct{ volume.Target }

func (stagedSource) Release(context.Context, int64, int64) error { return nil }

func (stagedSource) Changed(context.Context, volume.Checkpoint, int64) (extent.Range, error) {
	return extent.Range{}, volume.ErrNoBase
}

func (stagedSource) Audit(context.Context, volume.Checkpoint) ([]extent.Range, error) {
	return nil, nil
}

// importImageJob is what is left of an import whose process died: see
// importJob.
type importImageJob struct{ s *Service }

func (h importImageJob) Do(context.Context, *job.Run) error {
	return errs.New(errs.Unavailable, "the server stopped before the whole stream was stored; import the image again")
}

func (h importImageJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params importImageParams
	if err := run.Params(&params); err != nil {
		return err
	}
	if err := h.s.removeStaging(ctx, params.Image); err != nil {
		return err
	}
	return h.s.undoImage(ctx, run, params.Image, out)
}
