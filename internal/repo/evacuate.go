package repo

import (
	"context"
	"errors"
	"fmt"

	"cairn/internal/repo/addr"
	"cairn/internal/repo/index"
	"cairn/internal/repo/pack"
	"cairn/internal/repo/reloc"
	"cairn/internal/repo/tree"
)

// Evacuated is what Evacuate did.
type Evacuated struct {
	// Emptied are packs of which every used record has another place now: once
	// the session is committed nothing needs them.
	Emptied []PackID
	Moves   Pack  // the relocation blob; no kind: nothing moved
	Copied  int64 // bytes of records written anew, one copy
	// Healed are the emptied packs with damaged records whose chunks were found
	// elsewhere. They must not come back to life: whoever refers to them must
	// store what he wanted again.
	Healed []PackID
	Failed map[PackID]error // packs that stay as they are, and why
}

// evacuation is one run of Evacuate.
type evacuation struct {
	s      *Session
	m      *Marker
	x      *Reader
	frames *Frames
	data   *pack.Builder
	memory []byte // data's
	node   *pack.Builder
	moved  map[PackID]*reloc.Table
	healed bool // something of the pack at hand was
	out    Evacuated
}

// Evacuate copies the records that m found in use out of packs, into packs of
// this session, and writes down where each went. Every record is checked as a
// read would, down to the chunks' ids; damaged chunks are taken from another
// place that the dedup index knows (a heal). What can neither be read nor
// healed leaves its pack as it is and is reported in Failed.
//
// Nodes get the present places of what they name. Data packs must stand before
// node packs in victims, so that nodes learn of this run's moves.
//
// When it returns everything is durable and registered. Nothing is emptied for
// anybody before the session is committed; an aborted one is deleted whole.
func (s *Session) Evacuate(ctx context.Context, m *Marker, victims []Pack) (Evacuated, error) {
	x, err := s.r.NewReader()
	if err != nil {
		return Evacuated{}, err
	}
	defer x.Close()
	frames, err := NewFrames()
	if err != nil {
		return Evacuated{}, err
	}
	defer frames.Close()
	e := &evacuation{s: s, m: m, x: x, frames: frames, moved: make(map[PackID]*reloc.Table)}
	e.out.Failed = make(map[PackID]error)
	defer e.letGo()
	for _, p := range victims {
		if err := e.pack(ctx, p); err != nil {
			return Evacuated{}, fmt.Errorf("copy the used records out of pack %s: %w", p.ID, err)
		}
	}
	if err := e.finish(ctx); err != nil {
		return Evacuated{}, err
	}
	return e.out, nil
}

// letGo gives the memory of a pack back that was not put.
func (e *evacuation) letGo() {
	if e.memory != nil {
		e.s.r.memory.put(e.memory)
		e.data, e.memory = nil, nil
	}
}

// pack copies one pack's used records. Its error is no damage of that pack.
func (e *evacuation) pack(ctx context.Context, p Pack) error {
	use := e.m.Used(p.ID)
	if use == nil {
		return nil
	}
	// Parents in the same pack learn at once where their children went.
	table := &reloc.Table{Pack: p}
	e.moved[p.ID], e.healed = table, false
	for _, r := range use.marked {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		to, err := e.record(ctx, Loc{Pack: p, Off: r.off, Len: r.len})
		if err != nil && isDamage(err) {
			e.out.Failed[p.ID] = err
			delete(e.moved, p.ID)
			return nil
		}
		if err != nil {
			return err
		}
		table.Entries = append(table.Entries, reloc.Entry{Old: r.off, New: to})
	}
	e.out.Emptied = append(e.out.Emptied, p.ID)
	if e.healed {
		e.out.Healed = append(e.out.Healed, p.ID)
	}
	return nil
}

// record copies one record and returns its new place.
func (e *evacuation) record(ctx context.Context, l Loc) (Loc, error) {
	var rec pack.Record
	err := e.s.r.eachCopy(l.Pack, func(blob string) error {
		var err error
		if rec, err = e.x.record(ctx, l, blob); err != nil {
			return err
		}
		return e.check(rec, l.Pack.Kind)
	})
	switch {
	case err != nil && isDamage(err) && l.Pack.Kind == addr.Data:
		return e.heal(ctx, l, err)
	case err != nil:
		return Loc{}, err
	case l.Pack.Kind == addr.Node:
		return e.putNode(ctx, rec.IDs[0])
	}
	return e.putFrame(ctx, rec.IDs, rec.Encoding, rec.Encoded)
}

// check opens a record as a read would, so that nothing wrong is carried on.
// Its plain bytes are in x.plain afterwards.
func (e *evacuation) check(rec pack.Record, kind addr.Kind) error {
	if kind == addr.Node {
		if rec.Kind != pack.NodeRec {
			return fmt.Errorf("%w: record %d is no node", pack.ErrDamaged, rec.Slot)
		}
		if err := e.x.decode(rec); err != nil {
			return err
		}
		return e.x.checkNode(rec.IDs[0])
	}
	if rec.Kind != pack.Frame {
		return fmt.Errorf("%w: record %d is no frame", pack.ErrDamaged, rec.Slot)
	}
	return e.x.checkFrame(rec)
}

// putNode stores the node in x.plain with the present places of what it names.
func (e *evacuation) putNode(ctx context.Context, id ID) (Loc, error) {
	n, err := tree.Decode(e.x.plain, e.x.plain[1])
	if err != nil {
		return Loc{}, err
	}
	for i := range n.Slots {
		if n.Slots[i].IsZero() {
			continue
		}
		if n.Slots[i].Loc, err = e.place(ctx, n.Slots[i].Loc); err != nil {
			return Loc{}, err
		}
	}
	if e.node == nil {
		e.node = e.s.r.sealer.NewBuilder(addr.Node, "", make([]byte, 0, nodeTarget+packSlack))
	}
	plain := n.Encode()
	to, err := e.node.Add(pack.NodeRec, pack.Stored, []ID{id}, len(plain), plain)
	if err != nil {
		return Loc{}, err
	}
	e.out.Copied += int64(to.Len)
	if e.node.Size() < nodeTarget {
		return to, nil
	}
	return to, e.closeNode(ctx)
}

// place is where a hint's record is now, this run's moves included.
func (e *evacuation) place(ctx context.Context, l Loc) (Loc, error) {
	at, err := e.m.place(ctx, l)
	if err != nil {
		return Loc{}, err
	}
	if t := e.moved[at.Pack.ID]; t != nil {
		if to, ok := t.Find(at.Off); ok {
			to.Sub = at.Sub
			return to, nil
		}
	}
	return at, nil
}

func (e *evacuation) putFrame(ctx context.Context, ids []ID, enc pack.Encoding, encoded []byte) (Loc, error) {
	if e.data != nil && isFull(e.data, pack.RecordLen(len(ids), len(encoded))) {
		if err := e.closeData(ctx); err != nil {
			return Loc{}, err
		}
	}
	if e.data == nil {
		var err error
		if e.memory, err = e.s.r.memory.get(ctx, nil); err != nil {
			return Loc{}, err
		}
		e.data = e.s.r.sealer.NewBuilder(addr.Data, "", e.memory)
	}
	to, err := e.data.Add(pack.Frame, enc, ids, len(ids)*ChunkSize, encoded)
	e.out.Copied += int64(to.Len)
	return to, err
}

// heal makes the frame at l anew from chunks that are stored elsewhere too.
// Without all of them it returns the damage.
func (e *evacuation) heal(ctx context.Context, l Loc, damage error) (Loc, error) {
	ids, err := e.frameIDs(ctx, l)
	if err != nil {
		return Loc{}, unhealed(damage, err)
	}
	plain := make([]byte, 0, len(ids)*ChunkSize)
	for _, id := range ids {
		chunk, err := e.elsewhere(ctx, id, l.Pack.ID)
		if err != nil {
			return Loc{}, unhealed(damage, err)
		}
		plain = append(plain, chunk...)
	}
	enc, encoded, err := e.frames.encode(plain)
	if err != nil {
		return Loc{}, err
	}
	e.healed = true
	return e.putFrame(ctx, ids, enc, encoded)
}

// unhealed is why damage could not be healed, or could not be told to be so.
func unhealed(damage, err error) error {
	if isDamage(err) {
		return errors.Join(damage, err)
	}
	return unsure("heal a frame", damage, err)
}

// frameIDs reads from the pack's directory which chunks the frame at l has.
func (e *evacuation) frameIDs(ctx context.Context, l Loc) ([]ID, error) {
	_, entries, err := e.s.r.directory(ctx, l.Pack, l.Pack.Blob())
	if err != nil {
		return nil, err
	}
	for _, d := range entries {
		if d.Off == l.Off && d.Len == l.Len {
			return d.IDs, nil
		}
	}
	return nil, fmt.Errorf("%w: the directory of %s has no frame at %d", pack.ErrDamaged, l.Pack.Blob(), l.Off)
}

// elsewhere reads a chunk from any pack but one. The slice is the Reader's.
func (e *evacuation) elsewhere(ctx context.Context, id ID, not PackID) ([]byte, error) {
	for _, c := range e.s.r.idx.Lookup(id, make([]index.Entry, 0, 4)) {
		if c.Pack == not || !e.m.fates[c.Pack].Stored {
			continue
		}
		chunk, err := e.x.Chunk(ctx, Ref{ID: id, Loc: Loc{Pack: Pack{Kind: addr.Data, ID: c.Pack}, Off: c.Offset, Len: c.Length, Sub: c.Sub}})
		if err == nil || !isDamage(err) {
			return chunk, err
		}
	}
	return nil, fmt.Errorf("%w: chunk %s is stored nowhere else", pack.ErrDamaged, id)
}

func (e *evacuation) closeData(ctx context.Context) error {
	if e.data == nil {
		return nil
	}
	blob, _ := e.data.Finish()
	err := e.s.put(ctx, e.data.Pack, blob)
	e.letGo()
	return err
}

func (e *evacuation) closeNode(ctx context.Context) error {
	if e.node == nil {
		return nil
	}
	// Data before the nodes that name it.
	if err := e.closeData(ctx); err != nil {
		return err
	}
	p := e.node
	e.node = nil
	blob, _ := p.Finish()
	return e.s.put(ctx, p.Pack, blob)
}

// finish makes the last packs durable, and then the relocations that name them.
func (e *evacuation) finish(ctx context.Context) error {
	if err := e.closeNode(ctx); err != nil {
		return err
	}
	if err := e.closeData(ctx); err != nil {
		return err
	}
	var tables []*reloc.Table
	for _, id := range e.out.Emptied {
		tables = append(tables, split(e.moved[id])...)
	}
	if len(tables) == 0 {
		return nil
	}
	var err error
	e.out.Moves, err = e.s.writeMoves(ctx, tables)
	return err
}

// split cuts a table into ones that fit a record. With at most MaxTargets
// entries a table cannot name more targets than that.
func split(t *reloc.Table) []*reloc.Table {
	targets := make(map[PackID]bool)
	for _, e := range t.Entries {
		targets[e.New.Pack.ID] = true
	}
	most := reloc.MaxEntries
	if len(targets) > reloc.MaxTargets {
		most = reloc.MaxTargets
	}
	var out []*reloc.Table
	for rest := t.Entries; len(rest) > 0; {
		n := min(len(rest), most)
		out = append(out, &reloc.Table{Pack: t.Pack, Entries: rest[:n]})
		rest = rest[n:]
	}
	return out
}
