package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// Managed keeps volumes of our own: sparse raw files dir/<vol-id>.raw, with
// reflinks in dir/holds.
type Managed struct {
	*disks
	dir string
}

var _ volume.Driver = (*Managed)(nil)

// NewManaged opens the folder of managed volumes, making it if need be.
func NewManaged(dir string) (*Managed, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the folder of managed volumes: %w", err)
	}
	m := &Managed{dir: dir}
	m.disks, err = newDisks(filepath.Join(dir, "holds"), m.place)
	if err != nil {
		return nil, err
	}
	return m, syncDir(filepath.Dir(dir))
}

func (m *Managed) place(s volume.Spec) (place, error) {
	if !nameOK(s.ID) {
		return place{}, errs.New(errs.Internal, "%q cannot name a volume", s.ID)
	}
	return place{id: s.ID, path: filepath.Join(m.dir, s.ID+".raw")}, nil
}

// ListManaged lists the volumes that lie in a folder of managed volumes, with
// their real sizes. It changes nothing; an absent folder has none.
func ListManaged(dir string) ([]volume.Spec, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the managed volumes: %w", err)
	}
	var out []volume.Spec
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".raw")
		if !ok || !nameOK(id) || !e.Type().IsRegular() {
			continue
		}
		st, err := e.Info()
		if err != nil {
			return nil, fmt.Errorf("look at managed volume %s: %w", id, err)
		}
		out = append(out, volume.Spec{ID: id, SizeBytes: st.Size()})
	}
	return out, nil
}

// Capabilities says that managed volumes are made here, never registered.
func (m *Managed) Capabilities() volume.Capabilities {
	return volume.Capabilities{CreateVolumes: true}
}

// Probe always refuses.
func (m *Managed) Probe(context.Context, string) (volume.Probe, error) {
	return volume.Probe{}, errs.New(errs.Invalid, "managed volumes are created, not registered")
}

// Create makes an all-zero volume. A crash halfway leaves a file that the
// next Create empties and Remove removes.
func (m *Managed) Create(ctx context.Context, s volume.Spec) error {
	p, err := m.place(s)
	if err != nil {
		return err
	}
	if s.SizeBytes <= 0 {
		return errs.New(errs.Invalid, "volume %s: its size must be at least one byte", s.ID)
	}
	if err := m.unused(ctx, p); err != nil {
		return err
	}
	f, err := os.OpenFile(p.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return openFailure(s.ID, err)
	}
	err = setSize(f, s.ID, s.SizeBytes)
	if cerr := f.Close(); err == nil && cerr != nil {
		err = ioFailure(s.ID, "write", cerr)
	}
	if err == nil {
		err = m.syncNames(s.ID)
	}
	return err
}

// unused makes sure that nobody has a volume open. An absent one is unused.
func (m *Managed) unused(ctx context.Context, p place) error {
	g, err := m.acquire(ctx, p, true)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return g.release()
}

// setSize gives an open volume its size, durably.
func setSize(f *os.File, id string, size int64) error {
	if err := f.Truncate(size); err != nil {
		if errors.Is(err, unix.EFBIG) {
			return errs.Wrap(errs.Invalid, err, "volume %s: the server's filesystem has no room for files of %d bytes; choose a smaller size", id, size)
		}
		return ioFailure(id, "resize", err)
	}
	if err := f.Sync(); err != nil {
		return ioFailure(id, "resize", err)
	}
	return nil
}

func (m *Managed) syncNames(id string) error {
	if err := syncDir(m.dir); err != nil {
		return ioFailure(id, "write", err)
	}
	return nil
}

// Grow makes the volume larger. The kernel makes the new tail read as zeros.
func (m *Managed) Grow(ctx context.Context, s volume.Spec, newSize int64) error {
	p, err := m.place(s)
	if err != nil {
		return err
	}
	g, err := m.acquire(ctx, p, true)
	if err != nil {
		return err
	}
	if g.size > newSize {
		err = errs.New(errs.Invalid, "volume %s has %d bytes already and cannot shrink to %d", s.ID, g.size, newSize)
	} else {
		err = setSize(g.f, s.ID, newSize)
	}
	return errors.Join(err, g.release())
}

// Remove destroys the volume's data. errs.Busy: somebody has it open.
func (m *Managed) Remove(ctx context.Context, s volume.Spec) error {
	p, err := m.place(s)
	if err != nil {
		return err
	}
	if err := m.unused(ctx, p); err != nil {
		return err
	}
	if err := os.Remove(p.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ioFailure(s.ID, "remove", err)
	}
	return m.syncNames(s.ID)
}
