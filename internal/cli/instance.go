package cli

import (
	"context"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/client"
)

func (a *app) instanceCommand() *cobra.Command {
	return group("instance", "Instances, machines that run here: run, list, show, start, stop, restart, console, rename, delete",
		a.instanceRun(), a.instanceList(), a.instanceShow(), a.instanceStart(), a.instanceStop(), a.instanceRestart(),
		a.instanceConsole(), a.instanceRename(), a.instanceDelete())
}

func (a *app) instanceRun() *cobra.Command {
	var in client.RunInstances
	var image, memory string
	var wait bool
	cmd := &cobra.Command{
		Use: "run --image IMAGE --name NAME", Short: "Run an instance from an image", Args: arity(0, 0),
		Long: `Run an instance from an image. Its system disk is a clone of the image, usable
at once; the server fetches its bytes in the background. The machine goes on
when the server stops, and is there when that is back.`,
		Example:           "  cairn instance run --image debian --name web --memory 2G --wait\n  cairn instance run --image golden --name worker --cpus 2 --count 3",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.run(func(ctx context.Context, s *session, _ []string) error {
			if in.Name == "" || image == "" {
				return s.usage("--image and --name are needed")
			}
			bytes, err := parseSize(memory)
			if err != nil {
				return s.usage("--memory: %s", err)
			}
			in.Memory = (bytes + 1<<20 - 1) >> 20
			if in.Image, err = s.image(ctx, image); err != nil {
				return err
			}
			j, err := s.client.RunInstances(ctx, in)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&image, "image", "", "`IMAGE` to run, by id or name")
	f.StringVar(&in.Name, "name", "", "`NAME` of the instance")
	f.IntVar(&in.CPUs, "cpus", 1, "`N` processors")
	f.StringVar(&memory, "memory", "1G", "`SIZE` of the memory in GB (2^30), or with a unit: 512M, 1.5G")
	f.IntVar(&in.Count, "count", 1, "run `N` of them")
	completeFlagBy(cmd, "image", a.completeImages(unlimited))
	waitFlag(cmd, &wait)
	return cmd
}

func (a *app) instanceList() *cobra.Command {
	var f client.InstanceFilter
	cmd := &cobra.Command{
		Use: "list", Short: "List instances, newest first", Args: arity(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.run(func(ctx context.Context, s *session, _ []string) error {
			if err := s.checkPage(f.Offset, f.Limit); err != nil {
				return err
			}
			p, err := s.client.AllInstances(ctx, f)
			if err != nil {
				return err
			}
			if s.output == outputJSON {
				return s.printJSON(p)
			}
			rows := make([][]string, len(p.Instances))
			for i, v := range p.Instances {
				rows[i] = []string{
					v.ID, dash(v.Name), instanceState(v), strconv.Itoa(v.CPUs), formatBytes(v.Memory << 20),
					formatBytes(v.SizeBytes), strconv.Itoa(len(v.Volumes)), v.CreateTime.String(),
				}
			}
			defer s.more(f.Offset, len(p.Instances), p.TotalCount)
			return s.printTable([]string{"instance", "name", "status", "cpus", "memory", "disk", "volumes", "created"}, rows)
		}),
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&f.Status, "status", nil, "only these `STATES`: pending, running, stopped, terminated, ceased, unknown")
	fl.StringVar(&f.Search, "search", "", "only ids and names that contain `WORD`")
	fl.IntVar(&f.Limit, "limit", 0, "at most `N` (default all)")
	fl.IntVar(&f.Offset, "offset", 0, "leave out the first `N`")
	completeFlag(cmd, "status", "pending", "running", "stopped", "terminated", "ceased", "unknown")
	return cmd
}

// instanceState is the status with what is going on or wrong.
func instanceState(v client.Instance) string {
	state := v.Status
	if v.TransitionStatus != "" {
		state += "/" + v.TransitionStatus
	}
	return state + mark(v.MixedJob != "", ",mixed")
}

func (a *app) instanceShow() *cobra.Command {
	return &cobra.Command{
		Use: "show INSTANCE", Short: "Show one instance", Args: arity(1, 1), ValidArgsFunction: a.completeInstances(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			id, err := s.instance(ctx, args[0])
			if err != nil {
				return err
			}
			return s.showInstance(ctx, id)
		}),
	}
}

func (s *session) showInstance(ctx context.Context, id string) error {
	v, err := s.client.Instance(ctx, id)
	if err != nil {
		return err
	}
	if s.output == outputJSON {
		return s.printJSON(v)
	}
	mixed := ""
	if v.MixedJob != "" {
		mixed = "the system disk is a mixture of two states until an apply is finished (job " + v.MixedJob + ")"
	}
	pairs := []pair{
		{"instance", v.ID},
		{"name", v.Name},
		{"description", v.Description},
		{"status", instanceState(v)},
		{"driver", v.Driver},
		{"mixed", mixed},
		{"cpus", strconv.Itoa(v.CPUs)},
		{"memory", formatBytes(v.Memory << 20)},
		{"image", strings.TrimSpace(v.Image.ID + " " + v.Image.Name)},
		{"disk", exactBytes(v.SizeBytes)},
	}
	for _, d := range v.Volumes {
		pairs = append(pairs, pair{d.Device, strings.TrimSpace(d.ID + " " + d.Name)})
	}
	missing := ""
	if v.MissingBytes > 0 {
		missing = formatBytes(v.MissingBytes) + " of the disk are still to be fetched from the repository; it is usable all the same"
	}
	return s.printPairs(append(pairs, []pair{
		{"missing", missing},
		{"zone", v.Zone},
		{"created", v.CreateTime.String()},
		{"changed", v.StatusTime.String()},
	}...))
}

func (a *app) instanceStart() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "start INSTANCE...", Short: "Start instances", Args: arity(1, unlimited),
		ValidArgsFunction: a.completeInstances(unlimited),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			ids, err := s.instances(ctx, args...)
			if err != nil {
				return err
			}
			j, err := s.client.StartInstances(ctx, ids...)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	waitFlag(cmd, &wait)
	return cmd
}

const stopping = `A guest is asked to end, as by its power button. One that has not ended in time
(cairn serve --stop-grace) is ended, as by a power cut; with --force all are, at
once.`

func (a *app) instanceStop() *cobra.Command {
	return a.endCommand("stop", "Stop instances", "Stop instances. "+stopping,
		func(ctx context.Context, s *session, force bool, ids []string) (client.Job, error) {
			return s.client.StopInstances(ctx, force, ids...)
		})
}

func (a *app) instanceRestart() *cobra.Command {
	return a.endCommand("restart", "Stop and start instances", "Stop instances and start them again. "+stopping,
		func(ctx context.Context, s *session, force bool, ids []string) (client.Job, error) {
			return s.client.RestartInstances(ctx, force, ids...)
		})
}

func (a *app) endCommand(verb, short, long string, do func(ctx context.Context, s *session, force bool, ids []string) (client.Job, error)) *cobra.Command {
	var force, wait bool
	cmd := &cobra.Command{
		Use: verb + " INSTANCE...", Short: short, Args: arity(1, unlimited), Long: long,
		ValidArgsFunction: a.completeInstances(unlimited),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			ids, err := s.instances(ctx, args...)
			if err != nil {
				return err
			}
			j, err := do(ctx, s, force, ids)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "do not ask the guests")
	waitFlag(cmd, &wait)
	return cmd
}

// consolePoll is how often a console that is followed is looked at.
const consolePoll = 500 * time.Millisecond

func (a *app) instanceConsole() *cobra.Command {
	var follow bool
	var tail int64
	cmd := &cobra.Command{
		Use: "console INSTANCE", Short: "Print what the guest wrote to its serial console", Args: arity(1, 1),
		Long: `Print what the guest wrote to its serial console, as it is: it may hold what
steers a terminal. With --follow go on until Ctrl-C.`,
		ValidArgsFunction: a.completeInstances(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			if tail < 0 {
				return s.usage("--tail is a number of bytes")
			}
			id, err := s.instance(ctx, args[0])
			if err != nil {
				return err
			}
			return s.console(ctx, id, follow, tail)
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as the guest writes more")
	cmd.Flags().Int64Var(&tail, "tail", 0, "only the last `N` bytes (default all)")
	return cmd
}

func (s *session) console(ctx context.Context, id string, follow bool, tail int64) error {
	from := -tail
	if follow && tail > 0 {
		// Only from the beginning does one know where one is.
		all, err := s.consoleFrom(ctx, id, 0, io.Discard)
		if err != nil {
			return err
		}
		from = max(0, all-tail)
	}
	for {
		n, err := s.consoleFrom(ctx, id, from, s.Out)
		if err != nil || !follow {
			return err
		}
		from += n
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(consolePoll):
		}
	}
}

func (s *session) consoleFrom(ctx context.Context, id string, from int64, to io.Writer) (n int64, err error) {
	text, err := s.client.Console(ctx, id, from)
	if err != nil {
		return 0, err
	}
	defer func() { _ = text.Close() }() // only read from
	return io.Copy(to, text)
}

func (a *app) instanceRename() *cobra.Command {
	var flags renameFlags
	cmd := &cobra.Command{
		Use: "rename INSTANCE [NAME]", Short: "Change an instance's name or description", Args: arity(1, 2),
		ValidArgsFunction: a.completeInstances(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			in, err := flags.rename(s, args[1:])
			if err != nil {
				return err
			}
			id, err := s.instance(ctx, args[0])
			if err != nil {
				return err
			}
			if err := s.client.RenameInstance(ctx, id, in); err != nil {
				return err
			}
			return s.showInstance(ctx, id)
		}),
	}
	flags.add(cmd)
	return cmd
}

func (a *app) instanceDelete() *cobra.Command {
	var yes, wait bool
	cmd := &cobra.Command{
		Use: "delete INSTANCE...", Short: "Delete instances with their system disks; their snapshots and volumes survive", Args: arity(1, unlimited),
		Long: `Delete instances, running or not, with their system disks. Their snapshots
survive: capture-instance makes an image of any of them. Volumes that were
attached are free again. On a terminal the command asks first.`,
		ValidArgsFunction: a.completeInstances(unlimited),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			ids, err := s.instances(ctx, args...)
			if err != nil {
				return err
			}
			if err := s.confirm(ctx, yes, "Delete %s? What was written to the system disk since its last snapshot is lost.", list(ids, "instance")); err != nil {
				return err
			}
			j, err := s.client.DeleteInstances(ctx, ids...)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	yesFlag(cmd, &yes)
	waitFlag(cmd, &wait)
	return cmd
}

func (a *app) volumeAttach() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "attach VOLUME... INSTANCE", Short: "Attach volumes to an instance, running or stopped", Args: arity(2, unlimited),
		Long: `Attach volumes to an instance. A guest that runs sees them at once; a Linux
guest finds each by its id in /dev/disk/by-id. A volume is attached to one
instance at most.`,
		ValidArgsFunction: a.completeResources(unlimited),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			last := len(args) - 1
			instance, err := s.instance(ctx, args[last])
			if err != nil {
				return err
			}
			ids, err := s.volumes(ctx, args[:last]...)
			if err != nil {
				return err
			}
			j, err := s.client.AttachVolumes(ctx, instance, ids...)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	waitFlag(cmd, &wait)
	return cmd
}

func (a *app) volumeDetach() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "detach VOLUME...", Short: "Detach volumes from their instances", Args: arity(1, unlimited),
		Long: `Detach volumes from the instances that have them. The guest of a running one is
asked to let go; unmount there first.`,
		ValidArgsFunction: a.completeVolumes(unlimited),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			ids, err := s.volumes(ctx, args...)
			if err != nil {
				return err
			}
			j, err := s.client.DetachVolumes(ctx, ids...)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	waitFlag(cmd, &wait)
	return cmd
}
