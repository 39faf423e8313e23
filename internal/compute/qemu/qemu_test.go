package qemu

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/internal/compute"
	"cairn/internal/compute/computetest"
	"cairn/internal/errs"
	"cairn/internal/nbd"
)

// memory is a disk.
type memory struct {
	sync.Mutex
	b []byte
}

func (m *memory) ReadAt(_ context.Context, p []byte, off int64) error {
	m.Lock()
	defer m.Unlock()
	copy(p, m.b[off:])
	return nil
}

func (m *memory) WriteAt(_ context.Context, p []byte, off int64, _ nbd.Flags) error {
	m.Lock()
	defer m.Unlock()
	copy(m.b[off:], p)
	return nil
}

func (m *memory) Flush(context.Context) error { return nil }

func (m *memory) Trim(context.Context, int64, int64, nbd.Flags) error { return nil }

func (m *memory) Zero(_ context.Context, off, n int64, _ nbd.Flags) error {
	m.Lock()
	defer m.Unlock()
	clear(m.b[off : off+n])
	return nil
}

func (m *memory) Cache(context.Context, int64, int64) error { return nil }

func (m *memory) Status(context.Context, []nbd.Extent, string, int64, int64, int) ([]nbd.Extent, error) {
	return nil, errors.ErrUnsupported
}

// greeting is a guest: a boot sector that prints a text on the serial port and
// then does nothing for ever.
func greeting(text string) []byte {
	code := []byte{0xba, 0xf8, 0x03} // mov dx, 0x3f8
	for _, c := range []byte(text + "\n") {
		code = append(code, 0xb0, c, 0xee) // mov al, c; out dx, al
	}
	code = append(code, 0xeb, 0xfe) // jmp $
	sector := make([]byte, 512)
	copy(sector, code)
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// rig is a folder of machines with a server of disks beside it.
type rig struct {
	dir    string
	server *nbd.Server
	socket string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "qemu")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{dir: filepath.Join(dir, "machines"), server: nbd.NewServer(nbd.Limits{}, nil), socket: filepath.Join(dir, "nbd")}
	l, err := net.Listen("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- r.server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-served, os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) disk(t *testing.T, id string) compute.Disk {
	t.Helper()
	const size = 1 << 20
	m := &memory{b: make([]byte, size)}
	copy(m.b, greeting(id))
	if _, err := r.server.Add(nbd.ExportConfig{Name: id, Size: size}, m); err != nil && !errs.Is(err, errs.Exists) {
		t.Fatal(err)
	}
	return r.named(id)
}

func (r *rig) named(id string) compute.Disk {
	return compute.Disk{ID: id, URI: "nbd+unix:///" + id + "?socket=" + r.socket}
}

func (r *rig) open(t *testing.T) *Driver {
	t.Helper()
	d, err := New(Config{Dir: r.dir, Acceleration: "tcg"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func needQEMU(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath(DefaultBinary); err != nil {
		t.Skipf("no machine can run: %v; apt install qemu-system-x86", err)
	}
}

func TestSuite(t *testing.T) {
	needQEMU(t)
	computetest.Run(t, func(t *testing.T) computetest.Harness {
		r := newRig(t)
		d := r.open(t)
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		return computetest.Harness{
			Driver: d, Disk: r.disk, NoDisk: r.named("vol-NONE"),
			Again: func(t *testing.T) compute.Driver { return r.open(t) },
		}
	})
}

func TestAcceleration(t *testing.T) {
	needQEMU(t)
	for asked, want := range map[string]string{"tcg": "tcg", "": ""} {
		got, err := acceleration(t.Context(), DefaultBinary, asked)
		if err != nil || want != "" && got != want {
			t.Errorf("acceleration %q: %q, %v", asked, got, err)
		}
		t.Logf("asked for %q, got %s", asked, got)
	}
	if _, err := acceleration(t.Context(), DefaultBinary, "hvf"); !errs.Is(err, errs.Invalid) {
		t.Errorf("hvf: %v", err)
	}
	if _, err := acceleration(t.Context(), "/bin/true", "tcg"); !errs.Is(err, errs.Unavailable) {
		t.Errorf("an emulator that runs nothing: %v", err)
	}
	if _, err := New(Config{Dir: t.TempDir(), Binary: "qemu-system-none"}); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "apt install") {
		t.Errorf("no emulator: %v", err)
	}
}

// A list does not wait for each machine in turn that hangs; they count as running.
func TestListOfMachinesThatHang(t *testing.T) {
	needQEMU(t)
	r := newRig(t)
	d := r.open(t)
	defer d.Close()
	const machines = 4
	for i := range machines {
		s := compute.Spec{ID: "ins-" + strconv.Itoa(i), CPUs: 1, Memory: 32 << 20, Disks: []compute.Disk{r.disk(t, "vol-"+strconv.Itoa(i))}}
		for _, err := range []error{d.Define(t.Context(), s), d.Start(t.Context(), s.ID)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		pid, err := d.machine(s.ID).pid()
		t.Cleanup(func() {
			if pid == 0 {
				return
			}
			if err := errors.Join(syscall.Kill(pid, syscall.SIGCONT), d.Delete(context.Background(), s.ID)); err != nil {
				t.Error(err)
			}
		})
		if pid == 0 { // it would be all of us
			t.Fatalf("%s does not run: %v", s.ID, err)
		}
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGSTOP)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// Half of what it took to wait for each.
	ctx, cancel := context.WithTimeout(t.Context(), machines*monitorLimit/2)
	defer cancel()
	all, err := d.List(ctx)
	if err != nil || len(all) != machines {
		t.Fatalf("the list: %+v, %v", all, err)
	}
	for _, m := range all {
		if m.State != compute.Running {
			t.Errorf("%s is %v", m.ID, m.State)
		}
	}
}

// A description that is damaged hides no machine.
func TestDamagedDescription(t *testing.T) {
	needQEMU(t)
	r := newRig(t)
	d := r.open(t)
	defer d.Close()
	s := compute.Spec{ID: "ins-A", CPUs: 1, Memory: 32 << 20, Disks: []compute.Disk{r.disk(t, "vol-A")}}
	for _, err := range []error{d.Define(t.Context(), s), d.Start(t.Context(), s.ID)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(r.dir, s.ID, specFile), []byte(`{"id": "ins-`), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := d.List(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != s.ID || all[0].State != compute.Running {
		t.Errorf("the list: %+v, %v", all, err)
	}
	if err := d.Start(t.Context(), s.ID); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a start: %v", err)
	}
	if _, err := d.Stop(t.Context(), s.ID, 0); err != nil {
		t.Errorf("a stop: %v", err)
	}
	for _, err := range []error{d.Define(t.Context(), s), d.Start(t.Context(), s.ID), d.Delete(t.Context(), s.ID)} {
		if err != nil {
			t.Errorf("defined anew: %v", err)
		}
	}
}

// A machine that stays stopped has no process, and a pid file that a dead one
// left, whoever has its number now, is nobody's.
func TestStalePidFile(t *testing.T) {
	needQEMU(t)
	r := newRig(t)
	d := r.open(t)
	defer d.Close()
	s := compute.Spec{ID: "ins-A", CPUs: 1, Memory: 32 << 20, Disks: []compute.Disk{r.disk(t, "vol-A")}}
	if err := d.Define(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	bystander := exec.Command("sleep", "1000")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = bystander.Process.Kill() // it is ours
		_ = bystander.Wait()
	}()
	alive := func() {
		t.Helper()
		if err := bystander.Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("the process whose number stands in the pid file: %v", err)
		}
	}
	pid := filepath.Join(r.dir, s.ID, pidFile)
	if err := os.WriteFile(pid, []byte(strconv.Itoa(bystander.Process.Pid)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := d.Describe(t.Context(), s.ID); err != nil || m.State != compute.Stopped {
		t.Errorf("%+v, %v", m, err)
	}
	if stopped, err := d.Stop(t.Context(), s.ID, time.Hour); err != nil || stopped.Forced {
		t.Errorf("%+v, %v", stopped, err)
	}
	alive()
	if err := d.Start(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if err := d.Delete(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	alive()
}

// The guest boots from the first disk, and what it prints is kept over its end
// and the next start.
func TestConsole(t *testing.T) {
	needQEMU(t)
	r := newRig(t)
	d := r.open(t)
	defer d.Close()
	s := compute.Spec{ID: "ins-A", CPUs: 1, Memory: 32 << 20, Disks: []compute.Disk{r.disk(t, "vol-FIRST"), r.disk(t, "vol-OTHER")}}
	if err := d.Define(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	printed := func(off int64) string {
		t.Helper()
		c, err := d.Console(t.Context(), s.ID, off)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(c)
		if err := errors.Join(err, c.Close()); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	want := ""
	for range 2 {
		if err := d.Start(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		want += "vol-FIRST\n"
		for deadline := time.Now().Add(time.Minute); printed(0) != want; time.Sleep(look) {
			if time.Now().After(deadline) {
				t.Fatalf("the console has %q, want %q", printed(0), want)
			}
		}
		if stopped, err := d.Stop(t.Context(), s.ID, 100*time.Millisecond); err != nil || !stopped.Forced {
			t.Errorf("a guest that does not listen: %+v, %v", stopped, err)
		}
	}
	if got := printed(-6); got != "FIRST\n" {
		t.Errorf("its end is %q", got)
	}
	if got := printed(int64(len(want))); got != "" {
		t.Errorf("behind its end there is %q", got)
	}
	// A guest that prints for ever takes a bounded part of the disk.
	name := filepath.Join(r.dir, s.ID, consoleLog)
	long := bytes.Repeat([]byte("0123456789abcdef"), 2*consoleMost/16)
	if err := errors.Join(os.WriteFile(name, long, 0o600), trimConsole(name)); err != nil {
		t.Fatal(err)
	}
	if got := printed(0); len(got) < consoleLess || len(got) > consoleLess+blockSize || !strings.HasSuffix(string(long), got) {
		t.Errorf("after trimming %d bytes are left", len(got))
	}
	if err := d.Delete(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
}
