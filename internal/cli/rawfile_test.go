package cli

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/errs"
)

func openRaw(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

type silent struct{}

func (silent) set(int64, int64) {}
func (silent) phase(string)     {}
func (silent) stop(bool)        {}

func sourceOf(t *testing.T, name string) *fileSource {
	t.Helper()
	f := openRaw(t, name)
	before, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return &fileSource{Image: &rawFile{f, before.Size()}, f: f, before: before, m: silent{}}
}

// A sparse file is its data in ranges and zeros between them.
func TestRawFileTellsItsHoles(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	want := make([]byte, 8<<20+777)
	for range 5 {
		at := rnd.IntN(len(want) - 20_000)
		for i := at; i < at+20_000; i++ {
			want[i] = byte(rnd.IntN(256))
		}
	}
	name := filepath.Join(t.TempDir(), "disk.raw")
	if _, err := saveSparse(bytes.NewReader(want), name, false); err != nil {
		t.Fatal(err)
	}
	s := sourceOf(t, name)
	got := make([]byte, len(want))
	read := int64(0)
	for off := int64(0); ; {
		begin, end, err := s.Data(t.Context(), off)
		if err == io.EOF {
			break
		}
		if err != nil || begin < off || end <= begin || end > s.Size() {
			t.Fatalf("from %d: %d to %d, %v", off, begin, end, err)
		}
		if err := s.ReadAt(t.Context(), got[begin:end], begin); err != nil {
			t.Fatal(err)
		}
		read, off = read+end-begin, end
	}
	if !bytes.Equal(got, want) {
		t.Error("another content")
	}
	if read > 2<<20 {
		t.Errorf("%d bytes were read of %d that are not holes", read, 5*20_000)
	}
}

func TestAFileThatIsWrittenMeanwhile(t *testing.T) {
	for says, tt := range map[string]struct {
		change func(name string) error
		want   string
	}{
		"written":       {func(name string) error { return os.Chtimes(name, time.Time{}, time.Unix(5, 0)) }, "was written while it was read"},
		"longer":        {func(name string) error { return os.Truncate(name, 3<<20) }, "was written while it was read"},
		"shorter":       {func(name string) error { return os.Truncate(name, 1<<20) }, "was written while it was read"},
		"empty":         {func(name string) error { return os.Truncate(name, 0) }, "was written while it was read"},
		"only a reader": {func(name string) error { _, err := os.ReadFile(name); return err }, ""},
	} {
		t.Run(says, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "disk.raw")
			if err := os.WriteFile(name, bytes.Repeat([]byte{7}, 2<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			s := sourceOf(t, name)
			if err := tt.change(name); err != nil {
				t.Fatal(err)
			}
			err := readOut(t, s)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), name)):
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestAFileThatShrinksUnderARead(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(name, make([]byte, 9000), 0o600); err != nil {
		t.Fatal(err)
	}
	s := sourceOf(t, name)
	if err := os.Truncate(name, 5000); err != nil {
		t.Fatal(err)
	}
	if err := s.ReadAt(t.Context(), make([]byte, 4000), 4000); errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), name+": it became shorter while it was read") {
		t.Error(err)
	}
}

// readOut reads all of s as the client does.
func readOut(t *testing.T, s *fileSource) error {
	for off := int64(0); ; {
		begin, end, err := s.Data(t.Context(), off)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.ReadAt(t.Context(), make([]byte, end-begin), begin); err != nil {
			return err
		}
		off = end
	}
}
