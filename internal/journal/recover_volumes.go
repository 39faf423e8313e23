package journal

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"cairn/internal/errs"
	"cairn/internal/service"
)

func knownVolume(v service.Volume) error {
	switch v.Status {
	case service.VolumeAvailable, service.VolumeInUse, service.VolumeDeleted, service.VolumeCeased:
	default:
		return errs.New(errs.Conflict, "the journal has volume %s in the status %q, which this program does not know; use a newer program", v.ID, string(v.Status))
	}
	switch v.Driver {
	case service.DriverManaged, service.DriverRegistered, service.DriverNBD, service.DriverLibvirt:
		return nil
	}
	return errs.New(errs.Conflict, "the journal has volume %s of the kind %q, which this program does not know; use a newer program", v.ID, v.Driver)
}

// writeVolumes stores the volumes of the journal, compared with the files of
// managed ones, and takes in files that the journal does not know if asked to.
func (r *recovery) writeVolumes(ctx context.Context) error {
	files := map[string]int64{}
	for _, f := range r.Volumes {
		files[f.ID] = f.SizeBytes
	}
	for _, id := range slices.Sorted(maps.Keys(files)) {
		_, known := r.volumes[id]
		switch {
		case known:
		case service.IsImage(id):
			r.volume(service.Volume{ID: id, Zone: r.Zone, SizeBytes: files[id]}, LeftOut, "an image was being imported through it")
		default:
			r.unknownVolume(id, files[id])
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.volumes)) {
		v := r.volumes[id]
		reason := ""
		if v.Driver == service.DriverManaged && v.Status != service.VolumeCeased {
			v, reason = compareFile(v, files)
		}
		if v.MixedJob != "" && v.Status != service.VolumeCeased {
			reason += "it holds a mixture of two states and stays blocked until a snapshot is applied to it; "
		}
		err := r.Store.Update(ctx, func(tx service.Tx) error { return tx.InsertVolume(v) })
		switch {
		case errs.Is(err, errs.Exists):
			// Only a damaged journal can have two for one file.
			r.volume(v, LeftOut, "the file or device behind it is another volume's")
			delete(r.volumes, id)
		case err != nil:
			return fmt.Errorf("store volume %s: %w", id, err)
		default:
			r.volume(v, Recovered, trimReason(reason))
		}
	}
	return nil
}

func trimReason(s string) string {
	if len(s) > 2 {
		return s[:len(s)-2]
	}
	return s
}

// compareFile looks whether a managed volume's file is there. One that is
// larger than the row was growing when the database was lost, and has grown.
func compareFile(v service.Volume, files map[string]int64) (service.Volume, string) {
	size, ok := files[v.ID]
	switch {
	case !ok:
		return v, "its data is missing in the folder of managed volumes; put it back, or delete the volume; "
	case size < v.SizeBytes:
		return v, fmt.Sprintf("its data has %d bytes instead of %d; ", size, v.SizeBytes)
	case size > v.SizeBytes:
		reason := fmt.Sprintf("it has grown from %d bytes to the %d of its data; ", v.SizeBytes, size)
		v.SizeBytes = size
		return v, reason
	}
	return v, ""
}

// unknownVolume is a file without an entry: a volume that was being made, or
// one whose entry was lost with the journal.
func (r *recovery) unknownVolume(id string, size int64) {
	now := r.Clock().UTC()
	v := service.Volume{
		ID: id, Zone: r.Zone, Name: id, Driver: service.DriverManaged, SizeBytes: size,
		Status: service.VolumeAvailable, CreateTime: now, StatusTime: now,
	}
	if p, ok := r.latest[id]; ok {
		v.Zone, v.Name, v.Type, v.CreateTime = p.Zone, p.ResourceName, p.VolumeType, p.CreateTime
	}
	if service.IsInstance(id) {
		// What its machine was made of is not known: the least that may start it.
		v.Status, v.InstanceID, v.Device, v.CPUs, v.Memory = service.VolumeInUse, id, "vda", 1, 1<<30
	}
	if !r.Accept {
		r.volume(v, LeftOut, "nothing says that it was finished; --accept-uncommitted takes it in")
		return
	}
	r.report.Notes = append(r.report.Notes, fmt.Sprintf("nothing says that volume %s was finished; it was taken in as asked", id))
	r.volumes[id] = v
}
