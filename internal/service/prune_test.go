package service_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/service"
)

// prepareDeleted gives a volume and its three points, the last two of which
// are in the recycle bin.
func prepareDeleted(p *process) []string {
	ids := prepareChain(p)
	p.good(p.delete(ids[2]))
	return ids
}

func (p *process) undelete(ids ...string) (job.Job, error) {
	return p.Undelete(context.Background(), service.SnapshotSet{Origin: origin, IDs: ids})
}

func (p *process) prune(o service.PruneOptions) (job.Job, error) {
	return p.Prune(context.Background(), origin, o)
}

// stored reports whether a point's blob is there.
func (p *process) stored(id string) bool {
	p.w.disk.mu.Lock()
	defer p.w.disk.mu.Unlock()
	for name := range p.w.disk.blobs {
		if strings.HasPrefix(name, "point/"+id+".") {
			return true
		}
	}
	return false
}

func (p *process) wantInBin(ids []string) {
	p.t.Helper()
	for _, id := range ids {
		if s := p.snapshot(id); s.Status != chain.Deleted || !p.stored(id) {
			p.t.Errorf("%s is %s, stored: %v; want it in the bin with all it needs", id, s.Status, p.stored(id))
		}
	}
}

func verifyUndelete(p *process, ids []string, done bool) {
	if !done {
		p.wantInBin(ids[2:4])
		return
	}
	// The ancestor came along; the head stays where the delete left it.
	for _, id := range ids[2:4] {
		if s := p.snapshot(id); s.Status != chain.Available || s.IsHead || p.pointContent(id) == "" {
			p.t.Errorf("%s is %s, head: %v", id, s.Status, s.IsHead)
		}
	}
	if head := p.head(ids[0]); head != ids[1] {
		p.t.Errorf("the head is %s, want %s", head, ids[1])
	}
	if full := p.snapshot(ids[1]); full.TotalCount != 3 {
		p.t.Errorf("the chain counts %d points", full.TotalCount)
	}
}

func verifyEmptied(p *process, ids []string, done bool) {
	if !done && p.snapshot(ids[2]).Status == chain.Deleted {
		p.wantInBin(ids[2:4])
		return
	}
	for _, id := range ids[2:4] {
		if s := p.snapshot(id); s.Status != chain.Ceased || done && p.stored(id) {
			p.t.Errorf("%s is %s, stored: %v; want it gone", id, s.Status, p.stored(id))
		}
	}
	if s := p.snapshot(ids[1]); s.Status != chain.Available || !p.stored(ids[1]) {
		p.t.Errorf("%s is %s, stored: %v", ids[1], s.Status, p.stored(ids[1]))
	}
	_, err := p.undelete(ids[2])
	refused(p.t, errs.Conflict, "has ceased", err)
}

func TestUndeleteRefusals(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		p.w.max = 3
		ids := prepareDeleted(p)
		_, err := p.undelete(ids[1])
		refused(t, errs.Conflict, "is available; only a deleted one", err)
		_, err = p.undelete("ss-NOTTHERE")
		refused(t, errs.NotFound, "ss-NOTTHERE", err)
		_, err = p.undelete(ids[0])
		refused(t, errs.Invalid, "is the id of a volume", err)
		_, err = p.undelete()
		refused(t, errs.Invalid, "no snapshot is named", err)
		_, err = p.prune(service.PruneOptions{MaxCopy: -1})
		refused(t, errs.Invalid, "max_copy is negative", err)
		_, err = p.prune(service.PruneOptions{DryRun: true, EmptyBin: true})
		refused(t, errs.Invalid, "leave one of them out", err)
		p.wantInBin(ids[2:4])
	})
}

// A damaged point stops the prune, which then deletes nothing.
func TestDamageStopsAPrune(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ids := prepareDeleted(p)
		other := p.point(p.volumes(1)[0])
		p.mover.damaged[other] = true
		before := p.all()
		j, err := p.prune(service.PruneOptions{})
		p.bad("the prune stopped, because the repository is damaged", j, err)
		if after := p.all(); len(after.packs) != len(before.packs) {
			t.Errorf("%d packs are left of %d", len(after.packs), len(before.packs))
		}
		delete(p.mover.damaged, other)
		p.good(p.prune(service.PruneOptions{EmptyBin: true}))
		if p.stored(ids[2]) || !p.stored(other) {
			t.Error("the prune after that did not do its work")
		}
	})
}

// A dry run tells and changes nothing.
func TestPruneDryRun(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		ids := prepareDeleted(p)
		before := p.all()
		j := p.good(p.prune(service.PruneOptions{DryRun: true}))
		if !strings.Contains(j.Extra, `"dry_run":true`) || !strings.Contains(j.Extra, `"freed_packs":0`) {
			t.Errorf("report: %s", j.Extra)
		}
		after := p.all()
		if !slices.Equal(before.packs, after.packs) || !slices.Equal(before.points, after.points) {
			t.Error("a dry run changed rows")
		}
		p.wantInBin(ids[2:4])
	})
}

// A commit that refers to packs which a prune is deleting stores its points
// again.
func TestCommitIsRetakenWhenItsHitsAreGone(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		v := p.volumes(1)[0]
		gone := p.snapshot(p.point(v)).ManifestPack
		p.write(v, "second")
		p.mover.hits, p.mover.hitsFixed = []string{gone}, true
		p.mover.during = func() {
			p.mover.during = nil
			err := p.store.Update(context.Background(), func(tx service.Tx) error {
				pk, _, err := tx.Pack(gone)
				pk.State = service.PackDeleting
				if err != nil {
					return err
				}
				return tx.UpdatePack(pk)
			})
			if err != nil {
				t.Error(err)
			}
		}
		id := p.good(p.create(true, v)).ResourceIDs[0]
		if len(p.mover.retaken) != 1 || !slices.Equal(p.mover.retaken[0], []string{gone}) {
			t.Errorf("retaken: %v, want once, for %s", p.mover.retaken, gone)
		}
		if got := p.pointContent(id); got != "second" {
			t.Errorf("%s holds %q", id, got)
		}
		// Put it back for the checks at the end.
		p.mover.hits, p.mover.hitsFixed = nil, false
		err := p.store.Update(context.Background(), func(tx service.Tx) error {
			pk, _, err := tx.Pack(gone)
			pk.State = service.PackLive
			if err != nil {
				return err
			}
			return tx.UpdatePack(pk)
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// A commit takes back what a prune condemned after its mark.
func TestCommitRescuesWhatItHit(t *testing.T) {
	in(t, func(t *testing.T, p *process) {
		v := p.volumes(1)[0]
		hit := p.snapshot(p.point(v)).ManifestPack
		p.mover.hits, p.mover.hitsFixed = []string{hit}, true
		p.mover.during = func() {
			p.mover.during = nil
			err := p.store.Update(context.Background(), func(tx service.Tx) error {
				pk, _, err := tx.Pack(hit)
				pk.State, pk.Condemned = service.PackCondemned, 1
				if err != nil {
					return err
				}
				return tx.UpdatePack(pk)
			})
			if err != nil {
				t.Error(err)
			}
		}
		p.good(p.create(true, v))
		p.mover.hits, p.mover.hitsFixed = nil, false
		err := p.store.View(context.Background(), func(tx service.Tx) error {
			pk, ok, err := tx.Pack(hit)
			if !ok || pk.State != service.PackLive || pk.Condemned != 0 {
				t.Errorf("the pack that was hit is %+v", pk)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
