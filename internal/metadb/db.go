// Package metadb keeps the service's rows in a SQL database. It implements
// service.Store and job.Store; metadbtest.Run is the suite for it.
//
// Invariants:
//   - one writer at a time: every Update is one serializable transaction and
//     is durable (WAL, synchronous=FULL) before Update returns nil;
//   - a View sees one snapshot of the rows and never waits for a writer;
//   - the database, not the caller, enforces what must never be wrong: one
//     head per resource, one holder per lock, one volume per identity;
//   - a file that is damaged, foreign or newer than this program is refused,
//     never replaced.
//
// No transaction may span I/O: there is one writer, and everybody waits for
// it. A DB serves any number of goroutines.
package metadb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	_ "modernc.org/sqlite" // the "sqlite" driver of database/sql

	"cairn/internal/errs"
	"cairn/internal/service"
)

// readers bounds how many Views run at once; more wait for a connection.
const readers = 4

// cacheBytes bounds the search blocks kept in memory: enough for two million
// snapshots. They are only kept once somebody lists or searches.
const cacheBytes = 96 << 20

// DB is an open metadata database.
type DB struct {
	write  *bun.DB // one connection: SQLite has one writer, waiting in Go is fair
	read   *bun.DB
	limits limits
	cache  *blockCache
	onFull func() bool
	// loading: what lists are made of is not kept; see OpenToLoad.
	loading bool
}

var _ service.Store = (*DB)(nil)

// Open opens the database file at path. An absent one is made, under another
// name first, so that a crash leaves nothing or a whole database. errs.Conflict:
// a newer program wrote it, or it is not ours; errs.Corrupt: it is damaged.
func Open(ctx context.Context, path string) (*DB, error) {
	db, err := open(ctx, path)
	if err != nil {
		return nil, err
	}
	if err := db.rebuildLists(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func open(ctx context.Context, path string) (*DB, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("resolve the database's path: %w", err)
	}
	if err := ensureFile(ctx, path); err != nil {
		return nil, err
	}
	if err := checkFile(ctx, path); err != nil {
		return nil, err
	}
	write, err := openWriter(ctx, path)
	if err != nil {
		return nil, err
	}
	if err := migrate(ctx, write); err != nil {
		return nil, errors.Join(err, write.Close())
	}
	read, err := openReaders(path)
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	return &DB{
		write:  bun.NewDB(write, sqlitedialect.New()),
		read:   bun.NewDB(read, sqlitedialect.New()),
		limits: defaultLimits(),
		cache:  newBlockCache(cacheBytes),
	}, nil
}

// OpenToLoad opens a database that is to be filled with very many rows. What
// lists are made of is not kept meanwhile, so the only snapshots to be had are
// those asked for by id; the next Open makes it. A crash in between is fine.
func OpenToLoad(ctx context.Context, path string) (*DB, error) {
	db, err := open(ctx, path)
	if err != nil {
		return nil, err
	}
	db.loading = true
	err = db.Update(ctx, func(tx service.Tx) error { return tx.SetSetting(listVersionKey, "") })
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// dsn is the driver's name for the file. It is a URI, so that no character
// of the path means anything to SQLite.
func dsn(path string, query string) string {
	u := url.URL{Scheme: "file", Path: path, RawQuery: query}
	return u.String()
}

func openWriter(ctx context.Context, path string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", dsn(path, "mode=rw"+
		"&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)"+
		"&_pragma=foreign_keys(1)&_pragma=cache_size(-16000)&_txlock=immediate"))
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	db.SetMaxOpenConns(1)
	db.SetMaxIdleConns(1)
	if err := db.PingContext(ctx); err != nil {
		return nil, errors.Join(explain(err), db.Close())
	}
	return db, nil
}

func openReaders(path string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", dsn(path, "mode=ro"+
		"&_pragma=busy_timeout(10000)&_pragma=query_only(1)&_pragma=cache_size(-16000)&_txlock=deferred"))
	if err != nil {
		return nil, fmt.Errorf("open the database for reading: %w", err)
	}
	db.SetMaxOpenConns(readers)
	db.SetMaxIdleConns(readers)
	return db, nil
}

// ensureFile makes a new database when none is there.
func ensureFile(ctx context.Context, path string) error {
	_, err := os.Lstat(path)
	if err == nil {
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look at the database file: %w", err)
	}
	// A log without its database means that the database was lost: a new one
	// would hide that.
	if _, err := os.Lstat(path + "-wal"); err == nil {
		return errs.New(errs.Corrupt, "the metadata database is gone but its log is still there; put the database file back beside it, or rebuild the database with cairn repo recover")
	}
	fresh := path + ".new"
	for _, leftover := range []string{fresh, fresh + "-wal", fresh + "-shm", fresh + "-journal"} {
		if err := os.Remove(leftover); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the leftover of an earlier start: %w", err)
		}
	}
	return createFile(ctx, fresh, path)
}

// createFile makes a whole, empty database at fresh and renames it to path.
func createFile(ctx context.Context, fresh, path string) error {
	f, err := os.OpenFile(fresh, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("create the database file: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("create the database file: %w", err)
	}
	db, err := openWriter(ctx, fresh)
	if err != nil {
		return err
	}
	// Closing the last connection moves the log into the file and removes it.
	if err := errors.Join(migrate(ctx, db), db.Close()); err != nil {
		return fmt.Errorf("fill the new database: %w", err)
	}
	if f, err = os.Open(fresh); err != nil {
		return fmt.Errorf("open the new database: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close(), os.Rename(fresh, path)); err != nil {
		return fmt.Errorf("put the new database in its place: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("open the database's folder: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("sync the database's folder: %w", err)
	}
	return nil
}

// OnFull sets what is called when a transaction finds no space: if makeRoom
// says that it made some, the transaction is run once more from the start. Call
// it before anything else uses the DB.
func (db *DB) OnFull(makeRoom func() bool) { db.onFull = makeRoom }

// Close waits for running transactions and closes the file. The log is moved
// into the database by the last connection, which is the writer's: a reader may
// not.
func (db *DB) Close() error {
	return errors.Join(closePool(db.read), closePool(db.write))
}

// closePool closes all connections. A transaction that a cancelled context has
// ended is rolled back behind our back, and sql.DB does not wait for that.
func closePool(pool *bun.DB) error {
	err := pool.Close()
	for end := time.Now().Add(closeLimit); pool.Stats().OpenConnections > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return errors.Join(err, errors.New("the database is closed while a transaction still runs"))
		}
	}
	return err
}

// closeLimit bounds the wait for a rollback, which takes milliseconds.
const closeLimit = 10 * time.Second

// View runs fn on one snapshot of the rows.
func (db *DB) View(ctx context.Context, fn func(tx service.Tx) error) error {
	return db.inTx(ctx, db.read, fn)
}

// Update runs fn in one serializable transaction, and once more from the start
// if the disk was full and room was made.
func (db *DB) Update(ctx context.Context, fn func(tx service.Tx) error) error {
	err := db.inTx(ctx, db.write, fn)
	if errs.Is(err, errs.Full) && db.onFull != nil && db.onFull() {
		err = db.inTx(ctx, db.write, fn)
	}
	return err
}

// inTx commits if fn returns nil; on its error or panic nothing is kept.
func (db *DB) inTx(ctx context.Context, on *bun.DB, fn func(tx service.Tx) error) (err error) {
	btx, err := on.BeginTx(ctx, nil)
	if err != nil {
		return cutOff(ctx, fmt.Errorf("begin a transaction: %w", explain(err)))
	}
	committed := false
	defer func() {
		if committed {
			return
		}
		// ErrTxDone: a cancelled context rolled it back already.
		if rerr := btx.Rollback(); rerr != nil && !errors.Is(rerr, sql.ErrTxDone) && err == nil {
			err = fmt.Errorf("roll back: %w", explain(rerr))
		}
	}()
	if err := fn(&tx{ctx: ctx, db: btx, limits: db.limits, cache: db.cache, writes: on == db.write, loading: db.loading}); err != nil {
		return cutOff(ctx, err)
	}
	if err := btx.Commit(); err != nil {
		return cutOff(ctx, fmt.Errorf("commit: %w", explain(err)))
	}
	committed = true
	return nil
}

// cutOff makes an error that a cancelled context caused say so: database/sql
// rolls back behind our back and then calls the transaction done, SQLite calls
// a statement interrupted. Other errors stay as they are.
func cutOff(ctx context.Context, err error) error {
	if ctx.Err() == nil || errors.Is(err, ctx.Err()) || (!errors.Is(err, sql.ErrTxDone) && !interrupted(err)) {
		return err
	}
	return fmt.Errorf("%w: %w", ctx.Err(), err)
}

// tx is one transaction. It carries its context because its methods, by
// contract, take none.
type tx struct {
	ctx    context.Context
	db     bun.Tx
	limits limits
	cache  *blockCache
	writes bool // may see rows that are never committed: must not fill the cache

	loading bool
}

var _ service.Tx = (*tx)(nil)
