package client

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
)

// Scrub starts the job that reads and checks the whole repository. Its report
// is JSON in the job's Extra, see Job.ScrubReport.
func (c *Client) Scrub(ctx context.Context) (Job, error) {
	return c.job(ctx, request{method: http.MethodPost, path: []string{"repository", "scrub"}})
}

// ScrubReport is what a scrub found.
type ScrubReport struct {
	Points           int      `json:"points"`
	Blobs            int      `json:"blobs"`
	Chunks           int64    `json:"chunks"`
	Nodes            int64    `json:"nodes"`
	BytesRead        int64    `json:"bytes_read"`
	Damage           []Damage `json:"damage"`
	DamageCut        int      `json:"damage_cut"`        // findings beyond those listed
	DamagedSnapshots []string `json:"damaged_snapshots"` // those that cannot be restored whole
}

// Damage is one finding of a scrub.
type Damage struct {
	Blob     string `json:"blob"` // "" when the damage is not in one blob
	What     string `json:"what"`
	Snapshot string `json:"snapshot_id"`
	Offset   int64  `json:"offset"` // affected bytes of its volume; Length 0: none or all
	Length   int64  `json:"length"`
}

// Clean reports whether nothing is damaged.
func (r ScrubReport) Clean() bool {
	return len(r.Damage) == 0 && r.DamageCut == 0 && len(r.DamagedSnapshots) == 0
}

// ScrubReport decodes the report of an ended scrub job. ok is false when the
// job holds none, because it is another job or failed before it could report.
func (j Job) ScrubReport() (r ScrubReport, ok bool) {
	if !strings.HasPrefix(strings.TrimSpace(j.Extra), "{") || json.Unmarshal([]byte(j.Extra), &r) != nil {
		return ScrubReport{}, false
	}
	return r, true
}
