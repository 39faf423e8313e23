package journal_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/mem"
	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/foldertest"
	"cairn/internal/journal"
	"cairn/internal/metadb"
	"cairn/internal/repo"
	"cairn/internal/service"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(filepath.Dir(emptyDatabase())) // it is in the temp folder
		os.Exit(code)
	}))
}

// emptyDatabase is a new database: making one takes longer than most tests.
var emptyDatabase = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "cairn-journal-test-")
	if err != nil {
		panic(err)
	}
	path := filepath.Join(dir, "empty.db")
	db, err := metadb.Open(context.Background(), path)
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		panic(err)
	}
	return path
})

// world is a database file and a repository, and the stores that come and go.
type world struct {
	t      testing.TB
	path   string
	mem    *mem.Store
	store  blobstore.Store // what the engine sees
	key    repo.Key
	index  string
	conf   journal.Config // Store and Log are set by open
	wrap   func(journal.Log) journal.Log
	halves []string // packs that a recover gives no row

	s   *journal.Store
	rp  *repo.Repo
	eng *engine.Engine
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, path: filepath.Join(foldertest.InMemory(t), "cairn.db"), mem: mem.New(), key: repo.NewKey(), index: foldertest.InMemory(t)}
	w.store = w.mem
	copyFile(t, emptyDatabase(), w.path)
	if err := repo.Init(context.Background(), w.mem, w.key, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if testing.Verbose() {
		w.conf.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	// Small, so that a few rows make many blobs.
	w.conf.PageRows, w.conf.SummaryBlobs, w.conf.RetryDelay = 3, 6, time.Millisecond
	return w
}

// open starts a process on the world.
func (w *world) open() {
	w.t.Helper()
	if err := w.tryOpen(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) tryOpen() (err error) {
	w.t.Helper()
	w.rp, err = repo.Open(context.Background(), w.mem, w.key, w.index)
	if err != nil {
		return err
	}
	w.rp.Close()
	// Faults are for the journal, not for the opening.
	if w.rp, err = repo.Open(context.Background(), openable{w.mem, w.store}, w.key, w.index); err != nil {
		return err
	}
	w.eng = engine.New(w.rp, engine.Config{Workers: 1})
	db, err := metadb.Open(context.Background(), w.path)
	if err != nil {
		return errors.Join(err, w.rp.Close())
	}
	c := w.conf
	c.Store, c.Log = db, w.eng
	if w.wrap != nil {
		c.Log = w.wrap(w.eng)
	}
	if w.s, err = journal.Open(context.Background(), c); err != nil {
		return errors.Join(err, db.Close(), w.rp.Close())
	}
	return nil
}

// openable reads headers from the sound store below.
type openable struct {
	sound *mem.Store
	blobstore.Store
}

func (o openable) Stat(ctx context.Context, name string) (blobstore.Info, error) {
	if strings.HasPrefix(name, "header/") {
		return o.sound.Stat(ctx, name)
	}
	return o.Store.Stat(ctx, name)
}

func (o openable) ReadAt(ctx context.Context, name string, buf []byte, off int64) (int, error) {
	if strings.HasPrefix(name, "header/") {
		return o.sound.ReadAt(ctx, name, buf, off)
	}
	return o.Store.ReadAt(ctx, name, buf, off)
}

func (o openable) List(ctx context.Context, prefix string, fn func(blobstore.Info) error) error {
	if prefix == "header/" {
		return o.sound.List(ctx, prefix, fn)
	}
	return o.Store.List(ctx, prefix, fn)
}

// close ends the process in order.
func (w *world) close() {
	w.t.Helper()
	if err := errors.Join(w.s.Close(), w.rp.Close()); err != nil {
		w.t.Fatal(err)
	}
}

// bare works on the database as a program without a journal would.
func (w *world) bare(fn func(s service.Store)) {
	w.t.Helper()
	db, err := metadb.Open(context.Background(), w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	fn(db)
	if err := db.Close(); err != nil {
		w.t.Fatal(err)
	}
}

// committed counts the volumes in the database.
func (w *world) committed() (n int) {
	w.t.Helper()
	err := w.s.Store.View(context.Background(), func(tx service.Tx) (err error) {
		_, n, err = tx.Volumes(service.VolumeFilter{})
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) update(fn func(tx service.Tx) error) {
	w.t.Helper()
	if err := w.s.Update(context.Background(), fn); err != nil {
		w.t.Fatal(err)
	}
}

// state is what recover must know, by id.
type state map[string]any

// rows reads the database: pending rows and derived fields left out.
func (w *world) rows() state {
	w.t.Helper()
	out := state{}
	err := w.s.Store.View(context.Background(), func(tx service.Tx) error {
		ps, err := tx.SnapshotsAfter("", 1000)
		if err != nil {
			return err
		}
		for _, p := range ps {
			if p.Status != chain.Pending {
				out[p.ID] = stripped(p)
			}
		}
		vs, err := tx.VolumesAfter("", 1000)
		for _, v := range vs {
			v.Transition = ""
			if v.Status != service.VolumePending {
				out[v.ID] = v
			}
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// stripped is a row without what is derived or ends with a job.
func stripped(p service.Snapshot) service.Snapshot {
	p.Transition, p.HeadChain, p.TotalBytes, p.TotalCount, p.LatestTime, p.UniqueBytes, p.UniqueKnown = "", false, 0, 0, time.Time{}, 0, false
	return p
}

// replay reads the journal as another program would. It looks at a copy, so
// that a summary which cuts the log meanwhile does not matter.
func (w *world) replay() state {
	w.t.Helper()
	r, err := repo.Open(context.Background(), w.mem.Clone(), w.key, w.index)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	e := engine.New(r, engine.Config{Workers: 1})
	js, err := e.JournalState(context.Background())
	if err != nil || !js.Whole() {
		w.t.Fatalf("the journal is not whole: %+v, %v", js.Problems, err)
	}
	out := state{}
	for _, pos := range js.Order {
		c, err := e.ReadJournal(context.Background(), pos.Number)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, en := range c.Entries {
			switch {
			case en.Removed:
				delete(out, en.ID)
			case en.Kind == engine.PointEntry:
				out[en.ID] = journal.SnapshotOf(en)
			default:
				out[en.ID] = journal.VolumeOf(en)
			}
		}
	}
	return out
}

// same fails the test if the states differ.
func (w *world) same(what string, got, want state) {
	w.t.Helper()
	if reflect.DeepEqual(got, want) {
		return
	}
	for id := range want {
		if !reflect.DeepEqual(got[id], want[id]) {
			w.t.Errorf("%s: %s is\n%+v, want\n%+v", what, id, got[id], want[id])
		}
	}
	for id := range got {
		if _, ok := want[id]; !ok {
			w.t.Errorf("%s: %s should not be there: %+v", what, id, got[id])
		}
	}
	w.t.FailNow()
}

// tidy fails the test unless every journal blob has both copies and belongs to
// the journal's state. No process may run.
func (w *world) tidy() {
	w.t.Helper()
	r, err := repo.Open(context.Background(), w.mem, w.key, w.index)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	blobs, err := r.JournalBlobs(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, b := range blobs {
		if l := b.Lacks(); len(l) > 0 {
			w.t.Errorf("%v is missing", l)
		}
	}
	js, err := r.JournalState(context.Background())
	if err != nil || !js.Whole() || len(js.Leftovers) > 0 {
		w.t.Errorf("journal: %+v, %v", js, err)
	}
}

var origin = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

func point(id string) service.Snapshot {
	return service.Snapshot{
		Point: chain.Point{ID: id, ResourceID: "vol-A", RootID: id, Full: true, Status: chain.Pending, VirtualSize: 1 << 20, SizeBytes: 5},
		Zone:  "ac1", Name: "name of " + id, Transition: "creating", CreateTime: origin, StatusTime: origin, ResourceType: "volume", JobID: "job", GroupID: "g",
	}
}

// committed makes a pending point what a create job leaves.
func committed(p service.Snapshot) service.Snapshot {
	p.Status, p.Transition, p.IsTaken, p.SnapshotTime = chain.Available, "", true, origin.Add(time.Second)
	p.ManifestPack, p.ManifestHash = strings.Repeat("ab", 16), strings.Repeat("cd", 32)
	return p
}

func volumeRow(id string) service.Volume {
	return service.Volume{ID: id, Zone: "ac1", Name: "name of " + id, Driver: service.DriverManaged, SizeBytes: 1 << 20, Status: service.VolumeAvailable, CreateTime: origin, StatusTime: origin}
}

// history changes rows at random, in steps that are the same for the same
// seed. It works on a service.Store and keeps nothing but ids.
type history struct {
	r      *rand.Rand
	points []string
	vols   []string
	head   string
	n      int
}

func newHistory(seed uint64) *history { return &history{r: rand.New(rand.NewPCG(seed, 1))} }

// step is one transaction.
func (h *history) step(tx service.Tx) error {
	switch k := h.r.IntN(10); {
	case k < 4 || len(h.points) == 0:
		return h.create(tx)
	case k == 4:
		h.n++
		v := volumeRow(fmt.Sprintf("vol-%03d", h.n))
		h.vols = append(h.vols, v.ID)
		return tx.InsertVolume(v)
	case k == 5 && len(h.vols) > 0:
		v, err := tx.Volume("", h.vols[0])
		if err != nil {
			return err
		}
		if v.Status, v.MixedJob = service.VolumeAvailable, "job"; h.r.IntN(3) == 0 {
			v.Status = service.VolumeCeased
			h.vols = h.vols[1:]
		}
		return tx.UpdateVolume(v)
	case k == 6: // nothing that the journal keeps
		p := point(fmt.Sprintf("ss-pending-%d", h.r.Uint32()))
		return tx.InsertSnapshot(p)
	}
	// Several rows at once, more than fit into one blob.
	for _, id := range h.points[:1+h.r.IntN(len(h.points))] {
		p, err := tx.Snapshot("", id)
		if err != nil {
			return err
		}
		h.n++
		p.Name = fmt.Sprintf("name %d", h.n)
		if h.r.IntN(4) == 0 && !p.IsHead {
			p.Status = chain.Deleted
		}
		if err := tx.UpdateSnapshot(p); err != nil {
			return err
		}
	}
	return nil
}

// create makes a point and moves the head: two rows that belong together.
func (h *history) create(tx service.Tx) error {
	h.n++
	p := point(fmt.Sprintf("ss-%03d", h.r.IntN(1000)*1000+h.n))
	if err := tx.InsertSnapshot(p); err != nil {
		return err
	}
	if h.head != "" {
		old, err := tx.Snapshot("", h.head)
		if err != nil {
			return err
		}
		old.IsHead = false
		if err := tx.UpdateSnapshot(old); err != nil {
			return err
		}
	}
	p = committed(p)
	p.IsHead = true
	h.head = p.ID
	h.points = append(h.points, p.ID)
	return tx.UpdateSnapshot(p)
}

// blocking is a Log whose puts wait to be let through.
type blocking struct {
	journal.Log
	mu    sync.Mutex
	gate  chan struct{} // nil: open
	fail  error
	began chan struct{}
	puts  int
}

func (b *blocking) PutJournal(ctx context.Context, h engine.JournalHead, entries []engine.JournalEntry) (engine.JournalPos, int64, error) {
	b.mu.Lock()
	b.puts++
	gate, fail := b.gate, b.fail
	b.mu.Unlock()
	if b.began != nil {
		select {
		case b.began <- struct{}{}:
		default:
		}
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return engine.JournalPos{}, 0, ctx.Err()
		}
	}
	if fail != nil {
		return engine.JournalPos{}, 0, fail
	}
	return b.Log.PutJournal(ctx, h, entries)
}

func (b *blocking) set(gate chan struct{}, fail error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gate, b.fail = gate, fail
}

func (b *blocking) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.puts
}

// copyFile copies a database that no process has open.
func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func ids(s state) []string { return slices.Sorted(maps.Keys(s)) }
