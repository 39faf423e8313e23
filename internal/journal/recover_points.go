package journal

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/service"
)

const (
	ceased = chain.Ceased
	// pageRows is how many rows are looked at between two transactions.
	pageRows = 500

	unproven = "nothing says that it was committed"
)

func knownStatus(p service.Snapshot) error {
	switch p.Status {
	case chain.Available, chain.Suspended, chain.Deleted, chain.Ceased:
		return nil
	}
	return errs.New(errs.Conflict, "the journal has snapshot %s in the status %q, which this program does not know; use a newer program", p.ID, string(p.Status))
}

func ref(p service.Snapshot) engine.PointRef {
	return engine.PointRef{Snapshot: p.ID, Pack: p.ManifestPack, Hash: p.ManifestHash}
}

// eachRow runs fn on every row of the new database outside of a transaction,
// and stores the rows that it changed.
func (r *recovery) eachRow(ctx context.Context, fn func(p *service.Snapshot) error) error {
	for after := ""; ; {
		var rows []service.Snapshot
		err := r.Store.View(ctx, func(tx service.Tx) (err error) {
			rows, err = tx.SnapshotsAfter(after, pageRows)
			return err
		})
		if err != nil || len(rows) == 0 {
			return err
		}
		after = rows[len(rows)-1].ID
		var changed []service.Snapshot
		for _, p := range rows {
			before := p
			if err := fn(&p); err != nil {
				return err
			}
			if p != before {
				changed = append(changed, p)
			}
		}
		if err := r.store(ctx, changed, service.Tx.UpdateSnapshot); err != nil {
			return err
		}
	}
}

func (r *recovery) store(ctx context.Context, rows []service.Snapshot, how func(service.Tx, service.Snapshot) error) error {
	if len(rows) == 0 {
		return nil
	}
	return r.Store.Update(ctx, func(tx service.Tx) error {
		for _, p := range rows {
			if err := how(tx, p); err != nil {
				return err
			}
		}
		return nil
	})
}

// checkPoints looks at the bytes of every committed point. One that lacks some
// is marked, not dropped: most of it can still be read.
func (r *recovery) checkPoints(ctx context.Context) error {
	return r.eachRow(ctx, func(p *service.Snapshot) error {
		if p.Status == ceased {
			r.countGroup(p.GroupID, 0)
			r.point(*p, Recovered, "")
			return nil
		}
		found, damage, err := r.checker.Check(ctx, ref(*p))
		if err != nil {
			return fmt.Errorf("check %s: %w", p.ID, err)
		}
		r.countGroup(p.GroupID, found.Meta.GroupSize)
		r.note(*p)
		switch {
		case len(damage) > 0:
			p.Damaged = true
			r.point(*p, Damaged, damage[0].What)
		case p.Damaged:
			r.point(*p, Damaged, "it was known to be damaged")
		default:
			r.point(*p, Recovered, "")
		}
		return nil
	})
}

// note remembers the newest point of a resource, in case that nothing tells
// its head.
func (r *recovery) note(p service.Snapshot) {
	if p.ResourceType == service.ResourceImage {
		return // nothing descends from one
	}
	if have, ok := r.latest[p.ResourceID]; p.Live() && (!ok || p.SnapshotTime.After(have.SnapshotTime)) {
		r.latest[p.ResourceID] = p
	}
}

func (r *recovery) countGroup(id string, want int) {
	if id == "" || !r.Accept {
		return // a whole journal has a call's points together or not at all
	}
	g := r.groups[id]
	if g == nil {
		g = &groupCount{}
		r.groups[id] = g
	}
	g.have++
	g.want = max(g.want, want)
}

// findUnknown looks for manifests that no row names.
func (r *recovery) findUnknown(ctx context.Context) error {
	var page []engine.PointRef
	err := r.Repo.PointRefs(ctx, func(ref engine.PointRef) error {
		if page = append(page, ref); len(page) < pageRows {
			return nil
		}
		err := r.compareRefs(ctx, page)
		page = page[:0]
		return err
	})
	if err != nil {
		return err
	}
	return r.compareRefs(ctx, page)
}

func (r *recovery) compareRefs(ctx context.Context, refs []engine.PointRef) error {
	if len(refs) == 0 {
		return nil
	}
	ids := make([]string, len(refs))
	for i, ref := range refs {
		ids[i] = ref.Snapshot
	}
	rows := map[string]service.Snapshot{}
	err := r.Store.View(ctx, func(tx service.Tx) error {
		found, _, err := tx.Snapshots(service.SnapshotFilter{IDs: ids, Limit: len(ids)})
		for _, p := range found {
			rows[p.ID] = p
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, ref := range refs {
		p, known := rows[ref.Snapshot]
		switch {
		case known && p.ManifestPack == ref.Pack:
		case known && p.ManifestPack == "":
			r.point(p, LeftOut, "its bytes are still there, but it was given up before it was committed")
		case known:
			r.point(p, LeftOut, fmt.Sprintf("pack %s holds another manifest of it, written by a worker that had lost its job", ref.Pack))
		default:
			if err := r.readUnknown(ctx, ref); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *recovery) readUnknown(ctx context.Context, ref engine.PointRef) error {
	p, err := r.Repo.ReadPoint(ctx, ref)
	if errs.Is(err, errs.Corrupt) {
		r.point(service.Snapshot{Point: chain.Point{ID: ref.Snapshot}}, LeftOut, unproven+", and its manifest cannot be read")
		return nil
	}
	if err != nil {
		return err
	}
	r.unknown = append(r.unknown, p)
	return nil
}

// judgeUnknown leaves out what nothing proves, or takes it in if asked to.
func (r *recovery) judgeUnknown(ctx context.Context) error {
	r.block()
	// Newest first: of two manifests of one point the newer is the one whose
	// worker lived on.
	slices.SortFunc(r.unknown, func(a, b engine.StoredPoint) int {
		if c := b.Meta.SnapshotTime.Compare(a.Meta.SnapshotTime); c != 0 {
			return c
		}
		return strings.Compare(a.Ref.Pack, b.Ref.Pack)
	})
	if !r.Accept {
		for _, p := range r.unknown {
			r.point(pointRow(p), LeftOut, unproven+"; --accept-uncommitted takes it in")
		}
		return nil
	}
	taken := map[string]bool{}
	for _, p := range r.unknown {
		if !taken[p.Ref.Snapshot] {
			r.countGroup(p.Meta.Group, p.Meta.GroupSize)
		}
		taken[p.Ref.Snapshot] = true
	}
	clear(taken)
	var rows []service.Snapshot
	for _, p := range r.unknown {
		row := pointRow(p)
		if taken[row.ID] {
			r.point(row, LeftOut, "there is a newer manifest of it")
			continue
		}
		taken[row.ID] = true
		_, damage, err := r.checker.Check(ctx, p.Ref)
		if err != nil {
			return fmt.Errorf("check %s: %w", row.ID, err)
		}
		reason := unproven + ", taken in as asked, with the name it had when it was taken"
		if g := r.groups[row.GroupID]; g != nil && g.have < g.want {
			reason += fmt.Sprintf("; only %d of the %d points of its call are there", g.have, g.want)
		}
		result := Recovered
		if len(damage) > 0 {
			row.Damaged, result = true, Damaged
			reason += "; " + damage[0].What
		}
		r.point(row, result, reason)
		r.note(row)
		rows = append(rows, row)
	}
	for page := range slices.Chunk(rows, pageRows) {
		if err := r.store(ctx, page, service.Tx.InsertSnapshot); err != nil {
			return err
		}
	}
	return nil
}

// block says what must not be recovered without being asked for.
func (r *recovery) block() {
	if r.Accept {
		return
	}
	switch {
	case r.report.Journal.State == StateDamaged:
		r.report.Blocked = "the journal is damaged, so points that were deleted could come back, and newer names and points be missing; look at the report, then say --accept-uncommitted to go on with what can be read"
	case r.report.Journal.State == StateMissing && (len(r.unknown) > 0 || len(r.Volumes) > 0):
		r.report.Blocked = "there is no journal, so nothing tells committed points from deleted and unfinished ones; look at the report, then say --accept-uncommitted to take all of them in"
	}
}

// pointRow is the row that a manifest alone tells of.
func pointRow(p engine.StoredPoint) service.Snapshot {
	m := p.Meta
	return service.Snapshot{
		Point: chain.Point{
			ID: m.Snapshot, ResourceID: m.Resource, ParentID: m.Parent, RootID: m.Root, Full: m.Full, Status: chain.Available,
			VirtualSize: m.SizeBytes, SizeBytes: p.AddedBytes, SnapshotTime: m.SnapshotTime,
		},
		Zone: m.Zone, Name: m.Name, Description: m.Description, CreateTime: m.CreateTime, StatusTime: m.CreateTime, IsTaken: true,
		ResourceType: m.ResourceType, ResourceName: m.ResourceName, VolumeType: m.VolumeType, GroupID: m.Group, JobID: m.Job,
		Consistency: m.Consistency, CBT: m.CBT, Reason: m.Reason, ManifestPack: p.Ref.Pack, ManifestHash: p.Ref.Hash,
	}
}
