// Package tree is the Merkle radix tree over a volume's chunks
// (../FORMAT.md §6).
//
// Invariants:
//   - equal content gives an equal root, however it was found: an all-zero
//     subtree is the zero Ref, and hashes never cover locations;
//   - a node is inherited only where its hash equals the parent's at the very
//     same place;
//   - children are placed before the nodes that name them.
//
// A Builder serves one goroutine; Walk and the codec serve any number.
package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"cairn/internal/repo/addr"
	"cairn/internal/repo/keys"
)

// Fanout is the number of slots in a node.
const Fanout = 1 << fanoutLog

const (
	fanoutLog = 5
	maxLevel  = 9 // 32^10 chunks of 64 KiB is far above 2^63 bytes
	format    = 1
	fixedSize = 12
	slotSize  = 42
)

// ErrDamaged says that bytes are not a node.
var ErrDamaged = errors.New("damaged node")

var le = binary.LittleEndian

// Root is a whole tree.
type Root struct {
	Level uint8
	Ref   addr.Ref // zero: every byte reads as zero
}

// Node is one decoded node. Level 0 holds chunks.
type Node struct {
	Level uint8
	Slots [Fanout]addr.Ref
}

// LevelFor is the root level of a volume with that many chunks.
func LevelFor(chunks int64) uint8 {
	level := uint8(0)
	for Span(level) < chunks {
		level++
	}
	return level
}

// Span is the number of chunks that a node of the level covers.
func Span(level uint8) int64 {
	if level > maxLevel {
		panic(fmt.Sprintf("no tree has level %d", level))
	}
	return 1 << (fanoutLog * (int64(level) + 1))
}

// hash is the node hash of the slots' ids.
func hash(h *keys.Hasher, level uint8, ids func(i int) addr.ID) addr.ID {
	var present uint32
	buf := make([]byte, 8, 8+Fanout*32)
	buf[0], buf[1], buf[2] = level, fanoutLog, addr.ChunkLog
	for i := range Fanout {
		if id := ids(i); !id.IsZero() {
			present |= 1 << i
			buf = append(buf, id[:]...)
		}
	}
	le.PutUint32(buf[4:], present)
	return h.ID(buf)
}

// Hash is the node's hash; the zero ID if all slots are zero.
func (n *Node) Hash(h *keys.Hasher) addr.ID {
	for i := range n.Slots {
		if !n.Slots[i].IsZero() {
			return hash(h, n.Level, func(i int) addr.ID { return n.Slots[i].ID })
		}
	}
	return addr.ID{}
}

// Encode gives the stored form.
func (n *Node) Encode() []byte {
	var packs []addr.Pack
	index := make(map[addr.Pack]byte, 4)
	var present uint32
	for i := range n.Slots {
		if n.Slots[i].IsZero() {
			continue
		}
		present |= 1 << i
		p := n.Slots[i].Loc.Pack
		if _, ok := index[p]; !ok {
			index[p] = byte(len(packs))
			packs = append(packs, p)
		}
	}
	b := make([]byte, fixedSize, fixedSize+len(packs)*40+bits.OnesCount32(present)*slotSize)
	b[0], b[1], b[2] = format, n.Level, byte(len(packs))
	le.PutUint32(b[4:], present)
	for _, p := range packs {
		b = appendPack(b, p)
	}
	for i := range n.Slots {
		if s := &n.Slots[i]; !s.IsZero() {
			b = append(b, s.ID[:]...)
			b = append(b, index[s.Loc.Pack], s.Loc.Sub)
			b = le.AppendUint32(b, s.Loc.Off)
			b = le.AppendUint32(b, s.Loc.Len)
		}
	}
	return b
}

func appendPack(b []byte, p addr.Pack) []byte {
	b = append(b, byte(p.Kind))
	b = append(b, p.ID[:]...)
	if p.Kind == addr.Point {
		b = append(b, byte(len(p.Snapshot)))
		b = append(b, p.Snapshot...)
	}
	return b
}

// Decode reads a stored node of the wanted level.
func Decode(b []byte, level uint8) (*Node, error) {
	if len(b) < fixedSize || b[0] != format || b[1] != level || b[2] > Fanout || b[3] != 0 || le.Uint32(b[8:]) != 0 {
		return nil, fmt.Errorf("%w: its first bytes are wrong", ErrDamaged)
	}
	present := le.Uint32(b[4:])
	packs := make([]addr.Pack, b[2])
	b = b[fixedSize:]
	for i := range packs {
		var err error
		if packs[i], b, err = takePack(b); err != nil {
			return nil, err
		}
	}
	if present == 0 || len(b) != bits.OnesCount32(present)*slotSize {
		return nil, fmt.Errorf("%w: its length does not fit its slots", ErrDamaged)
	}
	n := &Node{Level: level}
	for i := range Fanout {
		if present&(1<<i) == 0 {
			continue
		}
		if int(b[32]) >= len(packs) {
			return nil, fmt.Errorf("%w: slot %d names pack %d of %d", ErrDamaged, i, b[32], len(packs))
		}
		n.Slots[i] = addr.Ref{ID: addr.ID(b), Loc: addr.Loc{
			Pack: packs[b[32]], Sub: b[33], Off: le.Uint32(b[34:]), Len: le.Uint32(b[38:])}}
		if n.Slots[i].IsZero() {
			return nil, fmt.Errorf("%w: slot %d has the hash of zeros", ErrDamaged, i)
		}
		b = b[slotSize:]
	}
	return n, nil
}

func takePack(b []byte) (p addr.Pack, rest []byte, err error) {
	if len(b) < 17 {
		return p, nil, fmt.Errorf("%w: its pack table is cut", ErrDamaged)
	}
	p.Kind = addr.Kind(b[0])
	p.ID = addr.PackID(b[1:17])
	b = b[17:]
	switch p.Kind {
	case addr.Data, addr.Node:
		return p, b, nil
	case addr.Point:
		if len(b) < 1 || len(b) < 1+int(b[0]) || !ValidSnapshot(string(b[1:1+b[0]])) {
			return p, nil, fmt.Errorf("%w: its pack table has a bad snapshot id", ErrDamaged)
		}
		p.Snapshot = string(b[1 : 1+b[0]])
		return p, b[1+b[0]:], nil
	}
	return p, nil, fmt.Errorf("%w: its pack table has the unknown kind %d", ErrDamaged, p.Kind)
}

// ValidSnapshot reports whether s can stand in a blob's name: 1 to 64 letters,
// digits or dashes, not beginning with a dash.
func ValidSnapshot(s string) bool {
	if len(s) < 1 || len(s) > 64 || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// Loader reads nodes. It returns only nodes whose hash is ref.ID.
type Loader interface {
	LoadNode(ctx context.Context, ref addr.Ref, level uint8) (*Node, error)
}

// Walk visits the tree's nodes that hold chunks from first up to, but not
// including, last, in volume order. enter is asked before a node is loaded;
// idx counts the nodes of its level from the volume's start; false skips the
// subtree. leaf gets every level-0 node that was entered. Both may be nil.
// A zero subtree is not visited.
func Walk(ctx context.Context, l Loader, root Root, first, last int64,
	enter func(ref addr.Ref, level uint8, idx int64) (bool, error), leaf func(idx int64, n *Node) error) error {
	w := walker{l: l, first: first, last: last, enter: enter, leaf: leaf}
	return w.visit(ctx, root.Ref, root.Level, 0)
}

type walker struct {
	l           Loader
	first, last int64
	enter       func(addr.Ref, uint8, int64) (bool, error)
	leaf        func(int64, *Node) error
}

func (w *walker) visit(ctx context.Context, ref addr.Ref, level uint8, idx int64) error {
	span := Span(level)
	if ref.IsZero() || (idx+1)*span <= w.first || idx*span >= w.last {
		return nil
	}
	if w.enter != nil {
		if ok, err := w.enter(ref, level, idx); err != nil || !ok {
			return err
		}
	}
	n, err := w.l.LoadNode(ctx, ref, level)
	if err != nil {
		return err
	}
	if level == 0 {
		if w.leaf == nil {
			return nil
		}
		return w.leaf(idx, n)
	}
	for i := range n.Slots {
		if err := w.visit(ctx, n.Slots[i], level-1, idx<<fanoutLog+int64(i)); err != nil {
			return err
		}
	}
	return nil
}

// LeafAt loads the leaf idx; nil if its whole span is zeros.
func LeafAt(ctx context.Context, l Loader, root Root, idx int64) (*Node, error) {
	if idx<<fanoutLog >= Span(root.Level) {
		return nil, nil
	}
	ref := root.Ref
	for level := root.Level; ; level-- {
		if ref.IsZero() {
			return nil, nil
		}
		n, err := l.LoadNode(ctx, ref, level)
		if err != nil || level == 0 {
			return n, err
		}
		ref = n.Slots[idx>>(fanoutLog*int64(level-1))&(Fanout-1)]
	}
}
