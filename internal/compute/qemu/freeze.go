package qemu

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/compute"
	"cairn/internal/errs"
	"cairn/internal/qmp"
)

// thawLimit is how long one try to let a guest go on may take.
const thawLimit = 15 * time.Second

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
	agent *qmp.Agent // nil: thawed, or told to until it is
	err   error      // what is not known of the time until then
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
		d.chores.Go(func() {
			if err := a.Close(); err != nil {
				d.log.Info("the connection to a guest's agent ended badly", "machine", id, "error", err)
			}
			f.insist()
		})
		return nil, errs.Wrap(errs.Unavailable, err, "the guest of %s cannot freeze its filesystems", id)
	}
	d.chores.Add(1)
	f.timer = time.AfterFunc(limit, func() {
		defer d.chores.Done()
		f.watchdog()
	})
	return f, nil
}

// Thaw lets the guest go on. If it does not hear that, it is told again until it
// does.
func (f *frozen) Thaw(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.agent == nil {
		return f.err
	}
	if f.timer.Stop() {
		f.d.chores.Done()
	}
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
	if thawed != nil {
		thawed = errs.Wrap(errs.Unavailable, thawed, "the guest of %s does not hear that its filesystems may go on, and is told again", f.id)
		f.d.chores.Go(f.insist)
	}
	f.err = errors.Join(err, thawed, a.Close())
	return f.err
}

// watchdog thaws a guest whose Thaw did not come in time.
func (f *frozen) watchdog() {
	f.mu.Lock()
	if f.agent == nil {
		f.mu.Unlock()
		return
	}
	f.d.log.Warn("a guest is at rest for too long, and goes on", "machine", f.id)
	f.err = errs.New(errs.Unavailable, "the guest of %s was at rest for too long and was thawed by the watchdog", f.id)
	// Another connection: this one may be of no more use.
	f.err = errors.Join(f.err, f.agent.Close())
	f.agent = nil
	f.mu.Unlock()
	f.insist()
}

// insist thaws a guest on connections of its own.
func (f *frozen) insist() {
	compute.Insist(f.d.log, f.id, f.d.ending, func(ctx context.Context) (gone bool, err error) {
		ctx, cancel := context.WithTimeout(ctx, thawLimit)
		defer cancel()
		a, err := f.m.agent(ctx)
		if err != nil {
			// Nobody listens where QEMU does.
			return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED), err
		}
		return false, errors.Join(a.Do(ctx, "guest-fsfreeze-thaw", nil, nil), a.Close())
	})
}
