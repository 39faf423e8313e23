package engine

import (
	"context"
	"fmt"
	"slices"

	"cairn/internal/repo"
)

// This file tells what a repository holds without a database.

// StoredPoint is what a manifest tells of its point.
type StoredPoint struct {
	Ref        PointRef
	Meta       PointMeta
	AddedBytes int64
}

// PointRefs calls fn for every stored manifest, committed or not, in no order.
// Their hashes are not known.
func (e *Engine) PointRefs(ctx context.Context, fn func(PointRef) error) error {
	return e.eachPack(ctx, func(p repo.Pack, _ int64) error {
		if p.Kind != repo.PointKind {
			return nil
		}
		return fn(PointRef{Snapshot: p.Snapshot, Pack: p.ID.String()})
	})
}

// StoredPacks calls fn for every stored pack, in no order. whole: every copy of
// it is there.
func (e *Engine) StoredPacks(ctx context.Context, fn func(p PackRecord, whole bool) error) error {
	return e.eachPack(ctx, func(p repo.Pack, size int64) error {
		lacks, err := e.r.Lacks(ctx, p)
		if err != nil {
			return err
		}
		return fn(PackRecord{ID: p.ID.String(), Kind: p.Kind.String(), Name: p.Blob(), Bytes: size * int64(len(p.Copies()))}, len(lacks) == 0)
	})
}

// MovedPacks tells out of which packs records were copied: whoever forgot why
// must look for records of theirs at their new places first, as the old ones
// may be damaged.
func (e *Engine) MovedPacks(ctx context.Context) (map[string]bool, error) {
	moved, err := e.r.MovedPacks(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool, len(moved))
	for id := range moved {
		out[id.String()] = true
	}
	return out, nil
}

// eachPack calls fn once for every pack of which any copy is stored, with the
// size of one copy. Blobs that are no packs are passed over; scrub reports them.
func (e *Engine) eachPack(ctx context.Context, fn func(p repo.Pack, size int64) error) error {
	return e.r.Blobs(ctx, func(i repo.Blob) error {
		p, header, ok := repo.ParseBlob(i.Name)
		if header || !ok || p.Kind == repo.JournalKind {
			return nil
		}
		if i.Name == p.Copies()[0] {
			return fn(p, i.Size)
		}
		lacks, err := e.r.Lacks(ctx, p)
		if err != nil {
			return err
		}
		for _, name := range p.Copies() {
			if name == i.Name {
				return fn(p, i.Size)
			}
			if !slices.Contains(lacks, name) {
				return nil // told for that copy
			}
		}
		return nil
	})
}

// ReadPoint reads a stored manifest. errs.Corrupt: in no copy.
func (e *Engine) ReadPoint(ctx context.Context, ref PointRef) (StoredPoint, error) {
	pk, _, err := ref.pack()
	if err != nil {
		return StoredPoint{}, err
	}
	m, content, err := e.r.ReadPoint(ctx, pk)
	if err != nil {
		return StoredPoint{}, fmt.Errorf("read the manifest of %s: %w", ref.Snapshot, err)
	}
	ref.Hash = content.String()
	return storedPoint(ref, m), nil
}

func storedPoint(ref PointRef, m *repo.Manifest) StoredPoint {
	return StoredPoint{Ref: ref, AddedBytes: m.AddedBytes, Meta: PointMeta{
		Snapshot: m.Snapshot, Resource: m.Resource, ResourceType: m.ResourceType, ResourceName: m.ResourceName,
		VolumeType: int(m.VolumeType), Zone: m.Zone, Group: m.Group, GroupSize: int(m.GroupSize), Job: m.Job, Name: m.Name,
		Description: m.Description, Full: m.Full, Parent: m.Parent, Root: m.ChainRoot, CreateTime: m.CreateTime,
		SnapshotTime: m.SnapshotTime, Consistency: m.Consistency, CBT: m.CBT, Reason: m.Reason, SizeBytes: m.SizeBytes,
	}}
}

// PointChecker checks points one after the other, remembering what they share.
// One goroutine.
type PointChecker struct {
	s *scrub
	k *repo.Checker
}

// NewPointChecker makes a PointChecker.
func (e *Engine) NewPointChecker() *PointChecker {
	return &PointChecker{k: e.r.NewChecker(), s: &scrub{
		e: e, bad: map[repo.PackID]bool{}, good: map[repo.PackID]bool{}, broken: map[string]bool{}, clean: map[place]bool{},
		used: map[repo.PackID]bool{},
	}}
}

// Uses reports whether any point checked so far needs the pack. What lies below
// a node that cannot be read is not known.
func (c *PointChecker) Uses(p PackRecord) bool {
	id, err := repo.ParsePackID(p.ID)
	return err == nil && c.s.used[id]
}

// Check reads a point's manifest and every node of its tree, and looks for
// every chunk in the directory of its pack. No chunk is read: that is scrub's.
// damage is what is missing or wrong; err says that it could not be told. The
// manifest is empty if it cannot be read.
func (c *PointChecker) Check(ctx context.Context, ref PointRef) (p StoredPoint, damage []Damage, err error) {
	c.s.report = ScrubReport{}
	if pk, _, err := ref.pack(); err == nil {
		c.s.used[pk.ID] = true
	}
	m, err := c.s.e.manifest(ctx, ref)
	if err == nil {
		p = storedPoint(ref, m)
	} else if !repo.IsDamage(err) {
		return p, nil, err
	}
	err = c.s.point(ctx, c.k, ref)
	return p, c.s.report.Damage, err
}
