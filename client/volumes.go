package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

const volumesPath = "volumes"

// VolumeFilter selects volumes. Empty fields don't filter.
type VolumeFilter struct {
	IDs    []string // unknown ones are simply absent from the page
	Type   *int
	Status []string // default: all but deleted and ceased
	Search string   // part of an id or a name, in any case
	Offset int
	Limit  int // 0: the server's page of 10 (Volumes) or no limit (AllVolumes)
}

func (f VolumeFilter) query() url.Values {
	q := url.Values{}
	setList(q, "volumes", f.IDs)
	if f.Type != nil {
		q.Set("volume_type", strconv.Itoa(*f.Type))
	}
	setList(q, "status", f.Status)
	set(q, "search_word", f.Search)
	setPage(q, f.Offset, f.Limit)
	return q
}

// Volumes gets one page, newest first.
func (c *Client) Volumes(ctx context.Context, f VolumeFilter) (VolumePage, error) {
	var p VolumePage
	err := c.call(ctx, request{method: http.MethodGet, path: []string{volumesPath}, query: f.query()}, &p)
	if p.Volumes == nil {
		p.Volumes = []Volume{}
	}
	return p, err
}

// AllVolumes gets as many pages as hold f.Limit volumes (0: all) from f.Offset
// on; see AllSnapshots.
func (c *Client) AllVolumes(ctx context.Context, f VolumeFilter) (VolumePage, error) {
	total := 0
	rows, err := allPages(f.Offset, f.Limit, func(v Volume) string { return v.ID },
		func(offset, limit int) ([]Volume, int, error) {
			f.Offset, f.Limit = offset, limit
			p, err := c.Volumes(ctx, f)
			total = p.TotalCount
			return p.Volumes, p.TotalCount, err
		})
	return VolumePage{Volumes: rows, TotalCount: total}, err
}

// Volume gets one volume; an *Error with status 404 if it does not exist.
func (c *Client) Volume(ctx context.Context, id string) (Volume, error) {
	p, err := c.Volumes(ctx, VolumeFilter{IDs: []string{id}})
	if err != nil {
		return Volume{}, err
	}
	for _, v := range p.Volumes {
		if v.ID == id {
			return v, nil
		}
	}
	return Volume{}, notFound("volume", id, c.zone)
}

// CreateVolumes asks for empty managed volumes.
type CreateVolumes struct {
	Name      string
	SizeBytes int64
	Type      int
	Count     int // 0: one
}

// CreateVolumes starts the job; its ResourceIDs are the new volumes.
func (c *Client) CreateVolumes(ctx context.Context, in CreateVolumes) (Job, error) {
	body := map[string]any{"volume_name": in.Name, "size_bytes": in.SizeBytes, "volume_type": in.Type}
	if in.Count != 0 {
		body["count"] = in.Count
	}
	return c.job(ctx, request{method: http.MethodPost, path: []string{volumesPath}, body: body})
}

// RegisterVolume names a raw file or block device of the server's host.
type RegisterVolume struct {
	Path        string `json:"path"` // absolute, as the server sees it
	Name        string `json:"volume_name"`
	Description string `json:"description,omitempty"`
}

// RegisterVolume makes the file or device a volume at once. It works only
// through the server's unix socket, see Local.
func (c *Client) RegisterVolume(ctx context.Context, in RegisterVolume) (Volume, error) {
	var v Volume
	err := c.call(ctx, request{method: http.MethodPost, path: []string{volumesPath, "register"}, body: in}, &v)
	return v, err
}

// ResizeVolumes starts the job that grows the volumes to sizeBytes.
func (c *Client) ResizeVolumes(ctx context.Context, sizeBytes int64, ids ...string) (Job, error) {
	return c.job(ctx, request{
		method: http.MethodPost, path: []string{volumesPath, "resize"},
		body: map[string]any{"volumes": ids, "size_bytes": sizeBytes},
	})
}

// FillVolumes lets what volumes that are read on demand still need of the
// repository be fetched in the background; WaitFilled waits for that.
func (c *Client) FillVolumes(ctx context.Context, ids ...string) error {
	return c.call(ctx, request{
		method: http.MethodPost, path: []string{volumesPath, "fill"},
		body: map[string]any{"volumes": ids},
	}, nil)
}

// DeleteVolumes starts the job that deletes volumes; their snapshots survive.
// A registered volume is only forgotten.
func (c *Client) DeleteVolumes(ctx context.Context, ids ...string) (Job, error) {
	return c.job(ctx, request{method: http.MethodDelete, path: []string{volumesPath, strings.Join(ids, ",")}})
}

// RenameVolume changes a volume's name or description at once.
func (c *Client) RenameVolume(ctx context.Context, id string, in Rename) error {
	return c.call(ctx, request{
		method: http.MethodPut, path: []string{volumesPath, id}, body: in.body("volume_name"),
	}, nil)
}

// ExportVolume opens a stream of the volume's present content.
func (c *Client) ExportVolume(ctx context.Context, id string, format Format) (*Export, error) {
	return c.export(ctx, []string{volumesPath, id, "export"}, format)
}
