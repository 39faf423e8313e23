package journal_test

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/repo"
	"cairn/internal/service"
)

// old copies the database while no process runs.
func (w *world) old() string {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "old.db")
	copyFile(w.t, w.path, path)
	return path
}

func addVolume(id string) func(tx service.Tx) error {
	return func(tx service.Tx) error { return tx.InsertVolume(volumeRow(id)) }
}

// refuses fails the test unless the Store shows all and changes nothing.
func (w *world) refuses(words string) {
	w.t.Helper()
	w.open()
	defer w.close()
	reason := w.s.Refusal()
	if !strings.Contains(reason, words) || !strings.Contains(reason, "cairn repo recover") {
		w.t.Errorf("refusal %q, want one that says %q and what to do", reason, words)
	}
	before := w.mem.Clone()
	ctx := context.Background()
	_, _, claimErr := w.s.ClaimJob(ctx, "me", nil, time.Now())
	if claimErr != nil {
		w.t.Error(claimErr)
	}
	_, progressErr := w.s.SaveProgress(ctx, "job-A", 1, job.Progress{})
	_, cancelErr := w.s.RequestCancel(ctx, "job-A")
	for what, err := range map[string]error{
		"Update":        w.s.Update(ctx, addVolume("vol-NO")),
		"SaveProgress":  progressErr,
		"SaveState":     w.s.SaveState(ctx, "job-A", 1, json.RawMessage("{}"), true),
		"RequestCancel": cancelErr,
	} {
		if !errs.Is(err, errs.Conflict) || errs.Message(err) != reason {
			w.t.Errorf("%s: %v", what, err)
		}
	}
	if err := w.s.View(ctx, func(tx service.Tx) error {
		_, _, err := tx.Volumes(service.VolumeFilter{Limit: 10})
		return err
	}); err != nil {
		w.t.Error(err)
	}
	w.sameBlobs(before)
}

// sameBlobs fails the test if a blob came or went.
func (w *world) sameBlobs(before interface {
	List(context.Context, string, func(repo.Blob) error) error
}) {
	w.t.Helper()
	list := func(s interface {
		List(context.Context, string, func(repo.Blob) error) error
	}) map[repo.Blob]bool {
		out := map[repo.Blob]bool{}
		if err := s.List(context.Background(), "", func(b repo.Blob) error { out[b] = true; return nil }); err != nil {
			w.t.Fatal(err)
		}
		return out
	}
	a, b := list(before), list(w.mem)
	if len(a) != len(b) {
		w.t.Errorf("the repository had %d blobs and has %d", len(a), len(b))
	}
	for name := range a {
		if !b[name] {
			w.t.Errorf("%v is gone", name)
		}
	}
}

func TestAnOldDatabaseIsNoticed(t *testing.T) {
	w := newWorld(t)
	w.open()
	w.update(addVolume("vol-A"))
	w.close()
	old := w.old()
	w.open()
	w.update(addVolume("vol-B"))
	w.close()
	copyFile(t, old, w.path)
	w.refuses("only 1")
	w.refuses("only 1") // and again
}

// Only a summary, which holds no change that the old one lacks.
func TestADatabaseFromBeforeASummaryGoesOn(t *testing.T) {
	w := newWorld(t)
	w.open()
	for i := range 6 {
		w.update(addVolume(string(rune('a' + i))))
	}
	w.close()
	old := w.old()
	w.conf.SummaryBlobs = 1
	w.open()
	w.close() // the summary that is due may be given up, or made
	for range 100 {
		w.open()
		w.update(func(tx service.Tx) error { return tx.SetSetting("k", "v") })
		w.close()
	}
	copyFile(t, old, w.path)
	w.conf.SummaryBlobs = 1000
	w.open()
	if w.s.Refusal() != "" {
		t.Fatal(w.s.Refusal())
	}
	w.same("at once", w.replay(), w.rows())
	w.update(addVolume("vol-next"))
	w.same("after a change", w.replay(), w.rows())
	w.close()
	w.tidy()
}

// The old one is noticed also when summaries have deleted all that it knew.
func TestAnOldDatabaseIsNoticedBehindSummaries(t *testing.T) {
	w := newWorld(t)
	w.conf.SummaryBlobs = 1
	w.open()
	w.update(addVolume("vol-A"))
	w.close()
	old := w.old()
	w.open()
	w.update(addVolume("vol-B"))
	w.close()
	for range 20 { // new processes, which know of no change
		w.open()
		w.close()
	}
	copyFile(t, old, w.path)
	w.refuses("older copy")
}

// Any change that the journal keeps tells, also the end of a point that never
// was.
func TestEveryChangeTells(t *testing.T) {
	for what, change := range map[string]func(tx service.Tx) error{
		"a name": func(tx service.Tx) error {
			v, err := tx.Volume("", "vol-A")
			v.Name = "renamed"
			if err != nil {
				return err
			}
			return tx.UpdateVolume(v)
		},
		"a point that ceased": func(tx service.Tx) error {
			p, err := tx.Snapshot("", "ss-P")
			p.Status = chain.Ceased
			if err != nil {
				return err
			}
			return tx.UpdateSnapshot(p)
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			w.open()
			w.update(func(tx service.Tx) error {
				if err := tx.InsertSnapshot(point("ss-P")); err != nil {
					return err
				}
				return tx.InsertVolume(volumeRow("vol-A"))
			})
			w.close()
			old := w.old()
			w.open()
			w.update(change)
			w.close()
			copyFile(t, old, w.path)
			w.refuses("older copy")
		})
	}
}

func TestAnotherDatabaseIsNoticed(t *testing.T) {
	w := newWorld(t)
	empty := w.old()
	w.open()
	w.update(addVolume("vol-A"))
	w.close()

	// One that never saw a journal.
	copyFile(t, empty, w.path)
	w.refuses("never written to")

	// One that has a journal of its own, elsewhere.
	other := newWorld(t)
	other.open()
	for _, id := range []string{"vol-X", "vol-Y", "vol-Z"} {
		other.update(addVolume(id))
	}
	other.close()
	copyFile(t, other.path, w.path)
	w.refuses("another database")
}

// A blob that the database does not know of and that cannot be read may be
// newer, so it counts as newer.
func TestADamagedBlobThatMayBeNewer(t *testing.T) {
	w := newWorld(t)
	w.open()
	w.update(addVolume("vol-A"))
	w.close()
	old := w.old()
	w.open()
	w.update(addVolume("vol-B"))
	w.close()
	copyFile(t, old, w.path)
	for _, name := range []string{"journal/0000000000000002.a", "journal/0000000000000002.b"} {
		if err := w.mem.Damage(name, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }); err != nil {
			t.Fatal(err)
		}
	}
	w.refuses("cannot be told")
}

// A journal that was lost, or a repository that is older, is written anew.
func TestALostJournalIsWrittenAnew(t *testing.T) {
	for what, lose := range map[string]func(w *world){
		"all of it": func(w *world) {
			for _, b := range w.blobs() {
				w.drop(b)
			}
		},
		"its newest blob": func(w *world) { b := w.blobs(); w.drop(b[len(b)-1]) },
		"its newest blob's bytes": func(w *world) {
			b := w.blobs()
			for _, c := range []string{".a", ".b"} {
				if err := w.mem.Damage(b[len(b)-1]+c, func(b []byte) []byte { return b[:100] }); err != nil {
					w.t.Fatal(err)
				}
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			w.open()
			for _, id := range []string{"vol-A", "vol-B", "vol-C"} {
				w.update(addVolume(id))
			}
			w.close()
			lose(w)
			w.open()
			if w.s.Refusal() != "" {
				t.Fatal(w.s.Refusal())
			}
			w.same("after the start", w.replay(), w.rows())
			w.update(addVolume("vol-D"))
			w.same("after a change", w.replay(), w.rows())
			w.close()
			w.tidy()
		})
	}
}

// blobs are the names of the journal's blobs without suffix, in order.
func (w *world) blobs() []string {
	w.t.Helper()
	var out []string
	for _, name := range w.list("journal/") {
		if blob, ok := strings.CutSuffix(name, ".a"); ok {
			out = append(out, blob)
		}
	}
	return out
}

func (w *world) drop(blob string) {
	w.t.Helper()
	for _, c := range []string{".a", ".b"} {
		if err := w.mem.Delete(context.Background(), blob+c); err != nil {
			w.t.Fatal(err)
		}
	}
}
