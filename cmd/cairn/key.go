package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
	"cairn/internal/repo"
)

// openKey reads the key file, or makes key and repository at the first start.
// The key is durable before the repository exists, so a crash in between
// leaves a key that the next start uses.
func openKey(ctx context.Context, path string, store blobstore.Store, log *slog.Logger) (repo.Key, error) {
	var none repo.Key
	exists, err := repo.Exists(ctx, store)
	if err != nil {
		return none, err
	}
	key, err := readKey(path, log)
	if errors.Is(err, fs.ErrNotExist) {
		if exists {
			return none, errs.New(errs.NotFound, "the key file %s is missing and the repository cannot be read without it; put your copy back, or name it with --key-file", path)
		}
		key = repo.NewKey()
		err = writeKey(path, key)
	}
	if err != nil || exists {
		return key, err
	}
	if err := repo.Init(ctx, store, key, time.Now()); err != nil {
		return none, err
	}
	log.Warn("a new repository was made; copy its key file to a safe place now: without it no point can ever be read, and whoever has it can read them all", "key_file", path)
	return key, nil
}

func readKey(path string, log *slog.Logger) (repo.Key, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return repo.Key{}, err
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		log.Warn("the key file can be read by other users; run chmod 600 on it", "key_file", path)
	}
	key, err := repo.ParseKey(string(b))
	if err != nil {
		return repo.Key{}, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// writeKey makes the key file durable; a crash leaves it whole or absent.
func writeKey(path string, key repo.Key) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".cairn-key-*") // 0600
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
	if err := os.Link(f.Name(), path); err != nil {
		return fmt.Errorf("put the key file in place: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync the key file's folder: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync the key file's folder: %w", err)
	}
	return nil
}
