package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"cairn/internal/errs"
)

// addRepoCommands adds to the command line's own repo commands, which talk to
// a server, those that work on its folder while it is stopped.
func addRepoCommands(root *cobra.Command) {
	for _, c := range root.Commands() {
		if c.Name() == "repo" {
			c.AddCommand(newRepoUnlockCommand(), newRebuildIndexCommand(), newRecoverCommand())
		}
	}
}

func newRepoUnlockCommand() *cobra.Command {
	var dataDir string
	var yes bool
	cmd := &cobra.Command{
		Use:   "unlock --data-dir DIR",
		Short: "Take a folder away from another host that will not come back",
		Long: `Take a folder away from another host.

A folder belongs to the host whose cairn opened it last and did not stop
cleanly, however long ago that was: on a network filesystem nobody here can
tell a dead process there from a living one, and two on one folder destroy it.
Make sure that no cairn runs there on this folder (best: that the host is off),
then run this command. It changes nothing else.

On one host it is never needed: when a process dies there, the folder is free
at once.`,
		Example: `  cairn repo unlock --data-dir /mnt/share/cairn`,
		Args:    arity(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return unlockFolder(cmd, dataDir, yes)
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "the server's `DIR`")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask: no cairn has the folder open on any host")
	return cmd
}

// unlocked is the answer of unlock.
type unlocked struct {
	Unlocked bool   `json:"unlocked"`
	Owner    *owner `json:"owner,omitempty"` // whose the folder was
}

func unlockFolder(cmd *cobra.Command, dataDir string, yes bool) (err error) {
	dir, err := existingFolder(dataDir)
	if err != nil {
		return err
	}
	o, readErr := readOwner(dir)
	if errors.Is(readErr, fs.ErrNotExist) {
		return sayUnlocked(cmd, unlocked{}, "the folder is not locked")
	}
	// A process within reach of the flock is alive, whatever the operator says.
	f, err := flockFolder(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if readErr != nil && !errs.Is(readErr, errs.Conflict) {
		return readErr
	}
	whose := "an unreadable lock record"
	if readErr == nil {
		whose = "cairn, " + o.String()
	}
	if !yes {
		t, ok := terminalOf(cmd)
		if !ok {
			return errs.New(errs.Invalid, "the folder belongs to %s; if no cairn has it open on any host, repeat the command with --yes", whose)
		}
		if err := t.confirm(cmd.Context(), fmt.Sprintf("The folder %s belongs to %s.\nTwo servers on one folder destroy it. Has that one surely stopped?", dir, whose)); err != nil {
			return err
		}
	}
	// Somebody there may have stopped cleanly, or started, while we asked.
	if now, err := readOwner(dir); errors.Is(err, fs.ErrNotExist) {
		return sayUnlocked(cmd, unlocked{}, "the folder is not locked any more")
	} else if readErr == nil && (err != nil || now != o) {
		return errs.New(errs.Conflict, "the lock of %s has changed meanwhile, so a cairn is at work there; nothing was changed", dir)
	}
	if err := removeOwner(dir); err != nil {
		return err
	}
	answer := unlocked{Unlocked: true}
	if readErr == nil {
		answer.Owner = &o
	}
	return sayUnlocked(cmd, answer, "unlocked; it belonged to "+whose)
}

func sayUnlocked(cmd *cobra.Command, u unlocked, sentence string) error {
	if wantsJSON(cmd) {
		return printJSON(cmd.OutOrStdout(), u)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), sentence)
	return err
}
