// Package httpapi is the wire: it decodes a request, makes one call of the
// service, and encodes the answer. Every quirk of API.md ends here.
//
// Invariants:
//   - every answer that is not 2xx is an wireError as JSON, whoever refuses:
//     the service, the decoder, the router, the limits, or net/http itself
//     (see Listener);
//   - only a request that came through the unix socket may name a path on the
//     server, or learns one;
//   - the document at /openapi.json is made of the types that serve;
//   - a stream that breaks midway is cut, never ended as if it were whole.
//
// A handler serves any number of goroutines. It starts none that outlive
// their request.
package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"cairn/internal/job"
	"cairn/internal/service"
)

// Service is what this package calls; *service.Service implements it.
type Service interface {
	Snapshots(ctx context.Context, f service.SnapshotFilter) (service.SnapshotPage, error)
	CreateSnapshots(ctx context.Context, in service.CreateSnapshots) (job.Job, error)
	DeleteSnapshots(ctx context.Context, in service.SnapshotSet) (job.Job, error)
	PlanDeleteSnapshots(ctx context.Context, in service.SnapshotSet) (service.DeletePlan, error)
	ApplySnapshots(ctx context.Context, in service.ApplySnapshots) (job.Job, error)
	CaptureInstance(ctx context.Context, in service.CaptureInstance) (job.Job, error)
	CreateVolumeFromSnapshot(ctx context.Context, in service.CloneSnapshot) (job.Job, error)
	RenameSnapshot(ctx context.Context, in service.Rename) (service.Snapshot, error)
	ExportSnapshot(ctx context.Context, zone, id string) (service.Image, error)
	SalvageSnapshot(ctx context.Context, zone, id string) (service.Salvage, error)
	ServeSnapshot(ctx context.Context, zone, id string) (service.Export, error)
	UnserveSnapshot(ctx context.Context, zone, id string, force bool) error

	Volumes(ctx context.Context, f service.VolumeFilter) (service.VolumePage, error)
	CreateVolumes(ctx context.Context, in service.CreateVolumes) (job.Job, error)
	RegisterVolume(ctx context.Context, in service.RegisterVolume) (service.Volume, error)
	ImportVolume(ctx context.Context, in service.ImportVolume) (job.Job, error)
	ExportVolume(ctx context.Context, zone, id string) (service.Image, error)
	DeleteVolumes(ctx context.Context, in service.VolumeSet) (job.Job, error)
	FillVolumes(ctx context.Context, in service.VolumeSet) error
	RenameVolumes(ctx context.Context, in service.Rename) error
	ResizeVolumes(ctx context.Context, in service.ResizeVolumes) (job.Job, error)

	AttachVolumes(ctx context.Context, in service.AttachVolumes) (job.Job, error)
	DetachVolumes(ctx context.Context, in service.DetachVolumes) (job.Job, error)

	Instances(ctx context.Context, f service.InstanceFilter) (service.InstancePage, error)
	RunInstances(ctx context.Context, in service.RunInstances) (job.Job, error)
	StartInstances(ctx context.Context, in service.InstanceSet) (job.Job, error)
	StopInstances(ctx context.Context, in service.InstanceSet) (job.Job, error)
	RestartInstances(ctx context.Context, in service.InstanceSet) (job.Job, error)
	DeleteInstances(ctx context.Context, in service.InstanceSet) (job.Job, error)
	RenameInstances(ctx context.Context, in service.Rename) error
	InstanceConsole(ctx context.Context, zone, id string, off int64) (io.ReadCloser, error)

	Images(ctx context.Context, f service.ImageFilter) (service.SnapshotPage, error)
	ImportImage(ctx context.Context, in service.ImportImage) (job.Job, error)
	ExportImage(ctx context.Context, zone, id string) (service.Image, error)
	DeleteImages(ctx context.Context, in service.ImageSet) (job.Job, error)
	RenameImages(ctx context.Context, in service.Rename) error

	Job(ctx context.Context, id string) (job.Job, error)
	Jobs(ctx context.Context, f service.JobFilter) (service.JobPage, error)
	UnfinishedJobs(ctx context.Context, zone string) ([]job.Job, error)
	CancelJob(ctx context.Context, id string) (job.Job, error)
	Subscribe(ctx context.Context) <-chan job.Job
	Scrub(ctx context.Context, o service.Origin, opts service.ScrubOptions) (job.Job, error)
	Prune(ctx context.Context, o service.Origin, opts service.PruneOptions) (job.Job, error)
	Undelete(ctx context.Context, in service.SnapshotSet) (job.Job, error)

	CollectionRefused() (reason string)
}

// Config is what a handler needs. Zero values of the limits mean the default.
type Config struct {
	Service Service
	Zones   []string // the configured zones; at least one
	Version string
	Log     *slog.Logger

	MaxConcurrent int           // requests at once, streams not counted; default 512
	MaxStreams    int           // imports, exports and event streams at once; default 128
	Heartbeat     time.Duration // of the event stream; default 15 s
}

// api is the state behind the routes.
type api struct {
	service   Service
	zones     []string
	version   string
	heartbeat time.Duration
	huma      huma.API
}

// New makes the handler of the whole API. Serve it with NewServer.
func New(cfg Config) (http.Handler, error) {
	if cfg.Service == nil || len(cfg.Zones) == 0 || slices.Contains(cfg.Zones, "") {
		return nil, errors.New("httpapi: a service and at least one named zone are needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	a := &api{
		service: cfg.Service, zones: slices.Clone(cfg.Zones), version: cfg.Version,
		heartbeat: cfg.Heartbeat,
	}
	if a.heartbeat <= 0 {
		a.heartbeat = 15 * time.Second
	}
	mux := http.NewServeMux()
	a.huma = humago.New(mux, humaConfig(cfg.Version))
	a.huma.UseMiddleware(lenientQuery)
	a.registerSnapshots()
	a.registerVolumes()
	a.registerInstances()
	a.registerImages()
	a.registerJobs()
	a.registerRepository()
	a.registerStreams()
	if err := a.registerDocs(mux); err != nil {
		return nil, err
	}
	return newFront(cfg, mux), nil
}

// humaConfig has neither huma's pages (they load from a CDN) nor its hooks
// (they add $schema to every answer).
func humaConfig(version string) huma.Config {
	c := huma.DefaultConfig("Cairn", version)
	c.Info.Description = "Points of block volumes and of running machines: taken, rolled back, cloned and deleted. " +
		"/snapshots is an alias of /volume_snapshots everywhere. Any Content-Type is taken as JSON."
	c.CreateHooks = nil
	c.OpenAPIPath, c.DocsPath, c.SchemasPath = "", "", ""
	c.Formats = map[string]huma.Format{"application/json": {Marshal: encodeJSON, Unmarshal: decodeJSON}}
	return c
}

func encodeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// decodeJSON never fails: a Body keeps its error for the handler, which words
// it. huma decodes bodies into nothing else, see register.
func decodeJSON(data []byte, v any) error {
	if b, ok := v.(interface{ decode([]byte) }); ok {
		b.decode(data)
		return nil
	}
	return json.Unmarshal(data, v)
}

// Zoned is the path parameter that every call has. It is exported because
// huma does not fill unexported embedded structs.
type Zoned struct {
	Zone string `path:"zone" example:"ac1"`
}

func (z Zoned) origin(ctx context.Context) service.Origin {
	r := requestOf(ctx)
	return service.Origin{Zone: z.Zone, RequestID: r.id, Local: r.local}
}

// JobOutput answers with a job.
type JobOutput struct {
	Body jobObject
}

// started answers with the job that a call began, and notes it for the log.
func started(ctx context.Context, j job.Job, err error) (*JobOutput, error) {
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.String("job_id", j.ID), slog.Any("resource_ids", j.ResourceIDs))
	return &JobOutput{Body: newJobObject(j)}, nil
}

// call describes one operation.
type call struct {
	method, path string
	id           string // operationId
	tag          string
	summary      string
	status       int // of success; 0: 200
}

// under is the path below the zone.
func under(path string) string { return "/v2/zone/{zone}" + path }

// register documents and serves one operation. huma neither validates nor
// words errors: clients rely on leniencies that no schema expresses.
func register[I, O any](a *api, c call, do func(context.Context, *I) (*O, error)) {
	op := huma.Operation{
		OperationID: c.id, Method: c.method, Path: c.path, Summary: c.summary,
		Tags: []string{c.tag}, DefaultStatus: c.status,
		SkipValidateParams: true, SkipValidateBody: true,
		// The front has read and bounded the body already.
		BodyReadTimeout: -1, MaxBodyBytes: 2 * maxBody,
		Responses: map[string]*huma.Response{"default": {
			Description: "Error",
			Content: map[string]*huma.MediaType{"application/json": {
				Schema: a.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[wireError](), true, ""),
			}},
		}},
	}
	if c.status == 0 {
		op.DefaultStatus = http.StatusOK
	}
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := do(ctx, in)
		if err != nil {
			requestOf(ctx).err = err
			return nil, newWireError(ctx, err)
		}
		return out, nil
	})
}
