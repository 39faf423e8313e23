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
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
	"cairn/internal/repo"
)

// passphraseMax bounds what is read of a passphrase file; what is longer is
// refused as a passphrase.
const passphraseMax = 4 << 10

// keySource says what opens the repository: a key file, or a passphrase in a
// file. Secrets themselves never stand on a command line.
type keySource struct {
	keyFile, passphraseFile string
}

func (k *keySource) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&k.keyFile, "key-file", "", "key `FILE` of the repository, or a file with its recovery key (default DIR/repo.key)")
	f.StringVar(&k.passphraseFile, "passphrase-file", "", "`FILE` with the passphrase of the repository, instead of a key file (default $CAIRN_PASSPHRASE_FILE)")
}

// in fills in what the flags leave open.
func (k keySource) in(dir string, getenv func(string) string) (keySource, error) {
	switch {
	case k.keyFile != "" && k.passphraseFile != "":
		return k, errs.New(errs.Invalid, "--key-file and --passphrase-file exclude each other; name the one that is to open the repository")
	case k.keyFile != "" || k.passphraseFile != "":
		return k, nil
	}
	if k.passphraseFile = getenv("CAIRN_PASSPHRASE_FILE"); k.passphraseFile == "" {
		k.keyFile = filepath.Join(dir, "repo.key")
	}
	return k, nil
}

// read reads the key. fs.ErrNotExist: there is no key file.
func (k keySource) read(log *slog.Logger) (repo.Opener, error) {
	if k.passphraseFile != "" {
		return readPassphrase(k.passphraseFile, log)
	}
	return readKey(k.keyFile, log)
}

// openKey reads the key, or makes the repository at the first start, with a
// new key file if no passphrase is given.
func openKey(ctx context.Context, src keySource, store blobstore.Store, log *slog.Logger) (repo.Opener, error) {
	exists, err := repo.Exists(ctx, store)
	if err != nil {
		return nil, err
	}
	if !exists {
		return makeRepository(ctx, src, store, log)
	}
	key, err := src.read(log)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "the key file %s is missing and the repository cannot be read without it; put your copy back, or name another key with --key-file or --passphrase-file", src.keyFile)
	}
	if err != nil {
		return nil, err
	}
	return finishRotation(ctx, src, key, store, log)
}

// makeRepository makes the repository. Its key is durable before, so a crash
// in between leaves a key that the next start uses.
func makeRepository(ctx context.Context, src keySource, store blobstore.Store, log *slog.Logger) (repo.Opener, error) {
	key, err := src.read(log)
	if errors.Is(err, fs.ErrNotExist) {
		k := repo.NewKey()
		key, err = k, writeKey(src.keyFile, k)
	}
	if p, ok := key.(repo.Passphrase); ok && err == nil {
		err = p.CheckNew()
	}
	if err != nil {
		return nil, err
	}
	if err := repo.Init(ctx, store, key, time.Now()); err != nil {
		return nil, err
	}
	if src.passphraseFile != "" {
		log.Warn("a new repository was made that its passphrase opens: without that no point can ever be read; print a recovery key with cairn key recovery", "passphrase_file", src.passphraseFile)
	} else {
		log.Warn("a new repository was made; copy its key file to a safe place now: without it no point can ever be read, and whoever has it can read them all", "key_file", src.keyFile)
	}
	return key, nil
}

func readKey(path string, log *slog.Logger) (repo.Opener, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	warnIfShared(path, "the key file", log)
	key, err := repo.ParseKey(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func readPassphrase(path string, log *slog.Logger) (repo.Passphrase, error) {
	f, err := os.Open(path)
	if err != nil {
		return repo.Passphrase{}, errs.New(errs.NotFound, "the passphrase file cannot be read: %s", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, passphraseMax))
	if err != nil {
		return repo.Passphrase{}, fmt.Errorf("read the passphrase file %s: %w", path, err)
	}
	warnIfShared(path, "the passphrase file", log)
	p, err := repo.ParsePassphrase(string(b))
	if err != nil {
		return p, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

func warnIfShared(path, what string, log *slog.Logger) {
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		log.Warn(what+" can be read by other users; run chmod 600 on it", "file", path)
	}
}

// writeKey makes the key file durable; a crash leaves it whole or absent.
func writeKey(path string, key repo.Key) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".cairn-*.key") // 0600
	if err != nil {
		return fmt.Errorf("make the key file: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it is gone after the link
	_, err = f.WriteString(key.Text())
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the key file %s: %w", path, err)
	}
	if err := publish(f.Name(), path); err != nil {
		return fmt.Errorf("put the key file in place: %w", err)
	}
	return nil
}

// publish gives a synced file the name path durably, and never takes it from
// another one (fs.ErrExist). Memory sticks have no hard links.
func publish(tmp, path string) error {
	err := os.Link(tmp, path)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync the folder %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync the folder %s: %w", dir, err)
	}
	return nil
}

// nextKeyPath is where a rotation keeps the new key until the old one opens
// nothing any more.
func nextKeyPath(path string) string { return strings.TrimSuffix(path, ".key") + ".next.key" }

// finishRotation puts the new key file in place if a rotation was cut off
// after the repository had changed: the key file then opens nothing, and the
// one beside it does.
func finishRotation(ctx context.Context, src keySource, key repo.Opener, store blobstore.Store, log *slog.Logger) (repo.Opener, error) {
	if src.keyFile == "" {
		return key, nil
	}
	_, wrong := repo.OpenKeySlots(ctx, store, key)
	if wrong == nil || !errs.Is(wrong, errs.Denied) {
		return key, wrong
	}
	path, err := filepath.EvalSymlinks(src.keyFile)
	if err != nil {
		return nil, wrong
	}
	next, err := readKey(nextKeyPath(path), log)
	if err != nil {
		return nil, wrong
	}
	if _, err := repo.OpenKeySlots(ctx, store, next); err != nil {
		return nil, wrong
	}
	if err := putNextKey(path); err != nil {
		return nil, err
	}
	log.Warn("a rotation of the key file had been cut off and is finished; the key file is the new one", "file", path)
	return next, nil
}

// putNextKey replaces the key file by the new one, at once and durably.
func putNextKey(path string) error {
	if err := os.Rename(nextKeyPath(path), path); err != nil {
		return fmt.Errorf("put the new key file in place: %w", err)
	}
	return syncFolder(filepath.Dir(path))
}
