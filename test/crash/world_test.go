// Package crash_test breaks the whole product at every step and looks whether
// anything was lost: the real service, database, engine and repository in one
// process, on a blob store and volumes whose every state a power cut could
// leave is kept (recorder), or whose every call can fail (faulty, badStore).
//
// A history is a few operations. An observer outside (story) notes what it
// asked for and what was acknowledged; every instant that a driver gave out is
// kept (disk.ledger). After a crash or a failure the next process must bring
// all jobs to their end, and then everything is compared with these two
// (trial.check).
package crash_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/faulty"
	"cairn/internal/blobstore/mem"
	"cairn/internal/engine"
	"cairn/internal/foldertest"
	"cairn/internal/journal"
	"cairn/internal/metadb"
	"cairn/internal/repo"
	"cairn/internal/service"
	"cairn/internal/volume"
	"cairn/test/e2e/harness"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// A trial waits now and then for a timer of the product.
	if err := flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0))); err != nil {
		panic(err)
	}
	debug.SetGCPercent(400) // a trial allocates much and keeps nothing
	goleak.VerifyTestMain(m)
}

// zone is the only zone of the tests.
const zone = "ac1"

// world is one data folder and its volumes: all that outlives processes.
type world struct {
	t     testing.TB
	dir   string // of database and index
	key   repo.Key
	blobs blobstore.Store
	disk  *disk
}

func newWorld(t testing.TB) *world {
	return &world{t: t, dir: foldertest.InMemory(t), key: repo.NewKey(), blobs: mem.New(), disk: newDisk()}
}

func (w *world) database() string { return filepath.Join(w.dir, "cairn.db") }
func (w *world) index() string    { return filepath.Join(w.dir, "index") }

// process is one run of the program.
type process struct {
	*service.Service
	t      testing.TB
	w      *world
	log    *witness
	blobs  *faulty.Store
	rows   *badStore
	db     *metadb.DB
	store  *journal.Store // closes the database with it
	repo   *repo.Repo
	engine *engine.Engine
	cancel context.CancelFunc
	done   chan struct{}
}

// start builds the house from the ground up, as cmd/cairn does.
func (w *world) start(rec *recorder) (p *process, err error) {
	p = &process{t: w.t, w: w, log: newWitness()}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	ctx := context.Background()
	p.blobs = faulty.New(recorded{w.blobs, rec}, nil)
	w.disk.do = rec.do
	if have, err := repo.Exists(ctx, p.blobs); err != nil {
		return p, err
	} else if !have {
		if err := repo.Init(ctx, p.blobs, w.key, time.Unix(1, 0)); err != nil {
			return p, err
		}
	}
	if p.repo, err = repo.Open(ctx, p.blobs, w.key, w.index()); err != nil {
		return p, err
	}
	if err := p.openRows(ctx, rec); err != nil {
		return p, err
	}
	p.Service, err = service.New(ctx, service.Config{
		Store: p.store, Refused: p.store.Refusal(), Engine: p.engine, Zones: []string{zone},
		Drivers: map[string]volume.Driver{
			service.DriverManaged:    &driver{disk: w.disk},
			service.DriverRegistered: &driver{disk: w.disk, registered: true},
		},
		OwnDirs: []string{w.dir}, RetryDelay: time.Millisecond, Workers: 3, Clock: w.disk.tick, Log: slog.New(p.log),
	})
	if err != nil {
		return p, err
	}
	run, cancel := context.WithCancel(ctx)
	p.cancel, p.done = cancel, make(chan struct{})
	go func() { defer close(p.done); p.Run(run) }()
	return p, nil
}

// openRows opens the database below the journal. It is made only beside a
// repository that is not in use.
func (p *process) openRows(ctx context.Context, rec *recorder) error {
	if _, err := os.Stat(p.w.database()); errors.Is(err, fs.ErrNotExist) {
		points, err := p.repo.HasPoints(ctx)
		if err != nil {
			return err
		}
		entries, err := p.repo.HasJournal(ctx)
		if err != nil {
			return err
		}
		if points || entries {
			return errors.New("the database is gone, and the repository is in use")
		}
	}
	var err error
	if p.db, err = metadb.Open(ctx, p.w.database()); err != nil {
		return err
	}
	rec.touched()
	p.rows = &badStore{below: recordedRows{p.db, rec}}
	p.engine = engine.New(p.repo, engine.Config{Workers: 1})
	if _, err := p.engine.CompleteCopies(ctx); err != nil {
		return err
	}
	p.store, err = journal.Open(ctx, journal.Config{Store: p.rows, Log: p.engine, RetryDelay: 10 * time.Millisecond, Logger: slog.New(p.log)})
	if err == nil && p.store.Refusal() != "" {
		err = errors.New(p.store.Refusal())
	}
	return err
}

// stop ends the process; what it had begun goes on in the next one.
func (p *process) stop() {
	p.t.Helper()
	if err := p.close(); err != nil {
		p.t.Errorf("stop the process: %v", err)
	}
}

func (p *process) close() error {
	if p.cancel != nil {
		p.cancel()
		select {
		case <-p.done:
		case <-time.After(patience):
			return fmt.Errorf("the process does not stop:\n%s", stacks())
		}
	}
	var all []error
	if p.store != nil {
		all = append(all, p.store.Close())
	} else if p.db != nil {
		all = append(all, p.db.Close())
	}
	if p.repo != nil {
		all = append(all, p.repo.Close())
	}
	return errors.Join(all...)
}

// patience bounds every waiting; what is waited for takes milliseconds, or
// seconds where a timer of the product is in between.
const patience = 15 * time.Second

func stacks() []byte {
	b := make([]byte, 1<<20)
	return b[:runtime.Stack(b, true)]
}

// witness is a log that is shown if a trial fails. It knows the words by which
// the product says that it waits for better times.
type witness struct {
	mu    sync.Mutex // guards what follows
	text  bytes.Buffer
	below slog.Handler
	signs [signs]bool
}

// sign is something that the product says in its log.
type sign int

const (
	waiting sign = iota // for better times
	leaving             // something for the next start to release
	behind              // the journal is
	signs
)

func newWitness() *witness {
	w := &witness{}
	w.below = slog.NewTextHandler(&w.text, nil)
	return w
}

func (w *witness) Enabled(context.Context, slog.Level) bool { return true }

func (w *witness) Handle(ctx context.Context, r slog.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch r.Message {
	case "undo a job; will try again", "claim a job":
		w.signs[waiting] = true
	case "let go of the instant; the next start tries again":
		w.signs[leaving] = true
	case "the journal is written again":
		w.signs[behind] = false
	}
	if strings.HasPrefix(r.Message, "the journal cannot be written") {
		w.signs[behind] = true
	}
	return w.below.Handle(ctx, r)
}

// WithAttrs and WithGroup keep the words together with their run's ids.
func (w *witness) WithAttrs(attrs []slog.Attr) slog.Handler { return &witnessed{w, attrs} }
func (w *witness) WithGroup(string) slog.Handler            { return w }

type witnessed struct {
	*witness
	attrs []slog.Attr
}

func (w *witnessed) Handle(ctx context.Context, r slog.Record) error {
	r.AddAttrs(w.attrs...)
	return w.witness.Handle(ctx, r)
}

func (w *witness) is(s sign) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.signs[s]
}

// panicked returns the log if the product caught a panic of its own.
func (w *witness) panicked() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if text := w.text.String(); strings.Contains(text, "panic: ") {
		return text
	}
	return ""
}

func (w *witness) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// files reads a flat folder; an absent one has none.
func files(dir string, have map[string][]byte) (map[string][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	out := make(map[string][]byte, len(entries))
	for _, e := range entries {
		b, ok := have[e.Name()] // files of the index never change
		if !ok {
			if b, err = os.ReadFile(filepath.Join(dir, e.Name())); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return nil, err
			}
		}
		out[e.Name()] = b
	}
	return out, nil
}

func long() bool { return harness.Long() }
