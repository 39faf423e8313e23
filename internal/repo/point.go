package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"cairn/internal/repo/addr"
	"cairn/internal/repo/keys"
	"cairn/internal/repo/pack"
	"cairn/internal/repo/tree"
)

// smallPoint is the most that a point pack keeps beside its manifest, in bytes
// as sealed. It is written twice and read whole with the manifest.
const smallPoint = 128 << 10

const (
	nodeTarget = 4 << 20 // size at which a node pack is closed
	packSlack  = 1 << 20 // directory, footer and the last record
	// packRecords bounds a data pack's directory, which is read whole (144
	// bytes a frame of four): chunks that compress to nothing would else fill
	// a pack with a hundred thousand frames.
	packRecords = 4000
	// nodeRoom is the most a sealed node takes: 32 slots, and a pack table
	// of 32 data or node packs (point packs' names are longer, but at most
	// 30 of them, a chain, come together).
	nodeRoom = 3 << 10
)

// PackSize is about how large writers make packs of a kind; 0: such packs are
// not copied together.
func PackSize(kind string) int {
	switch kind {
	case addr.Data.String():
		return packTarget
	case addr.Node.String():
		return nodeTarget
	}
	return 0
}

// PointWriter stores one point: frames from any number of goroutines, leaves
// from one, then Finish. After an error the point is given up with Abort; what
// was written stays registered and is deleted with the session.
//
// Frames get their room under mu and are sealed outside of it, by whoever adds
// them; the putter waits for the last one of its pack and hashes the whole.
type PointWriter struct {
	s        *Session
	snapshot string
	builder  *tree.Builder
	mans     *keys.Hasher

	puts   chan finished
	putErr error         // the putter's; read after failed or done closed
	put    int64         // bytes of the packs put, all copies; read after done closed
	failed chan struct{} // closed at the first failed put
	done   chan struct{} // closed when the putter has ended

	mu         sync.Mutex // guards what follows; before Session.mu
	small      bool       // frames wait, nothing was placed yet
	frames     []*frame   // waiting
	frameBytes int        // sealed size of frames
	nodes      []*node    // waiting, children before parents
	nodeBytes  int        // sealed size of nodes
	data       *openPack
	node       *openPack
	source     int64 // source bytes behind the open data pack
	adopted    int64 // bytes taken over from an earlier term

	reportMu sync.Mutex // one durable call at a time
	durable  func(sourceBytes int64)
}

// openPack is a pack that is being filled.
type openPack struct {
	*pack.Builder
	sealing sync.WaitGroup // records that have room and are not sealed yet
	memory  []byte         // lent; nil: of Go's heap
}

type frame struct {
	place    *tree.Place
	ids      []ID
	encoding pack.Encoding
	encoded  []byte
}

// sealing is a frame that has its room.
type sealing struct {
	pack    *openPack
	room    pack.Reservation
	encoded []byte
}

// seal fills the room of all and returns the emptied list.
func seal(all []sealing) []sealing {
	for i := range all {
		all[i].room.Seal(all[i].encoded)
		all[i].pack.sealing.Done()
	}
	return all[:0]
}

type node struct {
	place *tree.Place
	level uint8
	id    ID
	slots tree.Slots
}

// finished is a pack on its way to the store.
type finished struct {
	*openPack
	source int64
}

// PointConfig describes a point that is to be written.
type PointConfig struct {
	Snapshot  string
	SizeBytes int64
	Parent    *Root // tree to inherit from; nil: write every node
	// Keep: leaves that are not given stay as in the parent; else zeros.
	Keep bool
	// Durable is told how many more source bytes are durable, by one
	// goroutine at a time. May be nil.
	Durable func(sourceBytes int64)
}

// NewPoint begins a point. ctx must last until Finish or Abort returns.
func (s *Session) NewPoint(ctx context.Context, c PointConfig) (*PointWriter, error) {
	w := &PointWriter{
		s: s, snapshot: c.Snapshot, mans: s.r.master.Manifests(), small: true, durable: c.Durable,
		puts: make(chan finished), failed: make(chan struct{}), done: make(chan struct{}),
	}
	if w.durable == nil {
		w.durable = func(int64) {}
	}
	var err error
	w.builder, err = tree.NewBuilder(s.r.master.Nodes(), s.r, w, Chunks(c.SizeBytes), c.Parent, c.Keep)
	if err != nil {
		return nil, fmt.Errorf("begin point %s: %w", c.Snapshot, err)
	}
	s.mu.Lock()
	w.adopted, s.adopted = s.adopted, 0
	s.mu.Unlock()
	go w.putter(ctx)
	return w, nil
}

// putter makes packs durable one after the other, in the order in which they
// were finished: a node pack comes after the data packs that it names.
func (w *PointWriter) putter(ctx context.Context) {
	defer close(w.done)
	for f := range w.puts {
		f.sealing.Wait()
		if w.putErr == nil {
			blob, _ := f.Finish()
			w.put += int64(len(blob) * len(f.Pack.Copies()))
			if w.putErr = w.s.put(ctx, f.Pack, blob); w.putErr != nil {
				close(w.failed)
			} else {
				w.report(f.source)
			}
		}
		w.release(f)
	}
}

// addFrames stores frames, next to each other in one pack as far as it has
// room. What they encode has been decoded and compared by the caller; nothing
// of it is kept. Their places are filled at once or, for a small point, at
// Finish.
func (w *PointWriter) addFrames(ctx context.Context, frames []*frame) error {
	room, err := w.reserve(ctx, frames)
	seal(room)
	return err
}

// reserve gives frames their room. Also after an error what it returns must be
// sealed.
func (w *PointWriter) reserve(ctx context.Context, frames []*frame) ([]sealing, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	room := make([]sealing, 0, len(frames))
	if w.small {
		for _, f := range frames {
			w.frameBytes += pack.RecordLen(len(f.ids), len(f.encoded))
		}
		if w.frameBytes+w.nodeBytes <= smallPoint {
			for _, f := range frames {
				f.encoded = bytes.Clone(f.encoded)
				w.frames = append(w.frames, f)
			}
			return nil, nil
		}
		var err error
		if room, err = w.endSmall(ctx, room); err != nil {
			return room, err
		}
	}
	return w.placeFrames(ctx, frames, room)
}

// endSmall gives the waiting frames room in a data pack.
func (w *PointWriter) endSmall(ctx context.Context, room []sealing) ([]sealing, error) {
	w.small = false
	frames := w.frames
	w.frames = nil
	return w.placeFrames(ctx, frames, room)
}

// placeFrames appends the room of frames to room, also of some after an error.
func (w *PointWriter) placeFrames(ctx context.Context, frames []*frame, room []sealing) ([]sealing, error) {
	for _, f := range frames {
		need := pack.RecordLen(len(f.ids), len(f.encoded))
		if w.data != nil && isFull(w.data.Builder, need) {
			// The putter waits for them, and this goroutine maybe for the putter.
			room = seal(room)
			if err := w.closeData(ctx); err != nil {
				return room, err
			}
		}
		if w.data == nil {
			if err := w.openData(ctx); err != nil {
				return room, err
			}
		}
		r, err := w.data.Reserve(pack.Frame, f.encoding, f.ids, len(f.ids)*ChunkSize, len(f.encoded))
		if err != nil {
			return room, err
		}
		w.data.sealing.Add(1)
		f.place.Loc = r.Loc
		room = append(room, sealing{pack: w.data, room: r, encoded: f.encoded})
	}
	return room, nil
}

// isFull reports whether a data pack is closed rather than given a record of
// so many bytes.
func isFull(b *pack.Builder, need int) bool {
	return b.Size()+need > packTarget || b.Records() == packRecords
}

// openData begins a data pack. It waits for memory: this is what bounds the
// bytes in flight.
func (w *PointWriter) openData(ctx context.Context) error {
	memory, err := w.s.r.memory.get(ctx, w.failed)
	if errors.Is(err, errPutFailed) {
		return w.putErr
	}
	if err != nil {
		return err
	}
	w.data = &openPack{Builder: w.s.r.sealer.NewBuilder(addr.Data, "", memory), memory: memory}
	return nil
}

// closeData hands the open data pack to the putter.
func (w *PointWriter) closeData(ctx context.Context) error {
	if w.data == nil {
		return nil
	}
	f := finished{openPack: w.data, source: w.source}
	w.data, w.source = nil, 0
	return w.send(ctx, f)
}

func (w *PointWriter) send(ctx context.Context, f finished) error {
	select {
	case w.puts <- f:
		return nil
	case <-w.failed:
		w.release(f)
		return w.putErr
	case <-ctx.Done():
		w.release(f)
		return context.Cause(ctx)
	}
}

// release gives a pack's memory back.
func (w *PointWriter) release(f finished) {
	if f.memory != nil {
		f.sealing.Wait()
		w.s.r.memory.put(f.memory)
	}
}

// Source counts bytes of the source that stand behind the frames added so far.
// They are reported durable together with the pack that is open now.
func (w *PointWriter) Source(n int64) {
	w.mu.Lock()
	w.source += n
	idle := w.data == nil && !w.small
	if idle {
		n, w.source = w.source, 0
	}
	w.mu.Unlock()
	if idle {
		w.report(n)
	}
}

func (w *PointWriter) report(n int64) {
	w.reportMu.Lock()
	defer w.reportMu.Unlock()
	w.durable(n)
}

// Leaf sets the chunks from idx*Fanout on. Indices ascend. Every Late place
// was given by Frames.
func (w *PointWriter) Leaf(ctx context.Context, idx int64, slots *tree.Slots) error {
	return w.builder.Leaf(ctx, idx, slots)
}

// PutNode takes a finished node from the builder (tree.Sink). Nodes wait as
// long as they may still fit into the point pack.
func (w *PointWriter) PutNode(ctx context.Context, level uint8, id ID, slots *tree.Slots) (*tree.Place, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := &node{place: &tree.Place{}, level: level, id: id, slots: *slots}
	w.nodes = append(w.nodes, n)
	w.nodeBytes += nodeRoom
	if w.small && w.frameBytes+w.nodeBytes > smallPoint {
		room, err := w.endSmall(ctx, nil)
		seal(room)
		if err != nil {
			return nil, err
		}
	}
	if w.nodeBytes <= smallPoint {
		return n.place, nil
	}
	for _, n := range w.nodes {
		if err := w.placeNode(ctx, n); err != nil {
			return nil, err
		}
	}
	w.nodes = w.nodes[:0]
	return n.place, nil
}

// placeNode puts a node into the open node pack.
func (w *PointWriter) placeNode(ctx context.Context, n *node) error {
	if w.node == nil {
		w.node = &openPack{Builder: w.s.r.sealer.NewBuilder(addr.Node, "", make([]byte, 0, nodeTarget+packSlack))}
	}
	if err := n.addTo(w.node.Builder); err != nil {
		return err
	}
	if w.node.Size() < nodeTarget {
		return nil
	}
	return w.closeNode(ctx)
}

// addTo seals the node; its children are placed.
func (n *node) addTo(b *pack.Builder) error {
	stored := &tree.Node{Level: n.level}
	for i := range n.slots {
		stored.Slots[i] = n.slots[i].Ref()
	}
	plain := stored.Encode()
	loc, err := b.Add(pack.NodeRec, pack.Stored, []ID{n.id}, len(plain), plain)
	n.place.Loc = loc
	return err
}

// closeNode hands the open node pack to the putter, behind the data packs
// that its nodes name.
func (w *PointWriter) closeNode(ctx context.Context) error {
	if w.node == nil {
		return nil
	}
	if err := w.closeData(ctx); err != nil {
		return err
	}
	f := finished{openPack: w.node}
	w.node = nil
	return w.send(ctx, f)
}

// Point is a durable point.
type Point struct {
	Pack       Pack
	Content    ID // content hash of the point pack
	AddedBytes int64
	Root       Root
}

// Finish closes the tree, waits for every pack, then writes the manifest: m
// with Root and AddedBytes filled in. When it returns, everything is durable.
func (w *PointWriter) Finish(ctx context.Context, m *Manifest) (Point, error) {
	level, root, err := w.builder.Finish(ctx)
	if err != nil {
		return Point{}, w.giveUp(err)
	}
	if err := w.closePacks(ctx); err != nil {
		return Point{}, w.giveUp(err)
	}
	close(w.puts)
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	p, err := Point{}, w.putErr
	if err == nil {
		p, err = w.putPoint(ctx, m, level, root)
	}
	if err != nil {
		w.letGo()
		return Point{}, err
	}
	w.report(w.source)
	return p, nil
}

// closePacks sends the open packs on their way, data first.
func (w *PointWriter) closePacks(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.closeData(ctx); err != nil {
		return err
	}
	return w.closeNode(ctx)
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// giveUp ends the putter and returns what it failed with, or err. The session
// forgets its chunks: those of the open pack will never be durable.
func (w *PointWriter) giveUp(err error) error {
	close(w.puts)
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	w.letGo()
	return firstOf(w.putErr, err)
}

// letGo undoes what a point that was given up did to its session.
func (w *PointWriter) letGo() {
	if w.data != nil {
		w.release(finished{openPack: w.data})
		w.data = nil
	}
	w.s.forgetClaims()
}

// Abort ends the point after an error elsewhere. It waits for the putter. The
// session may go on with another point.
func (w *PointWriter) Abort() { w.giveUp(nil) } //nolint:errcheck // the caller has the first error

// putPoint writes the point pack: what is small enough to be kept with the
// manifest, and the manifest.
func (w *PointWriter) putPoint(ctx context.Context, m *Manifest, level uint8, root tree.Slot) (Point, error) {
	b := w.s.r.sealer.NewBuilder(addr.Point, w.snapshot, nil)
	for _, f := range w.frames {
		loc, err := b.Add(pack.Frame, f.encoding, f.ids, len(f.ids)*ChunkSize, f.encoded)
		if err != nil {
			return Point{}, err
		}
		f.place.Loc = loc
		w.s.disown(f.ids)
	}
	for _, n := range w.nodes {
		if err := n.addTo(b); err != nil {
			return Point{}, err
		}
	}
	m.Root = Root{Level: level, Ref: root.Ref()}
	m.AddedBytes = 0
	size := b.SizeWith(1, len(m.Encode()))
	m.AddedBytes = w.adopted + w.put + int64(2*size)
	plain := m.Encode()
	if _, err := b.Add(pack.Manifest, pack.Stored, []ID{w.mans.ID(plain)}, len(plain), plain); err != nil {
		return Point{}, err
	}
	blob, content := b.Finish()
	if len(blob) != size {
		panic(fmt.Sprintf("point pack of %d bytes was foreseen with %d", len(blob), size))
	}
	if err := w.s.put(ctx, b.Pack, blob); err != nil {
		return Point{}, err
	}
	return Point{Pack: b.Pack, Content: content, AddedBytes: m.AddedBytes, Root: m.Root}, nil
}
