package cli

import (
	"context"

	"github.com/spf13/cobra"

	"cairn/client"
)

func (a *app) imageCommand() *cobra.Command {
	return group("image", "Images, from which instances are run: import, list, show, export, rename, delete",
		a.imageImport(), a.imageList(), a.imageShow(), a.imageExport(), a.imageRename(), a.imageDelete())
}

func (a *app) imageList() *cobra.Command {
	var f client.ImageFilter
	cmd := &cobra.Command{
		Use: "list", Short: "List images, newest first", Args: arity(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.run(func(ctx context.Context, s *session, _ []string) error {
			if err := s.checkPage(f.Offset, f.Limit); err != nil {
				return err
			}
			p, err := s.client.AllImages(ctx, f)
			if err != nil {
				return err
			}
			if s.output == outputJSON {
				return s.printJSON(p)
			}
			rows := make([][]string, len(p.Images))
			for i, v := range p.Images {
				rows[i] = []string{v.ID, dash(v.Name), formatBytes(v.SizeBytes), imageState(v), formatBytes(v.AddedBytes), v.CreateTime.String()}
			}
			defer s.more(f.Offset, len(p.Images), p.TotalCount)
			return s.printTable([]string{"image", "name", "size", "status", "added", "created"}, rows)
		}),
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&f.Status, "status", nil, "only these `STATES`: pending, available, suspended, deleted, ceased")
	fl.StringVar(&f.Search, "search", "", "only ids and names that contain `WORD`")
	fl.IntVar(&f.Limit, "limit", 0, "at most `N` (default all)")
	fl.IntVar(&f.Offset, "offset", 0, "leave out the first `N`")
	completeFlag(cmd, "status", "pending", "available", "suspended", "deleted", "ceased")
	return cmd
}

// imageState is the status with what is going on or wrong.
func imageState(v client.Image) string {
	state := v.Status
	if v.TransitionStatus != "" {
		state += "/" + v.TransitionStatus
	}
	return state + mark(bool(v.Damaged), ",damaged")
}

func (a *app) imageShow() *cobra.Command {
	return &cobra.Command{
		Use: "show IMAGE", Short: "Show one image", Args: arity(1, 1), ValidArgsFunction: a.completeImages(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			id, err := s.image(ctx, args[0])
			if err != nil {
				return err
			}
			return s.showImage(ctx, id)
		}),
	}
}

func (s *session) showImage(ctx context.Context, id string) error {
	v, err := s.client.Image(ctx, id)
	if err != nil {
		return err
	}
	if s.output == outputJSON {
		return s.printJSON(v)
	}
	return s.printPairs([]pair{
		{"image", v.ID},
		{"name", v.Name},
		{"description", v.Description},
		{"size", exactBytes(v.SizeBytes)},
		{"status", imageState(v)},
		{"origin", v.Origin},
		{"added", exactBytes(v.AddedBytes)},
		{"zone", v.Zone},
		{"created", v.CreateTime.String()},
		{"changed", v.StatusTime.String()},
	})
}

func (a *app) imageExport() *cobra.Command {
	return a.exportCommand("image", "IMAGE", "Write an image's content to a file", a.completeImages(1),
		func(ctx context.Context, s *session, ref string, format client.Format) (string, *client.Export, error) {
			id, err := s.image(ctx, ref)
			if err != nil {
				return "", nil, err
			}
			e, err := s.client.ExportImage(ctx, id, format)
			return id, e, err
		})
}

func (a *app) imageRename() *cobra.Command {
	var flags renameFlags
	cmd := &cobra.Command{
		Use: "rename IMAGE [NAME]", Short: "Change an image's name or description", Args: arity(1, 2),
		ValidArgsFunction: a.completeImages(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			in, err := flags.rename(s, args[1:])
			if err != nil {
				return err
			}
			id, err := s.image(ctx, args[0])
			if err != nil {
				return err
			}
			if err := s.client.RenameImage(ctx, id, in); err != nil {
				return err
			}
			return s.showImage(ctx, id)
		}),
	}
	flags.add(cmd)
	return cmd
}

func (a *app) imageDelete() *cobra.Command {
	var yes, wait bool
	cmd := &cobra.Command{
		Use: "delete IMAGE...", Short: "Delete images; instances that run from them live on", Args: arity(1, unlimited),
		Long: `Delete images. Instances that were run from one live on: those that still read
from it keep its content until they have fetched all of it. On a terminal the
command asks first.`,
		ValidArgsFunction: a.completeImages(unlimited),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			ids, err := s.images(ctx, args...)
			if err != nil {
				return err
			}
			if err := s.confirm(ctx, yes, "Delete %s?", list(ids, "image")); err != nil {
				return err
			}
			j, err := s.client.DeleteImages(ctx, ids...)
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
