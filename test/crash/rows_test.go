package crash_test

import (
	"context"

	"cairn/internal/chain"
	"cairn/internal/job"
	"cairn/internal/service"
)

// rows is every row of the database at one moment.
type rows struct {
	points   map[string]service.Snapshot
	volumes  map[string]service.Volume
	jobs     map[string]job.Job
	asked    map[string]*job.Job // by request id
	packs    map[string]service.Pack
	sessions map[string]service.SessionState // of each pack
	active   []service.Session
}

// read reads the database past the faults: a trial's own look is no call of
// the product.
func (p *process) read() (*rows, error) {
	r := &rows{
		points: map[string]service.Snapshot{}, volumes: map[string]service.Volume{}, jobs: map[string]job.Job{},
		asked: map[string]*job.Job{}, packs: map[string]service.Pack{}, sessions: map[string]service.SessionState{},
	}
	const limit = 100000
	return r, p.db.View(context.Background(), func(tx service.Tx) error {
		points, _, err := tx.Snapshots(service.SnapshotFilter{Limit: limit, Statuses: []chain.Status{
			chain.Pending, chain.Available, chain.Suspended, chain.Deleted, chain.Ceased,
		}})
		if err != nil {
			return err
		}
		for _, s := range points {
			r.points[s.ID] = s
		}
		volumes, _, err := tx.Volumes(service.VolumeFilter{Limit: limit, Statuses: []service.VolumeStatus{
			service.VolumePending, service.VolumeAvailable, service.VolumeInUse, service.VolumeDeleted, service.VolumeCeased,
		}})
		if err != nil {
			return err
		}
		for _, v := range volumes {
			r.volumes[v.ID] = v
		}
		jobs, _, err := tx.Jobs(service.JobFilter{Limit: limit})
		if err != nil {
			return err
		}
		for _, j := range jobs {
			r.jobs[j.ID] = j
			r.asked[j.RequestID] = &j
		}
		if r.active, err = tx.ActiveSessions(); err != nil {
			return err
		}
		return tx.AllPacks(func(pk service.Pack, session service.SessionState) error {
			r.packs[pk.ID], r.sessions[pk.ID] = pk, session
			return nil
		})
	})
}

// job reads one job's row past the faults.
func (p *process) job(id string) (j job.Job, err error) {
	err = p.db.View(context.Background(), func(tx service.Tx) error {
		j, err = tx.Job(id)
		return err
	})
	return j, err
}

// busy tells what is unfinished: jobs, and what ended ones have not let go of.
func (p *process) busy() (unfinished []job.Job, holders []string, err error) {
	err = p.db.View(context.Background(), func(tx service.Tx) error {
		unfinished, _, err = tx.Jobs(service.JobFilter{Statuses: []job.Status{job.Pending, job.Working}, Limit: 100})
		if err != nil {
			return err
		}
		holders, err = tx.Holders()
		return err
	})
	return unfinished, holders, err
}
