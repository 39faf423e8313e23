package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"cairn/client"
	"cairn/internal/errs"
)

func (a *app) volumeCommand() *cobra.Command {
	return group("volume", "Volumes: create, register, import, export, list, show, wait for, connect, attach, detach, resize, rename, delete",
		a.volumeCreate(), a.volumeRegister(), a.volumeImport(), a.volumeExport(), a.volumeList(),
		a.volumeShow(), a.volumeFill(), a.volumeWait(), a.volumeConnect(), a.volumeAttach(), a.volumeDetach(), a.volumeResize(), a.volumeRename(), a.volumeDelete())
}

func (a *app) volumeCreate() *cobra.Command {
	var in client.CreateVolumes
	var size string
	var wait bool
	cmd := &cobra.Command{
		Use: "create", Short: "Create an empty volume", Args: arity(0, 0),
		Example:           "  cairn volume create --name data --size 10 --wait\n  cairn volume create --name scratch --size 512M --count 3",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.run(func(ctx context.Context, s *session, _ []string) error {
			if in.Name == "" || size == "" {
				return s.usage("--name and --size are needed")
			}
			var err error
			if in.SizeBytes, err = parseSize(size); err != nil {
				return s.usage("%s", err)
			}
			if in.Count < 1 {
				return s.usage("--count is at least 1")
			}
			j, err := s.client.CreateVolumes(ctx, in)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&in.Name, "name", "", "`NAME` of the volume")
	f.StringVar(&size, "size", "", "`SIZE` in GB (2^30), or with a unit: 1.5G, 512M, 4096B")
	f.IntVar(&in.Type, "type", 0, "volume type `N`")
	f.IntVar(&in.Count, "count", 1, "create `N` of them")
	waitFlag(cmd, &wait)
	return cmd
}

func (a *app) volumeRegister() *cobra.Command {
	var in client.RegisterVolume
	cmd := &cobra.Command{
		Use: "register PATH|URI", Short: "Make a raw file, a block device or an NBD export a volume", Args: arity(1, 1),
		Long: `Make a raw file or block device of the server's host, or an export of another
NBD server (nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH), a volume.
It stays where it is; deleting the volume later only forgets it. Since PATH is
one of the server's host, and it is the server that connects to URI, this works
only through the server's unix socket, from the same host.`,
		Example: "  cairn volume register disk.raw --name disk --server unix://DIR/cairn.sock\n  cairn volume register 'nbd+unix:///?socket=/run/disk.sock' --name other --server unix://DIR/cairn.sock",
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			if in.Name == "" {
				return s.usage("--name is needed")
			}
			if !s.client.Local() {
				return errs.New(errs.Invalid, "a path or an NBD URI can be registered only through the server's unix socket, not over %s: use --server unix://DIR/cairn.sock, where DIR is the server's data folder", s.client.Server())
			}
			var err error
			if in.Path = args[0]; !strings.Contains(in.Path, "://") {
				if in.Path, err = filepath.Abs(args[0]); err != nil {
					return fmt.Errorf("find the absolute path of %s: %w", args[0], err)
				}
			}
			v, err := s.client.RegisterVolume(ctx, in)
			if err != nil {
				return err
			}
			return s.printVolume(v)
		}),
	}
	cmd.Flags().StringVar(&in.Name, "name", "", "`NAME` of the volume")
	cmd.Flags().StringVar(&in.Description, "description", "", "`TEXT` about it")
	return cmd
}

func (a *app) volumeList() *cobra.Command {
	var f client.VolumeFilter
	var volumeType int
	cmd := &cobra.Command{
		Use: "list", Short: "List volumes, newest first", Args: arity(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.run(func(ctx context.Context, s *session, _ []string) error {
			if err := s.checkPage(f.Offset, f.Limit); err != nil {
				return err
			}
			if s.cmd.Flags().Changed("type") {
				f.Type = &volumeType
			}
			p, err := s.client.AllVolumes(ctx, f)
			if err != nil {
				return err
			}
			if s.output == outputJSON {
				return s.printJSON(p)
			}
			rows := make([][]string, len(p.Volumes))
			for i, v := range p.Volumes {
				rows[i] = []string{v.ID, dash(v.Name), formatBytes(v.SizeBytes), volumeState(v), dash(v.Driver), v.CreateTime.String()}
			}
			defer s.more(f.Offset, len(p.Volumes), p.TotalCount)
			return s.printTable([]string{"volume", "name", "size", "status", "driver", "created"}, rows)
		}),
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&f.Status, "status", nil, "only these `STATES`: pending, available, in-use, deleted, ceased")
	fl.StringVar(&f.Search, "search", "", "only ids and names that contain `WORD`")
	fl.IntVar(&volumeType, "type", 0, "only volume type `N`")
	fl.IntVar(&f.Limit, "limit", 0, "at most `N` (default all)")
	fl.IntVar(&f.Offset, "offset", 0, "leave out the first `N`")
	completeFlag(cmd, "status", "pending", "available", "in-use", "deleted", "ceased")
	return cmd
}

// volumeState is the status with what is going on or wrong.
func volumeState(v client.Volume) string {
	state := v.Status
	if v.TransitionStatus != "" {
		state += "/" + v.TransitionStatus
	}
	return state + mark(v.MixedJob != "", ",mixed")
}

func (a *app) volumeShow() *cobra.Command {
	return &cobra.Command{
		Use: "show VOLUME", Short: "Show one volume", Args: arity(1, 1), ValidArgsFunction: a.completeVolumes(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			id, err := s.volume(ctx, args[0])
			if err != nil {
				return err
			}
			return s.showVolume(ctx, id)
		}),
	}
}

func (s *session) showVolume(ctx context.Context, id string) error {
	v, err := s.client.Volume(ctx, id)
	if err != nil {
		return err
	}
	return s.printVolume(v)
}

func (s *session) printVolume(v client.Volume) error {
	if s.output == outputJSON {
		return s.printJSON(v)
	}
	mixed := ""
	if v.MixedJob != "" {
		mixed = fmt.Sprintf("the content is a mixture of two states until an apply is finished (job %s)", v.MixedJob)
	}
	return s.printPairs([]pair{
		{"volume", v.ID},
		{"name", v.Name},
		{"description", v.Description},
		{"size", exactBytes(v.SizeBytes)},
		{"status", volumeState(v)},
		{"mixed", mixed},
		{"type", strconv.Itoa(v.Type)},
		{"driver", v.Driver},
		{"path", v.Path},
		{"instance", strings.TrimSpace(v.Instance.InstanceID + " " + v.Instance.InstanceName)},
		{"device", v.Instance.Device},
		{"connect", strings.Join(v.NBDURIs, " ")},
		{"clients", count(v.Clients)},
		{"missing", missing(v)},
		{"zone", v.Zone},
		{"created", v.CreateTime.String()},
		{"changed", v.StatusTime.String()},
	})
}

// count is n for people; "" for none.
func count(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func (a *app) volumeResize() *cobra.Command {
	var size string
	var wait bool
	cmd := &cobra.Command{
		Use: "resize VOLUME|INSTANCE... --size SIZE", Short: "Make volumes, or the disks of instances, larger", Args: arity(1, unlimited),
		Long: `Make volumes, or the system disks of instances, larger. The new end is zeros. A
guest that runs sees the new size after a restart.`,
		ValidArgsFunction: a.completeResources(unlimited),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			if size == "" {
				return s.usage("--size is needed")
			}
			bytes, err := parseSize(size)
			if err != nil {
				return s.usage("%s", err)
			}
			ids, err := s.resources(ctx, args...)
			if err != nil {
				return err
			}
			j, err := s.client.ResizeVolumes(ctx, bytes, ids...)
			if err != nil {
				return err
			}
			return s.finish(ctx, j, wait)
		}),
	}
	cmd.Flags().StringVar(&size, "size", "", "new `SIZE` in GB (2^30), or with a unit: 1.5G, 512M, 4096B")
	waitFlag(cmd, &wait)
	return cmd
}

func (a *app) volumeRename() *cobra.Command {
	var flags renameFlags
	cmd := &cobra.Command{
		Use: "rename VOLUME [NAME]", Short: "Change a volume's name or description", Args: arity(1, 2),
		Example:           "  cairn volume rename data archive\n  cairn volume rename data --description 'kept for the auditors'",
		ValidArgsFunction: a.completeVolumes(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			in, err := flags.rename(s, args[1:])
			if err != nil {
				return err
			}
			id, err := s.volume(ctx, args[0])
			if err != nil {
				return err
			}
			if err := s.client.RenameVolume(ctx, id, in); err != nil {
				return err
			}
			return s.showVolume(ctx, id)
		}),
	}
	flags.add(cmd)
	return cmd
}

// renameFlags are those of both rename commands.
type renameFlags struct{ name, description string }

func (r *renameFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.name, "name", "", "new `NAME`, the same as the argument")
	cmd.Flags().StringVar(&r.description, "description", "", "new `TEXT` about it")
}

// rename takes the new name from the argument or the flag.
func (r *renameFlags) rename(s *session, args []string) (client.Rename, error) {
	var in client.Rename
	named := s.cmd.Flags().Changed("name")
	switch {
	case len(args) > 0 && named:
		return in, s.usage("the new name is given twice, as %q and as --name %q", args[0], r.name)
	case len(args) > 0:
		in.Name = &args[0]
	case named:
		in.Name = &r.name
	}
	if s.cmd.Flags().Changed("description") {
		in.Description = &r.description
	}
	if in == (client.Rename{}) {
		return in, s.usage("a new NAME or --description is needed")
	}
	return in, nil
}

func (a *app) volumeDelete() *cobra.Command {
	var yes, wait bool
	cmd := &cobra.Command{
		Use: "delete VOLUME...", Short: "Delete volumes; their snapshots survive", Args: arity(1, unlimited),
		Long: `Delete volumes. Their snapshots survive, and create-volume brings the content
of any of them back. A registered volume is only forgotten: its file,
device or export stays as it is. On a terminal the command asks first.`,
		ValidArgsFunction: a.completeVolumes(unlimited),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			ids, err := s.volumes(ctx, args...)
			if err != nil {
				return err
			}
			if err := s.confirm(ctx, yes, "Delete %s? What was written since its last snapshot is lost.", list(ids, "volume")); err != nil {
				return err
			}
			j, err := s.client.DeleteVolumes(ctx, ids...)
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
