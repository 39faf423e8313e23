package main

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"cairn/internal/compute"
	virtmachines "cairn/internal/compute/libvirt"
	"cairn/internal/compute/qemu"
	"cairn/internal/errs"
	"cairn/internal/libvirt"
	virtvolume "cairn/internal/volume/libvirt"
)

// Values of --machines.
const (
	machinesAuto = "auto"
	machinesQEMU = "qemu"
	machinesNone = "none"
)

// openLibvirt opens the machines of libvirt and their disks; both nil without
// --libvirt. The daemon need not answer yet. What they keep goes beside dataDir,
// unless --libvirt-dir says otherwise: nobody else may look into that one, and
// libvirt runs QEMU as a user of its own.
func (c serveConfig) openLibvirt(dataDir string, log *slog.Logger) (compute.Driver, *virtvolume.Driver, error) {
	if c.libvirt == "" {
		return nil, nil, nil
	}
	dir := c.libvirtDir
	if dir == "" {
		dir = filepath.Clean(dataDir) + "-libvirt"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("find %s: %w", dir, err)
	}
	daemon, err := libvirt.Parse(c.libvirt)
	if err != nil {
		return nil, nil, err
	}
	disks, err := virtvolume.New(virtvolume.Config{Dir: dir, Daemon: daemon, ScratchBytes: c.scratch << 20, Log: log})
	if err != nil {
		return nil, nil, err
	}
	return virtmachines.New(daemon, log), disks, nil
}

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
