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
	"sort"
	"strings"
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

// NewKey draws the key file of a repository that is to be made.
func NewKey() Key {
	var id PackID
	keys.Random(id[:])
	return keys.NewFile(id)
}

// ParseKey reads a key file's text.
func ParseKey(text string) (Key, error) { return keys.ParseFile(text) }

// Exists reports whether the store holds a repository's header.
func Exists(ctx context.Context, store blobstore.Store) (bool, error) {
	names, err := headerNames(ctx, store)
	return len(names) > 0, err
}

// Init makes a repository for the key. errs.Exists: one is there already.
// The key must be durable in the operator's hands before: a crash in between
// leaves a key without a repository, never the other way round.
func Init(ctx context.Context, store blobstore.Store, key Key, now time.Time) error {
	if have, err := Exists(ctx, store); err != nil {
		return err
	} else if have {
		return errs.New(errs.Exists, "a repository is there already; open it with its key file")
	}
	m := keys.NewMaster()
	h := keys.NewHeader(m, key, now)
	b := h.Encode(m)
	for _, suffix := range []string{".a", ".b"} {
		if err := store.Put(ctx, headerName(h.Generation)+suffix, b); err != nil {
			return fmt.Errorf("write the repository header: %w", err)
		}
	}
	return nil
}

func headerName(generation uint64) string { return fmt.Sprintf("header/%016x", generation) }

func headerNames(ctx context.Context, store blobstore.Store) ([]string, error) {
	var names []string
	err := store.List(ctx, "header/", func(i blobstore.Info) error {
		names = append(names, i.Name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the repository headers: %w", err)
	}
	return names, nil
}

// Open opens the repository with its key. indexDir holds the dedup index,
// which may be lost at any time. Errors: errs.NotFound (no repository),
// errs.Denied (wrong key), errs.Corrupt (both header copies damaged),
// errs.Conflict (unknown version).
func Open(ctx context.Context, store blobstore.Store, key Key, indexDir string) (*Repo, error) {
	h, m, err := openHeader(ctx, store, key)
	if err != nil {
		return nil, err
	}
	if err := completeHeader(ctx, store, h, m); err != nil {
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
		nodes: newLRU[nodeKey, *Node](nodeCacheSize), ciphers: newLRU[PackID, cipher.AEAD](keyCacheSize),
		moves: newMoves(),
	}
}

// openHeader tries the headers from the highest generation down to its second
// copy, and never an older generation: that would bring old key slots back.
func openHeader(ctx context.Context, store blobstore.Store, key Key) (*keys.Header, keys.Master, error) {
	var none keys.Master
	names, err := headerNames(ctx, store)
	if err != nil {
		return nil, none, err
	}
	if len(names) == 0 {
		return nil, none, errs.New(errs.NotFound, "there is no repository; start with an empty folder or put the repository back")
	}
	sort.Sort(sort.Reverse(sort.StringSlice(names)))
	newest, _, _ := strings.Cut(names[0], ".")
	var all []error
	for i := len(names) - 1; i >= 0; i-- {
		if g, _, _ := strings.Cut(names[i], "."); g != newest {
			continue
		}
		b, err := readSmall(ctx, store, names[i], blobHeaderMax)
		if err == nil {
			var h *keys.Header
			var m keys.Master
			if h, m, err = keys.Decode(b, key); err == nil {
				return h, m, nil
			}
			if !errs.Is(err, errs.Corrupt) {
				return nil, none, err
			}
		}
		all = append(all, fmt.Errorf("%s: %w", names[i], err))
	}
	return nil, none, errs.Wrap(errs.Corrupt, errors.Join(all...), "the repository header cannot be read in any copy; put header/ back from a copy of the repository")
}

// completeHeader writes the header's copy that a crash in Init, or a lost
// file, left out. A damaged copy is scrub's to report, not ours to hide.
func completeHeader(ctx context.Context, store blobstore.Store, h *keys.Header, m keys.Master) error {
	for _, suffix := range []string{".a", ".b"} {
		name := headerName(h.Generation) + suffix
		_, err := store.Stat(ctx, name)
		if errors.Is(err, blobstore.ErrNotFound) {
			err = store.Put(ctx, name, h.Encode(m))
		}
		if err != nil {
			return fmt.Errorf("complete the repository header: %w", err)
		}
	}
	return nil
}

// readSmall reads a blob whole, if it is at most limit bytes long.
func readSmall(ctx context.Context, store blobstore.Store, name string, limit int64) ([]byte, error) {
	info, err := store.Stat(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("look up blob %s: %w", name, err)
	}
	if info.Size > limit {
		return nil, fmt.Errorf("blob %s has %d bytes, above the limit of %d: %w", name, info.Size, limit, pack.ErrDamaged)
	}
	b := make([]byte, info.Size)
	if _, err := store.ReadAt(ctx, name, b, 0); err != nil {
		return nil, fmt.Errorf("read blob %s: %w", name, err)
	}
	return b, nil
}

// HasPoints reports whether any point pack is stored, committed or not.
func (r *Repo) HasPoints(ctx context.Context) (bool, error) {
	found := errors.New("found")
	err := r.store.List(ctx, "point/", func(Blob) error { return found })
	if err == nil || errors.Is(err, found) {
		return err != nil, nil
	}
	return false, fmt.Errorf("look for points: %w", err)
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
