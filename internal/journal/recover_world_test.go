package journal_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/extent"
	"cairn/internal/foldertest"
	"cairn/internal/journal"
	"cairn/internal/metadb"
	"cairn/internal/repo"
	"cairn/internal/service"
	"cairn/internal/volume"
)

// content is a volume's bytes at one instant.
type content []byte

func (c content) Size() int64 { return int64(len(c)) }

func (c content) ReadAt(_ context.Context, buf []byte, off int64) error {
	if copy(buf, c[off:]) < len(buf) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

func (c content) Data(_ context.Context, off int64) (extent.Range, error) {
	if off >= c.Size() {
		return extent.Range{}, io.EOF
	}
	return extent.Range{Off: off, Len: c.Size() - off}, nil
}

func (c content) Changed(context.Context, volume.Checkpoint, int64) (extent.Range, error) {
	return extent.Range{}, volume.ErrNoBase
}

func (c content) Release(context.Context, int64, int64) error { return nil }

func (c content) Audit(context.Context, volume.Checkpoint) ([]extent.Range, error) { return nil, nil }

// registry is a session's packs.
type registry struct {
	mu    sync.Mutex
	packs []engine.PackRecord
}

func (r *registry) RegisterPack(_ context.Context, p engine.PackRecord) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.packs = append(r.packs, p)
	return nil
}

func (r *registry) SessionPacks(context.Context) ([]engine.PackRecord, error) { return nil, nil }
func (r *registry) DropPacks(context.Context, []string) error                 { return nil }
func (r *registry) ForgetPacks(context.Context, []string) error               { return nil }
func (r *registry) PackUsable(context.Context, string) (bool, error)          { return true, nil }

// bytesOf is some content that differs with n. It does not shrink, so that it
// does not fit into a point pack.
func bytesOf(n int) content {
	c, r := make(content, 200<<10), rand.New(rand.NewPCG(uint64(n), 4))
	for i := range c {
		c[i] = byte(r.Uint32())
	}
	return c
}

// capture stores a point's bytes and manifest, and gives the row that a commit
// would make of the pending one.
func (w *world) capture(p service.Snapshot, c content) service.Snapshot {
	w.t.Helper()
	ctx := context.Background()
	s, err := w.eng.OpenSession(ctx, p.JobID, 1, &registry{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close()
	p.VirtualSize, p.SnapshotTime = c.Size(), p.CreateTime.Add(time.Second)
	got, err := s.Capture(ctx, engine.CaptureSpec{Source: c, Meta: engine.PointMeta{
		Snapshot: p.ID, Resource: p.ResourceID, ResourceType: p.ResourceType, ResourceName: p.ResourceName, VolumeType: p.VolumeType,
		Zone: p.Zone, Group: p.GroupID, GroupSize: 1, Job: p.JobID, Name: p.Name, Description: p.Description, Full: p.Full, Parent: p.ParentID,
		Root: p.RootID, CreateTime: p.CreateTime, SnapshotTime: p.SnapshotTime, Consistency: p.Consistency, CBT: p.CBT, Reason: p.Reason,
	}}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	p.Status, p.Transition, p.IsTaken, p.StatusTime = chain.Available, "", true, p.SnapshotTime
	p.SizeBytes, p.ManifestPack, p.ManifestHash = got.AddedBytes, got.Ref.Pack, got.Ref.Hash
	return p
}

// pendingPoint is the n-th point of a volume, on a parent or "".
func pendingPoint(n int, vol string, parent *service.Snapshot) service.Snapshot {
	p := point(fmt.Sprintf("ss-%s-%03d", strings.TrimPrefix(vol, "vol-"), n))
	p.ResourceID, p.ResourceName, p.CreateTime, p.StatusTime = vol, "name of "+vol, origin.Add(time.Duration(n)*time.Minute), origin
	p.JobID, p.GroupID, p.Consistency, p.CBT, p.Reason, p.VolumeType = fmt.Sprint("job-", n), fmt.Sprint("job-", n), "crash", "scan", "because", 3
	if parent != nil {
		p.Full, p.ParentID, p.RootID = false, parent.ID, parent.RootID
	}
	return p
}

// take makes a committed point that is the head.
func (w *world) take(n int, vol string, parent *service.Snapshot) service.Snapshot {
	w.t.Helper()
	p := w.capture(pendingPoint(n, vol, parent), bytesOf(n))
	p.IsHead = true
	w.update(func(tx service.Tx) error {
		if old, ok, err := tx.Head(vol); err != nil {
			return err
		} else if ok {
			old.IsHead = false
			if err := tx.UpdateSnapshot(old); err != nil {
				return err
			}
		}
		return tx.InsertSnapshot(p)
	})
	return p
}

func (w *world) change(id string, fn func(p *service.Snapshot)) {
	w.t.Helper()
	w.update(func(tx service.Tx) error {
		p, err := tx.Snapshot("", id)
		if err != nil {
			return err
		}
		fn(&p)
		return tx.UpdateSnapshot(p)
	})
}

// recovered is what a recover gave.
type recovered struct {
	report  journal.Report
	path    string
	rows    state                       // as world.rows gives them
	points  map[string]service.Snapshot // whole rows
	volumes map[string]service.Volume
	packs   []service.Pack
	holders []string
}

// recover makes a database from the repository as it is now.
func (w *world) recover(accept bool, files ...journal.FoundVolume) recovered {
	w.t.Helper()
	out, err := w.tryRecover(accept, files...)
	if err != nil {
		w.t.Fatal(err)
	}
	out.check(w)
	return out
}

func (w *world) tryRecover(accept bool, files ...journal.FoundVolume) (recovered, error) {
	w.t.Helper()
	ctx := context.Background()
	r, err := repo.Open(ctx, w.mem.Clone(), w.key, foldertest.InMemory(w.t))
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	out := recovered{path: filepath.Join(foldertest.InMemory(w.t), "new.db"), rows: state{}, points: map[string]service.Snapshot{}, volumes: map[string]service.Volume{}}
	copyFile(w.t, emptyDatabase(), out.path)
	db, err := metadb.Open(ctx, out.path)
	if err != nil {
		w.t.Fatal(err)
	}
	out.report, err = journal.Recover(ctx, journal.RecoverConfig{
		Store: db, Repo: engine.New(r, engine.Config{Workers: 1}), Volumes: files, Accept: accept, Zone: "ac9",
		Holds: []string{"job-old"},
		Clock: func() time.Time { return origin.Add(time.Hour) }, Logger: w.conf.Logger,
	})
	if err != nil {
		return out, errors.Join(err, db.Close())
	}
	err = db.View(ctx, func(tx service.Tx) error {
		ps, err := tx.SnapshotsAfter("", 10000)
		for _, p := range ps {
			out.points[p.ID] = p
			out.rows[p.ID] = stripped(p)
		}
		if err != nil {
			return err
		}
		vs, err := tx.VolumesAfter("", 10000)
		for _, v := range vs {
			out.volumes[v.ID], out.rows[v.ID] = v, v
		}
		if err != nil {
			return err
		}
		if err := tx.Packs(func(p service.Pack) error { out.packs = append(out.packs, p); return nil }); err != nil {
			return err
		}
		changes, err := tx.Changes(0, 10)
		if len(changes) > 0 {
			w.t.Errorf("changes are left: %v", changes)
		}
		if err != nil {
			return err
		}
		out.holders, err = tx.Holders()
		return err
	})
	return out, errors.Join(err, db.Close())
}

// damage flips a bit of a blob; without a suffix, of both its copies.
func (w *world) damage(name string) {
	w.t.Helper()
	names := []string{name}
	if !strings.HasSuffix(name, ".a") && !strings.HasSuffix(name, ".b") {
		names = []string{name + ".a", name + ".b"}
	}
	for _, n := range names {
		if err := w.mem.Damage(n, func(b []byte) []byte { b[len(b)/2] ^= 4; return b }); err != nil {
			w.t.Fatal(err)
		}
	}
}

// list names the blobs below a prefix.
func (w *world) list(prefix string) (out []string) {
	w.t.Helper()
	if err := w.mem.List(context.Background(), prefix, func(b repo.Blob) error {
		out = append(out, b.Name)
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// undamaged are the rows with the mark taken off that points without bytes get.
func (r recovered) undamaged() state {
	out := state{}
	for id, row := range r.rows {
		if p, ok := row.(service.Snapshot); ok {
			p.Damaged = false
			row = p
		}
		out[id] = row
	}
	return out
}

// check looks at what holds for every recovered database.
func (r recovered) check(w *world) {
	w.t.Helper()
	heads := map[string]string{}
	byRoot := map[string][]chain.Point{}
	for _, p := range r.points {
		if p.Transition != "" || p.UniqueKnown {
			w.t.Errorf("%s: transition %q, unique bytes known: %v", p.ID, p.Transition, p.UniqueKnown)
		}
		if p.IsHead {
			heads[p.ResourceID] = p.RootID
		}
		byRoot[p.RootID] = append(byRoot[p.RootID], p.Point)
	}
	for _, p := range r.points {
		if !p.Full || p.Status == chain.Ceased {
			continue
		}
		want := chain.TotalsOf(byRoot[p.ID])
		if p.TotalBytes != want.Bytes || p.TotalCount != want.Count || !p.LatestTime.Equal(want.Latest) || p.HeadChain != (heads[p.ResourceID] == p.ID) {
			w.t.Errorf("%s says %d bytes, %d points, %v, head chain %v; want %+v and %v", p.ID, p.TotalBytes, p.TotalCount, p.LatestTime, p.HeadChain, want, heads[p.ResourceID] == p.ID)
		}
	}
	if !slices.Equal(r.holders, []string{"hold:job-old"}) {
		w.t.Errorf("holders: %v, want the instant that is still held and nobody else", r.holders)
	}
	want := map[string]bool{}
	if err := w.mem.List(context.Background(), "", func(b repo.Blob) error {
		if !strings.HasPrefix(b.Name, "header/") && !strings.HasPrefix(b.Name, "journal/") {
			want[strings.TrimSuffix(strings.TrimSuffix(b.Name, ".a"), ".b")] = true
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	for _, name := range w.halves {
		delete(want, name)
	}
	for _, p := range r.packs {
		if !want[p.Name] || p.State != service.PackLive || p.Bytes <= 0 || p.Session == "" {
			w.t.Errorf("pack row %+v", p)
		}
		delete(want, p.Name)
	}
	if len(want) > 0 || r.report.Packs != len(r.packs) {
		w.t.Errorf("no rows for %v; %d packs reported, %d rows", want, r.report.Packs, len(r.packs))
	}
}

// of is what the report says of a point.
func (r recovered) of(id string) (out []journal.PointReport) {
	for _, p := range r.report.Points {
		if p.ID == id {
			out = append(out, p)
		}
	}
	return out
}

// says fails the test unless the report says just this of a point.
func (r recovered) says(w *world, id, result, words string) {
	w.t.Helper()
	if !slices.ContainsFunc(r.of(id), func(p journal.PointReport) bool {
		return p.Result == result && strings.Contains(p.Reason, words)
	}) {
		w.t.Errorf("the report says of %s: %+v; want it %s, saying %q", id, r.of(id), result, words)
	}
}

func (r recovered) saysVolume(w *world, id, result, words string) {
	w.t.Helper()
	for _, v := range r.report.Volumes {
		if v.ID == id {
			if v.Result != result || !strings.Contains(v.Reason, words) {
				w.t.Errorf("the report says of %+v; want it %s, saying %q", v, result, words)
			}
			return
		}
	}
	w.t.Errorf("the report does not tell of %s", id)
}
