package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/internal/nbd"
	"cairn/test/e2e/harness"
)

// standSize ends within a page.
const standSize = 8<<20 + 5*512

// stand is one volume that other people's programs use, and what it must hold.
type stand struct {
	srv  *harness.Server
	id   string
	uri  string // over the unix socket
	tcp  string // over TCP
	dir  string // for files
	want *harness.Image
}

// TestLiveClients lets other people's programs use volumes of a server. After
// each step a point, the volume and what a client reads of it hold the same
// right bytes.
func TestLiveClients(t *testing.T) {
	needs(t, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "qemu-nbd", "nbdkit")
	t.Parallel()
	rng := harness.Rand(harness.Seed(t))
	srv := serve(t, "--nbd-listen", "127.0.0.1:0")
	for _, tt := range []struct {
		name string
		test func(*stand, *testing.T)
	}{
		{"nbdinfo", (*stand).nbdinfo}, {"nbdcopy", (*stand).nbdcopy},
		{"qemu-img", (*stand).qemuImg}, {"qcow2", (*stand).qcow2}, {"qemu-io", (*stand).qemuIO},
		{"proxies", (*stand).proxies}, {"two at once", (*stand).twoAtOnce},
		{"refusals", (*stand).refusals}, {"deletion", (*stand).deletion},
	} {
		s := &stand{srv: srv, want: harness.NewImage(standSize)}
		for range 12 {
			s.want.Apply(harness.RandomEdit(rng, standSize))
		}
		t.Run(tt.name, func(t *testing.T) {
			s.dir = t.TempDir()
			s.id = srv.API().CreateVolume(t, tt.name, standSize)
			uris := srv.Local().MustVolume(t, s.id).NBDURIs
			s.uri, s.tcp = uris[0], uris[1]
			tt.test(s, t)
		})
	}
	srv.API().ScrubClean(t)
}

// agree compares a new point, the volume and what a client reads.
func (s *stand) agree(t *testing.T) {
	t.Helper()
	s.srv.API().WantContent(t, "volume_snapshots", s.srv.API().Create(t, "agree", false, s.id)[0], s.want)
	s.srv.API().WantContent(t, "volumes", s.id, s.want)
	if !read(t, s.srv, s.id).Equal(s.want) {
		t.Fatal("a client reads something else")
	}
}

// source is a file of what the volume is to get.
func (s *stand) source(t *testing.T) string {
	t.Helper()
	return s.want.NewFile(t, s.dir, "source.raw")
}

func (s *stand) file(name string) string { return filepath.Join(s.dir, name) }

// program runs a program within a minute.
func program(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := tryProgram(t, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func tryProgram(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "timeout", append([]string{"60", name}, args...)...).CombinedOutput()
	return string(out), err
}

// proxy starts a server of somebody else's on a socket, until the test ends.
func proxy(t *testing.T, name string, args func(socket string) []string) (uri string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cairn") // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	cmd := exec.Command(name, args(socket)...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()                          // by the signal
		_ = os.RemoveAll(dir)                   // a leftover harms no one
	})
	if !harness.Poll(20*time.Second, func() bool {
		c, err := net.Dial("unix", socket)
		if err != nil {
			return false
		}
		return c.Close() == nil
	}) {
		t.Fatalf("%s does not listen", name)
	}
	return "nbd+unix:///?socket=" + socket
}

func (s *stand) nbdinfo(t *testing.T) {
	s.want = harness.NewImage(standSize)
	s.want.Write(bytes.Repeat([]byte{1}, 1<<20), 2<<20)
	program(t, "qemu-io", "-f", "raw", "-c", "write -P 1 2M 1M", s.uri)
	for _, uri := range []string{s.uri, s.tcp} {
		for _, can := range []string{"cache", "df", "fast-zero", "flush", "fua", "multi-conn", "trim", "zero"} {
			program(t, "nbdinfo", "--can", can, uri)
		}
		var info struct {
			Protocol   string
			Structured bool
			Exports    []struct {
				Size     int64 `json:"export-size"`
				ReadOnly bool  `json:"is_read_only"`
				Contexts []string
			}
		}
		if err := json.Unmarshal([]byte(program(t, "nbdinfo", "--json", uri)), &info); err != nil || len(info.Exports) != 1 {
			t.Fatalf("%+v: %v", info, err)
		}
		e := info.Exports[0]
		if info.Protocol != "newstyle-fixed" || !info.Structured || e.Size != standSize || e.ReadOnly || fmt.Sprint(e.Contexts) != "["+nbd.BaseAllocation+"]" {
			t.Errorf("%s: %+v", uri, info)
		}
		var extents []struct {
			Offset, Length int64
			Type           uint32
		}
		if err := json.Unmarshal([]byte(program(t, "nbdinfo", "--map", "--json", uri)), &extents); err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprint(extents), fmt.Sprintf("[{0 2097152 3} {2097152 1048576 0} {3145728 %d 3}]", standSize-3<<20); got != want {
			t.Errorf("map %s, want %s", got, want)
		}
	}
	if out, err := tryProgram(t, "nbdinfo", strings.Replace(s.uri, s.id, "vol-NOBODY00", 1)); err == nil {
		t.Errorf("a volume that is not there: %s", out)
	}
	s.agree(t)
}

func (s *stand) nbdcopy(t *testing.T) {
	src, dst := s.source(t), s.file("back.raw")
	program(t, "nbdcopy", "--flush", "--connections=4", src, s.uri)
	s.agree(t)
	program(t, "nbdcopy", "--requests=16", s.tcp, dst)
	s.want.WantFile(t, dst)
	// From one volume to another, which is larger and has data: zeros must
	// come over, too.
	other := s.srv.API().CreateVolume(t, "other", standSize+1<<20)
	uri := s.srv.Local().MustVolume(t, other).NBDURIs[0]
	program(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P 9 0 %d", standSize+1<<20), uri)
	program(t, "nbdcopy", "--flush", s.uri, uri)
	want := s.want.Resized(standSize + 1<<20)
	want.Write(bytes.Repeat([]byte{9}, 1<<20), standSize)
	s.srv.API().WantContent(t, "volumes", other, want)
	s.agree(t)
}

func (s *stand) qemuImg(t *testing.T) {
	src, back := s.source(t), s.file("back.qcow2")
	program(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-m", "8", "-W", src, s.uri)
	s.agree(t)
	program(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, s.uri)
	program(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, s.tcp)
	program(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", s.uri, back)
	program(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", back, s.uri)
	if out := program(t, "qemu-img", "info", "--output=json", "-f", "raw", s.uri); !strings.Contains(out, fmt.Sprintf(`"virtual-size": %d`, standSize)) {
		t.Errorf("info: %s", out)
	}
	var extents []struct {
		Start, Length int64
		Zero, Data    bool
	}
	if err := json.Unmarshal([]byte(program(t, "qemu-img", "map", "--output=json", "-f", "raw", s.uri)), &extents); err != nil {
		t.Fatal(err)
	}
	// What the map calls zeros is so, and that is all that matters.
	mapped, end := s.want.Clone(), int64(0)
	for _, e := range extents {
		if e.Start != end {
			t.Errorf("the map has nothing of bytes %d to %d", end, e.Start)
		}
		if e.Zero {
			mapped.Write(make([]byte, e.Length), e.Start)
		}
		end = e.Start + e.Length
	}
	if end != standSize || !mapped.Equal(s.want) {
		t.Errorf("the map ends at %d and calls zeros what is none: %+v", end, extents)
	}
}

// A qcow2 file lives on a volume as on a disk: its own writes are many, small
// and in no order.
func (s *stand) qcow2(t *testing.T) {
	program(t, "qemu-img", "create", "-f", "qcow2", s.uri, "64M")
	program(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 33M 1M", "-c", "discard 33M 64k", "-c", "write -P 8 0 100k", s.uri)
	s.want = read(t, s.srv, s.id)
	s.agree(t)
	program(t, "qemu-img", "check", "-f", "qcow2", s.uri)
	clone := s.srv.API().Clone(t, s.srv.API().Create(t, "qcow2", false, s.id)[0], "qcow2")
	uri := s.srv.Local().MustVolume(t, clone).NBDURIs[0]
	program(t, "qemu-img", "check", "-f", "qcow2", uri)
	program(t, "qemu-io", "-f", "qcow2", "-c", "read -P 7 34500k 4k", "-c", "read -P 8 0 100k", uri)
}

// qemuSteps are commands of qemu-io and what they do.
func (s *stand) qemuSteps(t *testing.T, uri string, steps ...string) {
	t.Helper()
	args := []string{"-f", "raw"}
	for _, step := range steps {
		args = append(args, "-c", step)
	}
	out, err := tryProgram(t, "qemu-io", append(args, uri)...)
	if low := strings.ToLower(out); err != nil || strings.Contains(low, "fail") || strings.Contains(low, "error") {
		t.Errorf("qemu-io %q: %v %s", steps, err, out)
	}
}

func (s *stand) pattern(b byte, off, n int64) { s.want.Write(bytes.Repeat([]byte{b}, int(n)), off) }

func (s *stand) qemuIO(t *testing.T) {
	program(t, "nbdcopy", s.source(t), s.uri)
	s.qemuSteps(t, s.uri,
		"write -P 1 0 1M", "write -f -P 2 512k 4k", "write -z 256k 64k", "write -z -u 320k 64k", "discard 128k 64k", "discard 1000k 100k",
		"aio_write -P 3 2M 1M", "aio_write -P 4 3M 1M", "aio_flush", "flush", "write -P 5 5000000 512", "write -z 5100000 7000", "map")
	s.pattern(1, 0, 1<<20)
	s.pattern(2, 512<<10, 4096)
	s.pattern(0, 256<<10, 128<<10)
	s.pattern(0, 128<<10, 64<<10)
	s.pattern(0, 1000<<10, 100<<10)
	s.pattern(3, 2<<20, 1<<20)
	s.pattern(4, 3<<20, 1<<20)
	s.pattern(5, 5000000, 512)
	s.pattern(0, 5100000, 7000)
	s.agree(t)
	s.qemuSteps(t, s.tcp, "read -P 1 0 128k", "read -P 0 128k 64k", "read -P 0 256k 128k", "read -P 2 512k 4k", "read -P 4 3M 1M",
		"discard 0 6M", "write -P 6 100 50")
	s.pattern(0, 0, 6<<20)
	s.pattern(6, 100, 50)
	s.agree(t)
}

// Other servers in between: what is written through one of them is read past
// it.
func (s *stand) proxies(t *testing.T) {
	src := s.source(t)
	kit := proxy(t, "nbdkit", func(socket string) []string {
		return []string{"-f", "-U", socket, "nbd", "uri=" + s.uri, "shared=true"}
	})
	program(t, "nbdcopy", "--flush", "--connections=4", src, kit)
	s.agree(t)
	for _, can := range []string{"flush", "fua", "multi-conn", "trim", "zero"} {
		program(t, "nbdinfo", "--can", can, kit)
	}
	qemu := proxy(t, "qemu-nbd", func(socket string) []string {
		return []string{"-t", "-e", "8", "-f", "raw", "--discard=unmap", "--detect-zeroes=unmap", "-k", socket, s.tcp}
	})
	s.qemuSteps(t, qemu, "write -P 1 0 300k", "write -P 0 64k 64k", "discard 128k 64k", "flush")
	s.pattern(1, 0, 300<<10)
	s.pattern(0, 64<<10, 128<<10)
	s.qemuSteps(t, kit, "read -P 1 0 64k", "read -P 0 64k 128k", "write -f -P 2 1M 4k")
	s.pattern(2, 1<<20, 4096)
	program(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", kit, s.uri)
	s.agree(t)
}

// Two programs write to every second page each, a third reads all of it, and
// points are taken.
func (s *stand) twoAtOnce(t *testing.T) {
	const pages, page = 400, 4096
	program(t, "nbdcopy", s.source(t), s.uri)
	var writers sync.WaitGroup
	for w := range 2 {
		var steps []string
		for p := w; p < pages; p += 2 {
			steps = append(steps, fmt.Sprintf("write -P %d %d %d", 1+p%200, p*page, page))
			s.pattern(byte(1+p%200), int64(p*page), page)
		}
		writers.Go(func() { s.qemuSteps(t, []string{s.uri, s.tcp}[w], steps...) })
	}
	back := s.file("back.raw")
	writers.Go(func() {
		if out, err := tryProgram(t, "nbdcopy", s.uri, back); err != nil {
			t.Errorf("nbdcopy: %v %s", err, out)
		}
	})
	takeBeside(t, s.srv, s.id, 20, writers.Wait)
	// Behind what the others changed the reader must have got what was there.
	got, err := os.ReadFile(back)
	if err != nil {
		t.Fatal(err)
	}
	want, err := io.ReadAll(s.want.Reader())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[pages*page:], want[pages*page:]) {
		t.Error("a reader beside two writers got something else")
	}
	s.agree(t)
}
