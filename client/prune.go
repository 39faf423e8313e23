package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Prune is what a prune may do.
type Prune struct {
	DryRun   bool  // only find out what it would free
	EmptyBin bool  // deleted snapshots cease at once, and cannot be brought back
	MaxCopy  int64 // bytes that may be copied to get at garbage; 0: the server's setting
}

// Prune starts the job that gives the space back which nothing needs. Its
// report is JSON in the job's Extra, see Job.PruneReport.
func (c *Client) Prune(ctx context.Context, in Prune) (Job, error) {
	query := url.Values{}
	if in.DryRun {
		query.Set("dry_run", "1")
	}
	if in.EmptyBin {
		query.Set("empty_bin", "1")
	}
	if in.MaxCopy > 0 {
		query.Set("max_copy", strconv.FormatInt(in.MaxCopy, 10))
	}
	return c.job(ctx, request{method: http.MethodPost, path: []string{"repository", "prune"}, query: query})
}

// PruneReport is what a prune did, or with DryRun would do. Bytes count all
// copies of what is stored.
type PruneReport struct {
	AsOf           time.Time `json:"as_of"` // when the mark began that all this rests on
	DryRun         bool      `json:"dry_run"`
	CeasedPoints   int       `json:"ceased_points"`
	StoredBytes    int64     `json:"stored_bytes"`    // of the whole repository before
	FreedBytes     int64     `json:"freed_bytes"`     //
	FreedPacks     int       `json:"freed_packs"`     //
	LeavingBytes   int64     `json:"leaving_bytes"`   // left to the next prune, as a backup was running
	WasteBytes     int64     `json:"waste_bytes"`     // garbage in packs that are partly needed
	ReachableBytes int64     `json:"reachable_bytes"` // dry run: about what copying would free of that
	CopiedBytes    int64     `json:"copied_bytes"`    //
	CopiedPacks    int       `json:"copied_packs"`    //
	UntouchedWhy   []string  `json:"untouched_why"`   // packs that could not be copied, and why
	StrayBytes     int64     `json:"stray_bytes"`     // of blobs that nobody had registered, in FreedBytes too
	HealedPacks    int       `json:"healed_packs"`    // damaged ones whose chunks were found elsewhere
}

// PruneReport decodes the report of an ended prune job. ok is false when the
// job holds none.
func (j Job) PruneReport() (r PruneReport, ok bool) {
	if !strings.HasPrefix(strings.TrimSpace(j.Extra), "{") || json.Unmarshal([]byte(j.Extra), &r) != nil {
		return PruneReport{}, false
	}
	return r, true
}

// UndeleteSnapshots starts the job that brings deleted points back out of the
// recycle bin, with their deleted ancestors; its ResourceIDs are all of them.
func (c *Client) UndeleteSnapshots(ctx context.Context, ids ...string) (Job, error) {
	return c.job(ctx, request{method: http.MethodPost, path: []string{"lease"}, body: map[string]any{"resources": ids}})
}
