package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"cairn/internal/compute"
	"cairn/internal/errs"
	"cairn/internal/volume"
)

// This file keeps the rows of machines that others made, as libvirt's domains:
// they come when a machine is first seen, follow it, and cease when it is gone.
// Nothing of the machine itself is changed by that.

// foreignWait is how long a hypervisor may take to end or remove what is ours in
// its machines.
const foreignWait = 30 * time.Second

// foreign reports whether somebody else made what a row says.
func (v Volume) foreign() bool { return v.Driver == DriverLibvirt }

// SyncForeign looks for machines of others until ctx ends.
func (s *Service) SyncForeign(ctx context.Context) {
	if len(s.foreign) == 0 || s.refused != "" {
		<-ctx.Done()
		return
	}
	timer := time.NewTicker(s.foreignEvery)
	defer timer.Stop()
	told := ""
	for {
		err := s.syncForeignOnce(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
			told = ""
		case errs.Message(err) != told: // a daemon may be away for days
			told = errs.Message(err)
			s.log.Warn("machines of others cannot be looked for", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
	}
}

// syncForeignOnce makes the rows of foreign machines what their hypervisors say
// now. Rows that a job has are left until it ended; of a hypervisor that does not
// answer all are left.
func (s *Service) syncForeignOnce(ctx context.Context) error {
	var failed error
	for kind, d := range s.foreign {
		// What was owed by now and runs then somebody else has started.
		owed, err := s.owed(ctx)
		if err != nil {
			return err
		}
		machines, err := d.List(ctx)
		if err == nil {
			err = errors.Join(s.syncMachines(ctx, kind, machines), s.startedByOthers(ctx, owed, machines))
		}
		if f, ok := s.drivers[kind].(volume.Foreign); ok && err == nil {
			tidying, cancel := context.WithTimeout(ctx, foreignWait)
			err = f.Tidy(tidying)
			cancel()
		}
		if err != nil {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

func (s *Service) owed(ctx context.Context) (ids []string, err error) {
	err = s.store.View(ctx, func(tx Tx) (err error) {
		ids, err = owedMachines.read(tx)
		return err
	})
	return ids, err
}

// startedByOthers settles what is owed to machines that run.
func (s *Service) startedByOthers(ctx context.Context, owed []string, machines []compute.Machine) error {
	var settled []string
	for _, m := range machines {
		if m.State != compute.Stopped && slices.Contains(owed, m.ID) {
			settled = append(settled, m.ID)
		}
	}
	if len(settled) == 0 {
		return nil
	}
	return s.store.Update(ctx, func(tx Tx) error { return owedMachines.remove(tx, oneOf(settled)) })
}

// syncMachines makes the rows of one kind. machines are all that there are.
func (s *Service) syncMachines(ctx context.Context, kind string, machines []compute.Machine) error {
	have, err := s.rowsOf(ctx, kind)
	if err != nil {
		return err
	}
	forgotten, err := s.forgotten(ctx, machines)
	if err != nil {
		return err
	}
	want := map[string]Volume{}
	for _, m := range machines {
		if slices.Contains(forgotten, m.ID) {
			continue
		}
		var rows []Volume
		for _, v := range s.foreignRows(kind, m) {
			if other, twice := want[v.ID]; twice {
				s.log.Warn("two disks have the same id, and only one is shown", "id", v.ID, "shown", other.Path, "other", v.Path)
				continue
			}
			v.SizeBytes = s.foreignSize(ctx, v, have[v.ID].SizeBytes)
			want[v.ID] = v
			rows = append(rows, v)
		}
		if err := s.adopt(ctx, have, rows); err != nil {
			return fmt.Errorf("take note of machine %s (%s): %w", m.ID, m.Name, err)
		}
	}
	var gone []string
	for id, v := range have {
		if _, there := want[id]; !there && v.Status != VolumeCeased {
			gone = append(gone, id)
		}
	}
	slices.Sort(gone)
	return s.ceaseForeign(ctx, gone)
}

// foreignRows are the rows that a machine should have: none without a disk, as
// the system disk's is the machine's.
func (s *Service) foreignRows(kind string, m compute.Machine) []Volume {
	var rows []Volume
	for i, k := range m.Disks {
		v := Volume{
			ID: k.ID, Zone: s.ownOrigin().Zone, Name: m.Name, Driver: kind, Path: k.URI, Identity: k.URI,
			Status: VolumeInUse, InstanceID: m.ID, Device: k.Device,
		}
		if i == 0 {
			v.CPUs, v.Memory = m.CPUs, m.Memory
		} else {
			v.Name = m.Name + " " + k.Device
		}
		rows = append(rows, v)
	}
	return rows
}

// rowsOf is every row of a kind of foreign volumes, also of those that ceased.
func (s *Service) rowsOf(ctx context.Context, kind string) (map[string]Volume, error) {
	const step = 500
	rows := map[string]Volume{}
	err := s.store.View(ctx, func(tx Tx) error {
		for _, instances := range []bool{true, false} {
			f := VolumeFilter{Instances: instances, Limit: step, Statuses: []VolumeStatus{VolumePending, VolumeAvailable, VolumeInUse, VolumeDeleted, VolumeCeased}}
			for total := 1; f.Offset < total; f.Offset += step {
				page, n, err := tx.Volumes(f)
				if err != nil {
					return err
				}
				total = n
				for _, v := range page {
					if v.Driver == kind {
						rows[v.ID] = v
					}
				}
			}
		}
		return nil
	})
	return rows, err
}

// foreignSize asks how large a disk is; one that cannot be read keeps what was
// known.
func (s *Service) foreignSize(ctx context.Context, v Volume, known int64) int64 {
	d, err := s.driver(v)
	if err != nil {
		return known
	}
	size, err := d.Size(ctx, v.spec())
	if err != nil {
		return known // whoever takes a point of it is told why
	}
	return size
}

// adopt makes the rows of one machine what they should be, all at once: whoever
// sees the machine sees its disks. have is every row that there was.
func (s *Service) adopt(ctx context.Context, have map[string]Volume, rows []Volume) error {
	news := slices.DeleteFunc(slices.Clone(rows), func(want Volume) bool {
		was := have[want.ID]
		return was.Status == VolumeInUse && was == was.following(want)
	})
	if len(news) == 0 {
		return nil
	}
	return s.store.Update(ctx, func(tx Tx) error {
		ids, err := forgottenMachines.read(tx)
		if err != nil || slices.Contains(ids, news[0].InstanceID) {
			return err // forgotten since it was looked at
		}
		for _, want := range news {
			if err := s.adoptRow(tx, have[want.ID], want); err != nil {
				return err
			}
		}
		return nil
	})
}

// following is a row with what its hypervisor says of it. Whoever made a machine
// names it; the names of its other disks are ours.
func (v Volume) following(want Volume) Volume {
	v.Status, v.Path, v.Identity, v.SizeBytes = want.Status, want.Path, want.Identity, want.SizeBytes
	v.InstanceID, v.Device, v.CPUs, v.Memory = want.InstanceID, want.Device, want.CPUs, want.Memory
	if IsInstance(v.ID) {
		v.Name = want.Name
	}
	return v
}

// adoptRow makes one row what it should be. have is what it was, also if it has
// ceased; without an id if there was none.
func (s *Service) adoptRow(tx Tx, have, want Volume) error {
	now := s.now()
	v, err := tx.Volume("", want.ID)
	switch {
	case errs.Is(err, errs.NotFound) && have.ID == "":
		s.log.Info("a machine of others is here", "volume", want.ID, "instance", want.InstanceID, "path", want.Path)
		want.StatusTime = now
		if want.CreateTime, err = knownSince(tx, want.ID, now); err != nil {
			return err
		}
		return tx.InsertVolume(want)
	case errs.Is(err, errs.NotFound):
		want.CreateTime, want.StatusTime, want.Description, want.Type = now, now, have.Description, have.Type
		if want.Identity == have.Identity { // see otherDisk
			want.CreateTime, want.MixedJob = have.CreateTime, have.MixedJob
		}
		return tx.UpdateVolume(want)
	case err != nil:
		return err
	}
	if _, locked, err := tx.LockedBy(v.ID); err != nil || locked || v.Transition != "" {
		return err
	}
	if v.Identity != want.Identity {
		return s.ceaseVolumes(tx, []string{v.ID}) // another disk: it comes anew
	}
	return tx.UpdateVolume(v.following(want))
}

// knownSince is when a volume without a row was first seen: a database that was
// lost may have known it, and its points know that.
func knownSince(tx Tx, id string, now time.Time) (time.Time, error) {
	f := SnapshotFilter{ResourceID: id, Limit: 1}
	_, total, err := tx.Snapshots(f)
	if err != nil || total == 0 {
		return now, err
	}
	f.Offset = total - 1 // the oldest
	oldest, _, err := tx.Snapshots(f)
	if err != nil || len(oldest) == 0 {
		return now, err
	}
	return oldest[0].CreateTime, nil
}

// otherDisk refuses a point of what was under a foreign volume's id before: which
// of a machine's disks has the machine's own id may change.
func otherDisk(p Snapshot, v Volume) error {
	if !v.foreign() || !p.CreateTime.Before(v.CreateTime) {
		return nil
	}
	return errs.New(errs.Conflict, "snapshot %s was taken of another disk, which was %s until %s; make a volume or an image of it instead", p.ID, v.ID, v.CreateTime.Format(time.RFC3339))
}

// forgetDisk removes what was made in a foreign machine for a disk's points. That
// must not keep anybody from forgetting it.
func (s *Service) forgetDisk(ctx context.Context, v Volume, log *slog.Logger) {
	d, ok := s.drivers[v.Driver].(volume.Foreign)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, foreignWait)
	defer cancel()
	if err := d.Forget(ctx, v.spec()); err != nil {
		log.Warn("what was made in a machine for its snapshots may stay in it", "volume", v.ID, "path", v.Path, "error", err)
	}
}

// checkTargets refuses to stop machines for an apply that cannot go on then.
func (s *Service) checkTargets(ctx context.Context, volumes []Volume) error {
	for _, v := range volumes {
		d, ok := s.drivers[v.Driver].(volume.Foreign)
		if !ok || !v.foreign() {
			continue
		}
		if err := d.CheckTarget(ctx, v.spec()); err != nil {
			return err
		}
	}
	return nil
}

// ceaseForeign ends the rows of what is gone. Their points stay.
func (s *Service) ceaseForeign(ctx context.Context, ids []string) error {
	for _, id := range ids {
		err := s.store.Update(ctx, func(tx Tx) error {
			v, err := tx.Volume("", id)
			if errs.Is(err, errs.NotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			if _, locked, err := tx.LockedBy(id); err != nil || locked || v.Transition != "" {
				return err
			}
			s.log.Info("a machine of others, or its disk, is gone", "volume", id, "path", v.Path)
			return s.ceaseVolumes(tx, []string{id})
		})
		if err != nil {
			return fmt.Errorf("end %s, which is gone: %w", named(id), err)
		}
	}
	return nil
}

// forgotten are the machines that were deleted here and are still there. Those
// that are gone are no longer kept in mind.
func (s *Service) forgotten(ctx context.Context, machines []compute.Machine) (ids []string, err error) {
	gone := func(id string) bool {
		return !slices.ContainsFunc(machines, func(m compute.Machine) bool { return m.ID == id })
	}
	err = s.store.View(ctx, func(tx Tx) (err error) {
		ids, err = forgottenMachines.read(tx)
		return err
	})
	if err != nil || !slices.ContainsFunc(ids, gone) {
		return ids, err
	}
	err = s.store.Update(ctx, func(tx Tx) error {
		if err := forgottenMachines.remove(tx, gone); err != nil {
			return err
		}
		ids, err = forgottenMachines.read(tx)
		return err
	})
	return ids, err
}

// withForeignDisks adds to machines that are deleted the disks of the foreign
// ones, which are not freed but go with them.
func withForeignDisks(tx Tx, machines []string) ([]string, error) {
	volumes := slices.Clone(machines)
	for _, id := range machines {
		disks, err := tx.VolumesOf(id)
		if err != nil {
			return nil, err
		}
		for _, v := range disks {
			if v.foreign() && v.ID != id {
				volumes = append(volumes, v.ID)
			}
		}
	}
	return volumes, nil
}

// forget notes of volumes that were deleted which are foreign machines, so that
// these do not come back.
func forget(tx Tx, volumes []Volume) error {
	var machines []string
	for _, v := range volumes {
		if v.foreign() && IsInstance(v.ID) {
			machines = append(machines, v.ID)
		}
	}
	return forgottenMachines.add(tx, machines)
}

// refuseForeign refuses what only the makers of a machine change.
func refuseForeign(v Volume, instead string) error {
	if !v.foreign() {
		return nil
	}
	return errs.New(errs.Conflict, "%s is libvirt's and %s", named(v.ID), instead)
}
