package repo

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// What version 1 wrote is read by every later program, byte by byte the same.
// Only -update rewrites the file, and only a new version of the format may.
func TestJournalGolden(t *testing.T) {
	const path = "testdata/journal-v1.txt"
	plain := goldenRecords(t)
	var text bytes.Buffer
	for _, p := range plain {
		text.WriteString(hex.EncodeToString(p) + "\n")
	}
	if *update {
		if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text.Bytes(), want) {
		t.Errorf("the samples are written differently than in version 1:\n%s", text.Bytes())
	}
	lines := strings.Fields(string(want))
	if len(lines) != len(plain) {
		t.Fatalf("%d records, want %d", len(lines), len(plain))
	}
	for i, line := range lines {
		b, err := hex.DecodeString(line)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			entries, err := decodeEntries(b)
			if err != nil || !reflect.DeepEqual(entries, sampleEntries()) {
				t.Errorf("entries: %+v, %v", entries, err)
			}
			continue
		}
		if h, err := decodeJournalHead(b); err != nil || !reflect.DeepEqual(h, goldenHeads()[i-1]) {
			t.Errorf("head %d: %+v, %v", i, h, err)
		}
	}
}

func goldenHeads() []JournalHead {
	changes, part, summary := sampleHead(7), sampleHead(8), sampleHead(9)
	part.Kind, part.More = JournalPart, false
	summary.Kind, summary.More, summary.Base, summary.Parts = JournalSummary, false, JournalPos{5, ID{5}}, []JournalPos{{6, ID{6}}, {8, ID{8}}}
	return []JournalHead{changes, part, summary}
}

// goldenRecords are the plain bytes of a record of entries and of heads.
func goldenRecords(t *testing.T) (out [][]byte) {
	t.Helper()
	var entries []byte
	for _, e := range sampleEntries() {
		var err error
		if entries, err = appendEntry(entries, e); err != nil {
			t.Fatal(err)
		}
	}
	out = append(out, entries)
	for _, h := range goldenHeads() {
		b, err := h.encode()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// The same of an entry that tells of a machine.
func TestMachineEntryGolden(t *testing.T) {
	const path = "testdata/journal-v1-machine.txt"
	b, err := appendEntry(nil, machineEntry())
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, []byte(hex.EncodeToString(b)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(b); got != strings.TrimSpace(string(want)) {
		t.Errorf("the entry is written differently: %s", got)
	}
	if entries, err := decodeEntries(b); err != nil || !reflect.DeepEqual(entries, []JournalEntry{machineEntry()}) {
		t.Errorf("entries: %+v, %v", entries, err)
	}
}
