package service

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"cairn/internal/errs"
	"cairn/internal/job"
)

// ResizeVolumes starts growing managed volumes and system disks; the new tail is
// zeros. A guest that runs sees the new size after a restart.
func (s *Service) ResizeVolumes(ctx context.Context, in ResizeVolumes) (job.Job, error) {
	if err := s.checkZone(in.Zone); err != nil {
		return job.Job{}, err
	}
	ids, err := checkResources(in.IDs)
	if err != nil {
		return job.Job{}, err
	}
	if err := checkSize(in.SizeBytes); err != nil {
		return job.Job{}, err
	}
	return s.submit(ctx, in.Origin, job.ResizeVolumes, func(tx Tx, j *job.Job) (any, error) {
		for _, id := range ids {
			v, err := usableVolume(tx, in.Zone, id)
			if err != nil {
				return nil, err
			}
			if err := refuseForeign(v, "is resized with libvirt (virsh blockresize)"); err != nil {
				return nil, err
			}
			if v.Driver != DriverManaged {
				return nil, errs.New(errs.Conflict, "volume %s is registered; resize its file, device or export itself, the next snapshot notices", id)
			}
			if in.SizeBytes <= v.SizeBytes {
				return nil, errs.New(errs.Conflict, "%s has %d bytes; volumes only grow, so ask for more than that", named(id), v.SizeBytes)
			}
		}
		j.ResourceIDs = ids
		if err := tx.Lock(j.ID, ids...); err != nil {
			return nil, err
		}
		params := volumesParams{Volumes: ids, SizeBytes: in.SizeBytes}
		return params, changeVolumes(tx, ids, func(v *Volume) { v.Transition = "resizing" })
	})
}

// resizeJob grows volumes. What has grown stays so.
type resizeJob struct{ s *Service }

func (h resizeJob) Do(ctx context.Context, run *job.Run) error {
	var params volumesParams
	if err := run.Params(&params); err != nil {
		return err
	}
	if err := run.SaveState(ctx, struct{}{}, true); err != nil {
		return err
	}
	for _, id := range params.Volumes {
		err := h.s.withVolume(ctx, id, func(v Volume) error {
			return h.s.drivers[DriverManaged].Grow(ctx, v.spec(), params.SizeBytes)
		})
		if err != nil {
			return fmt.Errorf("grow volume %s: %w", id, err)
		}
	}
	h.s.fillSoon() // a fill ends when its volume grows
	return h.s.store.Update(ctx, func(tx Tx) error {
		err := changeVolumes(tx, params.Volumes, func(v *Volume) { v.SizeBytes, v.Transition = params.SizeBytes, "" })
		if err != nil {
			return err
		}
		info, err := h.info(tx, params.Volumes)
		if err != nil {
			return err
		}
		return h.s.finish(tx, run, job.Outcome{Status: job.Successful, Info: info})
	})
}

// info says which machines have to be restarted: QEMU asks an NBD server for a
// disk's size only when it opens it.
func (h resizeJob) info(tx Tx, ids []string) (string, error) {
	volumes, err := loadVolumes(tx, ids)
	var machines []string
	for _, v := range volumes {
		if v.InstanceID != "" && !slices.Contains(machines, v.InstanceID) {
			machines = append(machines, v.InstanceID)
		}
	}
	if len(machines) == 0 {
		return "", err
	}
	return "if it runs, restart it so that its guest sees the new size: " + strings.Join(machines, ", "), err
}

// Undo ends a resize that cannot go on; each row tells its volume's real size.
func (h resizeJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params volumesParams
	if err := run.Params(&params); err != nil {
		return err
	}
	sizes := map[string]int64{}
	for _, id := range params.Volumes {
		err := h.s.withVolume(ctx, id, func(v Volume) error {
			size, err := h.s.drivers[DriverManaged].Size(ctx, v.spec())
			sizes[id] = max(size, v.SizeBytes)
			if err != nil {
				// The row's size stands; the next snapshot sees the real one.
				run.Log.Warn("ask a volume for its size", "volume", id, "error", err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return h.s.store.Update(ctx, func(tx Tx) error {
		err := changeVolumes(tx, params.Volumes, func(v *Volume) { v.SizeBytes, v.Transition = sizes[v.ID], "" })
		if err != nil {
			return err
		}
		return h.s.finish(tx, run, out)
	})
}
