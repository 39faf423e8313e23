package httpapi

import (
	"context"
	"log/slog"
	"net/http"

	"cairn/internal/chain"
	"cairn/internal/service"
)

type snapshotQuery struct {
	Zoned
	Snapshots    []string `query:"snapshots" doc:"ids; a comma list, or any usual spelling of a list"`
	ResourceID   string   `query:"resource_id"`
	SnapshotType string   `query:"snapshot_type" doc:"IS_FULL or 1, IS_INCREMENTAL or 0"`
	Status       []string `query:"status" doc:"pending, available, suspended, deleted, ceased; without it (and without ids) neither deleted nor ceased"`
	SearchWord   string   `query:"search_word" doc:"substring of id or name, whatever the case"`
	Tags         []string `query:"tags" doc:"accepted and ignored"`
	Verbose      string   `query:"verbose" doc:"accepted and ignored: answers always have all details"`
	Offset       integer  `query:"offset" doc:"default 0"`
	Limit        integer  `query:"limit" doc:"default 20, at most 100"`
	RootID       string   `query:"root_id" doc:"the incrementals under that full"`
}

type snapshotPageOutput struct {
	Body snapshotPage
}

func (a *api) listSnapshots(ctx context.Context, in *snapshotQuery) (*snapshotPageOutput, error) {
	f := service.SnapshotFilter{Zone: in.Zone, Search: in.SearchWord}
	var err error
	if f.IDs, err = cleanIDs("snapshots", in.Snapshots); err != nil {
		return nil, err
	}
	f.ResourceID, _ = cleanID(in.ResourceID)
	f.RootID, _ = cleanID(in.RootID)
	if f.Full, err = snapshotType(in.SnapshotType); err != nil {
		return nil, err
	}
	if f.Statuses, err = words("status", in.Status, chain.Pending, chain.Available, chain.Suspended, chain.Deleted, chain.Ceased); err != nil {
		return nil, err
	}
	var limit int
	if f.Offset, limit, err = page(in.Offset, in.Limit, 20); err != nil {
		return nil, err
	}
	f.Limit = max(limit, 1) // limit=0 asks for the count alone
	found, err := a.service.Snapshots(ctx, f)
	if err != nil {
		return nil, err
	}
	shown := found.Snapshots[:min(limit, len(found.Snapshots))]
	out := &snapshotPageOutput{Body: snapshotPage{Snapshots: make([]snapshotObject, len(shown)), TotalCount: found.Total}}
	for i, s := range shown {
		out.Body.Snapshots[i] = newSnapshotObject(s, requestOf(ctx).local)
	}
	return out, nil
}

// snapshotType reads the filter; nil: both.
func snapshotType(s string) (*bool, error) {
	var full bool
	switch s {
	case "":
		return nil, nil
	case typeFull, "1":
		full = true
	case typeIncremental, "0":
	default:
		return nil, badParameter("snapshot_type", "snapshot_type cannot be %q; it is %s or %s", clip(s), typeFull, typeIncremental)
	}
	return &full, nil
}

type createSnapshotsBody struct {
	_            struct{}   `additionalProperties:"true"`
	Resources    stringList `json:"resources" doc:"volumes (vol-…) or instances (ins-…); one point each, all at one instant"`
	SnapshotName string     `json:"snapshot_name" doc:"1 to 255 characters"`
	IsFull       fullness   `json:"is_full,omitempty"`
	Description  string     `json:"description,omitempty"`
}

type createSnapshotsInput struct {
	Zoned
	Body Body[createSnapshotsBody]
}

func (a *api) createSnapshots(ctx context.Context, in *createSnapshotsInput) (*JobOutput, error) {
	body, err := in.Body.get()
	if err != nil {
		return nil, err
	}
	ids, err := needIDs("resources", "vol-ABCDEFGH", body.Resources)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids))
	j, err := a.service.CreateSnapshots(ctx, service.CreateSnapshots{
		Origin: in.origin(ctx), Resources: ids, Name: body.SnapshotName, Description: body.Description, Full: bool(body.IsFull),
	})
	return started(ctx, j, err)
}

// DeleteQuery is exported for huma, like Zoned.
type DeleteQuery struct {
	Snapshot  []string `query:"snapshot" doc:"ids, instead of the path's"`
	Snapshots []string `query:"snapshots" doc:"the same"`
	DryRun    string   `query:"dry_run" enum:"0,1" doc:"1: only tell what would go and what it frees"`
}

// deleteOutput is a job, or with dry_run a plan.
type deleteOutput struct {
	Body any
}

func (a *api) deleteSnapshots(ctx context.Context, zone Zoned, path string, in DeleteQuery) (*deleteOutput, error) {
	ids, err := pathOrOther("snapshot", "ss-ABCDEFGH", path, append(in.Snapshot, in.Snapshots...))
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids))
	dry, err := flag("dry_run", in.DryRun)
	if err != nil {
		return nil, err
	}
	set := service.SnapshotSet{Origin: zone.origin(ctx), IDs: ids}
	if dry {
		plan, err := a.service.PlanDeleteSnapshots(ctx, set)
		if err != nil {
			return nil, err
		}
		if plan.IDs == nil {
			plan.IDs = []chain.ID{}
		}
		return &deleteOutput{Body: deletePlan{Snapshots: plan.IDs, FreedBytes: plan.FreedBytes}}, nil
	}
	j, err := a.service.DeleteSnapshots(ctx, set)
	out, err := started(ctx, j, err)
	if err != nil {
		return nil, err
	}
	return &deleteOutput{Body: out.Body}, nil
}

type applyBody struct {
	_         struct{}   `additionalProperties:"true"`
	Snapshots stringList `json:"snapshots" doc:"one point per resource"`
	Force     bool       `json:"force,omitempty" doc:"end the connections of NBD clients; their volumes have new URIs then. Else connected clients are a 409"`
}

type applyInput struct {
	Zoned
	Body Body[applyBody]
}

func (a *api) applySnapshots(ctx context.Context, in *applyInput) (*JobOutput, error) {
	body, err := in.Body.get()
	if err != nil {
		return nil, err
	}
	ids, err := needIDs("snapshots", "ss-ABCDEFGH", body.Snapshots)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids))
	j, err := a.service.ApplySnapshots(ctx, service.ApplySnapshots{
		SnapshotSet: service.SnapshotSet{Origin: in.origin(ctx), IDs: ids}, Force: body.Force,
	})
	return started(ctx, j, err)
}

type captureBody struct {
	_         struct{} `additionalProperties:"true"`
	Snapshot  string   `json:"snapshot,omitempty" doc:"a point of an instance, if the path names none"`
	ImageName string   `json:"image_name"`
}

func (a *api) captureInstance(ctx context.Context, zone Zoned, path string, in Body[captureBody]) (*JobOutput, error) {
	body, err := in.get()
	if err != nil {
		return nil, err
	}
	id, err := pathOrBody("snapshot", "ss-ABCDEFGH", path, body.Snapshot)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.String("snapshot_id", id))
	j, err := a.service.CaptureInstance(ctx, service.CaptureInstance{Origin: zone.origin(ctx), Snapshot: id, ImageName: body.ImageName})
	return started(ctx, j, err)
}

type cloneBody struct {
	_          struct{} `additionalProperties:"true"`
	Snapshot   string   `json:"snapshot,omitempty" doc:"a point of a volume, if the path names none"`
	VolumeName string   `json:"volume_name"`
	OnDemand   bool     `json:"on_demand,omitempty" doc:"do not fetch its bytes from the repository before somebody reads them; POST /volumes/fill ends that"`
}

func (a *api) createVolumeFromSnapshot(ctx context.Context, zone Zoned, path string, in Body[cloneBody]) (*JobOutput, error) {
	body, err := in.get()
	if err != nil {
		return nil, err
	}
	id, err := pathOrBody("snapshot", "ss-ABCDEFGH", path, body.Snapshot)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.String("snapshot_id", id))
	j, err := a.service.CreateVolumeFromSnapshot(ctx, service.CloneSnapshot{
		Origin: zone.origin(ctx), Snapshot: id, VolumeName: body.VolumeName, OnDemand: body.OnDemand,
	})
	return started(ctx, j, err)
}

type renameSnapshotBody struct {
	_            struct{} `additionalProperties:"true"`
	Snapshot     string   `json:"snapshot,omitempty" doc:"if the path names none"`
	SnapshotName *string  `json:"snapshot_name,omitempty"`
	Description  *string  `json:"description,omitempty"`
}

func (a *api) renameSnapshot(ctx context.Context, zone Zoned, path string, in Body[renameSnapshotBody]) (*struct{}, error) {
	body, err := in.get()
	if err != nil {
		return nil, err
	}
	id, err := pathOrBody("snapshot", "ss-ABCDEFGH", path, body.Snapshot)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.String("snapshot_id", id))
	_, err = a.service.RenameSnapshot(ctx, service.Rename{
		Origin: zone.origin(ctx), IDs: []string{id}, Name: body.SnapshotName, Description: body.Description,
	})
	return &struct{}{}, err
}

type serveInput struct {
	Zoned
	SnapshotPath
}

type serveOutput struct {
	Body exportObject
}

// serveSnapshot answers with the same fields that the point shows from now on.
func (a *api) serveSnapshot(ctx context.Context, in *serveInput) (*serveOutput, error) {
	id, err := pathOrBody("snapshot", "ss-ABCDEFGH", in.SnapshotID, "")
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.String("snapshot_id", id))
	e, err := a.service.ServeSnapshot(ctx, in.Zone, id)
	if err != nil {
		return nil, err
	}
	return &serveOutput{Body: exportObject{SnapshotID: id, NBDURIs: shownURIs(e, requestOf(ctx).local), Clients: e.Clients}}, nil
}

type unserveInput struct {
	Zoned
	SnapshotPath
	Force string `query:"force" enum:"0,1" doc:"1: end the connections of clients"`
}

func (a *api) unserveSnapshot(ctx context.Context, in *unserveInput) (*struct{}, error) {
	id, err := pathOrBody("snapshot", "ss-ABCDEFGH", in.SnapshotID, "")
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.String("snapshot_id", id))
	force, err := flag("force", in.Force)
	if err != nil {
		return nil, err
	}
	return &struct{}{}, a.service.UnserveSnapshot(ctx, in.Zone, id, force)
}

// The four calls that take their id from the path or from elsewhere have two
// routes each.
type (
	// SnapshotPath is the path parameter of calls about one point.
	SnapshotPath struct {
		SnapshotID string `path:"snapshot_id" example:"ss-ABCDEFGH"`
	}

	deletePathInput struct {
		Zoned
		SnapshotPath
		DeleteQuery
	}
	deleteInput struct {
		Zoned
		DeleteQuery
	}
	capturePathInput struct {
		Zoned
		SnapshotPath
		Body Body[captureBody]
	}
	captureInput struct {
		Zoned
		Body Body[captureBody]
	}
	clonePathInput struct {
		Zoned
		SnapshotPath
		Body Body[cloneBody]
	}
	cloneInput struct {
		Zoned
		Body Body[cloneBody]
	}
	renamePathInput struct {
		Zoned
		SnapshotPath
		Body Body[renameSnapshotBody]
	}
	renameInput struct {
		Zoned
		Body Body[renameSnapshotBody]
	}
)

func (a *api) registerSnapshots() {
	const tag = "volume_snapshots"
	list := under("/volume_snapshots")
	register(a, call{http.MethodGet, list, "listSnapshots", tag, "List points", 0}, a.listSnapshots)
	register(a, call{http.MethodPost, list, "createSnapshots", tag, "Take a point of each resource, all at one instant", 0}, a.createSnapshots)
	register(a, call{http.MethodPost, list + "/apply", "applySnapshots", tag, "Roll resources back in place", 0}, a.applySnapshots)

	register(a, call{http.MethodDelete, list + "/{snapshot_id}", "deleteSnapshots", tag, "Delete points with all their descendants", 0},
		func(ctx context.Context, in *deletePathInput) (*deleteOutput, error) {
			return a.deleteSnapshots(ctx, in.Zoned, in.SnapshotID, in.DeleteQuery)
		})
	register(a, call{http.MethodDelete, list, "deleteSnapshotsByQuery", tag, "Delete points; ids in the query", 0},
		func(ctx context.Context, in *deleteInput) (*deleteOutput, error) {
			return a.deleteSnapshots(ctx, in.Zoned, "", in.DeleteQuery)
		})
	register(a, call{http.MethodPost, list + "/capture_instance/{snapshot_id}", "captureInstance", tag, "Make an image of an instance's point", 0},
		func(ctx context.Context, in *capturePathInput) (*JobOutput, error) {
			return a.captureInstance(ctx, in.Zoned, in.SnapshotID, in.Body)
		})
	register(a, call{http.MethodPost, list + "/capture_instance", "captureInstanceByBody", tag, "Make an image of an instance's point; id in the body", 0},
		func(ctx context.Context, in *captureInput) (*JobOutput, error) {
			return a.captureInstance(ctx, in.Zoned, "", in.Body)
		})
	register(a, call{http.MethodPost, list + "/create_volume/{snapshot_id}", "createVolumeFromSnapshot", tag, "Make a volume of a volume's point", 0},
		func(ctx context.Context, in *clonePathInput) (*JobOutput, error) {
			return a.createVolumeFromSnapshot(ctx, in.Zoned, in.SnapshotID, in.Body)
		})
	register(a, call{http.MethodPost, list + "/create_volume", "createVolumeFromSnapshotByBody", tag, "Make a volume of a volume's point; id in the body", 0},
		func(ctx context.Context, in *cloneInput) (*JobOutput, error) {
			return a.createVolumeFromSnapshot(ctx, in.Zoned, "", in.Body)
		})
	register(a, call{http.MethodPost, list + "/serve/{snapshot_id}", "serveSnapshot", tag, "Let NBD clients read a point, until that is ended", 0}, a.serveSnapshot)
	register(a, call{http.MethodDelete, list + "/serve/{snapshot_id}", "unserveSnapshot", tag, "Serve a point no longer", http.StatusNoContent}, a.unserveSnapshot)
	register(a, call{http.MethodPut, list + "/{snapshot_id}", "renameSnapshot", tag, "Change name or description; absent fields stay", http.StatusNoContent},
		func(ctx context.Context, in *renamePathInput) (*struct{}, error) {
			return a.renameSnapshot(ctx, in.Zoned, in.SnapshotID, in.Body)
		})
	register(a, call{http.MethodPut, list, "renameSnapshotByBody", tag, "Change name or description; id in the body", http.StatusNoContent},
		func(ctx context.Context, in *renameInput) (*struct{}, error) {
			return a.renameSnapshot(ctx, in.Zoned, "", in.Body)
		})
}
