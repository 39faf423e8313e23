// Package service holds the use cases, one file each: it loads rows, asks
// chain for a decision, and lets engine and volume drivers carry it out.
//
// Invariants:
//   - a refusal changes nothing and queues nothing: a use case checks, changes
//     rows, locks, pins and inserts its job in one transaction;
//   - whoever changes a volume has it locked, whoever reads or builds on a
//     point has it pinned, from that transaction on until the one that ends
//     the job; a lock refuses everybody else with errs.Busy at once;
//   - no transaction spans I/O but the database's own;
//   - a point is available only if its session was committed in the same
//     transaction; a job that fails leaves ceased rows and no bytes behind;
//   - a volume that an unfinished or failed apply has written to says so in
//     its row, and only another apply clears that.
package service

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"cairn/internal/chain"
	"cairn/internal/compute"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/volume"
)

// The kinds of volumes, as keys of Config.Drivers and in Volume.Driver.
const (
	DriverManaged    = "managed"    // ours: created, grown and removed by us
	DriverRegistered = "registered" // somebody else's file or device
	DriverNBD        = "nbd"        // an export of somebody else's NBD server
	DriverLibvirt    = "libvirt"    // a disk of a machine that libvirt has
)

// Defaults of Config.
const (
	DefaultRecycleBin = 2 * time.Hour
	DefaultMaxCopy    = 16 << 30
	DefaultStopGrace  = time.Minute
	// A day's budget of 16 GiB reads half a terabyte in a month.
	DefaultScrubEvery  = 24 * time.Hour
	DefaultScrubBudget = 16 << 30
)

// Config is all that a Service needs. Fields without a default are required.
type Config struct {
	Store   Store
	Engine  Engine
	Drivers map[string]volume.Driver // by DriverManaged, DriverRegistered; the others may be left out
	// Live is the managed driver's other half. nil: clones and rollbacks of
	// managed volumes are copied by their jobs, and nobody serves volumes.
	Live Live
	// Compute runs machines. nil: this server runs none, for the reason in
	// NoMachines, a sentence for people. It needs Live.
	Compute    compute.Driver
	NoMachines string
	// Foreign drives machines that others make, by the kind of their volumes
	// (DriverLibvirt), which needs a driver in Drivers as well.
	Foreign map[string]compute.Driver
	// StopGrace is how long a guest may take to end when it is asked to; then it
	// is ended. 1 min.
	StopGrace time.Duration
	Zones     []string // at least one
	// OwnDirs are the server's own folders: nothing under them may be
	// registered as a volume.
	OwnDirs []string
	// Refused says why nothing may be changed, because the database is older
	// than the repository: "" if all is well. The store refuses by itself;
	// this is for what goes past it.
	Refused string

	MaxChainPoints int           // points of a chain; chain.DefaultMaxPoints
	Workers        int           // jobs that run at once; 4
	ForeignEvery   time.Duration // between two looks for machines of others; 10 s
	RetryDelay     time.Duration // before an apply that has begun tries again; doubles; 1 s
	RecycleBin     time.Duration // uptime for which deleted points can be brought back; 2 h
	FillRate       int64         // bytes a second that clones and rollbacks are filled with; 0: as fast as it goes
	MaxCopy        int64         // bytes that one prune copies to get at garbage; 16 GiB
	// ScrubEvery is the uptime between two scrubs that the server makes by
	// itself, of ScrubBudget bytes each; 24 h and 16 GiB. Negative: none.
	ScrubEvery  time.Duration
	ScrubBudget int64
	// LowSpace tells whether the repository's disk is nearly full. May be nil.
	LowSpace func() bool
	Clock    func() time.Time
	Log      *slog.Logger
}

// Service carries out the use cases. Any number of goroutines may call it.
type Service struct {
	store        Store
	engine       Engine
	drivers      map[string]volume.Driver
	lives        Live           // may be nil
	compute      compute.Driver // nil: no machines
	noMachines   string
	foreign      map[string]compute.Driver // by Volume.Driver
	stopGrace    time.Duration
	foreignEvery time.Duration
	bases        bases
	serving      sync.Mutex // held while a point's serving begins or ends
	zones        map[string]bool
	ownDirs      []string
	max          int
	retry        time.Duration
	recycle      time.Duration
	maxCopy      int64
	scrubEvery   time.Duration
	scrubBudget  int64
	// lowSpace is Config's; lowPruned is the uptime when it last made a prune,
	// and Keep's alone.
	lowSpace  func() bool
	lowPruned int64
	clock     func() time.Time
	log       *slog.Logger
	refused   string // why nothing may be changed; empty: it may
	owner     string // this process, in the rows of its jobs
	runner    *job.Runner
}

// New checks the configuration and releases what an earlier process held
// that no unfinished job needs. The jobs themselves go on in Run. No other
// process may use the same database.
func New(ctx context.Context, cfg Config) (*Service, error) {
	s, err := configured(cfg)
	if err != nil {
		return nil, err
	}
	s.runner = job.NewRunner(s.store, map[job.Action]job.Handler{
		job.CreateSnapshots:          createJob{s},
		job.DeleteSnapshots:          deleteJob{s},
		job.ApplySnapshots:           applyJob{s},
		job.CreateVolumeFromSnapshot: cloneJob{s},
		job.CreateVolume:             createVolumesJob{s},
		job.DeleteVolumes:            deleteVolumesJob{s},
		job.ResizeVolumes:            resizeJob{s},
		job.ImportVolume:             importJob{s},
		job.ScrubRepository:          scrubJob{s},
		job.PruneRepository:          pruneJob{s},
		job.LeaseResources:           undeleteJob{s},

		job.RunInstances:       runInstancesJob{s},
		job.StartInstances:     powerJob{s, powerOn},
		job.StopInstances:      powerJob{s, powerOff},
		job.RestartInstances:   powerJob{s, powerCycle},
		job.TerminateInstances: deleteVolumesJob{s},
		job.AttachVolumes:      attachJob{s},
		job.DetachVolumes:      detachJob{s},

		job.CaptureInstanceFromSnapshot: captureInstanceJob{s},
		job.ImportImage:                 importImageJob{s},
		job.DeleteImages:                deleteImagesJob{s},
	}, job.Options{
		Owner: s.owner, Load: s.loadJob, OutcomeOf: outcomeOf,
		Workers: cfg.Workers, Clock: s.now, Log: s.log,
	})
	if s.refused != "" {
		return s, nil
	}
	if err := s.releaseTheDead(ctx); err != nil {
		return nil, fmt.Errorf("release what an earlier process held: %w", err)
	}
	if err := s.adoptBases(ctx); err != nil {
		return nil, fmt.Errorf("pin the points that volumes need: %w", err)
	}
	return s, nil
}

func configured(cfg Config) (*Service, error) {
	switch {
	case cfg.Store == nil || cfg.Engine == nil:
		return nil, errs.New(errs.Invalid, "the service needs a store and an engine")
	case cfg.Drivers[DriverManaged] == nil || cfg.Drivers[DriverRegistered] == nil:
		return nil, errs.New(errs.Invalid, "the service needs a driver for managed and one for registered volumes")
	case len(cfg.Zones) == 0:
		return nil, errs.New(errs.Invalid, "the service needs at least one zone")
	case cfg.RecycleBin < 0 || cfg.MaxCopy < 0:
		return nil, errs.New(errs.Invalid, "the time in the recycle bin and the bytes that a prune copies cannot be negative")
	case cfg.Compute != nil && cfg.Live == nil:
		return nil, errs.New(errs.Invalid, "machines need volumes that are served to them")
	case cfg.StopGrace < 0:
		return nil, errs.New(errs.Invalid, "the time that a guest has to end cannot be negative")
	case cfg.MaxChainPoints < 0:
		return nil, errs.New(errs.Invalid, "a chain cannot have %d points; the limit must be at least 1", cfg.MaxChainPoints)
	}
	s := &Service{
		store: cfg.Store, engine: cfg.Engine, drivers: cfg.Drivers, lives: cfg.Live, zones: map[string]bool{}, refused: cfg.Refused,
		scrubEvery: cfg.ScrubEvery, scrubBudget: cfg.ScrubBudget,
		recycle: cfg.RecycleBin, maxCopy: cfg.MaxCopy, lowSpace: cfg.LowSpace,
		compute: cfg.Compute, noMachines: cfg.NoMachines, foreign: cfg.Foreign, foreignEvery: cfg.ForeignEvery, stopGrace: cfg.StopGrace,
		max: cfg.MaxChainPoints, retry: cfg.RetryDelay, clock: cfg.Clock, log: cfg.Log, owner: newUUID(),
	}
	s.bases.wake, s.bases.rate = make(chan struct{}, 1), cfg.FillRate
	if s.max == 0 {
		s.max = chain.DefaultMaxPoints
	}
	if s.retry <= 0 {
		s.retry = time.Second
	}
	if s.stopGrace == 0 {
		s.stopGrace = DefaultStopGrace
	}
	if s.foreignEvery <= 0 {
		s.foreignEvery = 10 * time.Second
	}
	if s.recycle == 0 {
		s.recycle = DefaultRecycleBin
	}
	if s.maxCopy == 0 {
		s.maxCopy = DefaultMaxCopy
	}
	if s.scrubEvery == 0 {
		s.scrubEvery = DefaultScrubEvery
	}
	if s.scrubBudget == 0 {
		s.scrubBudget = DefaultScrubBudget
	}
	if s.clock == nil {
		s.clock = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, z := range cfg.Zones {
		s.zones[z] = true
	}
	for _, dir := range cfg.OwnDirs {
		dir, err := filepath.Abs(dir)
		if err == nil {
			dir, err = filepath.EvalSymlinks(dir)
		}
		if err != nil {
			return nil, fmt.Errorf("find the server's own folder: %w", err)
		}
		s.ownDirs = append(s.ownDirs, dir)
	}
	return s, nil
}

// Run carries out jobs until ctx ends and all of them have stopped. What is
// unfinished then goes on after the next start. Before the first job, clients
// may connect to the volumes.
func (s *Service) Run(ctx context.Context) {
	s.serveAll(ctx)
	s.runner.Run(ctx)
}

// CollectionRefused says why nothing of the repository may be deleted: an old
// database was put back, so rows no longer tell what is needed. "" if it may.
func (s *Service) CollectionRefused() (reason string) { return s.refused }

// now is the time as rows keep it.
func (s *Service) now() time.Time { return s.clock().UTC().Truncate(time.Microsecond) }

// releaseTheDead releases the locks, pins and held instants of everybody but
// unfinished jobs: whoever else held something died with its process.
func (s *Service) releaseTheDead(ctx context.Context) error {
	var dead, staged []string
	err := s.store.View(ctx, func(tx Tx) error {
		holders, err := tx.Holders()
		if err != nil {
			return err
		}
		for _, h := range holders {
			if strings.HasPrefix(h, basePrefix) || strings.HasPrefix(h, servePrefix) {
				continue // adoptBases knows which; Run serves them
			}
			if image, ok := strings.CutPrefix(h, stagingPrefix); ok {
				p, err := tx.Snapshot("", image)
				if err != nil {
					return err
				}
				if p.Status != chain.Pending { // else its job takes it back
					staged = append(staged, image)
				}
				continue
			}
			j, err := tx.Job(holdOf(h))
			if err != nil && !errs.Is(err, errs.NotFound) {
				return err
			}
			if err != nil || j.Status.Ended() {
				dead = append(dead, h)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, image := range staged {
		if err := s.removeStaging(ctx, image); err != nil {
			s.log.Error("remove what an image was imported through", "image", image, "error", err)
		}
	}
	for _, h := range dead {
		if err := s.dropHold(ctx, holdOf(h)); err != nil {
			// It costs space until a later start, nothing else.
			s.log.Error("drop a held instant that nobody needs", "hold", holdOf(h), "error", err)
			continue
		}
		err := s.store.Update(ctx, func(tx Tx) error { return release(tx, h) })
		if err != nil {
			return err
		}
		s.log.Info("released what a dead holder had", "holder", h)
	}
	return nil
}
