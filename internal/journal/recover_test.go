package journal_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"cairn/internal/chain"
	"cairn/internal/engine"
	"cairn/internal/errs"
	"cairn/internal/journal"
	"cairn/internal/repo"
	"cairn/internal/service"
)

var errStop = errors.New("not committed")

// Whatever happened to points and volumes, a recovered database has the rows
// of the lost one: all columns that are not derived, and those that are.
func TestRecoverGivesEveryRow(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	w := newWorld(t)
	w.open()
	defer func() { w.close() }()
	vols := []string{"vol-A", "vol-B"}
	w.update(func(tx service.Tx) error {
		reg := volumeRow("vol-B")
		reg.Driver, reg.Path, reg.Identity = service.DriverRegistered, "/srv/b.raw", "dev 1:2"
		return errors.Join(tx.InsertVolume(volumeRow("vol-A")), tx.InsertVolume(reg))
	})
	last := map[string]*service.Snapshot{}
	var points []string
	for n := range 40 {
		vol := vols[r.IntN(len(vols))]
		switch k := r.IntN(10); {
		case k < 4 || len(points) < 3:
			parent := last[vol]
			if r.IntN(3) == 0 {
				parent = nil
			}
			p := w.take(n, vol, parent)
			last[vol], points = &p, append(points, p.ID)
		case k == 4: // an unfinished one beside it all
			w.capture(pendingPoint(n, vol, last[vol]), bytesOf(n))
		case k == 5: // one that was given up
			w.update(func(tx service.Tx) error {
				p := pendingPoint(n, vol, nil)
				p.Status = chain.Ceased
				return tx.InsertSnapshot(p)
			})
		case k < 8:
			w.change(points[r.IntN(len(points))], func(p *service.Snapshot) { p.Name, p.Description = "renamed", "näme" })
		case k == 8:
			w.change(points[r.IntN(len(points))], func(p *service.Snapshot) {
				if !p.IsHead {
					p.Status = []chain.Status{chain.Deleted, chain.Suspended, chain.Ceased}[r.IntN(3)]
				}
			})
		default:
			w.update(func(tx service.Tx) error {
				v, err := tx.Volume("", vol)
				v.Name, v.Transition = "renamed", "resizing"
				if err != nil {
					return err
				}
				return tx.UpdateVolume(v)
			})
		}
		if n%8 == 7 {
			got := w.recover(false, journal.FoundVolume{ID: "vol-A", SizeBytes: 1 << 20})
			w.same("recovered", got.rows, w.rows())
			if got.report.Blocked != "" || got.report.Journal.State != journal.StateWhole || got.report.Count(journal.Damaged) > 0 {
				t.Errorf("blocked %q, %+v", got.report.Blocked, got.report.Journal)
			}
		}
	}
}

// Half, fenced and given-up points stay away; the report says why.
func TestRecoverLeavesOutWhatIsNotCommitted(t *testing.T) {
	w := newWorld(t)
	w.open()
	defer w.close()
	w.update(addVolume("vol-A"))
	good := w.take(1, "vol-A", nil)
	half := w.capture(pendingPoint(2, "vol-A", &good), bytesOf(2))
	w.update(func(tx service.Tx) error { return tx.InsertSnapshot(pendingPoint(2, "vol-A", &good)) })
	w.capture(pendingPoint(1, "vol-A", nil), bytesOf(9)) // a fenced worker's
	gone := pendingPoint(3, "vol-A", &good)
	w.capture(gone, bytesOf(3))
	gone.Status = chain.Ceased
	w.update(func(tx service.Tx) error { return tx.InsertSnapshot(gone) })
	if err := w.s.Update(t.Context(), func(tx service.Tx) error {
		if err := tx.UpdateSnapshot(half); err != nil {
			return err
		}
		return errStop
	}); !errors.Is(err, errStop) {
		t.Fatal(err)
	}

	got := w.recover(false)
	want := w.rows()
	w.same("recovered", got.rows, want)
	got.says(w, good.ID, journal.Recovered, "")
	got.says(w, good.ID, journal.LeftOut, "had lost its job")
	got.says(w, half.ID, journal.LeftOut, "nothing says that it was committed")
	got.says(w, gone.ID, journal.LeftOut, "given up")
	if got.report.Blocked != "" {
		t.Errorf("blocked: %s", got.report.Blocked)
	}

	// Asked to, it takes in the half one, and never the others.
	got = w.recover(true)
	got.says(w, half.ID, journal.Recovered, "taken in as asked")
	want[half.ID] = stripped(got.points[half.ID])
	if p := got.points[half.ID]; p.Status != chain.Available || p.ManifestPack != half.ManifestPack || p.ManifestHash != half.ManifestHash || p.IsHead {
		t.Errorf("got %+v", p)
	}
	w.same("with what is not proven", got.rows, want)
}

// What was committed and is damaged comes back, and is marked.
func TestRecoverMarksDamage(t *testing.T) {
	for what, hurt := range map[string]func(w *world, p service.Snapshot){
		"manifest gone":    func(w *world, p service.Snapshot) { w.drop("point/" + p.ID + "." + p.ManifestPack) },
		"manifest damaged": func(w *world, p service.Snapshot) { w.damage("point/" + p.ID + "." + p.ManifestPack) },
		"data gone": func(w *world, _ service.Snapshot) {
			for _, name := range w.list("data/") {
				if err := w.mem.Delete(context.Background(), name); err != nil {
					w.t.Fatal(err)
				}
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			w.open()
			defer w.close()
			w.update(addVolume("vol-A"))
			p := w.take(1, "vol-A", nil)
			hurt(w, p)
			got := w.recover(false)
			got.says(w, p.ID, journal.Damaged, "cannot be read")
			want := w.rows()
			p.Damaged = true
			want[p.ID] = stripped(p)
			w.same("recovered", got.rows, want)
			if got.report.Blocked != "" {
				t.Errorf("blocked: %s", got.report.Blocked)
			}
		})
	}
}

// One copy of each blob is enough. With both gone, or damaged, nothing is
// silently wrong: the report says so and the database must not be used.
func TestRecoverFromADamagedJournal(t *testing.T) {
	build := func(t *testing.T) (*world, service.Snapshot) {
		w := newWorld(t)
		w.conf.SummaryBlobs = 1000
		w.open()
		w.update(addVolume("vol-A"))
		p := w.take(1, "vol-A", nil)
		w.change(p.ID, func(p *service.Snapshot) { p.Name = "renamed" })
		w.take(2, "vol-A", &p)
		w.change(p.ID, func(p *service.Snapshot) { p.Description = "described" })
		return w, p
	}
	w, _ := build(t)
	want, blobs := w.rows(), w.blobs()
	w.close()
	if len(blobs) != 5 {
		t.Fatalf("blobs: %v", blobs)
	}
	for i := range blobs {
		for _, copies := range [][]string{{".a"}, {".b"}, {".a", ".b"}} {
			for what, hurt := range map[string]func(w *world, name string){
				"flipped": func(w *world, name string) { w.damage(name) },
				"cut": func(w *world, name string) {
					if err := w.mem.Damage(name, func(b []byte) []byte { return b[:len(b)/2] }); err != nil {
						w.t.Fatal(err)
					}
				},
				"gone": func(w *world, name string) {
					if err := w.mem.Delete(context.Background(), name); err != nil {
						w.t.Fatal(err)
					}
				},
			} {
				c := *w
				c.t, c.mem = t, w.mem.Clone()
				for _, suffix := range copies {
					hurt(&c, blobs[i]+suffix)
				}
				got := c.recover(false)
				if len(copies) == 1 {
					c.same("from the other copy", got.rows, want)
					continue
				}
				if what == "gone" && i == len(blobs)-1 {
					continue // as if the last change had not been: nothing can tell
				}
				if got.report.Blocked == "" || got.report.Journal.State != journal.StateDamaged || len(got.report.Journal.Problems) == 0 {
					t.Errorf("blob %d %s: %+v, blocked %q", i+1, what, got.report.Journal, got.report.Blocked)
				}
				if got := c.recover(true); got.report.Blocked != "" || len(got.points) != 2 {
					t.Errorf("blob %d %s, taken in as asked: %d points, blocked %q", i+1, what, len(got.points), got.report.Blocked)
				}
			}
		}
	}
}

// Without a journal manifests tell what they can, if they are asked to.
func TestRecoverWithoutAJournal(t *testing.T) {
	w := newWorld(t)
	w.open()
	w.update(addVolume("vol-A"))
	one := w.take(1, "vol-A", nil)
	two := w.take(2, "vol-A", &one)
	three := w.take(3, "vol-A", &two)
	other := w.take(4, "vol-B", nil)
	w.change(one.ID, func(p *service.Snapshot) { p.Name = "renamed" })
	w.capture(pendingPoint(3, "vol-A", &two), bytesOf(8)) // another manifest of the third
	w.close()
	for _, b := range w.blobs() {
		w.drop(b)
	}
	w.drop("point/" + one.ID + "." + one.ManifestPack)

	file := journal.FoundVolume{ID: "vol-A", SizeBytes: 12345}
	got := w.recover(false, file)
	if got.report.Blocked == "" || got.report.Journal.State != journal.StateMissing || len(got.rows) > 0 {
		t.Errorf("%+v, blocked %q, rows %v", got.report.Journal, got.report.Blocked, ids(got.rows))
	}
	for _, p := range []service.Snapshot{two, three, other} {
		got.says(w, p.ID, journal.LeftOut, "--accept-uncommitted")
	}
	got.saysVolume(w, "vol-A", journal.LeftOut, "--accept-uncommitted")

	got = w.recover(true, file)
	if got.report.Blocked != "" || len(got.points) != 3 {
		t.Fatalf("blocked %q, points %v", got.report.Blocked, ids(got.rows))
	}
	// The second begins a chain, as the first is gone.
	if p := got.points[two.ID]; !p.Full || p.RootID != two.ID || p.ParentID != "" {
		t.Errorf("the second: %+v", p)
	}
	if p := got.points[three.ID]; p.Full || p.RootID != two.ID || p.ParentID != two.ID || !p.IsHead {
		t.Errorf("the third: %+v", p)
	}
	got.says(w, three.ID, journal.LeftOut, "newer manifest")
	if p := got.points[other.ID]; p.IsHead || p.Name != other.Name {
		t.Errorf("the other volume's: %+v", p)
	}
	if v := got.volumes["vol-A"]; v.Status != service.VolumeAvailable || v.SizeBytes != 12345 || v.Name != "name of vol-A" || v.Zone != "ac1" || v.Type != 3 {
		t.Errorf("the volume: %+v", v)
	}
}

// Half a pack that an unfinished job left is no damage; half a pack that a
// point needs is.
func TestRecoverOfHalfPacks(t *testing.T) {
	w := newWorld(t)
	w.open()
	defer w.close()
	good := w.take(1, "vol-A", nil)
	half := w.capture(pendingPoint(2, "vol-A", &good), bytesOf(2))
	for _, p := range []service.Snapshot{good, half} {
		if err := w.mem.Delete(t.Context(), "point/"+p.ID+"."+p.ManifestPack+".b"); err != nil {
			t.Fatal(err)
		}
	}
	w.halves = []string{"point/" + half.ID + "." + half.ManifestPack}
	got := w.recover(false)
	got.says(w, good.ID, journal.Recovered, "")
	if !slices.ContainsFunc(got.report.Notes, func(n string) bool { return strings.Contains(n, "1 packs that no snapshot needs") }) {
		t.Errorf("notes %q", got.report.Notes)
	}
}

func TestRecoverVolumes(t *testing.T) {
	w := newWorld(t)
	w.open()
	defer w.close()
	w.update(func(tx service.Tx) error {
		reg, ceasedVol, making := volumeRow("vol-REG"), volumeRow("vol-GONE"), volumeRow("vol-MAKING")
		reg.Driver, reg.Path, reg.Identity, reg.MixedJob, reg.Transition = service.DriverRegistered, "/srv/b.raw", "dev 1:2", "job-7", "applying"
		ceasedVol.Status, making.Status = service.VolumeCeased, service.VolumePending
		grown, small, lost := volumeRow("vol-GROWN"), volumeRow("vol-SMALL"), volumeRow("vol-LOST")
		return errors.Join(tx.InsertVolume(reg), tx.InsertVolume(ceasedVol), tx.InsertVolume(making), tx.InsertVolume(grown), tx.InsertVolume(small), tx.InsertVolume(lost))
	})
	got := w.recover(false, journal.FoundVolume{ID: "vol-GROWN", SizeBytes: 2 << 20}, journal.FoundVolume{ID: "vol-SMALL", SizeBytes: 7},
		journal.FoundVolume{ID: "vol-MAKING", SizeBytes: 1 << 20})
	want := w.rows()
	grown := want["vol-GROWN"].(service.Volume)
	grown.SizeBytes = 2 << 20
	want["vol-GROWN"] = grown
	w.same("recovered", got.rows, want)
	got.saysVolume(w, "vol-REG", journal.Recovered, "mixture")
	got.saysVolume(w, "vol-GONE", journal.Recovered, "")
	got.saysVolume(w, "vol-GROWN", journal.Recovered, "grown")
	got.saysVolume(w, "vol-SMALL", journal.Recovered, "has 7 bytes")
	got.saysVolume(w, "vol-LOST", journal.Recovered, "missing")
	got.saysVolume(w, "vol-MAKING", journal.LeftOut, "nothing says that it was finished")
	got = w.recover(true, journal.FoundVolume{ID: "vol-MAKING", SizeBytes: 1 << 20})
	got.saysVolume(w, "vol-MAKING", journal.Recovered, "")
}

// The recovered database goes on with the journal, and the one that was lost
// is an old one from then on.
func TestLifeAfterRecover(t *testing.T) {
	w := newWorld(t)
	w.open()
	w.update(addVolume("vol-A"))
	p := w.take(1, "vol-A", nil)
	w.close()
	old := w.old()
	got := w.recover(false, journal.FoundVolume{ID: "vol-A", SizeBytes: 1 << 20})

	copyFile(t, got.path, w.path)
	w.open()
	if w.s.Refusal() != "" {
		t.Fatal(w.s.Refusal())
	}
	w.same("at the start", w.replay(), w.rows())
	w.same("and as before", w.rows(), got.rows)
	w.take(2, "vol-A", &p)
	w.same("after a point", w.replay(), w.rows())
	want := w.rows()
	w.close()
	w.tidy()

	again := w.recover(false, journal.FoundVolume{ID: "vol-A", SizeBytes: 1 << 20})
	w.same("recovered again", again.rows, want)
	copyFile(t, old, w.path)
	w.refuses("another database")
}

// An empty repository gives an empty database, and no fuss.
func TestRecoverNothing(t *testing.T) {
	w := newWorld(t)
	got := w.recover(false)
	if len(got.rows) > 0 || got.report.Blocked != "" || got.report.Journal.State != journal.StateMissing {
		t.Errorf("%+v", got.report)
	}
}

// A journal of a newer program is refused, not guessed.
func TestRecoverRefusesWhatItDoesNotKnow(t *testing.T) {
	point := engine.JournalEntry{Kind: engine.PointEntry, ID: "ss-A", Point: engine.JournalPoint{Status: "frozen"}}
	status := engine.JournalEntry{Kind: engine.VolumeEntry, ID: "vol-A", Volume: engine.JournalVolume{Status: "frozen", Driver: "managed"}}
	driver := engine.JournalEntry{Kind: engine.VolumeEntry, ID: "vol-A", Volume: engine.JournalVolume{Status: "available", Driver: "frozen"}}
	for _, e := range []engine.JournalEntry{point, status, driver} {
		w := newWorld(t)
		r, err := repo.Open(t.Context(), w.mem, w.key, w.index)
		if err != nil {
			t.Fatal(err)
		}
		h := engine.JournalHead{Number: 1, Kind: engine.JournalChanges, Database: strings.Repeat("0", 32)}
		_, _, err = r.PutJournal(t.Context(), h, []engine.JournalEntry{e})
		if err := errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.tryRecover(false); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "frozen") {
			t.Errorf("got %v", err)
		}
	}
}
