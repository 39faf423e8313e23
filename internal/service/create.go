package service

import (
	"context"

	"cairn/internal/chain"
	"cairn/internal/job"
)

// createParams is the input of a CreateSnapshots job. The decisions are in
// the rows of the pending points.
type createParams struct {
	Points []chain.ID `json:"points"` // one per resource
	Full   bool       `json:"full"`   // the caller asked for fulls
}

// CreateSnapshots starts taking one point per resource, all at one instant,
// all or none.
func (s *Service) CreateSnapshots(ctx context.Context, in CreateSnapshots) (job.Job, error) {
	if err := s.checkZone(in.Zone); err != nil {
		return job.Job{}, err
	}
	ids, err := checkResources(in.Resources)
	if err != nil {
		return job.Job{}, err
	}
	if err := checkName("snapshot_name", in.Name); err != nil {
		return job.Job{}, err
	}
	if err := checkText("description", in.Description, maxDescriptionRunes); err != nil {
		return job.Job{}, err
	}
	return s.submit(ctx, in.Origin, job.CreateSnapshots, func(tx Tx, j *job.Job) (any, error) {
		params := createParams{Full: in.Full}
		var parents []chain.ID
		for _, id := range ids {
			p, err := s.newPoint(tx, in, id)
			if err != nil {
				return nil, err
			}
			p.JobID, p.GroupID, p.CreateTime, p.StatusTime = j.ID, j.ID, j.CreateTime, j.CreateTime
			if err := tx.InsertSnapshot(p); err != nil {
				return nil, err
			}
			params.Points = append(params.Points, p.ID)
			if p.ParentID != "" {
				parents = append(parents, p.ParentID)
			}
		}
		j.ResourceIDs = params.Points
		if err := tx.Pin(j.ID, parents...); err != nil {
			return nil, err
		}
		return params, tx.Lock(j.ID, ids...)
	})
}

// checkResources lets volumes and instances pass.
func checkResources(resources []string) ([]string, error) {
	var volumes []string
	for _, id := range resources {
		if !IsInstance(id) {
			volumes = append(volumes, id)
		}
	}
	if len(volumes) > 0 || len(resources) == 0 {
		if _, err := checkIDs("volume", volumePrefix, volumes); err != nil {
			return nil, err
		}
	}
	return checkIDs("resource", "", resources)
}

// newPoint is the pending row for the next point of a volume or a system disk.
func (s *Service) newPoint(tx Tx, in CreateSnapshots, volumeID string) (Snapshot, error) {
	v, err := usableVolume(tx, in.Zone, volumeID)
	if err != nil {
		return Snapshot{}, err
	}
	if _, err := s.driver(v); err != nil {
		return Snapshot{}, err
	}
	plan, err := s.planPoint(tx, v.ID, in.Full, v.SizeBytes)
	if err != nil {
		return Snapshot{}, err
	}
	if plan.ParentID != "" {
		if _, err := idlePoint(tx, in.Zone, plan.ParentID); err != nil {
			return Snapshot{}, err
		}
	}
	p := Snapshot{
		Point:        chain.Point{ID: newID(snapshotPrefix), ResourceID: v.ID, Status: chain.Pending, VirtualSize: v.SizeBytes},
		Zone:         in.Zone,
		Name:         in.Name,
		Description:  in.Description,
		Transition:   "creating",
		ResourceType: resourceVolume,
		ResourceName: v.Name,
		VolumeType:   v.Type,
		Consistency:  consistencyCrash,
		CBT:          "scan",
	}
	if IsInstance(v.ID) {
		p.ResourceType = resourceInstance
	}
	p.follow(plan)
	return p, nil
}

// follow makes the row what the rules decided.
func (p *Snapshot) follow(plan chain.PlanOutput) {
	p.Full, p.ParentID, p.RootID, p.Reason = plan.Full, plan.ParentID, plan.RootID, plan.Reason
	if plan.Full {
		p.RootID = p.ID
	}
}

// planPoint asks the rules what the next point of a volume is.
func (s *Service) planPoint(tx Tx, volumeID string, full bool, size int64) (chain.PlanOutput, error) {
	in := chain.PlanInput{ResourceID: volumeID, WantFull: full, VolumeSize: size, MaxPoints: s.max}
	head, ok, err := tx.Head(volumeID)
	if err != nil {
		return chain.PlanOutput{}, err
	}
	if ok {
		rows, err := tx.Chain(head.RootID)
		if err != nil {
			return chain.PlanOutput{}, err
		}
		in.Head, in.Chain = &head.Point, points(rows)
	}
	return chain.PlanPoint(in), nil
}
