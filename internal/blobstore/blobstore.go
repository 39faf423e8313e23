// Package blobstore is the contract between the repository and where its
// bytes lie. Drivers: file, mem; faulty wraps any of them for tests.
// blobtest.Run is the suite that every driver passes.
//
// Invariants every driver keeps:
//   - a blob is immutable: Put never replaces one, it answers ErrExists;
//   - when Put returns nil the blob is durable (file and folder synced, or
//     acknowledged by the remote side with a matching checksum);
//   - a Put that fails or is cut off leaves no blob under the name, or a
//     whole one, never a part of one;
//   - "absent" (ErrNotFound) and "could not tell" (any other error) differ.
//
// All methods may be called by any number of goroutines at once.
package blobstore

import (
	"context"
	"errors"
)

// ErrNotFound says that no blob has the name.
var ErrNotFound = errors.New("blob not found")

// ErrExists says that Put's name is taken. The stored blob is untouched.
var ErrExists = errors.New("blob exists")

// Info describes one blob.
type Info struct {
	Name string
	Size int64 // bytes
}

// Store keeps named immutable blobs.
//
// A name is 1 to 200 bytes of [a-z0-9A-Z._-] parts joined by single slashes;
// no part starts with a dot. Other names are refused with errs.Invalid
// (CheckName). Nobody uses a name that is a folder of another one, like a and
// a/b: a driver may refuse the second with errs.Invalid.
type Store interface {
	// Put stores the concatenation of parts as a new blob. It does not keep
	// or change the slices. After an error the outcome is unknown to the
	// caller until Stat says otherwise.
	Put(ctx context.Context, name string, parts ...[]byte) error

	// ReadAt fills buf from byte off of the blob. Fewer bytes than len(buf)
	// is an error (io.ErrUnexpectedEOF), and n says how many were there.
	ReadAt(ctx context.Context, name string, buf []byte, off int64) (n int, err error)

	// Stat tells a blob's size, or ErrNotFound.
	Stat(ctx context.Context, name string) (Info, error)

	// List calls fn for every blob whose name starts with prefix, in no
	// particular order, and stops at fn's first error, which it returns.
	// Blobs put or deleted meanwhile may or may not show up. Leftovers of
	// cut-off Puts never do.
	List(ctx context.Context, prefix string, fn func(Info) error) error

	// Delete removes a blob, durably when it returns. Removing an absent
	// one is not an error.
	Delete(ctx context.Context, name string) error
}
