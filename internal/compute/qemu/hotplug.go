package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"cairn/internal/compute"
	"cairn/internal/errs"
	"cairn/internal/qmp"
)

// Attach plugs a disk in.
func (d *Driver) Attach(ctx context.Context, id string, disk compute.Disk) error {
	return d.change(ctx, id, func(m *machine, s compute.Spec, runs bool) error {
		if i := s.Disk(disk.ID); i < 0 {
			s.Disks = append(s.Disks, disk)
		} else {
			s.Disks[i] = disk // its address may be another one
		}
		if err := check(s); err != nil {
			return err
		}
		if err := m.save(s); err != nil || !runs {
			return err
		}
		err := m.with(ctx, func(ctx context.Context, c *qmp.Client) error { return plug(ctx, c, disk) })
		if err == nil {
			return nil
		}
		// It must not come back with the next start.
		s.Disks = slices.DeleteFunc(s.Disks, func(o compute.Disk) bool { return o.ID == disk.ID })
		return errors.Join(err, m.save(s))
	})
}

// Detach unplugs a disk.
func (d *Driver) Detach(ctx context.Context, id, disk string) error {
	return d.change(ctx, id, func(m *machine, s compute.Spec, runs bool) error {
		i := s.Disk(disk)
		if i == 0 {
			return errs.New(errs.Invalid, "machine %s boots from disk %s, which cannot be detached", id, disk)
		}
		if runs {
			if err := m.with(ctx, func(ctx context.Context, c *qmp.Client) error { return unplug(ctx, c, id, disk) }); err != nil {
				return err
			}
		}
		if i < 0 {
			return nil
		}
		s.Disks = slices.Delete(s.Disks, i, i+1)
		return m.save(s)
	})
}

// change runs fn with a machine that nobody else changes.
func (d *Driver) change(ctx context.Context, id string, fn func(m *machine, s compute.Spec, runs bool) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m, _, err := d.known(id)
	if err != nil {
		return err
	}
	m.Lock()
	defer m.Unlock()
	s, err := m.load() // again, as it may have changed before we had the lock
	if err != nil {
		return err
	}
	pid, err := m.pid()
	if err != nil {
		return err
	}
	return fn(m, s, pid != 0)
}

// plugged tells what a machine has of a disk.
func plugged(ctx context.Context, c *qmp.Client, disk string) (node, dev bool, err error) {
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := c.Do(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return false, false, err
	}
	for _, n := range nodes {
		node = node || n.Name == disk
	}
	var devices []struct{ Name string }
	if err := c.Do(ctx, "qom-list", map[string]any{"path": "/machine/peripheral"}, &devices); err != nil {
		return false, false, err
	}
	for _, d := range devices {
		dev = dev || d.Name == deviceID(disk)
	}
	return node, dev, nil
}

// plug gives a running machine a disk, or what it lacks of it. A part that
// fails is taken back.
func plug(ctx context.Context, c *qmp.Client, disk compute.Disk) error {
	node, dev, err := plugged(ctx, c, disk.ID)
	if err != nil || dev {
		return err
	}
	if !node {
		args, err := blockdev(disk)
		if err != nil {
			return err
		}
		if err := c.Do(ctx, "blockdev-add", args, nil); err != nil {
			return refused(err, "disk %s cannot be opened by the machine", disk.ID)
		}
	}
	if err := c.Do(ctx, "device_add", device(disk), nil); err != nil {
		return errors.Join(refused(err, "disk %s cannot be plugged into the machine", disk.ID),
			c.Do(context.WithoutCancel(ctx), "blockdev-del", map[string]any{"node-name": disk.ID}, nil))
	}
	return nil
}

// refused makes a sentence of what the machine refused.
func refused(err error, format string, args ...any) error {
	var e *qmp.Error
	if errors.As(err, &e) {
		return errs.Wrap(errs.Conflict, err, format+": "+e.Desc, args...)
	}
	return err
}

// unplug asks the guest for a disk and waits until it is given back.
func unplug(ctx context.Context, c *qmp.Client, machine, disk string) error {
	node, dev, err := plugged(ctx, c, disk)
	if err != nil {
		return err
	}
	if dev {
		err := c.Do(ctx, "device_del", map[string]any{"id": deviceID(disk)}, nil)
		// It was asked for before, and the guest is at it.
		if e := (*qmp.Error)(nil); err != nil && !errors.As(err, &e) {
			return err
		}
		_, waited := c.Await(ctx, func(e qmp.Event) bool {
			var data struct{ Device string }
			return e.Name == "DEVICE_DELETED" && json.Unmarshal(e.Data, &data) == nil && data.Device == deviceID(disk)
		})
		if ctx.Err() != nil {
			return errs.Wrap(errs.Busy, errors.Join(err, waited), "the guest of machine %s has not let go of disk %s; unmount it there, then please try later", machine, disk)
		}
		if waited != nil {
			return waited
		}
	}
	if !node {
		return nil
	}
	return c.Do(ctx, "blockdev-del", map[string]any{"node-name": disk}, nil)
}
