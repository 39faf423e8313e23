package tree

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"cairn/internal/repo/addr"
	"cairn/internal/repo/keys"
)

// memSink keeps nodes in a map, as a repository would.
type memSink struct {
	h     *keys.Hasher
	nodes map[addr.Loc]*Node
	next  uint32
	puts  int
}

func newSink(h *keys.Hasher) *memSink { return &memSink{h: h, nodes: make(map[addr.Loc]*Node)} }

func (m *memSink) PutNode(_ context.Context, level uint8, id addr.ID, slots *Slots) (*Place, error) {
	n := &Node{Level: level}
	for i := range slots {
		n.Slots[i] = slots[i].Ref()
	}
	if n.Hash(m.h) != id {
		return nil, errors.New("the builder's id is not the node's hash")
	}
	back, err := Decode(n.Encode(), level)
	if err != nil || *back != *n {
		return nil, fmt.Errorf("node does not survive its encoding: %v", err)
	}
	m.next++
	m.puts++
	loc := addr.Loc{Pack: addr.Pack{Kind: addr.Node, ID: addr.PackID{9}}, Off: m.next, Len: 100}
	m.nodes[loc] = n
	return &Place{Loc: loc}, nil
}

func (m *memSink) LoadNode(_ context.Context, ref addr.Ref, level uint8) (*Node, error) {
	n := m.nodes[ref.Loc]
	if n == nil || n.Level != level || n.Hash(m.h) != ref.ID {
		return nil, fmt.Errorf("no node at %+v", ref.Loc)
	}
	return n, nil
}

type chunkMap map[int64]addr.ID

// build writes a tree from m; given leaves are those of leaves (nil: all that
// hold something, or, with a parent and no keep, the same).
func build(t rapidT, sink *memSink, chunks int64, parent *Root, keep bool, m chunkMap, leaves map[int64]bool) Root {
	t.Helper()
	b, err := NewBuilder(sink.h, sink, sink, chunks, parent, keep)
	if err != nil {
		t.Fatal(err)
	}
	for leaf := int64(0); leaf*Fanout < chunks; leaf++ {
		if !leaves[leaf] {
			continue
		}
		var s Slots
		for i := range int64(Fanout) {
			if id, ok := m[leaf*Fanout+i]; ok {
				s[i] = Slot{ID: id, Loc: addr.Loc{Pack: addr.Pack{Kind: addr.Data, ID: addr.PackID{id[0]}}, Off: uint32(id[1]), Len: 7}}
			}
		}
		if err := b.Leaf(context.Background(), leaf, &s); err != nil {
			t.Fatal(err)
		}
	}
	level, root, err := b.Finish(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return Root{Level: level, Ref: root.Ref()}
}

type rapidT interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func read(t rapidT, sink *memSink, root Root, chunks int64) chunkMap {
	t.Helper()
	got := chunkMap{}
	err := Walk(context.Background(), sink, root, 0, chunks, nil, func(idx int64, n *Node) error {
		for i := range n.Slots {
			if !n.Slots[i].IsZero() {
				got[idx*Fanout+int64(i)] = n.Slots[i].ID
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func leavesOf(maps ...chunkMap) map[int64]bool {
	out := map[int64]bool{}
	for _, m := range maps {
		for c := range m {
			out[c/Fanout] = true
		}
	}
	return out
}

func same(a, b chunkMap) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// A tree is a function of its content: by a scan, by changes only, from
// scratch or upon a parent, the root is the same and reads back the same.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sink := newSink(keys.NewMaster().Nodes())
		chunks := rapid.SampledFrom([]int64{1, 31, 32, 33, 1023, 1024, 1025, 5000, 40000}).Draw(t, "chunks")
		content := chunkMap{}
		root := build(t, sink, chunks, nil, false, content, nil)
		for range rapid.IntRange(1, 6).Draw(t, "rounds") {
			old := chunkMap{}
			for k, v := range content {
				old[k] = v
			}
			changed := chunkMap{}
			for range rapid.IntRange(0, 40).Draw(t, "writes") {
				c := rapid.Int64Range(0, chunks-1).Draw(t, "chunk")
				changed[c] = addr.ID{}
				if v := rapid.ByteRange(0, 5).Draw(t, "value"); v == 0 {
					delete(content, c)
				} else {
					content[c] = addr.ID{v, byte(c), 1}
				}
			}
			before := sink.puts
			inc := build(t, sink, chunks, &root, true, content, leavesOf(changed))
			if len(changed) == 0 && (inc != root || sink.puts != before) {
				t.Fatalf("nothing changed, but %d nodes were written", sink.puts-before)
			}
			scan := build(t, sink, chunks, &root, false, content, leavesOf(content))
			full := build(t, newSink(sink.h), chunks, nil, false, content, leavesOf(content))
			if inc.Ref.ID != scan.Ref.ID || scan.Ref.ID != full.Ref.ID || inc.Level != LevelFor(chunks) {
				t.Fatalf("roots differ: changes %s scan %s full %s", inc.Ref.ID, scan.Ref.ID, full.Ref.ID)
			}
			if got := read(t, sink, inc, chunks); !same(got, content) {
				t.Fatalf("reads back %d chunks, want %d", len(got), len(content))
			}
			if got := read(t, sink, root, chunks); !same(got, old) {
				t.Fatal("the parent changed")
			}
			if (len(content) == 0) != inc.Ref.IsZero() {
				t.Fatal("the empty tree is not the zero root, or a full one is")
			}
			root = inc
		}
	})
}

func TestLeafAt(t *testing.T) {
	sink := newSink(keys.NewMaster().Nodes())
	m := chunkMap{0: {1}, 70000: {2}}
	root := build(t, sink, 100000, nil, false, m, leavesOf(m))
	for leaf, want := range map[int64]bool{0: true, 1: false, 70000 / Fanout: true, 99999 / Fanout: false, 1 << 40: false} {
		n, err := LeafAt(context.Background(), sink, root, leaf)
		if err != nil || (n != nil) != want {
			t.Errorf("leaf %d: %v, %v", leaf, n != nil, err)
		}
	}
}

func TestBuilderRefuses(t *testing.T) {
	sink := newSink(keys.NewMaster().Nodes())
	ctx := context.Background()
	if _, err := NewBuilder(sink.h, sink, sink, 10, &Root{Level: 3}, false); err == nil {
		t.Error("a parent of another level was accepted")
	}
	if _, err := NewBuilder(sink.h, sink, sink, 10, nil, true); err == nil {
		t.Error("keep without a parent was accepted")
	}
	b, err := NewBuilder(sink.h, sink, sink, 33, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Leaf(ctx, 1, &Slots{}); err != nil {
		t.Fatal(err)
	}
	if err := b.Leaf(ctx, 1, &Slots{}); err == nil {
		t.Error("a leaf came twice")
	}
	if err := b.Leaf(ctx, 32, &Slots{}); err == nil {
		t.Error("a leaf behind the end was accepted")
	}
}

func FuzzDecodeNode(f *testing.F) {
	n := &Node{Level: 1}
	n.Slots[3] = addr.Ref{ID: addr.ID{1}, Loc: addr.Loc{Pack: addr.Pack{Kind: addr.Node, ID: addr.PackID{2}}, Off: 3, Len: 4}}
	n.Slots[9] = addr.Ref{ID: addr.ID{2}, Loc: addr.Loc{Pack: addr.Pack{Kind: addr.Point, ID: addr.PackID{7}, Snapshot: "ss-ABCD1234"}, Off: 3, Len: 4, Sub: 2}}
	f.Add(n.Encode(), byte(1))
	f.Add([]byte{1, 0, 0}, byte(0))
	f.Fuzz(func(t *testing.T, b []byte, level byte) {
		n, err := Decode(b, level)
		if err != nil {
			return
		}
		again, err := Decode(n.Encode(), level)
		if err != nil || *again != *n {
			t.Fatalf("a decoded node does not survive: %v", err)
		}
	})
}
