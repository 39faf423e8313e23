package metadb

import (
	"path/filepath"
	"testing"

	"cairn/internal/metadb/metadbtest"
	"cairn/internal/service"
)

func openAt(t testing.TB, path string) *DB {
	t.Helper()
	db, err := Open(t.Context(), path)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return db
}

func TestConformance(t *testing.T) {
	metadbtest.Run(t, func(t *testing.T) service.Store {
		return openAt(t, filepath.Join(t.TempDir(), "meta.db"))
	})
}

// Small blocks, searched even for short lists: the same suite must hold on
// the way that otherwise only a large database takes.
func TestConformanceBlocks(t *testing.T) {
	metadbtest.Run(t, func(t *testing.T) service.Store {
		db := openAt(t, filepath.Join(t.TempDir(), "meta.db"))
		db.limits = limits{blockEntries: 3, blockBytes: 200, scanRows: 0}
		return db
	})
}

func TestDurable(t *testing.T) {
	metadbtest.RunDurable(t, func(t *testing.T, dir string) service.Store {
		// A path of signs that mean something in URIs and SQL.
		return openAt(t, filepath.Join(dir, "m e?t#a%41'.db"))
	})
}
