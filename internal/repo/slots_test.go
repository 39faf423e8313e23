package repo

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/internal/blobstore"
	"cairn/internal/blobstore/faulty"
	"cairn/internal/blobstore/mem"
	"cairn/internal/errs"
	"cairn/internal/foldertest"
	"cairn/internal/repo/keys"
)

var testTime = time.Unix(1_900_000_000, 0)

func cheapPassphrase(t testing.TB, text string) Passphrase {
	t.Helper()
	p, err := keys.ParsePassphrase(text, keys.Cost{Passes: 1, MemoryKiB: 8, Lanes: 1})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// locks is a repository with three slots, and what opens them.
type locks struct {
	store *mem.Store
	file  Key
	pass  Passphrase
	paper RecoveryKey
	ids   []KeySlotID // in the order file, pass, paper
}

func newLocks(t *testing.T) locks {
	t.Helper()
	l := locks{store: mem.New(), file: NewKey(), pass: cheapPassphrase(t, "correct horse")}
	if err := Init(t.Context(), l.store, l.file, testTime); err != nil {
		t.Fatal(err)
	}
	s := l.open(t, l.file)
	l.paper = s.NewRecoveryKey()
	if _, err := s.Change(t.Context(), []Opener{l.pass, l.paper}, nil, testTime); err != nil {
		t.Fatal(err)
	}
	for _, slot := range s.List().Slots {
		l.ids = append(l.ids, slot.ID)
	}
	return l
}

func (l locks) open(t *testing.T, key Opener) *KeySlots {
	t.Helper()
	s, err := OpenKeySlots(t.Context(), l.store, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// change is one change of slots: what opens the repository before and after.
type change struct {
	name        string
	add         []Opener
	drop        []KeySlotID
	with        Opener // opens both before and after
	before, now []Opener
}

func (l locks) changes(t *testing.T) []change {
	t.Helper()
	s := l.open(t, l.file)
	file, pass, paper := s.NewKey(), cheapPassphrase(t, "battery staple"), s.NewRecoveryKey()
	all := []Opener{l.file, l.pass, l.paper}
	return []change{
		{"add", []Opener{file}, nil, l.file, all, append(slices.Clone(all), file)},
		{"remove", nil, l.ids[:1], l.paper, all, all[1:]},
		{"rotate a key file", []Opener{file}, l.ids[:1], l.pass, all, []Opener{file, l.pass, l.paper}},
		{"rotate all but the paper", []Opener{file, pass}, l.ids[:2], l.paper, all, []Opener{file, pass, l.paper}},
		{"replace the paper", []Opener{paper}, l.ids[2:], l.file, all, []Opener{l.file, l.pass, paper}},
	}
}

// opens tells which of the keys open what the store holds.
func opens(t *testing.T, store blobstore.Store, all []Opener) (which []Opener) {
	t.Helper()
	for _, o := range all {
		_, err := OpenKeySlots(context.Background(), store, o)
		if err == nil {
			which = append(which, o)
		} else if !errs.Is(err, errs.Denied) {
			t.Fatalf("%s: %v", o, err)
		}
	}
	return which
}

// inEffect fails unless exactly the old or exactly the new slots open the
// repository, and tells which.
func (c change) inEffect(t *testing.T, store blobstore.Store) (isNew bool) {
	t.Helper()
	all := slices.Clone(c.before)
	for _, o := range c.now {
		if !slices.Contains(all, o) {
			all = append(all, o)
		}
	}
	got := opens(t, store, all)
	same := func(want []Opener) bool {
		return len(got) == len(want) && !slices.ContainsFunc(want, func(o Opener) bool { return !slices.Contains(got, o) })
	}
	if same(c.before) || same(c.now) {
		return same(c.now)
	}
	t.Fatalf("neither the old nor the new slots: %v open it", got)
	return false
}

func headerBlobs(t *testing.T, store blobstore.Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := store.List(context.Background(), "header/", func(i blobstore.Info) error {
		b := make([]byte, i.Size)
		_, err := store.ReadAt(context.Background(), i.Name, b, 0)
		all[i.Name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// settled opens the repository, and fails unless it then holds two equal
// copies of one generation and the same slots as before.
func (c change) settled(t *testing.T, store blobstore.Store) {
	t.Helper()
	was := c.inEffect(t, store)
	r, err := Open(context.Background(), store, c.with, foldertest.InMemory(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if c.inEffect(t, store) != was {
		t.Fatal("opening changed the slots")
	}
	blobs := headerBlobs(t, store)
	names := slices.Sorted(maps.Keys(blobs))
	if len(names) != 2 || names[0][:24] != names[1][:24] || blobs[names[0]] != blobs[names[1]] {
		t.Fatalf("headers %v", names)
	}
}

// run makes the change on a store that may fail.
func (c change) run(store blobstore.Store) error {
	s, err := OpenKeySlots(context.Background(), store, c.with)
	if err == nil {
		_, err = s.Change(context.Background(), c.add, c.drop, testTime)
	}
	return err
}

// A change is cut off at every durable operation, done or not done, and so is
// the opening after it: the old or the new slots open the repository, and the
// next opening leaves one generation. Then the change can be made again.
func TestSlotChangeCrashes(t *testing.T) {
	l := newLocks(t)
	cases := 0
	for _, c := range l.changes(t) {
		for _, whole := range []bool{false, true} {
			for n := 1; ; n++ {
				cases++
				store := l.store.Clone()
				err := c.run(faulty.New(store, faulty.Crash(n, whole)))
				if err == nil {
					if n != 5 { // two copies put, two deleted
						t.Errorf("%s: %d durable operations", c.name, n-1)
					}
					if !c.inEffect(t, store) {
						t.Fatalf("%s: done, and the old slots are in effect", c.name)
					}
					break
				}
				if !errors.Is(err, faulty.ErrInjected) {
					t.Fatalf("%s, operation %d: %v", c.name, n, err)
				}
				if n := len(headerBlobs(t, store)); n < 2 {
					t.Fatalf("%d header blobs are left", n)
				}
				cases += c.crashWhileSettling(t, store)
				c.settled(t, store)
				if !c.inEffect(t, store) {
					if err := c.run(store); err != nil || !c.inEffect(t, store) {
						t.Fatalf("%s again after operation %d: %v", c.name, n, err)
					}
				}
			}
		}
	}
	t.Logf("%d crashes", cases)
}

func (c change) crashWhileSettling(t *testing.T, at *mem.Store) (cases int) {
	t.Helper()
	for _, whole := range []bool{false, true} {
		for n := 1; ; n++ {
			cases++
			store := at.Clone()
			r, err := Open(context.Background(), faulty.New(store, faulty.Crash(n, whole)), c.with, foldertest.InMemory(t))
			if err == nil {
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
				break
			}
			if !errors.Is(err, faulty.ErrInjected) {
				t.Fatal(err)
			}
			c.settled(t, store)
		}
	}
	return cases
}

// Every call fails in turn, once or from then on, undone or done: the old or
// the new slots are in effect, and the sentence does not say otherwise.
func TestSlotChangeErrors(t *testing.T) {
	l := newLocks(t)
	cases := 0
	for _, c := range l.changes(t) {
		for name, plan := range map[string]func(int, faulty.Match, faulty.Outcome) faulty.Plan{"once": faulty.Once, "from then on": faulty.From} {
			for _, o := range []faulty.Outcome{faulty.FailBefore, faulty.FailAfter} {
				for n := 1; ; n++ {
					store := l.store.Clone()
					f := faulty.New(store, plan(n, faulty.Any, o))
					err := c.run(f)
					isNew := c.inEffect(t, store)
					if f.Counts().Calls < n {
						break
					}
					cases++
					if err == nil {
						if !isNew { // a second copy of the old header was read
							t.Fatalf("%s, call %d fails %s: no error, and the old slots", c.name, n, name)
						}
						continue
					}
					msg := errs.Message(err)
					if !errors.Is(err, faulty.ErrInjected) || errs.Is(err, errs.Corrupt) ||
						strings.Contains(msg, "unchanged") && isNew || strings.Contains(msg, "new key slots are in effect") && !isNew {
						t.Fatalf("%s, call %d fails %s: new %t, %v", c.name, n, name, isNew, err)
					}
					c.settled(t, store)
				}
			}
		}
	}
	t.Logf("%d failures", cases)
}

// A header that is missing or damaged in one copy is written whole by the next
// change, and an older generation is never read.
func TestSlotChangeHealsDamage(t *testing.T) {
	l := newLocks(t)
	flip := func(b []byte) []byte { b[60] ^= 1; return b }
	for _, c := range l.changes(t) {
		for _, name := range headerCopies(2) {
			store := l.store.Clone()
			if err := store.Damage(name, flip); err != nil {
				t.Fatal(err)
			}
			if r, err := Open(t.Context(), store, c.with, foldertest.InMemory(t)); err != nil {
				t.Fatal(err)
			} else if r.Close(); len(headerBlobs(t, store)) != 2 {
				t.Fatal("a damaged copy was hidden")
			}
			if err := c.run(store); err != nil {
				t.Fatal(err)
			}
			c.settled(t, store)
		}
	}
	c := l.changes(t)[2]
	old := headerBlobs(t, l.store)
	if err := c.run(l.store); err != nil {
		t.Fatal(err)
	}
	for name, b := range old {
		if err := l.store.Put(t.Context(), name, []byte(b)); err != nil {
			t.Fatal(err)
		}
	}
	hurt := l.store.Clone()
	if err := hurt.Damage(headerCopies(3)[0], flip); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), hurt, c.with, foldertest.InMemory(t))
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if len(headerBlobs(t, hurt)) != 4 {
		t.Error("older headers were deleted beside a damaged copy of the newest")
	}
	if err := hurt.Damage(headerCopies(3)[1], flip); err != nil {
		t.Fatal(err)
	}
	for _, o := range append(c.before, c.now...) {
		if _, err := OpenKeySlots(t.Context(), hurt, o); !errs.Is(err, errs.Corrupt) {
			t.Errorf("both copies of the newest are damaged: %v", err)
		}
	}
	c.settled(t, l.store)
}

// Who can write blobs puts an old header under a newer name, so that a key
// that was removed would open the repository again.
func TestOldHeaderUnderANewName(t *testing.T) {
	l := newLocks(t)
	old := headerBlobs(t, l.store)[headerCopies(2)[0]]
	c := l.changes(t)[2]
	if err := c.run(l.store); err != nil {
		t.Fatal(err)
	}
	for _, name := range headerCopies(4) {
		if err := l.store.Put(t.Context(), name, []byte(old)); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range c.before {
		if _, err := Open(t.Context(), l.store, o, foldertest.InMemory(t)); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%s: %v", o, err)
		}
	}
	// Scrub says so too, of a server that had opened before.
	for _, name := range headerCopies(4) {
		if err := l.store.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Open(t.Context(), l.store, c.with, foldertest.InMemory(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	x, err := r.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	newest := headerBlobs(t, l.store)[headerCopies(3)[0]]
	for name, want := range map[string]struct {
		blob string
		good bool
	}{headerCopies(3)[1]: {newest, true}, headerCopies(9)[0]: {old, false}, "header/stray": {newest, false}, "header/0000000000000003.c": {newest, false}} {
		if name != headerCopies(3)[1] {
			if err := l.store.Put(t.Context(), name, []byte(want.blob)); err != nil {
				t.Fatal(err)
			}
		}
		_, finding, err := x.CheckBlob(t.Context(), Blob{Name: name, Size: int64(len(want.blob))})
		if err != nil || (finding == nil) != want.good {
			t.Errorf("%s: %v, %v", name, finding, err)
		}
	}
}

// A repository whose header is lost must not get a new one: the blobs would be
// lost for good as soon as somebody wrote to it.
func TestLostHeaderIsNotMadeAnew(t *testing.T) {
	store := mem.New()
	if err := store.Put(t.Context(), "data/aa/aa", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := Exists(t.Context(), store); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "put header/ back") {
		t.Errorf("Exists: %v", err)
	}
	if err := Init(t.Context(), store, NewKey(), testTime); !errs.Is(err, errs.NotFound) || len(headerBlobs(t, store)) > 0 {
		t.Errorf("Init: %v", err)
	}
}

func TestInitWithAPassphrase(t *testing.T) {
	store, pass := mem.New(), cheapPassphrase(t, "correct horse")
	if err := Init(t.Context(), store, RecoveryKey{}, testTime); !errs.Is(err, errs.Invalid) {
		t.Errorf("with a recovery key: %v", err)
	}
	if err := Init(t.Context(), store, pass, testTime); err != nil {
		t.Fatal(err)
	}
	s, err := OpenKeySlots(t.Context(), store, pass)
	if err != nil || s.List().Repo == (PackID{}) {
		t.Fatalf("%v", err)
	}
	if _, err := OpenKeySlots(t.Context(), store, cheapPassphrase(t, "wrong horse")); !errs.Is(err, errs.Denied) {
		t.Errorf("a wrong passphrase: %v", err)
	}
	if err := Init(t.Context(), store, pass, testTime); !errs.Is(err, errs.Exists) {
		t.Errorf("twice: %v", err)
	}
}
