package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/internal/errs"
	"cairn/internal/journal"
)

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

// The old database goes aside with its side files, whichever are there, and
// nothing that is there already is replaced.
func TestReplaceDatabase(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	const aside = "cairn.db.before-recover-20260304T050607Z"
	for _, there := range [][]string{{}, {""}, {"", "-wal", "-shm"}, {"-wal"}} {
		dir, work := t.TempDir(), t.TempDir()
		path, fresh := filepath.Join(dir, "cairn.db"), filepath.Join(work, "cairn.db")
		want := map[string]string{"cairn.db": "new", aside: "older still"}
		write := func(name, content string) {
			if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(fresh, "new")
		write(filepath.Join(dir, aside), "older still")
		for _, suffix := range there {
			write(path+suffix, "old"+suffix)
			want[aside+"-1"+suffix] = "old" + suffix
		}
		moved, err := replaceDatabase(fresh, path, now)
		if err != nil || len(moved) != len(there) {
			t.Fatalf("%q: moved %v, %v", there, moved, err)
		}
		if got := files(t, dir); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %v, want %v", there, got, want)
		}
	}
}

func TestRecoverRefuses(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	if err := recoverDatabase(t.Context(), recoverConfig{}, &out, &out); !errs.Is(err, errs.Invalid) {
		t.Errorf("without a folder: %v", err)
	}
	if err := recoverDatabase(t.Context(), recoverConfig{dataDir: dir}, &out, &out); !errs.Is(err, errs.NotFound) {
		t.Errorf("a folder without a repository: %v", err)
	}
	if got := files(t, dir); len(got) > 0 {
		t.Errorf("it made %v", got)
	}
	if err := os.MkdirAll(filepath.Join(dir, "repo", "header"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := recoverDatabase(t.Context(), recoverConfig{dataDir: dir}, &out, &out); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "repo.key") {
		t.Errorf("without a key: %v", err)
	}
	lock, err := lockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := recoverDatabase(t.Context(), recoverConfig{dataDir: dir}, &out, &out); !errs.Is(err, errs.Busy) {
		t.Errorf("beside a server: %v", err)
	}
}

func TestPrintRecovered(t *testing.T) {
	a := recovered{Database: "/d/cairn.db", MovedAside: []string{"/d/cairn.db.before"}, Report: journal.Report{
		Journal: journal.LogReport{State: "damaged", Blobs: 3, Entries: 4, WrittenAt: time.Unix(1, 0).UTC(), Problems: []string{"blob 2 is missing"}},
		Points: []journal.PointReport{
			{ID: "ss-GOOD", Result: journal.Recovered}, {ID: "ss-BAD", Result: journal.Damaged, Reason: "a chunk\n\x1b[31m is missing"}, {ID: "ss-HALF", Result: journal.LeftOut, Reason: "never finished"},
		},
		Volumes: []journal.VolumeReport{{ID: "vol-GOOD", Result: journal.Recovered}, {ID: "vol-HALF", Result: journal.LeftOut, Reason: "never finished"}},
		Notes:   []string{"jobs are gone"}, Packs: 7, Bytes: 8,
	}}
	var out bytes.Buffer
	if err := (recoverConfig{}).print(a, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"damaged: 3 blobs", "written until 1970", "blob 2 is missing", "1 recovered, 1 damaged, 1 left out", "ss-BAD damaged", "ss-HALF left out: never finished",
		"vol-HALF left out", "7, 8 bytes", "jobs are gone", "/d/cairn.db", "/d/cairn.db.before"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the summary lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "\x1b") || strings.Contains(out.String(), "ss-GOOD") {
		t.Errorf("the summary shows too much:\n%s", out.String())
	}
	out.Reset()
	if err := (recoverConfig{json: true}).print(recovered{MovedAside: []string{}, Report: journal.Report{}}, &out); err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil || !slices.Contains([]any{""}, doc["database"]) {
		t.Errorf("%v: %s", err, out.String())
	}
}
