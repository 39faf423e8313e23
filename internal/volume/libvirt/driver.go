// Package virtvolume holds the disks of machines that run under libvirt. A point
// of a running machine is read from the machine itself, by a pull-mode backup of
// QEMU's, while its guest goes on writing; the disks of a stopped one are read,
// and in an apply overwritten, through qemu-nbd.
//
// Invariants:
//   - all disks of one Freeze are held at one moment: those of one machine by one
//     transaction of its QEMU, several machines by pausing all for that moment;
//   - changes are told only by a dirty bitmap that libvirt kept whole since the
//     base point's own moment; whatever is doubtful is ErrNoBase;
//   - what is made in a domain, checkpoints and their bitmaps, carries this
//     folder's tag, and nothing else is ever removed;
//   - a machine that was paused is noted before, so that the next process lets
//     it go on.
//
// A Driver serves any number of goroutines. One process at a time may use a
// folder.
package virtvolume

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"cairn/internal/durable"
	"cairn/internal/errs"
	"cairn/internal/libvirt"
	"cairn/internal/volume"
)

// Config is what a Driver needs.
type Config struct {
	Dir    string // made if need be; QEMU's own user must be able to reach it
	Daemon libvirt.Daemon
	// ScratchBytes of what guests overwrite during points are kept, of all
	// machines together; DefaultScratch.
	ScratchBytes int64
	Log          *slog.Logger
}

// DefaultScratch is 16 GiB.
const DefaultScratch = 16 << 30

// Driver serves disks of domains.
type Driver struct {
	cfg Config
	tag string // of all that this folder's driver makes in domains
	log *slog.Logger

	claims claims

	mu   sync.Mutex          // guards held
	held map[string]*instant // by hold; nil while Freeze is at work
}

// New opens a folder. The daemon need not answer yet. errs.Invalid: sockets in it
// would have names that are too long.
func New(c Config) (*Driver, error) {
	if most := socketRoom - socketRest; len(c.Dir) > most {
		return nil, errs.New(errs.Invalid, "%s is too long for a folder of libvirt's volumes: sockets in it can have no name; name another one of at most %d bytes (--libvirt-dir)", c.Dir, most)
	}
	if c.ScratchBytes == 0 {
		c.ScratchBytes = DefaultScratch
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	// Servers of disks that were being overwritten ended with their process.
	if err := os.RemoveAll(filepath.Join(c.Dir, "targets")); err != nil {
		return nil, err
	}
	for _, dir := range []string{c.Dir, filepath.Join(c.Dir, "records"), filepath.Join(c.Dir, "holds"), filepath.Join(c.Dir, "targets")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make the folder of libvirt's volumes: %w", err)
		}
	}
	d := &Driver{cfg: c, log: c.Log, held: map[string]*instant{}, claims: newClaims()}
	var err error
	d.tag, err = ownTag(filepath.Join(c.Dir, "tag"))
	return d, err
}

// ownTag is drawn once for a folder.
func ownTag(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err == nil && len(b) == 8 {
		return string(b), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	tag := strings.ToLower(rand.Text()[:8])
	return tag, durable.Write(path, []byte(tag))
}

// holdDir is where what belongs to a hold is kept; its name is short, for sockets.
func (d *Driver) holdDir(hold string) string {
	sum := sha256.Sum256([]byte(hold))
	return filepath.Join(d.cfg.Dir, "holds", strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5])))
}

// Names of a domain's folder in a hold's.
func domainDir(id uuid.UUID) string { return base64.RawURLEncoding.EncodeToString(id[:]) }

func domainOf(dir string) (id uuid.UUID, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(dir)
	if err != nil || len(b) != len(id) {
		return id, false
	}
	return uuid.UUID(b), true
}

// Capabilities says that these volumes are found, never made.
func (d *Driver) Capabilities() volume.Capabilities { return volume.Capabilities{Tracking: true} }

// place is where a volume's disk is.
type place struct {
	id     string // vol-… or ins-…
	domain uuid.UUID
	target string
}

// locate reads a Spec of a disk, which has its DiskPath as path and identity.
func locate(s volume.Spec) (place, error) {
	id, target, ok := strings.Cut(strings.TrimPrefix(s.Path, libvirt.DiskScheme), "/")
	u, err := uuid.Parse(id)
	if !ok || err != nil || !strings.HasPrefix(s.Path, libvirt.DiskScheme) || s.Identity != s.Path || !plainName(s.ID) || !plainName(target) {
		return place{}, errs.New(errs.Internal, "volume %q is at %q, which is no disk of libvirt's", s.ID, s.Path)
	}
	return place{id: s.ID, domain: u, target: target}, nil
}

// plainName says whether s may be a file's name and stand in XML as it is.
func plainName(s string) bool {
	return s != "" && len(s) <= 128 && s[0] != '.' && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	})
}

// disk finds what a place is in its domain. errs.Invalid: Cairn cannot read it,
// and why.
func (p place) disk(dom libvirt.Domain) (libvirt.Disk, error) {
	for _, k := range dom.Disks {
		if k.Target != p.target {
			continue
		}
		if k.Problem != "" {
			return k, errs.New(errs.Invalid, "no snapshot can be taken of %s: disk %s of domain %s %s", p.id, p.target, dom.Name, k.Problem)
		}
		return k, nil
	}
	return libvirt.Disk{}, errs.New(errs.NotFound, "domain %s has no disk %s any more, which is %s", dom.Name, p.target, p.id)
}

// Reopen never finds anything: no instant is durable.
func (d *Driver) Reopen(ctx context.Context, hold string, _ []volume.Spec) (volume.Instant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("hold %s: %w", hold, volume.ErrNoInstant)
}

var _ volume.Foreign = (*Driver)(nil)

// Probe refuses: disks of libvirt's are found, not registered.
func (d *Driver) Probe(context.Context, string) (volume.Probe, error) {
	return volume.Probe{}, errs.New(errs.Invalid, "disks of libvirt's machines are volumes by themselves and are not registered")
}

// Create always refuses.
func (d *Driver) Create(_ context.Context, s volume.Spec) error { return notOurs(s, "created") }

// Grow always refuses: its owner does that (virsh blockresize), and the next
// point notices.
func (d *Driver) Grow(_ context.Context, s volume.Spec, _ int64) error { return notOurs(s, "resized") }

// Remove always refuses: to delete the volume is to forget it.
func (d *Driver) Remove(_ context.Context, s volume.Spec) error { return notOurs(s, "removed") }

func notOurs(s volume.Spec, what string) error {
	return errs.New(errs.Conflict, "volume %s is a disk of a machine of libvirt's, and is never %s by this server", s.ID, what)
}

// Size asks libvirt. A disk that is smaller than at its last point loses what
// tells of changes since: it may be larger again before the next one.
func (d *Driver) Size(ctx context.Context, s volume.Spec) (int64, error) {
	p, err := locate(s)
	if err != nil {
		return 0, err
	}
	dom, err := d.domain(ctx, p)
	if err != nil {
		return 0, err
	}
	if _, err := p.disk(dom); err != nil {
		return 0, err
	}
	var size uint64
	err = d.cfg.Daemon.Do(ctx, func(l *rpc.Libvirt) (err error) {
		_, size, _, err = l.DomainGetBlockInfo(dom.Handle(), p.target, 0)
		return err
	})
	if err == nil {
		err = d.noteSize(ctx, p, int64(size))
	}
	return int64(size), err
}

// noteSize gives up the record of a disk that has shrunk. While somebody has the
// domain it waits for the next look.
func (d *Driver) noteSize(ctx context.Context, p place, size int64) error {
	r, err := d.readRecord(p.id)
	if err != nil || r.Mark == "" || r.Size <= size {
		return err
	}
	if taken, err := d.claims.take(ctx, p.domain, tidying, p.id, false); err != nil || !taken {
		return err
	}
	defer d.claims.release(tidying, p.id)
	if r, err = d.readRecord(p.id); err != nil || r.Size <= size {
		return err
	}
	return d.writeRecord(p.id, record{})
}

// Forget removes what this driver has made in a disk's domain, and what it knows
// of the disk. What libvirt does not remove now the next point of any of its
// disks does.
func (d *Driver) Forget(ctx context.Context, s volume.Spec) error {
	p, err := locate(s)
	if err != nil {
		return err
	}
	if err := os.Remove(d.recordPath(p.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dom, err := d.domain(ctx, p)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.claim(ctx, dom, tidying, p.id); err != nil {
		return err
	}
	defer d.claims.release(tidying, p.id)
	keep, err := d.marksOf(prefixOf(p.domain))
	if err != nil {
		return err
	}
	if err := d.dropMarks(ctx, dom, keep); err != nil {
		return err
	}
	k, err := p.disk(dom)
	if err != nil || dom.Active {
		return nil // nothing of ours is in it, or libvirt has removed it
	}
	return d.dropBitmaps(ctx, k, keep)
}

// domain finds the machine of a place.
func (d *Driver) domain(ctx context.Context, p place) (libvirt.Domain, error) {
	all, err := d.cfg.Daemon.Domains(ctx)
	if err != nil {
		return libvirt.Domain{}, err
	}
	return p.among(all)
}

func (p place) among(all []libvirt.Domain) (libvirt.Domain, error) {
	for _, dom := range all {
		if dom.UUID == p.domain {
			return dom, nil
		}
	}
	return libvirt.Domain{}, errs.New(errs.NotFound, "libvirt does not know the machine of volume %s any more", p.id)
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }
