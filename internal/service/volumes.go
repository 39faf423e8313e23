package service

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/volume"
)

// Volumes lists volumes.
func (s *Service) Volumes(ctx context.Context, f VolumeFilter) (VolumePage, error) {
	if err := s.checkZone(f.Zone); err != nil {
		return VolumePage{}, err
	}
	var page VolumePage
	var rows []Volume
	names := map[string]string{}
	err := s.store.View(ctx, func(tx Tx) (err error) {
		if rows, page.Total, err = tx.Volumes(f); err != nil {
			return err
		}
		for _, v := range rows {
			if _, known := names[v.InstanceID]; known || v.InstanceID == "" {
				continue
			}
			m, err := tx.Volume("", v.InstanceID)
			if err != nil && !errs.Is(err, errs.NotFound) {
				return err
			}
			names[v.InstanceID] = m.Name
		}
		return nil
	})
	if err != nil {
		return VolumePage{}, err
	}
	for _, v := range rows {
		shown := s.view(ctx, v)
		shown.InstanceName = names[v.InstanceID]
		page.Volumes = append(page.Volumes, shown)
	}
	return page, nil
}

// view adds how a volume is served. That it cannot be told is no reason not to
// list it.
func (s *Service) view(ctx context.Context, v Volume) VolumeView {
	out := VolumeView{Volume: v}
	if !s.isLive(v) || !v.hasContent() {
		return out
	}
	var err error
	if out.Export, err = s.lives.Exported(ctx, v.spec()); err != nil && ctx.Err() == nil {
		s.log.Error("ask how a volume is served", "volume", v.ID, "error", err)
	}
	return out
}

// volumesParams is the input of jobs about volumes.
type volumesParams struct {
	Volumes   []string `json:"volumes"`
	SizeBytes int64    `json:"size_bytes,omitempty"` // resize: the new size
}

// CreateVolumes starts making empty managed volumes.
func (s *Service) CreateVolumes(ctx context.Context, in CreateVolumes) (job.Job, error) {
	if err := s.checkNewVolume(in.Zone, in.Name, in.SizeBytes); err != nil {
		return job.Job{}, err
	}
	if in.Count < 1 || in.Count > maxVolumesPerCall {
		return job.Job{}, errs.New(errs.Invalid, "count is %d; 1 to %d volumes can be made in one call", in.Count, maxVolumesPerCall)
	}
	return s.submit(ctx, in.Origin, job.CreateVolume, func(tx Tx, j *job.Job) (any, error) {
		var params volumesParams
		for range in.Count {
			v := newManaged(in.Zone, in.Name, in.Type, in.SizeBytes, "creating", *j)
			if err := tx.InsertVolume(v); err != nil {
				return nil, err
			}
			params.Volumes = append(params.Volumes, v.ID)
		}
		j.ResourceIDs = params.Volumes
		return params, tx.Lock(j.ID, params.Volumes...)
	})
}

func (s *Service) checkNewVolume(zone, name string, size int64) error {
	if err := s.checkZone(zone); err != nil {
		return err
	}
	if err := checkName("volume_name", name); err != nil {
		return err
	}
	return checkSize(size)
}

func checkSize(size int64) error {
	if size < 1 || size > maxVolumeBytes {
		return errs.New(errs.Invalid, "the size of a volume is 1 byte to 1 PiB, not %d bytes", size)
	}
	return nil
}

// createVolumesJob makes empty volumes.
type createVolumesJob struct{ s *Service }

func (h createVolumesJob) Do(ctx context.Context, run *job.Run) error {
	var params volumesParams
	if err := run.Params(&params); err != nil {
		return err
	}
	var volumes []Volume
	err := h.s.store.View(ctx, func(tx Tx) (err error) {
		volumes, err = loadVolumes(tx, params.Volumes)
		return err
	})
	if err != nil {
		return err
	}
	for _, v := range volumes {
		d, err := h.s.driver(v)
		if err != nil {
			return err
		}
		if err := d.Create(ctx, v.spec()); err != nil {
			return fmt.Errorf("create volume %s: %w", v.ID, err)
		}
	}
	return h.s.finishNewVolumes(ctx, run, params.Volumes...)
}

func (h createVolumesJob) Undo(ctx context.Context, run *job.Run, out job.Outcome) error {
	var params volumesParams
	if err := run.Params(&params); err != nil {
		return err
	}
	return h.s.removeNewVolumes(ctx, run, out, params.Volumes...)
}

// RegisterVolume makes a file or block device of this host, or an export of an
// NBD server, a volume. Nothing of it is ever created, resized or removed.
func (s *Service) RegisterVolume(ctx context.Context, in RegisterVolume) (Volume, error) {
	if err := s.checkZone(in.Zone); err != nil {
		return Volume{}, err
	}
	if !in.Local {
		return Volume{}, errs.New(errs.Denied, "a path on the server, or an NBD URI that it connects to, can be registered only through the server's unix socket, not over the network")
	}
	if err := checkName("volume_name", in.Name); err != nil {
		return Volume{}, err
	}
	if err := checkText("description", in.Description, maxDescriptionRunes); err != nil {
		return Volume{}, err
	}
	kind, found, err := s.probe(ctx, in.Path)
	if err != nil {
		return Volume{}, err
	}
	if err := checkSize(found.SizeBytes); err != nil {
		return Volume{}, err
	}
	v := Volume{
		ID: newID(volumePrefix), Zone: in.Zone, Name: in.Name, Description: in.Description, Driver: kind,
		Path: found.Path, Identity: found.Identity, SizeBytes: found.SizeBytes,
		Status: VolumeAvailable, CreateTime: s.now(),
	}
	v.StatusTime = v.CreateTime
	err = s.store.Update(ctx, func(tx Tx) error {
		have, ok, err := tx.VolumeByIdentity(v.Identity, v.Path)
		if err != nil {
			return err
		}
		if ok {
			return errs.New(errs.Exists, "%s is volume %s already; use that, or delete it first", clip(v.Path), have.ID)
		}
		return tx.InsertVolume(v)
	})
	if err != nil {
		return Volume{}, err
	}
	s.log.Info("volume registered", "volume", v.ID, "request", in.RequestID, "path", v.Path, "size_bytes", v.SizeBytes)
	return v, nil
}

// probe examines what somebody wants to register, and tells whose it is.
func (s *Service) probe(ctx context.Context, path string) (kind string, found volume.Probe, err error) {
	d := s.drivers[DriverRegistered]
	switch isURI := strings.Contains(path, "://"); {
	case filepath.IsAbs(path):
		kind = DriverRegistered
	case !isURI:
		return "", found, errs.New(errs.Invalid, "path %s is not absolute; give the file's or device's whole path on the server, or an NBD URI", clip(path))
	case s.drivers[DriverNBD] == nil:
		return "", found, errs.New(errs.Conflict, "this server registers no NBD exports; give the path of a file or device")
	default:
		kind, d = DriverNBD, s.drivers[DriverNBD]
	}
	if found, err = d.Probe(ctx, path); err != nil || kind == DriverNBD {
		return kind, found, err
	}
	for _, dir := range s.ownDirs {
		if within(dir, found.Path) {
			return "", found, errs.New(errs.Invalid, "path %s belongs to this service; its own files cannot be registered", clip(path))
		}
	}
	return kind, found, nil
}

// within reports whether path is dir or lies under it; both are canonical.
func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// RenameVolumes changes name and description of volumes, all or none.
func (s *Service) RenameVolumes(ctx context.Context, in Rename) error {
	return s.renameVolumes(ctx, in, "volume", volumePrefix, "volume_name")
}

func (s *Service) renameVolumes(ctx context.Context, in Rename, kind, prefix, field string) error {
	if err := s.checkZone(in.Zone); err != nil {
		return err
	}
	ids, err := checkIDs(kind, prefix, in.IDs)
	if err != nil {
		return err
	}
	if err := in.check(field); err != nil {
		return err
	}
	return s.store.Update(ctx, func(tx Tx) error {
		for _, id := range ids {
			v, err := tx.Volume(in.Zone, id)
			if err != nil {
				return err
			}
			if v.Transition != "" {
				return errs.New(errs.Busy, "%s is %s; please try later", named(id), v.Transition)
			}
			if in.Name != nil && *in.Name != v.Name && kind == "instance" {
				if err := refuseForeign(v, "is renamed with libvirt (virsh domrename)"); err != nil {
					return err
				}
			}
			v.Name, v.Description = in.apply(v.Name, v.Description)
			if err := tx.UpdateVolume(v); err != nil {
				return err
			}
		}
		return nil
	})
}

// check refuses bad names; nil fields stay.
func (in Rename) check(field string) error {
	if in.Name != nil {
		if err := checkName(field, *in.Name); err != nil {
			return err
		}
	}
	if in.Description != nil {
		return checkText("description", *in.Description, maxDescriptionRunes)
	}
	return nil
}

func (in Rename) apply(name, description string) (string, string) {
	if in.Name != nil {
		name = *in.Name
	}
	if in.Description != nil {
		description = *in.Description
	}
	return name, description
}
