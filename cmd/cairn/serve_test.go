package main

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/mem"
	"cairn/internal/errs"
	"cairn/internal/repo"
)

func TestListenRefusesWhatOthersReach(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:7480", ":7480", "[::]:7480", "192.0.2.1:7480", "example.com:7480", "127.0.0.1"} {
		if l, err := listenTCP("--listen", addr); err == nil {
			l.Close()
			t.Errorf("%s was accepted", addr)
		} else if !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	l, err := listenTCP("--listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := listenTCP("--listen", l.Addr().String()); !errs.Is(err, errs.Conflict) {
		t.Errorf("a taken port: %v", err)
	}
}

func TestKeyFile(t *testing.T) {
	ctx, log := t.Context(), slog.New(slog.DiscardHandler)
	path := filepath.Join(t.TempDir(), "repo.key")
	src := keySource{keyFile: path}
	store := mem.New()
	key, err := openKey(ctx, src, store, log)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	if again, err := openKey(ctx, src, store, log); err != nil || again != key {
		t.Errorf("the second start: %v", err)
	}
	// A crash between key and repository: the key is used.
	empty := mem.New()
	if again, err := openKey(ctx, src, empty, log); err != nil || again != key {
		t.Errorf("a key without a repository: %v", err)
	}
	if _, err := repo.Open(ctx, empty, key, t.TempDir()); err != nil {
		t.Errorf("the repository of that key: %v", err)
	}
	if err := os.WriteFile(path, []byte("not a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openKey(ctx, src, store, log); !errs.Is(err, errs.Invalid) {
		t.Errorf("a damaged key file: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := openKey(ctx, src, store, log); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "put your copy back") {
		t.Errorf("a lost key file: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a lost key file was made anew")
	}
}

// An empty database beside a repository with points would hide them all.
func TestALostDatabaseIsNotMadeAnew(t *testing.T) {
	ctx, store := t.Context(), mem.New()
	key := repo.NewKey()
	path := filepath.Join(t.TempDir(), "cairn.db")
	open := func(s blobstore.Store) error {
		r, err := repo.Open(ctx, s, key, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		db, err := openDatabase(ctx, path, r)
		if err != nil {
			return err
		}
		return db.Close()
	}
	if err := repo.Init(ctx, store, key, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := store.Put(ctx, "point/ss-AAAA0000."+strings.Repeat("0", 32)+".a", []byte("a point")); err != nil {
		t.Fatal(err)
	}
	refused := func() {
		t.Helper()
		if err := open(store); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "cairn repo recover --data-dir "+filepath.Dir(path)) {
			t.Errorf("got %v", err)
		}
		if _, err := os.Stat(path); err == nil {
			t.Error("a database was made")
		}
	}
	refused()
	if err := store.Delete(ctx, "point/ss-AAAA0000."+strings.Repeat("0", 32)+".a"); err != nil {
		t.Fatal(err)
	}
	// Volumes without points are worth as much.
	if err := store.Put(ctx, "journal/0000000000000001.a", []byte("volumes")); err != nil {
		t.Fatal(err)
	}
	refused()
	if err := store.Delete(ctx, "journal/0000000000000001.a"); err != nil {
		t.Fatal(err)
	}
	if err := open(store); err != nil {
		t.Errorf("an empty repository: %v", err)
	}
}

func TestServeRefusesBadSettings(t *testing.T) {
	good := serveConfig{dataDir: t.TempDir(), listen: "127.0.0.1:0", zones: []string{"ac1"}, jobs: 1, maxChain: 30, logFormat: "text", logLevel: "info"}
	for name, change := range map[string]func(*serveConfig){
		"no folder": func(c *serveConfig) { c.dataDir = "" }, "no zone": func(c *serveConfig) { c.zones = nil },
		"no jobs": func(c *serveConfig) { c.jobs = 0 }, "no chain": func(c *serveConfig) { c.maxChain = 0 },
		"log format": func(c *serveConfig) { c.logFormat = "xml" }, "log level": func(c *serveConfig) { c.logLevel = "loud" },
		"address": func(c *serveConfig) { c.listen = "0.0.0.0:0" },
	} {
		c := good
		change(&c)
		if err := serve(t.Context(), c, io.Discard); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
