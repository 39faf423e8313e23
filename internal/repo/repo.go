// Package repo is the data at rest: it keeps points as trees of chunks in
// immutable packs. FORMAT.md beside this file is the authority for every byte.
//
// Invariants: I1 to I8 of FORMAT.md §9. The package writes in the order of §8;
// what must be asked of the database (who owns a pack, did a session commit)
// goes through Recorder, so that no SQL is known here.
//
// A Repo and a Session serve any number of goroutines, a Reader and a
// PointWriter's Leaf only one.
package repo

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"sync"
	"time"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
	"cairn/internal/repo/addr"
	"cairn/internal/repo/index"
	"cairn/internal/repo/keys"
	"cairn/internal/repo/pack"
	"cairn/internal/repo/tree"
)

// The words of the rooms below that callers need.
type (
	// ID is a keyed hash; the zero ID stands for all zeros.
	ID = addr.ID
	// PackID is a pack's random name.
	PackID = addr.PackID
	// Pack names a pack well enough to find its blob.
	Pack = addr.Pack
	// Loc is where a record lies.
	Loc = addr.Loc
	// Ref is a slot of a tree: content and where it lies.
	Ref = addr.Ref
	// Root is a whole tree.
	Root = tree.Root
	// Node is one node of a tree.
	Node = tree.Node
	// Key is the content of a key file.
	Key = keys.File
	// Opener is what opens a key slot: a Key, Passphrase or RecoveryKey.
	Opener = keys.Opener
	// Blob is a stored blob's name and size.
	Blob = blobstore.Info
)

// Kinds of packs that callers tell apart.
const (
	// PointKind is the kind of the packs that hold one point's manifest.
	PointKind = addr.Point
	// DataKind is the kind of the packs that hold chunks only.
	DataKind = addr.Data
)

// ChunkSize is the size of every chunk in bytes.
const ChunkSize = addr.ChunkSize

// Fanout is the number of chunks that a leaf holds.
const Fanout = tree.Fanout

const (
	nodeCacheSize = 2048 // decoded nodes, under 3 KiB each
	keyCacheSize  = 4096 // pack ciphers, about 0.5 KiB each
	// blobHeaderMax bounds a header blob: 64 slots.
	blobHeaderMax = 16 << 10
)

// Repo is an open repository.
type Repo struct {
	store  blobstore.Store
	header *keys.Header
	master keys.Master
	sealer *pack.Sealer
	idx    *index.Index

	memory  *packMemory
	readers sync.Pool // *Reader
	nodes   *lru[nodeKey, *Node]
	ciphers *lru[PackID, cipher.AEAD]
	moves   *moves
}

// Collected reports whether packs of the kind are kept and deleted by marking.
// The journal is not: it has an order of its own.
func Collected(k addr.Kind) bool {
	return k == addr.Data || k == addr.Node || k == addr.Point || k == addr.Reloc
}

// ParsePackID reads a pack id's 32 hex digits.
func ParsePackID(s string) (PackID, error) { return addr.ParsePackID(s) }

// ValidSnapshot reports whether s can be a snapshot's id in a blob's name.
func ValidSnapshot(s string) bool { return tree.ValidSnapshot(s) }

// NewKey draws the key file of a repository that is to be made.
func NewKey() Key {
	var id PackID
	keys.Random(id[:])
	return keys.NewFile(id)
}

// ParseKey reads a key file's text, or a recovery key that was typed into it.
func ParseKey(text string) (Opener, error) { return keys.ParseKey(text) }

// Init makes a repository that the key, a Key or a Passphrase, opens.
// errs.Exists: one is there already.
// The key must be durable in the operator's hands before: a crash in between
// leaves a key without a repository, never the other way round.
func Init(ctx context.Context, store blobstore.Store, key Opener, now time.Time) error {
	if have, err := Exists(ctx, store); err != nil {
		return err
	} else if have {
		return errs.New(errs.Exists, "a repository is there already; open it with its key")
	}
	var id PackID
	switch k := key.(type) {
	case Key:
		id = k.Repo
	case Passphrase:
		keys.Random(id[:])
	default:
		return errs.New(errs.Invalid, "a repository is made with a key file or a passphrase, not with %s; name another key", key)
	}
	m := keys.NewMaster()
	return putHeader(ctx, store, keys.NewHeader(m, id, key, now), m)
}

// Exists reports whether the store holds a repository, in whatever state.
// errs.NotFound: it holds blobs whose header is lost, which must not get a new
// one that opens none of them.
func Exists(ctx context.Context, store blobstore.Store) (bool, error) {
	exists, err := anyBlob(ctx, store, "header/")
	if err != nil || exists {
		return exists, err
	}
	orphans, err := anyBlob(ctx, store, "")
	if err == nil && orphans {
		err = errs.New(errs.NotFound, "the repository's header is lost, and without it nothing can be read; put header/ back from a copy of the repository")
	}
	return false, err
}

// Open opens the repository with its key. indexDir holds the dedup index,
// which may be lost at any time. Errors: errs.NotFound (no repository),
// errs.Denied (wrong key), errs.Corrupt (both header copies damaged),
// errs.Conflict (unknown version).
func Open(ctx context.Context, store blobstore.Store, key Opener, indexDir string) (*Repo, error) {
	h, m, err := openHeader(ctx, store, key)
	if err != nil {
		return nil, err
	}
	if err := settleHeader(ctx, store, h, m); err != nil {
		return nil, err
	}
	idx, err := index.Open(indexDir)
	if err != nil {
		return nil, fmt.Errorf("open the dedup index: %w", err)
	}
	return newRepo(store, h, m, idx), nil
}

func newRepo(store blobstore.Store, h *keys.Header, m keys.Master, idx *index.Index) *Repo {
	return &Repo{
		store: store, header: h, master: m, sealer: pack.NewSealer(h.Repo, m), idx: idx,
		memory: newPackMemory(), nodes: newLRU[nodeKey, *Node](nodeCacheSize), ciphers: newLRU[PackID, cipher.AEAD](keyCacheSize),
		moves: newMoves(),
	}
}

// readSmall reads a blob whole, if it is at most limit bytes long.
func readSmall(ctx context.Context, store blobstore.Store, name string, limit int64) ([]byte, error) {
	return readInto(ctx, store, name, limit, nil)
}

// readInto is readSmall into buf's memory, if the blob fits there.
func readInto(ctx context.Context, store blobstore.Store, name string, limit int64, buf []byte) ([]byte, error) {
	info, err := store.Stat(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("look up blob %s: %w", name, err)
	}
	if info.Size > limit {
		return nil, fmt.Errorf("blob %s has %d bytes, above the limit of %d: %w", name, info.Size, limit, pack.ErrDamaged)
	}
	b := grow(buf, int(info.Size))
	if _, err := store.ReadAt(ctx, name, b, 0); err != nil {
		return nil, fmt.Errorf("read blob %s: %w", name, err)
	}
	return b, nil
}

// HasPoints reports whether any point pack is stored, committed or not.
func (r *Repo) HasPoints(ctx context.Context) (bool, error) {
	return anyBlob(ctx, r.store, "point/")
}

func anyBlob(ctx context.Context, store blobstore.Store, prefix string) (bool, error) {
	found := errors.New("found")
	err := store.List(ctx, prefix, func(Blob) error { return found })
	if err == nil || errors.Is(err, found) {
		return err != nil, nil
	}
	return false, fmt.Errorf("look for blobs under %q: %w", prefix, err)
}

// RepoID names the repository.
func (r *Repo) RepoID() string { return r.header.Repo.String() }

// IndexDropped tells what of the dedup index was found damaged and dropped.
func (r *Repo) IndexDropped() []string { return r.idx.Dropped() }

// Distrust takes packs out of the dedup index, so that no later point builds on
// what was found damaged. Points that hint at them already are not touched.
func (r *Repo) Distrust(ctx context.Context, packs []PackID) error {
	ids := make([][16]byte, len(packs))
	for i, id := range packs {
		ids[i] = id
	}
	if err := r.idx.RemovePacks(ctx, ids); err != nil {
		return fmt.Errorf("drop damaged packs from the dedup index: %w", err)
	}
	return nil
}

// Close gives memory and files back. Nothing unsaved is lost.
func (r *Repo) Close() error { return r.idx.Close() }
