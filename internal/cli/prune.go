package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"cairn/client"
)

// repoCommand holds what concerns the repository as a whole. Package main adds
// the commands that work without a server.
func (a *app) repoCommand() *cobra.Command {
	return group("repo", "Look after the repository", a.repoPrune())
}

func (a *app) repoPrune() *cobra.Command {
	var dryRun, emptyBin, yes bool
	var maxCopy string
	cmd := &cobra.Command{
		Use: "prune", Short: "Give the space back that nothing needs", Args: arity(0, 0),
		Long: `Find out what no snapshot needs any more, delete it, and wait for the end.
The server does this by itself when the time of deleted snapshots in the
recycle bin is over and when space runs low. Backups, restores and exports
may run meanwhile; a damaged repository is not pruned.

Snapshots in the recycle bin keep their space. --empty-bin ends them at once:
they cannot be brought back afterwards.

Parts of packs are freed by copying the rest, at most --max-copy bytes of it.
--dry-run tells what would be freed, and changes nothing.`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.run(func(ctx context.Context, s *session, _ []string) error {
			in := client.Prune{DryRun: dryRun, EmptyBin: emptyBin}
			if maxCopy != "" {
				var err error
				if in.MaxCopy, err = parseSize(maxCopy); err != nil {
					return s.usage("--max-copy: %s", err)
				}
			}
			if emptyBin && dryRun {
				return s.usage("--empty-bin ends snapshots for good, and --dry-run changes nothing; leave one of them out")
			}
			if emptyBin {
				if err := s.confirm(ctx, yes, "End all deleted snapshots now? They cannot be brought back."); err != nil {
					return err
				}
			}
			j, err := s.client.Prune(ctx, in)
			if err != nil {
				return err
			}
			if j, err = s.wait(ctx, j.ID, j.Action); err != nil {
				return err
			}
			return s.printPrune(j)
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only tell what would be freed")
	cmd.Flags().BoolVar(&emptyBin, "empty-bin", false, "end deleted snapshots at once")
	cmd.Flags().StringVar(&maxCopy, "max-copy", "", "copy at most `SIZE` to get at garbage (default: the server's setting)")
	yesFlag(cmd, &yes)
	return cmd
}

// pruned is a prune's job with its report as JSON instead of as a string.
type pruned struct {
	client.Job
	Report json.RawMessage `json:"report,omitempty"`
}

func (s *session) printPrune(j client.Job) error {
	r, ok := j.PruneReport()
	if s.output == outputJSON {
		doc := pruned{Job: j}
		if ok {
			doc.Report = json.RawMessage(j.Extra)
		}
		if err := s.printJSON(doc); err != nil {
			return err
		}
		return j.Err()
	}
	if err := j.Err(); err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("job %s ended without a report, so it is not known what was freed", j.ID)
	}
	freed, copied := "freed", "copied"
	if r.DryRun {
		freed, copied = "would free", "would copy"
	}
	copies := fmt.Sprintf("%s out of %d packs", exactBytes(r.CopiedBytes), r.CopiedPacks)
	if r.ReachableBytes > 0 {
		copies += ", which frees about " + formatBytes(r.ReachableBytes)
	}
	rows := []pair{
		{freed, fmt.Sprintf("%s in %d packs", exactBytes(r.FreedBytes), r.FreedPacks)},
		{copied, copies},
		{"garbage in packs that are partly needed", exactBytes(r.WasteBytes)},
		{"stored before", exactBytes(r.StoredBytes)},
		{"as of", r.AsOf.UTC().Format("2006-01-02T15:04:05Z")},
	}
	if r.CeasedPoints > 0 {
		rows = append(rows, pair{"snapshots ended", strconv.Itoa(r.CeasedPoints)})
	}
	if r.LeavingBytes > 0 {
		rows = append(rows, pair{"left to the next prune", exactBytes(r.LeavingBytes) + ", as a backup was running"})
	}
	if r.HealedPacks > 0 {
		rows = append(rows, pair{"damaged packs healed", strconv.Itoa(r.HealedPacks)})
	}
	if err := s.printPairs(rows); err != nil {
		return err
	}
	for _, why := range r.UntouchedWhy {
		s.note("left as it is: %s", why)
	}
	return nil
}

func (a *app) snapshotUndelete() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "undelete SNAPSHOT...", Short: "Bring deleted snapshots back out of the recycle bin", Args: arity(1, unlimited),
		Long: `Bring deleted snapshots back as long as they are in the recycle bin (two
hours by default). The deleted snapshots that they descend from come back too;
those that descend from them do not, unless they are named.`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			ids, err := s.snapshotsThatAre(ctx, []string{"deleted"}, args...)
			if err != nil {
				return err
			}
			j, err := s.client.UndeleteSnapshots(ctx, ids...)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	waitFlag(cmd, &wait)
	return cmd
}
