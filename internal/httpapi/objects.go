package httpapi

import (
	"math"
	"strconv"
	"strings"
	"time"

	"cairn/internal/chain"
	"cairn/internal/job"
	"cairn/internal/service"
)

// This file holds the objects of the wire. Strings and lists are never null.

const (
	typeFull        = "IS_FULL"
	typeIncremental = "IS_INCREMENTAL"

	gigabyte = int64(1) << 30
)

// wireTime is API.md's form; the zero time is "".
func wireTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// gigabytes rounds up.
func gigabytes(bytes int64) int64 {
	return bytes/gigabyte + int64(bit(bytes%gigabyte > 0))
}

type resourceObject struct {
	_            struct{} `additionalProperties:"true"`
	ResourceID   string   `json:"resource_id" example:"vol-ABCDEFGH"`
	ResourceType string   `json:"resource_type" doc:"volume or instance"`
	ResourceName string   `json:"resource_name" doc:"as it was when the point was taken"`
}

type snapshotObject struct {
	_                struct{}       `additionalProperties:"true"`
	SnapshotID       string         `json:"snapshot_id" example:"ss-ABCDEFGH"`
	SnapshotName     string         `json:"snapshot_name"`
	Description      string         `json:"description"`
	SnapshotType     string         `json:"snapshot_type" enum:"IS_FULL,IS_INCREMENTAL"`
	Status           string         `json:"status" enum:"pending,available,suspended,deleted,ceased"`
	TransitionStatus string         `json:"transition_status" doc:"creating, deleting, recovering, suspending, resuming, or empty"`
	CreateTime       string         `json:"create_time" example:"2026-11-23T08:00:00Z"`
	StatusTime       string         `json:"status_time"`
	SnapshotTime     string         `json:"snapshot_time" doc:"the captured instant, the same for all resources of one create call"`
	IsTaken          int            `json:"is_taken" enum:"0,1" doc:"1: the owner may write on"`
	IsHead           int            `json:"is_head" enum:"0,1" doc:"1: the next incremental's parent"`
	HeadChain        int            `json:"head_chain" enum:"0,1" doc:"on a full, 1: the next incremental joins its chain"`
	RootID           string         `json:"root_id"`
	ParentID         string         `json:"parent_id" doc:"self on a full"`
	Size             int            `json:"size" doc:"MB that this point added when it was taken, rounded up"`
	TotalSize        int            `json:"total_size" doc:"on a full: MB of its chain"`
	TotalCount       int            `json:"total_count" doc:"on a full: points in its chain"`
	LatestTime       string         `json:"lastest_snapshot_time" doc:"(sic) on a full: the newest point of the chain"`
	Resource         resourceObject `json:"resource"`
	VirtualSize      int64          `json:"virtual_size" doc:"bytes of the volume at that instant"`
	SizeBytes        int64          `json:"size_bytes" doc:"size, exactly"`
	UniqueBytes      *int64         `json:"unique_bytes,omitempty" doc:"bytes freed if this point alone went, when known"`
	Progress         float64        `json:"progress" minimum:"0" maximum:"1"`
	Consistency      string         `json:"consistency" doc:"crash or filesystem"`
	GroupID          string         `json:"group_id" doc:"one per create call"`
	CBT              string         `json:"cbt" doc:"how changes were found"`
	Reason           string         `json:"reason" doc:"why it is full or incremental"`
	Damaged          int            `json:"damaged" enum:"0,1" doc:"1: a scrub or a read found bytes of it missing or wrong"`
	Tags             []string       `json:"tags" nullable:"false"`
	NBDURIs          []string       `json:"nbd_uris" nullable:"false" doc:"where clients read it, if it is served; those of the unix socket are shown on the unix socket only"`
	Clients          int            `json:"clients" doc:"connections of NBD clients now"`
}

// exportObject is where a point is served.
type exportObject struct {
	_          struct{} `additionalProperties:"true"`
	SnapshotID string   `json:"snapshot_id" example:"ss-ABCDEFGH"`
	NBDURIs    []string `json:"nbd_uris" nullable:"false" doc:"where clients read it; those of the unix socket are shown on the unix socket only"`
	Clients    int      `json:"clients" doc:"connections of NBD clients now"`
}

// newSnapshotObject encodes s; only a local caller learns paths of the server.
func newSnapshotObject(s service.SnapshotView, local bool) snapshotObject {
	o := snapshotObject{
		SnapshotID: s.ID, SnapshotName: s.Name, Description: s.Description,
		SnapshotType: typeIncremental, Status: string(s.Status), TransitionStatus: s.Transition,
		CreateTime: wireTime(s.CreateTime), StatusTime: wireTime(s.StatusTime), SnapshotTime: wireTime(s.SnapshotTime),
		IsTaken: bit(s.IsTaken), IsHead: bit(s.IsHead),
		RootID: s.RootID, ParentID: s.ParentID, Size: chain.MB(s.SizeBytes), LatestTime: wireTime(s.SnapshotTime),
		Resource:    resourceObject{ResourceID: s.ResourceID, ResourceType: s.ResourceType, ResourceName: s.ResourceName},
		VirtualSize: s.VirtualSize, SizeBytes: s.SizeBytes, Progress: fraction(s.Progress),
		Consistency: s.Consistency, GroupID: s.GroupID, CBT: s.CBT, Reason: s.Reason,
		Damaged: bit(s.Damaged), Tags: []string{},
		NBDURIs: shownURIs(s.Export, local), Clients: s.Export.Clients,
	}
	if s.Full {
		o.SnapshotType = typeFull
		o.ParentID = chain.Self
		o.HeadChain = bit(s.HeadChain)
		o.TotalSize = chain.MB(s.TotalBytes)
		o.TotalCount = s.TotalCount
		o.LatestTime = wireTime(s.LatestTime)
	}
	if s.UniqueKnown {
		o.UniqueBytes = &s.UniqueBytes
	}
	return o
}

// fraction keeps a progress within what the document promises.
func fraction(f float64) float64 {
	if math.IsNaN(f) {
		return 0
	}
	return min(max(f, 0), 1)
}

type snapshotPage struct {
	_          struct{}         `additionalProperties:"true"`
	Snapshots  []snapshotObject `json:"snapshots" nullable:"false"`
	TotalCount int              `json:"total_count" doc:"matches before paging"`
}

type instanceObject struct {
	_            struct{} `additionalProperties:"true"`
	Device       string   `json:"device"`
	InstanceID   string   `json:"instance_id"`
	InstanceName string   `json:"instance_name"`
}

type volumeObject struct {
	_                struct{}       `additionalProperties:"true"`
	VolumeID         string         `json:"volume_id" example:"vol-ABCDEFGH"`
	VolumeName       string         `json:"volume_name"`
	VolumeType       int            `json:"volume_type"`
	Description      string         `json:"description"`
	Size             int64          `json:"size" doc:"GB, rounded up"`
	SizeBytes        int64          `json:"size_bytes" doc:"size, exactly"`
	Status           string         `json:"status" enum:"pending,available,in-use,deleted,ceased"`
	TransitionStatus string         `json:"transition_status"`
	CreateTime       string         `json:"create_time"`
	StatusTime       string         `json:"status_time"`
	Instance         instanceObject `json:"instance" doc:"where it is attached; empty strings while it is not"`
	Driver           string         `json:"driver" doc:"managed, registered (a file or device) or nbd (an export of another NBD server)"`
	Path             string         `json:"path,omitempty" doc:"of a volume that is not managed: its path or NBD URI; shown on the unix socket only"`
	MixedJob         string         `json:"mixed_job" doc:"id of an apply that has begun to write and has not finished: the content is a mixture"`
	Zone             string         `json:"zone"`
	NBDURIs          []string       `json:"nbd_uris" nullable:"false" doc:"where clients connect to a managed volume; those of the unix socket are shown on the unix socket only"`
	Clients          int            `json:"clients" doc:"connections of NBD clients now"`
	MissingBytes     int64          `json:"missing_bytes" doc:"of a clone or a rolled back volume: bytes that are still to be fetched from the repository, or to be made durable; it is usable all the same"`
	OnDemand         int            `json:"on_demand" enum:"0,1" doc:"1: they are fetched only when somebody reads them"`
}

// newVolumeObject encodes v; only a local caller learns paths of the server.
func newVolumeObject(v service.VolumeView, local bool) volumeObject {
	o := volumeObject{
		VolumeID: v.ID, VolumeName: v.Name, VolumeType: v.Type, Description: v.Description,
		Size: gigabytes(v.SizeBytes), SizeBytes: v.SizeBytes,
		Status: string(v.Status), TransitionStatus: v.Transition,
		CreateTime: wireTime(v.CreateTime), StatusTime: wireTime(v.StatusTime),
		Driver: v.Driver, MixedJob: v.MixedJob, Zone: v.Zone,
		NBDURIs: shownURIs(v.Export, local), Clients: v.Export.Clients, MissingBytes: v.Export.Missing,
		OnDemand: bit(v.OnDemand),
		Instance: instanceObject{Device: v.Device, InstanceID: v.InstanceID, InstanceName: v.InstanceName},
	}
	if local {
		o.Path = v.Path
	}
	return o
}

// shownURIs are those of an export that the caller may know.
func shownURIs(e service.Export, local bool) []string {
	out := []string{}
	for _, uri := range e.URIs {
		if local || !strings.HasPrefix(uri, "nbd+unix:") {
			out = append(out, uri)
		}
	}
	return out
}

type volumePage struct {
	_          struct{}       `additionalProperties:"true"`
	Volumes    []volumeObject `json:"volumes" nullable:"false"`
	TotalCount int            `json:"total_count" doc:"matches before paging"`
}

type jobError struct {
	_       struct{} `additionalProperties:"true"`
	Code    string   `json:"code"`
	Message string   `json:"message"`
}

type jobObject struct {
	_            struct{}  `additionalProperties:"true"`
	JobID        string    `json:"job_id" format:"uuid"`
	IDPrefix     string    `json:"id_prefix"`
	Action       string    `json:"action" example:"CreateSnapshots"`
	RequestID    string    `json:"request_id"`
	Status       string    `json:"status" enum:"pending,working,successful,failed"`
	CreateTime   string    `json:"create_time"`
	BeginTime    string    `json:"begin_time"`
	FinishedTime string    `json:"finished_time"`
	Info         string    `json:"info" doc:"what failed and what to do, or what was decided"`
	Extra        string    `json:"extra" doc:"a scrub puts its report here, as JSON"`
	Zone         string    `json:"zone"`
	ResourceIDs  []string  `json:"resource_ids" nullable:"false" doc:"the new snapshot, volume or image ids, in the first answer already"`
	Progress     float64   `json:"progress" minimum:"0" maximum:"1"`
	DoneBytes    int64     `json:"done_bytes" doc:"durable bytes"`
	TotalBytes   int64     `json:"total_bytes" doc:"0: not known yet"`
	Error        *jobError `json:"error,omitempty" doc:"on a failed job only"`
}

func newJobObject(j job.Job) jobObject {
	o := jobObject{
		JobID: j.ID, Action: string(j.Action), RequestID: j.RequestID, Status: string(j.Status),
		CreateTime: wireTime(j.CreateTime), BeginTime: wireTime(j.BeginTime), FinishedTime: wireTime(j.FinishedTime),
		Info: j.Info, Extra: j.Extra, Zone: j.Zone, ResourceIDs: j.ResourceIDs,
		Progress: fraction(j.Fraction()), DoneBytes: j.Progress.DoneBytes, TotalBytes: j.Progress.TotalBytes,
	}
	if o.ResourceIDs == nil {
		o.ResourceIDs = []string{}
	}
	if j.Status == job.Successful {
		o.Progress = 1 // also when there was nothing to move
	}
	if j.Status == job.Failed {
		o.Error = &jobError{Code: strconv.Itoa(j.ErrorCode), Message: j.ErrorMessage}
	}
	return o
}

func newJobObjects(in []job.Job) []jobObject {
	out := make([]jobObject, len(in))
	for i, j := range in {
		out[i] = newJobObject(j)
	}
	return out
}

type jobPage struct {
	_          struct{}    `additionalProperties:"true"`
	Jobs       []jobObject `json:"jobs" nullable:"false"`
	TotalCount int         `json:"total_count" doc:"matches before paging"`
}

type deletePlan struct {
	_          struct{} `additionalProperties:"true"`
	Snapshots  []string `json:"snapshots" nullable:"false" doc:"the points named and all their descendants, newest first"`
	FreedBytes int64    `json:"freed_bytes" doc:"bytes of the repository that only these points use"`
}
