package service

import (
	"context"
	"io"

	"cairn/internal/compute"
	"cairn/internal/errs"
)

// InstanceConsole opens what a machine's guest wrote to its serial console, from
// byte off on; negative: that many bytes before the end. Close it.
func (s *Service) InstanceConsole(ctx context.Context, zone, id string, off int64) (io.ReadCloser, error) {
	ids, err := s.checkInstances(InstanceSet{Origin: Origin{Zone: zone}, IDs: []string{id}})
	if err != nil {
		return nil, err
	}
	var d compute.Driver
	err = s.store.View(ctx, func(tx Tx) error {
		system, err := tx.Volume(zone, ids[0])
		if err == nil {
			d, err = s.machinesOf(system)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	r, err := d.Console(ctx, ids[0], off)
	if errs.Is(err, errs.NotFound) {
		err = errs.Wrap(errs.Conflict, err, "instance %s was never started, so it has no console", ids[0])
	}
	return r, err
}
