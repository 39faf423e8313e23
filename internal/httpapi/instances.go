package httpapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"cairn/internal/job"
	"cairn/internal/service"
)

const (
	megabyte = int64(1) << 20
	insID    = "ins-ABCDEFGH"
)

type instanceQuery struct {
	Zoned
	Instances  []string `query:"instances" doc:"ids; a comma list, or any usual spelling of a list"`
	Status     []string `query:"status" doc:"pending, running, stopped, terminated, ceased, unknown; without it (and without ids) neither terminated nor ceased"`
	SearchWord string   `query:"search_word" doc:"substring of id or name, whatever the case"`
	Verbose    string   `query:"verbose" doc:"accepted and ignored: answers always have all details"`
	Offset     integer  `query:"offset" doc:"default 0"`
	Limit      integer  `query:"limit" doc:"default 20, at most 100"`
}

type instancePageOutput struct {
	Body instancePage
}

func (a *api) listInstances(ctx context.Context, in *instanceQuery) (*instancePageOutput, error) {
	f := service.InstanceFilter{Zone: in.Zone, Search: in.SearchWord}
	var err error
	if f.IDs, err = cleanIDs("instances", in.Instances); err != nil {
		return nil, err
	}
	f.Statuses, err = words("status", in.Status, service.InstancePending, service.InstanceRunning,
		service.InstanceStopped, service.InstanceTerminated, service.InstanceCeased, service.InstanceUnknown)
	if err != nil {
		return nil, err
	}
	var limit int
	if f.Offset, limit, err = page(in.Offset, in.Limit, 20); err != nil {
		return nil, err
	}
	f.Limit = max(limit, 1) // limit=0 asks for the count alone
	found, err := a.service.Instances(ctx, f)
	if err != nil {
		return nil, err
	}
	shown := found.Instances[:min(limit, len(found.Instances))]
	out := &instancePageOutput{Body: instancePage{Instances: make([]machineObject, len(shown)), TotalCount: found.Total}}
	for i, m := range shown {
		out.Body.Instances[i] = newMachineObject(m, requestOf(ctx).local)
	}
	return out, nil
}

type runSpec struct {
	_            struct{}     `additionalProperties:"true"`
	ImageID      string       `json:"image_id" example:"img-ABCDEFGH"`
	InstanceName string       `json:"instance_name"`
	CPU          *wholeNumber `json:"cpu,omitempty" doc:"processors; default 1"`
	Memory       *wholeNumber `json:"memory,omitempty" doc:"MB; default 1024"`
	Count        *wholeNumber `json:"count,omitempty" doc:"default 1"`
}

type runBody struct {
	_        struct{} `additionalProperties:"true"`
	Instance runSpec  `json:"instance"`
}

type runInput struct {
	Zoned
	Body Body[runBody]
}

func (a *api) runInstances(ctx context.Context, in *runInput) (*JobOutput, error) {
	body, err := in.Body.get()
	if err != nil {
		return nil, err
	}
	spec := body.Instance
	image, err := pathOrBody("image_id", "img-ABCDEFGH", "", spec.ImageID)
	if err != nil {
		return nil, err
	}
	run := service.RunInstances{Origin: in.origin(ctx), Image: image, Name: spec.InstanceName}
	if run.CPUs, err = small("cpu", spec.CPU, 1); err != nil {
		return nil, err
	}
	memory, err := small("memory", spec.Memory, 1024)
	if err != nil {
		return nil, err
	}
	run.Memory = int64(memory) * megabyte
	if run.Count, err = small("count", spec.Count, 1); err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.String("image_id", image))
	j, err := a.service.RunInstances(ctx, run)
	return started(ctx, j, err)
}

type powerBody struct {
	_         struct{}   `additionalProperties:"true"`
	Instances stringList `json:"instances"`
	Force     bool       `json:"force,omitempty" doc:"end the guests at once instead of asking them to"`
}

type powerInput struct {
	Zoned
	Body Body[powerBody]
}

// power registers the calls that start and stop.
func (a *api) power(do func(ctx context.Context, in service.InstanceSet) (job.Job, error)) func(ctx context.Context, in *powerInput) (*JobOutput, error) {
	return func(ctx context.Context, in *powerInput) (*JobOutput, error) {
		body, err := in.Body.get()
		if err != nil {
			return nil, err
		}
		ids, err := needIDs("instances", insID, body.Instances)
		if err != nil {
			return nil, err
		}
		requestOf(ctx).note(slog.Any("ids", ids))
		j, err := do(ctx, service.InstanceSet{Origin: in.origin(ctx), IDs: ids, Force: body.Force})
		return started(ctx, j, err)
	}
}

// InstancePath is the path parameter of calls about instances.
type InstancePath struct {
	InstanceIDs string `path:"instance_ids" example:"ins-ABCDEFGH" doc:"one id, or a comma list"`
}

type deleteInstancesInput struct {
	Zoned
	InstancePath
	Instances []string `query:"instances" doc:"ids, instead of the path's"`
}

func (a *api) deleteInstances(ctx context.Context, in *deleteInstancesInput) (*JobOutput, error) {
	ids, err := pathOrOther("instances", insID, in.InstanceIDs, in.Instances)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids))
	j, err := a.service.DeleteInstances(ctx, service.InstanceSet{Origin: in.origin(ctx), IDs: ids})
	return started(ctx, j, err)
}

type renameInstancesBody struct {
	_            struct{}   `additionalProperties:"true"`
	Instances    stringList `json:"instances,omitempty" doc:"if the path names none"`
	InstanceName *string    `json:"instance_name,omitempty"`
	Description  *string    `json:"description,omitempty"`
}

type renameInstancesInput struct {
	Zoned
	InstancePath
	Body Body[renameInstancesBody]
}

func (a *api) renameInstances(ctx context.Context, in *renameInstancesInput) (*struct{}, error) {
	body, err := in.Body.get()
	if err != nil {
		return nil, err
	}
	ids, err := pathOrOther("instances", insID, in.InstanceIDs, body.Instances)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids))
	return &struct{}{}, a.service.RenameInstances(ctx, service.Rename{
		Origin: in.origin(ctx), IDs: ids, Name: body.InstanceName, Description: body.Description,
	})
}

type consoleInput struct {
	Zoned
	InstanceID string `path:"instance_id" example:"ins-ABCDEFGH"`
	// A name of its own: offset pages lists everywhere else.
	From integer `query:"from" doc:"byte to begin at; negative: so many before the end; default 0"`
}

func (a *api) console(ctx context.Context, in *consoleInput) (*streamOutput, error) {
	id, err := pathOrBody("instance_id", insID, in.InstanceID, "")
	if err != nil {
		return nil, err
	}
	from, _, err := in.From.int64("from")
	if err != nil {
		return nil, err
	}
	text, err := a.service.InstanceConsole(ctx, in.Zone, id, from)
	if err != nil {
		return nil, err
	}
	return &streamOutput{Body: func(c huma.Context) { sendConsole(ctx, c, text) }}, nil
}

// sendConsole sends text and closes it. It is what there was when it was asked
// for, and bounded by the driver.
func sendConsole(ctx context.Context, c huma.Context, text io.ReadCloser) {
	r, w := humago.Unwrap(c)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	var err error
	if r.Method != http.MethodHead {
		// Not every ResponseWriter (a test's recorder) has deadlines.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(stallTimeout))
		_, err = io.Copy(w, text)
	}
	if err := errors.Join(err, text.Close()); err != nil {
		requestOf(ctx).err = err
	}
}

type attachBody struct {
	_          struct{}   `additionalProperties:"true"`
	InstanceID string     `json:"instance_id"`
	Instance   string     `json:"instance,omitempty" doc:"the same"`
	Volumes    stringList `json:"volumes"`
}

func (b attachBody) instance() (string, error) {
	id, _ := cleanID(b.InstanceID)
	other, _ := cleanID(b.Instance)
	if id != "" && other != "" && id != other {
		return "", badParameter("instance_id", "instance_id says %s but instance says %s; send one of the two", clip(id), clip(other))
	}
	if id == "" {
		id = other
	}
	return id, nil
}

type attachInput struct {
	Zoned
	Body Body[attachBody]
}

func (a *api) attachVolumes(ctx context.Context, in *attachInput) (*JobOutput, error) {
	body, err := in.Body.get()
	if err != nil {
		return nil, err
	}
	instance, err := body.instance()
	if err != nil {
		return nil, err
	}
	if instance == "" {
		return nil, badParameter("instance_id", "instance_id is missing; send the id of the instance, for example %s", insID)
	}
	ids, err := needIDs("volumes", "vol-ABCDEFGH", body.Volumes)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids), slog.String("instance_id", instance))
	j, err := a.service.AttachVolumes(ctx, service.AttachVolumes{Origin: in.origin(ctx), Instance: instance, IDs: ids})
	return started(ctx, j, err)
}

func (a *api) detachVolumes(ctx context.Context, in *attachInput) (*JobOutput, error) {
	body, err := in.Body.get()
	if err != nil {
		return nil, err
	}
	instance, err := body.instance()
	if err != nil {
		return nil, err
	}
	ids, err := needIDs("volumes", "vol-ABCDEFGH", body.Volumes)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids), slog.String("instance_id", instance))
	j, err := a.service.DetachVolumes(ctx, service.DetachVolumes{Origin: in.origin(ctx), Instance: instance, IDs: ids})
	return started(ctx, j, err)
}

func (a *api) registerInstances() {
	const tag = "instances"
	list := under("/instances")
	register(a, call{http.MethodGet, list, "listInstances", tag, "List instances", 0}, a.listInstances)
	register(a, call{http.MethodPost, list, "runInstances", tag, "Run instances from an image", 0}, a.runInstances)
	register(a, call{http.MethodPost, list + "/start", "startInstances", tag, "Start instances", 0}, a.power(a.service.StartInstances))
	register(a, call{http.MethodPost, list + "/stop", "stopInstances", tag, "Ask guests to end; those that do not in time are ended", 0}, a.power(a.service.StopInstances))
	register(a, call{http.MethodPost, list + "/restart", "restartInstances", tag, "Stop and start instances", 0}, a.power(a.service.RestartInstances))
	register(a, call{http.MethodDelete, list + "/{instance_ids}", "deleteInstances", tag, "Delete instances with their system disks; their points and volumes survive", 0}, a.deleteInstances)
	register(a, call{http.MethodPut, list + "/{instance_ids}", "renameInstances", tag, "Change name or description; absent fields stay", http.StatusNoContent}, a.renameInstances)
	register(a, call{http.MethodGet, list + "/{instance_id}/console", "instanceConsole", tag, "What the guest wrote to its serial console", 0}, a.console)
	register(a, call{http.MethodPost, under("/volumes/attach"), "attachVolumes", "volumes", "Attach volumes to an instance, running or stopped", 0}, a.attachVolumes)
	register(a, call{http.MethodPost, under("/volumes/detach"), "detachVolumes", "volumes", "Detach volumes from their instances", 0}, a.detachVolumes)
	text := map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: huma.TypeString}}}
	a.huma.OpenAPI().Paths[list+"/{instance_id}/console"].Get.Responses["200"].Content = text
}
