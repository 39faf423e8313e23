package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

const instancesPath = "instances"

// Instance states.
const (
	InstancePending = "pending"
	InstanceRunning = "running"
	InstanceStopped = "stopped"
)

// ImageRef names an image.
type ImageRef struct {
	ID   string `json:"image_id"`
	Name string `json:"image_name"`
}

// Attached is a volume that an instance has.
type Attached struct {
	ID        string `json:"volume_id"`
	Name      string `json:"volume_name"`
	Device    string `json:"device"`
	SizeBytes int64  `json:"size_bytes"`
}

// Instance is one machine (API.md §6).
type Instance struct {
	ID               string     `json:"instance_id"`
	Name             string     `json:"instance_name"`
	Description      string     `json:"description"`
	Status           string     `json:"status"` // pending, running, stopped, terminated, ceased, unknown
	TransitionStatus string     `json:"transition_status"`
	CreateTime       Time       `json:"create_time"`
	StatusTime       Time       `json:"status_time"`
	CPUs             int        `json:"vcpus_current"`
	Memory           int64      `json:"memory_current"` // MB
	Image            ImageRef   `json:"image"`          // what it was run from; it may be gone
	Size             int64      `json:"size"`           // GB of the system disk, rounded up
	SizeBytes        int64      `json:"size_bytes"`     // exactly
	Volumes          []Attached `json:"volumes"`        // without the system disk
	MixedJob         string     `json:"mixed_job"`      // an apply that began to write and has not finished
	Driver           string     `json:"driver"`         // managed (run by the server) or libvirt (somebody else's)
	Zone             string     `json:"zone"`
	NBDURIs          []string   `json:"nbd_uris"`      // where the system disk is served
	MissingBytes     int64      `json:"missing_bytes"` // still to be fetched from the repository
}

// InstancePage is one page of instances.
type InstancePage struct {
	Instances  []Instance `json:"instances"`
	TotalCount int        `json:"total_count"`
}

// InstanceFilter selects instances. Empty fields don't filter.
type InstanceFilter struct {
	IDs    []string // unknown ones are simply absent from the page
	Status []string // default: all but terminated and ceased
	Search string   // part of an id or a name, in any case
	Offset int
	Limit  int // 0: the server's page of 20 (Instances) or no limit (AllInstances)
}

// Instances gets one page, newest first.
func (c *Client) Instances(ctx context.Context, f InstanceFilter) (InstancePage, error) {
	q := url.Values{}
	setList(q, "instances", f.IDs)
	setList(q, "status", f.Status)
	set(q, "search_word", f.Search)
	setPage(q, f.Offset, f.Limit)
	var p InstancePage
	err := c.call(ctx, request{method: http.MethodGet, path: []string{instancesPath}, query: q}, &p)
	if p.Instances == nil {
		p.Instances = []Instance{}
	}
	return p, err
}

// AllInstances gets as many pages as hold f.Limit instances (0: all) from
// f.Offset on; see AllSnapshots.
func (c *Client) AllInstances(ctx context.Context, f InstanceFilter) (InstancePage, error) {
	total := 0
	rows, err := allPages(f.Offset, f.Limit, func(i Instance) string { return i.ID },
		func(offset, limit int) ([]Instance, int, error) {
			f.Offset, f.Limit = offset, limit
			p, err := c.Instances(ctx, f)
			total = p.TotalCount
			return p.Instances, p.TotalCount, err
		})
	return InstancePage{Instances: rows, TotalCount: total}, err
}

// Instance gets one instance; an *Error with status 404 if it does not exist.
func (c *Client) Instance(ctx context.Context, id string) (Instance, error) {
	p, err := c.Instances(ctx, InstanceFilter{IDs: []string{id}})
	if err != nil {
		return Instance{}, err
	}
	for _, i := range p.Instances {
		if i.ID == id {
			return i, nil
		}
	}
	return Instance{}, notFound("instance", id, c.zone)
}

// RunInstances asks for instances of an image.
type RunInstances struct {
	Image  string // img-…
	Name   string
	CPUs   int   // 0: one
	Memory int64 // MB; 0: 1024
	Count  int   // 0: one
}

// RunInstances starts the job; its ResourceIDs are the new instances. Their
// system disks are clones of the image and usable when it has ended.
func (c *Client) RunInstances(ctx context.Context, in RunInstances) (Job, error) {
	spec := map[string]any{"image_id": in.Image, "instance_name": in.Name}
	for key, n := range map[string]int64{"cpu": int64(in.CPUs), "memory": in.Memory, "count": int64(in.Count)} {
		if n != 0 {
			spec[key] = n
		}
	}
	return c.job(ctx, request{method: http.MethodPost, path: []string{instancesPath}, body: map[string]any{"instance": spec}})
}

// StartInstances starts the job that starts instances.
func (c *Client) StartInstances(ctx context.Context, ids ...string) (Job, error) {
	return c.power(ctx, "start", false, ids)
}

// StopInstances starts the job that asks guests to end, and ends those that do
// not in time; with force all at once.
func (c *Client) StopInstances(ctx context.Context, force bool, ids ...string) (Job, error) {
	return c.power(ctx, "stop", force, ids)
}

// RestartInstances is StopInstances, and StartInstances then.
func (c *Client) RestartInstances(ctx context.Context, force bool, ids ...string) (Job, error) {
	return c.power(ctx, "restart", force, ids)
}

func (c *Client) power(ctx context.Context, what string, force bool, ids []string) (Job, error) {
	return c.job(ctx, request{
		method: http.MethodPost, path: []string{instancesPath, what},
		body: map[string]any{"instances": ids, "force": force},
	})
}

// DeleteInstances starts the job that deletes instances with their system
// disks; their snapshots, and the volumes attached to them, survive.
func (c *Client) DeleteInstances(ctx context.Context, ids ...string) (Job, error) {
	return c.job(ctx, request{method: http.MethodDelete, path: []string{instancesPath, strings.Join(ids, ",")}})
}

// RenameInstance changes an instance's name or description at once.
func (c *Client) RenameInstance(ctx context.Context, id string, in Rename) error {
	return c.call(ctx, request{
		method: http.MethodPut, path: []string{instancesPath, id}, body: in.body("instance_name"),
	}, nil)
}

// Console opens what an instance's guest has written to its serial console by
// now, from byte from on; negative: that many bytes before the end.
func (c *Client) Console(ctx context.Context, id string, from int64) (*Export, error) {
	return c.stream(ctx, []string{instancesPath, id, "console"}, url.Values{"from": {strconv.FormatInt(from, 10)}}, "text/plain")
}

// AttachVolumes starts the job that gives volumes to an instance, running or
// stopped.
func (c *Client) AttachVolumes(ctx context.Context, instance string, ids ...string) (Job, error) {
	return c.job(ctx, request{
		method: http.MethodPost, path: []string{volumesPath, "attach"},
		body: map[string]any{"instance_id": instance, "volumes": ids},
	})
}

// DetachVolumes starts the job that takes volumes from their instances.
func (c *Client) DetachVolumes(ctx context.Context, ids ...string) (Job, error) {
	return c.job(ctx, request{
		method: http.MethodPost, path: []string{volumesPath, "detach"}, body: map[string]any{"volumes": ids},
	})
}
