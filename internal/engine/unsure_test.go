package engine

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"cairn/internal/blobstore/faulty"
	"cairn/internal/blobstore/mem"
	"cairn/internal/errs"
	"cairn/internal/repo"
)

// unreachable lets every call about blobs of the prefix fail.
func unreachable(prefix string) faulty.Plan {
	return func(c faulty.Call) (faulty.Outcome, error) {
		if strings.HasPrefix(c.Name, prefix) {
			return faulty.FailBefore, nil
		}
		return faulty.Pass, nil
	}
}

// A store that does not answer says nothing about the bytes, also where what
// was found so far looks like damage: a record that is not where the tree says
// and whose relocation cannot be read, a damaged copy beside one out of reach,
// a damaged chunk whose other place is.
func TestCouldNotTellIsNoDamage(t *testing.T) {
	below := mem.New()
	store := faulty.New(below, nil)
	r := newRigOn(t, store)
	disk := newVolume(1 << 20)
	noise := make([]byte, 512<<10)
	fill(rand.New(rand.NewPCG(1, 1)), noise)
	if err := disk.put(noise, 0); err != nil {
		t.Fatal(err)
	}
	ref := r.take(disk, nil).Ref
	first := onlyPack(t, r, "data")

	flip := func(b []byte) []byte { b[300] ^= 1; return b }
	t.Run("the other copy", func(t *testing.T) {
		manifest := "point/" + ref.Snapshot + "." + ref.Pack
		if err := below.Damage(manifest+".a", flip); err != nil {
			t.Fatal(err)
		}
		store.SetPlan(unreachable(manifest + ".b"))
		r.reopen()
		wantUnsure(t, r, ref)
		if err := below.Damage(manifest+".a", flip); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("the other place", func(t *testing.T) {
		store.SetPlan(nil)
		r.index = t.TempDir() // lost, so the same chunks are stored again
		r.reopen()
		other := r.take(disk, nil).Ref
		var second PackRecord
		for _, p := range r.packs {
			if p.Kind == "data" && p.ID != first.ID {
				second = p
			}
		}
		if err := below.Damage(first.Name, flip); err != nil {
			t.Fatal(err)
		}
		k, s := beginPrune(t, r, ref, other)
		store.SetPlan(unreachable(second.Name))
		if got, err := s.Evacuate(t.Context(), k, []string{first.ID}); err == nil || repo.IsDamage(err) {
			t.Errorf("evacuate: %+v, %v; want an error that is no damage", got, err)
		}
		if err := below.Damage(first.Name, flip); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("the relocation", func(t *testing.T) {
		store.SetPlan(nil)
		r.reopen()
		k, s := beginPrune(t, r, ref)
		if got, err := s.Evacuate(t.Context(), k, []string{first.ID}); err != nil || len(got.Emptied) != 1 {
			t.Fatalf("evacuate: %+v, %v", got, err)
		}
		if err := r.e.DeletePacks(t.Context(), []PackRecord{first}); err != nil {
			t.Fatal(err)
		}
		r.reopen()
		if _, err := r.export(ref); err != nil {
			t.Fatal(err)
		}
		store.SetPlan(unreachable("reloc/"))
		r.reopen()
		wantUnsure(t, r, ref)
	})
}

// A crash between the two copies of a relocation leaves one; the next start
// writes the other, if the first is whole.
func TestHalfARelocationIsCompleted(t *testing.T) {
	store := mem.New()
	r := newRigOn(t, store)
	disk := newVolume(1 << 20)
	noise := make([]byte, 512<<10)
	fill(rand.New(rand.NewPCG(2, 2)), noise)
	if err := disk.put(noise, 0); err != nil {
		t.Fatal(err)
	}
	ref := r.take(disk, nil).Ref
	k, s := beginPrune(t, r, ref)
	if _, err := s.Evacuate(t.Context(), k, []string{onlyPack(t, r, "data").ID}); err != nil {
		t.Fatal(err)
	}
	var copies []string
	err := store.List(t.Context(), "reloc/", func(i repo.Blob) error { copies = append(copies, i.Name); return nil })
	if err != nil || len(copies) != 2 {
		t.Fatalf("relocations %v, %v", copies, err)
	}
	for i, lost := range copies {
		if err := store.Delete(t.Context(), lost); err != nil {
			t.Fatal(err)
		}
		if healed, err := r.e.CompleteCopies(t.Context()); err != nil || !slices.Equal(healed, []string{lost}) {
			t.Fatalf("completed %v, %v; want %s", healed, err, lost)
		}
		if _, err := store.Stat(t.Context(), lost); err != nil {
			t.Fatal(err)
		}
		if i == 1 { // of two bad copies none is made
			if err := store.Delete(t.Context(), lost); err != nil {
				t.Fatal(err)
			}
			if err := store.Damage(copies[0], func(b []byte) []byte { b[300] ^= 1; return b }); err != nil {
				t.Fatal(err)
			}
			if healed, err := r.e.CompleteCopies(t.Context()); err != nil || len(healed) > 0 {
				t.Fatalf("completed %v, %v; want nothing", healed, err)
			}
		}
	}
}

// beginPrune marks what the points need and opens a session to copy in, which
// ends with the test.
func beginPrune(t *testing.T, r *rig, points ...PointRef) (Marks, Session) {
	t.Helper()
	stored, err := r.e.Stored(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k, err := r.e.Mark(t.Context(), MarkSpec{Stored: stored, Packs: r.rows(), Points: points})
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.e.OpenSession(t.Context(), "prune", 1, newRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return k, s
}

// wantUnsure exports a point, which must fail without a word of damage.
func wantUnsure(t *testing.T, r *rig, ref PointRef) {
	t.Helper()
	if _, err := r.export(ref); err == nil || repo.IsDamage(err) || errs.Is(err, errs.Corrupt) {
		t.Errorf("export: %v; want an error that is no damage", err)
	}
}

func onlyPack(t *testing.T, r *rig, kind string) (found PackRecord) {
	t.Helper()
	n := 0
	for _, p := range r.packs {
		if p.Kind == kind {
			found = p
			n++
		}
	}
	if n != 1 {
		t.Fatalf("%d %s packs", n, kind)
	}
	return found
}
