package nbdvolume

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cairn/internal/nbd"
	"cairn/internal/volume"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// disk is what a server of these tests has: bytes, pages that are holes, and
// dirty bitmaps of 64 KiB.
type disk struct {
	mu      sync.Mutex
	data    []byte
	data4k  map[int64]bool // pages that are no holes
	bitmaps map[string]map[int64]bool
	before  func(what string, off, length int64) error
	asked   map[string]int64 // bytes, by what was asked
}

func newDisk(size int64) *disk {
	return &disk{data: make([]byte, size), data4k: map[int64]bool{}, bitmaps: map[string]map[int64]bool{}, asked: map[string]int64{}}
}

func (d *disk) call(what string, off, length int64) error {
	d.mu.Lock()
	d.asked[what] += length
	before := d.before
	d.mu.Unlock()
	if before != nil {
		return before(what, off, length)
	}
	return nil
}

func (d *disk) onCall(f func(what string, off, length int64) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before = f
}

// put writes as another client of the server would.
func (d *disk) put(buf []byte, off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data[off:], buf)
	for b := off / 4096; b*4096 < off+int64(len(buf)); b++ {
		d.data4k[b] = true
	}
	d.mark(off, int64(len(buf)))
}

func (d *disk) mark(off, length int64) {
	for _, m := range d.bitmaps {
		for b := off >> 16; b<<16 < off+length; b++ {
			m[b] = true
		}
	}
}

// bitmap makes a fresh one, also where one was.
func (d *disk) bitmap(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bitmaps[bitmaps+name] = map[int64]bool{}
}

func (d *disk) bytes() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.data)
}

func (d *disk) ReadAt(_ context.Context, p []byte, off int64) error {
	if err := d.call("read", off, int64(len(p))); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	return nil
}

func (d *disk) WriteAt(_ context.Context, p []byte, off int64, _ nbd.Flags) error {
	if err := d.call("write", off, int64(len(p))); err != nil {
		return err
	}
	d.put(p, off)
	return nil
}

func (d *disk) Flush(context.Context) error { return d.call("flush", 0, 0) }

func (d *disk) Trim(context.Context, int64, int64, nbd.Flags) error { panic("never asked for") }

func (d *disk) Cache(context.Context, int64, int64) error { panic("never asked for") }

func (d *disk) Zero(_ context.Context, off, length int64, _ nbd.Flags) error {
	if err := d.call("zero", off, length); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+length])
	for b := (off + 4095) / 4096; (b+1)*4096 <= off+length; b++ {
		delete(d.data4k, b)
	}
	d.mark(off, length)
	return nil
}

func (d *disk) Status(_ context.Context, into []nbd.Extent, name string, off, length int64, limit int) ([]nbd.Extent, error) {
	if err := d.call(name, off, length); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	unit, set, flags := int64(4096), d.data4k, [2]uint32{nbd.Hole | nbd.Zero, 0}
	if m, is := d.bitmaps[name]; is {
		unit, set, flags = 65536, m, [2]uint32{0, 1}
	}
	for at := off; at < off+length && len(into) < limit; {
		end := min((at/unit+1)*unit, int64(len(d.data)))
		f := flags[0]
		if set[at/unit] {
			f = flags[1]
		}
		into = append(into, nbd.Extent{Off: at, Len: end - at, Flags: f})
		at = end
	}
	return into, nil
}

// server is an NBD server of somebody else's, until the test ends.
type server struct {
	*nbd.Server
	t    testing.TB
	path string
	stop func()
}

// shortDir is a folder whose name leaves room for a socket's.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nv")
	ok(t, err)
	t.Cleanup(func() { ok(t, os.RemoveAll(dir)) })
	return dir
}

func serve(t testing.TB) *server {
	t.Helper()
	return serveAt(t, filepath.Join(shortDir(t), "s"))
}

func serveAt(t testing.TB, path string) *server {
	t.Helper()
	l, err := net.Listen("unix", path)
	ok(t, err)
	s := &server{Server: nbd.NewServer(nbd.Limits{}, slog.New(slog.DiscardHandler)), t: t, path: path}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

// exported is everything that a disk can do.
func exported(name string, d *disk) nbd.ExportConfig {
	c := nbd.ExportConfig{Name: name, Size: int64(len(d.data)), MultiConn: true, CanZero: true, Contexts: []string{nbd.BaseAllocation}}
	for name := range d.bitmaps {
		c.Contexts = append(c.Contexts, name)
	}
	return c
}

func (s *server) add(c nbd.ExportConfig, d *disk) *nbd.Export {
	s.t.Helper()
	e, err := s.Add(c, d)
	ok(s.t, err)
	return e
}

func (s *server) uri(export string) string {
	return nbd.URI{Network: "unix", Address: s.path, Export: export}.String()
}

func newDriver(t testing.TB, dir string) *Driver {
	t.Helper()
	d, err := New(Config{Dir: dir, Attempts: 3})
	ok(t, err)
	return d
}

func register(t testing.TB, d *Driver, id, uri string) volume.Spec {
	t.Helper()
	p, err := d.Probe(t.Context(), uri)
	ok(t, err)
	return volume.Spec{ID: id, Path: p.Path, Identity: p.Identity, SizeBytes: p.SizeBytes}
}

func freeze(t testing.TB, d *Driver, s volume.Spec) volume.Instant {
	t.Helper()
	in, err := d.Freeze(t.Context(), "job-1", []volume.Spec{s}, nil)
	ok(t, err)
	t.Cleanup(func() { ok(t, in.Close()) })
	return in
}

// needs skips where other people's programs are not installed.
func needs(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("skipped: no %s here", tool)
		}
	}
}

const toolLimit = time.Minute

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), toolLimit)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// start runs a server until stop or the test's end, and waits until it
// listens at the socket.
func start(t testing.TB, socket, name string, args ...string) (stop func()) {
	t.Helper()
	needs(t, name)
	ctx, cancel := context.WithTimeout(context.Background(), toolLimit)
	cmd := exec.CommandContext(ctx, name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	ok(t, cmd.Start())
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		_ = cmd.Wait()                       // of a signal
		cancel()
	})
	t.Cleanup(stop)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		nc, err := net.Dial("unix", socket)
		if err == nil {
			ok(t, nc.Close())
			return stop
		}
		if time.Now().After(end) {
			stop()
			t.Fatalf("%s %v does not listen: %v\n%s", name, args, err, out.String())
		}
	}
}
