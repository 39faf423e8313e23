package repo

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"cairn/internal/blobstore/faulty"
	"cairn/internal/blobstore/mem"
	"cairn/internal/errs"
)

func journalRepo(t testing.TB) (*Repo, *mem.Store) {
	t.Helper()
	store, key := mem.New(), NewKey()
	if err := Init(t.Context(), store, key, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), store, key, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, store
}

func pointEntry(i int) JournalEntry {
	at := time.UnixMicro(int64(i) + 1_700_000_000_000_000).UTC()
	return JournalEntry{Kind: PointEntry, ID: fmt.Sprintf("ss-%08d", i), Point: JournalPoint{
		Resource: "vol-A", SizeBytes: 1 << 40, Full: true, Parent: "ss-P", ChainRoot: "ss-R", Job: "job", SnapshotTime: at, CreateTime: at,
		AddedBytes: 77, Name: "näme '1'", Description: "what\nfor", ResourceType: "volume", ResourceName: "disk", VolumeType: 3,
		Zone: "ac1", Group: "g", Consistency: "crash", CBT: "scan", Reason: "because", Status: "available", StatusTime: at,
		Pack: strings.Repeat("ab", 16), Content: strings.Repeat("cd", 32), Head: true, Damaged: true, Taken: true,
	}}
}

func sampleEntries() []JournalEntry {
	at := time.UnixMicro(1_700_000_000_000_001).UTC()
	return []JournalEntry{
		pointEntry(1),
		{Kind: PointEntry, ID: "ss-2", Point: JournalPoint{Resource: "vol-A", Status: "ceased"}},
		{Kind: PointEntry, ID: "ss-3", Removed: true},
		{Kind: VolumeEntry, ID: "vol-A", Volume: JournalVolume{
			Driver: "registered", SizeBytes: 5, Path: "/dev/disk '1'", Identity: "dev 8:1", Status: "available", MixedJob: "job",
			Name: "n", Description: "d", Type: 4, Zone: "ac1", CreateTime: at, StatusTime: at,
		}},
		{Kind: VolumeEntry, ID: "vol-B", Volume: JournalVolume{Driver: "managed", Status: "ceased"}},
	}
}

// machineEntry is of a volume that a machine has. It is not among the samples,
// whose bytes are those of programs that knew no machines.
func machineEntry() JournalEntry {
	e := sampleEntries()[3]
	e.ID = "ins-A"
	e.Volume.Instance, e.Volume.Device, e.Volume.CPUs, e.Volume.Memory, e.Volume.Image = "ins-A", "vda", 2, 1<<30, "img-A"
	return e
}

// Every field of an entry is set in the samples, so that none can be forgotten
// by the codec.
func TestJournalSamplesAreFull(t *testing.T) {
	for _, v := range []any{sampleEntries()[0].Point, machineEntry().Volume} {
		rv := reflect.ValueOf(v)
		for i := range rv.NumField() {
			if rv.Field(i).IsZero() {
				t.Errorf("%s.%s is not set", rv.Type().Name(), rv.Type().Field(i).Name)
			}
		}
	}
}

func sampleHead(number uint64) JournalHead {
	return JournalHead{Number: number, Kind: JournalChanges, Prev: JournalPos{Number: number - 1, Content: ID{9}},
		Database: strings.Repeat("0f", 16), Change: 12, More: true, Written: time.UnixMicro(5).UTC()}
}

func TestJournalRoundTrip(t *testing.T) {
	r, _ := journalRepo(t)
	var many []JournalEntry
	for i := range 5000 { // several records
		many = append(many, pointEntry(i))
	}
	ck := sampleHead(3)
	ck.Kind, ck.More, ck.Base, ck.Parts = JournalSummary, false, JournalPos{1, ID{1}}, []JournalPos{{1, ID{2}}, {2, ID{3}}}
	part := sampleHead(4)
	part.Kind, part.More, part.Prev, part.Written = JournalPart, false, JournalPos{}, time.Time{}
	for _, tt := range []JournalContent{
		{Head: sampleHead(1), Entries: append(sampleEntries(), machineEntry())}, {Head: sampleHead(2), Entries: many}, {Head: ck}, {Head: part, Entries: many[:1]},
	} {
		pos, size, err := r.PutJournal(t.Context(), tt.Head, tt.Entries)
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.ReadJournal(t.Context(), tt.Head.Number)
		if err != nil {
			t.Fatal(err)
		}
		tt.Pos = pos
		if !reflect.DeepEqual(got, tt) {
			t.Errorf("blob %d: got %+v, want %+v", tt.Head.Number, got, tt)
		}
		if again, err := ParseJournalPos(pos.String()); err != nil || again != pos {
			t.Errorf("%s: %v, %v", pos, again, err)
		}
		blobs, err := r.JournalBlobs(t.Context())
		if last := blobs[len(blobs)-1]; err != nil || last.Number != tt.Head.Number || len(last.Lacks()) != 0 || last.Bytes != size {
			t.Errorf("listed %+v, %v", blobs, err)
		}
	}
	if err := r.DeleteJournal(t.Context(), 2, 3, 99); err != nil {
		t.Fatal(err)
	}
	if blobs, err := r.JournalBlobs(t.Context()); err != nil || len(blobs) != 2 || blobs[0].Number != 1 || blobs[1].Number != 4 {
		t.Errorf("after the delete: %+v, %v", blobs, err)
	}
	if has, err := r.HasJournal(t.Context()); err != nil || !has {
		t.Errorf("has a journal: %v, %v", has, err)
	}
}

// The second copy serves; two damaged ones are damage, never other content.
func TestJournalEveryDamageIsNoticed(t *testing.T) {
	r, store := journalRepo(t)
	if _, _, err := r.PutJournal(t.Context(), sampleHead(7), sampleEntries()); err != nil {
		t.Fatal(err)
	}
	want, err := r.ReadJournal(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	names := journalPack(7).Copies()
	info, err := store.Stat(t.Context(), names[0])
	if err != nil {
		t.Fatal(err)
	}
	flip := func(i int) func([]byte) []byte {
		return func(b []byte) []byte { b[i] ^= 0x10; return b }
	}
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
	for i := range int(info.Size) {
		for what, hurt := range map[string]func(int) func([]byte) []byte{"flipped at": flip, "cut to": cut} {
			hurtStore := store.Clone()
			r.store = hurtStore
			if err := hurtStore.Damage(names[0], hurt(i)); err != nil {
				t.Fatal(err)
			}
			if got, err := r.ReadJournal(t.Context(), 7); err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("first copy %s %d: %v", what, i, err)
			}
			x, err := r.NewReader()
			if err != nil {
				t.Fatal(err)
			}
			small, err := hurtStore.Stat(t.Context(), names[0])
			if err != nil {
				t.Fatal(err)
			}
			if _, finding, err := x.CheckBlob(t.Context(), small); finding == nil || err != nil {
				t.Fatalf("first copy %s %d: the scrub finds %v, %v", what, i, finding, err)
			}
			x.Close()
			if err := hurtStore.Damage(names[1], hurt(i)); err != nil {
				t.Fatal(err)
			}
			if _, err := r.ReadJournal(t.Context(), 7); !errs.Is(err, errs.Corrupt) {
				t.Fatalf("both copies %s %d: %v", what, i, err)
			}
		}
	}
}

// A blob under another one's name is damage: a copy of an older one must not
// pass for a newer one.
func TestJournalSwappedBlobs(t *testing.T) {
	r, store := journalRepo(t)
	for n := range uint64(2) {
		if _, _, err := r.PutJournal(t.Context(), sampleHead(n+1), sampleEntries()); err != nil {
			t.Fatal(err)
		}
	}
	old, err := readSmall(t.Context(), store, journalPack(1).Copies()[0], 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range journalPack(2).Copies() {
		if err := store.Damage(name, func([]byte) []byte { return bytes.Clone(old) }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.ReadJournal(t.Context(), 2); !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "journal blob 1") {
		t.Errorf("got %v", err)
	}
	if _, err := r.ReadJournal(t.Context(), 3); !errs.Is(err, errs.Corrupt) {
		t.Errorf("an absent blob: %v", err)
	}
}

// A number is used once: a second put under it fails and changes nothing.
func TestJournalNumbersAreUsedOnce(t *testing.T) {
	r, _ := journalRepo(t)
	if _, _, err := r.PutJournal(t.Context(), sampleHead(1), nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.PutJournal(t.Context(), sampleHead(1), sampleEntries()); err == nil {
		t.Error("a number was used twice")
	}
	if got, err := r.ReadJournal(t.Context(), 1); err != nil || len(got.Entries) != 0 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestJournalPutThatFails(t *testing.T) {
	r, store := journalRepo(t)
	r.store = faulty.New(store, faulty.Once(2, faulty.Only(faulty.Put), faulty.FailBefore))
	if _, _, err := r.PutJournal(t.Context(), sampleHead(1), sampleEntries()); err == nil {
		t.Fatal("half a put passed")
	}
	if blobs, err := r.JournalBlobs(t.Context()); err != nil || len(blobs) != 1 || len(blobs[0].Lacks()) != 1 {
		t.Errorf("%+v, %v", blobs, err)
	}
}

func TestJournalRefusesNonsense(t *testing.T) {
	r, _ := journalRepo(t)
	for what, put := range map[string]func() error{
		"a head without a database": func() error {
			_, _, err := r.PutJournal(t.Context(), JournalHead{Number: 1, Kind: JournalChanges}, nil)
			return err
		},
		"a kind of blob": func() error {
			h := sampleHead(1)
			h.Kind = 9
			_, _, err := r.PutJournal(t.Context(), h, nil)
			return err
		},
		"a kind of entry": func() error {
			_, _, err := r.PutJournal(t.Context(), sampleHead(1), []JournalEntry{{Kind: 9, ID: "x"}})
			return err
		},
		"a pack id": func() error {
			e := pointEntry(1)
			e.Point.Pack = "ab"
			_, _, err := r.PutJournal(t.Context(), sampleHead(1), []JournalEntry{e})
			return err
		},
		"an entry that no record holds": func() error {
			e := pointEntry(1)
			e.Point.Description = strings.Repeat("x", 1<<20)
			_, _, err := r.PutJournal(t.Context(), sampleHead(1), []JournalEntry{e})
			return err
		},
	} {
		if put() == nil {
			t.Errorf("%s was written", what)
		}
	}
	if blobs, err := r.JournalBlobs(t.Context()); err != nil || len(blobs) != 0 {
		t.Errorf("something was stored: %+v, %v", blobs, err)
	}
	var w fieldWriter
	w.str(0x8001, "ss-1")
	w.str(0x9000, "x")
	if _, err := decodeEntry(PointEntry, 1, w.b); !errs.Is(err, errs.Conflict) {
		t.Errorf("an unknown critical field: %v", err)
	}
	if _, err := decodeEntry(3, 0, nil); !errs.Is(err, errs.Conflict) {
		t.Errorf("an unknown kind: %v", err)
	}
}

func TestParseJournalPos(t *testing.T) {
	for _, s := range []string{"", "1", "1.", "x." + strings.Repeat("0", 64), "1." + strings.Repeat("0", 62), "-1." + strings.Repeat("0", 64)} {
		if p, err := ParseJournalPos(s); err == nil {
			t.Errorf("%q is %v", s, p)
		}
	}
}

func FuzzJournalEntries(f *testing.F) {
	var all []byte
	for _, e := range sampleEntries() {
		b, err := appendEntry(nil, e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		all = append(all, b...)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := decodeEntries(b)
		if err != nil {
			return
		}
		var again []byte
		for _, e := range entries {
			if again, err = appendEntry(again, e); err != nil {
				t.Fatalf("a decoded entry cannot be written: %v", err)
			}
		}
		same, err := decodeEntries(again)
		if err != nil || !reflect.DeepEqual(same, entries) {
			t.Fatalf("decoded entries do not survive: %v", err)
		}
	})
}

func FuzzJournalHead(f *testing.F) {
	for _, kind := range []BlobKind{JournalChanges, JournalPart, JournalSummary} {
		h := sampleHead(3)
		h.Kind, h.Parts = kind, []JournalPos{{1, ID{2}}}
		b, err := h.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeJournalHead(b)
		if err != nil {
			return
		}
		again, err := h.encode()
		if err != nil {
			t.Fatal(err)
		}
		same, err := decodeJournalHead(again)
		if err != nil || !reflect.DeepEqual(same, h) {
			t.Fatalf("a decoded head does not survive: %v", err)
		}
	})
}
