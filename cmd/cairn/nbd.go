package main

import (
	"context"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"cairn/internal/engine"
	"cairn/internal/nbd"
	"cairn/internal/volume"
	"cairn/internal/volume/live"
)

// nbdSocket is where volumes are served to this host.
func nbdSocket(dir string) string { return filepath.Join(dir, "volumes", "nbd.sock") }

// nbdListeners listens for clients of volumes, and notes where.
func (c *serveConfig) nbdListeners(dir string) ([]net.Listener, error) {
	path := nbdSocket(dir)
	if err := makeFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	l, err := listenUnix(path)
	if err != nil || c.nbdListen == "" {
		return []net.Listener{l}, err
	}
	tcp, err := listenTCP("--nbd-listen", c.nbdListen)
	if err != nil {
		closeAll([]net.Listener{l})
		return nil, err
	}
	c.nbdListen = tcp.Addr().String() // with the port that it got
	return []net.Listener{l, tcp}, nil
}

// serveNBD serves clients until ctx ends.
func serveNBD(ctx context.Context, server *nbd.Server, listeners []net.Listener, log *slog.Logger) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		log.Info("serving volumes", "network", l.Addr().Network(), "address", l.Addr().String())
		g.Go(func() error { return server.Serve(ctx, l) })
	}
	return g.Wait()
}

// live opens the managed volumes.
func (c serveConfig) live(dir string, e *engine.Engine, server *nbd.Server, log *slog.Logger) (*live.Driver, error) {
	boot, err := live.BootID()
	if err != nil {
		return nil, err
	}
	return live.New(live.Config{
		Dir: dir, Boot: boot, Server: server, URIs: c.uris(filepath.Join(dir, "nbd.sock")),
		ScratchBytes: c.scratch << 20, FreeFloor: (c.reserve + nbdFloor) << 20, Log: log,
		OpenTree: func(ctx context.Context, text string) (volume.Tree, error) {
			ref, err := engine.ParsePointRef(text)
			if err != nil {
				return nil, err
			}
			return e.OpenTree(ctx, ref)
		},
	})
}

// nbdFloor MiB beyond the reserve stay free for clients when scratch grows.
const nbdFloor = 256

// uris tells where an export is found, by the NBD project's doc/uri.md.
func (c serveConfig) uris(socket string) func(name string) []string {
	return func(name string) []string {
		out := []string{"nbd+unix:///" + url.PathEscape(name) + "?socket=" + url.QueryEscape(socket)}
		if c.nbdListen != "" {
			out = append(out, "nbd://"+c.nbdListen+"/"+url.PathEscape(name))
		}
		return out
	}
}
