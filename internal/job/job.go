// Package job is the durable queue and its workers.
//
// Invariants:
//   - a job's row is written in the same transaction as the state change that
//     it will carry out, so neither exists without the other;
//   - a worker owns a job by (owner, term); every write of a worker carries
//     its term and fails if the job was claimed anew (a fenced worker);
//   - every step may run twice: a job that was `working` when the process
//     died is claimed again with term+1 and its handler starts from the top,
//     reading State to learn what is done already;
//   - the handler's last transaction changes the objects and ends the job
//     together; there is no moment in which one shows and the other doesn't.
package job

import (
	"encoding/json"
	"time"
)

// Status is a job's state on the wire and in the row.
type Status string

// The four states.
const (
	Pending    Status = "pending"
	Working    Status = "working"
	Successful Status = "successful"
	Failed     Status = "failed"
)

// Ended reports whether the status is final.
func (s Status) Ended() bool { return s == Successful || s == Failed }

// Action names what a job does; the wire's words (API.md §2, §6).
type Action string

// Actions.
const (
	CreateSnapshots             Action = "CreateSnapshots"
	DeleteSnapshots             Action = "DeleteSnapshots"
	ApplySnapshots              Action = "ApplySnapshots"
	CaptureInstanceFromSnapshot Action = "CaptureInstanceFromSnapshot"
	CreateVolumeFromSnapshot    Action = "CreateVolumeFromSnapshot"
	CreateVolume                Action = "CreateVolume"
	DeleteVolumes               Action = "DeleteVolumes"
	ResizeVolumes               Action = "ResizeVolumes"
	ImportVolume                Action = "ImportVolume"
	ScrubRepository             Action = "ScrubRepository"
	PruneRepository             Action = "PruneRepository"
	LeaseResources              Action = "LeaseResources"
	RunInstances                Action = "RunInstances"
	StartInstances              Action = "StartInstances"
	StopInstances               Action = "StopInstances"
	RestartInstances            Action = "RestartInstances"
	TerminateInstances          Action = "TerminateInstances"
	AttachVolumes               Action = "AttachVolumes"
	DetachVolumes               Action = "DetachVolumes"
	ImportImage                 Action = "ImportImage"
	DeleteImages                Action = "DeleteImages"
)

// Job is one row of the queue.
type Job struct {
	ID           string // UUID
	Action       Action
	Zone         string
	RequestID    string
	Status       Status
	CreateTime   time.Time
	BeginTime    time.Time // zero until claimed for the first time
	FinishedTime time.Time // zero until ended
	Info         string    // one sentence: why it failed and what to do, or what was decided
	Extra        string    // always a string on the wire; scrub puts its report here as JSON
	ResourceIDs  []string  // new snapshot, volume or image ids; fixed at creation
	Progress     Progress
	ErrorCode    int    // wire code, only on a failed job
	ErrorMessage string // only on a failed job

	Params          json.RawMessage // the use case's input, written once
	State           json.RawMessage // the handler's own notes of steps done
	CancelRequested bool
	NoCancel        bool   // past the point of no return (an apply that has begun to write)
	Owner           string // the claim that has it: an id of the process and a number; "" while pending
	Term            int64  // grows with each claim
}

// Progress counts durable bytes. Done never exceeds Total and never falls
// while one term lasts.
type Progress struct {
	DoneBytes  int64
	TotalBytes int64 // 0: not known yet
}

// Fraction is the wire's progress, 0..1. A job that succeeded has done all,
// also if there were no bytes to count.
func (j Job) Fraction() float64 {
	if j.Status == Successful {
		return 1
	}
	return j.Progress.Fraction()
}

// Fraction is the counted part, 0..1.
func (p Progress) Fraction() float64 {
	if p.TotalBytes <= 0 {
		return 0
	}
	return float64(p.DoneBytes) / float64(p.TotalBytes)
}
