package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Scrub is what a scrub does. The zero value reads and checks everything.
type Scrub struct {
	Repair bool  // heal what can be healed
	Budget int64 // bytes to read, of what was not verified for longest; 0: everything
}

// Scrub starts the job that reads and checks the repository. Its report is
// JSON in the job's Extra, see Job.ScrubReport.
func (c *Client) Scrub(ctx context.Context, in Scrub) (Job, error) {
	query := url.Values{}
	if in.Repair {
		query.Set("repair", "1")
	}
	if in.Budget > 0 {
		query.Set("budget", strconv.FormatInt(in.Budget, 10))
	}
	return c.job(ctx, request{method: http.MethodPost, path: []string{"repository", "scrub"}, query: query})
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
	HealedBlobs      []string `json:"healed_blobs"`      // copies that a repair wrote anew
	HealedPacks      int      `json:"healed_packs"`      // damaged packs whose chunks were found elsewhere
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
