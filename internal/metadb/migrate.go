package metadb

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/pressly/goose/v3"

	"cairn/internal/errs"
)

//go:embed migrations/sqlite/*.sql
var migrations embed.FS

// checkBytes is the largest file that Open reads whole to look for damage.
// Larger ones would delay the start; damage in them is found where it is read.
const checkBytes = 64 << 20

// checkFile refuses a file that SQLite cannot read.
func checkFile(ctx context.Context, path string) (err error) {
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("look at the database file: %w", err)
	}
	if !fi.Mode().IsRegular() {
		return errs.New(errs.Conflict, "the metadata database is not a regular file")
	}
	// SQLite would take an empty file for a new database.
	if fi.Size() == 0 {
		return errs.New(errs.Corrupt, "the metadata database is an empty file; rebuild it with cairn repo recover, or restore it from a copy")
	}
	db, err := sql.Open("sqlite", dsn(path, "mode=rw&_pragma=busy_timeout(10000)"))
	if err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)

	var tables int
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema WHERE name = 'goose_db_version'`).Scan(&tables); err != nil {
		return fmt.Errorf("read the database's schema: %w", explain(err))
	}
	if tables == 0 {
		return errs.New(errs.Conflict, "the metadata database's file is a database of another program; nothing was changed")
	}
	if fi.Size() > checkBytes {
		return nil
	}
	var finding string
	if err := db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&finding); err != nil {
		return fmt.Errorf("check the database: %w", explain(err))
	}
	if finding != "ok" {
		return errs.Wrap(errs.Corrupt, errors.New(finding), "%s", damagedMsg)
	}
	return nil
}

// migrate brings the schema up to this program's version, each step in a
// transaction, and refuses a newer one.
func migrate(ctx context.Context, db *sql.DB) error {
	dir, err := fs.Sub(migrations, "migrations/sqlite")
	if err != nil {
		return fmt.Errorf("find the migrations: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, dir)
	if err != nil {
		return fmt.Errorf("load the migrations: %w", err)
	}
	known := int64(0)
	for _, s := range p.ListSources() {
		known = max(known, s.Version)
	}
	have, err := p.GetDBVersion(ctx)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", explain(err))
	}
	if have > known {
		return errs.New(errs.Conflict, "the metadata database has version %d, this program knows up to %d; start the newer program that wrote it", have, known)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate the database: %w", explain(err))
	}
	return nil
}
