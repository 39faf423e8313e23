package repo

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"cairn/internal/blobstore"
	"cairn/internal/repo/addr"
	"cairn/internal/repo/pack"
	"cairn/internal/repo/reloc"
	"cairn/internal/repo/tree"
)

// This file holds what scrub needs: whole blobs checked afresh, past every
// cache.

// BlobBytes is the size of a pack with all its copies.
func (r *Repo) BlobBytes(ctx context.Context, p Pack) (int64, error) {
	var n int64
	for _, name := range p.Copies() {
		info, err := r.store.Stat(ctx, name)
		if err != nil {
			return 0, fmt.Errorf("look up blob %s: %w", name, err)
		}
		n += info.Size
	}
	return n, nil
}

// ParseBlob tells what a blob's name stands for. ok=false: no blob of a
// repository has that name. header: a header, whose pack is empty.
func ParseBlob(name string) (p Pack, header, ok bool) {
	if _, ok := parseHeaderName(name); ok {
		return Pack{}, true, true
	}
	dir, rest, _ := strings.Cut(name, "/")
	base := strings.TrimSuffix(strings.TrimSuffix(rest, ".a"), ".b")
	var err error
	switch dir {
	case "data", "node":
		p.Kind = addr.Data
		if dir == "node" {
			p.Kind = addr.Node
		}
		_, hex, _ := strings.Cut(base, "/")
		p.ID, err = addr.ParsePackID(hex)
	case "reloc":
		p.Kind = addr.Reloc
		p.ID, err = addr.ParsePackID(base)
	case "point":
		var hex string
		p.Kind = addr.Point
		p.Snapshot, hex, _ = strings.Cut(base, ".")
		p.ID, err = addr.ParsePackID(hex)
	case "journal":
		p.Kind, p.Snapshot = addr.Journal, base
		if _, ok := parseJournalNumber(base); !ok {
			return p, false, false
		}
	default:
		return p, false, false
	}
	if err != nil {
		return p, false, false
	}
	for _, c := range p.Copies() {
		if c == name {
			return p, false, true
		}
	}
	return p, false, false
}

// ParsePack reads a pack's blob name without its copy suffix.
func ParsePack(name string) (p Pack, ok bool) {
	for _, suffix := range []string{"", ".a"} {
		if p, header, ok := ParseBlob(name + suffix); ok && !header && p.Blob() == name {
			return p, true
		}
	}
	return Pack{}, false
}

// Blobs lists every blob of the store.
func (r *Repo) Blobs(ctx context.Context, fn func(blobstore.Info) error) error {
	if err := r.store.List(ctx, "", fn); err != nil {
		return fmt.Errorf("list the repository: %w", err)
	}
	return nil
}

// ErrGone says that a blob was deleted since it was listed.
var ErrGone = errors.New("the blob is gone")

// Counts says what a checked blob held.
type Counts struct {
	Chunks, Nodes int64
	Bytes         int64
}

// CheckBlob reads a blob whole and checks every bit of it: checksums, keys,
// that each record decodes, and each chunk, node and manifest against its id.
// A finding is what damage is; err is "could not tell" or ErrGone.
func (x *Reader) CheckBlob(ctx context.Context, info blobstore.Info) (c Counts, finding, err error) {
	p, header, ok := ParseBlob(info.Name)
	if !ok {
		return c, fmt.Errorf("%w: no blob of a repository has this name", pack.ErrDamaged), nil
	}
	limit := int64(pack.MaxBlob)
	if header {
		limit = blobHeaderMax
	}
	if x.blob == nil {
		x.blob = make([]byte, packTarget+packSlack) // once: packs come one after the other
	}
	blob, err := readInto(ctx, x.r.store, info.Name, limit, x.blob)
	if errors.Is(err, blobstore.ErrNotFound) {
		return c, nil, ErrGone
	}
	if err == nil {
		c.Bytes = int64(len(blob))
		err = x.checkBytes(info.Name, p, header, blob, &c)
	}
	if err != nil && !isDamage(err) {
		return c, nil, err
	}
	return c, err, nil
}

func (x *Reader) checkBytes(name string, p Pack, header bool, blob []byte, c *Counts) error {
	if header {
		if err := verifyHeader(x.r.header, x.r.master, name, blob); err != nil {
			return fmt.Errorf("%w: %w", pack.ErrDamaged, err)
		}
		return nil
	}
	if p.Kind == addr.Journal {
		_, err := x.r.journalIn(p, blob)
		return err
	}
	return x.r.sealer.Check(p, blob, func(_ pack.Entry, rec pack.Record) error { return x.checkRecord(rec, c) })
}

// checkRecord checks that an opened record decodes, and what it holds against
// its ids.
func (x *Reader) checkRecord(rec pack.Record, c *Counts) error {
	if err := x.decode(rec); err != nil {
		return err
	}
	switch rec.Kind {
	case pack.Frame:
		c.Chunks += int64(len(rec.IDs))
		return x.checkChunks(rec)
	case pack.NodeRec:
		c.Nodes++
		return x.checkNode(rec.IDs[0])
	case pack.Manifest:
		if x.mans.ID(x.plain) != rec.IDs[0] {
			return fmt.Errorf("%w: the manifest does not match its id", pack.ErrDamaged)
		}
		_, err := DecodeManifest(x.plain)
		return err
	case pack.Reloc:
		old, _ := reloc.PackOf(rec.IDs[0])
		_, err := x.relocation(rec, old)
		return err
	}
	return nil
}

// checkFrame decodes a frame and checks its chunks.
func (x *Reader) checkFrame(rec pack.Record) error {
	if err := x.decode(rec); err != nil {
		return err
	}
	return x.checkChunks(rec)
}

// checkChunks checks the frame in x.plain against the ids of its record.
func (x *Reader) checkChunks(rec pack.Record) error {
	for i, id := range rec.IDs {
		if x.chunks.ID(x.plain[i*ChunkSize:(i+1)*ChunkSize]) != id {
			return fmt.Errorf("%w: chunk %d of record %d does not match its id", pack.ErrDamaged, i, rec.Slot)
		}
	}
	return nil
}

// checkNode checks the node in x.plain, whatever level it says it has.
func (x *Reader) checkNode(want ID) error {
	if len(x.plain) < 2 {
		return fmt.Errorf("%w: it is empty", tree.ErrDamaged)
	}
	n, err := tree.Decode(x.plain, x.plain[1])
	if err != nil {
		return err
	}
	if n.Hash(x.nodes) != want {
		return fmt.Errorf("%w: a node does not match its hash", tree.ErrDamaged)
	}
	return nil
}

// Checker checks trees against the sealed directories of the packs they name.
// It remembers directories, not chunks, so its memory is bounded. One goroutine.
type Checker struct {
	r    *Repo
	dirs *lru[PackID, *dirInfo]
}

type dirInfo struct {
	err    error
	frames map[uint32]pack.Entry
}

// NewChecker makes a Checker.
func (r *Repo) NewChecker() *Checker {
	return &Checker{r: r, dirs: newLRU[PackID, *dirInfo](4 * dirCache)}
}

// LoadNode reads a node past the cache.
func (k *Checker) LoadNode(ctx context.Context, ref Ref, level uint8) (*Node, error) {
	return k.r.readNode(ctx, ref, level)
}

// Slot checks that some copy of the pack that a chunk's slot names has the
// chunk at that very place, or where it was moved to. at is where it is,
// finding the damage.
func (k *Checker) Slot(ctx context.Context, ref Ref) (at Loc, finding, err error) {
	at = ref.Loc
	err = k.slotAt(ctx, ref.Loc, ref.ID)
	if err != nil && isDamage(err) {
		err = k.r.follow(ctx, ref.Loc, err, func(to Loc) error {
			at = to
			return k.slotAt(ctx, to, ref.ID)
		})
	}
	if err != nil && isDamage(err) {
		return ref.Loc, err, nil
	}
	return at, nil, err
}

func (k *Checker) slotAt(ctx context.Context, l Loc, id ID) error {
	d, ok := k.dirs.get(l.Pack.ID)
	if !ok {
		d = &dirInfo{frames: make(map[uint32]pack.Entry)}
		d.err = k.r.eachCopy(l.Pack, func(blob string) error {
			_, entries, err := k.r.directory(ctx, l.Pack, blob)
			for _, e := range entries {
				d.frames[e.Off] = e
			}
			return err
		})
		if d.err != nil && !isDamage(d.err) {
			return d.err
		}
		k.dirs.put(l.Pack.ID, d)
	}
	if d.err != nil {
		return d.err
	}
	e, ok := d.frames[l.Off]
	if !ok || e.Len != l.Len || e.Kind != pack.Frame || int(l.Sub) >= len(e.IDs) || e.IDs[l.Sub] != id {
		return fmt.Errorf("%w: %s does not hold the chunk where the tree says", pack.ErrDamaged, l.Pack.Blob())
	}
	return nil
}

// IsDamage tells missing or wrong bytes from an error that says nothing about
// them, such as a store that does not answer.
func IsDamage(err error) bool { return isDamage(err) }

// Lacks lists the copies of a pack that the store does not have.
func (r *Repo) Lacks(ctx context.Context, p Pack) ([]string, error) {
	var out []string
	for _, name := range p.Copies() {
		_, err := r.store.Stat(ctx, name)
		if errors.Is(err, blobstore.ErrNotFound) {
			out = append(out, name)
		} else if err != nil {
			return nil, fmt.Errorf("look up blob %s: %w", name, err)
		}
	}
	return out, nil
}
