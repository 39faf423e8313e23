// Package file holds volumes that are plain raw files or block devices.
// docs/file-driver.md tells users how far its locks reach.
//
// Invariants:
//   - a volume is opened only after its path was seen to lead to the file or
//     device that was registered, and what was opened was compared again;
//   - what a Source shows is one moment: either a reflink made while nobody
//     could write, or the live bytes, with every lock the system has held
//     until Close and every sign of a change compared in Check;
//   - nothing is ever created, resized or removed beside a registered file:
//     reflinks lie in the driver's own folder;
//   - a recorded hold is whole: its record is written after the last reflink
//     is durable, and removed before the first reflink is.
//
// Registered serves any number of goroutines. One process at a time may use a
// folder.
package file

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"cairn/internal/durable"
	"cairn/internal/errs"
	"cairn/internal/volume"
)

// place is where a volume lies and what was there when it was registered.
type place struct {
	id       string // vol-…, for messages
	path     string
	identity string // "": not known yet, as it is being examined
}

// disks holds instants and opens targets.
type disks struct {
	holdDir string

	mu   sync.Mutex          // guards the maps; nothing else is locked under it
	live map[string]*instant // by hold name; nil while Freeze is at work
	// open holds the identities of guarded volumes. Asked first, because to
	// try the kernel's locks breaks the lease of a guard of our own. The channel
	// is closed when the guard lets go.
	open map[string]chan struct{}
}

func newDisks(holdDir string) (*disks, error) {
	if err := os.MkdirAll(holdDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of holds: %w", err)
	}
	if err := durable.SyncDir(filepath.Dir(holdDir)); err != nil {
		return nil, err
	}
	d := &disks{holdDir: holdDir, live: map[string]*instant{}, open: map[string]chan struct{}{}}
	return d, d.sweep()
}

// Size asks the file or device for its present size.
func (d *disks) Size(ctx context.Context, s volume.Spec) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	p, err := locate(s)
	if err != nil {
		return 0, err
	}
	st, err := look(p)
	if err != nil {
		return 0, err
	}
	if !isDevice(&st) {
		// Opening would break the lease that a target of ours may hold.
		return st.Size, nil
	}
	n, err := open(p, os.O_RDONLY, false)
	if err != nil {
		return 0, err
	}
	defer n.f.Close()
	return n.size, nil
}

// letGoWait is how long a claim waits for the one before. A job shows as ended
// a moment before it lets go of its volumes, and whoever saw that and comes next
// must not be told that the volume is busy.
const letGoWait = 500 * time.Millisecond

// claim keeps this process from opening a volume twice; unclaim ends that.
func (d *disks) claim(ctx context.Context, id, identity string) error {
	timer := time.NewTimer(letGoWait)
	defer timer.Stop()
	for {
		d.mu.Lock()
		free := d.open[identity]
		if free == nil {
			d.open[identity] = make(chan struct{})
			d.mu.Unlock()
			return nil
		}
		d.mu.Unlock()
		select {
		case <-free:
		case <-timer.C:
			return busy(id, nil, "is being read or written by another job")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (d *disks) unclaim(identity string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.open[identity])
	delete(d.open, identity)
}

// nameOK says whether s may be part of a file name of ours.
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

// busy makes the error for a volume that somebody else uses. what completes
// the sentence "volume vol-x …".
func busy(id string, cause error, what string) error {
	return errs.Wrap(errs.Busy, cause, "volume %s %s; please try later", id, what)
}

// changed makes the error for bytes that are not one moment any more.
func changed(id, what string) error {
	return errs.Wrap(errs.Conflict, volume.ErrChanged, "volume %s %s", id, what)
}
