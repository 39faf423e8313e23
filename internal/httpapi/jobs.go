package httpapi

import (
	"context"
	"log/slog"
	"net/http"

	"cairn/internal/job"
	"cairn/internal/service"
)

// JobPath is the path parameter of calls about one job.
type JobPath struct {
	JobID string `path:"job_id" format:"uuid"`
}

type jobInput struct {
	Zoned
	JobPath
}

// id is the job's, without the colon of a template.
func (in *jobInput) id() (string, error) {
	id, ok := cleanID(in.JobID)
	if !ok {
		return "", badParameter("job_id", "the path names no job; put the job_id of an answer there")
	}
	return id, nil
}

func (a *api) getJob(ctx context.Context, in *jobInput) (*JobOutput, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.String("job_id", id))
	j, err := a.service.Job(ctx, id)
	if err != nil {
		return nil, err
	}
	return &JobOutput{Body: newJobObject(j)}, nil
}

func (a *api) cancelJob(ctx context.Context, in *jobInput) (*JobOutput, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.String("job_id", id))
	j, err := a.service.CancelJob(ctx, id)
	if err != nil {
		return nil, err
	}
	return &JobOutput{Body: newJobObject(j)}, nil
}

type jobQuery struct {
	Zoned
	Status     []string `query:"status" doc:"pending, working, successful, failed"`
	ResourceID string   `query:"resource_id" doc:"jobs that made this snapshot, volume or image"`
	Offset     integer  `query:"offset" doc:"default 0"`
	Limit      integer  `query:"limit" doc:"default 20, at most 100"`
}

type jobPageOutput struct {
	Body jobPage
}

func (a *api) listJobs(ctx context.Context, in *jobQuery) (*jobPageOutput, error) {
	f := service.JobFilter{Zone: in.Zone}
	f.Resource, _ = cleanID(in.ResourceID)
	var err error
	if f.Statuses, err = words("status", in.Status, job.Pending, job.Working, job.Successful, job.Failed); err != nil {
		return nil, err
	}
	var limit int
	if f.Offset, limit, err = page(in.Offset, in.Limit, 20); err != nil {
		return nil, err
	}
	f.Limit = max(limit, 1) // limit=0 asks for the count alone
	found, err := a.service.Jobs(ctx, f)
	if err != nil {
		return nil, err
	}
	shown := found.Jobs[:min(limit, len(found.Jobs))]
	return &jobPageOutput{Body: jobPage{Jobs: newJobObjects(shown), TotalCount: found.Total}}, nil
}

type jobListOutput struct {
	Body []jobObject `nullable:"false"`
}

func (a *api) unfinishedJobs(ctx context.Context, in *Zoned) (*jobListOutput, error) {
	jobs, err := a.service.UnfinishedJobs(ctx, in.Zone)
	if err != nil {
		return nil, err
	}
	return &jobListOutput{Body: newJobObjects(jobs)}, nil
}

type healthOutput struct {
	Body struct {
		_       struct{} `additionalProperties:"true"`
		Status  string   `json:"status" enum:"ok,restricted" doc:"restricted: nothing can be changed, see reason"`
		Version string   `json:"version"`
		Reason  string   `json:"reason,omitempty"`
	}
}

func (a *api) health(context.Context, *struct{}) (*healthOutput, error) {
	out := &healthOutput{}
	out.Body.Status, out.Body.Version = "ok", a.version
	if reason := a.service.CollectionRefused(); reason != "" {
		out.Body.Status, out.Body.Reason = "restricted", reason
	}
	return out, nil
}

func (a *api) registerJobs() {
	const tag = "jobs"
	register(a, call{http.MethodGet, under("/job/{job_id}"), "getJob", tag, "Show a job, whatever the zone in the path", 0}, a.getJob)
	register(a, call{http.MethodPost, under("/job/{job_id}/cancel"), "cancelJob", tag, "Stop a job and undo what it began", 0}, a.cancelJob)
	register(a, call{http.MethodGet, under("/jobs"), "listJobs", tag, "List jobs", 0}, a.listJobs)
	register(a, call{http.MethodGet, under("/unfinished_jobs"), "listUnfinishedJobs", tag, "List jobs that are pending or working", 0}, a.unfinishedJobs)
	register(a, call{http.MethodGet, "/healthz", "health", "server", "Tell that the server answers", 0}, a.health)
}
