package file

import (
	"context"
	"fmt"
	"path/filepath"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// Registered serves files and block devices that belong to somebody else.
type Registered struct {
	*disks
	forbidden []string // canonical folders that nothing may be registered from
}

var _ volume.Driver = (*Registered)(nil)

// NewRegistered opens the driver. holdDir is made if need be and is where
// reflinks of registered files go; it is forbidden like the folders listed.
func NewRegistered(holdDir string, forbidden ...string) (*Registered, error) {
	r := &Registered{}
	holdDir, err := filepath.Abs(holdDir)
	if err != nil {
		return nil, fmt.Errorf("find the folder of holds: %w", err)
	}
	if r.disks, err = newDisks(holdDir); err != nil {
		return nil, err
	}
	for _, dir := range append(forbidden, holdDir) {
		dir, err := filepath.Abs(dir)
		if err == nil {
			dir, err = filepath.EvalSymlinks(dir)
		}
		if err != nil {
			return nil, fmt.Errorf("find a forbidden folder: %w", err)
		}
		r.forbidden = append(r.forbidden, dir)
	}
	return r, nil
}

// locate finds the place of a registered volume.
func locate(s volume.Spec) (place, error) {
	if !nameOK(s.ID) {
		return place{}, errs.New(errs.Internal, "%q cannot name a volume", s.ID)
	}
	if !filepath.IsAbs(s.Path) || s.Identity == "" {
		return place{}, errs.New(errs.Internal, "volume %s has no path or identity in the database", s.ID)
	}
	return place{id: s.ID, path: s.Path, identity: s.Identity}, nil
}

// Capabilities says that registered volumes are found, never made.
func (r *Registered) Capabilities() volume.Capabilities {
	return volume.Capabilities{Register: true}
}

// Probe examines a path. See docs/file-driver.md for what is refused.
func (r *Registered) Probe(ctx context.Context, path string) (volume.Probe, error) {
	if err := ctx.Err(); err != nil {
		return volume.Probe{}, err
	}
	return probe(path, r.forbidden)
}

// Create always refuses.
func (r *Registered) Create(_ context.Context, s volume.Spec) error {
	return notOurVolume(s, "created")
}

// Grow always refuses.
func (r *Registered) Grow(_ context.Context, s volume.Spec, _ int64) error {
	return notOurVolume(s, "resized")
}

// Remove always refuses: to delete a registered volume is to forget it.
func (r *Registered) Remove(_ context.Context, s volume.Spec) error {
	return notOurVolume(s, "removed")
}

func notOurVolume(s volume.Spec, what string) error {
	return errs.New(errs.Conflict, "volume %s is a registered one: its file or device belongs to its owner and is never %s by the server", s.ID, what)
}
