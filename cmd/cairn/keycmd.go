package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/internal/errs"
	"cairn/internal/repo"
)

// stillReads is what the removal of a key cannot do, for help texts and for
// who has just done it.
const stillReads = `Mind that a removed key still opens every copy that was made of the
repository's header before, and so reads all points, older and newer. Against a
key that leaked only a new repository helps.`

// shownID is how many digits of a slot's id people see, and shortestID how
// many they must type at least.
const (
	shownID    = 8
	shortestID = 4
)

// newKeyCommand holds the commands for what opens a repository.
func newKeyCommand() *cobra.Command {
	return group("key", "Who can open a repository: key files, passphrases, a recovery key",
		`See and change what opens a repository.

A repository has one or more key slots, and each is opened by a key file, a
passphrase or a recovery key; any one of them opens everything. Changing slots
takes milliseconds and rewrites no data.

These commands work on the server's folder themselves, so stop the server
first: they refuse while it runs. They open the repository with DIR/repo.key,
or with --key-file or --passphrase-file, or ask with --ask. No secret ever
stands on a command line.

`+stillReads,
		newKeyListCommand(), newKeyAddCommand(), newKeyRemoveCommand(), newKeyRotateCommand(), newKeyRecoveryCommand())
}

// keyAccess is how a command comes to the repository.
type keyAccess struct {
	dataDir string
	source  keySource
	ask     bool
}

func (a *keyAccess) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.dataDir, "data-dir", "", "the server's `DIR`; the server must be stopped")
	a.source.addFlags(cmd)
	cmd.Flags().BoolVar(&a.ask, "ask", false, "ask on the terminal for the passphrase or the recovery key that opens the repository")
}

// key finds what opens the repository, as the flags say, in a folder whose
// lock is held. mayAsk: if there is no key file, ask for what else opens it.
func (a keyAccess) key(cmd *cobra.Command, o *offline, mayAsk bool) (repo.Opener, keySource, error) {
	t, onTerminal := terminalOf(cmd)
	if a.ask {
		switch {
		case a.source != keySource{}:
			return nil, a.source, errs.New(errs.Invalid, "--ask excludes --key-file and --passphrase-file")
		case !onTerminal:
			return nil, a.source, errs.New(errs.Invalid, "--ask needs a terminal, and standard input is none; name a file with --key-file or --passphrase-file")
		}
		key, err := t.key(cmd.Context())
		return key, keySource{}, err
	}
	source, err := a.source.in(o.dir, os.Getenv)
	if err != nil {
		return nil, source, err
	}
	log := commandLog(cmd)
	key, err := source.read(log)
	if errors.Is(err, fs.ErrNotExist) {
		if a.source.keyFile != "" || !onTerminal || !mayAsk {
			return nil, source, errs.New(errs.NotFound, "there is no key file %s; name another with --key-file, or the file of a passphrase with --passphrase-file, or use --ask", source.keyFile)
		}
		key, err = t.key(cmd.Context())
		return key, keySource{}, err
	}
	if err != nil {
		return nil, source, err
	}
	key, err = finishRotation(cmd.Context(), source, key, o.store, log)
	return key, source, err
}

// keyWork is the body of a key command: the folder is locked, the header open.
type keyWork struct {
	cmd    *cobra.Command
	folder *offline
	slots  *repo.KeySlots
	key    repo.Opener // what opened
	source keySource   // where it stood; empty if it was typed
}

func (a keyAccess) run(do func(ctx context.Context, w keyWork, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		folder, err := openOffline(a.dataDir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, folder.Close()) }()
		key, source, err := a.key(cmd, folder, true)
		if err != nil {
			return err
		}
		slots, err := repo.OpenKeySlots(cmd.Context(), folder.store, key)
		if err != nil {
			return err
		}
		return do(cmd.Context(), keyWork{cmd, folder, slots, key, source}, args)
	}
}

func (w keyWork) note(format string, args ...any) {
	fmt.Fprintf(w.cmd.ErrOrStderr(), format+"\n", args...)
}

// slot finds a slot by the first digits of its id.
func (w keyWork) slot(prefix string) (repo.KeySlot, error) {
	var found []repo.KeySlot
	for _, s := range w.slots.List().Slots {
		if strings.HasPrefix(s.ID.String(), strings.ToLower(prefix)) {
			found = append(found, s)
		}
	}
	switch {
	case len(prefix) < shortestID:
		return repo.KeySlot{}, errs.New(errs.Invalid, "%q is too short for a key slot; give at least %d digits of what cairn key list shows", prefix, shortestID)
	case len(found) == 0:
		return repo.KeySlot{}, errs.New(errs.NotFound, "there is no key slot %s; cairn key list shows them", prefix)
	case len(found) > 1:
		return repo.KeySlot{}, errs.New(errs.Invalid, "%s is the beginning of %d key slots; give more digits", prefix, len(found))
	}
	return found[0], nil
}

// ofKind lists the slots of a kind.
func (w keyWork) ofKind(kind repo.KeySlotKind) (ids []repo.KeySlotID) {
	for _, s := range w.slots.List().Slots {
		if s.Kind == kind {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func newKeyListCommand() *cobra.Command {
	var a keyAccess
	cmd := &cobra.Command{
		Use:   "list --data-dir DIR",
		Short: "List the key slots of a repository (server stopped)",
		Long: `List the key slots of a repository. The server must be stopped.

With a key that opens the repository the list is proved to be what its last
change wrote, and the slot that the key opened is marked. Without one the slots
are listed as they stand there.`,
		Args: arity(),
		RunE: func(cmd *cobra.Command, _ []string) error { return listKeys(cmd, a) },
	}
	a.addFlags(cmd)
	return cmd
}

func listKeys(cmd *cobra.Command, a keyAccess) (err error) {
	folder, err := openOffline(a.dataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, folder.Close()) }()
	var slots *repo.KeySlots
	key, _, keyErr := a.key(cmd, folder, false)
	if keyErr == nil {
		slots, keyErr = repo.OpenKeySlots(cmd.Context(), folder.store, key)
	}
	if keyErr == nil {
		return printKeyList(cmd, slots.List(), slots.Opened(), true)
	}
	named := a.ask || a.source != keySource{} // then it has to open
	if named || !errs.Is(keyErr, errs.Denied) && !errs.Is(keyErr, errs.NotFound) && !errs.Is(keyErr, errs.Invalid) {
		return keyErr
	}
	list, err := repo.PeekKeySlots(cmd.Context(), folder.store)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "nothing proves this list, because no key opened the repository: %s\n", keyErr)
	return printKeyList(cmd, list, repo.KeySlotID{}, false)
}

func newKeyRemoveCommand() *cobra.Command {
	var a keyAccess
	var yes bool
	cmd := &cobra.Command{
		Use:   "remove SLOT --data-dir DIR",
		Short: "Remove a key slot (server stopped)",
		Long: `Remove a key slot, named by the first digits of its id in cairn key list. The
server must be stopped. The repository is opened with another key than the one
to be removed, which proves that it can still be opened afterwards.

` + stillReads,
		Example: `  cairn key remove 3fa4c2d1 --data-dir /var/lib/cairn`,
		Args:    arity("SLOT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(func(ctx context.Context, w keyWork, args []string) error {
				return w.remove(ctx, args[0], yes)
			})(cmd, args)
		},
	}
	a.addFlags(cmd)
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask, also not on a terminal")
	return cmd
}

func (w keyWork) remove(ctx context.Context, prefix string, yes bool) error {
	slot, err := w.slot(prefix)
	if err != nil {
		return err
	}
	if slot.ID == w.slots.Opened() {
		return errs.New(errs.Conflict, "key slot %s is the one that your key opened; open the repository with another key to remove it, which proves that one exists", short(slot.ID))
	}
	if t, ok := terminalOf(w.cmd); ok && !yes {
		if err := t.confirm(ctx, fmt.Sprintf("Remove key slot %s (%s)?", short(slot.ID), slot.Kind)); err != nil {
			return err
		}
	}
	if _, err := w.slots.Change(ctx, nil, []repo.KeySlotID{slot.ID}, time.Now()); err != nil {
		return err
	}
	w.note("%s", stillReads)
	return w.print(keyReport{removed: []repo.KeySlot{slot}})
}
