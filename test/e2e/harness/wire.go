package harness

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// jobLimit bounds the wait for one job. Jobs of these tests take far less; a
// job that runs into it hangs.
const jobLimit = 90 * time.Second

// Resource names what a snapshot is of.
type Resource struct {
	ID   string `json:"resource_id"`
	Type string `json:"resource_type"`
	Name string `json:"resource_name"`
}

// Snapshot is the object of API.md §1.
type Snapshot struct {
	CBT            string   `json:"cbt"`
	ID             string   `json:"snapshot_id"`
	Name           string   `json:"snapshot_name"`
	Description    string   `json:"description"`
	Type           string   `json:"snapshot_type"`
	Status         string   `json:"status"`
	Transition     string   `json:"transition_status"`
	CreateTime     string   `json:"create_time"`
	StatusTime     string   `json:"status_time"`
	SnapshotTime   string   `json:"snapshot_time"`
	IsTaken        int      `json:"is_taken"`
	IsHead         int      `json:"is_head"`
	HeadChain      int      `json:"head_chain"`
	RootID         string   `json:"root_id"`
	ParentID       string   `json:"parent_id"`
	Size           int      `json:"size"`
	TotalSize      int      `json:"total_size"`
	TotalCount     int      `json:"total_count"`
	LatestSnapshot string   `json:"lastest_snapshot_time"`
	Resource       Resource `json:"resource"`
	VirtualSize    int64    `json:"virtual_size"`
	SizeBytes      int64    `json:"size_bytes"`
	Progress       float64  `json:"progress"`
	GroupID        string   `json:"group_id"`
	Consistency    string   `json:"consistency"`
	NBDURIs        []string `json:"nbd_uris"`
	Clients        int      `json:"clients"`
}

// Volume is the object of API.md §6.
type Volume struct {
	ID          string `json:"volume_id"`
	Name        string `json:"volume_name"`
	Type        int    `json:"volume_type"`
	Description string `json:"description"`
	Size        int    `json:"size"`
	SizeBytes   int64  `json:"size_bytes"`
	Status      string `json:"status"`
	Transition  string `json:"transition_status"`
	CreateTime  string `json:"create_time"`
	StatusTime  string `json:"status_time"`
	Driver      string `json:"driver"`
	Path        string `json:"path"`
	MixedJob    string `json:"mixed_job"`

	NBDURIs      []string `json:"nbd_uris"`
	Clients      int      `json:"clients"`
	MissingBytes int64    `json:"missing_bytes"`
}

// Job is the object of API.md §3.
type Job struct {
	ID           string   `json:"job_id"`
	Action       string   `json:"action"`
	Status       string   `json:"status"`
	RequestID    string   `json:"request_id"`
	CreateTime   string   `json:"create_time"`
	BeginTime    string   `json:"begin_time"`
	FinishedTime string   `json:"finished_time"`
	Info         string   `json:"info"`
	Extra        string   `json:"extra"`
	Zone         string   `json:"zone"`
	ResourceIDs  []string `json:"resource_ids"`
	Progress     float64  `json:"progress"`
	DoneBytes    int64    `json:"done_bytes"`
	TotalBytes   int64    `json:"total_bytes"`
	Error        *struct {
		Code    any    `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// Ended reports whether the job is over.
func (j Job) Ended() bool { return j.Status == "successful" || j.Status == "failed" }

// Snapshots lists all pages for a query (without offset and limit).
func (c *Client) Snapshots(t TB, query url.Values) []Snapshot {
	t.Helper()
	var all []Snapshot
	for page := 0; page < 1000; page++ {
		q := url.Values{}
		for k, v := range query {
			q[k] = v
		}
		q.Set("limit", "100")
		q.Set("offset", fmt.Sprint(len(all)))
		var out struct {
			Snapshots []Snapshot `json:"snapshots"`
			Total     int        `json:"total_count"`
		}
		c.Get(t, "volume_snapshots?"+q.Encode()).Into(t, &out)
		all = append(all, out.Snapshots...)
		if len(all) >= out.Total || len(out.Snapshots) == 0 {
			if len(all) != out.Total {
				t.Fatalf("snapshot list gave %d rows but total_count %d", len(all), out.Total)
			}
			return all
		}
	}
	t.Fatalf("the snapshot list does not end")
	return nil
}

// AllStatuses are the statuses a snapshot filter knows.
const AllStatuses = "pending,available,suspended,deleted,ceased"

// Snapshot reads one point whatever its status; ok is false if it is unknown.
func (c *Client) Snapshot(t TB, id string) (s Snapshot, ok bool) {
	t.Helper()
	rows := c.Snapshots(t, url.Values{"snapshots": {id}, "status": {AllStatuses}})
	if len(rows) == 0 {
		return s, false
	}
	return rows[0], true
}

// MustSnapshot reads one point that has to be there.
func (c *Client) MustSnapshot(t TB, id string) Snapshot {
	t.Helper()
	s, ok := c.Snapshot(t, id)
	if !ok {
		t.Fatalf("snapshot %s is not listed", id)
	}
	return s
}

// Volumes lists all pages of volumes for a query.
func (c *Client) Volumes(t TB, query url.Values) []Volume {
	t.Helper()
	var all []Volume
	for page := 0; page < 1000; page++ {
		q := url.Values{"limit": {"100"}, "offset": {fmt.Sprint(len(all))}}
		for k, v := range query {
			q[k] = v
		}
		var out struct {
			Volumes []Volume `json:"volumes"`
			Total   int      `json:"total_count"`
		}
		c.Get(t, "volumes?"+q.Encode()).Into(t, &out)
		all = append(all, out.Volumes...)
		if len(all) >= out.Total || len(out.Volumes) == 0 {
			return all
		}
	}
	t.Fatalf("the volume list does not end")
	return nil
}

// MustVolume reads one volume that has to be there.
func (c *Client) MustVolume(t TB, id string) Volume {
	t.Helper()
	rows := c.Volumes(t, url.Values{"volumes": {id}})
	if len(rows) != 1 {
		t.Fatalf("volume %s: %d rows, want 1", id, len(rows))
	}
	return rows[0]
}

// Job reads a job.
func (c *Client) Job(t TB, id string) Job {
	t.Helper()
	var j Job
	c.Get(t, "job/"+id).Into(t, &j)
	return j
}

// Unfinished lists the jobs that have not ended.
func (c *Client) Unfinished(t TB) []Job {
	t.Helper()
	var js []Job
	c.Get(t, "unfinished_jobs").Into(t, &js)
	return js
}

// Begin decodes the 200 answer of a call that starts a job.
func (r Response) Begin(t TB) Job {
	t.Helper()
	var j Job
	r.Into(t, &j)
	if j.ID == "" {
		t.Fatalf("%s: the answer has no job_id: %s", r.Call, r.Body)
	}
	return j
}

// Wait polls a job until it ends.
func (c *Client) Wait(t TB, id string) Job {
	t.Helper()
	var j Job
	if !Poll(jobLimit, func() bool { j = c.Job(t, id); return j.Ended() }) {
		t.Fatalf("job %s (%s) is still %s after %v: it hangs", id, j.Action, j.Status, jobLimit)
	}
	return j
}

// OK waits for a job that has to succeed.
func (c *Client) OK(t TB, j Job) Job {
	t.Helper()
	j = c.Wait(t, j.ID)
	if j.Status != "successful" {
		t.Fatalf("job %s %s: %s, info %q, error %+v; want successful", j.ID, j.Action, j.Status, j.Info, j.Error)
	}
	return j
}

// WaitAll waits until no job is left unfinished.
func (c *Client) WaitAll(t TB) {
	t.Helper()
	var left []Job
	if !Poll(jobLimit, func() bool { left = c.Unfinished(t); return len(left) == 0 }) {
		t.Fatalf("after %v these jobs still hang: %+v", jobLimit, left)
	}
}

// Create posts a create call and waits; it returns the new ids in the order
// of the volumes.
func (c *Client) Create(t TB, name string, full bool, volumes ...string) []string {
	t.Helper()
	body := map[string]any{"resources": volumes, "snapshot_name": name}
	if full {
		body["is_full"] = 1
	}
	j := c.OK(t, c.Send(t, http.MethodPost, "volume_snapshots", body).Begin(t))
	if len(j.ResourceIDs) != len(volumes) {
		t.Fatalf("create of %d volumes gave ids %v", len(volumes), j.ResourceIDs)
	}
	byVolume := map[string]string{}
	for _, s := range c.Snapshots(t, url.Values{"snapshots": {strings.Join(j.ResourceIDs, ",")}}) {
		byVolume[s.Resource.ID] = s.ID
	}
	ids := make([]string, len(volumes))
	for i, v := range volumes {
		if ids[i] = byVolume[v]; ids[i] == "" {
			t.Fatalf("create gave no point of %s: %v", v, byVolume)
		}
	}
	return ids
}

// Apply rolls volumes back and waits.
func (c *Client) Apply(t TB, snapshots ...string) Job {
	t.Helper()
	return c.OK(t, c.Send(t, http.MethodPost, "volume_snapshots/apply",
		map[string]any{"snapshots": snapshots}).Begin(t))
}

// Clone makes a volume from a point, waits, and returns its id.
func (c *Client) Clone(t TB, snapshot, name string) string {
	t.Helper()
	j := c.OK(t, c.Send(t, http.MethodPost, "volume_snapshots/create_volume/"+snapshot,
		map[string]any{"volume_name": name}).Begin(t))
	if len(j.ResourceIDs) != 1 {
		t.Fatalf("create_volume gave ids %v, want one", j.ResourceIDs)
	}
	return j.ResourceIDs[0]
}

// DeleteSnapshots deletes points with their descendants and waits.
func (c *Client) DeleteSnapshots(t TB, ids ...string) Job {
	t.Helper()
	return c.OK(t, c.Do(t, Request{Method: http.MethodDelete,
		Path: "volume_snapshots/" + strings.Join(ids, ",")}).Begin(t))
}

// DeleteVolumes deletes volumes and waits.
func (c *Client) DeleteVolumes(t TB, ids ...string) Job {
	t.Helper()
	return c.OK(t, c.Do(t, Request{Method: http.MethodDelete,
		Path: "volumes/" + strings.Join(ids, ",")}).Begin(t))
}

// CreateVolume makes an empty managed volume of an exact size.
func (c *Client) CreateVolume(t TB, name string, sizeBytes int64) string {
	t.Helper()
	j := c.OK(t, c.Send(t, http.MethodPost, "volumes",
		map[string]any{"volume_name": name, "size_bytes": sizeBytes}).Begin(t))
	if len(j.ResourceIDs) != 1 {
		t.Fatalf("CreateVolume gave ids %v, want one", j.ResourceIDs)
	}
	return j.ResourceIDs[0]
}

// Import makes a managed volume from a content.
func (c *Client) Import(t TB, name string, m *Image) string {
	t.Helper()
	q := url.Values{"volume_name": {name}, "size_bytes": {fmt.Sprint(m.Size())}}
	j := c.OK(t, c.Upload(t, "volumes/import?"+q.Encode(), m.Reader(), m.Size()).Begin(t))
	if len(j.ResourceIDs) != 1 {
		t.Fatalf("import gave ids %v, want one", j.ResourceIDs)
	}
	return j.ResourceIDs[0]
}

// Register makes a file a volume; only Local clients may.
func (c *Client) Register(t TB, name, path string) Volume {
	t.Helper()
	var v Volume
	c.Send(t, http.MethodPost, "volumes/register",
		map[string]any{"path": path, "volume_name": name}).Into(t, &v)
	return v
}

// WantContent exports a volume or a snapshot (kind "volumes" or
// "volume_snapshots") and compares every byte.
func (c *Client) WantContent(t TB, kind, id string, want *Image) {
	t.Helper()
	r := c.Stream(t, kind+"/"+id+"/export?format=raw", func(body io.Reader) error {
		if at := want.Differs(body); at != nil {
			return fmt.Errorf("content of %s is wrong: %w", id, at)
		}
		return nil
	})
	if r.Status != http.StatusOK {
		t.Fatalf("export of %s answered %d %s", id, r.Status, r.Body)
	}
}

// Export reads a volume's or a snapshot's whole content, for small ones.
func (c *Client) Export(t TB, kind, id string) (content []byte, status int) {
	t.Helper()
	r := c.Stream(t, kind+"/"+id+"/export?format=raw", func(body io.Reader) (err error) {
		content, err = io.ReadAll(body)
		return err
	})
	return content, r.Status
}

// SlowExport exports a volume, stops after the first bytes to run meanwhile,
// and reads on. err is a cut stream; differs compares what came.
func (c *Client) SlowExport(id string, want *Image, meanwhile func()) (status int, differs, err error) {
	hr, cancel, err := c.newRequest(Request{Method: http.MethodGet, Path: "volumes/" + id + "/export"}, nil)
	if err != nil {
		return 0, nil, err
	}
	defer cancel()
	resp, err := c.hc.Do(hr)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	first := make([]byte, 1000)
	if _, err := io.ReadFull(resp.Body, first); err != nil {
		return resp.StatusCode, nil, err
	}
	meanwhile()
	differs = want.Differs(io.MultiReader(bytes.NewReader(first), resp.Body))
	// Read to the end, so that a cut stream shows whatever differed first.
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, differs, err
}

// ScrubClean runs a scrub that must find nothing.
func (c *Client) ScrubClean(t TB) {
	t.Helper()
	j := c.Wait(t, c.Send(t, http.MethodPost, "repository/scrub", map[string]any{}).Begin(t).ID)
	if j.Status != "successful" {
		t.Fatalf("scrub is not clean: %s, info %q, report %s", j.Status, j.Info, j.Extra)
	}
}

// IDs are the ids of rows, sorted.
func IDs(rows []Snapshot) []string {
	ids := make([]string, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	slices.Sort(ids)
	return ids
}
