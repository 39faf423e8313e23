package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"cairn/internal/blobstore/file"
	"cairn/internal/compute"
	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/httpapi"
	"cairn/internal/journal"
	"cairn/internal/metadb"
	"cairn/internal/nbd"
	"cairn/internal/repo"
	"cairn/internal/service"
	"cairn/internal/volume"
	volumefile "cairn/internal/volume/file"
	"cairn/internal/volume/live"
	nbdvolume "cairn/internal/volume/nbd"
)

// shutdownGrace is how long a stopping server waits for answers in progress.
// Jobs do not need it: they go on after the next start.
const shutdownGrace = 5 * time.Second

// serveConfig is everything that `cairn serve` can be told.
type serveConfig struct {
	dataDir    string
	listen     string
	key        keySource
	zones      []string
	workers    int
	jobs       int
	maxChain   int
	recycle    time.Duration
	reserve    int64 // MiB
	lowSpace   int64 // MiB
	scrubs     time.Duration
	scrubMiB   int64
	nbdListen  string
	fillRate   int64 // MiB a second
	scratch    int64 // MiB
	yield      float64
	machines   string
	libvirt    string // URI of a daemon; empty: none
	libvirtDir string
	stopGrace  time.Duration
	logFormat  string
	logLevel   string
}

func newServeCommand() *cobra.Command {
	var c serveConfig
	cmd := &cobra.Command{
		Use:   "serve --data-dir DIR",
		Short: "Run the server: the API, the jobs and the repository in one folder",
		Long: `Run the server on one folder. DIR holds everything:

  cairn.db      the metadata database (SQLite)
  repo/         the repository: every point, deduplicated, compressed, encrypted
  repo.key      the key of the repository. Copy it away: without it nothing can
                be read, and whoever has it can read everything. cairn key adds
                passphrases, further key files and a recovery key
  volumes/      managed volumes; nbd.sock, where they are served as block
                devices to this machine's owner of DIR (volume connect); and
                machines/, what instances are made of, and their consoles
  index/        dedup index, an accelerator that may be lost
  cairn.sock    the same API for this machine's owner of DIR; only there may
                paths on the server be named (volume register)

With --libvirt URI the domains of a libvirt daemon are instances, too, and their
disks volumes. What is kept for them lies in DIR-libvirt, beside DIR.

The server listens on loopback only, because there are no accounts yet. It stops
on SIGTERM or Ctrl-C; jobs that were running go on after the next start.`,
		Example: `  cairn serve --data-dir /var/lib/cairn
  cairn serve --data-dir ./data --listen 127.0.0.1:7480 --key-file /root/cairn.key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), c, cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.dataDir, "data-dir", "", "folder that holds everything (made if it is not there)")
	f.StringVar(&c.listen, "listen", "127.0.0.1:7480", "loopback address and port of the API; empty: the unix socket only")
	c.key.addFlags(cmd)
	f.StringSliceVar(&c.zones, "zone", []string{"ac1"}, "zones that the API knows")
	f.IntVar(&c.workers, "workers", 0, "goroutines of one job that hash and compress, 7 MiB each (default one per core, at most 8)")
	f.IntVar(&c.jobs, "jobs", 2, "jobs that run at once")
	f.IntVar(&c.maxChain, "max-chain", 30, "points of a chain before the next one is a full")
	f.DurationVar(&c.recycle, "recycle-bin", service.DefaultRecycleBin, "how long deleted snapshots can be brought back, in uptime of the server")
	f.Int64Var(&c.reserve, "reserve", 64, "MiB of the disk kept for deleting and pruning when it is full; 0: none")
	f.Int64Var(&c.lowSpace, "low-space", 1024, "MiB of free space below which the server prunes by itself")
	f.DurationVar(&c.scrubs, "scrub-every", service.DefaultScrubEvery, "uptime between two scrubs that the server makes by itself; 0: none")
	f.Int64Var(&c.scrubMiB, "scrub-budget", service.DefaultScrubBudget>>20, "MiB that a scrub of --scrub-every reads, of what was not verified for longest")
	f.StringVar(&c.nbdListen, "nbd-listen", "", "loopback address and port at which volumes are served as well (default only DIR/volumes/nbd.sock)")
	f.Int64Var(&c.fillRate, "fill-rate", 200, "MiB a second at which clones and rolled back volumes are filled from the repository; 0: as fast as it goes")
	f.Int64Var(&c.scratch, "scratch", live.DefaultScratch>>20, "MiB for what is overwritten while snapshots are taken")
	f.Float64Var(&c.yield, "yield", 6, "while clients are busy, a snapshot rests up to this many times as long as it works, so that they keep the processors; 0: never")
	f.StringVar(&c.machines, "machines", "auto", "what runs instances: qemu, none, or auto, which is qemu where it is installed")
	f.StringVar(&c.libvirt, "libvirt", "", "URI of a libvirt daemon of this machine, as qemu:///system, whose domains are shown as instances")
	f.StringVar(&c.libvirtDir, "libvirt-dir", "", "folder for what guests of libvirt overwrite during snapshots; QEMU's own user must be able to reach it, which it cannot inside DIR (default DIR-libvirt, beside DIR)")
	f.DurationVar(&c.stopGrace, "stop-grace", service.DefaultStopGrace, "how long a guest may take to end before it is ended")
	f.StringVar(&c.logFormat, "log-format", "text", "text or json")
	f.StringVar(&c.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func (c serveConfig) check() error {
	switch {
	case c.dataDir == "":
		return errs.New(errs.Invalid, "--data-dir is missing; name the folder that is to hold everything")
	case len(c.zones) == 0:
		return errs.New(errs.Invalid, "--zone is empty; name at least one zone")
	case c.workers < 0 || c.workers > 256 || c.jobs < 1 || c.jobs > 64:
		return errs.New(errs.Invalid, "--workers must be 0 to 256 and --jobs 1 to 64")
	case c.maxChain < 1:
		return errs.New(errs.Invalid, "--max-chain must be at least 1")
	case c.recycle < time.Second:
		return errs.New(errs.Invalid, "--recycle-bin must be at least 1s")
	case c.scrubs < 0 || c.scrubMiB < 1:
		return errs.New(errs.Invalid, "--scrub-every must not be negative and --scrub-budget at least 1")
	case c.fillRate < 0 || c.fillRate > 1<<20 || c.scratch < 1 || c.scratch > 1<<40:
		return errs.New(errs.Invalid, "--fill-rate must be 0 to 1048576 and --scratch at least 1, both in MiB")
	case !(c.yield >= 0 && c.yield <= 1000):
		return errs.New(errs.Invalid, "--yield must be 0 to 1000")
	case c.machines != machinesAuto && c.machines != machinesQEMU && c.machines != machinesNone:
		return errs.New(errs.Invalid, "--machines %q is unknown; say qemu, none or auto", c.machines)
	case c.stopGrace < time.Second || c.stopGrace > time.Hour:
		return errs.New(errs.Invalid, "--stop-grace must be 1s to 1h")
	case c.reserve < 0 || c.reserve > 1<<20 || c.lowSpace < 0 || c.lowSpace > 1<<40:
		return errs.New(errs.Invalid, "--reserve must be 0 to 1048576 and --low-space not negative, both in MiB")
	}
	return nil
}

func (c serveConfig) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		return nil, errs.New(errs.Invalid, "--log-level %q is unknown; say debug, info, warn or error", c.logLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch c.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, errs.New(errs.Invalid, "--log-format %q is unknown; say text or json", c.logFormat)
}

// gcPercent keeps garbage below a quarter of what is in use: two jobs at once
// stay under 192 MiB (two fulls peak at 157 MiB; with Go's own 100 at 194). A
// full of 2.4 GiB then has 23 collections of about 2 ms instead of 7.
const gcPercent = 25

// serve runs the server until ctx ends.
func serve(ctx context.Context, c serveConfig, logTo io.Writer) error {
	if err := c.check(); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	log, err := c.logger(logTo)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(c.dataDir)
	if err != nil {
		return fmt.Errorf("find %s: %w", c.dataDir, err)
	}
	if err := makeFolder(dir); err != nil {
		return err
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return err
	}
	defer func() {
		if err := lock.Close(); err != nil {
			log.Error("give the folder back", "err", err)
		}
	}()
	listeners, err := c.listeners(dir)
	if err != nil {
		return err
	}
	defer closeAll(listeners)
	clients, err := c.nbdListeners(dir)
	if err != nil {
		return err
	}
	defer closeAll(clients)
	server := nbd.NewServer(nbd.Limits{}, log)
	svc, closers, err := c.open(ctx, dir, server, log)
	defer func() {
		for _, cl := range closers {
			if err := cl.Close(); err != nil {
				log.Error("close", "err", err)
			}
		}
	}()
	if err != nil {
		return err
	}
	handler, err := httpapi.New(httpapi.Config{Service: svc, Zones: c.zones, Version: version, Log: log})
	if err != nil {
		return err
	}
	serveClients := func(ctx context.Context) error { return serveNBD(ctx, server, clients, log) }
	return run(ctx, svc, httpapi.NewServer(handler, log), listeners, serveClients, log)
}

func makeFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errs.Wrap(errs.Invalid, err, "the folder %s cannot be made", dir)
	}
	return nil
}

// scrubEvery is what the service takes for it.
func (c serveConfig) scrubEvery() time.Duration {
	if c.scrubs == 0 {
		return -1
	}
	return c.scrubs
}

func (c serveConfig) listeners(dir string) ([]net.Listener, error) {
	var out []net.Listener
	if c.listen != "" {
		l, err := listenTCP("--listen", c.listen)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	l, err := listenUnix(filepath.Join(dir, "cairn.sock"))
	if err != nil {
		closeAll(out)
		return nil, err
	}
	return append(out, l), nil
}

func closeAll(ls []net.Listener) {
	for _, l := range ls {
		l.Close() //nolint:errcheck // it may be closed already
	}
}

// open builds the house from the ground up. closers are in the order in which
// they are to be closed, and hold what was opened even if err is set.
func (c serveConfig) open(ctx context.Context, dir string, server *nbd.Server, log *slog.Logger) (svc *service.Service, closers []io.Closer, err error) {
	opened := func(cl io.Closer) { closers = append([]io.Closer{cl}, closers...) }
	store, err := file.Open(filepath.Join(dir, "repo"))
	if err != nil {
		return nil, closers, err
	}
	opened(store)
	room := &space{dir: dir, path: filepath.Join(dir, "index", "reserve"), reserve: c.reserve << 20, low: c.lowSpace << 20, log: log}
	source, err := c.key.in(dir, os.Getenv)
	if err != nil {
		return nil, closers, err
	}
	key, err := openKey(ctx, source, store, log)
	if err != nil {
		return nil, closers, err
	}
	r, err := repo.Open(ctx, packs{store, room}, key, filepath.Join(dir, "index"))
	if err != nil {
		return nil, closers, err
	}
	opened(r)
	for _, what := range r.IndexDropped() {
		log.Warn("part of the dedup index was damaged and is not used; new points may take more space", "what", what)
	}
	db, err := openDatabase(ctx, filepath.Join(dir, "cairn.db"), r)
	if err != nil {
		return nil, closers, err
	}
	db.OnFull(room.giveUp)
	room.hold()
	e := engine.New(r, engine.Config{
		Workers: c.workers,
		Yield:   func(ctx context.Context, worked time.Duration) error { return server.Yield(ctx, worked, c.yield) },
	})
	copies, err := e.CompleteCopies(ctx)
	if err != nil {
		return nil, append([]io.Closer{db}, closers...), err
	}
	if len(copies) > 0 {
		log.Warn("second copies were missing, as a crash leaves them; they are written", "blobs", copies)
	}
	rows, err := journal.Open(ctx, journal.Config{Store: db, Log: e, Logger: log})
	if err != nil {
		return nil, append([]io.Closer{db}, closers...), err
	}
	opened(rows)
	volumes := filepath.Join(dir, "volumes")
	managed, err := c.live(volumes, e, server, log)
	if err != nil {
		return nil, closers, err
	}
	opened(managed)
	// A folder of its own: a driver sweeps what it did not record as a hold.
	registered, err := volumefile.NewRegistered(filepath.Join(volumes, "registered"), dir)
	if err != nil {
		return nil, closers, err
	}
	exports, err := nbdvolume.New(nbdvolume.Config{
		Dir: filepath.Join(volumes, "nbd"), OwnSockets: []string{nbdSocket(dir)}, OwnAddress: c.nbdListen, Log: log,
	})
	if err != nil {
		return nil, closers, err
	}
	machines, none, err := c.openMachines(filepath.Join(volumes, "machines"), log)
	if err != nil {
		return nil, closers, err
	}
	if machines != nil {
		opened(machines)
	}
	drivers := map[string]volume.Driver{service.DriverManaged: managed, service.DriverRegistered: registered, service.DriverNBD: exports}
	foreign := map[string]compute.Driver{}
	domains, disks, err := c.openLibvirt(dir, log)
	if err != nil {
		return nil, closers, err
	}
	if domains != nil {
		opened(domains)
		foreign[service.DriverLibvirt], drivers[service.DriverLibvirt] = domains, disks
	}
	svc, err = service.New(ctx, service.Config{
		Compute: machines, NoMachines: none, Foreign: foreign, StopGrace: c.stopGrace,
		Store: rows, Refused: rows.Refusal(), Engine: e,
		Drivers: drivers, Live: managed, FillRate: c.fillRate << 20,
		Zones: c.zones, OwnDirs: []string{dir}, MaxChainPoints: c.maxChain, Workers: c.jobs, Log: log,
		RecycleBin: c.recycle, ScrubEvery: c.scrubEvery(), ScrubBudget: c.scrubMiB << 20, LowSpace: room.isLow,
	})
	return svc, closers, err
}

// openDatabase opens the metadata database, and makes it only beside an empty
// repository: a new one beside a full repository would hide every point.
func openDatabase(ctx context.Context, path string, r *repo.Repo) (*metadb.DB, error) {
	_, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for the database: %w", err)
	}
	if err != nil {
		points, err := r.HasPoints(ctx)
		if err != nil {
			return nil, err
		}
		journal, err := r.HasJournal(ctx)
		if err != nil {
			return nil, err
		}
		if points || journal {
			return nil, errs.New(errs.NotFound, "the database %s is missing, but the repository beside it is in use; rebuild the database from it with cairn repo recover --data-dir %s", path, filepath.Dir(path))
		}
	}
	return metadb.Open(ctx, path)
}

// run serves until ctx ends or something breaks, then stops in order: no new
// requests, answers end, jobs stop where they are.
func run(ctx context.Context, svc *service.Service, srv *http.Server, listeners []net.Listener, serveClients func(context.Context) error, log *slog.Logger) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serveClients(gctx) })
	g.Go(func() error {
		svc.Fill(gctx)
		return nil
	})
	g.Go(func() error {
		svc.Run(gctx)
		return nil
	})
	g.Go(func() error {
		svc.Keep(gctx)
		return nil
	})
	g.Go(func() error {
		svc.SyncForeign(gctx)
		return nil
	})
	for _, l := range listeners {
		log.Info("listening", "network", l.Addr().Network(), "address", l.Addr().String(), "version", version)
		g.Go(func() error {
			if err := srv.Serve(httpapi.Listener(l)); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve on %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	g.Go(func() error {
		<-gctx.Done()
		log.Info("stopping; running jobs go on after the next start")
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if err := srv.Shutdown(sctx); err != nil {
			return srv.Close()
		}
		return nil
	})
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	log.Info("stopped")
	return nil
}
