package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cairn/internal/blobstore/file"
	"cairn/internal/errs"
)

// offline is a folder that a command works on by itself, with the server
// stopped.
type offline struct {
	dir   string
	store *file.Store
	lock  *folderLock
}

// openOffline takes the folder's lock and opens its blobs. errs.Busy: a server
// runs on it.
func openOffline(dataDir string) (*offline, error) {
	dir, err := existingFolder(dataDir)
	if err != nil {
		return nil, err
	}
	blobs := filepath.Join(dir, "repo")
	info, err := os.Stat(blobs)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return nil, errs.New(errs.NotFound, "there is no repository in %s; name the folder that cairn serve has as its --data-dir", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("look for the repository: %w", err)
	}
	// What root writes, the server's user could not read.
	if st, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 && st.Uid != 0 {
		return nil, errs.New(errs.Denied, "%s belongs to user %d, and files that root makes there would lock the server out; run this command as that user (sudo -u '#%d')", blobs, st.Uid, st.Uid)
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return nil, err
	}
	store, err := file.Open(blobs)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &offline{dir: dir, store: store, lock: lock}, nil
}

// Close gives the folder back.
func (o *offline) Close() error { return errors.Join(o.store.Close(), o.lock.Close()) }

// existingFolder finds a --data-dir that must be there.
func existingFolder(dataDir string) (string, error) {
	if dataDir == "" {
		return "", errs.New(errs.Invalid, "--data-dir is missing; name the server's folder")
	}
	dir, err := filepath.Abs(dataDir)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", dataDir, err)
	}
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return "", errs.New(errs.NotFound, "there is no folder %s", dir)
	}
	if err != nil {
		return "", fmt.Errorf("look for %s: %w", dir, err)
	}
	return dir, nil
}

// commandLog tells a command's user on stderr what a server would log.
func commandLog(cmd *cobra.Command) *slog.Logger {
	noTime := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{ReplaceAttr: noTime}))
}

// wantsJSON reports whether -o json was given.
func wantsJSON(cmd *cobra.Command) bool {
	f := cmd.Flag("output")
	return f != nil && f.Value.String() == "json"
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printColumns writes rows aligned, the first one as it is.
func printColumns(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

// group is a command that only holds others.
func group(name, short, long string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: name, Short: short, Long: long,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errs.New(errs.Invalid, "there is no command %q (see %s --help)", cmd.CommandPath()+" "+args[0], cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(children...)
	return cmd
}

// arity checks the number of arguments, naming them for the user.
func arity(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return errs.New(errs.Invalid, "%s is missing (see %s --help)", names[len(args)], cmd.CommandPath())
		case len(args) > len(names):
			return errs.New(errs.Invalid, "%q is one argument too many (see %s --help)", args[len(names)], cmd.CommandPath())
		}
		return nil
	}
}
