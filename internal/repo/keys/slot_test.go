package keys

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"cairn/internal/errs"
	"cairn/internal/repo/addr"
)

// cheap is a cost that tests can pay often.
var cheap = Cost{Passes: 1, MemoryKiB: 16, Lanes: 2}

var update = flag.Bool("update", false, "write the golden files anew")

func passphrase(t testing.TB, text string) Passphrase {
	t.Helper()
	p, err := ParsePassphrase(text, cheap)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// next is Next, encoded and read again with o.
func next(t *testing.T, h *Header, m Master, o Opener, add []Opener, drop ...SlotID) *Header {
	t.Helper()
	n, err := h.Next(m, add, drop, time.Unix(2_000_000_000, 0))
	if err != nil {
		t.Fatal(err)
	}
	got, gm, err := Decode(n.Encode(m), o)
	if err != nil || gm != m || got.Generation != h.Generation+1 || got.Repo != h.Repo || !got.Created.Equal(h.Created) {
		t.Fatalf("%+v, %v", got, err)
	}
	return got
}

// reseal gives changed header bytes the checksum and mac that their writer
// would have given them.
func reseal(m Master, b []byte) []byte {
	b = b[:len(b)-tailSize]
	mac := macHeader(m, b)
	b = append(b, mac[:]...)
	sum := blake3.Sum256(b)
	return append(b, sum[:]...)
}

func TestEachSlotOpens(t *testing.T) {
	f, m := newFile(), NewMaster()
	pass, rec := passphrase(t, "correct horse"), NewRecovery(f.Repo)
	h := next(t, NewHeader(m, f.Repo, f, time.Unix(1, 0)), m, f, []Opener{pass, rec})
	b := h.Encode(m)
	want := []SlotInfo{
		{Kind: KeyFileSlot, Usable: true, Added: time.Unix(1, 0)},
		{Kind: PassphraseSlot, Usable: true, Added: time.Unix(2_000_000_000, 0), Cost: cheap},
		{Kind: RecoverySlot, Usable: true, Added: time.Unix(2_000_000_000, 0)},
	}
	for i, o := range []Opener{f, pass, rec} {
		got, gm, err := Decode(b, o)
		if err != nil || gm != m || got.Opened() != h.slots[i].id() {
			t.Fatalf("%s: %v", o, err)
		}
		info := got.Slots()[i]
		want[i].ID, want[i].Added = h.slots[i].id(), want[i].Added.UTC()
		if info != want[i] {
			t.Errorf("slot %d is %+v, want %+v", i, info, want[i])
		}
	}
	other := NewFile(f.Repo)
	for _, o := range []Opener{other, newFile(), passphrase(t, "correct hors"), NewRecovery(f.Repo), NewRecovery(newFile().Repo)} {
		if _, _, err := Decode(b, o); !errs.Is(err, errs.Denied) || !strings.HasPrefix(err.Error(), "the ") {
			t.Errorf("a wrong %s: %v", o, err)
		}
	}
}

func TestSlotsChange(t *testing.T) {
	f, m := newFile(), NewMaster()
	now := time.Unix(5, 0)
	h := NewHeader(m, f.Repo, f, now)
	first := h.slots[0].id()
	denied := func(h *Header, o Opener) {
		t.Helper()
		if _, _, err := Decode(h.Encode(m), o); !errs.Is(err, errs.Denied) {
			t.Fatalf("%s: %v, want a refusal", o, err)
		}
	}
	if _, err := h.Next(m, nil, []SlotID{first}, now); !errs.Is(err, errs.Conflict) {
		t.Errorf("the last slot: %v", err)
	}
	if _, err := h.Next(m, nil, []SlotID{{1}}, now); !errs.Is(err, errs.NotFound) {
		t.Errorf("a slot that is not there: %v", err)
	}
	if _, err := h.Next(m, []Opener{f}, nil, now); !errs.Is(err, errs.Exists) {
		t.Errorf("a key that is there: %v", err)
	}
	if _, err := h.Next(m, []Opener{newFile()}, nil, now); !errs.Is(err, errs.Denied) {
		t.Errorf("another repository's key: %v", err)
	}
	two := NewFile(f.Repo)
	if _, err := h.Next(m, []Opener{two, two}, nil, now); !errs.Is(err, errs.Exists) {
		t.Errorf("the same key twice: %v", err)
	}
	rotated := next(t, h, m, two, []Opener{two}, first)
	denied(rotated, f)
	pass := passphrase(t, "correct horse")
	if _, err := next(t, rotated, m, pass, []Opener{pass}).Next(m, []Opener{pass}, nil, now); !errs.Is(err, errs.Exists) {
		t.Errorf("a passphrase that is there: %v", err)
	}
	only := next(t, rotated, m, pass, []Opener{pass}, rotated.slots[0].id())
	denied(only, two)
	if len(only.Slots()) != 1 {
		t.Errorf("%d slots", len(only.Slots()))
	}
}

func TestSlotLimits(t *testing.T) {
	f, m := newFile(), NewMaster()
	h := NewHeader(m, f.Repo, f, time.Unix(1, 0))
	for i := range maxPassphrases + 1 {
		n, err := h.Next(m, []Opener{passphrase(t, fmt.Sprint("passphrase ", i))}, nil, time.Unix(1, 0))
		if i == maxPassphrases {
			if !errs.Is(err, errs.Conflict) {
				t.Errorf("passphrase %d: %v", i, err)
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		h = n
	}
	last := passphrase(t, fmt.Sprint("passphrase ", maxPassphrases-1))
	if _, _, err := Decode(h.Encode(m), last); err != nil {
		t.Errorf("the last passphrase: %v", err)
	}
	for len(h.slots) < maxSlots {
		h = next(t, h, m, f, []Opener{NewFile(f.Repo)})
	}
	if _, err := h.Next(m, []Opener{NewFile(f.Repo)}, nil, time.Unix(1, 0)); !errs.Is(err, errs.Conflict) {
		t.Errorf("slot %d: %v", maxSlots, err)
	}
	// A header that another writer filled beyond: the ninth is not computed.
	for i := range h.slots {
		if h.slots[i].kind() == PassphraseSlot && h.slots[i].id() != (SlotID{}) {
			h.slots = append([]slot{h.slots[i]}, h.slots[:maxSlots-1]...)
			break
		}
	}
	if _, _, err := Decode(h.Encode(m), last); !errs.Is(err, errs.Denied) {
		t.Errorf("passphrase slot %d of a header: %v", maxPassphrases+1, err)
	}
}

// What this version does not know is carried along, and never counted on.
func TestUnknownKindIsKept(t *testing.T) {
	f, m := newFile(), NewMaster()
	h := NewHeader(m, f.Repo, f, time.Unix(1, 0))
	strange := slot(bytes.Repeat([]byte{200}, slotSize))
	h.slots = append([]slot{strange}, h.slots...)
	got, _, err := Decode(h.Encode(m), f)
	if err != nil {
		t.Fatal(err)
	}
	if i := got.Slots()[0]; i.Usable || i.Kind.String() != "kind 200" || got.Opened() != h.slots[1].id() {
		t.Errorf("%+v", i)
	}
	two := NewFile(f.Repo)
	if n := next(t, got, m, two, []Opener{two}, got.Opened()); n.slots[0] != strange {
		t.Error("a slot of an unknown kind was changed")
	}
	if _, err := got.Next(m, nil, []SlotID{got.Opened()}, time.Unix(1, 0)); !errs.Is(err, errs.Conflict) {
		t.Errorf("only an unknown slot would be left: %v", err)
	}
}

func TestReservedBytesAreRefused(t *testing.T) {
	f, m := newFile(), NewMaster()
	h := next(t, NewHeader(m, f.Repo, f, time.Unix(1, 0)), m, f, []Opener{passphrase(t, "correct horse"), NewRecovery(f.Repo)})
	for n, kind := range []SlotKind{KeyFileSlot, PassphraseSlot, RecoverySlot} {
		for at := 1; at < 16; at++ {
			if kind == PassphraseSlot && at > 3 {
				break
			}
			b := h.Encode(m)
			b[fixedSize+n*slotSize+at] = 1
			if _, _, err := Decode(reseal(m, b), f); !errs.Is(err, errs.Corrupt) {
				t.Errorf("byte %d of a slot of kind %s: %v", at, kind, err)
			}
		}
	}
}

// A forged header, which anyone can make, must not be able to eat memory or
// time: a cost beyond the bounds is never computed.
func TestForgedCostIsNotComputed(t *testing.T) {
	f, m := newFile(), NewMaster()
	pass := passphrase(t, "correct horse")
	h := next(t, NewHeader(m, f.Repo, f, time.Unix(1, 0)), m, f, []Opener{pass})
	for _, c := range []Cost{
		{0, 64, 1}, {maxPasses + 1, 64, 1}, {1, 64, 0}, {1, 1 << 16, maxLanes + 1}, {1, 7, 1}, {1, 31, 4},
		{1, maxMemoryKiB + 1, 1}, {1, 1<<32 - 1, 1}, {1<<32 - 1, 64, 1}, {1, 1 << 16, 256}, {1, 1 << 16, 257}, {1, 0, 0},
	} {
		if c.check() == nil {
			t.Fatalf("%+v is within the bounds", c)
		}
		b := h.Encode(m)
		at := b[fixedSize+slotSize:]
		binary.LittleEndian.PutUint32(at[4:], c.Passes)
		binary.LittleEndian.PutUint32(at[8:], c.MemoryKiB)
		binary.LittleEndian.PutUint32(at[12:], c.Lanes)
		b = reseal(m, b)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := Decode(b, pass)
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; !errs.Is(err, errs.Denied) || grown > 1<<20 {
			t.Errorf("%+v: %v after %d bytes", c, err, grown)
		}
		got, _, err := Decode(b, f)
		if err != nil || got.Slots()[1].Usable {
			t.Errorf("%+v: the key file beside it: %v", c, err)
		}
	}
	for _, c := range []Cost{DefaultCost(), {maxPasses, maxMemoryKiB, maxLanes}, {1, laneMinKiB, 1}} {
		if err := c.check(); err != nil {
			t.Error(err)
		}
	}
}

func TestPassphraseText(t *testing.T) {
	for text, want := range map[string]string{
		"correct horse\n": "correct horse", "correct horse\r\n": "correct horse", " spaces count ": " spaces count ",
		"\xff not UTF-8": "\xff not UTF-8", "x": "x", strings.Repeat("l", passphraseMax): strings.Repeat("l", passphraseMax),
	} {
		if p, err := ParsePassphrase(text, cheap); err != nil || p.secret != want {
			t.Errorf("%q gives %q, %v", text, p.secret, err)
		}
	}
	for _, text := range []string{"", "\n", "\r\n", "two\nlines", "two lines\n\n", strings.Repeat("l", passphraseMax+1)} {
		if _, err := ParsePassphrase(text, cheap); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := passphrase(t, "1234567").CheckNew(); !errs.Is(err, errs.Invalid) {
		t.Errorf("a short new one: %v", err)
	}
	if err := passphrase(t, "12345678").CheckNew(); err != nil {
		t.Error(err)
	}
}

// Whatever prints one of these by mistake prints no secret.
func TestSecretsDoNotPrint(t *testing.T) {
	f := newFile()
	pass, rec := passphrase(t, "correct horse"), NewRecovery(f.Repo)
	for _, o := range []Opener{f, pass, rec} {
		got := fmt.Sprintf("%v %+v %s %v", o, o, o, []any{o})
		for _, secret := range append(rec.Groups()[1:9], hex.EncodeToString(f.Key[:4]), fmt.Sprint(f.Key[:4]), "correct", "horse", fmt.Sprint(rec.secret[:4])) {
			if strings.Contains(got, strings.Trim(secret, "[]")) {
				t.Errorf("%T prints %s", o, got)
			}
		}
	}
}

// golden is a header that is written down, with what opens it.
type golden struct {
	name    string
	master  Master
	file    File
	pass    Passphrase
	paper   Recovery
	openers []Opener
}

func newGolden(t testing.TB, name string, cost Cost) golden {
	t.Helper()
	g := golden{name: name}
	repo := addr.PackID{0xca, 0x1f, 0x2e, 0x3d, 0x4c, 0x5b, 0x6a, 0x79, 0x88, 0x97, 0xa6, 0xb5, 0xc4, 0xd3, 0xe2, 0xf1}
	copy(g.master.id[:], "the first golden half of a master")
	copy(g.master.enc[:], "the other golden half of a master")
	g.file.Repo = repo
	for i := range g.file.Key {
		g.file.Key[i] = byte(i * 7)
	}
	var err error
	if g.pass, err = ParsePassphrase("correct horse battery staple\n", cost); err != nil {
		t.Fatal(err)
	}
	g.paper = NewRecovery(repo)
	copy(g.paper.secret[:], "twenty golden bytes!")
	g.openers = []Opener{g.file, g.pass, g.paper}
	return g
}

func (g golden) read(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join("testdata", g.name)
	if *update {
		h, err := NewHeader(g.master, g.file.Repo, g.file, time.Unix(1_800_000_000, 0)).Next(g.master, g.openers[1:], nil, time.Unix(1_800_000_001, 0))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(hex.EncodeToString(h.Encode(g.master))+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const goldenPaper = `CAIRN-RECOVERY-1
S8FJY EHVP7 AVKMK F4G6W EVVCQ
CHJPQ W832A F5T60 AWS1B TQTKP
`

// Headers of version 1 with a slot of each kind, as they must open for ever.
func TestGoldenSlots(t *testing.T) {
	for _, g := range []golden{newGolden(t, "header-v1-slots.hex", DefaultCost()), newGolden(t, "header-v1-cheap.hex", cheap)} {
		b := g.read(t)
		for i, o := range g.openers {
			h, gm, err := Decode(b, o)
			if err != nil || gm != g.master || h.Generation != 2 || h.Slots()[i].Kind != o.kind() {
				t.Errorf("%s, %s: %v", g.name, o, err)
			}
		}
		if got := g.paper.Text(); got != goldenPaper {
			t.Errorf("the recovery key is written as %q", got)
		}
	}
}

// The fuzzer's processes share the golden header and its keys, so that a
// changed header comes as far as its mac.
func FuzzHeader(f *testing.F) {
	g := newGolden(f, "header-v1-cheap.hex", cheap)
	good := g.read(f)
	f.Add(good)
	f.Add(good[:fixedSize])
	f.Add(good[:len(good)-tailSize])
	f.Add(good[:len(good)-32]) // the checksum is added below
	f.Fuzz(func(t *testing.T, b []byte) {
		sum := blake3.Sum256(b)
		for _, c := range [][]byte{b, append(bytes.Clone(b), sum[:]...)} {
			h, err := Peek(c)
			if err == nil && len(h.Slots()) == 0 {
				t.Fatal("a header without slots")
			}
			for _, o := range g.openers {
				if _, _, err := Decode(c, o); err == nil && !bytes.Equal(c, good) {
					t.Fatal("a header was accepted that nobody wrote")
				}
			}
		}
	})
}
