package qemu

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"cairn/internal/compute"
	"cairn/internal/errs"
	"cairn/internal/qmp"
)

// thawLimit is how long the watchdog tries to reach an agent whose guest must go
// on.
const thawLimit = time.Minute

// channelLimit is how long a monitor may take to tell whether there is an agent.
const channelLimit = 500 * time.Millisecond

// frozen is a guest at rest. Its agent's connection is its own, so that a
// monitor which somebody else talks to does not keep it from going on.
type frozen struct {
	m     *machine
	id    string
	d     *Driver
	timer *time.Timer

	mu    sync.Mutex // guards what follows
	agent *qmp.Agent // nil: thawed
	err   error      // of the thaw
}

var _ compute.Frozen = (*frozen)(nil)

func (m *machine) agent(ctx context.Context) (a *qmp.Agent, err error) {
	err = m.inside(func(dir string) error {
		a, err = qmp.DialAgent(ctx, filepath.Join(dir, agentSocket))
		return err
	})
	return a, err
}

// lacksAgent reports whether nobody in the guest has the agent's channel open,
// so that none need be waited for. Where that cannot be told it does not.
func (m *machine) lacksAgent(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, channelLimit)
	defer cancel()
	var channels []struct {
		Label string
		Open  bool `json:"frontend-open"`
	}
	m.Lock()
	defer m.Unlock()
	err := m.with(ctx, func(ctx context.Context, c *qmp.Client) error { return c.Do(ctx, "query-chardev", nil, &channels) })
	if err != nil {
		return false
	}
	for _, c := range channels {
		if c.Label == agentChannel {
			return !c.Open
		}
	}
	return false
}

// Freeze brings the guest's filesystems to rest.
func (d *Driver) Freeze(ctx context.Context, id string, limit time.Duration) (compute.Frozen, error) {
	m, _, err := d.there(id)
	if err != nil {
		return nil, err
	}
	if m.lacksAgent(ctx) {
		return nil, errs.New(errs.Unavailable, "the guest of %s has no agent that listens", id)
	}
	a, err := m.agent(ctx)
	if err != nil {
		return nil, err
	}
	f := &frozen{m: m, id: id, d: d, agent: a}
	var filesystems int
	if err := a.Do(ctx, "guest-fsfreeze-freeze", nil, &filesystems); err != nil {
		// It may be at it, or have frozen some, or will when it gets to it: it must
		// be told to end that, and nobody shall wait for it.
		d.chores.Go(f.watchdog)
		return nil, errs.Wrap(errs.Unavailable, err, "the guest of %s cannot freeze its filesystems", id)
	}
	f.timer = time.AfterFunc(limit, f.watchdog)
	return f, nil
}

// Thaw lets the guest go on.
func (f *frozen) Thaw(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.agent == nil {
		return f.err
	}
	if !f.timer.Stop() {
		f.err = errs.New(errs.Unavailable, "the guest of %s was thawed by the watchdog", f.id)
	}
	f.err = errors.Join(f.err, f.thaw(ctx))
	return f.err
}

// thaw runs once; mu is held, or nobody else knows f.
func (f *frozen) thaw(ctx context.Context) error {
	a := f.agent
	f.agent = nil
	// An agent that says it is thawed already was thawed by somebody else, or
	// never frozen: then nobody knows what the disks hold.
	var state string
	err := a.Do(ctx, "guest-fsfreeze-status", nil, &state)
	if err == nil && state != "frozen" {
		err = errs.New(errs.Unavailable, "the guest of %s did not stay frozen", f.id)
	}
	thawed := a.Do(ctx, "guest-fsfreeze-thaw", nil, nil)
	closed := a.Close()
	if thawed != nil {
		thawed = errors.Join(thawed, f.thawAnew(context.WithoutCancel(ctx)))
	}
	return errors.Join(err, thawed, closed)
}

// thawAnew does it on another connection, after one that is of no more use.
func (f *frozen) thawAnew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, thawLimit)
	defer cancel()
	if f.agent != nil {
		if err := f.agent.Close(); err != nil {
			return err
		}
		f.agent = nil
	}
	a, err := f.m.agent(ctx)
	if err != nil {
		return err
	}
	return errors.Join(a.Do(ctx, "guest-fsfreeze-thaw", nil, nil), a.Close())
}

// watchdog thaws a guest whose Thaw did not come in time.
func (f *frozen) watchdog() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.agent == nil {
		return
	}
	err := f.thawAnew(context.Background())
	f.err = errs.Wrap(errs.Unavailable, err, "the guest of %s was frozen for too long and has been thawed", f.id)
	f.d.log.Warn("thawed a guest that was frozen for too long", "machine", f.id, "error", err)
}
