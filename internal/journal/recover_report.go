package journal

import (
	"time"

	"cairn/internal/service"
)

// Report is what Recover found and did.
type Report struct {
	Journal LogReport      `json:"journal"`
	Points  []PointReport  `json:"points"`
	Volumes []VolumeReport `json:"volumes"`
	Packs   int            `json:"packs"`
	Bytes   int64          `json:"bytes"` // of all packs
	Notes   []string       `json:"notes"`
	// Blocked says why the new database must not be used as it is; "" if it
	// may. RecoverConfig.Accept unblocks it.
	Blocked string `json:"blocked,omitempty"`
}

// States of the journal.
const (
	StateWhole   = "whole"
	StateDamaged = "damaged"
	StateMissing = "missing"
)

// LogReport tells how far the journal goes.
type LogReport struct {
	State     string    `json:"state"`
	Blobs     int       `json:"blobs"`
	Entries   int       `json:"entries"`
	Newest    uint64    `json:"newest_blob"`
	WrittenAt time.Time `json:"written_at,omitzero"` // its newest readable blob
	Problems  []string  `json:"problems"`
}

// What became of a point or a volume.
const (
	Recovered = "recovered"
	Damaged   = "damaged"  // recovered, and marked: part of it is missing or wrong
	LeftOut   = "left out" // it has no row; its bytes stay where they are
)

// PointReport is what became of one point.
type PointReport struct {
	ID       string `json:"snapshot_id"`
	Resource string `json:"resource_id"`
	Name     string `json:"snapshot_name"`
	Status   string `json:"status,omitempty"`
	Result   string `json:"result"`
	Reason   string `json:"reason,omitempty"`
}

// VolumeReport is what became of one volume.
type VolumeReport struct {
	ID     string `json:"volume_id"`
	Name   string `json:"volume_name"`
	Status string `json:"status,omitempty"`
	Result string `json:"result"`
	Reason string `json:"reason,omitempty"`
}

// Count tells how many points ended in a result.
func (r *Report) Count(result string) (n int) {
	for _, p := range r.Points {
		if p.Result == result {
			n++
		}
	}
	return n
}

func (r *recovery) point(p service.Snapshot, result, reason string) {
	pr := PointReport{ID: p.ID, Resource: p.ResourceID, Name: p.Name, Result: result, Reason: reason}
	if result != LeftOut {
		pr.Status = string(p.Status)
	}
	r.report.Points = append(r.report.Points, pr)
}

func (r *recovery) volume(v service.Volume, result, reason string) {
	vr := VolumeReport{ID: v.ID, Name: v.Name, Result: result, Reason: reason}
	if result != LeftOut {
		vr.Status = string(v.Status)
	}
	r.report.Volumes = append(r.report.Volumes, vr)
}
