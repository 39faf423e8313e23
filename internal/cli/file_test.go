package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"cairn/client"
	"cairn/internal/errs"
)

func TestParseSize(t *testing.T) {
	tests := []struct {
		in   string
		want int64
		bad  string
	}{
		{"1", 1 << 30, ""}, {"10", 10 << 30, ""}, {"1.5G", 3 << 29, ""}, {"512M", 512 << 20, ""}, {"512 MiB", 512 << 20, ""},
		{"2t", 2 << 40, ""}, {"4096B", 4096, ""}, {"1kb", 1024, ""}, {"0.5K", 512, ""}, {" 7GB ", 7 << 30, ""},
		{"8388607T", 8388607 << 40, ""},
		{"", 0, "is none"}, {"ten", 0, "is none"}, {"-1", 0, "is none"}, {"1e3", 0, "is none"}, {"1X", 0, "is none"},
		{"1/2", 0, "is none"}, {".5", 0, "is none"}, {"0x10", 0, "is none"}, {"0", 0, "is nothing"}, {"0.0G", 0, "is nothing"},
		{"0.5B", 0, "whole number"}, {"8388608T", 0, "more than"}, {"99999999999999999999", 0, "more than"},
	}
	for _, tt := range tests {
		got, err := parseSize(tt.in)
		switch {
		case tt.bad == "" && (err != nil || got != tt.want):
			t.Errorf("%q: %d, %v; want %d", tt.in, got, err, tt.want)
		case tt.bad != "" && (err == nil || !strings.Contains(err.Error(), tt.bad)):
			t.Errorf("%q: %v; want %q", tt.in, err, tt.bad)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1", "1.5G", "512 MiB", "0", "9999999T", "1.0000000001G", "B"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseSize(s)
		if (err == nil) != (n > 0) {
			t.Fatalf("%q: %d, %v", s, n, err)
		}
		if err == nil {
			again, err := parseSize(fmt.Sprintf("%dB", n))
			if err != nil || again != n {
				t.Fatalf("%q is %d bytes, read again %d, %v", s, n, again, err)
			}
		}
	})
}

func TestFormatBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1 MiB", 10 << 30: "10 GiB",
		1 << 40: "1 TiB", 1<<63 - 1: "8 EiB",
	} {
		if got := formatBytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestExitCodes(t *testing.T) {
	status := func(s int) error { return fmt.Errorf("wrapped: %w", &client.Error{Status: s, Message: "m"}) }
	tests := []struct {
		err  error
		want int
	}{
		{nil, 0}, {errors.New("x"), 1}, {status(500), 1}, {status(403), 1}, {&client.FailedJob{}, 1},
		{status(400), 2}, {status(413), 2}, {errs.New(errs.Invalid, "x"), 2}, {errs.New(errs.Corrupt, "x"), 3},
		{status(404), 4}, {errs.New(errs.NotFound, "x"), 4}, {status(409), 5}, {status(503), 5}, {errs.New(errs.Exists, "x"), 5},
		{fmt.Errorf("x: %w", client.ErrUnreachable), 6}, {&interrupted{}, 130},
	}
	documented := map[int]bool{}
	for _, m := range exitMeanings {
		documented[m.code] = true
	}
	for _, tt := range tests {
		if got := exitCode(tt.err); got != tt.want || !documented[got] {
			t.Errorf("%v: exit code %d, want %d", tt.err, got, tt.want)
		}
	}
}

// What is written sparsely reads back as it was, whatever the pieces.
func TestWriteSparse(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		var content []byte
		for range rapid.IntRange(0, 6).Draw(rt, "pieces") {
			n := rapid.SampledFrom([]int{1, 511, holeUnit - 1, holeUnit, holeUnit + 1, 3 * holeUnit, copyBuffer - 1, copyBuffer}).Draw(rt, "length")
			content = append(content, bytes.Repeat([]byte{rapid.SampledFrom([]byte{0, 0, 7}).Draw(rt, "byte")}, n)...)
		}
		var r io.Reader = bytes.NewReader(content)
		if rapid.Bool().Draw(rt, "halves") {
			r = iotest.HalfReader(r)
		}
		if rapid.Bool().Draw(rt, "eof with data") {
			r = iotest.DataErrReader(r)
		}
		path := filepath.Join(dir, "f")
		n, err := saveSparse(r, path, true)
		if err != nil || n != int64(len(content)) {
			rt.Fatalf("%d of %d bytes, %v", n, len(content), err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, content) {
			rt.Fatalf("read back %d bytes, want %d, %v", len(got), len(content), err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			rt.Fatalf("%d files are left", len(left))
		}
	})
}

func TestWriteSparseLeavesHoles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if _, err := saveSparse(bytes.NewReader(append(make([]byte, 64<<20), 1)), path, false); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 1<<20 {
		t.Errorf("a file of zeros uses %d bytes", used)
	}
}

// A stream that breaks leaves no file and what was there before; errors that
// look like an end are no end.
func TestSaveSparseBroken(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, broken := range []error{
		errors.New("broken"), io.ErrUnexpectedEOF, fmt.Errorf("cut: %w", io.EOF), fmt.Errorf("cut: %w", io.ErrUnexpectedEOF),
	} {
		for _, before := range []string{"", "old"} {
			_ = os.Remove(path)
			if before != "" {
				if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r := io.MultiReader(strings.NewReader("new"), iotest.ErrReader(broken))
			if _, err := saveSparse(r, path, true); !errors.Is(err, broken) {
				t.Errorf("%v: got %v", broken, err)
			}
			got, _ := os.ReadFile(path)
			left, _ := os.ReadDir(dir)
			if string(got) != before || len(left) != len(before)/3 {
				t.Errorf("%v: the file holds %q, %d files are left", broken, got, len(left))
			}
		}
	}
}

func TestDestinations(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, []byte("old"), 0o600), os.Symlink("file", link)); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		path  string
		force bool
		want  errs.Kind // Internal: none
	}{
		{filepath.Join(dir, "new"), false, errs.Internal},
		{filepath.Join(dir, "none", "new"), false, errs.NotFound},
		{file, false, errs.Exists}, {file, true, errs.Internal},
		{link, false, errs.Exists}, {link, true, errs.Internal},
		{dir, true, errs.Invalid}, {os.DevNull, true, errs.Invalid},
	}
	for _, tt := range tests {
		if err := checkDestination(tt.path, tt.force); errs.KindOf(err) != tt.want || (err == nil) != (tt.want == errs.Internal) {
			t.Errorf("%s, force %v: %v", tt.path, tt.force, err)
		}
	}
	if _, err := saveSparse(strings.NewReader("new"), link, true); err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(link)
	got, _ := os.ReadFile(file)
	if err != nil || st.Mode().IsRegular() || string(got) != "new" {
		t.Errorf("the link was replaced, not its file: %v, %q", st.Mode(), got)
	}
	// One that appeared while the stream came is not overwritten.
	late := filepath.Join(dir, "late")
	r := io.MultiReader(strings.NewReader("new"), readerFunc(func([]byte) (int, error) {
		return 0, errors.Join(os.WriteFile(late, []byte("old"), 0o600), nil)
	}))
	if _, err := saveSparse(&once{r: r}, late, false); errs.KindOf(err) != errs.Exists {
		t.Errorf("a file that appeared meanwhile: %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// once ends after its source has given nothing.
type once struct{ r io.Reader }

func (o *once) Read(p []byte) (int, error) {
	n, err := o.r.Read(p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}
