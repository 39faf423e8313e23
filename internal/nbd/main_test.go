package nbd

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Backend of bytes in memory. Blocks of 4 KiB that were trimmed or
// zeroed without NoHole are holes.
type memory struct {
	mu    sync.RWMutex
	data  []byte
	holes []bool

	calls   atomic.Int64 // of any method
	flushes atomic.Int64
	flags   atomic.Uint32                                                   // of the last change
	before  func(ctx context.Context, what string, off, length int64) error // see onCall
}

const memoryBlock = 4096

func newMemory(size int) *memory {
	m := &memory{data: make([]byte, size), holes: make([]bool, (size+memoryBlock-1)/memoryBlock)}
	for i := range m.holes {
		m.holes[i] = true
	}
	return m
}

func (m *memory) call(ctx context.Context, what string, off, length int64) error {
	m.calls.Add(1)
	m.mu.RLock()
	before := m.before
	m.mu.RUnlock()
	if before != nil {
		return before(ctx, what, off, length)
	}
	return nil
}

// onCall sets what is called before each call.
func (m *memory) onCall(f func(ctx context.Context, what string, off, length int64) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before = f
}

// bytes is a copy of a range.
func (m *memory) bytes(off, n int) []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Clone(m.data[off : off+n])
}

func (m *memory) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := m.call(ctx, "read", off, int64(len(p))); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	copy(p, m.data[off:off+int64(len(p))])
	return nil
}

func (m *memory) WriteAt(ctx context.Context, p []byte, off int64, flags Flags) error {
	if err := m.call(ctx, "write", off, int64(len(p))); err != nil {
		return err
	}
	m.flags.Store(uint32(flags))
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:off+int64(len(p))], p)
	for b := off / memoryBlock; b*memoryBlock < off+int64(len(p)); b++ {
		m.holes[b] = false
	}
	return nil
}

func (m *memory) Flush(ctx context.Context) error {
	m.flushes.Add(1)
	return m.call(ctx, "flush", 0, 0)
}

func (m *memory) Trim(ctx context.Context, off, length int64, flags Flags) error {
	if err := m.call(ctx, "trim", off, length); err != nil {
		return err
	}
	return m.zero(off, length, flags)
}

func (m *memory) Zero(ctx context.Context, off, length int64, flags Flags) error {
	if err := m.call(ctx, "zero", off, length); err != nil {
		return err
	}
	return m.zero(off, length, flags)
}

func (m *memory) zero(off, length int64, flags Flags) error {
	m.flags.Store(uint32(flags))
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+length])
	for b := off / memoryBlock; b*memoryBlock < off+length; b++ {
		whole := b*memoryBlock >= off && min((b+1)*memoryBlock, int64(len(m.data))) <= off+length
		m.holes[b] = (m.holes[b] || whole) && flags&NoHole == 0
	}
	return nil
}

func (m *memory) Cache(ctx context.Context, off, length int64) error {
	return m.call(ctx, "cache", off, length)
}

func (m *memory) Status(ctx context.Context, into []Extent, name string, off, length int64, limit int) ([]Extent, error) {
	if err := m.call(ctx, name, off, length); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	for at := off; at < off+length && len(into) < limit; {
		b := at / memoryBlock
		var flags uint32
		if m.holes[b] {
			flags = Hole | Zero
		}
		end := min((b+1)*memoryBlock, int64(len(m.data)))
		if n := len(into); n > 0 && into[n-1].Flags == flags {
			into[n-1].Len += end - at
		} else {
			into = append(into, Extent{Off: at, Len: end - at, Flags: flags})
		}
		at = end
	}
	return into, nil
}

// file is a Backend on a raw file, as plain as qemu-nbd's.
type file struct {
	f  *os.File
	fd int
}

func openFile(t testing.TB, size int64) *file {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return &file{f, int(f.Fd())}
}

func (b *file) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := b.f.ReadAt(p, off)
	return err
}

func (b *file) WriteAt(ctx context.Context, p []byte, off int64, flags Flags) error {
	_, err := b.f.WriteAt(p, off)
	return b.after(ctx, flags, err)
}

func (b *file) after(ctx context.Context, flags Flags, err error) error {
	if err == nil && flags&FUA != 0 {
		err = b.Flush(ctx)
	}
	return err
}

func (b *file) Flush(context.Context) error { return unix.Fdatasync(b.fd) }

func (b *file) Trim(ctx context.Context, off, length int64, flags Flags) error {
	return b.Zero(ctx, off, length, flags)
}

func (b *file) Zero(ctx context.Context, off, length int64, flags Flags) error {
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE)
	if flags&NoHole != 0 {
		mode = unix.FALLOC_FL_ZERO_RANGE
	}
	return b.after(ctx, flags, unix.Fallocate(b.fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, length))
}

func (b *file) Cache(context.Context, int64, int64) error { return nil }

func (b *file) Status(_ context.Context, into []Extent, _ string, off, length int64, limit int) ([]Extent, error) {
	for at, end := off, off+length; at < end && len(into) < limit; {
		data, err := unix.Seek(b.fd, at, unix.SEEK_DATA)
		if err == syscall.ENXIO {
			data, err = end, nil
		}
		if err != nil {
			return nil, err
		}
		if data > at {
			into = append(into, Extent{Off: at, Len: min(data, end) - at, Flags: Hole | Zero})
			at = data
			continue
		}
		hole, err := unix.Seek(b.fd, at, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		into = append(into, Extent{Off: at, Len: min(hole, end) - at})
		at = hole
	}
	return into, nil
}

// everything is an export with all that a Backend can do.
func everything(name string, size int64) ExportConfig {
	return ExportConfig{
		Name: name, Size: size, MultiConn: true,
		CanTrim: true, CanZero: true, CanFastZero: true, CanCache: true,
		Contexts: []string{BaseAllocation},
	}
}

// served is a server on a unix socket, until the test ends.
type served struct {
	*Server
	t      testing.TB
	path   string
	stop   func() // and wait
	served chan error
}

func serve(t testing.TB, limits Limits) *served {
	t.Helper()
	if limits.Attach == 0 {
		limits.Attach = 10 * time.Millisecond
	}
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return serveAt(t, limits, filepath.Join(dir, "s"))
}

func serveAt(t testing.TB, limits Limits, path string) *served {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	s := &served{Server: NewServer(limits, log), t: t, path: path, served: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { s.served <- s.Serve(ctx, l) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-s.served:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Serve does not end")
		}
	})
	t.Cleanup(s.stop)
	return s
}

func (s *served) add(cfg ExportConfig, b Backend) *Export {
	s.t.Helper()
	e, err := s.Add(cfg, b)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

func (s *served) uri(export string) URI {
	return URI{Network: "unix", Address: s.path, Export: export}
}

func (s *served) dial(export string, opt Options) *Client {
	s.t.Helper()
	c, err := Dial(s.t.Context(), s.uri(export), opt)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}
