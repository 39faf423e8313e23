package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"cairn/client"
	"cairn/internal/errs"
)

func (a *app) snapshotServe() *cobra.Command {
	var writable bool
	var name string
	cmd := &cobra.Command{
		Use: "serve SNAPSHOT", Short: "Let programs read a snapshot as a block device", Args: arity(1, 1),
		Long: `Serve a snapshot over NBD, read-only and at once: bytes come from the repository
when somebody reads them. Prints its URI, and ready lines for programs that use
it. It is served, also after a restart of the server, and cannot be deleted,
until cairn snapshot unserve.

With --writable a volume is made that holds what is written to it, durably, and
reads all else from the snapshot: cairn volume delete ends it, cairn volume fill
makes it independent.

Through the server's unix socket this is the URI of its other socket, for
programs on the same host; else one of --nbd-listen.`,
		Example:           "  cairn snapshot serve monday --server unix://DIR/cairn.sock\n  nbdcopy \"$(cairn snapshot serve monday -o json | jq -r .uri)\" monday.raw",
		ValidArgsFunction: a.completeSnapshots(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			if name != "" && !writable {
				return s.usage("--name is the name of the volume that --writable makes")
			}
			id, err := s.snapshot(ctx, args[0])
			if err != nil {
				return err
			}
			if writable {
				return s.serveWritable(ctx, id, name)
			}
			e, err := s.client.ServeSnapshot(ctx, id)
			if err != nil {
				return err
			}
			if len(e.NBDURIs) == 0 {
				return errs.New(errs.Conflict, "snapshot %s is served to programs on the server's host only; ask with --server unix://DIR/cairn.sock there, or start the server with --nbd-listen", id)
			}
			return s.printURIs(id, e.NBDURIs, true)
		}),
	}
	cmd.Flags().BoolVar(&writable, "writable", false, "make a volume on top of the snapshot, to be written to")
	cmd.Flags().StringVar(&name, "name", "", "`NAME` of that volume (default that of the snapshot)")
	return cmd
}

// serveWritable makes a volume of a snapshot that is read on demand, and shows
// how to use it.
func (s *session) serveWritable(ctx context.Context, id, name string) error {
	if name == "" {
		p, err := s.client.Snapshot(ctx, id)
		if err != nil {
			return err
		}
		name = p.Name
	}
	j, err := s.client.CreateVolumeFromSnapshot(ctx, id, client.CloneSnapshot{VolumeName: name, OnDemand: true})
	if err != nil {
		return err
	}
	if j, err = s.wait(ctx, j.ID, j.Action); err != nil {
		return err
	}
	if err := j.Err(); err != nil {
		return err
	}
	if len(j.ResourceIDs) == 0 {
		return fmt.Errorf("the server's job %s names no volume", j.ID)
	}
	v, err := s.client.Volume(ctx, j.ResourceIDs[0])
	if err != nil {
		return err
	}
	return s.printConnection(v)
}

func (a *app) snapshotUnserve() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "unserve SNAPSHOT", Short: "Serve a snapshot no longer", Args: arity(1, 1),
		ValidArgsFunction: a.completeSnapshots(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			id, err := s.snapshot(ctx, args[0])
			if err != nil {
				return err
			}
			if err := s.client.UnserveSnapshot(ctx, id, force); err != nil {
				return err
			}
			return s.showSnapshot(ctx, id)
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "end the connections of clients")
	return cmd
}
