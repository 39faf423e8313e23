package live

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
	"cairn/internal/extent"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// point is a tree of the repository that clients may read.
type point struct {
	d      *Driver
	name   string
	tree   volume.Tree
	served *nbd.Export
}

// ServePoint lets clients read the tree that ref names, under a name that no
// volume has, until UnservePoint. The tree must stay readable so long. Serving
// it twice is harmless. A restart forgets it.
func (d *Driver) ServePoint(ctx context.Context, name, ref string) error {
	if d.cfg.Server == nil {
		return nil
	}
	d.pointMu.Lock()
	defer d.pointMu.Unlock()
	if d.points[name] != nil {
		return nil
	}
	tree, err := d.cfg.OpenTree(ctx, ref)
	if err != nil {
		return fmt.Errorf("open %s to serve it: %w", name, err)
	}
	p := &point{d: d, name: name, tree: tree}
	p.served, err = d.cfg.Server.Add(nbd.ExportConfig{
		Name: name, Size: tree.Size(), ReadOnly: true, MultiConn: true, CanCache: true,
		Contexts: []string{nbd.BaseAllocation}, BlockSize: nbd.BlockSize{Preferred: clusterSize},
	}, p)
	if err != nil {
		return errors.Join(err, tree.Close())
	}
	d.points[name] = p
	return nil
}

// UnservePoint ends that. errs.Conflict: clients are connected, whose
// connections force ends. Of a point that is not served it is harmless.
func (d *Driver) UnservePoint(ctx context.Context, name string, force bool) error {
	d.pointMu.Lock()
	defer d.pointMu.Unlock()
	p := d.points[name]
	if p == nil {
		return nil
	}
	if !force {
		if n := p.served.AwaitDetached(ctx, leaveLimit); n > 0 {
			return errs.New(errs.Conflict, "snapshot %s has %d client connection(s); disconnect them first, or use force", name, n)
		}
	}
	if err := p.served.Remove(ctx); err != nil {
		return err // some request goes on: the tree stays open, and this may be tried again
	}
	delete(d.points, name)
	d.logClose(name, p.tree.Close())
	return nil
}

// PointExported tells how a point is served; nothing if it is not.
func (d *Driver) PointExported(name string) (e volume.Export) {
	d.pointMu.Lock()
	p := d.points[name]
	d.pointMu.Unlock()
	if p != nil {
		e.URIs, e.Clients = d.cfg.URIs(name), p.served.Connections()
	}
	return e
}

// closePoints is called when the server takes no clients any more.
func (d *Driver) closePoints() (err error) {
	d.pointMu.Lock()
	defer d.pointMu.Unlock()
	for name, p := range d.points {
		err = errors.Join(err, p.tree.Close())
		delete(d.points, name)
	}
	return err
}

var _ nbd.Backend = (*point)(nil)

func (p *point) ReadAt(ctx context.Context, buf []byte, off int64) error {
	return p.d.readTree(ctx, p.tree, buf, off)
}

func (p *point) Status(ctx context.Context, into []nbd.Extent, name string, off, length int64, limit int) ([]nbd.Extent, error) {
	if name != nbd.BaseAllocation {
		return into, errs.New(errs.Invalid, "snapshot %s has no context %q", p.name, name)
	}
	return allocation(into, off, min(off+length, p.tree.Size()), limit, func(off int64) (extent.Range, error) {
		return p.tree.Data(ctx, off)
	})
}

// Cache does nothing: what a client reads is kept as long as there is room.
func (p *point) Cache(context.Context, int64, int64) error { return nil }

func (p *point) Flush(context.Context) error { return nil }

// The server answers these by itself, as the export is read-only.
func (p *point) WriteAt(context.Context, []byte, int64, nbd.Flags) error { return unix.EPERM }
func (p *point) Trim(context.Context, int64, int64, nbd.Flags) error     { return unix.EPERM }
func (p *point) Zero(context.Context, int64, int64, nbd.Flags) error     { return unix.EPERM }
