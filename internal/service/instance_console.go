package service

import (
	"context"
	"io"

	"cairn/internal/errs"
)

// InstanceConsole opens what a machine's guest wrote to its serial console, from
// byte off on; negative: that many bytes before the end. Close it.
func (s *Service) InstanceConsole(ctx context.Context, zone, id string, off int64) (io.ReadCloser, error) {
	ids, err := s.checkInstances(InstanceSet{Origin: Origin{Zone: zone}, IDs: []string{id}})
	if err != nil {
		return nil, err
	}
	err = s.store.View(ctx, func(tx Tx) error {
		_, err := tx.Volume(zone, ids[0])
		return err
	})
	if err == nil {
		err = s.needMachines()
	}
	if err != nil {
		return nil, err
	}
	r, err := s.compute.Console(ctx, ids[0], off)
	if errs.Is(err, errs.NotFound) {
		err = errs.Wrap(errs.Conflict, err, "instance %s was never started, so it has no console", ids[0])
	}
	return r, err
}
