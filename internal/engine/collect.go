package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"cairn/internal/repo"
)

// Stored is a listing of the repository's packs. The collector makes it before
// it reads rows: a pack is registered before it is put, so one that is listed
// and has no row afterwards belongs to nobody (docs/adr/0005-collection.md).
type Stored struct {
	packs map[repo.PackID]storedPack
	bytes int64
}

type storedPack struct {
	pack  repo.Pack
	bytes int64 // all copies that are there
}

// Stored lists the packs.
func (e *Engine) Stored(ctx context.Context) (*Stored, error) {
	s := NewStored()
	err := e.r.Blobs(ctx, func(b repo.Blob) error {
		s.Add(b.Name, b.Size)
		return nil
	})
	return s, err
}

// NewStored begins a listing.
func NewStored() *Stored { return &Stored{packs: make(map[repo.PackID]storedPack)} }

// Add enters one blob.
func (s *Stored) Add(name string, size int64) {
	s.bytes += size
	p, header, ok := repo.ParseBlob(name)
	if !ok || header || !repo.Collected(p.Kind) {
		return
	}
	s.packs[p.ID] = storedPack{pack: p, bytes: s.packs[p.ID].bytes + size}
}

// Manifests lists the point packs.
func (s *Stored) Manifests() []PointRef {
	var out []PointRef
	for id, p := range s.packs {
		if p.pack.Kind == repo.PointKind {
			out = append(out, PointRef{Snapshot: p.pack.Snapshot, Pack: id.String()})
		}
	}
	slices.SortFunc(out, func(a, b PointRef) int { return strings.Compare(a.Pack, b.Pack) })
	return out
}

// PackRow is what the rows say of a pack.
type PackRow struct {
	PackRecord
	Live bool // the row is LIVE, and its session COMMITTED
}

// MarkSpec is what a mark begins with. All rows were read after the listing.
// Roots come from the rows, listed or not; a listed manifest beyond them is a
// root if no row knows its point.
type MarkSpec struct {
	Stored  *Stored
	Packs   []PackRow  // every row
	Points  []PointRef // points that are not in the recycle bin
	Bin     []PointRef // points in the recycle bin: they keep what they use, too
	Kept    []PointRef // trees that somebody keeps though their point may be gone
	Unknown []PointRef // listed manifests of points without a row
}

// Marks is what a mark found.
type Marks interface {
	// Needed reports whether a root reaches anything in the pack.
	Needed(pack string) bool
	// Strays are stored packs that have no row and that no root reaches.
	Strays() []PackRecord
	// Unique is, by snapshot id, the bytes that would be freed if the point
	// alone went. Points in the recycle bin and Kept trees have none.
	Unique() map[string]int64
	// Waste tells how much of the pack is needed.
	Waste(pack string) PackWaste
	// StoredBytes is the size of the whole repository.
	StoredBytes() int64
}

// PackWaste is what a pack holds and what of it is needed, in bytes of one copy.
type PackWaste struct {
	ID     string
	Kind   string
	Stored int64
	Needed int64
}

type marks struct {
	spec   MarkSpec
	rows   map[string]bool // packs with a row
	m      *repo.Marker
	unique map[string]int64
	strays []PackRecord
}

// Mark walks every root. An error says that not everything could be read (errs.Corrupt: damage),
// and then nothing may be deleted.
func (e *Engine) Mark(ctx context.Context, spec MarkSpec) (Marks, error) {
	fates := make(map[repo.PackID]repo.PackFate, len(spec.Packs))
	for id := range spec.Stored.packs {
		fates[id] = repo.PackFate{Stored: true}
	}
	k := &marks{spec: spec, rows: make(map[string]bool, len(spec.Packs))}
	for _, row := range spec.Packs {
		k.rows[row.ID] = true
		id, err := repo.ParsePackID(row.ID)
		if err != nil {
			return nil, err
		}
		f := fates[id]
		// A pack of a committed session is durable, even if it was put after
		// the listing.
		fates[id] = repo.PackFate{Live: row.Live, Stored: f.Stored || row.Live}
	}
	k.m = e.r.NewMarker(fates)
	for _, part := range []struct {
		points []PointRef
		owner  func(i int) repo.Owner
	}{
		{spec.Points, func(i int) repo.Owner { return repo.Owner(i) }},
		{spec.Kept, func(int) repo.Owner { return repo.Many }},
		{spec.Unknown, func(int) repo.Owner { return repo.Many }},
		{spec.Bin, func(int) repo.Owner { return repo.Bin }},
	} {
		for i, p := range part.points {
			pk, content, err := p.pack()
			if err != nil {
				return nil, err
			}
			if err := k.m.Point(ctx, part.owner(i), pk, content); err != nil {
				return nil, err
			}
		}
	}
	k.account()
	return k, nil
}

// account works out what the marks mean for points and strays.
func (k *marks) account() {
	bytes := k.m.Unique(len(k.spec.Points), func(id repo.PackID) int64 { return k.spec.Stored.packs[id].bytes })
	k.unique = make(map[string]int64, len(bytes))
	for i, n := range bytes {
		k.unique[k.spec.Points[i].Snapshot] = n
	}
	for id, p := range k.spec.Stored.packs {
		if k.rows[id.String()] || k.m.Used(id) != nil || k.m.NeedsMoves(id) {
			continue
		}
		k.strays = append(k.strays, PackRecord{ID: id.String(), Kind: p.pack.Kind.String(), Name: p.pack.Blob(), Bytes: p.bytes})
	}
	slices.SortFunc(k.strays, func(a, b PackRecord) int { return strings.Compare(a.ID, b.ID) })
}

func (k *marks) Needed(pack string) bool {
	id, err := repo.ParsePackID(pack)
	return err != nil || k.m.Used(id) != nil || k.m.NeedsMoves(id)
}

func (k *marks) Strays() []PackRecord { return k.strays }

func (k *marks) Unique() map[string]int64 { return k.unique }

func (k *marks) StoredBytes() int64 { return k.spec.Stored.bytes }

func (k *marks) Waste(pack string) PackWaste {
	w := PackWaste{ID: pack}
	id, err := repo.ParsePackID(pack)
	if err != nil {
		return w
	}
	p := k.spec.Stored.packs[id]
	w.Kind = p.pack.Kind.String()
	w.Stored = p.bytes / int64(len(p.pack.Copies()))
	if u := k.m.Used(id); u != nil {
		w.Needed = u.Bytes
	}
	return w
}

// Evacuated is what was copied out of packs.
type Evacuated struct {
	Emptied []string          // packs that nothing needs once the session is committed
	Copied  int64             // bytes written anew, one copy
	Healed  []string          // emptied packs that had damage, and must not come back to life
	Failed  map[string]string // packs that stay, and why
}

// Evacuate copies what the marks found needed out of the packs, into the
// session, and leaves relocations for the hints that name the old places.
func (s *session) Evacuate(ctx context.Context, found Marks, packs []string) (Evacuated, error) {
	k, ok := found.(*marks)
	if !ok {
		return Evacuated{}, fmt.Errorf("evacuate: marks of another engine (%T)", found)
	}
	victims := make([]repo.Pack, 0, len(packs))
	for _, name := range packs {
		id, err := repo.ParsePackID(name)
		if err != nil {
			return Evacuated{}, err
		}
		victims = append(victims, k.spec.Stored.packs[id].pack)
	}
	// Data first, so that nodes learn of this run's moves.
	slices.SortStableFunc(victims, func(a, b repo.Pack) int { return int(a.Kind) - int(b.Kind) })
	got, err := s.s.Evacuate(ctx, k.m, victims)
	if err != nil {
		return Evacuated{}, err
	}
	out := Evacuated{Copied: got.Copied, Emptied: packIDs(got.Emptied), Healed: packIDs(got.Healed), Failed: make(map[string]string)}
	for id, err := range got.Failed {
		out.Failed[id.String()] = err.Error()
	}
	return out, nil
}

// DeletePacks deletes the packs' blobs, and then what memory and the dedup
// index know of them. Running it twice is harmless. The caller has recorded
// that they are being deleted, and nothing needs them.
func (e *Engine) DeletePacks(ctx context.Context, packs []PackRecord) error {
	records, err := repoRecords(packs)
	if err != nil {
		return err
	}
	if err := e.r.DeletePacks(ctx, records); err != nil {
		return err
	}
	var data []repo.PackID
	for _, p := range records {
		if p.Pack.Kind == repo.DataKind {
			data = append(data, p.Pack.ID)
		}
	}
	return e.r.Distrust(ctx, data)
}
