package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
	"cairn/internal/repo"
)

// newSecret says what a new slot is to be opened by.
type newSecret struct {
	keyFile, passphraseFile string
	askPassphrase           bool
}

func (n *newSecret) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&n.keyFile, "new-key-file", "", "make a new key `FILE`")
	f.StringVar(&n.passphraseFile, "new-passphrase-file", "", "`FILE` with the new passphrase")
	f.BoolVar(&n.askPassphrase, "new-passphrase", false, "ask on the terminal for the new passphrase")
}

// given counts what the flags name.
func (n newSecret) given() (count int) {
	for _, is := range []bool{n.keyFile != "", n.passphraseFile != "", n.askPassphrase} {
		if is {
			count++
		}
	}
	return count
}

// passphrase reads or asks for the new passphrase.
func (n newSecret) passphrase(cmd *cobra.Command) (repo.Passphrase, error) {
	if n.passphraseFile != "" {
		p, err := readPassphrase(n.passphraseFile, commandLog(cmd))
		if err == nil {
			err = p.CheckNew()
		}
		return p, err
	}
	t, ok := terminalOf(cmd)
	if !ok {
		return repo.Passphrase{}, errs.New(errs.Invalid, "a new passphrase cannot be asked for, because standard input is no terminal; name a file with --new-passphrase-file")
	}
	return t.newPassphrase(cmd.Context())
}

func newKeyAddCommand() *cobra.Command {
	var a keyAccess
	var n newSecret
	cmd := &cobra.Command{
		Use:   "add --data-dir DIR --new-key-file FILE | --new-passphrase | --new-passphrase-file FILE",
		Short: "Add a key file or a passphrase to a repository (server stopped)",
		Long: `Add a key slot for a new key file, which is made, or for a new passphrase. All
earlier keys go on to open the repository. The server must be stopped.

Passphrases are stretched with Argon2id (64 MiB, 3 passes). Serve with one by
cairn serve --passphrase-file FILE or CAIRN_PASSPHRASE_FILE.`,
		Example: `  cairn key add --data-dir /var/lib/cairn --new-passphrase
  cairn key add --data-dir /var/lib/cairn --new-key-file /media/usb/cairn.key
  cairn key add --data-dir /var/lib/cairn --ask --new-key-file /var/lib/cairn/repo.key`,
		Args: arity(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if n.given() != 1 {
				return errs.New(errs.Invalid, "say what to add: one of --new-key-file, --new-passphrase and --new-passphrase-file (a recovery key: cairn key recovery)")
			}
			return a.run(func(ctx context.Context, w keyWork, _ []string) error { return w.add(ctx, n) })(cmd, args)
		},
	}
	a.addFlags(cmd)
	n.addFlags(cmd)
	return cmd
}

func (w keyWork) add(ctx context.Context, n newSecret) error {
	var key repo.Opener
	var err error
	report := keyReport{}
	if n.keyFile != "" {
		report.KeyFile = n.keyFile
		key, err = makeKeyFile(w.slots, n.keyFile)
	} else {
		key, err = n.passphrase(w.cmd)
	}
	if err != nil {
		return err
	}
	if report.added, err = w.slots.Change(ctx, []repo.Opener{key}, nil, time.Now()); err != nil {
		return err
	}
	return w.print(report)
}

// makeKeyFile makes a new key file, durable before any slot is made for it. A
// file that is there is taken if it is a key of this repository: an earlier
// try may have been cut off. That it opens nothing yet is Change's to check.
func makeKeyFile(s *repo.KeySlots, path string) (repo.Opener, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key := s.NewKey()
		return key, writeKey(path, key)
	}
	if err != nil {
		return nil, fmt.Errorf("look for the new key file: %w", err)
	}
	key, err := repo.ParseKey(string(b))
	if k, ok := key.(repo.Key); err != nil || !ok || k.Repo != s.List().Repo {
		return nil, errs.New(errs.Exists, "the file %s is there already and is no key of this repository; choose another name", path)
	}
	return key, nil
}

func newKeyRotateCommand() *cobra.Command {
	var a keyAccess
	var n newSecret
	cmd := &cobra.Command{
		Use:   "rotate --data-dir DIR",
		Short: "Replace the key that opens the repository by a new one (server stopped)",
		Long: `Replace the key by which this command opens the repository by a new one of the
same kind, in one step. The server must be stopped.

A key file is replaced in place, so that the server finds the new key where the
old one was; with --new-key-file the new key goes there and the old file stays,
opening nothing. For a passphrase name the new one with --new-passphrase-file,
or it is asked for. For a recovery key the new one is printed. After a crash at
any moment either the old or the new key opens the repository.

` + stillReads,
		Example: `  cairn key rotate --data-dir /var/lib/cairn
  cairn key rotate --data-dir /var/lib/cairn --passphrase-file old --new-passphrase-file new`,
		Args: arity(),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(func(ctx context.Context, w keyWork, _ []string) error { return w.rotate(ctx, n) })(cmd, args)
		},
	}
	a.addFlags(cmd)
	n.addFlags(cmd)
	return cmd
}

func (w keyWork) rotate(ctx context.Context, n newSecret) (err error) {
	report := keyReport{}
	for _, s := range w.slots.List().Slots {
		if s.ID == w.slots.Opened() {
			report.removed = []repo.KeySlot{s}
		}
	}
	switch kind := report.removed[0].Kind; {
	case kind == repo.KeyFileSlot && n.given() == 0:
		report.KeyFile = w.source.keyFile
		report.added, err = rotateKeyFile(ctx, w.slots, w.folder.store, w.source.keyFile, time.Now())
	case kind == repo.KeyFileSlot && n.keyFile != "" && n.given() == 1:
		report.KeyFile = n.keyFile
		report.added, err = w.replace(ctx, func() (repo.Opener, error) { return makeKeyFile(w.slots, n.keyFile) })
	case kind == repo.PassphraseSlot && n.keyFile == "" && n.given() <= 1:
		report.added, err = w.replace(ctx, func() (repo.Opener, error) { return n.passphrase(w.cmd) })
	case kind == repo.RecoverySlot && n.given() == 0:
		return w.recovery(ctx, []repo.KeySlotID{w.slots.Opened()})
	default:
		return errs.New(errs.Invalid, "a %s is rotated to a new %s, and the --new… flags say something else; use cairn key add, then cairn key remove", kind, kind)
	}
	if err != nil {
		return err
	}
	w.note("%s", stillReads)
	return w.print(report)
}

// replace puts a new slot in the place of the one that opened.
func (w keyWork) replace(ctx context.Context, make func() (repo.Opener, error)) ([]repo.KeySlot, error) {
	key, err := make()
	if err != nil {
		return nil, err
	}
	if key == w.key {
		return nil, errs.New(errs.Invalid, "%s is the new one and the old one; nothing was changed", key)
	}
	return w.slots.Change(ctx, []repo.Opener{key}, []repo.KeySlotID{w.slots.Opened()}, time.Now())
}

// rotateKeyFile replaces a key file and its slot. The new key is durable beside
// the old one before the repository changes, and takes its place afterwards;
// after a crash in between finishRotation does that.
func rotateKeyFile(ctx context.Context, s *repo.KeySlots, store blobstore.Store, path string, now time.Time) ([]repo.KeySlot, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("find the key file: %w", err)
	}
	next := nextKeyPath(path)
	if err := removeUselessKey(ctx, store, next); err != nil {
		return nil, err
	}
	key := s.NewKey()
	if err := writeKey(next, key); err != nil {
		return nil, err
	}
	added, err := s.Change(ctx, []repo.Opener{key}, []repo.KeySlotID{s.Opened()}, now)
	if err != nil {
		return nil, err
	}
	return added, putNextKey(path)
}

// removeUselessKey removes what a rotation left that was cut off before the
// repository had changed.
func removeUselessKey(ctx context.Context, store blobstore.Store, path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for the rest of an earlier rotation: %w", err)
	}
	key, err := repo.ParseKey(string(b))
	if err == nil {
		_, err = repo.OpenKeySlots(ctx, store, key)
	}
	if err == nil || !errs.Is(err, errs.Denied) {
		return errs.New(errs.Exists, "the file %s is in the way of the new key and no rest of a rotation; move it elsewhere first", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the rest of an earlier rotation: %w", err)
	}
	return syncFolder(filepath.Dir(path))
}

func newKeyRecoveryCommand() *cobra.Command {
	var a keyAccess
	var replace bool
	cmd := &cobra.Command{
		Use:   "recovery --data-dir DIR",
		Short: "Make a recovery key and print it (server stopped)",
		Long: `Make a recovery key, add a slot for it, and print it to stdout: ten groups of
five letters and digits that survive paper. Letters that look like digits are taken
for them, and each group has a check of its own, so that a typing error is named
by its group. It is shown this once. Keep it apart from the repository: whoever
has both reads everything. The server must be stopped.

To use it when all other keys are lost, type it at the prompt of --ask, or into
a file that you name with --key-file:

  cairn key add --data-dir DIR --ask --new-key-file DIR/repo.key

With --replace the new one takes the place of all earlier recovery keys.
` + stillReads,
		Args: arity(),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(func(ctx context.Context, w keyWork, _ []string) error {
				var drop []repo.KeySlotID
				if replace {
					drop = w.ofKind(repo.RecoverySlot)
				}
				return w.recovery(ctx, drop)
			})(cmd, args)
		},
	}
	a.addFlags(cmd)
	cmd.Flags().BoolVar(&replace, "replace", false, "remove all earlier recovery keys")
	return cmd
}

// recovery makes a recovery key, drops slots in its favour, and prints it.
func (w keyWork) recovery(ctx context.Context, drop []repo.KeySlotID) error {
	report := keyReport{}
	for _, s := range w.slots.List().Slots {
		for _, id := range drop {
			if s.ID == id {
				report.removed = append(report.removed, s)
			}
		}
	}
	key := w.slots.NewRecoveryKey()
	var err error
	if report.added, err = w.slots.Change(ctx, []repo.Opener{key}, drop, time.Now()); err != nil {
		return err
	}
	report.RecoveryKey = key.Text()
	if err := w.print(report); err != nil {
		return errs.Wrap(errs.Internal, err, "the recovery key could not be printed and is lost; remove its slot %s and make another", short(report.added[0].ID))
	}
	if len(drop) > 0 {
		w.note("%s", stillReads)
	}
	w.note("Write it down or print it, and keep it apart from the repository. It is not shown again.")
	return nil
}
