package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

const (
	snapshotsPath = "volume_snapshots"
	pageLimit     = 100 // the server's largest page
)

// SnapshotFilter selects snapshots. Empty fields don't filter.
type SnapshotFilter struct {
	IDs        []string // unknown ones are simply absent from the page
	ResourceID string
	Type       string   // Full or Incremental
	Status     []string // default: all but deleted and ceased
	Search     string   // part of an id or a name, in any case
	RootID     string   // the incrementals under that full
	Offset     int
	Limit      int // 0: the server's page of 20 (Snapshots) or no limit (AllSnapshots)
}

func (f SnapshotFilter) query() url.Values {
	q := url.Values{"verbose": {"1"}}
	setList(q, "snapshots", f.IDs)
	set(q, "resource_id", f.ResourceID)
	set(q, "snapshot_type", f.Type)
	setList(q, "status", f.Status)
	set(q, "search_word", f.Search)
	set(q, "root_id", f.RootID)
	setPage(q, f.Offset, f.Limit)
	return q
}

func set(q url.Values, key, value string) {
	if value != "" {
		q.Set(key, value)
	}
}

func setList(q url.Values, key string, values []string) {
	if len(values) > 0 {
		q.Set(key, strings.Join(values, ","))
	}
}

func setPage(q url.Values, offset, limit int) {
	if offset != 0 {
		q.Set("offset", strconv.Itoa(offset))
	}
	if limit != 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
}

// Snapshots gets one page, newest first.
func (c *Client) Snapshots(ctx context.Context, f SnapshotFilter) (SnapshotPage, error) {
	var p SnapshotPage
	err := c.call(ctx, request{method: http.MethodGet, path: []string{snapshotsPath}, query: f.query()}, &p)
	if p.Snapshots == nil {
		p.Snapshots = []Snapshot{}
	}
	return p, err
}

// AllSnapshots gets as many pages as hold f.Limit snapshots (0: all) from
// f.Offset on. Points that are made meanwhile shift the pages; one that turns
// up again is dropped.
func (c *Client) AllSnapshots(ctx context.Context, f SnapshotFilter) (SnapshotPage, error) {
	total := 0
	rows, err := allPages(f.Offset, f.Limit, func(s Snapshot) string { return s.ID },
		func(offset, limit int) ([]Snapshot, int, error) {
			f.Offset, f.Limit = offset, limit
			p, err := c.Snapshots(ctx, f)
			total = p.TotalCount
			return p.Snapshots, p.TotalCount, err
		})
	return SnapshotPage{Snapshots: rows, TotalCount: total}, err
}

// allPages collects rows until it has want of them (0: all) or get's total
// says that none follow. It ends since every round moves the offset on.
func allPages[T any](offset, want int, id func(T) string, get func(offset, limit int) ([]T, int, error)) ([]T, error) {
	rows := []T{}
	seen := map[string]bool{}
	for {
		limit := pageLimit
		if want > 0 {
			limit = min(limit, want-len(rows))
		}
		page, total, err := get(offset, limit)
		if err != nil {
			return nil, err
		}
		for _, r := range page {
			if !seen[id(r)] {
				seen[id(r)] = true
				rows = append(rows, r)
			}
		}
		offset += len(page)
		if len(page) == 0 || offset >= total || (want > 0 && len(rows) >= want) {
			return rows, nil
		}
	}
}

// Snapshot gets one snapshot in any status; an *Error with status 404 if it
// does not exist.
func (c *Client) Snapshot(ctx context.Context, id string) (Snapshot, error) {
	p, err := c.Snapshots(ctx, SnapshotFilter{IDs: []string{id}})
	if err != nil {
		return Snapshot{}, err
	}
	for _, s := range p.Snapshots {
		if s.ID == id {
			return s, nil
		}
	}
	return Snapshot{}, notFound("snapshot", id, c.zone)
}

// CreateSnapshots asks for one point per resource, all at one instant.
type CreateSnapshots struct {
	Resources   []string
	Name        string
	Description string
	Full        bool // false: the server's rules decide
}

// CreateSnapshots starts the job; its ResourceIDs are the new snapshots.
func (c *Client) CreateSnapshots(ctx context.Context, in CreateSnapshots) (Job, error) {
	body := map[string]any{
		"resources": in.Resources, "snapshot_name": in.Name, "is_full": Flag(in.Full),
	}
	if in.Description != "" {
		body["description"] = in.Description
	}
	return c.job(ctx, request{method: http.MethodPost, path: []string{snapshotsPath}, body: body})
}

// DeleteSnapshots starts the job that deletes the points and all their
// descendants.
func (c *Client) DeleteSnapshots(ctx context.Context, ids ...string) (Job, error) {
	return c.job(ctx, request{method: http.MethodDelete, path: []string{snapshotsPath, strings.Join(ids, ",")}})
}

// PlanDeleteSnapshots tells what DeleteSnapshots would take. It changes nothing.
func (c *Client) PlanDeleteSnapshots(ctx context.Context, ids ...string) (DeletePlan, error) {
	var p DeletePlan
	err := c.call(ctx, request{
		method: http.MethodDelete, path: []string{snapshotsPath, strings.Join(ids, ",")},
		query: url.Values{"dry_run": {"1"}},
	}, &p)
	if p.Snapshots == nil {
		p.Snapshots = []string{}
	}
	return p, err
}

// ApplySnapshots starts the job that rolls each point's resource back in place.
// It is refused with 409 while NBD clients are connected.
func (c *Client) ApplySnapshots(ctx context.Context, ids ...string) (Job, error) {
	return c.apply(ctx, map[string]any{"snapshots": ids})
}

// ForceApplySnapshots is ApplySnapshots, but ends the connections of NBD
// clients. Their volumes have other URIs then.
func (c *Client) ForceApplySnapshots(ctx context.Context, ids ...string) (Job, error) {
	return c.apply(ctx, map[string]any{"snapshots": ids, "force": true})
}

func (c *Client) apply(ctx context.Context, body map[string]any) (Job, error) {
	return c.job(ctx, request{method: http.MethodPost, path: []string{snapshotsPath, "apply"}, body: body})
}

// CloneSnapshot says what volume is made of a point.
type CloneSnapshot struct {
	VolumeName string `json:"volume_name"`
	// OnDemand leaves the bytes in the repository until somebody reads them, or
	// FillVolumes.
	OnDemand bool `json:"on_demand,omitempty"`
}

// CreateVolumeFromSnapshot starts the job that makes a volume with the point's
// content; the job's ResourceIDs hold its id.
func (c *Client) CreateVolumeFromSnapshot(ctx context.Context, id string, in CloneSnapshot) (Job, error) {
	return c.job(ctx, request{method: http.MethodPost, path: []string{snapshotsPath, "create_volume", id}, body: in})
}

// CaptureInstanceFromSnapshot starts the job that makes an image of an
// instance's point.
func (c *Client) CaptureInstanceFromSnapshot(ctx context.Context, id, imageName string) (Job, error) {
	return c.job(ctx, request{
		method: http.MethodPost, path: []string{snapshotsPath, "capture_instance", id},
		body: map[string]any{"image_name": imageName},
	})
}

// Rename changes names. Nil fields stay as they are.
type Rename struct {
	Name        *string
	Description *string
}

func (r Rename) body(nameKey string) map[string]any {
	body := map[string]any{}
	if r.Name != nil {
		body[nameKey] = *r.Name
	}
	if r.Description != nil {
		body["description"] = *r.Description
	}
	return body
}

// RenameSnapshot changes a snapshot's name or description at once.
func (c *Client) RenameSnapshot(ctx context.Context, id string, in Rename) error {
	return c.call(ctx, request{
		method: http.MethodPut, path: []string{snapshotsPath, id}, body: in.body("snapshot_name"),
	}, nil)
}

// ServeSnapshot lets NBD clients read a point, which cannot be deleted then,
// until UnserveSnapshot. Serving it twice is harmless.
func (c *Client) ServeSnapshot(ctx context.Context, id string) (Served, error) {
	var out Served
	err := c.call(ctx, request{method: http.MethodPost, path: []string{snapshotsPath, "serve", id}}, &out)
	return out, err
}

// UnserveSnapshot ends that. Connected clients are a conflict (IsStatus 409),
// unless force ends their connections.
func (c *Client) UnserveSnapshot(ctx context.Context, id string, force bool) error {
	q := url.Values{}
	if force {
		q.Set("force", "1")
	}
	return c.call(ctx, request{method: http.MethodDelete, path: []string{snapshotsPath, "serve", id}, query: q}, nil)
}

// ExportSnapshot opens a stream of the point's content.
func (c *Client) ExportSnapshot(ctx context.Context, id string, format Format) (*Export, error) {
	return c.export(ctx, []string{snapshotsPath, id, "export"}, format)
}
