package compute

import (
	"cairn/internal/errs"
)

// Check refuses what no driver can run.
func (s *Spec) Check() error {
	switch {
	case s.ID == "":
		return errs.New(errs.Internal, "a machine without an id")
	case s.CPUs < 1 || s.CPUs > MaxCPUs:
		return errs.New(errs.Invalid, "%s: %d processors; give it 1 to %d", s.ID, s.CPUs, MaxCPUs)
	case s.Memory < MinMemory || s.Memory > MaxMemory:
		return errs.New(errs.Invalid, "%s: %d MiB of memory; give it %d to %d", s.ID, s.Memory>>20, MinMemory>>20, int64(MaxMemory)>>20)
	case len(s.Disks) == 0:
		return errs.New(errs.Invalid, "%s: a machine needs a disk to boot from", s.ID)
	case len(s.Disks) > MaxDisks:
		return errs.New(errs.Invalid, "%s: %d disks; a machine has at most %d", s.ID, len(s.Disks), MaxDisks)
	}
	seen := map[string]bool{}
	for _, d := range s.Disks {
		if d.ID == "" || d.URI == "" {
			return errs.New(errs.Internal, "%s: disk %+v lacks its id or its address", s.ID, d)
		}
		if seen[d.ID] {
			return errs.New(errs.Invalid, "%s: disk %s twice", s.ID, d.ID)
		}
		seen[d.ID] = true
	}
	return nil
}

// Disk finds a disk by its id; -1: the machine has none of it.
func (s *Spec) Disk(id string) int {
	for i, d := range s.Disks {
		if d.ID == id {
			return i
		}
	}
	return -1
}
