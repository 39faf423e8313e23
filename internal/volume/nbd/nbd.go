// Package nbdvolume holds volumes whose data another NBD server has: it reads
// them, and in an apply overwrites them in place. docs/nbd-driver.md tells
// users what a point of one is worth, adr/0011 why.
//
// Invariants:
//   - NBD can neither freeze nor lock. A Source is believed to show one moment
//     only if Check found no sign of a change since Freeze: the size, what is
//     allocated, every dirty bitmap, and a sample of blocks are as they were;
//   - changes are tracked only where the owner asked for it in the URI, by a
//     bitmap that was there when the base point was taken and has lost none of
//     its marks since; whatever is doubtful is ErrNoBase;
//   - a record of tracking is gone, durably, before the volume is written to;
//   - the other server's exports are never created, resized or removed.
//
// A Driver serves any number of goroutines. One process at a time may use a
// folder.
package nbdvolume

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"cairn/internal/durable"
	"cairn/internal/errs"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// Config is what a Driver needs.
type Config struct {
	Dir string // records of tracking; made if need be
	// OwnSockets and OwnAddress (host:port, may be empty) are where the server
	// itself listens: what it serves cannot be registered with it.
	OwnSockets []string
	OwnAddress string
	// Attempts is how often a read is tried when its connection is lost, and a
	// connection when the server does not take it: 8, within some 5 s.
	Attempts int
	Log      *slog.Logger
}

// Driver serves volumes that are exports of other NBD servers.
type Driver struct {
	cfg Config
	log *slog.Logger

	mu   sync.Mutex          // guards the maps; nothing else is locked under it
	held map[string]*instant // by hold name; nil while Freeze is at work
	open map[string]*use     // by identity
}

// use is of one volume, by an instant or a target.
type use struct {
	over chan struct{} // closed when the volume is let go
	conn *conn         // nil until there is one; guarded by Driver.mu
}

var _ volume.Driver = (*Driver)(nil)

// New opens the driver.
func New(cfg Config) (*Driver, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of NBD volumes: %w", err)
	}
	if err := durable.SyncDir(filepath.Dir(cfg.Dir)); err != nil {
		return nil, err
	}
	if cfg.Attempts == 0 {
		cfg.Attempts = 8
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{cfg: cfg, log: cfg.Log, held: map[string]*instant{}, open: map[string]*use{}}, nil
}

// Capabilities says that these volumes are found, never made.
func (d *Driver) Capabilities() volume.Capabilities {
	return volume.Capabilities{Register: true, Tracking: true}
}

// Probe examines an NBD URI that somebody wants to register. Its messages may
// name the URI: only somebody on this machine gets here.
func (d *Driver) Probe(ctx context.Context, text string) (volume.Probe, error) {
	if err := ctx.Err(); err != nil {
		return volume.Probe{}, err
	}
	p, err := parse(text)
	if err != nil {
		return volume.Probe{}, err
	}
	if p, err = p.canonical(); err != nil {
		return volume.Probe{}, err
	}
	c, err := d.dial(ctx, p, nil, errs.Denied)
	if err != nil {
		if ctx.Err() != nil {
			return volume.Probe{}, ctx.Err()
		}
		return volume.Probe{}, probeFailure(p, err)
	}
	defer c.Close() //nolint:errcheck // it was only looked at
	if c.Size() == 0 {
		return volume.Probe{}, errs.New(errs.Invalid, "the export at %s is empty; a volume needs at least one byte", shown(text))
	}
	if err := refuseImage(ctx, c, p); err != nil {
		return volume.Probe{}, err
	}
	return volume.Probe{Path: p.String(), Identity: p.identity(), SizeBytes: c.Size()}, nil
}

// refuseImage refuses a qcow2 file that is served as if it were the disk: its
// points would look right and hold the wrong bytes.
func refuseImage(ctx context.Context, c *nbd.Client, p place) error {
	head := make([]byte, min(c.Size(), 4))
	if err := c.ReadAt(ctx, head, 0); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return probeFailure(p, err)
	}
	if string(head) == "QFI\xfb" {
		return errs.New(errs.Invalid, "%s serves the file of a qcow2 image, not the disk in it; serve the disk (qemu-nbd -f qcow2) and register that", shown(p.String()))
	}
	return nil
}

// Create always refuses.
func (d *Driver) Create(_ context.Context, s volume.Spec) error { return notOurs(s, "created") }

// Grow always refuses: the owner resizes the export, and the next point
// notices.
func (d *Driver) Grow(_ context.Context, s volume.Spec, _ int64) error { return notOurs(s, "resized") }

// Remove always refuses: to delete the volume is to forget it.
func (d *Driver) Remove(_ context.Context, s volume.Spec) error { return notOurs(s, "removed") }

func notOurs(s volume.Spec, what string) error {
	return errs.New(errs.Conflict, "volume %s is a registered one: its data belongs to another NBD server and is never %s by this one", s.ID, what)
}

// Size asks the other server; where the volume is in use here, what the server
// told then is the answer, as it may take no second client.
func (d *Driver) Size(ctx context.Context, s volume.Spec) (int64, error) {
	p, err := locate(s)
	if err != nil {
		return 0, err
	}
	if k := d.inUse(p); k != nil {
		return k.size(), nil
	}
	c, err := d.dial(ctx, p, nil, errs.Denied)
	if err != nil {
		return 0, failure(ctx, p.id, "reach", err)
	}
	return c.Size(), c.Close()
}

// letGoWait is how long a claim waits for the one before. A job shows as ended
// a moment before it lets go of its volumes, and whoever saw that and comes next
// must not be told that the volume is busy.
const letGoWait = 500 * time.Millisecond

// claim keeps this process from using a volume twice; unclaim ends that.
func (d *Driver) claim(ctx context.Context, p place) error {
	timer := time.NewTimer(letGoWait)
	defer timer.Stop()
	for {
		d.mu.Lock()
		taken := d.open[p.identity()]
		if taken == nil {
			d.open[p.identity()] = &use{over: make(chan struct{})}
			d.mu.Unlock()
			return nil
		}
		d.mu.Unlock()
		select {
		case <-taken.over:
		case <-timer.C:
			return errs.New(errs.Busy, "volume %s is being read or written by another job; please try later", p.id)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (d *Driver) unclaim(p place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.open[p.identity()].over)
	delete(d.open, p.identity())
}

// uses tells of the connection of a volume that is claimed.
func (d *Driver) uses(k *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open[k.p.identity()].conn = k
}

// inUse is the connection of a volume; nil: there is none.
func (d *Driver) inUse(p place) *conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	if u := d.open[p.identity()]; u != nil {
		return u.conn
	}
	return nil
}

// nameOK says whether s may be a file name of ours.
func nameOK(s string) bool {
	if s == "" || len(s) > 128 || s[0] == '.' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return false
		}
		return r != '-' && r != '_' && r != '.'
	})
}
