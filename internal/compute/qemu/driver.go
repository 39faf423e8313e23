package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"cairn/internal/compute"
	"cairn/internal/errs"
)

// Config is all that a Driver needs.
type Config struct {
	Dir string // made if it is not there
	// Binary is the emulator; "": DefaultBinary, looked for in PATH.
	Binary string
	// Acceleration is kvm or tcg; "": kvm if a machine really runs with it.
	Acceleration string
	Log          *slog.Logger
}

// DefaultBinary is QEMU for machines like the ones that most servers are.
const DefaultBinary = "qemu-system-x86_64"

// Driver runs machines in one folder.
type Driver struct {
	dir    string
	binary string
	asked  string // acceleration; "": the best that works
	log    *slog.Logger

	probing sync.Mutex // guards accel
	accel   string     // "": not found out yet

	mu       sync.Mutex // guards machines
	machines map[string]*machine

	ending chan struct{} // closed by Close
	chores sync.WaitGroup
}

var _ compute.Driver = (*Driver)(nil)

// machine is one folder. Its lock is held by whoever changes the machine or
// talks to its monitor, which takes one client at a time.
type machine struct {
	sync.Mutex
	dir string
}

// New opens the folder. errs.Unavailable: there is no QEMU.
func New(c Config) (*Driver, error) {
	if c.Binary == "" {
		c.Binary = DefaultBinary
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	binary, err := exec.LookPath(c.Binary)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "%s is not installed, so machines cannot run here; on Debian: apt install qemu-system-x86", c.Binary)
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d := &Driver{dir: dir, binary: binary, asked: c.Acceleration, log: c.Log, machines: map[string]*machine{}, ending: make(chan struct{})}
	d.chores.Go(d.trimConsoles)
	return d, nil
}

// Close lets the machines go on.
func (d *Driver) Close() error {
	close(d.ending)
	d.chores.Wait()
	return nil
}

// Capabilities tells what this driver can.
func (d *Driver) Capabilities() compute.Capabilities {
	d.probing.Lock()
	defer d.probing.Unlock()
	return compute.Capabilities{Run: true, Acceleration: d.accel}
}

// acceleration is found out when the first machine is started: it takes as long
// as a machine of its own.
func (d *Driver) acceleration(ctx context.Context) (string, error) {
	d.probing.Lock()
	defer d.probing.Unlock()
	if d.accel != "" {
		return d.accel, nil
	}
	accel, err := acceleration(ctx, d.binary, d.asked)
	if err == nil {
		d.accel = accel
	}
	return accel, err
}

func (d *Driver) machine(id string) *machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.machines[id]
	if m == nil {
		m = &machine{dir: filepath.Join(d.dir, id)}
		d.machines[id] = m
	}
	return m
}

// known gives the machine of an id with what it is made of. The id may be
// anything: it names a folder only if it looks like an id.
func (d *Driver) known(id string) (*machine, compute.Spec, error) {
	if !isID(id) {
		return nil, compute.Spec{}, absent(id)
	}
	m := d.machine(id)
	s, err := m.load()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s, absent(id)
	}
	return m, s, err
}

// there is known for what needs no description: a damaged one keeps nobody from
// asking, stopping, or defining the machine anew.
func (d *Driver) there(id string) (*machine, compute.Spec, error) {
	m, s, err := d.known(id)
	if errs.Is(err, errs.Corrupt) {
		d.log.Warn("a machine's description is damaged; it is made anew when the machine is started", "machine", id, "error", err)
		return m, compute.Spec{ID: id}, nil
	}
	return m, s, err
}

func absent(id string) error { return errs.New(errs.NotFound, "there is no machine %q here", id) }

// isID keeps ids from being paths, or long ones: they also name nodes of QEMU,
// which have 31 characters at most.
func isID(id string) bool {
	if len(id) < 3 || len(id) > 28 || id[0] < 'a' || id[0] > 'z' {
		return false
	}
	return !strings.ContainsFunc(id, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-')
	})
}

const specFile = "machine.json"

func (m *machine) load() (s compute.Spec, err error) {
	b, err := os.ReadFile(filepath.Join(m.dir, specFile))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, errs.Wrap(errs.Corrupt, err, "%s of the machine in %s is damaged; put it back, or delete the machine", specFile, m.dir)
	}
	return s, nil
}

// save is durable when it returns; a crash leaves the old file or the new one.
func (m *machine) save(s compute.Spec) (err error) {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(m.dir, ".machine-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(m.dir, specFile)); err != nil {
		return err
	}
	return syncFolder(m.dir)
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Define makes a machine.
func (d *Driver) Define(ctx context.Context, s compute.Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := check(s); err != nil {
		return err
	}
	m := d.machine(s.ID)
	m.Lock()
	defer m.Unlock()
	if err := os.Mkdir(m.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := syncFolder(d.dir); err != nil {
		return err
	}
	pid, err := m.pid()
	if err != nil {
		return err
	}
	if pid != 0 {
		return errs.New(errs.Conflict, "machine %s is running; stop it first", s.ID)
	}
	return m.save(s)
}

// check refuses what QEMU would take for something else.
func check(s compute.Spec) error {
	if err := s.Check(); err != nil {
		return err
	}
	if !isID(s.ID) {
		return errs.New(errs.Invalid, "%q cannot be a machine's id", s.ID)
	}
	for _, disk := range s.Disks {
		if err := checkDisk(disk); err != nil {
			return err
		}
	}
	return nil
}

func checkDisk(disk compute.Disk) error {
	if !isID(disk.ID) || len(disk.ID) > maxSerial {
		return errs.New(errs.Invalid, "%q cannot be a disk's id", disk.ID)
	}
	_, err := blockdev(disk)
	return err
}

// listAtOnce machines are asked at a time: some may not answer soon.
const listAtOnce = 32

// List is all machines in the folder.
func (d *Driver) List(ctx context.Context) ([]compute.Machine, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	var (
		mu  sync.Mutex
		all []compute.Machine
	)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(listAtOnce)
	for _, e := range entries {
		if !e.IsDir() || !isID(e.Name()) {
			continue
		}
		g.Go(func() error {
			m, err := d.Describe(ctx, e.Name())
			if errs.Is(err, errs.NotFound) { // a crash left a folder, or it is going
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, m)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b compute.Machine) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// Describe tells of one machine.
func (d *Driver) Describe(ctx context.Context, id string) (compute.Machine, error) {
	if err := ctx.Err(); err != nil {
		return compute.Machine{}, err
	}
	m, s, err := d.there(id)
	if err != nil {
		return compute.Machine{}, err
	}
	pid, err := m.pid()
	if err != nil {
		return compute.Machine{}, err
	}
	out := compute.Machine{Spec: s}
	if pid != 0 {
		out.State = m.doing(ctx)
	}
	return out, nil
}

// Delete ends a machine and removes its folder.
func (d *Driver) Delete(ctx context.Context, id string) error {
	if !isID(id) {
		return nil
	}
	m := d.machine(id)
	m.Lock()
	defer m.Unlock()
	if _, err := m.stop(ctx, 0, d.log); err != nil {
		return err
	}
	// Its description goes first: what is left of the folder is no machine.
	if err := os.Remove(filepath.Join(m.dir, specFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(m.dir); err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.machines, id)
	d.mu.Unlock()
	return syncFolder(d.dir)
}

// Console reads what the guest wrote to its serial port.
func (d *Driver) Console(_ context.Context, id string, off int64) (io.ReadCloser, error) {
	m, _, err := d.there(id)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(m.dir, consoleLog))
	if errors.Is(err, fs.ErrNotExist) { // it never ran
		return io.NopCloser(strings.NewReader("")), nil
	}
	if err != nil {
		return nil, err
	}
	whence := unix.SEEK_DATA // what was trimmed is a hole
	if off < 0 {
		info, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		off, whence = max(off, -info.Size()), io.SeekEnd
	}
	if _, err := f.Seek(off, whence); errors.Is(err, unix.ENXIO) { // nothing was written there yet
		_, err = f.Seek(0, io.SeekEnd)
		return f, err
	} else if err != nil {
		return nil, errors.Join(fmt.Errorf("console of %s: %w", id, err), f.Close())
	}
	return f, nil
}
