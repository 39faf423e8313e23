package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cairn/internal/blobstore/file"
	"cairn/internal/debug"
	"cairn/internal/errs"
	"cairn/internal/repo"
)

// debugConfig is what all commands of `cairn debug` can be told.
type debugConfig struct {
	dataDir string
	key     keySource
}

func newDebugCommand() *cobra.Command {
	var c debugConfig
	cmd := &cobra.Command{
		Use:   "debug",
		Short: "Look into a repository's blobs, with the server down",
		Long: `Look into the repository of a folder: its headers, packs, dedup index, trees
and manifests, and who refers to a chunk. No server and no database is needed;
points are found by the manifests that lie in the repository. Damage is named,
and what lies behind it is shown all the same; the exit code is 3 then.

Nothing is ever changed, so a read-only copy of the folder will do. A running
server does no harm either: blobs never change. But what is shown may then be
out of date, or belong to a job that has not ended.

No keys are shown, and no content of volumes. Names of points are.`,
		Example: `  cairn debug repo --data-dir /var/lib/cairn
  cairn debug manifest ss-ABCDEFGH --data-dir /var/lib/cairn
  cairn debug tree ss-ABCDEFGH --from 1048576 --to 1048577 --check --data-dir /var/lib/cairn`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errs.New(errs.Invalid, "there is no command %q (see %s --help)", cmd.CommandPath()+" "+args[0], cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := cmd.PersistentFlags()
	f.StringVar(&c.dataDir, "data-dir", "", "folder that holds everything")
	c.key.addFlags(cmd)
	f.AddFlagSet(cmd.Flags()) // for the commands below, too
	cmd.AddCommand(c.overview(), c.blobs(), c.manifest(), c.tree(), c.pack(), c.index(), c.why())
	return cmd
}

// look makes do the body of a command that takes up to most arguments.
func (c *debugConfig) look(cmd *cobra.Command, least, most int, do func(ctx context.Context, d *debug.Inspector, arg string) error) *cobra.Command {
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return errs.New(errs.Invalid, "wrong number of arguments: it is %s (see %s --help)", cmd.UseLine(), cmd.CommandPath())
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		arg := ""
		if len(args) > 0 {
			arg = args[0]
		}
		return c.run(cmd, func(d *debug.Inspector) error { return do(cmd.Context(), d, arg) })
	}
	return cmd
}

// run opens the folder for reading only, runs do and closes it.
func (c *debugConfig) run(cmd *cobra.Command, do func(*debug.Inspector) error) error {
	if c.dataDir == "" {
		return errs.New(errs.Invalid, "--data-dir is missing; name the folder that holds everything")
	}
	dir, err := filepath.Abs(c.dataDir)
	if err != nil {
		return fmt.Errorf("find %s: %w", c.dataDir, err)
	}
	lock, server, err := shareFolder(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if server == serverRunning {
		fmt.Fprintf(cmd.ErrOrStderr(), "A server has %s open. That does no harm, but what is shown may be out of date or of a job that has not ended.\n", dir)
	}
	store, err := file.OpenReadOnly(filepath.Join(dir, "repo"))
	if err != nil {
		return err
	}
	defer store.Close() //nolint:errcheck // nothing was written
	r, repoErr := c.openRepo(cmd.Context(), dir, store)
	if r != nil {
		defer r.Close() //nolint:errcheck // nothing was written
	}
	return do(debug.New(debug.Config{
		Store: store, Repo: r, RepoErr: repoErr, Out: cmd.OutOrStdout(), JSON: cmd.Flag("output").Value.String() == "json",
		Live:  server == serverRunning,
		Facts: []debug.Fact{{Key: "folder", Value: dir}, {Key: "server", Value: server}, {Key: "database", Value: presence(filepath.Join(dir, "cairn.db"))}},
	}))
}

// openRepo needs the key; commands that can do without go on with the error.
func (c *debugConfig) openRepo(ctx context.Context, dir string, store file.ReadOnly) (*repo.Repo, error) {
	source, err := c.key.in(dir, os.Getenv)
	if err != nil {
		return nil, err
	}
	key, err := source.read(slog.New(slog.DiscardHandler))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "the key file %s is missing and the repository cannot be read without it; name your copy with --key-file", source.keyFile)
	}
	if err != nil {
		return nil, err
	}
	return repo.OpenReadOnly(ctx, store, key, filepath.Join(dir, "index"))
}

// Whether a server has the folder open.
const (
	serverRunning = "running"
	serverDown    = "not running"
	serverUnknown = "unknown: the lock file cannot be asked"
)

// shareFolder keeps a server from starting while the folder is looked at, and
// tells if one runs. Nothing is made: where no server ever ran, or where the
// lock cannot be had, there is none, and reading does no harm.
func shareFolder(dir string) (lock io.Closer, server string, err error) {
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return nil, "", errs.New(errs.NotFound, "there is no folder %s; name the one that holds everything with --data-dir", dir)
	}
	none := io.NopCloser(nil)
	f, err := os.Open(filepath.Join(dir, "cairn.lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return none, serverDown, nil
	}
	if err != nil {
		return none, serverUnknown, nil //nolint:nilerr // the answer says so
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		return f, serverDown, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return none, serverRunning, nil
	}
	return none, serverUnknown, nil //nolint:nilerr // the answer says so
}

func presence(path string) string {
	switch _, err := os.Stat(path); {
	case err == nil:
		return "there"
	case errors.Is(err, fs.ErrNotExist):
		return "missing"
	default:
		return "unknown: " + err.Error()
	}
}

func (c *debugConfig) overview() *cobra.Command {
	return c.look(&cobra.Command{
		Use: "repo", Short: "Show the repository as a whole: headers, key slots, numbers of blobs, index",
		Long: `Show the repository as a whole: headers, key slots, numbers of blobs, index.
It works without the key too.`,
	}, 0, 0, func(ctx context.Context, d *debug.Inspector, _ string) error { return d.Overview(ctx) })
}

func (c *debugConfig) blobs() *cobra.Command {
	var check bool
	cmd := c.look(&cobra.Command{
		Use: "blobs [PREFIX]", Short: "List the blobs whose name begins with PREFIX, and copies that are missing",
		Long: `List the blobs whose name begins with PREFIX, and the copies that are missing.
With --check each is read and every bit of it checked. Without it no key is
needed.`,
	}, 0, 1, func(ctx context.Context, d *debug.Inspector, prefix string) error { return d.Blobs(ctx, prefix, check) })
	cmd.Flags().BoolVar(&check, "check", false, "read and check each blob")
	return cmd
}

func (c *debugConfig) manifest() *cobra.Command {
	return c.look(&cobra.Command{
		Use: "manifest [SNAPSHOT|BLOB]", Short: "List all manifests, or show one field by field",
		Long: `List the manifests of all points that lie in the repository, or show one field
by field. The database is not asked, so a point that was deleted, or never
committed, may be among them.`,
	}, 0, 1, func(ctx context.Context, d *debug.Inspector, which string) error { return d.Manifests(ctx, which) })
}

func (c *debugConfig) tree() *cobra.Command {
	var o debug.TreeOptions
	cmd := c.look(&cobra.Command{
		Use: "tree SNAPSHOT", Short: "Show a point's tree: nodes and chunks, and where each lies",
		Long: `Show a point's tree, node by node and chunk by chunk, in the order of the
volume. What is not shown is zeros. A node that cannot be read is named, and
the walk goes on behind it.`,
		Example: `  cairn debug tree ss-ABCDEFGH --depth 1 --data-dir DIR
  cairn debug tree ss-ABCDEFGH --from 4096 --to 8192 --check --data-dir DIR`,
	}, 1, 1, func(ctx context.Context, d *debug.Inspector, snapshot string) error { return d.Tree(ctx, snapshot, o) })
	f := cmd.Flags()
	f.Int64Var(&o.From, "from", 0, "first byte of the volume to show")
	f.Int64Var(&o.To, "to", 0, "byte to stop before (default the volume's end)")
	f.IntVar(&o.Depth, "depth", -1, "levels to show below the root (default all, and the chunks)")
	f.BoolVar(&o.Check, "check", false, "read and check every chunk that is shown")
	return cmd
}

func (c *debugConfig) pack() *cobra.Command {
	return c.look(&cobra.Command{
		Use: "pack ID", Short: "Show each copy of a pack part by part: header, records, directory, footer",
		Long: `Show each copy of a pack part by part, and whether each part is whole. ID is a
pack's id, its beginning, or the name of one of its blobs. Where the directory
is damaged the records are found by scanning.`,
	}, 1, 1, func(ctx context.Context, d *debug.Inspector, id string) error { return d.Pack(ctx, id) })
}

func (c *debugConfig) index() *cobra.Command {
	var check bool
	cmd := c.look(&cobra.Command{
		Use: "index [CHUNK-ID]", Short: "Show the dedup index, or where it says that a chunk lies",
		Long: `Show the files of the dedup index or, for a chunk's id, the places where the
index says that it lies, and whether it is there. The index is an accelerator:
no data is lost with it.`,
	}, 0, 1, func(ctx context.Context, d *debug.Inspector, id string) error { return d.Index(ctx, id, check) })
	cmd.Flags().BoolVar(&check, "check", false, "read and check every entry")
	return cmd
}

func (c *debugConfig) why() *cobra.Command {
	return c.look(&cobra.Command{
		Use: "why CHUNK-ID", Short: "Show who holds a chunk: points, byte ranges, and where it is stored",
		Long: `Show every point and byte range that refers to a chunk (or to a node of a tree),
and every place where it is stored, whoever knows of it: a tree, the dedup index
or only a pack. All trees and all directories of packs are read.`,
	}, 1, 1, func(ctx context.Context, d *debug.Inspector, id string) error { return d.Why(ctx, id) })
}
