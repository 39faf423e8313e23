package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// Time is a moment of the API: whole seconds in UTC, "" on the wire while
// unset (IsZero).
type Time struct{ time.Time }

const timeFormat = "2006-01-02T15:04:05Z"

// String is the wire's form.
func (t Time) String() string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(timeFormat)
}

// MarshalJSON writes the wire's form.
func (t Time) MarshalJSON() ([]byte, error) { return []byte(`"` + t.String() + `"`), nil }

// UnmarshalJSON reads the wire's form; any RFC 3339 time is fine too.
func (t *Time) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("time: %w", err)
	}
	if s == "" {
		*t = Time{}
		return nil
	}
	parsed, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return fmt.Errorf("time: %w", err)
	}
	*t = Time{parsed.UTC()}
	return nil
}

// Flag is a truth that the API writes as 0 or 1.
type Flag bool

// MarshalJSON writes 0 or 1.
func (f Flag) MarshalJSON() ([]byte, error) {
	if f {
		return []byte("1"), nil
	}
	return []byte("0"), nil
}

// UnmarshalJSON reads 0, 1, true, false and null.
func (f *Flag) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case "1", "true":
		*f = true
	case "0", "false", "null":
		*f = false
	default:
		return fmt.Errorf("flag: %s is neither 0 nor 1", b)
	}
	return nil
}

// text is a string that some servers of this API write as a number.
type text string

func (t *text) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] != '"' {
		*t = text(bytes.TrimSpace(b))
		return nil
	}
	return json.Unmarshal(b, (*string)(t))
}

// Snapshot types.
const (
	Full        = "IS_FULL"
	Incremental = "IS_INCREMENTAL"
)

// ParentSelf is a full's ParentID.
const ParentSelf = "self"

// Resource names what a snapshot is a point of.
type Resource struct {
	ID   string `json:"resource_id"`
	Type string `json:"resource_type"` // volume or instance
	Name string `json:"resource_name"` // as it was when the point was taken
}

// Snapshot is one point (API.md §1).
type Snapshot struct {
	ID               string `json:"snapshot_id"`
	Name             string `json:"snapshot_name"`
	Description      string `json:"description"`
	Type             string `json:"snapshot_type"` // Full or Incremental
	Status           string `json:"status"`        // pending, available, suspended, deleted, ceased
	TransitionStatus string `json:"transition_status"`
	CreateTime       Time   `json:"create_time"`
	StatusTime       Time   `json:"status_time"`
	SnapshotTime     Time   `json:"snapshot_time"` // the captured instant
	IsTaken          Flag   `json:"is_taken"`      // the owner may write on
	IsHead           Flag   `json:"is_head"`       // the next incremental's parent
	HeadChain        Flag   `json:"head_chain"`    // on a full: the next incremental joins its chain
	RootID           string `json:"root_id"`
	ParentID         string `json:"parent_id"` // ParentSelf on a full
	Size             int64  `json:"size"`      // MB (2^20) that this point added, rounded up
	TotalSize        int64  `json:"total_size"`
	TotalCount       int    `json:"total_count"` // on a full: points of its chain
	LatestTime       Time   `json:"lastest_snapshot_time"`

	Resource    Resource `json:"resource"`
	VirtualSize int64    `json:"virtual_size"` // bytes of the volume at that instant
	SizeBytes   int64    `json:"size_bytes"`   // Size, exactly
	UniqueBytes *int64   `json:"unique_bytes,omitempty"`
	Progress    float64  `json:"progress"`    // 0..1
	Consistency string   `json:"consistency"` // crash or filesystem
	GroupID     string   `json:"group_id"`    // one per create call
	CBT         string   `json:"cbt"`         // how changes were found
	Reason      string   `json:"reason"`      // why it is full or incremental
	Damaged     Flag     `json:"damaged"`     // bytes of it are missing or wrong
	Tags        []string `json:"tags"`
	NBDURIs     []string `json:"nbd_uris"` // where clients read it, if it is served
	Clients     int      `json:"clients"`  // connections to it now
}

// Served is where a point is read by NBD clients.
type Served struct {
	SnapshotID string   `json:"snapshot_id"`
	NBDURIs    []string `json:"nbd_uris"`
	Clients    int      `json:"clients"`
}

// IsFull reports whether the snapshot is the full of its chain.
func (s Snapshot) IsFull() bool { return s.Type == Full }

// SnapshotPage is one page of snapshots.
type SnapshotPage struct {
	Snapshots  []Snapshot `json:"snapshots"`
	TotalCount int        `json:"total_count"` // matches before paging
}

// DeletePlan is what a delete of snapshots would take and free.
type DeletePlan struct {
	Snapshots  []string `json:"snapshots"` // the points asked for and all their descendants
	FreedBytes int64    `json:"freed_bytes"`
}

// Attachment is where a volume is attached; all empty while it is not.
type Attachment struct {
	Device       string `json:"device"`
	InstanceID   string `json:"instance_id"`
	InstanceName string `json:"instance_name"`
}

// Volume is one volume (API.md §6).
type Volume struct {
	ID               string     `json:"volume_id"`
	Name             string     `json:"volume_name"`
	Type             int        `json:"volume_type"`
	Description      string     `json:"description"`
	Size             int64      `json:"size"`       // GB (2^30), rounded up
	SizeBytes        int64      `json:"size_bytes"` // exactly
	Status           string     `json:"status"`     // pending, available, in-use, deleted, ceased
	TransitionStatus string     `json:"transition_status"`
	CreateTime       Time       `json:"create_time"`
	StatusTime       Time       `json:"status_time"`
	Instance         Attachment `json:"instance"`
	Driver           string     `json:"driver"`         // managed, registered or nbd
	Path             string     `json:"path,omitempty"` // of one that is not managed: path or NBD URI; only over the unix socket
	MixedJob         string     `json:"mixed_job"`      // an apply that began to write and has not finished
	Zone             string     `json:"zone"`
	NBDURIs          []string   `json:"nbd_uris"`      // where clients connect to a managed one
	Clients          int        `json:"clients"`       // connections now
	MissingBytes     int64      `json:"missing_bytes"` // still to be fetched from the repository
	OnDemand         Flag       `json:"on_demand"`     // only when somebody reads them
}

// VolumePage is one page of volumes.
type VolumePage struct {
	Volumes    []Volume `json:"volumes"`
	TotalCount int      `json:"total_count"`
}

// Job states.
const (
	JobPending    = "pending"
	JobWorking    = "working"
	JobSuccessful = "successful"
	JobFailed     = "failed"
)

// Job is one unit of work of the server (API.md §3).
type Job struct {
	ID           string    `json:"job_id"`
	IDPrefix     string    `json:"id_prefix"`
	Action       string    `json:"action"`
	RequestID    string    `json:"request_id"`
	Status       string    `json:"status"` // JobPending, JobWorking, JobSuccessful, JobFailed
	CreateTime   Time      `json:"create_time"`
	BeginTime    Time      `json:"begin_time"`
	FinishedTime Time      `json:"finished_time"`
	Info         string    `json:"info"`  // what failed and what to do, or what was decided
	Extra        string    `json:"extra"` // a scrub's report, as JSON
	Zone         string    `json:"zone"`
	ResourceIDs  []string  `json:"resource_ids"` // the new ids, from the first answer on
	Progress     float64   `json:"progress"`     // 0..1, of durable bytes
	DoneBytes    int64     `json:"done_bytes"`
	TotalBytes   int64     `json:"total_bytes"` // 0: not known yet
	Error        *JobError `json:"error,omitempty"`
}

// Ended reports whether the status is final.
func (j Job) Ended() bool { return j.Status == JobSuccessful || j.Status == JobFailed }

// Err is nil unless the job failed; then it says why.
func (j Job) Err() error {
	if j.Status != JobFailed {
		return nil
	}
	return &FailedJob{Job: j}
}

// JobError is why a job failed.
type JobError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// UnmarshalJSON takes the code as a string or as a number.
func (e *JobError) UnmarshalJSON(b []byte) error {
	var wire struct {
		Code    text   `json:"code"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		return fmt.Errorf("job error: %w", err)
	}
	*e = JobError{Code: string(wire.Code), Message: wire.Message}
	return nil
}

// FailedJob is the error of a job that ended in failure.
type FailedJob struct{ Job Job }

func (f *FailedJob) Error() string {
	why := f.Job.Info
	if why == "" && f.Job.Error != nil {
		why = f.Job.Error.Message
	}
	if why == "" {
		why = "the server gave no reason; its log has the details under the job's id"
	}
	return fmt.Sprintf("job %s (%s) failed: %s", f.Job.ID, f.Job.Action, why)
}

// JobPage is one page of jobs.
type JobPage struct {
	Jobs       []Job `json:"jobs"`
	TotalCount int   `json:"total_count"`
}
