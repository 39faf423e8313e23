package virtvolume

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/google/uuid"

	"cairn/internal/errs"
	"cairn/internal/libvirt"
	"cairn/internal/volume"
)

// claims are the domains that somebody is at work on: QEMU makes one backup of a
// machine at a time, and a disk that is overwritten is not read.
type claims struct {
	mu      sync.Mutex // guards what follows
	of      map[uuid.UUID]*claim
	changed chan struct{} // closed, and another made, when somebody may go on
}

type claim struct {
	by     string
	parts  map[string]bool // of the one that has it; without any it ends
	ending bool            // soon nobody has it
}

func newClaims() claims { return claims{of: map[uuid.UUID]*claim{}, changed: make(chan struct{})} }

// take claims a domain, also again. Who has it otherwise and is about to let go
// is waited for; others only by a caller that is patient, else false.
func (c *claims) take(ctx context.Context, id uuid.UUID, by, part string, patient bool) (bool, error) {
	for {
		c.mu.Lock()
		has := c.of[id]
		if has == nil {
			has = &claim{by: by, parts: map[string]bool{}}
			c.of[id] = has
		}
		if has.by == by {
			twice := has.parts[part] && !patient && part != ""
			has.parts[part] = true
			c.mu.Unlock()
			return !twice, nil
		}
		ending, changed := has.ending, c.changed
		c.mu.Unlock()
		if !patient && !ending {
			return false, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// release gives up a part of every claim of somebody's.
func (c *claims) release(by, part string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, has := range c.of {
		if has.by != by {
			continue
		}
		if delete(has.parts, part); len(has.parts) == 0 {
			delete(c.of, id)
		}
	}
	c.tell()
}

// end says whether somebody's claims are about to be released.
func (c *claims) end(by string, ending bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, has := range c.of {
		if has.by == by {
			has.ending = ending
		}
	}
	c.tell()
}

// tell wakes all who wait. The caller has mu.
func (c *claims) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// claim takes a domain for a hold, or for a target.
func (d *Driver) claim(ctx context.Context, dom libvirt.Domain, by, part string) error {
	taken, err := d.claims.take(ctx, dom.UUID, by, part, false)
	if err == nil && !taken {
		err = errs.New(errs.Busy, "a snapshot of domain %s is being taken, or its disks are overwritten; please try later", dom.Name)
	}
	return err
}

// Reserve waits until nobody has the machines of these disks. Whoever reserves
// several takes them in one order, so that no two wait for each other.
func (d *Driver) Reserve(ctx context.Context, hold string, specs []volume.Spec) error {
	var ids []uuid.UUID
	for _, s := range specs {
		p, err := locate(s)
		if err != nil {
			return err
		}
		ids = append(ids, p.domain)
	}
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	for _, id := range slices.Compact(ids) {
		if _, err := d.claims.take(ctx, id, hold, "", true); err != nil {
			d.claims.release(hold, "")
			return err
		}
	}
	return nil
}
