package nbdvolume

import (
	"context"
	"errors"
	"sync"

	"cairn/internal/errs"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// The meta contexts that are used: where data lies, and the names under which
// QEMU has its dirty bitmaps.
const (
	baseAllocation = nbd.BaseAllocation
	bitmaps        = "qemu:dirty-bitmap:"
)

// connections is how many are used of a server that allows several.
const connections = 4

// dial connects to a volume's export, unless it is one of our own.
func (d *Driver) dial(ctx context.Context, p place, contexts []string) (*nbd.Client, error) {
	if err := d.refuseOwn(ctx, p.uri); err != nil {
		return nil, err
	}
	return nbd.Dial(ctx, p.uri, nbd.Options{Contexts: contexts, Connections: connections, Attempts: d.cfg.Attempts})
}

// conn is an open volume: a client that can be replaced by a fresh one.
type conn struct {
	d        *Driver
	p        place
	contexts []string

	mu sync.RWMutex // read-locked while c is used
	c  *nbd.Client
}

func (d *Driver) connect(ctx context.Context, p place, contexts ...string) (*conn, error) {
	c, err := d.dial(ctx, p, contexts)
	if err != nil {
		return nil, failure(ctx, p.id, "reach", err)
	}
	return &conn{d: d, p: p, contexts: contexts, c: c}, nil
}

// again connects anew and so learns what the server would say now. The old
// connections go first: a server may take one client at a time.
func (k *conn) again(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.c.Close(); err != nil {
		return err
	}
	c, err := k.d.dial(ctx, k.p, k.contexts)
	if err != nil {
		return failure(ctx, k.p.id, "reach", err)
	}
	k.c = c
	return nil
}

// use runs fn with the present client.
func (k *conn) use(fn func(c *nbd.Client) error) error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return fn(k.c)
}

// size is the export's, in bytes, as the present client was told.
func (k *conn) size() int64 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.c.Size()
}

func (k *conn) readOnly() bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.c.ReadOnly()
}

// offered are the contexts that the server has of those that were wanted.
func (k *conn) offered() []string {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.c.Contexts()
}

func (k *conn) read(ctx context.Context, buf []byte, off int64) error {
	err := k.use(func(c *nbd.Client) error { return c.ReadAt(ctx, buf, off) })
	if err != nil {
		return failure(ctx, k.p.id, "read", err)
	}
	return nil
}

func (k *conn) status(ctx context.Context, name string, off, length int64) (all []nbd.Extent, err error) {
	err = k.use(func(c *nbd.Client) error {
		all, err = c.Status(ctx, name, off, length)
		return err
	})
	if err != nil {
		return nil, failure(ctx, k.p.id, "ask the status of", err)
	}
	return all, nil
}

func (k *conn) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.c.Close()
}

// failure explains why another server failed. Its address is in err only: the
// sentence may be read by people of other machines.
func failure(ctx context.Context, id, doing string, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, nbd.ErrClosed):
		return err
	case errs.Is(err, errs.NotFound):
		return errs.Wrap(errs.NotFound, err, "volume %s: its NBD server has no such export any more; put it back and try again", id)
	case errs.Is(err, errs.Conflict):
		return errs.Wrap(errs.Conflict, errors.Join(volume.ErrChanged, err), "volume %s is not the NBD export any more that it was: its size or what it offers was another when the connection was made anew; try again", id)
	case errs.Is(err, errs.Denied):
		return errs.Wrap(errs.Denied, err, "volume %s: its NBD server does not allow to %s it; see the server's log", id, doing)
	case errs.Is(err, errs.Full):
		return errs.Wrap(errs.Full, err, "volume %s: no space is left where its NBD server keeps it; free some there and try again", id)
	}
	return errs.Wrap(errs.Unavailable, err, "volume %s: its NBD server failed to %s it or does not answer; see the server's log", id, doing)
}

// changed makes the error for bytes that are not one moment any more. what
// completes the sentence "volume vol-x …".
func changed(id, what string) error {
	return errs.Wrap(errs.Conflict, volume.ErrChanged, "volume %s %s", id, what)
}
