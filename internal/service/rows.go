package service

import (
	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/job"
)

// points is what the rules read of rows.
func points(rows []Snapshot) []chain.Point {
	out := make([]chain.Point, len(rows))
	for i, r := range rows {
		out[i] = r.Point
	}
	return out
}

// ref names the point in the repository.
func (p Snapshot) ref() engine.PointRef {
	return engine.PointRef{Snapshot: p.ID, Pack: p.ManifestPack, Hash: p.ManifestHash}
}

// meta is what the point's manifest says of it; group is how many points its
// call has.
func (p Snapshot) meta(group int) engine.PointMeta {
	return engine.PointMeta{
		Snapshot: p.ID, Resource: p.ResourceID, ResourceType: p.ResourceType, ResourceName: p.ResourceName,
		VolumeType: p.VolumeType, Zone: p.Zone, Group: p.GroupID, GroupSize: group, Job: p.JobID, Name: p.Name, Description: p.Description,
		Full: p.Full, Parent: p.ParentID, Root: p.RootID, CreateTime: p.CreateTime, SnapshotTime: p.SnapshotTime,
		Consistency: p.Consistency, CBT: p.CBT, Reason: p.Reason, SizeBytes: p.VirtualSize,
	}
}

// moveHead makes a point the head of its resource; "" leaves it without one.
// The flags of the chains' fulls follow.
func moveHead(tx Tx, resource, to chain.ID) error {
	old, had, err := tx.Head(resource)
	if err != nil || had && old.ID == to {
		return err
	}
	if had {
		// First: the database allows one head only.
		old.IsHead = false
		if err := tx.UpdateSnapshot(old); err != nil {
			return err
		}
	}
	var head *chain.Point
	if to != "" {
		p, err := tx.Snapshot("", to)
		if err != nil {
			return err
		}
		p.IsHead = true
		if err := tx.UpdateSnapshot(p); err != nil {
			return err
		}
		head = &p.Point
		if err := flagHeadChain(tx, p.RootID, head); err != nil {
			return err
		}
	}
	if had {
		return flagHeadChain(tx, old.RootID, head)
	}
	return nil
}

// flagHeadChain sets head_chain of a full as the rules say.
func flagHeadChain(tx Tx, root chain.ID, head *chain.Point) error {
	full, err := tx.Snapshot("", root)
	if err != nil {
		return err
	}
	want := chain.HeadChain(full.Point, head)
	if full.HeadChain == want {
		return nil
	}
	full.HeadChain = want
	return tx.UpdateSnapshot(full)
}

// sumChain writes the chain's totals to its full.
func sumChain(tx Tx, root chain.ID) error {
	rows, err := tx.Chain(root)
	if err != nil {
		return err
	}
	t := chain.TotalsOf(points(rows))
	for _, r := range rows {
		if r.ID != root {
			continue
		}
		r.TotalBytes, r.TotalCount, r.LatestTime = t.Bytes, t.Count, t.Latest
		return tx.UpdateSnapshot(r)
	}
	return nil // the full has ceased, and its chain with it
}

// changeVolumes reads the volumes anew and writes them back changed.
func changeVolumes(tx Tx, ids []string, change func(v *Volume)) error {
	for _, id := range ids {
		v, err := tx.Volume("", id)
		if err != nil {
			return err
		}
		change(&v)
		if err := tx.UpdateVolume(v); err != nil {
			return err
		}
	}
	return nil
}

// changeSnapshots reads the snapshots anew and writes them back changed.
func changeSnapshots(tx Tx, ids []string, change func(p *Snapshot)) error {
	for _, id := range ids {
		p, err := tx.Snapshot("", id)
		if err != nil {
			return err
		}
		change(&p)
		if err := tx.UpdateSnapshot(p); err != nil {
			return err
		}
	}
	return nil
}

// loadVolumes reads volumes in the order of ids.
func loadVolumes(tx Tx, ids []string) ([]Volume, error) {
	out := make([]Volume, 0, len(ids))
	for _, id := range ids {
		v, err := tx.Volume("", id)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// loadSnapshots reads snapshots in the order of ids.
func loadSnapshots(tx Tx, ids []string) ([]Snapshot, error) {
	out := make([]Snapshot, 0, len(ids))
	for _, id := range ids {
		p, err := tx.Snapshot("", id)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// meter adds up the progress of a job's parts, one after the other.
type meter struct {
	run    *job.Run
	totals []int64
	done   int64 // of the parts before the present one
}

// part is the progress of the i-th part. Parts come in order; the total of a
// later one is a guess until it has begun.
func (m *meter) part(i int) engine.Progress {
	m.done = 0
	for _, t := range m.totals[:i] {
		m.done += t
	}
	return func(done, total int64) {
		m.totals[i] = total
		sum := int64(0)
		for _, t := range m.totals {
			sum += t
		}
		m.run.Progress(m.done+done, sum)
	}
}
