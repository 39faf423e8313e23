package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/extent"
)

func TestMedian(t *testing.T) {
	runs := []cycle{{repoFull: 9}, {repoFull: 1}, {repoFull: 5}}
	if got := median(runs, func(c cycle) int64 { return c.repoFull }); got != 5 {
		t.Errorf("median of three is %d", got)
	}
	if got := median(runs[:2], func(c cycle) int64 { return c.repoFull }); got != 1 {
		t.Errorf("median of two is %d", got)
	}
}

func TestRatioIsToTheBestPeer(t *testing.T) {
	results := map[string][]cycle{
		"cairn": {{full: usage{wall: 2 * time.Second}}},
		"a":     {{full: usage{wall: 4 * time.Second}}},
		"b":     {{full: usage{wall: 8 * time.Second}}},
	}
	text := render(tables()[0], []string{"cairn", "a", "b"}, results)
	if !strings.Contains(text, "| **0.50** |") {
		t.Errorf("no ratio of 0.50 in:\n%s", text)
	}
}

// Moving the working file between the days must give exactly those days.
func TestSetDay(t *testing.T) {
	dir := t.TempDir()
	d := &testDisk{path: filepath.Join(dir, "disk"), days: [2]string{filepath.Join(dir, "1"), filepath.Join(dir, "2")}}
	one := make([]byte, 3<<20+100)
	two := append([]byte(nil), one...)
	two[5000], two[2<<20], two[len(two)-1] = 1, 2, 3
	for path, p := range map[string][]byte{d.days[0]: one, d.days[1]: two, d.path: one} {
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if d.changed, err = differences(t.Context(), d.days[0], d.days[1]); err != nil {
		t.Fatal(err)
	}
	want := []extent.Range{{Off: 4096, Len: 4096}, {Off: 2 << 20, Len: 4096}, {Off: 3 << 20, Len: 100}}
	if diff := cmp.Diff(want, d.changed); diff != "" {
		t.Fatal(diff)
	}
	for _, day := range []int{1, 0, 1} {
		if err := d.setDay(day); err != nil {
			t.Fatal(err)
		}
		if err := mustEqual(t.Context(), d.path, d.days[day]); err != nil {
			t.Fatalf("day %d: %v", day, err)
		}
	}
	if mustEqual(t.Context(), d.path, d.days[0]) == nil {
		t.Fatal("a wrong restore was not seen")
	}
}

func TestMeasured(t *testing.T) {
	u, out, err := measured(t.Context(), t.TempDir(), os.Getpid(), []string{"WORD=hello"}, "sh", "-c", "echo $WORD")
	if err != nil || string(out) != "hello\n" || u.wall <= 0 || u.anon <= 0 {
		t.Fatalf("%+v %q %v", u, out, err)
	}
	if _, _, err := measured(context.Background(), t.TempDir(), 0, nil, "sh", "-c", "echo broken >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Fatalf("a failing tool gave %v", err)
	}
}

// A source that knows its changes answers what a search from the start finds.
func TestFileSourceChanged(t *testing.T) {
	s := &fileSource{changed: []extent.Range{{Off: 10, Len: 5}, {Off: 20, Len: 1}, {Off: 40, Len: 10}}}
	for off := range int64(60) {
		var want extent.Range
		for _, r := range s.changed {
			if r.End() > off {
				start := max(off, r.Off)
				want = extent.Range{Off: start, Len: r.End() - start}
				break
			}
		}
		got, err := s.Changed(t.Context(), "", off)
		if got != want || (err != nil) != (want.Len == 0) {
			t.Errorf("from %d: %+v, %v; want %+v", off, got, err, want)
		}
	}
}

func TestRolledBack(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	s := &cairnSession{log: log}
	if _, err := s.rolledBack(); err == nil {
		t.Error("an empty log told of a rollback")
	}
	for _, line := range []string{"volume restored\" snapshot=ss-1 volume=vol-1 written_bytes=1 zeroed_bytes=2 equal_bytes=3\n", "volume restored\" snapshot=ss-1 volume=vol-1 written_bytes=4096 zeroed_bytes=8192 equal_bytes=3\n"} {
		if _, err := log.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.rolledBack(); err != nil || n != 12288 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestTrackingLimit(t *testing.T) {
	v := tracking{Full: 10 * time.Second, Changed: 5, Data: 100}
	if got := v.limit(); got != 650*time.Millisecond {
		t.Errorf("the limit is %s", got)
	}
}
