package httpapi

import (
	"context"
	"log/slog"
	"math"
	"net/http"

	"cairn/internal/errs"
	"cairn/internal/service"
)

type volumeQuery struct {
	Zoned
	Volumes    []string `query:"volumes" doc:"ids; a comma list, or any usual spelling of a list"`
	VolumeType integer  `query:"volume_type"`
	Status     []string `query:"status" doc:"pending, available, in-use, deleted, ceased; without it (and without ids) neither deleted nor ceased"`
	SearchWord string   `query:"search_word" doc:"substring of id or name, whatever the case"`
	Verbose    string   `query:"verbose" doc:"accepted and ignored: answers always have all details"`
	Offset     integer  `query:"offset" doc:"default 0"`
	Limit      integer  `query:"limit" doc:"default 10, at most 100"`
}

type volumePageOutput struct {
	Body volumePage
}

func (a *api) listVolumes(ctx context.Context, in *volumeQuery) (*volumePageOutput, error) {
	f := service.VolumeFilter{Zone: in.Zone, Search: in.SearchWord}
	var err error
	if f.IDs, err = cleanIDs("volumes", in.Volumes); err != nil {
		return nil, err
	}
	kind, ok, err := in.VolumeType.int64("volume_type")
	if err != nil {
		return nil, err
	}
	if ok {
		t := int(kind)
		f.Type = &t
	}
	f.Statuses, err = words("status", in.Status, service.VolumePending, service.VolumeAvailable,
		service.VolumeInUse, service.VolumeDeleted, service.VolumeCeased)
	if err != nil {
		return nil, err
	}
	var limit int
	if f.Offset, limit, err = page(in.Offset, in.Limit, 10); err != nil {
		return nil, err
	}
	f.Limit = max(limit, 1) // limit=0 asks for the count alone
	found, err := a.service.Volumes(ctx, f)
	if err != nil {
		return nil, err
	}
	shown := found.Volumes[:min(limit, len(found.Volumes))]
	out := &volumePageOutput{Body: volumePage{Volumes: make([]volumeObject, len(shown)), TotalCount: found.Total}}
	for i, v := range shown {
		out.Body.Volumes[i] = newVolumeObject(v, requestOf(ctx).local)
	}
	return out, nil
}

type createVolumesBody struct {
	_           struct{}     `additionalProperties:"true"`
	VolumeName  string       `json:"volume_name"`
	Size        *wholeNumber `json:"size,omitempty" doc:"GB (2^30 bytes)"`
	SizeBytes   *wholeNumber `json:"size_bytes,omitempty" doc:"instead of size: the exact size"`
	VolumeType  *wholeNumber `json:"volume_type,omitempty" doc:"default 0"`
	Count       *wholeNumber `json:"count,omitempty" doc:"default 1"`
	Description string       `json:"description,omitempty"`
}

type createVolumesInput struct {
	Zoned
	Body Body[createVolumesBody]
}

// sizeBytes reads a size that may come in GB or exactly.
func sizeBytes(size, exact *wholeNumber) (int64, error) {
	switch {
	case exact != nil && *exact < 1:
		return 0, badParameter("size_bytes", "size_bytes is %d; send at least 1", *exact)
	case exact != nil && size != nil && gigabytes(int64(*exact)) != int64(*size):
		return 0, badParameter("size_bytes", "size says %d GB but size_bytes says %d; send only one of the two", *size, *exact)
	case exact != nil:
		return int64(*exact), nil
	case size == nil:
		return 0, badParameter("size", "size is missing; send the size in GB, at least 1")
	case *size < 1 || int64(*size) > math.MaxInt64/gigabyte:
		return 0, badParameter("size", "size is %d GB; send at least 1 and at most %d", *size, math.MaxInt64/gigabyte)
	}
	return int64(*size) * gigabyte, nil
}

// small reads an optional number that fits an int32.
func small(parameter string, n *wholeNumber, def int) (int, error) {
	if n == nil {
		return def, nil
	}
	if *n < math.MinInt32 || *n > math.MaxInt32 {
		return 0, badParameter(parameter, "%s is %d; send a smaller number", parameter, *n)
	}
	return int(*n), nil
}

func (a *api) createVolumes(ctx context.Context, in *createVolumesInput) (*JobOutput, error) {
	body, err := in.Body.get()
	if err != nil {
		return nil, err
	}
	create := service.CreateVolumes{Origin: in.origin(ctx), Name: body.VolumeName}
	if create.SizeBytes, err = sizeBytes(body.Size, body.SizeBytes); err != nil {
		return nil, err
	}
	if create.Type, err = small("volume_type", body.VolumeType, 0); err != nil {
		return nil, err
	}
	if create.Count, err = small("count", body.Count, 1); err != nil {
		return nil, err
	}
	if create.Count < 1 {
		return nil, badParameter("count", "count is %d; send at least 1", create.Count)
	}
	j, err := a.service.CreateVolumes(ctx, create)
	return started(ctx, j, err)
}

type registerVolumeBody struct {
	_           struct{} `additionalProperties:"true"`
	Path        string   `json:"path" doc:"absolute path of a raw file or block device on the server, or the URI of an export of another NBD server"`
	VolumeName  string   `json:"volume_name"`
	Description string   `json:"description,omitempty"`
}

type registerVolumeInput struct {
	Zoned
	Body Body[registerVolumeBody]
}

type volumeOutput struct {
	Body volumeObject
}

func (a *api) registerVolume(ctx context.Context, in *registerVolumeInput) (*volumeOutput, error) {
	origin := in.origin(ctx)
	if !origin.Local {
		return nil, errs.New(errs.Denied, "a path on the server, or a URI that it connects to, can be registered through its unix socket only; call from that machine with --server unix://…/cairn.sock")
	}
	body, err := in.Body.get()
	if err != nil {
		return nil, err
	}
	v, err := a.service.RegisterVolume(ctx, service.RegisterVolume{
		Origin: origin, Path: body.Path, Name: body.VolumeName, Description: body.Description,
	})
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.String("volume_id", v.ID))
	return &volumeOutput{Body: newVolumeObject(service.VolumeView{Volume: v}, origin.Local)}, nil
}

type importQuery struct {
	Zoned
	VolumeName string  `query:"volume_name"`
	SizeBytes  integer `query:"size_bytes" doc:"exact length of the content; may be left out where Content-Length says it"`
	VolumeType integer `query:"volume_type" doc:"default 0"`
}

func (a *api) importVolume(ctx context.Context, in *importQuery) (*JobOutput, error) {
	open, size, err := upload(ctx, in.SizeBytes)
	if err != nil {
		return nil, err
	}
	kind, _, err := in.VolumeType.int64("volume_type")
	if err != nil {
		return nil, err
	}
	j, err := a.service.ImportVolume(ctx, service.ImportVolume{
		Origin: in.origin(ctx), Name: in.VolumeName, Type: int(kind), SizeBytes: size, Stream: open(size),
	})
	return started(ctx, j, err)
}

// upload finds out how long the content is that the body holds, and how to read
// it.
func upload(ctx context.Context, sizeBytes integer) (open func(size int64) service.Inflow, size int64, err error) {
	size, ok, err := sizeBytes.int64("size_bytes")
	if err != nil {
		return nil, 0, err
	}
	open, sized, err := inflow(requestOf(ctx))
	if err != nil {
		return nil, 0, err
	}
	sent := requestOf(ctx).length
	if !sized {
		sent = -1
	}
	switch {
	case !ok && sent < 0:
		return nil, 0, badParameter("size_bytes", "size_bytes is missing; send the exact length of the content")
	case !ok:
		size = sent
	case sent >= 0 && sent != size:
		return nil, 0, badParameter("size_bytes", "size_bytes is %d but the body has %d bytes; send the exact length of the body", size, sent)
	}
	if size < 1 {
		return nil, 0, badParameter("size_bytes", "size_bytes is %d; send at least 1", size)
	}
	return open, size, nil
}

// VolumePath is the path parameter of calls about volumes.
type VolumePath struct {
	VolumeIDs string `path:"volume_ids" example:"vol-ABCDEFGH" doc:"one id, or a comma list"`
}

type deleteVolumesInput struct {
	Zoned
	VolumePath
	Volume  []string `query:"volume" doc:"ids, instead of the path's"`
	Volumes []string `query:"volumes" doc:"the same"`
}

func (a *api) deleteVolumes(ctx context.Context, in *deleteVolumesInput) (*JobOutput, error) {
	ids, err := pathOrOther("volumes", "vol-ABCDEFGH", in.VolumeIDs, append(in.Volume, in.Volumes...))
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids))
	j, err := a.service.DeleteVolumes(ctx, service.VolumeSet{Origin: in.origin(ctx), IDs: ids})
	return started(ctx, j, err)
}

type renameVolumesBody struct {
	_           struct{}   `additionalProperties:"true"`
	Volumes     stringList `json:"volumes,omitempty" doc:"if the path names none"`
	VolumeName  *string    `json:"volume_name,omitempty"`
	Description *string    `json:"description,omitempty"`
}

type renameVolumesInput struct {
	Zoned
	VolumePath
	Body Body[renameVolumesBody]
}

func (a *api) renameVolumes(ctx context.Context, in *renameVolumesInput) (*struct{}, error) {
	body, err := in.Body.get()
	if err != nil {
		return nil, err
	}
	ids, err := pathOrOther("volumes", "vol-ABCDEFGH", in.VolumeIDs, body.Volumes)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids))
	err = a.service.RenameVolumes(ctx, service.Rename{
		Origin: in.origin(ctx), IDs: ids, Name: body.VolumeName, Description: body.Description,
	})
	return &struct{}{}, err
}

type resizeVolumesBody struct {
	_         struct{}     `additionalProperties:"true"`
	Volumes   stringList   `json:"volumes"`
	Size      *wholeNumber `json:"size,omitempty" doc:"GB (2^30 bytes)"`
	SizeBytes *wholeNumber `json:"size_bytes,omitempty" doc:"instead of size: the exact size"`
}

type resizeVolumesInput struct {
	Zoned
	Body Body[resizeVolumesBody]
}

func (a *api) resizeVolumes(ctx context.Context, in *resizeVolumesInput) (*JobOutput, error) {
	body, err := in.Body.get()
	if err != nil {
		return nil, err
	}
	ids, err := needIDs("volumes", "vol-ABCDEFGH", body.Volumes)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids))
	size, err := sizeBytes(body.Size, body.SizeBytes)
	if err != nil {
		return nil, err
	}
	j, err := a.service.ResizeVolumes(ctx, service.ResizeVolumes{Origin: in.origin(ctx), IDs: ids, SizeBytes: size})
	return started(ctx, j, err)
}

type fillVolumesBody struct {
	_       struct{}   `additionalProperties:"true"`
	Volumes stringList `json:"volumes"`
}

type fillVolumesInput struct {
	Zoned
	Body Body[fillVolumesBody]
}

func (a *api) fillVolumes(ctx context.Context, in *fillVolumesInput) (*struct{}, error) {
	body, err := in.Body.get()
	if err != nil {
		return nil, err
	}
	ids, err := needIDs("volumes", "vol-ABCDEFGH", body.Volumes)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids))
	return &struct{}{}, a.service.FillVolumes(ctx, service.VolumeSet{Origin: in.origin(ctx), IDs: ids})
}

func (a *api) registerVolumes() {
	const tag = "volumes"
	list := under("/volumes")
	register(a, call{http.MethodGet, list, "listVolumes", tag, "List volumes", 0}, a.listVolumes)
	register(a, call{http.MethodPost, list, "createVolumes", tag, "Create empty volumes", 0}, a.createVolumes)
	register(a, call{http.MethodPost, list + "/register", "registerVolume", tag, "Make a file or device of the server, or an NBD export, a volume (unix socket only)", 0}, a.registerVolume)
	register(a, call{http.MethodPost, importPath, "importVolume", tag, "Make a volume of the raw stream that is the body", 0}, a.importVolume)
	register(a, call{http.MethodPost, list + "/resize", "resizeVolumes", tag, "Grow volumes", 0}, a.resizeVolumes)
	register(a, call{http.MethodPost, list + "/fill", "fillVolumes", tag, "Fetch in the background what volumes still need of the repository", http.StatusNoContent}, a.fillVolumes)
	register(a, call{http.MethodDelete, list + "/{volume_ids}", "deleteVolumes", tag, "Delete volumes; their points survive", 0}, a.deleteVolumes)
	register(a, call{http.MethodPut, list + "/{volume_ids}", "renameVolumes", tag, "Change name or description; absent fields stay", http.StatusNoContent}, a.renameVolumes)
	a.documentUpload(importPath)
}
