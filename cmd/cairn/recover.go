package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/file"
	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/journal"
	"cairn/internal/metadb"
	"cairn/internal/repo"
	volumefile "cairn/internal/volume/file"
	"cairn/internal/volume/live"
)

// recoverConfig is everything that `cairn repo recover` can be told.
type recoverConfig struct {
	dataDir string
	key     keySource
	zone    string
	dryRun  bool
	accept  bool
	json    bool
}

func newRecoverCommand() *cobra.Command {
	var c recoverConfig
	cmd := &cobra.Command{
		Use:   "recover --data-dir DIR",
		Short: "Rebuild the metadata database from the repository",
		Long: `Rebuild DIR/cairn.db from what the repository tells of itself: the manifests,
and the journal that has kept names, states, heads and volumes since.

Use it when the database was lost or damaged, or when the server says that an
older one was put back. No server may run. Points that were deleted, or that
were never finished, do not come back. A point of which bytes are missing comes
back marked as damaged. Jobs and locks are gone. The repository is only read; the
old database, if there is one, is kept as DIR/cairn.db.before-recover-<time>.

If the journal is damaged or missing, nothing tells finished points from deleted
and unfinished ones. Then everything is only listed, and --accept-uncommitted
takes it in, with the names that points had when they were taken.`,
		Example: `  cairn repo recover --data-dir /var/lib/cairn --dry-run
  cairn repo recover --data-dir /var/lib/cairn -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.Flag("output")
			c.json = out != nil && out.Value.String() == "json"
			return recoverDatabase(cmd.Context(), c, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.dataDir, "data-dir", "", "folder that holds everything")
	c.key.addFlags(cmd)
	f.StringVar(&c.zone, "zone", "ac1", "zone of volumes of which nothing tells the zone")
	f.BoolVar(&c.dryRun, "dry-run", false, "only tell what would be recovered, and change nothing")
	f.BoolVar(&c.accept, "accept-uncommitted", false, "take in also what nothing says was finished, and a journal with holes")
	return cmd
}

// recovered is the answer of the command.
type recovered struct {
	DryRun     bool           `json:"dry_run"`
	Database   string         `json:"database"` // "" if none was put in place
	MovedAside []string       `json:"moved_aside"`
	Report     journal.Report `json:"report"`
}

func recoverDatabase(ctx context.Context, c recoverConfig, out, logTo io.Writer) error {
	if c.dataDir == "" {
		return errs.New(errs.Invalid, "--data-dir is missing; name the folder that holds everything")
	}
	dir, err := filepath.Abs(c.dataDir)
	if err != nil {
		return fmt.Errorf("find %s: %w", c.dataDir, err)
	}
	// Neither folder nor repository is made here: an empty one would hide a
	// wrong path.
	if _, err := os.Stat(filepath.Join(dir, "repo", "header")); err != nil {
		return errs.Wrap(errs.NotFound, err, "there is no repository in %s; name the folder that holds repo/", dir)
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // ends the lock
	log := slog.New(slog.NewTextHandler(logTo, nil))
	answer, err := c.run(ctx, dir, log)
	if err != nil {
		return err
	}
	if err := c.print(answer, out); err != nil {
		return err
	}
	if b := answer.Report.Blocked; b != "" {
		return errs.New(errs.Conflict, "nothing was changed: %s", b)
	}
	return nil
}

func (c recoverConfig) run(ctx context.Context, dir string, log *slog.Logger) (answer recovered, err error) {
	r, closers, err := c.open(ctx, dir, log)
	defer func() {
		for _, cl := range closers {
			err = errors.Join(err, cl.Close())
		}
	}()
	if err != nil {
		return answer, err
	}
	conf := journal.RecoverConfig{Repo: engine.New(r, engine.Config{}), Accept: c.accept, Zone: c.zone, Logger: log}
	if err := findVolumes(filepath.Join(dir, "volumes"), &conf); err != nil {
		return answer, err
	}
	work, err := c.workFolder(dir)
	if err != nil {
		return answer, err
	}
	defer os.RemoveAll(work) //nolint:errcheck // what is left is removed by the next one
	fresh := filepath.Join(work, "cairn.db")
	answer = recovered{DryRun: c.dryRun, MovedAside: []string{}}
	if answer.Report, err = fill(ctx, fresh, conf); err != nil || c.dryRun || answer.Report.Blocked != "" {
		return answer, err
	}
	answer.Database = filepath.Join(dir, "cairn.db")
	answer.MovedAside, err = replaceDatabase(fresh, answer.Database, time.Now())
	return answer, err
}

// findVolumes looks for what the drivers of volumes keep.
func findVolumes(dir string, conf *journal.RecoverConfig) error {
	specs, err := live.List(dir)
	if err != nil {
		return err
	}
	for _, s := range specs {
		conf.Volumes = append(conf.Volumes, journal.FoundVolume{ID: s.ID, SizeBytes: s.SizeBytes})
	}
	conf.Holds, err = volumefile.ListHolds(filepath.Join(dir, "registered"))
	return err
}

// workFolder is where the new database grows: beside the old one, so that a
// rename puts it in place, or elsewhere if that is not to happen.
func (c recoverConfig) workFolder(dir string) (string, error) {
	if c.dryRun {
		work, err := os.MkdirTemp("", "cairn-recover-")
		if err != nil {
			return "", fmt.Errorf("make a folder for the trial: %w", err)
		}
		return work, nil
	}
	work := filepath.Join(dir, "cairn.db.recovering")
	if err := os.RemoveAll(work); err != nil {
		return "", fmt.Errorf("remove what an earlier recover left: %w", err)
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		return "", fmt.Errorf("make a folder for the new database: %w", err)
	}
	return work, nil
}

// open opens the repository. closers are in the order in which they are to be
// closed.
func (c recoverConfig) open(ctx context.Context, dir string, log *slog.Logger) (r *repo.Repo, closers []io.Closer, err error) {
	opened := func(cl io.Closer) { closers = append([]io.Closer{cl}, closers...) }
	blobs, err := file.Open(filepath.Join(dir, "repo"))
	if err != nil {
		return nil, closers, err
	}
	opened(blobs)
	source, err := c.key.in(dir, os.Getenv)
	if err != nil {
		return nil, closers, err
	}
	key, err := source.read(log)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, closers, errs.New(errs.NotFound, "the key file %s is missing and the repository cannot be read without it; put your copy back, or name another key with --key-file or --passphrase-file", source.keyFile)
	}
	if err != nil {
		return nil, closers, err
	}
	// The index is not needed, and a trial must not touch it.
	index, err := os.MkdirTemp("", "cairn-recover-index-")
	if err != nil {
		return nil, closers, fmt.Errorf("make a folder for an empty index: %w", err)
	}
	opened(removed(index))
	r, err = repo.Open(ctx, unchanged{blobs}, key, index)
	if err == nil {
		opened(r)
	}
	return r, closers, err
}

// unchanged is a store whose changes are only pretended: opening a repository
// completes its header, which is the server's to do.
type unchanged struct{ blobstore.Store }

func (unchanged) Put(context.Context, string, ...[]byte) error { return nil }

func (unchanged) Delete(context.Context, string) error { return nil }

// removed is a folder that goes when it is closed.
type removed string

func (r removed) Close() error { return os.RemoveAll(string(r)) }

// fill makes a database and recovers into it.
func fill(ctx context.Context, path string, conf journal.RecoverConfig) (journal.Report, error) {
	db, err := metadb.OpenToLoad(ctx, path)
	if err != nil {
		return journal.Report{}, err
	}
	conf.Store = db
	report, err := journal.Recover(ctx, conf)
	if err := errors.Join(err, db.Close()); err != nil {
		return report, err
	}
	// Makes the lists, and proves that the server can open it.
	done, err := metadb.Open(ctx, path)
	if err != nil {
		return report, err
	}
	return report, done.Close()
}

// replaceDatabase moves the old database and its side files away and puts the
// new one in its place. A crash in between leaves no database, and the server
// then asks for another recover; never a new one beside an old one's log.
func replaceDatabase(fresh, path string, now time.Time) (aside []string, err error) {
	aside = []string{}
	name := path + ".before-recover-" + now.UTC().Format("20060102T150405Z")
	for n := 1; ; n++ {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			break
		}
		name = fmt.Sprintf("%s.before-recover-%s-%d", path, now.UTC().Format("20060102T150405Z"), n)
	}
	if err := syncPath(fresh); err != nil {
		return aside, err
	}
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		err := os.Rename(path+suffix, name+suffix)
		switch {
		case err == nil:
			aside = append(aside, name+suffix)
		case !errors.Is(err, fs.ErrNotExist):
			return aside, fmt.Errorf("move the old database away: %w", err)
		}
	}
	dir := filepath.Dir(path)
	if err := syncPath(dir); err != nil {
		return aside, err
	}
	if err := os.Rename(fresh, path); err != nil {
		return aside, fmt.Errorf("put the new database in its place: %w", err)
	}
	return aside, syncPath(dir)
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// print writes the answer: one JSON document, or a summary and what is not as
// one would wish.
func (c recoverConfig) print(a recovered, out io.Writer) error {
	if c.json {
		e := json.NewEncoder(out)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(a)
	}
	return printRecovered(a, out)
}
