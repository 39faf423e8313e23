package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// JobFilter selects jobs. Empty fields don't filter.
type JobFilter struct {
	Status     []string
	ResourceID string // jobs whose ResourceIDs hold it
	Offset     int
	Limit      int // 0: the server's page of 20 (Jobs) or no limit (AllJobs)
}

// job makes a call that answers with a job.
func (c *Client) job(ctx context.Context, r request) (Job, error) {
	var j Job
	if err := c.call(ctx, r, &j); err != nil {
		return Job{}, err
	}
	if j.ID == "" {
		return Job{}, fmt.Errorf("%s does not answer like a Cairn server: its job has no id", c.server)
	}
	return j.whole(), nil
}

// whole makes absent lists empty, so that they encode as such again.
func (j Job) whole() Job {
	if j.ResourceIDs == nil {
		j.ResourceIDs = []string{}
	}
	return j
}

// Job gets one job.
func (c *Client) Job(ctx context.Context, id string) (Job, error) {
	return c.job(ctx, request{method: http.MethodGet, path: []string{"job", id}})
}

// Jobs gets one page, newest first.
func (c *Client) Jobs(ctx context.Context, f JobFilter) (JobPage, error) {
	q := url.Values{}
	setList(q, "status", f.Status)
	set(q, "resource_id", f.ResourceID)
	setPage(q, f.Offset, f.Limit)
	var p JobPage
	err := c.call(ctx, request{method: http.MethodGet, path: []string{"jobs"}, query: q}, &p)
	if p.Jobs == nil {
		p.Jobs = []Job{}
	}
	for i := range p.Jobs {
		p.Jobs[i] = p.Jobs[i].whole()
	}
	return p, err
}

// AllJobs gets as many pages as hold f.Limit jobs (0: all) from f.Offset on;
// see AllSnapshots.
func (c *Client) AllJobs(ctx context.Context, f JobFilter) (JobPage, error) {
	total := 0
	rows, err := allPages(f.Offset, f.Limit, func(j Job) string { return j.ID },
		func(offset, limit int) ([]Job, int, error) {
			f.Offset, f.Limit = offset, limit
			p, err := c.Jobs(ctx, f)
			total = p.TotalCount
			return p.Jobs, p.TotalCount, err
		})
	return JobPage{Jobs: rows, TotalCount: total}, err
}

// UnfinishedJobs lists the zone's jobs that have not ended.
func (c *Client) UnfinishedJobs(ctx context.Context) ([]Job, error) {
	jobs := []Job{}
	err := c.call(ctx, request{method: http.MethodGet, path: []string{"unfinished_jobs"}}, &jobs)
	for i := range jobs {
		jobs[i] = jobs[i].whole()
	}
	return jobs, err
}

// CancelJob asks the server to stop a job and undo what it had begun. The
// answer may still be unfinished: wait for its end.
func (c *Client) CancelJob(ctx context.Context, id string) (Job, error) {
	return c.job(ctx, request{method: http.MethodPost, path: []string{"job", id, "cancel"}})
}

// Watch calls fn for each status change of any job of the zone, until fn
// fails (its error is returned), ctx ends, or the stream breaks. connected, if
// not nil, is called once when the server has begun to send, so that no later
// change is missed.
func (c *Client) Watch(ctx context.Context, connected func(), fn func(Job) error) error {
	resp, err := c.do(ctx, request{method: http.MethodGet, path: []string{"notifier", "stream"}, accept: "text/event-stream"})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	events := bufio.NewScanner(resp.Body)
	events.Buffer(make([]byte, 0, 4096), maxAnswer)
	var name string
	var data []byte
	for events.Scan() {
		line := events.Bytes()
		if len(line) > 0 {
			if v, ok := field(line, "event"); ok {
				name = string(v)
			} else if v, ok := field(line, "data"); ok {
				data = append(append(data, v...), '\n')
			}
			continue
		}
		if connected != nil {
			connected()
			connected = nil
		}
		if name == "message" && len(bytes.TrimSpace(data)) > 0 {
			var j Job
			if err := json.Unmarshal(data, &j); err != nil {
				return fmt.Errorf("%s sent an event that is no job: %w", c.server, err)
			}
			if err := fn(j.whole()); err != nil {
				return err
			}
		}
		name, data = "", data[:0]
	}
	if err := events.Err(); err != nil {
		return c.transportError(ctx, err)
	}
	return c.transportError(ctx, errors.New("the event stream ended"))
}

// field gives the value of a line of a server-sent event.
func field(line []byte, name string) ([]byte, bool) {
	v, ok := bytes.CutPrefix(line, []byte(name+":"))
	return bytes.TrimPrefix(v, []byte(" ")), ok
}
