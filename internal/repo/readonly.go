package repo

import (
	"context"
	"errors"
	"fmt"

	"cairn/internal/blobstore"
	"cairn/internal/repo/addr"
	"cairn/internal/repo/index"
	"cairn/internal/repo/keys"
	"cairn/internal/repo/pack"
)

// This file holds what is needed to look at a repository that may be damaged
// or in use, without changing anything.

// OpenReadOnly opens the repository and changes nothing, so it may be done
// beside a process that writes, and with a store that refuses Put. An index
// that is damaged or missing is told by IndexDropped and is no error. The
// errors are Open's. Methods that write fail.
func OpenReadOnly(ctx context.Context, store blobstore.Store, key Opener, indexDir string) (*Repo, error) {
	h, m, err := openHeader(ctx, store, key)
	if err != nil {
		return nil, err
	}
	return newRepo(store, h, m, index.OpenReadOnly(indexDir)), nil
}

// HeaderCopy is one blob of the repository's headers.
type HeaderCopy struct {
	Blob         Blob
	keys.Summary       // zero if Err is set
	Err          error // why it cannot be read
}

// Headers reads every header blob without a key.
func Headers(ctx context.Context, store blobstore.Store) ([]HeaderCopy, error) {
	var out []HeaderCopy
	err := store.List(ctx, "header/", func(i blobstore.Info) error {
		out = append(out, HeaderCopy{Blob: i})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the repository headers: %w", err)
	}
	for i := range out {
		b, err := readSmall(ctx, store, out[i].Blob.Name, blobHeaderMax)
		if err == nil {
			out[i].Summary, err = keys.Summarize(b)
		}
		out[i].Err = err
	}
	return out, nil
}

// IndexRun is one file of the dedup index.
type IndexRun = index.RunInfo

// IndexRuns lists the files of the dedup index.
func (r *Repo) IndexRuns() []IndexRun { return r.idx.Runs() }

// indexLoc is where an entry says that its chunk lies: only data packs are
// indexed.
func indexLoc(e index.Entry) Loc {
	return Loc{Pack: Pack{Kind: addr.Data, ID: e.Pack}, Off: e.Offset, Len: e.Length, Sub: e.Sub}
}

// IndexPlaces lists where the dedup index says that a chunk lies, unchecked.
func (r *Repo) IndexPlaces(id ID) []Loc {
	var out []Loc
	for _, e := range r.idx.Lookup(id, nil) {
		out = append(out, indexLoc(e))
	}
	return out
}

// ScanIndex calls fn for every intact entry of the dedup index. What is damaged
// shows in IndexDropped afterwards.
func (r *Repo) ScanIndex(fn func(ID, Loc) error) error {
	return r.idx.Scan(func(e index.Entry) error { return fn(e.ID, indexLoc(e)) })
}

// PackEntry is one record as a pack's directory, or a scan of it, tells it.
type PackEntry = pack.Entry

// PackRecordState is one record of a pack and whether it is whole.
type PackRecordState struct {
	PackEntry
	Err error // nil: it opens, decodes, and holds what its ids say
}

// PackCopy is what can be told of one copy of a pack. Errors say what is wrong
// with a part; nil: it is whole.
type PackCopy struct {
	Name      string
	Bytes     int64
	ReadErr   error // then nothing else is known
	HeaderErr error
	pack.Survey
	Records []PackRecordState
}

// Whole reports whether every bit of the copy passes its checks.
func (c *PackCopy) Whole() bool {
	for i := range c.Records {
		if c.Records[i].Err != nil {
			return false
		}
	}
	return c.ReadErr == nil && c.HeaderErr == nil && c.FooterErr == nil && c.ContentErr == nil && c.DirectoryErr == nil
}

// InspectPack reads every copy of a pack and tells of each part whether it is
// whole. Records open with the key of whichever header is whole.
func (r *Repo) InspectPack(ctx context.Context, p Pack) ([]PackCopy, error) {
	x, err := r.NewReader()
	if err != nil {
		return nil, err
	}
	defer x.Close()
	copies := make([]PackCopy, len(p.Copies()))
	for i, name := range p.Copies() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		copies[i] = x.inspect(ctx, p, name)
	}
	return copies, nil
}

func (x *Reader) inspect(ctx context.Context, p Pack, name string) PackCopy {
	c := PackCopy{Name: name}
	blob, err := readSmall(ctx, x.r.store, name, pack.MaxBlob)
	if err != nil {
		c.ReadErr = err
		return c
	}
	c.Bytes = int64(len(blob))
	_, c.HeaderErr = x.r.sealer.Key(p, blob)
	aead, err := x.r.cipher(ctx, p, name)
	if err != nil {
		aead = nil // NewSurvey and OpenEntry say what that costs
	}
	c.Survey = pack.NewSurvey(p, aead, blob)
	for _, e := range c.Entries {
		rec, err := pack.OpenEntry(p, aead, blob, e)
		if err == nil {
			err = x.checkRecord(rec, &Counts{})
		}
		c.Records = append(c.Records, PackRecordState{e, err})
	}
	return c
}

// Find lists the places in a pack whose record has the id among its own, from
// the first copy whose directory is whole, else from what is left of any copy.
func (r *Repo) Find(ctx context.Context, p Pack, id ID) ([]Loc, error) {
	var entries []PackEntry
	err := r.eachCopy(p, func(blob string) error {
		var err error
		_, entries, err = r.directory(ctx, p, blob)
		return err
	})
	if err != nil {
		copies, inspectErr := r.InspectPack(ctx, p)
		if inspectErr != nil {
			return nil, inspectErr
		}
		entries = nil
		for i := range copies {
			entries = append(entries, copies[i].Entries...)
		}
	}
	var out []Loc
	seen := map[Loc]bool{}
	for _, e := range entries {
		for i, have := range e.IDs {
			l := Loc{Pack: p, Off: e.Off, Len: e.Len, Sub: uint8(i)}
			if have == id && !seen[l] {
				seen[l] = true
				out = append(out, l)
			}
		}
	}
	return out, err
}

// CheckPlace reads the record at l and checks that it is whole and has the id
// as its l.Sub-th.
func (x *Reader) CheckPlace(ctx context.Context, l Loc, id ID) error {
	x.frame = Loc{}
	return x.r.eachCopy(l.Pack, func(blob string) error {
		rec, err := x.record(ctx, l, blob)
		if err != nil {
			return err
		}
		if int(l.Sub) >= len(rec.IDs) || rec.IDs[l.Sub] != id {
			return fmt.Errorf("%w: the record at %d holds something else", pack.ErrDamaged, l.Off)
		}
		return x.checkRecord(rec, &Counts{})
	})
}

// CopyError says what is wrong with one copy.
type CopyError struct {
	Blob string
	Err  error
}

// NodeCopies reads a node from every copy: n is the first whole one, nil if
// there is none, and bad tells what is wrong with the others.
func (r *Repo) NodeCopies(ctx context.Context, ref Ref, level uint8) (n *Node, bad []CopyError, err error) {
	x, err := r.NewReader()
	if err != nil {
		return nil, nil, err
	}
	defer x.Close()
	for _, blob := range ref.Loc.Pack.Copies() {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		rec, err := x.record(ctx, ref.Loc, blob)
		var got *Node
		if err == nil {
			got, err = x.node(rec, ref.ID, level)
		}
		switch {
		case err != nil:
			bad = append(bad, CopyError{blob, err})
		case n == nil:
			n = got
		}
	}
	return n, bad, nil
}

// ReadManifestCopy reads a point's manifest from one copy, which must be whole.
func (r *Repo) ReadManifestCopy(ctx context.Context, p Pack, name string) (*Manifest, error) {
	b, err := readSmall(ctx, r.store, name, pointBlobMax)
	if err != nil {
		return nil, err
	}
	return r.manifestIn(p, b, ID{})
}

// SalvageManifest reads a point's manifest, if need be from what is left of its
// copies: the record is sealed by itself, so it needs one whole header and one
// whole record, not one whole copy.
func (r *Repo) SalvageManifest(ctx context.Context, p Pack, content ID) (*Manifest, error) {
	m, err := r.ReadManifest(ctx, p, content)
	if err == nil || ctx.Err() != nil {
		return m, err
	}
	x, xerr := r.NewReader()
	if xerr != nil {
		return nil, errors.Join(err, xerr)
	}
	defer x.Close()
	for _, name := range p.Copies() {
		if m := x.salvageManifest(ctx, p, name); m != nil {
			return m, nil
		}
	}
	return nil, err
}

// salvageManifest finds the manifest in one copy; nil if it cannot be had.
func (x *Reader) salvageManifest(ctx context.Context, p Pack, name string) *Manifest {
	blob, err := readAround(ctx, x.r.store, name, pointBlobMax)
	if err != nil {
		return nil
	}
	aead, err := x.r.cipher(ctx, p, name)
	if err != nil {
		return nil
	}
	for _, e := range pack.NewSurvey(p, aead, blob).Entries {
		if e.Kind != pack.Manifest {
			continue
		}
		rec, err := pack.OpenEntry(p, aead, blob, e)
		if err != nil || x.checkRecord(rec, &Counts{}) != nil {
			continue
		}
		if m, err := DecodeManifest(x.plain); err == nil && m.Snapshot == p.Snapshot {
			return m
		}
	}
	return nil
}

// readAround reads a blob of at most limit bytes; pages that the store cannot
// give stay zeros, which pass no check.
func readAround(ctx context.Context, store blobstore.Store, name string, limit int64) ([]byte, error) {
	b, err := readSmall(ctx, store, name, limit)
	if err == nil || isDamage(err) {
		return b, err
	}
	info, err := store.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	const page = 4096
	b = make([]byte, min(info.Size, limit))
	for off := 0; off < len(b); off += page {
		part := b[off:min(off+page, len(b))]
		if _, err := store.ReadAt(ctx, name, part, int64(off)); err != nil {
			clear(part)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return b, nil
}
