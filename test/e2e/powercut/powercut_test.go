package powercut_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"cairn/test/e2e/harness"
	"cairn/test/e2e/powercut"
)

// program is a way to make a file and say that it is safe.
type program struct {
	name string
	save func(path string, content []byte) error
	safe bool // what it says is true
}

func programs() []program {
	return []program{
		{name: "syncs nothing", save: func(path string, content []byte) error {
			return os.WriteFile(path, content, 0o600)
		}},
		{name: "syncs the file, not its new name", save: func(path string, content []byte) error {
			return errors.Join(synced(path+".tmp", content), os.Rename(path+".tmp", path))
		}},
		{name: "syncs the name, not the bytes", save: func(path string, content []byte) error {
			return errors.Join(os.WriteFile(path+".tmp", content, 0o600), os.Rename(path+".tmp", path), syncFolder(path))
		}},
		{name: "syncs both", safe: true, save: func(path string, content []byte) error {
			return errors.Join(synced(path+".tmp", content), os.Rename(path+".tmp", path), syncFolder(path))
		}},
	}
}

func synced(path string, content []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncFolder(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// saved is a file that a program called safe.
type saved struct {
	path    string
	content []byte
	said    powercut.Position
}

// TestRigTellsLiars runs programs that call files safe too early and one that
// does not: the cuts must catch the liars, or they would prove nothing, and
// must not catch the honest one.
func TestRigTellsLiars(t *testing.T) {
	if !harness.Long() {
		t.Skip("skipped: only with CAIRN_LONG=1")
	}
	r := harness.Rand(harness.Seed(t))
	for _, p := range programs() {
		t.Run(p.name, func(t *testing.T) {
			disk := powercut.New(t, 64<<20)
			var files []saved
			for i := range 20 {
				f := saved{path: filepath.Join(disk.Mount, fmt.Sprintf("file-%d", i)), content: make([]byte, 100+r.IntN(100_000))}
				harness.Noise(f.content, r.Uint64())
				if err := p.save(f.path, f.content); err != nil {
					t.Fatal(err)
				}
				f.said = now(t, disk)
				files = append(files, f)
			}
			history, err := disk.Finish()
			if err != nil {
				t.Fatal(err)
			}
			cuts, kept, lost := 0, 0, 0
			for flush := history.FlushesBefore(files[0].said); flush <= history.Flushes(); flush++ {
				for _, c := range []powercut.Cut{{Flushes: flush}, history.Random(r, flush)} {
					cuts++
					k, l := look(t, history, c, files)
					kept, lost = kept+k, lost+l
					if l > 0 && p.safe {
						t.Errorf("%v: %d files are gone that were synced in every way", c, l)
					}
				}
			}
			t.Logf("%d log entries, %d flushes, %d cuts: %d files were still there, %d were lost",
				history.Entries(), history.Flushes(), cuts, kept, lost)
			if (lost == 0) != p.safe {
				t.Errorf("%d files were lost; safe is %v", lost, p.safe)
			}
			if p.safe && kept == 0 {
				t.Error("no file was ever looked for")
			}
		})
	}
}

func now(t *testing.T, disk *powercut.Disk) powercut.Position {
	t.Helper()
	p, err := disk.Now()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// look counts, after a cut, the files that were called safe before it.
func look(t *testing.T, h *powercut.History, c powercut.Cut, files []saved) (kept, lost int) {
	t.Helper()
	if err := h.Show(c); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if h.FlushesBefore(f.said) > c.Flushes {
			break // said later than the cut
		}
		if got, err := os.ReadFile(f.path); err == nil && string(got) == string(f.content) {
			kept++
		} else {
			lost++
		}
	}
	if err := h.Hide(); err != nil {
		t.Fatal(err)
	}
	return kept, lost
}
