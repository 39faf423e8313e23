package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cairn/client"
)

func (a *app) snapshotCommand() *cobra.Command {
	return group("snapshot", "Snapshots: create, list, show, tree, rename, apply, create-volume, capture-instance, serve, export, delete, undelete",
		a.snapshotCreate(), a.snapshotList(), a.snapshotShow(), a.snapshotTree(), a.snapshotRename(),
		a.snapshotApply(), a.snapshotCreateVolume(), a.snapshotCaptureInstance(), a.snapshotServe(), a.snapshotUnserve(), a.snapshotExport(), a.snapshotDelete(), a.snapshotUndelete())
}

func (a *app) snapshotCreate() *cobra.Command {
	var in client.CreateSnapshots
	var wait bool
	cmd := &cobra.Command{
		Use: "create VOLUME|INSTANCE... --name NAME", Short: "Take one snapshot of each volume or instance, all at one instant", Args: arity(1, unlimited),
		Long: `Take one snapshot of each volume, all at one instant, all or none. The server
decides between full and incremental, and says in the job why it took a full
that nobody asked for; --full asks for one.

Of an instance its system disk is taken, while it runs on; name its volumes too
for the whole machine. Where the guest has an agent its filesystems are brought
to rest for that moment.`,
		Example:           "  cairn snapshot create data --name before-upgrade --wait\n  cairn snapshot create web web-data --name nightly",
		ValidArgsFunction: a.completeResources(unlimited),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			if in.Name == "" {
				return s.usage("--name is needed")
			}
			var err error
			if in.Resources, err = s.resources(ctx, args...); err != nil {
				return err
			}
			j, err := s.client.CreateSnapshots(ctx, in)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&in.Name, "name", "", "`NAME` of the snapshots")
	f.StringVar(&in.Description, "description", "", "`TEXT` about them")
	f.BoolVar(&in.Full, "full", false, "take a full, which begins a new chain")
	waitFlag(cmd, &wait)
	return cmd
}

func (a *app) snapshotList() *cobra.Command {
	var f client.SnapshotFilter
	var volume, kind, root string
	cmd := &cobra.Command{
		Use: "list", Short: "List snapshots, newest first", Args: arity(0, 0),
		Example:           "  cairn snapshot list --volume data --type full\n  cairn snapshot list --status deleted\n  cairn snapshot list --limit 20 --offset 40 -o json",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.run(func(ctx context.Context, s *session, _ []string) error {
			if err := s.checkPage(f.Offset, f.Limit); err != nil {
				return err
			}
			if err := s.listFilter(ctx, &f, volume, kind, root); err != nil {
				return err
			}
			p, err := s.client.AllSnapshots(ctx, f)
			if err != nil {
				return err
			}
			if s.output == outputJSON {
				return s.printJSON(p)
			}
			rows := make([][]string, len(p.Snapshots))
			for i, v := range p.Snapshots {
				rows[i] = []string{
					v.ID, dash(v.Name), v.Resource.ID, kindOf(v), snapshotState(v), dash(v.SnapshotTime.String()),
					formatBytes(v.SizeBytes), dash(strings.TrimPrefix(v.ParentID, client.ParentSelf)), mark(bool(v.IsHead), "head"),
				}
			}
			defer s.more(f.Offset, len(p.Snapshots), p.TotalCount)
			return s.printTable([]string{"snapshot", "name", "volume", "type", "status", "taken", "added", "parent", "head"}, rows)
		}),
	}
	fl := cmd.Flags()
	fl.StringVar(&volume, "volume", "", "only snapshots of this `VOLUME`")
	fl.StringVar(&kind, "type", "", "only this `TYPE`: full or incremental")
	fl.StringSliceVar(&f.Status, "status", nil, "only these `STATES`: pending, available, suspended, deleted, ceased")
	fl.StringVar(&f.Search, "search", "", "only ids and names that contain `WORD`")
	fl.StringVar(&root, "root", "", "only the incrementals of this full `SNAPSHOT`")
	fl.IntVar(&f.Limit, "limit", 0, "at most `N` (default all)")
	fl.IntVar(&f.Offset, "offset", 0, "leave out the first `N`")
	completeFlag(cmd, "type", "full", "incremental")
	completeFlag(cmd, "status", "pending", "available", "suspended", "deleted", "ceased")
	completeFlagBy(cmd, "volume", a.completeVolumes(unlimited))
	completeFlagBy(cmd, "root", a.completeSnapshots(unlimited))
	return cmd
}

// listFilter fills in what the flags say in the user's words.
func (s *session) listFilter(ctx context.Context, f *client.SnapshotFilter, volume, kind, root string) error {
	switch strings.ToLower(kind) {
	case "":
	case "full", "is_full":
		f.Type = client.Full
	case "incremental", "is_incremental":
		f.Type = client.Incremental
	default:
		return s.usage("--type is full or incremental, not %q", kind)
	}
	if volume != "" {
		ids, err := s.resources(ctx, volume)
		if err != nil {
			return err
		}
		f.ResourceID = ids[0]
	}
	if root != "" {
		id, err := s.snapshot(ctx, root)
		if err != nil {
			return err
		}
		f.RootID = id
	}
	return nil
}

func kindOf(v client.Snapshot) string {
	if v.IsFull() {
		return "full"
	}
	return "incremental"
}

// snapshotState is the status with what is going on or wrong.
func snapshotState(v client.Snapshot) string {
	state := v.Status
	if v.TransitionStatus != "" {
		state += "/" + v.TransitionStatus
	}
	if v.Status == "pending" && v.Progress > 0 {
		state += fmt.Sprintf(" %.0f%%", 100*v.Progress)
	}
	return state + mark(bool(v.Damaged), ",damaged")
}

func (a *app) snapshotShow() *cobra.Command {
	return &cobra.Command{
		Use: "show SNAPSHOT", Short: "Show one snapshot", Args: arity(1, 1), ValidArgsFunction: a.completeSnapshots(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			id, err := s.snapshot(ctx, args[0])
			if err != nil {
				return err
			}
			return s.showSnapshot(ctx, id)
		}),
	}
}

func (s *session) showSnapshot(ctx context.Context, id string) error {
	v, err := s.client.Snapshot(ctx, id)
	if err != nil {
		return err
	}
	if s.output == outputJSON {
		return s.printJSON(v)
	}
	chain, unique := "", ""
	if v.IsFull() {
		chain = fmt.Sprintf("%d snapshots, %d MiB, newest %s", v.TotalCount, v.TotalSize, dash(v.LatestTime.String()))
	}
	if v.UniqueBytes != nil {
		unique = exactBytes(*v.UniqueBytes)
	}
	return s.printPairs([]pair{
		{"snapshot", v.ID},
		{"name", v.Name},
		{"description", v.Description},
		{"volume", strings.TrimSpace(v.Resource.ID + " " + v.Resource.Name)},
		{"type", kindOf(v)},
		{"because", v.Reason},
		{"status", snapshotState(v)},
		{"taken", v.SnapshotTime.String()},
		{"head", mark(bool(v.IsHead), "yes: the next incremental builds on it")},
		{"parent", strings.TrimPrefix(v.ParentID, client.ParentSelf)},
		{"root", v.RootID},
		{"chain", chain},
		{"volume size", exactBytes(v.VirtualSize)},
		{"added", exactBytes(v.SizeBytes)},
		{"unique", unique},
		{"consistency", v.Consistency},
		{"changes by", v.CBT},
		{"group", v.GroupID},
		{"served at", strings.Join(v.NBDURIs, " ")},
		{"clients", count(v.Clients)},
		{"created", v.CreateTime.String()},
		{"changed", v.StatusTime.String()},
	})
}

func (a *app) snapshotRename() *cobra.Command {
	var flags renameFlags
	cmd := &cobra.Command{
		Use: "rename SNAPSHOT [NAME]", Short: "Change a snapshot's name or description", Args: arity(1, 2),
		ValidArgsFunction: a.completeSnapshots(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			in, err := flags.rename(s, args[1:])
			if err != nil {
				return err
			}
			id, err := s.snapshot(ctx, args[0])
			if err != nil {
				return err
			}
			if err := s.client.RenameSnapshot(ctx, id, in); err != nil {
				return err
			}
			return s.showSnapshot(ctx, id)
		}),
	}
	flags.add(cmd)
	return cmd
}

func (a *app) snapshotApply() *cobra.Command {
	var yes, wait, force bool
	cmd := &cobra.Command{
		Use: "apply SNAPSHOT...", Short: "Roll volumes back in place", Args: arity(1, unlimited),
		Long: `Roll the volume of each snapshot back to it, in place. What was written since
is lost unless a later snapshot has it; later snapshots stay. At most one
snapshot of each volume. On a terminal the command asks first.

A running instance is stopped, and started again when all is as it was.

A managed volume shows the old state at once, and is filled in the background.
While clients are connected to it nothing is done; with --force their
connections end, and the volume is served under a new name (see cairn volume
connect), so that no client can go on with what it had in mind.`,
		ValidArgsFunction: a.completeSnapshots(unlimited),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			ids, err := s.snapshots(ctx, args...)
			if err != nil {
				return err
			}
			if err := s.confirm(ctx, yes, "Overwrite the volumes of %s with that state? What was written since their last snapshot is lost.", list(ids, "snapshot")); err != nil {
				return err
			}
			apply := s.client.ApplySnapshots
			if force {
				apply = s.client.ForceApplySnapshots
			}
			j, err := apply(ctx, ids...)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "end the connections of clients")
	yesFlag(cmd, &yes)
	waitFlag(cmd, &wait)
	return cmd
}

func (a *app) snapshotCreateVolume() *cobra.Command {
	var in client.CloneSnapshot
	var wait bool
	cmd := &cobra.Command{
		Use: "create-volume SNAPSHOT --name NAME", Short: "Make a new volume with a snapshot's content", Args: arity(1, 1),
		Long: `Make a volume with a snapshot's content. It is usable when the job has ended,
within moments; the server fetches its bytes from the repository in the
background. With --on-demand it does not, and only what is read is fetched;
cairn volume fill changes that.`,
		ValidArgsFunction: a.completeSnapshots(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			if in.VolumeName == "" {
				return s.usage("--name is needed")
			}
			id, err := s.snapshot(ctx, args[0])
			if err != nil {
				return err
			}
			j, err := s.client.CreateVolumeFromSnapshot(ctx, id, in)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	cmd.Flags().StringVar(&in.VolumeName, "name", "", "`NAME` of the volume")
	cmd.Flags().BoolVar(&in.OnDemand, "on-demand", false, "leave its bytes in the repository until they are read")
	waitFlag(cmd, &wait)
	return cmd
}

func (a *app) snapshotCaptureInstance() *cobra.Command {
	var name string
	var wait bool
	cmd := &cobra.Command{
		Use: "capture-instance SNAPSHOT --name NAME", Short: "Make an image of an instance's snapshot", Args: arity(1, 1),
		Long: `Make an image of an instance's snapshot, from which instances can be run. It
takes moments and no space, and lives on when the snapshot is deleted.`,
		Example:           "  cairn snapshot capture-instance nightly --name golden --wait\n  cairn instance run --image golden --name web2",
		ValidArgsFunction: a.completeSnapshots(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			if name == "" {
				return s.usage("--name is needed")
			}
			id, err := s.snapshot(ctx, args[0])
			if err != nil {
				return err
			}
			j, err := s.client.CaptureInstanceFromSnapshot(ctx, id, name)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	cmd.Flags().StringVar(&name, "name", "", "`NAME` of the image")
	waitFlag(cmd, &wait)
	return cmd
}

func (a *app) snapshotDelete() *cobra.Command {
	var yes, dryRun, wait bool
	cmd := &cobra.Command{
		Use: "delete SNAPSHOT...", Short: "Delete snapshots and all that descend from them", Args: arity(1, unlimited),
		Long: `Delete snapshots and all that descend from them; a full takes its whole chain.
--dry-run tells what would go, and changes nothing. On a terminal the command
asks first.`,
		ValidArgsFunction: a.completeSnapshots(unlimited),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			ids, err := s.snapshots(ctx, args...)
			if err != nil {
				return err
			}
			if dryRun {
				plan, err := s.client.PlanDeleteSnapshots(ctx, ids...)
				if err != nil {
					return err
				}
				return s.printPlan(ctx, plan)
			}
			if !yes && isTerminal(s.In) {
				plan, err := s.client.PlanDeleteSnapshots(ctx, ids...)
				if err != nil {
					return err
				}
				if err := s.confirm(ctx, yes, "Delete %s, which frees %s?", list(plan.Snapshots, "snapshot"), formatBytes(plan.FreedBytes)); err != nil {
					return err
				}
			}
			j, err := s.client.DeleteSnapshots(ctx, ids...)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only tell what would be deleted")
	yesFlag(cmd, &yes)
	waitFlag(cmd, &wait)
	return cmd
}

func (s *session) printPlan(ctx context.Context, plan client.DeletePlan) error {
	if s.output == outputJSON {
		return s.printJSON(plan)
	}
	rows := make([][]string, 0, len(plan.Snapshots))
	for ids := range slices.Chunk(plan.Snapshots, 100) {
		p, err := s.client.AllSnapshots(ctx, client.SnapshotFilter{IDs: ids})
		if err != nil {
			return err
		}
		for _, id := range ids {
			row := []string{id, "-", "-", "-", "-"}
			if i := slices.IndexFunc(p.Snapshots, func(v client.Snapshot) bool { return v.ID == id }); i >= 0 {
				v := p.Snapshots[i]
				row = []string{id, dash(v.Name), v.Resource.ID, kindOf(v), dash(v.SnapshotTime.String())}
			}
			rows = append(rows, row)
		}
	}
	if err := s.printTable([]string{"would delete", "name", "volume", "type", "taken"}, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(s.Out, "\n%d snapshots, %s freed\n", len(plan.Snapshots), exactBytes(plan.FreedBytes))
	return err
}

// list names a few objects in a sentence.
func list(ids []string, kind string) string {
	const few = 5
	if len(ids) == 1 {
		return kind + " " + ids[0]
	}
	names := strings.Join(ids[:min(len(ids), few)], ", ")
	if len(ids) > few {
		names += fmt.Sprintf(" and %d more", len(ids)-few)
	}
	return fmt.Sprintf("%d %ss (%s)", len(ids), kind, names)
}
