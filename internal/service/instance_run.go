package service

import (
	"context"
	"encoding/json"
	"fmt"

	"cairn/internal/compute"
	"cairn/internal/errs"
	"cairn/internal/job"
)

// maxInstancesPerCall bounds a call, as each takes a process and its memory.
const maxInstancesPerCall = 100

// RunInstances asks for machines that are run from an image.
type RunInstances struct {
	Origin
	Image  string
	Name   string
	CPUs   int
	Memory int64 // bytes
	Count  int
}

// runParams is the input of a RunInstances job.
type runParams struct {
	Image     string   `json:"image"`
	Instances []string `json:"instances"`
}

// runNotes says how far it is.
type runNotes struct {
	Made bool `json:"made,omitempty"` // the system disks are there, and the machines'
}

// RunInstances starts making and running machines, all or none. Their system
// disks are clones of the image and usable at once.
func (s *Service) RunInstances(ctx context.Context, in RunInstances) (job.Job, error) {
	if err := s.checkZone(in.Zone); err != nil {
		return job.Job{}, err
	}
	images, err := checkIDs("image", imagePrefix, []string{in.Image})
	if err != nil {
		return job.Job{}, err
	}
	if err := checkName("instance_name", in.Name); err != nil {
		return job.Job{}, err
	}
	switch {
	case in.Count < 1 || in.Count > maxInstancesPerCall:
		return job.Job{}, errs.New(errs.Invalid, "count is %d; 1 to %d instances can be run in one call", in.Count, maxInstancesPerCall)
	case in.CPUs < 1 || in.CPUs > compute.MaxCPUs:
		return job.Job{}, errs.New(errs.Invalid, "cpu is %d; an instance has 1 to %d processors", in.CPUs, compute.MaxCPUs)
	case in.Memory < compute.MinMemory || in.Memory > compute.MaxMemory:
		return job.Job{}, errs.New(errs.Invalid, "memory is %d MB; an instance has %d to %d MB", in.Memory>>20, compute.MinMemory>>20, int64(compute.MaxMemory)>>20)
	}
	return s.submit(ctx, in.Origin, job.RunInstances, func(tx Tx, j *job.Job) (any, error) {
		image, err := restorablePoint(tx, in.Zone, images[0])
		if err != nil {
			return nil, err
		}
		if err := s.needMachines(); err != nil {
			return nil, err
		}
		params := runParams{Image: image.ID}
		for range in.Count {
			v := newManaged(in.Zone, in.Name, image.VolumeType, image.VirtualSize, "creating", *j)
			v.ID = newID(instancePrefix)
			v.InstanceID, v.Device, v.Image = v.ID, deviceName(0), image.ID
			v.CPUs, v.Memory = in.CPUs, in.Memory
			if err := tx.InsertVolume(v); err != nil {
				return nil, err
			}
			params.Instances = append(params.Instances, v.ID)
		}
		j.ResourceIDs = params.Instances
		if err := tx.Pin(j.ID, image.ID); err != nil {
			return nil, err
		}
		return params, tx.Lock(j.ID, params.Instances...)
	})
}

// deviceName is the n-th disk's name in the guest.
func deviceName(n int) string { return "vd" + string(rune('a'+n)) }

// runInstancesJob makes system disks and starts their machines.
type runInstancesJob struct{ s *Service }

func (h runInstancesJob) Do(ctx context.Context, run *job.Run) error {
	var params runParams
	var notes runNotes
	if err := run.Params(&params); err != nil {
		return err
	}
	if err := run.LoadState(&notes); err != nil {
		return err
	}
	if !notes.Made {
		if err := h.makeDisks(ctx, run, params); err != nil {
			return err
		}
	}
	for _, id := range params.Instances {
		if err := h.s.startMachine(ctx, id); err != nil {
			return fmt.Errorf("start instance %s: %w", id, err)
		}
	}
	return h.s.store.Update(ctx, func(tx Tx) error {
		err := changeVolumes(tx, params.Instances, func(v *Volume) { v.Transition, v.StatusTime = "", h.s.now() })
		if err != nil {
			return err
		}
		return h.s.finish(tx, run, job.Outcome{Status: job.Successful})
	})
}

// makeDisks clones the image, and makes the clones their machines'.
func (h runInstancesJob) makeDisks(ctx context.Context, run *job.Run, params runParams) error {
	var image Snapshot
	var disks []Volume
	err := h.s.store.View(ctx, func(tx Tx) (err error) {
		if image, err = tx.Snapshot("", params.Image); err != nil {
			return err
		}
		disks, err = loadVolumes(tx, params.Instances)
		return err
	})
	if err != nil {
		return err
	}
	h.s.bases.mu.Lock()
	defer h.s.bases.mu.Unlock()
	for i, v := range disks {
		if err := h.s.cloneTree(ctx, image, v); err != nil {
			return err
		}
		run.Progress(int64(i+1)*v.SizeBytes, int64(len(disks))*v.SizeBytes)
	}
	err = run.SaveStateWith(runNotes{Made: true}, func(id string, term int64, raw json.RawMessage) error {
		return h.s.settleNew(ctx, run, params.Instances, func(tx Tx) error {
			for _, instance := range params.Instances {
				if err := rebase(tx, instance, image.ID); err != nil {
					return err
				}
			}
			err := changeVolumes(tx, params.Instances, func(v *Volume) { v.Transition = "creating" })
			if err != nil {
				return err
			}
			return tx.SaveJobState(id, term, raw)
		})
	})
	if err == nil {
		h.s.fillSoon()
	}
	return err
}

// Undo removes the machines and their disks, started or not.
func (h runInstancesJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params runParams
	if err := run.Params(&params); err != nil {
		return err
	}
	for _, id := range params.Instances {
		err := h.s.withVolume(ctx, id, func(v Volume) error {
			if err := h.s.deleteMachine(ctx, v); err != nil {
				return err
			}
			return h.s.drivers[DriverManaged].Remove(ctx, v.spec())
		})
		if errs.Is(err, errs.NotFound) {
			return fmt.Errorf("undo job %s: %w: %w", run.ID(), job.ErrFenced, err) // ended already, and its answer was lost
		}
		if err != nil {
			return fmt.Errorf("remove the disk of instance %s: %w", id, err)
		}
	}
	return h.s.store.Update(ctx, func(tx Tx) error {
		if err := h.s.ceaseVolumes(tx, params.Instances); err != nil {
			return err
		}
		return h.s.finish(tx, run, out)
	})
}

// withVolume runs fn with a volume's present row, outside of the transaction.
func (s *Service) withVolume(ctx context.Context, id string, fn func(v Volume) error) error {
	var v Volume
	err := s.store.View(ctx, func(tx Tx) (err error) {
		v, err = tx.Volume("", id)
		return err
	})
	if err != nil {
		return err
	}
	return fn(v)
}

// freeDevice is the first name that none of a machine's volumes has.
func freeDevice(have []Volume) (string, error) {
	taken := map[string]bool{}
	for _, v := range have {
		taken[v.Device] = true
	}
	for n := 1; n < compute.MaxDisks; n++ {
		if name := deviceName(n); !taken[name] {
			return name, nil
		}
	}
	return "", errs.New(errs.Conflict, "the instance has %d disks already; detach some first", len(have))
}
