package service

import (
	"context"

	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/volume"
)

// ImportVolume makes a managed volume from a stream. It returns when the job
// has ended: the job says whether the stream is stored whole.
func (s *Service) ImportVolume(ctx context.Context, in ImportVolume) (job.Job, error) {
	if err := s.checkNewVolume(in.Zone, in.Name, in.SizeBytes); err != nil {
		return job.Job{}, err
	}
	// The request is what carries the stream, so the job is this process's
	// from the start: nobody else could go on with it.
	var v Volume
	insert := func(owner string) (job.Job, error) {
		j := s.newJob(in.Origin, job.ImportVolume)
		j.Status, j.BeginTime, j.Owner, j.Term = job.Working, j.CreateTime, owner, 1
		return s.insertJob(ctx, j, func(tx Tx, j *job.Job) (any, error) {
			v = newManaged(in.Zone, in.Name, in.Type, in.SizeBytes, "importing", *j)
			if err := tx.InsertVolume(v); err != nil {
				return nil, err
			}
			j.ResourceIDs = []string{v.ID}
			return volumesParams{Volumes: j.ResourceIDs}, tx.Lock(j.ID, v.ID)
		})
	}
	j, err := s.runner.Inline(ctx, insert, func(ctx context.Context, run *job.Run) error {
		err := s.fill(ctx, v, func(target volume.Target) error {
			return s.engine.ImportTo(ctx, in.Stream, in.SizeBytes, target, run.Progress)
		})
		if err != nil {
			return err
		}
		return s.finishNewVolumes(ctx, run, v.ID)
	})
	if err != nil {
		return job.Job{}, err
	}
	return s.Job(context.WithoutCancel(ctx), j.ID)
}

// importJob is what is left of an import whose process died: its stream is
// gone, so it fails and is taken back.
type importJob struct{ s *Service }

func (h importJob) Do(context.Context, *job.Run) error {
	return errs.New(errs.Unavailable, "the server stopped before the whole stream was stored; import the volume again")
}

func (h importJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params volumesParams
	if err := run.Params(&params); err != nil {
		return err
	}
	return h.s.removeNewVolumes(ctx, run, out, params.Volumes...)
}
