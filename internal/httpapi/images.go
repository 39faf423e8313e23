package httpapi

import (
	"context"
	"log/slog"
	"net/http"

	"cairn/internal/chain"
	"cairn/internal/service"
)

const imgID = "img-ABCDEFGH"

type imageQuery struct {
	Zoned
	Images     []string `query:"images" doc:"ids; a comma list, or any usual spelling of a list"`
	Status     []string `query:"status" doc:"pending, available, suspended, deleted, ceased; without it (and without ids) neither deleted nor ceased"`
	SearchWord string   `query:"search_word" doc:"substring of id or name, whatever the case"`
	Verbose    string   `query:"verbose" doc:"accepted and ignored: answers always have all details"`
	Offset     integer  `query:"offset" doc:"default 0"`
	Limit      integer  `query:"limit" doc:"default 20, at most 100"`
}

type imagePageOutput struct {
	Body imagePage
}

func (a *api) listImages(ctx context.Context, in *imageQuery) (*imagePageOutput, error) {
	f := service.ImageFilter{Zone: in.Zone, Search: in.SearchWord}
	var err error
	if f.IDs, err = cleanIDs("images", in.Images); err != nil {
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
	found, err := a.service.Images(ctx, f)
	if err != nil {
		return nil, err
	}
	shown := found.Snapshots[:min(limit, len(found.Snapshots))]
	out := &imagePageOutput{Body: imagePage{Images: make([]imageObject, len(shown)), TotalCount: found.Total}}
	for i, s := range shown {
		out.Body.Images[i] = newImageObject(s)
	}
	return out, nil
}

type importImageQuery struct {
	Zoned
	ImageName string  `query:"image_name"`
	SizeBytes integer `query:"size_bytes" doc:"exact length of the content; may be left out where Content-Length says it"`
}

func (a *api) importImage(ctx context.Context, in *importImageQuery) (*JobOutput, error) {
	open, size, err := upload(ctx, in.SizeBytes)
	if err != nil {
		return nil, err
	}
	j, err := a.service.ImportImage(ctx, service.ImportImage{
		Origin: in.origin(ctx), Name: in.ImageName, SizeBytes: size, Stream: open(size),
	})
	return started(ctx, j, err)
}

// ImagePath is the path parameter of calls about images.
type ImagePath struct {
	ImageIDs string `path:"image_ids" example:"img-ABCDEFGH" doc:"one id, or a comma list"`
}

type deleteImagesInput struct {
	Zoned
	ImagePath
	Images []string `query:"images" doc:"ids, instead of the path's"`
}

func (a *api) deleteImages(ctx context.Context, in *deleteImagesInput) (*JobOutput, error) {
	ids, err := pathOrOther("images", imgID, in.ImageIDs, in.Images)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids))
	j, err := a.service.DeleteImages(ctx, service.ImageSet{Origin: in.origin(ctx), IDs: ids})
	return started(ctx, j, err)
}

type renameImagesBody struct {
	_           struct{}   `additionalProperties:"true"`
	Images      stringList `json:"images,omitempty" doc:"if the path names none"`
	ImageName   *string    `json:"image_name,omitempty"`
	Description *string    `json:"description,omitempty"`
}

type renameImagesInput struct {
	Zoned
	ImagePath
	Body Body[renameImagesBody]
}

func (a *api) renameImages(ctx context.Context, in *renameImagesInput) (*struct{}, error) {
	body, err := in.Body.get()
	if err != nil {
		return nil, err
	}
	ids, err := pathOrOther("images", imgID, in.ImageIDs, body.Images)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids))
	return &struct{}{}, a.service.RenameImages(ctx, service.Rename{
		Origin: in.origin(ctx), IDs: ids, Name: body.ImageName, Description: body.Description,
	})
}

type exportImageInput struct {
	Zoned
	ImageID string `path:"image_id" example:"img-ABCDEFGH"`
	ExportQuery
}

func (a *api) exportImage(ctx context.Context, in *exportImageInput) (*streamOutput, error) {
	return export(ctx, in.Zone, "image_id", imgID, in.ImageID, in.Format, a.service.ExportImage)
}

func (a *api) registerImages() {
	const tag = "images"
	list := under("/images")
	register(a, call{http.MethodGet, list, "listImages", tag, "List images", 0}, a.listImages)
	register(a, call{http.MethodPost, importImagePath, "importImage", tag, "Make an image of the raw stream that is the body", 0}, a.importImage)
	register(a, call{http.MethodDelete, list + "/{image_ids}", "deleteImages", tag, "Delete images; instances that run from them live on", 0}, a.deleteImages)
	register(a, call{http.MethodPut, list + "/{image_ids}", "renameImages", tag, "Change name or description; absent fields stay", http.StatusNoContent}, a.renameImages)
	register(a, call{http.MethodGet, exportImagePath, "exportImage", tag, "Stream an image's content", 0}, a.exportImage)
	a.documentUpload(importImagePath)
	a.documentDownload(exportImagePath)
}
