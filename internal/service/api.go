package service

import (
	"io"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/job"
	"cairn/internal/volume"
)

// This file holds the inputs and outputs of the use cases. httpapi decodes
// into them and encodes from them; it has an interface of its own for what it
// calls. Methods on *Service:
//
//	Snapshots(ctx, SnapshotFilter) (SnapshotPage, error)
//	CreateSnapshots(ctx, CreateSnapshots) (job.Job, error)
//	DeleteSnapshots(ctx, SnapshotSet) (job.Job, error)
//	PlanDeleteSnapshots(ctx, SnapshotSet) (DeletePlan, error)
//	ApplySnapshots(ctx, ApplySnapshots) (job.Job, error)
//	CaptureInstance(ctx, CaptureInstance) (job.Job, error)
//	CreateVolumeFromSnapshot(ctx, CloneSnapshot) (job.Job, error)
//	RenameSnapshot(ctx, Rename) (Snapshot, error)
//	ExportSnapshot(ctx, zone, id string) (engine.Image, error)   // Close it
//	SalvageSnapshot(ctx, zone, id string) (engine.Salvage, error) // Close it
//	ServeSnapshot(ctx, zone, id string) (volume.Export, error)
//	UnserveSnapshot(ctx, zone, id string, force bool) error
//
//	Volumes(ctx, VolumeFilter) (VolumePage, error)
//	CreateVolumes(ctx, CreateVolumes) (job.Job, error)
//	RegisterVolume(ctx, RegisterVolume) (Volume, error)
//	ImportVolume(ctx, ImportVolume) (job.Job, error)  // returns when the stream is stored
//	ExportVolume(ctx, zone, id string) (engine.Image, error)     // Close it
//	DeleteVolumes(ctx, VolumeSet) (job.Job, error)
//	FillVolumes(ctx, VolumeSet) error
//	RenameVolumes(ctx, Rename with several ids) error
//	ResizeVolumes(ctx, ResizeVolumes) (job.Job, error)
//	AttachVolumes(ctx, AttachVolumes) (job.Job, error)
//	DetachVolumes(ctx, DetachVolumes) (job.Job, error)
//
//	Instances(ctx, InstanceFilter) (InstancePage, error)
//	RunInstances(ctx, RunInstances) (job.Job, error)
//	StartInstances, StopInstances, RestartInstances, DeleteInstances(ctx, InstanceSet) (job.Job, error)
//	RenameInstances(ctx, Rename with several ids) error
//	InstanceConsole(ctx, zone, id string, off int64) (io.ReadCloser, error) // Close it
//
//	Images(ctx, ImageFilter) (SnapshotPage, error)
//	ImportImage(ctx, ImportImage) (job.Job, error)   // returns when the stream is stored
//	ExportImage(ctx, zone, id string) (engine.Image, error)      // Close it
//	DeleteImages(ctx, ImageSet) (job.Job, error)
//	RenameImages(ctx, Rename with several ids) error
//
//	Job(ctx, id) (job.Job, error)
//	Jobs(ctx, JobFilter) (JobPage, error)
//	UnfinishedJobs(ctx, zone) ([]job.Job, error)
//	CancelJob(ctx, id) (job.Job, error)
//	Subscribe(ctx) <-chan job.Job   // each status change; closed when ctx ends; a slow reader loses old ones
//	Scrub(ctx, zone, requestID) (job.Job, error)

// Origin is who asked, for logs and rows.
type Origin struct {
	Zone      string
	RequestID string
	Local     bool // came through the unix socket: paths on the server are allowed
}

// CreateSnapshots asks for one point per resource, all at one instant.
type CreateSnapshots struct {
	Origin
	Resources   []string // vol-… or ins-…; duplicates are dropped
	Name        string
	Description string
	Full        bool // the caller wants a full; false: the rules decide
}

// SnapshotSet names points.
type SnapshotSet struct {
	Origin
	IDs []string
}

// ApplySnapshots asks for rollbacks in place.
type ApplySnapshots struct {
	SnapshotSet
	// Force ends the connections of clients; their volumes are served under
	// new names then. Else connected clients are an errs.Conflict.
	Force bool
}

// VolumeSet names volumes.
type VolumeSet struct {
	Origin
	IDs []string
}

// DeletePlan is what a delete would take and free.
type DeletePlan struct {
	IDs        []chain.ID // the points asked for and all their descendants, newest first
	FreedBytes int64
}

// CaptureInstance asks for an image of an instance's point.
type CaptureInstance struct {
	Origin
	Snapshot  string
	ImageName string
}

// CloneSnapshot asks for a new volume with a point's content.
type CloneSnapshot struct {
	Origin
	Snapshot   string
	VolumeName string
	// OnDemand leaves the bytes in the repository until somebody reads them, or
	// FillVolumes.
	OnDemand bool
}

// Rename changes names; nil fields stay.
type Rename struct {
	Origin
	IDs         []string
	Name        *string
	Description *string
}

// CreateVolumes asks for empty managed volumes.
type CreateVolumes struct {
	Origin
	Name      string
	Type      int
	SizeBytes int64
	Count     int
}

// RegisterVolume makes a file or device of the server's host a volume.
type RegisterVolume struct {
	Origin
	Path        string
	Name        string
	Description string
}

// ImportVolume makes a managed volume from content that a client sends.
type ImportVolume struct {
	Origin
	Name      string
	Type      int
	SizeBytes int64 // exact length of the content
	// Stream is the content. It is read until the call returns, and not
	// afterwards; the call returns early when its ctx ends.
	Stream Inflow
}

// ResizeVolumes grows volumes.
type ResizeVolumes struct {
	Origin
	IDs       []string
	SizeBytes int64
}

// SnapshotPage is one page of points.
type SnapshotPage struct {
	Snapshots []SnapshotView
	Total     int // matches before paging
}

// SnapshotView is a point with what is known only at reading time.
type SnapshotView struct {
	Snapshot
	Progress float64       // 0..1; 1 once it is not pending
	Export   volume.Export // if it is served
}

// VolumePage is one page of volumes.
type VolumePage struct {
	Volumes []VolumeView
	Total   int
}

// VolumeView is a volume with what is known only at reading time.
type VolumeView struct {
	Volume
	Export       volume.Export // of a managed one
	InstanceName string        // of the machine that has it
}

// JobPage is one page of jobs.
type JobPage struct {
	Jobs  []job.Job
	Total int
}

// The words of an export for those above, who do not know the engine.
type (
	// Image streams a point or a volume out.
	Image = engine.Image
	// Salvage streams what is left of a damaged point.
	Salvage = engine.Salvage
	// Salvaged is what a salvage could not read.
	Salvaged = engine.Salvaged
	// BadRange is one range of it.
	BadRange = engine.BadRange
	// Export tells how a volume or a point is served to NBD clients.
	Export = volume.Export
	// Format is an export's file format.
	Format = engine.Format
	// Inflow is content on its way in.
	Inflow = engine.Inflow
)

// Flat is the inflow of a stream of size bytes, zeros and all.
func Flat(r io.Reader, size int64) Inflow { return engine.Flat(r, size) }

// Export formats.
const (
	FormatRaw   = engine.FormatRaw
	FormatQcow2 = engine.FormatQcow2
)
