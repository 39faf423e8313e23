package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/qcow2"
)

// qemu runs QEMU's own tools in a folder of its own.
type qemu struct {
	t   testing.TB
	dir string
}

func newQEMU(t testing.TB) *qemu {
	t.Helper()
	for _, tool := range []string{"qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("skipped: %s is not installed (Debian: qemu-utils)", tool)
		}
	}
	return &qemu{t, t.TempDir()}
}

func (q *qemu) path(name string) string { return filepath.Join(q.dir, name) }

func (q *qemu) file(name string, b []byte) string {
	q.t.Helper()
	if err := os.WriteFile(q.path(name), b, 0o600); err != nil {
		q.t.Fatal(err)
	}
	return q.path(name)
}

func (q *qemu) run(tool string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Dir = q.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", tool, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (q *qemu) img(args ...string) {
	q.t.Helper()
	if _, err := q.run("qemu-img", args...); err != nil {
		q.t.Fatal(err)
	}
}

// io runs commands of qemu-io on an image. Those that fail are told on stdout
// only, so all output is looked at.
func (q *qemu) io(image string, commands ...string) {
	q.t.Helper()
	args := []string{"-f", "qcow2", "-d", "unmap", "-t", "unsafe", q.path(image)}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := q.run("qemu-io", args...)
	if err != nil || strings.Contains(out, "failed") || strings.Contains(out, "invalid") {
		q.t.Fatalf("%v: %s", err, out)
	}
}

// open opens an image of the folder until the test ends.
func (q *qemu) open(image string) (*qcow2.Reader, error) {
	q.t.Helper()
	f, err := os.Open(q.path(image))
	if err != nil {
		q.t.Fatal(err)
	}
	q.t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		q.t.Fatal(err)
	}
	return qcow2.Open(f, st.Size())
}

// raw is what QEMU reads of an image.
func (q *qemu) raw(image string) ([]byte, error) {
	if _, err := q.run("qemu-img", "convert", "-t", "unsafe", "-f", "qcow2", "-O", "raw", q.path(image), q.path("reference.raw")); err != nil {
		return nil, err
	}
	return os.ReadFile(q.path("reference.raw"))
}

// compare reads an image as QEMU does and as we do.
func (q *qemu) compare(image string) {
	q.t.Helper()
	want, err := q.raw(image)
	if err != nil {
		q.t.Fatal(err)
	}
	r, err := q.open(image)
	if err != nil {
		q.t.Fatal(err)
	}
	got, err := whole(context.Background(), r, 777_777)
	if err != nil {
		q.t.Fatal(err)
	}
	if i := differs(got, want); i >= 0 {
		q.t.Fatalf("%s: we read %d bytes, QEMU %d, and byte %d differs", image, len(got), len(want), i)
	}
}

// kinds are the ways to lay an image out that change how it is read.
var kinds = []string{
	"compat=0.10,cluster_size=512", "compat=0.10,cluster_size=64k", "compat=0.10,cluster_size=2M",
	"cluster_size=512", "cluster_size=1k", "cluster_size=4k", "cluster_size=64k", "cluster_size=256k", "cluster_size=2M",
	"cluster_size=512,compression_type=zstd", "cluster_size=64k,compression_type=zstd", "cluster_size=2M,compression_type=zstd",
	"cluster_size=16k,extended_l2=on", "cluster_size=64k,extended_l2=on", "cluster_size=2M,extended_l2=on",
	"cluster_size=128k,extended_l2=on,compression_type=zstd",
	"cluster_size=64k,lazy_refcounts=on", "cluster_size=64k,refcount_bits=1", "cluster_size=4k,refcount_bits=64",
	"cluster_size=64k,preallocation=metadata", "cluster_size=4k,preallocation=falloc", "cluster_size=64k,preallocation=full",
	"cluster_size=64k,extended_l2=on,preallocation=metadata", "compat=0.10,cluster_size=4k,preallocation=metadata",
}

func TestQEMUConverted(t *testing.T) {
	q := newQEMU(t)
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for _, size := range []int{512, 3<<20 - 3584} {
		raw := q.file("source.raw", mixed(rnd, size))
		for _, kind := range kinds {
			q.img("convert", "-t", "unsafe", "-f", "raw", "-O", "qcow2", "-o", kind, raw, q.path("plain.qcow2"))
			q.compare("plain.qcow2")
			if !strings.Contains(kind, "preallocation") { // which excludes compression
				q.img("convert", "-c", "-t", "unsafe", "-f", "raw", "-O", "qcow2", "-o", kind, raw, q.path("packed.qcow2"))
				q.compare("packed.qcow2")
			}
		}
	}
}

// mixed is content with noise, text, zeros and repetition, in runs.
func mixed(rnd *rand.Rand, size int) []byte {
	b := make([]byte, size)
	for at := 0; at < size; {
		run := b[at:min(size, at+1+rnd.IntN(200_000))]
		switch rnd.IntN(4) {
		case 0:
			copy(run, noise(rnd.Uint64(), len(run)))
		case 1:
			for i := range run {
				run[i] = "a line of text that repeats itself\n"[i%35]
			}
		case 2:
			run[rnd.IntN(len(run))] = 1
		}
		at += len(run)
	}
	return b
}

// History: what a machine does to its image, snapshots in between.
func TestQEMUHistories(t *testing.T) {
	seed := rand.Uint64()
	compared := 0
	t.Cleanup(func() { t.Logf("seed %d, %d images compared", seed, compared) })
	for i, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			q := newQEMU(t)
			compare := func() { compared++; q.compare("i.qcow2") }
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			snapshots := !strings.Contains(kind, "refcount_bits=1") // a snapshot needs to count to 2
			size := 4<<20 + 512*int64(rnd.IntN(5000))
			q.img("create", "-q", "-f", "qcow2", "-o", kind, q.path("i.qcow2"), fmt.Sprint(size))
			compare()
			for round := range 2 {
				if round == 0 && !strings.Contains(kind, "preallocation") { // which excludes compression
					q.io("i.qcow2", packedWrites(rnd, size, kind)...)
				}
				q.io("i.qcow2", history(rnd, size)...)
				compare()
				if snapshots {
					q.img("snapshot", "-c", fmt.Sprint("s", round), q.path("i.qcow2"))
				}
			}
			if !strings.Contains(kind, "compat=0.10") { // which cannot with snapshots
				q.img("resize", "-q", q.path("i.qcow2"), "+3000k")
				compare()
			}
			r, err := q.open("i.qcow2")
			if err != nil {
				t.Fatal(err)
			}
			if snapshots && r.Snapshots() != 2 {
				t.Errorf("%d snapshots, want 2", r.Snapshots())
			}
		})
	}
}

// packedWrites writes some clusters compressed: QEMU does that only where
// nothing was before.
func packedWrites(rnd *rand.Rand, size int64, kind string) []string {
	n := int64(64 << 10)
	for text, bytes := range map[string]int64{"=512": 512, "=1k": 1 << 10, "=4k": 4 << 10, "=16k": 16 << 10, "=128k": 128 << 10, "=256k": 256 << 10, "=2M": 2 << 20} {
		if strings.Contains(kind, "cluster_size"+text) {
			n = bytes
		}
	}
	var commands []string
	for i := int64(0); i < 20 && (i+1)*n <= size; i++ {
		if rnd.IntN(3) > 0 {
			commands = append(commands, fmt.Sprintf("write -c -P %d %d %d", 1+rnd.IntN(255), i*n, n))
		}
	}
	return commands
}

// history is some commands for qemu-io.
func history(rnd *rand.Rand, size int64) []string {
	var commands []string
	for range 12 {
		n := 512 * (1 + rnd.Int64N(600))
		off := 512 * rnd.Int64N((size-n)/512+1)
		switch rnd.IntN(5) {
		case 0, 1:
			commands = append(commands, fmt.Sprintf("write -P %d %d %d", 1+rnd.IntN(255), off, n))
		case 2:
			commands = append(commands, fmt.Sprintf("write -z %d %d", off, n))
		case 3:
			commands = append(commands, fmt.Sprintf("write -z -u %d %d", off, n))
		case 4:
			commands = append(commands, fmt.Sprintf("discard %d %d", off, n))
		}
	}
	return commands
}

// A machine that died leaves the dirty mark; the content is as it was flushed.
func TestQEMUDirty(t *testing.T) {
	q := newQEMU(t)
	q.img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", q.path("i.qcow2"), "8M")
	_, err := q.run("qemu-io", "-f", "qcow2", q.path("i.qcow2"), "-c", "write -P 7 1M 300k", "-c", "flush", "-c", "sigraise 9")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("qemu-io was to be killed: %v", err)
	}
	head, err := os.ReadFile(q.path("i.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	if head[79]&1 != 1 {
		t.Fatal("the image is not marked dirty")
	}
	r, err := q.open("i.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	got, err := whole(t.Context(), r, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	q.compare("i.qcow2") // QEMU repairs it first
	if got[1<<20] != 7 || got[1<<20+300<<10-1] != 7 || got[1<<20-1] != 0 {
		t.Error("what was flushed is not there")
	}
}

func TestQEMUOtherFeatures(t *testing.T) {
	q := newQEMU(t)
	raw := q.file("source.raw", goldenContent())
	q.img("convert", "-t", "unsafe", "-f", "raw", "-O", "qcow2", raw, q.path("bitmap.qcow2"))
	q.img("bitmap", "--add", q.path("bitmap.qcow2"), "b0")
	q.compare("bitmap.qcow2")
	q.img("convert", "-t", "unsafe", "-f", "raw", "-O", "qcow2", "-o", "compat=0.10", raw, q.path("amended.qcow2"))
	q.img("amend", "-f", "qcow2", "-o", "compat=1.1", q.path("amended.qcow2"))
	q.compare("amended.qcow2")
	q.img("resize", "-q", "--shrink", q.path("amended.qcow2"), "60416")
	q.compare("amended.qcow2")
	q.img("create", "-q", "-f", "qcow2", q.path("empty.qcow2"), "0")
	q.compare("empty.qcow2")
}

// A volume far larger than memory: only what is there is looked at.
func TestQEMULarge(t *testing.T) {
	q := newQEMU(t)
	q.img("create", "-q", "-f", "qcow2", q.path("i.qcow2"), "20T")
	q.io("i.qcow2", "write -P 1 0 512", "write -P 2 10T 100k", "write -z 11T 1G", "write -P 3 21990232555008 512")
	r, err := q.open("i.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	fill := func(b byte, n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = b
		}
		return p
	}
	want := newImage(20<<40, piece{0, fill(1, 512)}, piece{10 << 40, fill(2, 100<<10)}, piece{20<<40 - 512, fill(3, 512)})
	if err := sameAs(t.Context(), r, want); err != nil {
		t.Error(err)
	}
}

// Entries of valid images changed at random. What we read without an error is
// what QEMU reads; where it reads something and we refuse, we are the stricter.
func TestQEMUMutated(t *testing.T) {
	q := newQEMU(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	read, refused := 0, 0
	for range 80 {
		g := goldens[rnd.IntN(len(goldens))]
		file := g.file(t)
		mutate(rnd, file)
		q.file("i.qcow2", file)
		got, err := readCut(t.Context(), file)
		if err != nil {
			refused++
			continue
		}
		want, err := q.raw("i.qcow2")
		if err != nil {
			t.Fatalf("%s: we read what QEMU refuses: %v", g.name, err)
		}
		if i := differs(got, want); i >= 0 {
			t.Fatalf("%s: we read %d bytes, QEMU %d, and byte %d differs", g.name, len(got), len(want), i)
		}
		read++
	}
	t.Logf("%d read as QEMU does, %d refused", read, refused)
	if read == 0 || refused == 0 {
		t.Error("the changes are not worth the name")
	}
}

// mutate changes a few words of the L1 table and of the L2 tables.
func mutate(rnd *rand.Rand, file []byte) {
	places := tableWords(file)
	for range 1 + rnd.IntN(3) {
		at := places[rnd.IntN(len(places))]
		switch rnd.IntN(4) {
		case 0:
			file[at+rnd.IntN(8)] ^= 1 << rnd.IntN(8)
		case 1:
			clear(file[at : at+8])
		case 2: // as another entry has it
			copy(file[at:at+8], file[places[rnd.IntN(len(places))]:][:8])
		case 3:
			file[at+6] += byte(rnd.IntN(256))
		}
	}
}
