package metadb

import (
	"errors"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"cairn/internal/errs"
)

const damagedMsg = "the metadata database is damaged; stop the server and rebuild the database with cairn repo recover, or restore the file from a copy"

// explain gives SQLite's errors the kinds that callers act on. Others stay as
// they are.
func explain(err error) error {
	var se *sqlite.Error
	if !errors.As(err, &se) {
		return err
	}
	// The low byte is the primary result code.
	switch se.Code() & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return errs.Wrap(errs.Corrupt, err, "%s", damagedMsg)
	case sqlite3.SQLITE_FULL:
		return errs.Wrap(errs.Full, err, "no space is left for the metadata database; free some and try again")
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return errs.Wrap(errs.Unavailable, err, "another process holds the metadata database; try again")
	}
	return err
}

// taken reports whether err says that a unique index or primary key refused.
func taken(err error) bool {
	var se *sqlite.Error
	if !errors.As(err, &se) {
		return false
	}
	return se.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || se.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}

// interrupted reports whether err says that a statement was stopped.
func interrupted(err error) bool {
	var se *sqlite.Error
	return errors.As(err, &se) && se.Code()&0xff == sqlite3.SQLITE_INTERRUPT
}
