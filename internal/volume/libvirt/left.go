package virtvolume

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"cairn/internal/errs"
	"cairn/internal/libvirt"
)

// This file ends what is left of holds: by a process that is gone, or because
// libvirt did not do what it was told.

// Drop lets go of a hold, also of one that an earlier process left.
func (d *Driver) Drop(ctx context.Context, hold string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	in, taken := d.held[hold]
	d.mu.Unlock()
	switch {
	case taken && in == nil:
		return errs.New(errs.Busy, "an instant is being made under hold %s; please try later", hold)
	case taken:
		return in.Close()
	case !plainName(hold):
		return nil
	}
	d.claims.release(hold, "")
	dir := d.holdDir(hold)
	left, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range left {
		id, ok := domainOf(e.Name())
		if !ok {
			continue
		}
		if err := d.endOne(ctx, id, filepath.Join(dir, e.Name())); err != nil {
			return err
		}
		mark := d.mark(hold, id)
		keep, err := d.marksOf(prefixOf(id))
		if err == nil && !keep[mark] {
			err = d.dropMark(ctx, libvirt.Domain{UUID: id}, mark)
		}
		if err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// endOne ends the backup of a domain in a hold's folder of it, and lets it go on.
func (d *Driver) endOne(ctx context.Context, id uuid.UUID, dir string) error {
	dom := libvirt.Domain{UUID: id}
	if err := d.resume(ctx, dom, dir); err != nil {
		return err
	}
	if err := d.abort(ctx, dom, dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// endLeft ends all that is left of a domain, which the caller has claimed: no
// hold but that of keep has it.
func (d *Driver) endLeft(ctx context.Context, id uuid.UUID, keep string) error {
	dirs, err := filepath.Glob(filepath.Join(d.cfg.Dir, "holds", "*", domainDir(id)))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if dir == keep {
			continue
		}
		d.log.Info("what an earlier snapshot left is ended", "domain", id)
		if err := d.endOne(ctx, id, dir); err != nil {
			return err
		}
		_ = os.Remove(filepath.Dir(dir)) // the hold's, unless other domains are in it
	}
	return nil
}

// tidying has the domains that Tidy is at; no hold can have its name.
const tidying = "the tidying"

// Tidy ends what is left of holds that nobody has. What cannot be ended now is
// left for the next time.
func (d *Driver) Tidy(ctx context.Context) error {
	dirs, err := filepath.Glob(filepath.Join(d.cfg.Dir, "holds", "*", "*"))
	if err != nil {
		return err
	}
	var all error
	for _, dir := range dirs {
		id, ok := domainOf(filepath.Base(dir))
		if !ok {
			continue
		}
		// Whoever has a hold of the domain has claimed it.
		taken, err := d.claims.take(ctx, id, tidying, id.String(), false)
		if err != nil {
			return err
		}
		if !taken {
			continue
		}
		err = d.endLeft(ctx, id, "")
		if err == nil {
			err = d.dropLost(ctx, id)
		}
		d.claims.release(tidying, id.String())
		all = errors.Join(all, err)
	}
	return all
}

// dropLost removes the checkpoints of a domain that no record has.
func (d *Driver) dropLost(ctx context.Context, id uuid.UUID) error {
	keep, err := d.marksOf(prefixOf(id))
	if err == nil {
		err = d.dropMarks(ctx, libvirt.Domain{UUID: id}, keep)
	}
	if errs.Is(err, errs.NotFound) { // the domain is gone
		return nil
	}
	return err
}
