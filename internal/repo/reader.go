package repo

import (
	"bytes"
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
	"cairn/internal/repo/addr"
	"cairn/internal/repo/codec"
	"cairn/internal/repo/keys"
	"cairn/internal/repo/pack"
	"cairn/internal/repo/reloc"
	"cairn/internal/repo/tree"
)

// Reader reads chunks and nodes, each checked against its id (I8). It keeps
// the last frame, so chunks of one frame cost one read. One goroutine.
type Reader struct {
	r      *Repo
	codec  codec.Codec
	chunks *keys.Hasher
	nodes  *keys.Hasher
	mans   *keys.Hasher
	logs   *keys.Hasher // of the journal
	sealed []byte
	plain  []byte
	frame  Loc // of what plain holds; zero: nothing
	ids    []ID
	blob   []byte // for whole packs; only scrubs read them
}

// NewReader makes a Reader. Close it.
func (r *Repo) NewReader() (*Reader, error) {
	if x, ok := r.readers.Get().(*Reader); ok {
		return x, nil
	}
	c, err := codec.New()
	if err != nil {
		return nil, err
	}
	return &Reader{r: r, codec: c, chunks: r.master.Chunks(), nodes: r.master.Nodes(), mans: r.master.Manifests(), logs: r.master.Journal()}, nil
}

// Close hands the Reader back for reuse.
func (x *Reader) Close() {
	x.frame, x.blob = Loc{}, nil
	x.r.readers.Put(x)
}

// damage makes the error for bytes that are missing or wrong.
func damage(what string, err error) error {
	return errs.Wrap(errs.Corrupt, err, "%s is damaged in the repository; run scrub to learn what is affected", what)
}

// isDamage tells missing or wrong bytes from "could not tell".
func isDamage(err error) bool {
	return errors.Is(err, pack.ErrDamaged) || errors.Is(err, tree.ErrDamaged) || errors.Is(err, codec.ErrCorrupt) ||
		errors.Is(err, reloc.ErrDamaged) ||
		errors.Is(err, blobstore.ErrNotFound) || errors.Is(err, io.ErrUnexpectedEOF)
}

// Chunk returns the chunk's 64 KiB. The slice is the Reader's and valid until
// its next call. errs.Corrupt: missing or wrong in every copy.
func (x *Reader) Chunk(ctx context.Context, ref Ref) ([]byte, error) {
	if !x.holds(ref.Loc) {
		if err := x.load(ctx, ref.Loc); err != nil {
			return nil, err
		}
	}
	return x.take(ref)
}

func (x *Reader) holds(l Loc) bool {
	return x.frame.Len != 0 && x.frame.Pack == l.Pack && x.frame.Off == l.Off && x.frame.Len == l.Len
}

// take cuts a chunk out of the frame that is held and checks it.
func (x *Reader) take(ref Ref) ([]byte, error) {
	i := int(ref.Loc.Sub)
	if i >= len(x.ids) || x.ids[i] != ref.ID {
		return nil, damage("chunk "+ref.ID.String(), fmt.Errorf("%w: frame at %d of %s holds something else", pack.ErrDamaged, ref.Loc.Off, ref.Loc.Pack.Blob()))
	}
	b := x.plain[i*ChunkSize : (i+1)*ChunkSize]
	if x.chunks.ID(b) != ref.ID {
		return nil, damage("chunk "+ref.ID.String(), fmt.Errorf("%w: its bytes do not match its id, in %s", pack.ErrDamaged, ref.Loc.Pack.Blob()))
	}
	return b, nil
}

// load reads and decodes the frame that was at l when the hint was written,
// from the first copy that passes.
func (x *Reader) load(ctx context.Context, l Loc) error {
	x.frame = Loc{}
	err := x.loadAt(ctx, l)
	if err != nil && isDamage(err) {
		err = x.r.follow(ctx, l, err, func(to Loc) error { return x.loadAt(ctx, to) })
	}
	if err == nil {
		x.frame = l
	}
	return err
}

func (x *Reader) loadAt(ctx context.Context, l Loc) error {
	return x.r.eachCopy(l.Pack, func(blob string) error {
		rec, err := x.record(ctx, l, blob)
		if err != nil {
			return err
		}
		if rec.Kind != pack.Frame {
			return fmt.Errorf("%w: record at %d is no frame", pack.ErrDamaged, l.Off)
		}
		x.ids = rec.IDs
		return x.decode(rec)
	})
}

// eachCopy runs try on each copy of a pack's blob until one passes. Damage in
// all of them is errs.Corrupt; another error (could not tell) comes as it is.
func (r *Repo) eachCopy(p Pack, try func(blob string) error) error {
	var found, hard []error // damage, and what says nothing about the bytes
	for _, blob := range p.Copies() {
		err := try(blob)
		if err == nil {
			return nil
		}
		named := fmt.Errorf("%s: %w", blob, err)
		if isDamage(err) {
			found = append(found, named)
		} else {
			hard = append(hard, named)
		}
	}
	what := p.Kind.String() + " pack " + p.ID.String()
	if p.Kind == addr.Journal {
		what = "blob " + p.Blob()
	}
	if len(hard) > 0 {
		return unsure("read "+what, errors.Join(found...), errors.Join(hard...))
	}
	return damage(what, errors.Join(found...))
}

// unsure is the error of an act that err stopped before it was known whether
// the damage found so far can be got round. It is no damage: errors.Is and As
// see err alone.
func unsure(act string, found, err error) error {
	if found == nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	return fmt.Errorf("%s: %w (after %v)", act, err, found) //nolint:errorlint // the damage is told, not passed on
}

// record reads and opens the record at l from one blob.
func (x *Reader) record(ctx context.Context, l Loc, blob string) (pack.Record, error) {
	var none pack.Record
	if l.Len < uint32(pack.RecordLen(1, 0)) || l.Len > pack.MaxPlain+uint32(pack.RecordLen(pack.MaxIDs, 0)) {
		return none, fmt.Errorf("%w: a record cannot have %d bytes", pack.ErrDamaged, l.Len)
	}
	aead, err := x.r.cipher(ctx, l.Pack, blob)
	if err != nil {
		return none, err
	}
	x.sealed = grow(x.sealed, int(l.Len))
	if _, err := x.r.store.ReadAt(ctx, blob, x.sealed, int64(l.Off)); err != nil {
		return none, err
	}
	rec, err := pack.Open(aead, l.Pack.ID, x.sealed)
	if err == nil && rec.Len != int(l.Len) {
		err = fmt.Errorf("%w: the record at %d has %d bytes, not %d", pack.ErrDamaged, l.Off, rec.Len, l.Len)
	}
	return rec, err
}

// decode turns a record's encoded bytes into x.plain.
func (x *Reader) decode(rec pack.Record) error {
	x.plain = grow(x.plain, rec.PlainLen)
	return x.decodeTo(x.plain, rec)
}

// decodeTo fills dst, which has the record's plain length.
func (x *Reader) decodeTo(dst []byte, rec pack.Record) error {
	if rec.Encoding == pack.Zstd {
		return x.codec.Decode(dst, rec.Encoded)
	}
	if len(rec.Encoded) != rec.PlainLen {
		return fmt.Errorf("%w: record %d stores %d bytes, not %d", pack.ErrDamaged, rec.Slot, len(rec.Encoded), rec.PlainLen)
	}
	copy(dst, rec.Encoded)
	return nil
}

func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// cipher returns the cipher of a pack's records, from blob's header or, if that
// is damaged, from another copy's: they are the same.
func (r *Repo) cipher(ctx context.Context, p Pack, blob string) (cipher.AEAD, error) {
	if a, ok := r.ciphers.get(p.ID); ok {
		return a, nil
	}
	a, err := r.unwrap(ctx, p, blob)
	for _, other := range p.Copies() {
		if err != nil && other != blob {
			if b, otherErr := r.unwrap(ctx, p, other); otherErr == nil {
				a, err = b, nil
			}
		}
	}
	if err != nil {
		return nil, err
	}
	r.ciphers.put(p.ID, a)
	return a, nil
}

// unwrap reads one blob's header.
func (r *Repo) unwrap(ctx context.Context, p Pack, blob string) (cipher.AEAD, error) {
	var b [pack.HeaderSize]byte
	if _, err := r.store.ReadAt(ctx, blob, b[:], 0); err != nil {
		return nil, err
	}
	return r.sealer.Key(p, b[:])
}

// LoadNode reads one node of a tree (tree.Loader).
func (r *Repo) LoadNode(ctx context.Context, ref Ref, level uint8) (*Node, error) {
	key := nodeKey{ref.ID, ref.Loc.Pack.ID, ref.Loc.Off}
	if n, ok := r.nodes.get(key); ok && n.Level == level {
		return n, nil
	}
	n, err := r.readNode(ctx, ref, level)
	if err != nil {
		return nil, err
	}
	r.nodes.put(key, n)
	return n, nil
}

// nodeKey names one stored node. Content alone would not do: two stored nodes
// of the same content may have different hints, and who inherits from one of
// them must not get the hints of the other, which nothing may keep alive.
type nodeKey struct {
	id   ID
	pack PackID
	off  uint32
}

// readNode reads a node past the cache.
func (r *Repo) readNode(ctx context.Context, ref Ref, level uint8) (*Node, error) {
	n, err := r.readNodeAt(ctx, ref.Loc, ref.ID, level)
	if err != nil && isDamage(err) {
		err = r.follow(ctx, ref.Loc, err, func(to Loc) error {
			n, err = r.readNodeAt(ctx, to, ref.ID, level)
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

// readNodeAt reads the node that is stored at l.
func (r *Repo) readNodeAt(ctx context.Context, l Loc, id ID, level uint8) (*Node, error) {
	x, err := r.NewReader()
	if err != nil {
		return nil, err
	}
	defer x.Close()
	var n *Node
	err = r.eachCopy(l.Pack, func(blob string) error {
		rec, err := x.record(ctx, l, blob)
		if err != nil {
			return err
		}
		n, err = x.node(rec, id, level)
		return err
	})
	return n, err
}

// node decodes a node record and checks it against its hash.
func (x *Reader) node(rec pack.Record, want ID, level uint8) (*Node, error) {
	if rec.Kind != pack.NodeRec {
		return nil, fmt.Errorf("%w: record %d is no node", pack.ErrDamaged, rec.Slot)
	}
	if err := x.decode(rec); err != nil {
		return nil, err
	}
	n, err := tree.Decode(x.plain, level)
	if err != nil {
		return nil, err
	}
	if n.Hash(x.nodes) != want {
		return nil, fmt.Errorf("%w: the node does not match its hash", tree.ErrDamaged)
	}
	return n, nil
}

// directory reads a pack's sealed directory from one blob.
func (r *Repo) directory(ctx context.Context, p Pack, blob string) (pack.Footer, []pack.Entry, error) {
	var f pack.Footer
	info, err := r.store.Stat(ctx, blob)
	if err != nil {
		return f, nil, err
	}
	var tail [pack.FooterSize]byte
	if _, err := r.store.ReadAt(ctx, blob, tail[:], max(0, info.Size-pack.FooterSize)); err != nil {
		return f, nil, err
	}
	if f, err = pack.ParseFooter(p.ID, tail[:], info.Size); err != nil {
		return f, nil, err
	}
	aead, err := r.cipher(ctx, p, blob)
	if err != nil {
		return f, nil, err
	}
	sealed := make([]byte, f.DirLen)
	if _, err := r.store.ReadAt(ctx, blob, sealed, int64(f.DirOff)); err != nil {
		return f, nil, err
	}
	entries, err := pack.OpenDirectory(aead, p.ID, f, sealed)
	return f, entries, err
}

// IDs hashes chunks with the repository's key. One goroutine.
type IDs struct{ h *keys.Hasher }

// NewIDs makes a chunk hasher.
func (r *Repo) NewIDs() *IDs { return &IDs{h: r.master.Chunks()} }

// Of is the id of one chunk of exactly ChunkSize bytes; the zero ID if all
// bytes are zero.
func (i *IDs) Of(chunk []byte) ID {
	if AllZero(chunk) {
		return ID{}
	}
	return i.h.ID(chunk)
}

var zeros [addr.ChunkSize]byte

// AllZero reports whether every byte of b is zero.
func AllZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}
