package nbdvolume

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

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

// dial connects to a volume's export, unless it is one of our own. Failures of
// the kinds that may pass are tried anew, as long as a read would be: a server
// that takes one client at a time may not have noticed yet that the one before,
// often ourselves, has gone.
func (d *Driver) dial(ctx context.Context, p place, contexts []string, mayPass ...errs.Kind) (*nbd.Client, error) {
	if err := d.refuseOwn(ctx, p.uri); err != nil {
		return nil, err
	}
	wait := 50 * time.Millisecond
	for attempt := 1; ; attempt++ {
		c, err := nbd.Dial(ctx, p.uri, nbd.Options{Contexts: contexts, Connections: connections, Attempts: d.cfg.Attempts})
		if err == nil || attempt >= d.cfg.Attempts || !slices.Contains(mayPass, errs.KindOf(err)) {
			return c, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		wait = min(2*wait, 2*time.Second)
	}
}

// conn is an open volume: a client that can be replaced by a fresh one.
type conn struct {
	d        *Driver
	p        place
	contexts []string

	using sync.RWMutex // read-locked while a client is used; before mu

	mu     sync.Mutex // guards what follows
	c      *nbd.Client
	closed bool
}

// connect opens a volume that is claimed.
func (d *Driver) connect(ctx context.Context, p place, contexts ...string) (*conn, error) {
	c, err := d.dial(ctx, p, contexts, errs.Denied, errs.Unavailable)
	if err != nil {
		return nil, failure(ctx, p.id, "reach", err)
	}
	k := &conn{d: d, p: p, contexts: contexts, c: c}
	d.uses(k)
	return k, nil
}

// again connects anew and so learns what the server would say now. The old
// connections go first: a server may take one client at a time.
func (k *conn) again(ctx context.Context) error {
	k.using.Lock()
	defer k.using.Unlock()
	if err := k.client().Close(); err != nil {
		return err
	}
	// A server that starts again has its exports a little later.
	c, err := k.d.dial(ctx, k.p, k.contexts, errs.Denied, errs.Unavailable, errs.NotFound)
	if err != nil {
		return failure(ctx, k.p.id, "reach", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errors.Join(nbd.ErrClosed, c.Close())
	}
	k.c = c
	return nil
}

// client is the present one.
func (k *conn) client() *nbd.Client {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.c
}

// use runs fn with the present client, which is not replaced meanwhile.
func (k *conn) use(fn func(c *nbd.Client) error) error {
	k.using.RLock()
	defer k.using.RUnlock()
	return fn(k.client())
}

// size is the export's, in bytes, as the present client was told.
func (k *conn) size() int64 { return k.client().Size() }

func (k *conn) readOnly() bool { return k.client().ReadOnly() }

// offered are the contexts that the server has of those that were wanted.
func (k *conn) offered() []string { return k.client().Contexts() }

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
		return nil, failure(ctx, k.p.id, "tell the status of", err)
	}
	return all, nil
}

// Windows are how much of a volume a server is asked about at a time. A target's
// is smaller, as it is asked anew behind each write.
const (
	sourceWindow = 1 << 30
	targetWindow = 64 << 20
)

// statusMap is what the server tells in one context.
func (k *conn) statusMap(name string, size, window int64) *nbd.StatusMap {
	return nbd.NewStatusMap(size, window, func(ctx context.Context, off, length int64) ([]nbd.Extent, error) {
		return k.status(ctx, name, off, length)
	})
}

// close ends the use for good; who reads meanwhile fails. It waits for nobody:
// a server may never answer.
func (k *conn) close() error {
	k.mu.Lock()
	c := k.c
	k.closed = true
	k.mu.Unlock()
	return c.Close()
}

// failure explains why another server failed. Its address is in err only: the
// sentence may be read by people of other machines.
func failure(ctx context.Context, id, doing string, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, nbd.ErrClosed):
		return err
	case doing == "reach" && errs.Is(err, errs.Invalid):
		// These sentences of the client, and ours, name no address.
		return errs.Wrap(errs.Conflict, err, "volume %s cannot be used any more as its NBD server offers it: %s", id, errs.Message(err))
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
