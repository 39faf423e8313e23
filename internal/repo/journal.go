package repo

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/internal/blobstore"
	"cairn/internal/errs"
	"cairn/internal/repo/addr"
	"cairn/internal/repo/codec"
	"cairn/internal/repo/pack"
)

// JournalKind is the kind of the packs of the metadata journal.
const JournalKind = addr.Journal

// BlobKind says what a journal blob is (FORMAT.md §11).
type BlobKind uint8

// Kinds of journal blobs.
const (
	JournalChanges BlobKind = 1
	JournalPart    BlobKind = 2
	JournalSummary BlobKind = 3
)

// JournalPos names a journal blob and what it holds. The zero value is none.
type JournalPos struct {
	Number  uint64
	Content ID // content hash of its pack
}

// IsZero reports whether p is none.
func (p JournalPos) IsZero() bool { return p == JournalPos{} }

func (p JournalPos) String() string { return fmt.Sprintf("%d.%s", p.Number, p.Content) }

// ParseJournalPos reads what String wrote.
func ParseJournalPos(s string) (p JournalPos, err error) {
	number, content, _ := strings.Cut(s, ".")
	b, err := hex.DecodeString(content)
	if err == nil {
		p.Number, err = strconv.ParseUint(number, 10, 64)
	}
	if err != nil || len(b) != len(p.Content) {
		return JournalPos{}, fmt.Errorf("%q is no position in the journal", s)
	}
	copy(p.Content[:], b)
	return p, nil
}

// JournalHead is what a journal blob says of itself.
type JournalHead struct {
	Number   uint64
	Kind     BlobKind
	Prev     JournalPos
	Database string // 32 hex digits
	Change   int64
	More     bool         // of JournalChanges
	Base     JournalPos   // of JournalSummary
	Parts    []JournalPos // of JournalSummary
	Written  time.Time
}

func (h *JournalHead) encode() ([]byte, error) {
	db, err := hex.DecodeString(h.Database)
	if err != nil || len(db) != len(PackID{}) {
		return nil, fmt.Errorf("%q names no database: it is not 32 hex digits", h.Database)
	}
	var w fieldWriter
	w.optTime(0x0009, h.Written)
	w.num(0x8001, int64(h.Number))
	w.num(0x8002, int64(h.Kind))
	w.field(0x8003, appendPos(nil, h.Prev))
	w.field(0x8004, db)
	w.num(0x8005, h.Change)
	switch h.Kind {
	case JournalChanges:
		w.num(0x8006, flagNum(h.More))
	case JournalSummary:
		w.field(0x8007, appendPos(nil, h.Base))
		var parts []byte
		for _, p := range h.Parts {
			parts = appendPos(parts, p)
		}
		w.field(0x8008, parts)
	case JournalPart:
	default:
		return nil, fmt.Errorf("the journal has no blobs of kind %d", h.Kind)
	}
	return w.b, nil
}

const posSize = 8 + 32

func appendPos(b []byte, p JournalPos) []byte {
	return append(le.AppendUint64(b, p.Number), p.Content[:]...)
}

func (d *fieldReader) positions(tag uint16) []JournalPos {
	b := d.take(tag)
	if len(b)%posSize != 0 {
		d.fail("has no positions in field %#04x", tag)
		return nil
	}
	var out []JournalPos
	for ; len(b) > 0; b = b[posSize:] {
		out = append(out, JournalPos{Number: le.Uint64(b), Content: ID(b[8:])})
	}
	return out
}

func (d *fieldReader) position(tag uint16) JournalPos {
	p := d.positions(tag)
	if len(p) != 1 {
		d.fail("has no position in field %#04x", tag)
		return JournalPos{}
	}
	return p[0]
}

func decodeJournalHead(b []byte) (JournalHead, error) {
	d := readFields("a journal blob's head", b)
	h := JournalHead{
		Written: d.optTime(0x0009), Number: uint64(d.num(0x8001)), Prev: d.position(0x8003),
		Database: hex.EncodeToString(d.take(0x8004)), Change: d.num(0x8005),
	}
	if len(h.Database) != 2*len(PackID{}) {
		d.fail("names no database")
	}
	kind := d.num(0x8002)
	switch h.Kind = BlobKind(kind); {
	case d.err != nil:
	case kind == int64(JournalChanges):
		h.More = d.flag(0x8006)
	case kind == int64(JournalSummary):
		h.Base, h.Parts = d.position(0x8007), d.positions(0x8008)
	case kind != int64(JournalPart):
		return h, errs.New(errs.Conflict, "the journal has a blob of kind %d, which this program does not know; use a newer program", kind)
	}
	return h, d.end()
}

// journalPack names a journal blob; its id is in its header.
func journalPack(number uint64) Pack {
	return Pack{Kind: addr.Journal, Snapshot: fmt.Sprintf("%016x", number)}
}

func parseJournalNumber(s string) (uint64, bool) {
	n, err := strconv.ParseUint(s, 16, 64)
	return n, err == nil && n > 0 && s == fmt.Sprintf("%016x", n)
}

// JournalBlob is one stored journal blob.
type JournalBlob struct {
	Number uint64
	Bytes  int64 // of all copies
	have   [2]bool
}

// Lacks names the copies that the store does not have.
func (b JournalBlob) Lacks() []string {
	var out []string
	for i, name := range journalPack(b.Number).Copies() {
		if !b.have[i] {
			out = append(out, name)
		}
	}
	return out
}

// JournalBlobs lists the journal, oldest first.
func (r *Repo) JournalBlobs(ctx context.Context) ([]JournalBlob, error) {
	byNumber := make(map[uint64]*JournalBlob)
	err := r.store.List(ctx, "journal/", func(i Blob) error {
		p, _, ok := ParseBlob(i.Name)
		if !ok {
			return nil // scrub reports it
		}
		n, _ := parseJournalNumber(p.Snapshot)
		b := byNumber[n]
		if b == nil {
			b = &JournalBlob{Number: n}
			byNumber[n] = b
		}
		b.have[slices.Index(p.Copies(), i.Name)] = true
		b.Bytes += i.Size
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the journal: %w", err)
	}
	out := make([]JournalBlob, 0, len(byNumber))
	for _, b := range byNumber {
		out = append(out, *b)
	}
	slices.SortFunc(out, func(a, b JournalBlob) int {
		if a.Number < b.Number {
			return -1
		}
		return 1
	})
	return out, nil
}

// PutJournal makes a journal blob durable in both copies. The entries fit in
// one blob: a few MiB. After an error the blob may be there, whole or in one
// copy; its number is used up.
func (r *Repo) PutJournal(ctx context.Context, h JournalHead, entries []JournalEntry) (pos JournalPos, bytes int64, err error) {
	blob, content, err := r.sealJournal(h, entries)
	if err != nil {
		return pos, 0, fmt.Errorf("write journal blob %d: %w", h.Number, err)
	}
	// Side by side, so that one wait for the disk serves both.
	var g errgroup.Group
	copies := journalPack(h.Number).Copies()
	for _, name := range copies {
		g.Go(func() error { return r.store.Put(ctx, name, blob) })
	}
	if err := g.Wait(); err != nil {
		return pos, 0, fmt.Errorf("write journal blob %d: %w", h.Number, err)
	}
	return JournalPos{h.Number, content}, int64(len(copies) * len(blob)), nil
}

func (r *Repo) sealJournal(h JournalHead, entries []JournalEntry) ([]byte, ID, error) {
	var content ID
	w, err := newJournalWriter(r, h.Number)
	if err != nil {
		return nil, content, err
	}
	defer w.codec.Close()
	plain, err := h.encode()
	if err == nil {
		err = w.add(plain)
	}
	if err != nil {
		return nil, content, err
	}
	plain = nil
	for _, e := range entries {
		longer, err := appendEntry(plain, e)
		if err != nil {
			return nil, content, err
		}
		if len(longer) <= pack.MaxPlain {
			plain = longer
			continue
		}
		if err := w.add(plain); err != nil {
			return nil, content, err
		}
		if plain, err = appendEntry(nil, e); err != nil {
			return nil, content, err
		}
	}
	if len(plain) > 0 {
		if err := w.add(plain); err != nil {
			return nil, content, err
		}
	}
	blob, content := w.b.Finish()
	if len(blob) > pack.MaxBlob {
		return nil, content, fmt.Errorf("it has %d bytes, more than a blob may have", len(blob))
	}
	return blob, content, nil
}

// journalWriter seals the records of one journal blob.
type journalWriter struct {
	b     *pack.Builder
	codec codec.Codec
	ids   func(...[]byte) ID
	check []byte
}

func newJournalWriter(r *Repo, number uint64) (*journalWriter, error) {
	c, err := codec.New()
	if err != nil {
		return nil, err
	}
	b := r.sealer.NewBuilder(addr.Journal, journalPack(number).Snapshot, nil)
	return &journalWriter{b: b, codec: c, ids: r.master.Journal().ID}, nil
}

// add seals one record, proven to decode to what it was made of.
func (w *journalWriter) add(plain []byte) error {
	how := pack.Zstd
	enc, err := w.codec.Encode(nil, plain)
	if err != nil {
		return err
	}
	w.check = grow(w.check, len(plain))
	switch {
	case len(enc) >= len(plain):
		how, enc = pack.Stored, plain
	case w.codec.Decode(w.check, enc) != nil || !bytes.Equal(w.check, plain):
		return fmt.Errorf("the compressor's output does not decode to its input; the memory or processor of this machine may be faulty: %w", codec.ErrCorrupt)
	}
	_, err = w.b.Add(pack.Journal, how, []ID{w.ids(plain)}, len(plain), enc)
	return err
}

// JournalContent is a journal blob as read.
type JournalContent struct {
	Head    JournalHead
	Pos     JournalPos
	Entries []JournalEntry
}

// ReadJournal reads a journal blob from its first whole copy. errs.Corrupt:
// missing, damaged or another blob in every copy. errs.Conflict: a newer
// program wrote it.
func (r *Repo) ReadJournal(ctx context.Context, number uint64) (JournalContent, error) {
	var c JournalContent
	p := journalPack(number)
	err := r.eachCopy(p, func(name string) error {
		blob, err := readSmall(ctx, r.store, name, pack.MaxBlob)
		if err != nil {
			return err
		}
		c, err = r.journalIn(p, blob)
		return err
	})
	if err != nil {
		return JournalContent{}, err
	}
	return c, nil
}

// journalIn checks a journal blob's bytes whole and decodes it.
func (r *Repo) journalIn(p Pack, blob []byte) (JournalContent, error) {
	var c JournalContent
	x, err := r.NewReader()
	if err != nil {
		return c, err
	}
	defer x.Close()
	if p.ID, err = pack.HeaderID(blob); err != nil {
		return c, err
	}
	if len(blob) < pack.FooterSize {
		return c, fmt.Errorf("%w: the pack is cut", pack.ErrDamaged)
	}
	f, err := pack.ParseFooter(p.ID, blob[len(blob)-pack.FooterSize:], int64(len(blob)))
	if err != nil {
		return c, err
	}
	records := 0
	err = r.sealer.Check(p, blob, func(_ pack.Entry, rec pack.Record) error {
		records++
		return x.journalRecord(p, rec, &c)
	})
	if err == nil && records == 0 {
		err = fmt.Errorf("%w: the journal blob is empty", pack.ErrDamaged)
	}
	c.Pos = JournalPos{Number: c.Head.Number, Content: f.Content}
	return c, err
}

// journalRecord checks one record of a journal blob and adds it to c.
func (x *Reader) journalRecord(p Pack, rec pack.Record, c *JournalContent) error {
	if rec.Kind != pack.Journal {
		return fmt.Errorf("%w: record %d is none of a journal", pack.ErrDamaged, rec.Slot)
	}
	if err := x.decode(rec); err != nil {
		return err
	}
	if x.logs.ID(x.plain) != rec.IDs[0] {
		return fmt.Errorf("%w: record %d of the journal does not match its id", pack.ErrDamaged, rec.Slot)
	}
	if rec.Slot > 0 {
		entries, err := decodeEntries(x.plain)
		c.Entries = append(c.Entries, entries...)
		return err
	}
	h, err := decodeJournalHead(x.plain)
	if err != nil {
		return err
	}
	if journalPack(h.Number) != (Pack{Kind: p.Kind, Snapshot: p.Snapshot}) {
		return fmt.Errorf("%w: it is journal blob %d", pack.ErrDamaged, h.Number)
	}
	c.Head = h
	return nil
}

// DeleteJournal deletes journal blobs, all copies. Absent ones are fine.
func (r *Repo) DeleteJournal(ctx context.Context, numbers ...uint64) error {
	const together = 16 // each waits for the disk
	var g errgroup.Group
	g.SetLimit(together)
	for _, n := range numbers {
		for _, name := range journalPack(n).Copies() {
			g.Go(func() error {
				if err := r.store.Delete(ctx, name); err != nil {
					return fmt.Errorf("delete journal blob %d: %w", n, err)
				}
				return nil
			})
		}
	}
	return g.Wait()
}

// HasJournal reports whether any journal blob is stored.
func (r *Repo) HasJournal(ctx context.Context) (bool, error) {
	found := errors.New("found")
	err := r.store.List(ctx, "journal/", func(blobstore.Info) error { return found })
	if err == nil || errors.Is(err, found) {
		return err != nil, nil
	}
	return false, fmt.Errorf("look for the journal: %w", err)
}
