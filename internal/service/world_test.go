package service_test

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cairn/internal/compute"
	"cairn/internal/compute/fake"
	"cairn/internal/errs"
	"cairn/internal/foldertest"
	"cairn/internal/job"
	"cairn/internal/metadb"
	"cairn/internal/service"
	"cairn/internal/volume"
)

func TestMain(m *testing.M) {
	// A history takes a second, as each step waits for the disk; -rapid.checks
	// asks for more of them.
	if err := flag.Set("rapid.checks", "10"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// zone is the only zone of the tests.
const zone = "ac1"

// world is one data folder and the processes that come and go over it.
type world struct {
	t    testing.TB
	path string // of the database
	disk *disk
	log  *slog.Logger
	max  int // points of a chain
	// live: managed volumes are live. still: nobody fills them.
	live, still bool
	// refused: the database counts as an older copy
	refused string
	// host runs machines; nil: none run here. It needs live.
	host *fake.Host
	// others has machines that somebody else makes; nil: the server knows of none.
	others     *fake.Host
	othersHang atomic.Bool // it does not even say that it cannot
	// lookEvery is how often it is asked; 1 ms.
	lookEvery time.Duration
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, path: filepath.Join(foldertest.InMemory(t), "cairn.db"), disk: newDisk(), log: slog.New(slog.DiscardHandler)}
	if testing.Verbose() {
		w.log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return w
}

// copyOf is another world in the same state. No process may run in w.
func (w *world) copyOf(t testing.TB) *world {
	data, err := os.ReadFile(w.path)
	if err != nil {
		t.Fatal(err)
	}
	c := newWorld(t)
	c.disk, c.max, c.live = w.disk.clone(), w.max, w.live
	if w.host != nil {
		c.withMachines(w.host.Clone())
	}
	if w.others != nil {
		c.others, c.lookEvery = w.others.Clone(), w.lookEvery
		c.others.Agent = true
	}
	if err := os.WriteFile(c.path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// process is one run of the program.
type process struct {
	*service.Service
	w      *world
	t      testing.TB
	f      *fuse
	mover  *mover
	store  service.Store
	own    *ownership
	cancel context.CancelFunc
	done   chan struct{}
}

// fused is a store whose transactions burn the fuse.
type fused struct {
	service.Store
	f *fuse
}

func (s fused) View(ctx context.Context, fn func(tx service.Tx) error) error {
	if s.f.isDead() {
		return errDead
	}
	return s.Store.View(ctx, fn)
}

func (s fused) Update(ctx context.Context, fn func(tx service.Tx) error) error {
	return s.f.do("Update", func() error { return s.Store.Update(ctx, fn) })
}

func (s fused) ClaimJob(ctx context.Context, owner string, alive []string, now time.Time) (job.Job, bool, error) {
	if s.f.isDead() {
		return job.Job{}, false, errDead
	}
	return s.Store.ClaimJob(ctx, owner, alive, now)
}

func (s fused) SaveProgress(ctx context.Context, id string, term int64, p job.Progress) (bool, error) {
	if s.f.isDead() {
		return false, errDead
	}
	return s.Store.SaveProgress(ctx, id, term, p)
}

func (s fused) SaveState(ctx context.Context, id string, term int64, state json.RawMessage, noCancel bool) error {
	return s.f.do("SaveState", func() error { return s.Store.SaveState(ctx, id, term, state, noCancel) })
}

// ticks is a clock that never stands still.
func ticks() func() time.Time {
	var mu sync.Mutex
	now := time.Now()
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(time.Millisecond)
		return now
	}
}

func (w *world) start(f *fuse) *process {
	w.t.Helper()
	p := w.prepare(f)
	p.run()
	return p
}

// prepare is a process whose workers do not run yet.
func (w *world) prepare(f *fuse) *process {
	w.t.Helper()
	if f == nil {
		f = &fuse{}
	}
	db, err := metadb.Open(context.Background(), w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	clock := ticks()
	var rows service.Store = fused{db, f}
	if w.refused != "" {
		rows = refusing{rows, w.refused}
	}
	p := &process{w: w, t: w.t, f: f, store: db, mover: &mover{disk: w.disk, f: f, damaged: map[string]bool{}, deep: map[string]bool{}}}
	managed := &driver{disk: w.disk, f: f, kind: service.DriverManaged, clock: clock}
	var live service.Live
	if w.live {
		p.own = &ownership{taken: map[string]bool{}, points: map[string]string{}}
		live = liveDriver{managed, p.own}
	}
	var machines compute.Driver
	if w.host != nil {
		machines = fusedMachines{fake.New(w.host), f, nil}
	}
	drivers := map[string]volume.Driver{
		service.DriverManaged:    managed,
		service.DriverRegistered: &driver{disk: w.disk, f: f, kind: service.DriverRegistered, clock: clock},
		service.DriverNBD:        &driver{disk: w.disk, f: f, kind: service.DriverNBD, clock: clock},
	}
	foreign := map[string]compute.Driver{}
	if w.others != nil {
		foreign[service.DriverLibvirt] = fusedMachines{fake.New(w.others), f, &w.othersHang}
		drivers[service.DriverLibvirt] = foreignDriver{&driver{disk: w.disk, f: f, kind: service.DriverLibvirt, clock: clock}}
	}
	p.Service, err = service.New(context.Background(), service.Config{
		Compute: machines, Store: rows, Refused: w.refused, Engine: p.mover, Zones: []string{zone}, Live: live,
		Drivers: drivers, Foreign: foreign, ForeignEvery: cmp.Or(w.lookEvery, time.Millisecond),
		OwnDirs: []string{filepath.Dir(w.path)}, MaxChainPoints: w.max, RetryDelay: time.Millisecond,
		Clock: clock, Log: w.log,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	p.wantBasesPinned()
	return p
}

func (p *process) run() {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.done = cancel, make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() { p.Run(ctx) })
	all.Go(func() { p.SyncForeign(ctx) })
	if !p.w.still {
		all.Go(func() { p.Fill(ctx) })
	}
	go func() { defer close(p.done); all.Wait() }()
}

func (p *process) stop() {
	p.t.Helper()
	if p.cancel != nil {
		p.cancel()
		<-p.done
	}
	if err := p.store.Close(); err != nil {
		p.t.Fatal(err)
	}
}

// patience bounds every waiting; what is waited for takes milliseconds.
const patience = 60 * time.Second

// until waits for ok.
func (p *process) until(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(500 * time.Microsecond) {
		if ok() {
			return
		}
	}
	a := p.all()
	for _, j := range a.jobs {
		if !j.Status.Ended() {
			p.t.Logf("unfinished: %+v, state %s", j, j.State)
		}
	}
	p.t.Fatalf("waited in vain for %s; holders: %v", what, a.holders)
}

// wait waits until a job has ended.
func (p *process) wait(j job.Job, err error) job.Job {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
	p.until("job "+j.ID, func() bool {
		if j, err = p.Job(context.Background(), j.ID); err != nil {
			p.t.Fatal(err)
		}
		return j.Status.Ended()
	})
	return j
}

// good waits until a job has succeeded.
func (p *process) good(j job.Job, err error) job.Job {
	p.t.Helper()
	j = p.wait(j, err)
	if j.Status != job.Successful {
		p.t.Fatalf("job %s %s: %s", j.ID, j.Action, j.Info)
	}
	return j
}

// bad waits until a job has failed and says info.
func (p *process) bad(info string, j job.Job, err error) job.Job {
	p.t.Helper()
	j = p.wait(j, err)
	if j.Status != job.Failed || !strings.Contains(j.Info, info) || j.ErrorCode == 0 || j.ErrorMessage == "" {
		p.t.Errorf("%s is %s, info %q, code %d; want it failed, saying %q", j.Action, j.Status, j.Info, j.ErrorCode, info)
	}
	return j
}

// idle waits until no job is unfinished and what jobs held is let go, which
// happens soon after their end.
func (p *process) idle() {
	p.t.Helper()
	p.until("all jobs to end", func() bool {
		jobs, err := p.UnfinishedJobs(context.Background(), zone)
		if err != nil {
			p.t.Fatal(err)
		}
		return len(jobs) == 0 && p.released()
	})
}

var origin = service.Origin{Zone: zone, RequestID: "req-1"}

func (p *process) create(full bool, volumes ...string) (job.Job, error) {
	return p.CreateSnapshots(context.Background(), service.CreateSnapshots{Origin: origin, Resources: volumes, Name: "point", Full: full})
}

func (p *process) delete(ids ...string) (job.Job, error) {
	return p.DeleteSnapshots(context.Background(), service.SnapshotSet{Origin: origin, IDs: ids})
}

func (p *process) apply(ids ...string) (job.Job, error) {
	return p.ApplySnapshots(context.Background(), service.ApplySnapshots{SnapshotSet: service.SnapshotSet{Origin: origin, IDs: ids}})
}

func (p *process) clone(id string) (job.Job, error) {
	return p.CreateVolumeFromSnapshot(context.Background(), service.CloneSnapshot{Origin: origin, Snapshot: id, VolumeName: "clone"})
}

func (p *process) deleteVolumes(ids ...string) (job.Job, error) {
	return p.DeleteVolumes(context.Background(), service.VolumeSet{Origin: origin, IDs: ids})
}

func (p *process) resize(size int64, ids ...string) (job.Job, error) {
	return p.ResizeVolumes(context.Background(), service.ResizeVolumes{Origin: origin, IDs: ids, SizeBytes: size})
}

func (p *process) imported(stream string, size int64) (job.Job, error) {
	return p.ImportVolume(context.Background(), service.ImportVolume{Origin: origin, Name: "imported", SizeBytes: size, Stream: service.Flat(strings.NewReader(stream), size)})
}

// volumeSize is the size of the volumes that tests make.
const volumeSize = 100

// volumes makes n managed volumes and writes something to each.
func (p *process) volumes(n int) []string {
	p.t.Helper()
	j := p.good(p.CreateVolumes(context.Background(), service.CreateVolumes{Origin: origin, Name: "volume", SizeBytes: volumeSize, Count: n}))
	for _, id := range j.ResourceIDs {
		p.write(id, "first on "+id)
	}
	return j.ResourceIDs
}

func (p *process) write(id, content string) { p.w.disk.put(id, content, volumeSize) }

// register makes a registered volume of a fake file or export.
func (p *process) register(path string) service.Volume {
	p.t.Helper()
	p.w.disk.put(path, "first in "+path, volumeSize)
	v, err := p.RegisterVolume(context.Background(), service.RegisterVolume{
		Origin: service.Origin{Zone: zone, Local: true}, Path: path, Name: "registered",
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// point takes one point of one volume.
func (p *process) point(volumeID string) string {
	p.t.Helper()
	return p.good(p.create(false, volumeID)).ResourceIDs[0]
}

func (p *process) snapshot(id string) service.Snapshot {
	p.t.Helper()
	page, err := p.Snapshots(context.Background(), service.SnapshotFilter{Zone: zone, IDs: []string{id}, Limit: 1, Images: strings.HasPrefix(id, "img-")})
	if err != nil || len(page.Snapshots) != 1 {
		p.t.Fatalf("snapshot %s: %d found, %v", id, len(page.Snapshots), err)
	}
	return page.Snapshots[0].Snapshot
}

func (p *process) volume(id string) service.Volume {
	p.t.Helper()
	var rows []service.Volume
	err := p.store.View(context.Background(), func(tx service.Tx) (err error) {
		rows, _, err = tx.Volumes(service.VolumeFilter{Zone: zone, IDs: []string{id}, Instances: strings.HasPrefix(id, "ins-"), Limit: 1})
		return err
	})
	if err != nil || len(rows) != 1 {
		p.t.Fatalf("volume %s: %d found, %v", id, len(rows), err)
	}
	return rows[0]
}

// content is what a volume holds now.
func (p *process) content(id string) string {
	c, _ := p.w.disk.get(id)
	return c
}

// head is the id of a volume's head, "" if it has none.
func (p *process) head(volumeID string) (id string) {
	p.t.Helper()
	err := p.store.View(context.Background(), func(tx service.Tx) error {
		s, _, err := tx.Head(volumeID)
		id = s.ID
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return id
}

// refused checks the kind and the words of a refusal.
func refused(t testing.TB, kind errs.Kind, words string, err error) {
	t.Helper()
	if err == nil || errs.KindOf(err) != kind || !strings.Contains(errs.Message(err), words) {
		t.Errorf("got %v (%v), want %v saying %q", err, errs.KindOf(err), kind, words)
	}
	if kind == errs.Busy && !strings.HasSuffix(errs.Message(err), "please try later") {
		t.Errorf("a busy message ends in %q", errs.Message(err))
	}
}
