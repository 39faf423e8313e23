package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

const imagesPath = "images"

// Image is one image (API.md §6).
type Image struct {
	ID               string  `json:"image_id"`
	Name             string  `json:"image_name"`
	Description      string  `json:"description"`
	Size             int64   `json:"size"`        // GB (2^30), rounded up
	SizeBytes        int64   `json:"size_bytes"`  // exactly
	AddedBytes       int64   `json:"added_bytes"` // of the repository
	Platform         string  `json:"platform"`
	OSFamily         string  `json:"os_family"`
	Provider         string  `json:"provider"`
	Visibility       string  `json:"visibility"`
	Status           string  `json:"status"` // pending, available, suspended, deleted, ceased
	TransitionStatus string  `json:"transition_status"`
	CreateTime       Time    `json:"create_time"`
	StatusTime       Time    `json:"status_time"`
	Progress         float64 `json:"progress"` // 0..1
	Damaged          Flag    `json:"damaged"`
	Origin           string  `json:"origin"` // what it was made of
	Zone             string  `json:"zone"`
}

// ImagePage is one page of images.
type ImagePage struct {
	Images     []Image `json:"images"`
	TotalCount int     `json:"total_count"`
}

// ImageFilter selects images. Empty fields don't filter.
type ImageFilter struct {
	IDs    []string // unknown ones are simply absent from the page
	Status []string // default: all but deleted and ceased
	Search string   // part of an id or a name, in any case
	Offset int
	Limit  int // 0: the server's page of 20 (Images) or no limit (AllImages)
}

// Images gets one page, newest first.
func (c *Client) Images(ctx context.Context, f ImageFilter) (ImagePage, error) {
	q := url.Values{}
	setList(q, "images", f.IDs)
	setList(q, "status", f.Status)
	set(q, "search_word", f.Search)
	setPage(q, f.Offset, f.Limit)
	var p ImagePage
	err := c.call(ctx, request{method: http.MethodGet, path: []string{imagesPath}, query: q}, &p)
	if p.Images == nil {
		p.Images = []Image{}
	}
	return p, err
}

// AllImages gets as many pages as hold f.Limit images (0: all) from f.Offset
// on; see AllSnapshots.
func (c *Client) AllImages(ctx context.Context, f ImageFilter) (ImagePage, error) {
	total := 0
	rows, err := allPages(f.Offset, f.Limit, func(i Image) string { return i.ID },
		func(offset, limit int) ([]Image, int, error) {
			f.Offset, f.Limit = offset, limit
			p, err := c.Images(ctx, f)
			total = p.TotalCount
			return p.Images, p.TotalCount, err
		})
	return ImagePage{Images: rows, TotalCount: total}, err
}

// Image gets one image; an *Error with status 404 if it does not exist.
func (c *Client) Image(ctx context.Context, id string) (Image, error) {
	p, err := c.Images(ctx, ImageFilter{IDs: []string{id}})
	if err != nil {
		return Image{}, err
	}
	for _, i := range p.Images {
		if i.ID == id {
			return i, nil
		}
	}
	return Image{}, notFound("image", id, c.zone)
}

// ImportImage asks for an image with the content of a stream.
type ImportImage struct {
	Name      string
	SizeBytes int64 // exact length of the content
}

func (in ImportImage) query() url.Values {
	return url.Values{"image_name": {in.Name}, "size_bytes": {strconv.FormatInt(in.SizeBytes, 10)}}
}

// ImportImage sends r; see ImportVolume.
func (c *Client) ImportImage(ctx context.Context, in ImportImage, r io.Reader) (Job, error) {
	return c.importStream(ctx, imagesPath, in.query(), in.SizeBytes, r)
}

// ImportSparseImage is ImportImage without sending the holes of r; see
// ImportSparse.
func (c *Client) ImportSparseImage(ctx context.Context, in ImportImage, r Sparse) (Job, error) {
	return c.importSparse(ctx, imagesPath, in.query(), in.SizeBytes, r)
}

// ExportImage opens a stream of the image's content.
func (c *Client) ExportImage(ctx context.Context, id string, format Format) (*Export, error) {
	return c.export(ctx, []string{imagesPath, id, "export"}, format)
}

// DeleteImages starts the job that deletes images. Instances that were run from
// them live on.
func (c *Client) DeleteImages(ctx context.Context, ids ...string) (Job, error) {
	return c.job(ctx, request{method: http.MethodDelete, path: []string{imagesPath, strings.Join(ids, ",")}})
}

// RenameImage changes an image's name or description at once.
func (c *Client) RenameImage(ctx context.Context, id string, in Rename) error {
	return c.call(ctx, request{
		method: http.MethodPut, path: []string{imagesPath, id}, body: in.body("image_name"),
	}, nil)
}
