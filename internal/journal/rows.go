package journal

import (
	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/service"
)

// snapshotEntry is a row as the journal keeps it. What is derived from other
// rows or ends with a job is left out (see service.Changes).
func snapshotEntry(s service.Snapshot) engine.JournalEntry {
	return engine.JournalEntry{Kind: engine.PointEntry, ID: s.ID, Point: engine.JournalPoint{
		Resource: s.ResourceID, SizeBytes: s.VirtualSize, Full: s.Full, Parent: s.ParentID, ChainRoot: s.RootID, Job: s.JobID,
		SnapshotTime: s.SnapshotTime, CreateTime: s.CreateTime, AddedBytes: s.SizeBytes, Name: s.Name, Description: s.Description,
		ResourceType: s.ResourceType, ResourceName: s.ResourceName, VolumeType: int64(s.VolumeType), Zone: s.Zone, Group: s.GroupID,
		Consistency: s.Consistency, CBT: s.CBT, Reason: s.Reason,
		Status: string(s.Status), StatusTime: s.StatusTime, Pack: s.ManifestPack, Content: s.ManifestHash,
		Head: s.IsHead, Damaged: s.Damaged, Taken: s.IsTaken,
	}}
}

// snapshotOf is the row that an entry tells of.
func snapshotOf(e engine.JournalEntry) service.Snapshot {
	p := e.Point
	return service.Snapshot{
		Point: chain.Point{
			ID: e.ID, ResourceID: p.Resource, ParentID: p.Parent, RootID: p.ChainRoot, Full: p.Full, Status: chain.Status(p.Status),
			Damaged: p.Damaged, IsHead: p.Head, VirtualSize: p.SizeBytes, SizeBytes: p.AddedBytes, SnapshotTime: p.SnapshotTime,
		},
		Zone: p.Zone, Name: p.Name, Description: p.Description, CreateTime: p.CreateTime, StatusTime: p.StatusTime, IsTaken: p.Taken,
		ResourceType: p.ResourceType, ResourceName: p.ResourceName, VolumeType: int(p.VolumeType), GroupID: p.Group, JobID: p.Job,
		Consistency: p.Consistency, CBT: p.CBT, Reason: p.Reason, ManifestPack: p.Pack, ManifestHash: p.Content,
	}
}

// volumeEntry is a row as the journal keeps it.
func volumeEntry(v service.Volume) engine.JournalEntry {
	return engine.JournalEntry{Kind: engine.VolumeEntry, ID: v.ID, Volume: engine.JournalVolume{
		Driver: v.Driver, SizeBytes: v.SizeBytes, Path: v.Path, Identity: v.Identity, Status: string(v.Status), MixedJob: v.MixedJob,
		Name: v.Name, Description: v.Description, Type: int64(v.Type), Zone: v.Zone, CreateTime: v.CreateTime, StatusTime: v.StatusTime,
		Instance: v.InstanceID, Device: v.Device, CPUs: int64(v.CPUs), Memory: v.Memory, Image: v.Image,
	}}
}

// volumeOf is the row that an entry tells of.
func volumeOf(e engine.JournalEntry) service.Volume {
	v := e.Volume
	return service.Volume{
		ID: e.ID, Zone: v.Zone, Name: v.Name, Description: v.Description, Type: int(v.Type), Driver: v.Driver, Path: v.Path,
		Identity: v.Identity, SizeBytes: v.SizeBytes, Status: service.VolumeStatus(v.Status), CreateTime: v.CreateTime,
		StatusTime: v.StatusTime, MixedJob: v.MixedJob, InstanceID: v.Instance, Device: v.Device, CPUs: int(v.CPUs), Memory: v.Memory, Image: v.Image,
	}
}
