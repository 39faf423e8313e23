package journal

import (
	"context"
	"log/slog"
	"time"

	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/service"
)

// Repository is what Recover reads; *engine.Engine has it.
type Repository interface {
	JournalBlobs(ctx context.Context) ([]engine.JournalBlob, error)
	JournalState(ctx context.Context) (engine.JournalState, error)
	ReadJournal(ctx context.Context, number uint64) (engine.JournalContent, error)
	// PointRefs calls fn for every stored manifest, committed or not.
	PointRefs(ctx context.Context, fn func(engine.PointRef) error) error
	// ReadPoint reads a stored manifest. errs.Corrupt: in no copy.
	ReadPoint(ctx context.Context, ref engine.PointRef) (engine.StoredPoint, error)
	// StoredPacks calls fn for every stored pack; whole: in every copy.
	StoredPacks(ctx context.Context, fn func(p engine.PackRecord, whole bool) error) error
	// MovedPacks tells out of which packs records were copied.
	MovedPacks(ctx context.Context) (map[string]bool, error)
	NewPointChecker() *engine.PointChecker
}

// FoundVolume is a managed volume's data as it lies in its folder.
type FoundVolume struct {
	ID        string
	SizeBytes int64
}

// RecoverConfig is all that Recover needs. Fields without a default are
// required.
type RecoverConfig struct {
	Store   service.Store // a new, empty database; it stays the caller's
	Repo    Repository
	Volumes []FoundVolume // all managed volumes
	Holds   []string      // instants that drivers hold, by the ids of their jobs
	// Accept takes in also points and volumes of which nothing says that they
	// were finished, and a journal with holes.
	Accept bool
	Zone   string // of volumes of which nothing tells the zone

	Clock  func() time.Time
	Logger *slog.Logger
}

// recovery is one run of Recover. Rows go to the new database as they come, so
// memory follows the volumes and what is strange, not the points.
type recovery struct {
	RecoverConfig
	report  Report
	checker *engine.PointChecker
	newest  uint64            // number of the newest journal blob
	heads   map[string]string // point by resource
	volumes map[string]service.Volume
	groups  map[string]*groupCount
	latest  map[string]service.Snapshot // newest accepted or known point by resource; see guessHeads
	unknown []engine.StoredPoint        // manifests that nothing says were committed
}

// groupCount counts the points of one create call that are there.
type groupCount struct{ want, have int }

// Recover fills a new database from the repository: every row of points and
// volumes as the journal has it, checked against the manifests and trees, and
// every pack. It only reads the repository, and never brings back a point that
// was deleted, given up or half done. What needs Accept, and does not have it,
// is in the report as Blocked: the database is then of no use.
func Recover(ctx context.Context, c RecoverConfig) (Report, error) {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	r := &recovery{
		RecoverConfig: c, checker: c.Repo.NewPointChecker(), heads: map[string]string{}, volumes: map[string]service.Volume{},
		groups: map[string]*groupCount{}, latest: map[string]service.Snapshot{},
		report: Report{Journal: LogReport{Problems: []string{}}, Points: []PointReport{}, Volumes: []VolumeReport{}, Notes: []string{}},
	}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"reading the journal", r.readJournal},
		{"checking the points", r.checkPoints},
		{"looking for manifests that the journal does not have", r.findUnknown},
		{"judging them", r.judgeUnknown},
		{"mending chains", r.mendChains},
		{"writing the volumes", r.writeVolumes},
		{"writing heads and sums", r.writeChains},
		{"writing the packs", r.writePacks},
		{"ending", r.finish},
	} {
		c.Logger.Info("recover: " + step.what)
		if err := step.do(ctx); err != nil {
			return r.report, err
		}
	}
	return r.report, nil
}

// readJournal applies the journal's entries to the empty database.
func (r *recovery) readJournal(ctx context.Context) error {
	state, err := r.Repo.JournalState(ctx)
	if err != nil {
		return err
	}
	blobs, err := r.Repo.JournalBlobs(ctx)
	if err != nil {
		return err
	}
	for _, b := range blobs {
		r.newest = max(r.newest, b.Number)
	}
	j := &r.report.Journal
	j.State, j.Blobs, j.Newest, j.WrittenAt = StateWhole, len(blobs), r.newest, state.Newest.Written
	if len(blobs) == 0 {
		j.State = StateMissing
	}
	for _, p := range state.Problems {
		j.State = StateDamaged
		j.Problems = append(j.Problems, p.What)
	}
	for _, pos := range state.Order {
		c, err := r.Repo.ReadJournal(ctx, pos.Number)
		if err != nil {
			return err
		}
		j.Entries += len(c.Entries)
		err = r.Store.Update(ctx, func(tx service.Tx) error {
			for _, e := range c.Entries {
				if err := r.apply(tx, e); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// apply makes one entry the state of its object. Heads are kept apart: entries
// of two points may come in an order in which both are heads for a moment.
func (r *recovery) apply(tx service.Tx, e engine.JournalEntry) error {
	switch {
	case e.Kind == engine.VolumeEntry && e.Removed:
		delete(r.volumes, e.ID)
		return nil
	case e.Kind == engine.VolumeEntry:
		v := volumeOf(e)
		r.volumes[e.ID] = v
		return knownVolume(v)
	}
	have, err := tx.Snapshot("", e.ID)
	absent := errs.Is(err, errs.NotFound)
	if err != nil && !absent {
		return err
	}
	p := snapshotOf(e)
	if e.Removed {
		if absent {
			return nil
		}
		// Nothing needs the row any more, and nothing may bring it back.
		p = have
		p.Status = ceased
	}
	if err := knownStatus(p); err != nil {
		return err
	}
	if p.IsHead {
		r.heads[p.ResourceID] = p.ID
	} else if r.heads[p.ResourceID] == p.ID {
		delete(r.heads, p.ResourceID)
	}
	p.IsHead = false
	if absent {
		return tx.InsertSnapshot(p)
	}
	return tx.UpdateSnapshot(p)
}
