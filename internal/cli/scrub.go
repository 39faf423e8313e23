package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"cairn/client"
	"cairn/internal/errs"
)

func (a *app) scrubCommand() *cobra.Command {
	var repair bool
	var budget string
	cmd := &cobra.Command{
		Use: "scrub", Short: "Read and check everything that the repository holds", Args: arity(0, 0),
		Long: `Read and check everything that the repository holds, and wait for the end.
Exits with 0 if all is whole and with 3 if damage was found, also such damage
as a second copy could heal. With -o json stdout holds the job with the report
under the key "report". Nothing is changed, except that snapshots and packs are
marked as damaged or whole.

--repair heals what it can: manifests and trees from their second copy, chunks
from wherever the same chunk is stored again. To have it stored again, create
a full snapshot of the volume first. Then it checks everything once more.

--budget reads only so much, of what was not verified for longest.`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.run(func(ctx context.Context, s *session, _ []string) error {
			in := client.Scrub{Repair: repair}
			if budget != "" {
				var err error
				if in.Budget, err = parseSize(budget); err != nil {
					return s.usage("--budget: %s", err)
				}
			}
			if repair && budget != "" {
				return s.usage("--repair has to read everything; leave --budget out")
			}
			j, err := s.client.Scrub(ctx, in)
			if err != nil {
				return err
			}
			if j, err = s.wait(ctx, j.ID, j.Action); err != nil {
				return err
			}
			report, ok := j.ScrubReport()
			if err := s.printScrub(j, report, ok); err != nil {
				return err
			}
			switch {
			case ok && !report.Clean():
				return errs.New(errs.Corrupt, "%s", firstOf(j.Info, "the scrub found damage"))
			case j.Status == client.JobFailed:
				return j.Err()
			case !ok:
				return fmt.Errorf("job %s ended without a report, so nothing is known of the repository", j.ID)
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "heal what can be healed")
	cmd.Flags().StringVar(&budget, "budget", "", "read about `SIZE` only, of what was not verified for longest")
	return cmd
}

// scrubbed is a scrub's job with its report as JSON instead of as a string.
type scrubbed struct {
	client.Job
	Report json.RawMessage `json:"report,omitempty"`
}

func (s *session) printScrub(j client.Job, r client.ScrubReport, ok bool) error {
	if s.output == outputJSON {
		doc := scrubbed{Job: j}
		if ok {
			doc.Report = json.RawMessage(j.Extra)
		}
		return s.printJSON(doc)
	}
	if !ok {
		return s.printJob(j)
	}
	result := "clean"
	if !r.Clean() {
		result = fmt.Sprintf("%d findings, %d snapshots damaged", len(r.Damage)+r.DamageCut, len(r.DamagedSnapshots))
	}
	healed := "-"
	if len(r.HealedBlobs)+r.HealedPacks > 0 {
		healed = fmt.Sprintf("%d blobs from a second copy, %d packs from chunks stored elsewhere", len(r.HealedBlobs), r.HealedPacks)
	}
	if err := s.printPairs([]pair{
		{"result", result},
		{"healed", healed},
		{"snapshots", strconv.Itoa(r.Points)},
		{"blobs", strconv.Itoa(r.Blobs)},
		{"chunks", strconv.FormatInt(r.Chunks, 10)},
		{"nodes", strconv.FormatInt(r.Nodes, 10)},
		{"read", exactBytes(r.BytesRead)},
	}); err != nil || r.Clean() {
		return err
	}
	rows := make([][]string, len(r.Damage))
	for i, d := range r.Damage {
		where := "-"
		if d.Length > 0 {
			where = fmt.Sprintf("%d+%d", d.Offset, d.Length)
		}
		rows[i] = []string{dash(d.Snapshot), where, d.What, dash(d.Blob)}
	}
	if _, err := fmt.Fprintln(s.Out); err != nil {
		return err
	}
	defer func() {
		if r.DamageCut > 0 {
			s.note("%d more findings are not listed", r.DamageCut)
		}
	}()
	return s.printTable([]string{"snapshot", "bytes", "damage", "blob"}, rows)
}
