package repo

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"cairn/internal/repo/addr"
	"cairn/internal/repo/index"
	"cairn/internal/repo/pack"
	"cairn/internal/repo/tree"
)

// PackRecord is what the database is told of a pack.
type PackRecord struct {
	Pack  Pack
	Bytes int64
}

// Recorder records packs durably before they are put (FORMAT.md §8). Any
// error of Register fences the session: nothing more is written.
type Recorder interface {
	Register(ctx context.Context, p PackRecord) error
	// Registered lists what the session registered so far, in this and in
	// earlier terms, and did not drop.
	Registered(ctx context.Context) ([]PackRecord, error)
	// Drop records, before their blobs are deleted, that packs of the session
	// are being deleted: no later term may take them over. It fails like
	// Register if the session was taken over.
	Drop(ctx context.Context, packs []PackID) error
	// Forget removes the rows of dropped packs whose blobs are gone.
	Forget(ctx context.Context, packs []PackID) error
	// Usable reports whether a pack's row is LIVE and not known to be damaged:
	// only then may a chunk found in the dedup index be referred to. The
	// commit asks again.
	Usable(ctx context.Context, pack PackID) (bool, error)
}

const (
	packTarget = 32 << 20
	// claimCap bounds each of the two generations of the session's own ids
	// (about 150 bytes each). Forgetting one costs space, never data.
	claimCap = 64 << 10
	dirCache = 32 // directories of packs that dedup hits were checked against
)

// Session is one job's writing. Its points share chunks.
type Session struct {
	r   *Repo
	rec Recorder

	mu       sync.Mutex // guards what follows; a leaf of the lock order
	young    map[ID]*Claim
	old      map[ID]*Claim
	packs    []Pack          // durable data packs, for the index
	adopted  int64           // bytes of packs taken over from an earlier term, not yet counted
	hits     map[PackID]bool // packs of others that points of this session refer to
	avoid    map[PackID]bool // packs that are on their way out
	verified *lru[PackID, map[uint32][]ID]
	closed   bool
}

// Claim is one chunk's place in the session: Ready is closed once Place and
// Sub are set. Place's Loc may be filled later still.
type Claim struct {
	Ready chan struct{}
	Place *tree.Place
	Sub   uint8
}

// NewSession begins or, after a crash, adopts a session: data packs that an
// earlier term made durable become hits, all else of it is deleted.
func (r *Repo) NewSession(ctx context.Context, rec Recorder) (*Session, error) {
	s := &Session{
		r: r, rec: rec,
		young: make(map[ID]*Claim), old: make(map[ID]*Claim),
		hits: make(map[PackID]bool), avoid: make(map[PackID]bool),
		verified: newLRU[PackID, map[uint32][]ID](dirCache),
	}
	if err := s.takeOver(ctx); err != nil {
		return nil, err
	}
	if err := r.memory.join(); err != nil {
		return nil, err
	}
	return s, nil
}

// takeOver makes what an earlier term left this session's own.
func (s *Session) takeOver(ctx context.Context) error {
	have, err := s.rec.Registered(ctx)
	if err != nil {
		return fmt.Errorf("list the session's packs: %w", err)
	}
	var drop []PackRecord
	for _, p := range have {
		ok, err := s.adopt(ctx, p)
		if err != nil {
			return err
		}
		if !ok {
			drop = append(drop, p)
		}
	}
	return s.drop(ctx, drop)
}

// drop deletes packs of the session. The rows say so first: else a term that
// was fenced off could delete what a later one has taken over meanwhile.
func (s *Session) drop(ctx context.Context, packs []PackRecord) error {
	if len(packs) == 0 {
		return nil
	}
	ids := make([]PackID, len(packs))
	for i, p := range packs {
		ids[i] = p.Pack.ID
	}
	if err := s.rec.Drop(ctx, ids); err != nil {
		return fmt.Errorf("drop packs: %w", err)
	}
	if err := s.r.DeletePacks(ctx, packs); err != nil {
		return err
	}
	if err := s.rec.Forget(ctx, ids); err != nil {
		return fmt.Errorf("forget dropped packs: %w", err)
	}
	return nil
}

// adopt takes a durable data pack's chunks as the session's own.
func (s *Session) adopt(ctx context.Context, p PackRecord) (bool, error) {
	if p.Pack.Kind != addr.Data {
		return false, nil
	}
	_, entries, err := s.r.directory(ctx, p.Pack, p.Pack.Blob())
	if isDamage(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("adopt pack %s: %w", p.Pack.ID, err)
	}
	ready := make(chan struct{})
	close(ready)
	for _, e := range entries {
		place := &tree.Place{Loc: Loc{Pack: p.Pack, Off: e.Off, Len: e.Len}}
		for i, id := range e.IDs {
			s.insert(id, &Claim{Ready: ready, Place: place, Sub: uint8(i)})
		}
	}
	s.packs = append(s.packs, p.Pack)
	s.adopted += p.Bytes
	return true, nil
}

// DeletePacks deletes every copy of the packs' blobs. Running it twice is
// harmless. The caller knows that nothing refers to them.
func (r *Repo) DeletePacks(ctx context.Context, packs []PackRecord) error {
	for _, p := range packs {
		for _, blob := range p.Pack.Copies() {
			if err := r.store.Delete(ctx, blob); err != nil {
				return fmt.Errorf("delete blob %s: %w", blob, err)
			}
		}
	}
	tables := make(map[PackID]bool)
	for _, p := range packs {
		if p.Pack.Kind == addr.Reloc {
			tables[p.Pack.ID] = true
		}
	}
	r.moves.drop(tables)
	return nil
}

// insert adds a claim; the caller holds mu or is alone.
func (s *Session) insert(id ID, c *Claim) {
	if len(s.young) >= claimCap {
		s.old, s.young = s.young, make(map[ID]*Claim, claimCap)
	}
	s.young[id] = c
}

// Find looks for a chunk: in this session, then in the index. mine says that
// nobody has it: the caller stores it, then sets c.Place and c.Sub and closes
// c.Ready, which is the ready it gave. Otherwise the chunk is at c (wait for
// c.Ready) or, if c is nil, at loc.
func (s *Session) Find(ctx context.Context, id ID, ready chan struct{}) (c *Claim, loc Loc, mine bool, err error) {
	s.mu.Lock()
	if c := s.young[id]; c != nil {
		s.mu.Unlock()
		return c, Loc{}, false, nil
	}
	if c := s.old[id]; c != nil {
		s.insert(id, c)
		s.mu.Unlock()
		return c, Loc{}, false, nil
	}
	s.mu.Unlock()
	var buf [4]index.Entry
	for _, e := range s.r.idx.Lookup(id, buf[:0]) {
		ok, err := s.verify(ctx, e)
		if err != nil {
			return nil, Loc{}, false, err
		}
		if ok && s.hit(e.Pack) {
			return nil, Loc{Pack: Pack{Kind: addr.Data, ID: e.Pack}, Off: e.Offset, Len: e.Length, Sub: e.Sub}, false, nil
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.young[id]; c != nil {
		return c, Loc{}, false, nil
	}
	c = &Claim{Ready: ready}
	s.insert(id, c)
	return c, Loc{}, true, nil
}

// verify checks an index hit against the pack's row and against the sealed
// directory of the pack it names: the index is never believed. A pack that is
// gone, damaged or on its way out is no hit.
func (s *Session) verify(ctx context.Context, e index.Entry) (bool, error) {
	frames, ok := s.verified.get(e.Pack)
	if !ok {
		var err error
		if frames, err = s.frames(ctx, e.Pack); err != nil {
			return false, fmt.Errorf("check a dedup hit in pack %s: %w", PackID(e.Pack), err)
		}
		s.verified.put(e.Pack, frames)
	}
	ids := frames[e.Offset]
	return int(e.Sub) < len(ids) && ids[e.Sub] == e.ID, nil
}

// frames are the chunks of a pack by the offsets of their frames; nil if the
// pack must not be referred to.
func (s *Session) frames(ctx context.Context, id PackID) (map[uint32][]ID, error) {
	usable, err := s.rec.Usable(ctx, id)
	if err != nil || !usable {
		return nil, err
	}
	p := Pack{Kind: addr.Data, ID: id}
	_, entries, err := s.r.directory(ctx, p, p.Blob())
	if err != nil && !isDamage(err) {
		return nil, err
	}
	frames := make(map[uint32][]ID, len(entries))
	for _, d := range entries {
		frames[d.Off] = d.IDs
	}
	return frames, nil
}

// hit notes that the session refers to a pack of another one; false if that is
// on its way out.
func (s *Session) hit(id PackID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.avoid[id] {
		return false
	}
	s.hits[id] = true
	return true
}

// Hits lists the packs of others that the session's points refer to beyond
// what they inherited. The commit must take them into use; see Retake.
func (s *Session) Hits() []PackID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.hits))
}

// Retake prepares for writing the points again, because some of the packs they
// refer to are being deleted: these are not referred to any more, and the
// manifests that name them go.
func (s *Session) Retake(ctx context.Context, gone []PackID, manifests []Pack) error {
	s.mu.Lock()
	for _, id := range gone {
		s.avoid[id] = true
	}
	clear(s.hits)
	s.mu.Unlock()
	drop := make([]PackRecord, len(manifests))
	for i, p := range manifests {
		drop[i] = PackRecord{Pack: p}
	}
	return s.drop(ctx, drop)
}

// put registers a pack, then makes all its copies durable.
func (s *Session) put(ctx context.Context, p Pack, blob []byte) error {
	if err := s.rec.Register(ctx, PackRecord{Pack: p, Bytes: int64(len(blob) * len(p.Copies()))}); err != nil {
		return fmt.Errorf("register pack %s: %w", p.ID, err)
	}
	for _, name := range p.Copies() {
		if err := s.r.store.Put(ctx, name, blob); err != nil {
			return fmt.Errorf("put blob %s: %w", name, err)
		}
	}
	if p.Kind == addr.Data {
		s.mu.Lock()
		s.packs = append(s.packs, p)
		s.mu.Unlock()
	}
	return nil
}

// Committed tells the dedup index of the session's chunks, after its
// transaction. Failing costs space only.
func (s *Session) Committed(ctx context.Context) error {
	s.mu.Lock()
	packs := s.packs
	s.packs = nil
	s.mu.Unlock()
	var batch []index.Entry
	for _, p := range packs {
		_, entries, err := s.r.directory(ctx, p, p.Blob())
		if err != nil {
			return fmt.Errorf("index pack %s: %w", p.ID, err)
		}
		err = eachChunk(p, entries, func(e index.Entry) error {
			batch = append(batch, e)
			return nil
		})
		if err != nil {
			return err
		}
		if len(batch) >= 128<<10 {
			if err := s.r.idx.Add(ctx, batch); err != nil {
				return fmt.Errorf("add to the dedup index: %w", err)
			}
			batch = batch[:0]
		}
	}
	if len(batch) == 0 {
		return nil
	}
	if err := s.r.idx.Add(ctx, batch); err != nil {
		return fmt.Errorf("add to the dedup index: %w", err)
	}
	return nil
}

// Close frees the session's memory. The database decides what becomes of what
// it wrote.
func (s *Session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.r.memory.leave()
	}
	s.young, s.old = nil, nil
	s.verified.clear()
	return nil
}

// forgetClaims forgets all chunks of the session, after a point of it was given
// up: some of them lie in a pack that was not put. Costs space, never data.
func (s *Session) forgetClaims() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.young, s.old = make(map[ID]*Claim), make(map[ID]*Claim)
}

// disown forgets chunks that went into a point pack: only that point and
// those below it may refer to them (FORMAT.md §6).
func (s *Session) disown(ids []ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.young, id)
		delete(s.old, id)
	}
}

// IndexRebuilt is what RebuildIndex did.
type IndexRebuilt struct {
	Packs   int      `json:"packs"`
	Chunks  int64    `json:"chunks"`
	Skipped []string `json:"skipped"` // packs whose directory cannot be read, and why
}

// RebuildIndex makes the dedup index anew from the directories of all stored
// data packs. Until it ends the old entries serve; if it fails they stay.
func (r *Repo) RebuildIndex(ctx context.Context) (IndexRebuilt, error) {
	out := IndexRebuilt{Skipped: []string{}}
	err := r.idx.Rebuild(ctx, func(add func(index.Entry) error) error {
		return r.store.List(ctx, "data/", func(b Blob) error {
			p, header, ok := ParseBlob(b.Name)
			if !ok || header {
				return nil
			}
			_, entries, err := r.directory(ctx, p, b.Name)
			if isDamage(err) {
				out.Skipped = append(out.Skipped, p.ID.String()+": "+err.Error())
				return nil
			}
			if err != nil {
				return fmt.Errorf("read the directory of %s: %w", b.Name, err)
			}
			out.Packs++
			return eachChunk(p, entries, func(e index.Entry) error {
				out.Chunks++
				return add(e)
			})
		})
	})
	if err != nil {
		return out, fmt.Errorf("rebuild the dedup index: %w", err)
	}
	return out, nil
}

// eachChunk gives the index entries of a data pack's chunks.
func eachChunk(p Pack, entries []pack.Entry, fn func(index.Entry) error) error {
	for _, e := range entries {
		for i, id := range e.IDs {
			err := fn(index.Entry{ID: id, Pack: p.ID, Offset: e.Off, Length: e.Len, Sub: uint8(i)})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
