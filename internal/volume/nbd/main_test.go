package nbdvolume

import (
	"context"
	"errors"
	"flag"
	"maps"
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

	"cairn/internal/errs"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// checks of each model: one makes some hundred connections.
const checks = "25"

func TestMain(m *testing.M) {
	flag.Parse()
	given := os.Getenv("CAIRN_LONG") == "1"
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if !given {
		if err := flag.Set("rapid.checks", checks); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// tester is what *testing.T and *rapid.T have in common.
type tester interface {
	Helper()
	Context() context.Context
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func ok(t tester, err error) {
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
	before  func(ctx context.Context, what string, off, length int64) error
	asked   map[string]int64 // bytes, by what was asked
}

func newDisk(size int64) *disk {
	return &disk{data: make([]byte, size), data4k: map[int64]bool{}, bitmaps: map[string]map[int64]bool{}, asked: map[string]int64{}}
}

func (d *disk) call(ctx context.Context, what string, off, length int64) error {
	d.mu.Lock()
	d.asked[what] += length
	before := d.before
	d.mu.Unlock()
	if before != nil {
		return before(ctx, what, off, length)
	}
	return nil
}

// onCall lets f look at each request before it is done, and fail it.
func (d *disk) onCall(f func(ctx context.Context, what string, off, length int64) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before = f
}

// requested is how many bytes were asked for, and forgets it.
func (d *disk) requested(what string) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.asked[what]
	delete(d.asked, what)
	return n
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

// dirty marks what nobody wrote.
func (d *disk) dirty(off, length int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mark(off, length)
}

func (d *disk) mark(off, length int64) {
	for _, m := range d.bitmaps {
		for b := off >> 16; b<<16 < off+length; b++ {
			m[b] = true
		}
	}
}

// resize as QEMU does it: what is cut off a bitmap is gone, and what is new is
// not marked.
func (d *disk) resize(size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for b := range d.data4k {
		if b*4096 >= size {
			delete(d.data4k, b)
		}
	}
	for _, m := range d.bitmaps {
		for b := range m {
			if b<<16 >= size {
				delete(m, b)
			}
		}
	}
	d.data = append(slices.Clone(d.data[:min(size, int64(len(d.data)))]), make([]byte, max(size-int64(len(d.data)), 0))...)
}

// size is that of the data.
func (d *disk) size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.data))
}

// allMarks is what all bitmaps hold.
func (d *disk) allMarks() map[string]map[int64]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := map[string]map[int64]bool{}
	for name, marks := range d.bitmaps {
		all[name] = maps.Clone(marks)
	}
	return all
}

func (d *disk) has(bitmap string) bool { return d.allMarks()[bitmaps+bitmap] != nil }

// unbitmap takes one away, and gives it another name unless that is "".
func (d *disk) unbitmap(name, other string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if other != "" {
		d.bitmaps[bitmaps+other] = d.bitmaps[bitmaps+name]
	}
	delete(d.bitmaps, bitmaps+name)
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

func (d *disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.call(ctx, "read", off, int64(len(p))); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	return nil
}

func (d *disk) WriteAt(ctx context.Context, p []byte, off int64, _ nbd.Flags) error {
	if err := d.call(ctx, "write", off, int64(len(p))); err != nil {
		return err
	}
	d.put(p, off)
	return nil
}

func (d *disk) Flush(ctx context.Context) error { return d.call(ctx, "flush", 0, 0) }

func (d *disk) Trim(context.Context, int64, int64, nbd.Flags) error { panic("never asked for") }

func (d *disk) Cache(context.Context, int64, int64) error { panic("never asked for") }

func (d *disk) Zero(ctx context.Context, off, length int64, _ nbd.Flags) error {
	if err := d.call(ctx, "zero", off, length); err != nil {
		return err
	}
	d.punch(off, length)
	return nil
}

// punch zeroes, and makes holes of whole pages.
func (d *disk) punch(off, length int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+length])
	for b := (off + 4095) / 4096; (b+1)*4096 <= off+length; b++ {
		delete(d.data4k, b)
	}
	d.mark(off, length)
}

func (d *disk) Status(ctx context.Context, into []nbd.Extent, name string, off, length int64, limit int) ([]nbd.Extent, error) {
	if err := d.call(ctx, name, off, length); err != nil {
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
	at   nbd.URI
	came chan struct{} // one for each connection
	stop func()
}

// doorbell tells of connections.
type doorbell struct {
	net.Listener
	came chan struct{}
}

func (l doorbell) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	select {
	case l.came <- struct{}{}:
	default: // nobody counts so many
	}
	return nc, err
}

// after calls f when n more connections came.
func (s *server) after(n int, f func()) {
	for len(s.came) > 0 {
		<-s.came
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range n {
			select {
			case <-s.came:
			case <-s.t.Context().Done():
				return
			}
		}
		f()
	}()
	s.t.Cleanup(func() { <-done })
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
	return serveAt(t, "unix", filepath.Join(shortDir(t), "s"))
}

func serveAt(t testing.TB, network, address string) *server {
	t.Helper()
	l, err := net.Listen(network, address)
	ok(t, err)
	at := nbd.URI{Network: network, Address: l.Addr().String()}
	s := &server{Server: nbd.NewServer(nbd.Limits{}, nil), t: t, at: at, came: make(chan struct{}, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, doorbell{l, s.came}) }()
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
	c := nbd.ExportConfig{Name: name, Size: d.size(), MultiConn: true, CanZero: true, Contexts: []string{nbd.BaseAllocation}}
	for name := range d.allMarks() {
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
	uri := s.at
	uri.Export = export
	return uri.String()
}

func newDriver(t testing.TB, dir string) *Driver {
	t.Helper()
	d, err := New(Config{Dir: dir})
	ok(t, err)
	return d
}

// hasty is a driver that gives up soon.
func hasty(t testing.TB) *Driver {
	t.Helper()
	d, err := New(Config{Dir: t.TempDir(), Attempts: 2})
	ok(t, err)
	return d
}

// wantKind demands an error of the kind, with a sentence for users that holds
// all of says.
func wantKind(t testing.TB, err error, kind errs.Kind, says ...string) {
	t.Helper()
	if !errs.Is(err, kind) || errs.KindOf(err) != kind {
		t.Fatalf("got kind %v (%v), want %v", errs.KindOf(err), err, kind)
	}
	for _, part := range says {
		if msg := errs.Message(err); !strings.Contains(msg, part) {
			t.Fatalf("%q does not say %q", msg, part)
		}
	}
}

// wantChanged demands that a change of the volume was noticed.
func wantChanged(t testing.TB, err error, id string) {
	t.Helper()
	if !errors.Is(err, volume.ErrChanged) {
		t.Fatalf("got %v, want ErrChanged", err)
	}
	wantKind(t, err, errs.Conflict, "volume "+id+" ")
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

const toolLimit = 10 * time.Minute

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
		signal := os.Interrupt // QEMU's keep their bitmaps
		if name == "nbdkit" {
			signal = os.Kill // it would wait for its clients
		}
		_ = cmd.Process.Signal(signal) // it may have ended
		_ = cmd.Wait()                 // of a signal
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

func committed() error { return nil }
