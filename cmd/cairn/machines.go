package main

import (
	"log/slog"

	"cairn/internal/compute"
	"cairn/internal/compute/qemu"
	"cairn/internal/errs"
)

// Values of --machines.
const (
	machinesAuto = "auto"
	machinesQEMU = "qemu"
	machinesNone = "none"
)

// openMachines opens what runs instances; nil where none can run, and why.
func (c serveConfig) openMachines(dir string, log *slog.Logger) (d compute.Driver, none string, err error) {
	if c.machines == machinesNone {
		return nil, "it was started with --machines none", nil
	}
	q, err := qemu.New(qemu.Config{Dir: dir, Log: log})
	switch {
	case err == nil:
		return q, "", nil
	case c.machines == machinesAuto && errs.Is(err, errs.Unavailable):
		log.Info("no instances run here", "reason", errs.Message(err))
		return nil, errs.Message(err), nil
	}
	return nil, "", err
}
