package metadb

import (
	"strings"
	"time"

	"github.com/uptrace/bun"

	"cairn/internal/chain"
	"cairn/internal/job"
	"cairn/internal/service"
)

// micros is a time as stored: microseconds since 1970, 0 for the zero time.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

type volumeRow struct {
	bun.BaseModel `bun:"table:volumes"`

	ID          string `bun:"id,pk"`
	Zone        string
	Name        string
	Description string
	Type        int
	Driver      string
	Path        string
	Identity    string
	SizeBytes   int64
	Status      service.VolumeStatus
	Transition  string
	CreateTime  int64
	StatusTime  int64
	MixedJob    string
	OnDemand    bool
	InstanceID  string
	Device      string
	CPUs        int `bun:"cpus"`
	Memory      int64
	Image       string
	SearchKey   string
}

func volumeToRow(v service.Volume) volumeRow {
	return volumeRow{
		ID: v.ID, Zone: v.Zone, Name: v.Name, Description: v.Description,
		Type: v.Type, Driver: v.Driver, Path: v.Path, Identity: v.Identity,
		SizeBytes: v.SizeBytes, Status: v.Status, Transition: v.Transition,
		CreateTime: micros(v.CreateTime), StatusTime: micros(v.StatusTime),
		MixedJob: v.MixedJob, OnDemand: v.OnDemand, InstanceID: v.InstanceID, Device: v.Device,
		CPUs: v.CPUs, Memory: v.Memory, Image: v.Image, SearchKey: searchKey(v.ID, v.Name),
	}
}

func (r volumeRow) volume() service.Volume {
	return service.Volume{
		ID: r.ID, Zone: r.Zone, Name: r.Name, Description: r.Description,
		Type: r.Type, Driver: r.Driver, Path: r.Path, Identity: r.Identity,
		SizeBytes: r.SizeBytes, Status: r.Status, Transition: r.Transition,
		CreateTime: fromMicros(r.CreateTime), StatusTime: fromMicros(r.StatusTime),
		MixedJob: r.MixedJob, OnDemand: r.OnDemand, InstanceID: r.InstanceID, Device: r.Device,
		CPUs: r.CPUs, Memory: r.Memory, Image: r.Image,
	}
}

type snapshotRow struct {
	bun.BaseModel `bun:"table:snapshots"`

	ID           string `bun:"id,pk"`
	ResourceID   string
	ParentID     string
	RootID       string
	IsFull       bool
	Status       chain.Status
	Damaged      bool
	IsHead       bool
	VirtualSize  int64
	SizeBytes    int64
	SnapshotTime int64
	Zone         string
	Name         string
	Description  string
	Transition   string
	CreateTime   int64
	StatusTime   int64
	IsTaken      bool
	HeadChain    bool
	ResourceType string
	ResourceName string
	VolumeType   int
	GroupID      string
	JobID        string
	Consistency  string
	CBT          string `bun:"cbt"`
	Reason       string
	ManifestPack string
	ManifestHash string
	TotalBytes   int64
	TotalCount   int
	LatestTime   int64
	UniqueBytes  int64
	UniqueKnown  bool
	SearchKey    string
	BinClock     int64
}

// imageShelf is put before the zone of images: counters, search blocks and
// pages, which all go by zone, then keep them apart from snapshots. No zone
// has a slash.
const imageShelf = "image/"

// shelf is the zone column's word for a zone; "" stays any.
func shelf(zone string, image bool) string {
	if image && zone != "" {
		return imageShelf + zone
	}
	return zone
}

func snapshotToRow(s service.Snapshot) snapshotRow {
	return snapshotRow{
		ID: s.ID, ResourceID: s.ResourceID, ParentID: s.ParentID, RootID: s.RootID,
		IsFull: s.Full, Status: s.Status, Damaged: s.Damaged, IsHead: s.IsHead,
		VirtualSize: s.VirtualSize, SizeBytes: s.SizeBytes, SnapshotTime: micros(s.SnapshotTime),
		Zone: shelf(s.Zone, service.IsImage(s.ID)), Name: s.Name, Description: s.Description, Transition: s.Transition,
		CreateTime: micros(s.CreateTime), StatusTime: micros(s.StatusTime),
		IsTaken: s.IsTaken, HeadChain: s.HeadChain,
		ResourceType: s.ResourceType, ResourceName: s.ResourceName, VolumeType: s.VolumeType,
		GroupID: s.GroupID, JobID: s.JobID, Consistency: s.Consistency, CBT: s.CBT, Reason: s.Reason,
		ManifestPack: s.ManifestPack, ManifestHash: s.ManifestHash,
		TotalBytes: s.TotalBytes, TotalCount: s.TotalCount, LatestTime: micros(s.LatestTime),
		UniqueBytes: s.UniqueBytes, UniqueKnown: s.UniqueKnown,
		SearchKey: searchKey(s.ID, s.Name), BinClock: s.BinClock,
	}
}

func (r snapshotRow) snapshot() service.Snapshot {
	return service.Snapshot{
		Point: chain.Point{
			ID: r.ID, ResourceID: r.ResourceID, ParentID: r.ParentID, RootID: r.RootID,
			Full: r.IsFull, Status: r.Status, Damaged: r.Damaged, IsHead: r.IsHead,
			VirtualSize: r.VirtualSize, SizeBytes: r.SizeBytes, SnapshotTime: fromMicros(r.SnapshotTime),
		},
		Zone: strings.TrimPrefix(r.Zone, imageShelf), Name: r.Name, Description: r.Description, Transition: r.Transition,
		CreateTime: fromMicros(r.CreateTime), StatusTime: fromMicros(r.StatusTime),
		IsTaken: r.IsTaken, HeadChain: r.HeadChain,
		ResourceType: r.ResourceType, ResourceName: r.ResourceName, VolumeType: r.VolumeType,
		GroupID: r.GroupID, JobID: r.JobID, Consistency: r.Consistency, CBT: r.CBT, Reason: r.Reason,
		ManifestPack: r.ManifestPack, ManifestHash: r.ManifestHash,
		TotalBytes: r.TotalBytes, TotalCount: r.TotalCount, LatestTime: fromMicros(r.LatestTime),
		UniqueBytes: r.UniqueBytes, UniqueKnown: r.UniqueKnown, BinClock: r.BinClock,
	}
}

type jobRow struct {
	bun.BaseModel `bun:"table:jobs"`

	ID              string `bun:"id,pk"`
	Action          job.Action
	Zone            string
	RequestID       string
	Status          job.Status
	CreateTime      int64
	BeginTime       int64
	FinishedTime    int64
	Info            string
	Extra           string
	ResourceIDs     string `bun:"resource_ids"` // JSON list, "" for none
	DoneBytes       int64
	TotalBytes      int64
	ErrorCode       int
	ErrorMessage    string
	Params          string // JSON, "" for none
	State           string // JSON, "" for none
	CancelRequested bool
	NoCancel        bool
	Owner           string
	Term            int64
}

type jobResourceRow struct {
	bun.BaseModel `bun:"table:job_resources"`

	ResourceID string
	JobID      string
}

type lockRow struct {
	bun.BaseModel `bun:"table:locks"`

	ResourceID string
	Holder     string
}

type pinRow struct {
	bun.BaseModel `bun:"table:pins"`

	SnapshotID string
	Holder     string
}

type sessionRow struct {
	bun.BaseModel `bun:"table:sessions"`

	ID    string `bun:"id,pk"`
	Term  int64
	State service.SessionState
}

type packRow struct {
	bun.BaseModel `bun:"table:packs"`

	ID        string `bun:"id,pk"`
	Kind      string
	Name      string
	SessionID string
	Term      int64
	State     service.PackState
	Born      int64
	Stamped   int64
	Bytes     int64
	Condemned int64
	Damaged   bool
	Verified  int64
}

func (r packRow) pack() service.Pack {
	return service.Pack{
		ID: r.ID, Kind: r.Kind, Name: r.Name, Session: r.SessionID, Term: r.Term,
		State: r.State, Born: r.Born, Stamped: r.Stamped, Bytes: r.Bytes,
		Condemned: r.Condemned, Damaged: r.Damaged, Verified: fromMicros(r.Verified),
	}
}

func packToRow(p service.Pack) packRow {
	return packRow{
		ID: p.ID, Kind: p.Kind, Name: p.Name, SessionID: p.Session, Term: p.Term,
		State: p.State, Born: p.Born, Stamped: p.Stamped, Bytes: p.Bytes,
		Condemned: p.Condemned, Damaged: p.Damaged, Verified: micros(p.Verified),
	}
}

type settingRow struct {
	bun.BaseModel `bun:"table:settings"`

	Key   string `bun:"key,pk"`
	Value string
}
