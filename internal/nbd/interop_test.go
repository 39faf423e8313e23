package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/errs"
)

// Other people's clients against our server, on a real file.

// image makes a raw file with data, zeroes and holes.
func image(t *testing.T, size int64) string {
	t.Helper()
	f := openFile(t, size)
	p := make([]byte, 300<<10)
	for i := range p {
		p[i] = byte(i>>8) ^ byte(i*13)
	}
	for _, off := range []int64{0, 1<<20 + 4096, size/2 + 512, size - int64(len(p))} {
		if _, err := f.f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.f.WriteAt(make([]byte, 1<<20), 4<<20); err != nil { // zeroes that are no hole
		t.Fatal(err)
	}
	return f.f.Name()
}

func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Errorf("%s and %s differ", filepath.Base(a), filepath.Base(b))
	}
}

// serveFile serves a file of that size.
func serveFile(t *testing.T, size int64) (*served, *file) {
	t.Helper()
	s := serve(t, Limits{})
	f := openFile(t, size)
	s.add(everything("v", size), f)
	return s, f
}

func TestNbdinfo(t *testing.T) {
	needs(t, "nbdinfo")
	s, f := serveFile(t, 8<<20)
	if _, err := f.f.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 2<<20); err != nil {
		t.Fatal(err)
	}
	cfg := everything("other", 4096)
	cfg.Description, cfg.ReadOnly, cfg.BlockSize = "read me", true, BlockSize{Min: 512}
	s.add(cfg, newMemory(4096))
	uri := s.uri("v").String()
	if got := strings.TrimSpace(run(t, "nbdinfo", "--size", uri)); got != "8388608" {
		t.Errorf("size %s", got)
	}
	for _, can := range []string{"cache", "df", "fast-zero", "flush", "fua", "multi-conn", "trim", "zero"} {
		run(t, "nbdinfo", "--can", can, uri)
	}
	var info struct {
		Exports []struct {
			Name        string `json:"export-name"`
			Description string
			ReadOnly    bool  `json:"is_read_only"`
			Size        int64 `json:"export-size"`
			Minimum     int64 `json:"block_size_minimum"`
			Contexts    []string
		}
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--list", "--json", s.uri("").String())), &info); err != nil || len(info.Exports) != 2 {
		t.Fatalf("list %+v, %v", info, err)
	}
	if e := info.Exports[0]; e.Name != "other" || e.Description != "read me" || !e.ReadOnly || e.Size != 4096 || e.Minimum != 512 {
		t.Errorf("export %+v", e)
	}
	var extents []struct {
		Offset, Length int64
		Type           uint32
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--map", "--json", uri)), &extents); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(extents); got != "[{0 2097152 3} {2097152 1048576 0} {3145728 5242880 3}]" {
		t.Errorf("map %s", got)
	}
	if out, err := try(t, "nbdinfo", s.uri("nobody").String()); err == nil {
		t.Errorf("an export that is not there: %s", out)
	}
}

func TestNbdcopy(t *testing.T) {
	needs(t, "nbdcopy")
	const size = 32 << 20
	src, dst := image(t, size), filepath.Join(t.TempDir(), "back.raw")
	s, f := serveFile(t, size)
	if err := fillFile(f, size); err != nil {
		t.Fatal(err)
	}
	run(t, "nbdcopy", "--flush", "--connections=4", src, s.uri("v").String())
	sameFiles(t, src, f.f.Name())
	run(t, "nbdcopy", "--requests=8", s.uri("v").String(), dst)
	sameFiles(t, src, dst)
	// From one of our exports to another, holes and all.
	other := openFile(t, size)
	s.add(everything("w", size), other)
	run(t, "nbdcopy", "--flush", "--destination-is-zero", s.uri("v").String(), s.uri("w").String())
	sameFiles(t, src, other.f.Name())
}

func TestQemuImg(t *testing.T) {
	needs(t, "qemu-img")
	const size = 32 << 20
	src := image(t, size)
	s, f := serveFile(t, size)
	uri := s.uri("v").String()
	if out := run(t, "qemu-img", "info", uri); !strings.Contains(out, "32 MiB") {
		t.Errorf("info: %s", out)
	}
	run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-m", "8", "-W", src, uri)
	sameFiles(t, src, f.f.Name())
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, uri)
	qcow2 := filepath.Join(t.TempDir(), "v.qcow2")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, qcow2)
	run(t, "qemu-img", "compare", src, qcow2)
	var extents []struct {
		Start, Length int64
		Zero, Data    bool
	}
	if err := json.Unmarshal([]byte(run(t, "qemu-img", "map", "--output=json", "-f", "raw", uri)), &extents); err != nil {
		t.Fatal(err)
	}
	for _, e := range extents {
		p := make([]byte, e.Length)
		if err := f.ReadAt(t.Context(), p, e.Start); err != nil || (e.Zero && !allZero(p)) {
			t.Errorf("map says %+v, %v", e, err)
		}
	}
	// A qcow2 image lives on an export as on a disk.
	s.add(everything("q", size), openFile(t, size))
	run(t, "qemu-img", "create", "-f", "qcow2", s.uri("q").String(), "64M")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 33M 1M", "-c", "discard 33M 64k", "-c", "read -P 7 34500k 4k", s.uri("q").String())
	run(t, "qemu-img", "check", "-f", "qcow2", s.uri("q").String())
}

func TestQemuIO(t *testing.T) {
	needs(t, "qemu-io")
	const size = 8 << 20
	s, f := serveFile(t, size)
	cfg := everything("ro", size)
	cfg.ReadOnly = true
	s.add(cfg, f)
	out := run(t, "qemu-io", "-f", "raw",
		"-c", "write -P 1 0 1M", "-c", "write -f -P 2 512k 4k", "-c", "write -z 256k 64k", "-c", "write -z -u 320k 64k", "-c", "discard 128k 64k",
		"-c", "aio_write -P 3 2M 1M", "-c", "aio_write -P 4 3M 1M", "-c", "aio_flush", "-c", "flush",
		"-c", "read -P 1 0 128k", "-c", "read -P 0 256k 128k", "-c", "read -P 2 512k 4k", "-c", "read -P 3 2M 1M", "-c", "read -P 4 3M 1M",
		"-c", "map", s.uri("v").String())
	if strings.Contains(strings.ToLower(out), "fail") || strings.Contains(out, "rror") {
		t.Errorf("qemu-io: %s", out)
	}
	if out, err := try(t, "qemu-io", "-f", "raw", "-r", "-c", "read -P 1 0 64k", s.uri("ro").String()); err != nil {
		t.Errorf("read-only: %v %s", err, out)
	}
	if out, err := try(t, "qemu-io", "-f", "raw", "-c", "write 0 64k", s.uri("ro").String()); err == nil {
		t.Errorf("wrote to a read-only export: %s", out)
	}
}

// fio writes with checksums in every block, and reads them all back.
func TestFioVerify(t *testing.T) {
	needs(t, "fio")
	s, _ := serveFile(t, 64<<20)
	uri := s.uri("v").String()
	common := []string{"--ioengine=nbd", "--uri=" + uri, "--verify=crc32c", "--verify_fatal=1", "--randrepeat=0", "--verify_state_save=0", "--group_reporting"}
	for name, args := range map[string][]string{
		"random":    {"--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0", "--iodepth=32", "--size=16m", "--io_size=16m"},
		"mixed":     {"--rw=randrw", "--bs=4k", "--iodepth=16", "--offset=16m", "--size=8m"},
		"trim":      {"--rw=randtrimwrite", "--bs=4k", "--iodepth=8", "--offset=24m", "--size=4m"},
		"multiconn": {"--rw=randwrite", "--bs=8k", "--iodepth=16", "--numjobs=4", "--offset=32m", "--offset_increment=8m", "--size=8m"},
		"large":     {"--rw=write", "--bs=4m", "--iodepth=4", "--offset=0", "--size=32m"},
	} {
		out := run(t, "fio", append(append([]string{"--name=" + name}, common...), args...)...)
		if !strings.Contains(out, "err= 0") || strings.Contains(out, "verify:") {
			t.Errorf("%s: %s", name, out)
		}
	}
}

// Our client against other people's servers.

func nbdkit(t *testing.T, args ...string) URI {
	t.Helper()
	needs(t, "nbdkit")
	uri := URI{Network: "unix", Address: filepath.Join(shortDir(t), "k")}
	startServer(t, uri.Address, "nbdkit", append([]string{"-f", "-U", uri.Address}, args...)...)
	return uri
}

func dialReal(t *testing.T, uri URI, opt Options) *Client {
	t.Helper()
	c, err := Dial(t.Context(), uri, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// modelAgainst runs the model against a server whose export is all zeroes.
func modelAgainst(t *testing.T, uri URI) {
	t.Helper()
	m := &model{t: t}
	for range 2 {
		m.clients = append(m.clients, dialReal(t, uri, Options{Contexts: []string{BaseAllocation}}))
	}
	c := m.clients[0]
	if len(c.Contexts()) == 0 || c.info.flags&(flagTrim|flagWriteZeroes|flagFlush) != flagTrim|flagWriteZeroes|flagFlush {
		t.Fatalf("the server offers flags %#x and contexts %q", c.info.flags, c.Contexts())
	}
	m.oracle, m.unit = make([]byte, c.Size()), c.BlockSize().Min
	m.run(newSeed(), 4, modelSteps()/2)
}

func TestModelAgainstNbdkit(t *testing.T) {
	needs(t, "nbdkit")
	for name, args := range map[string][]string{
		"memory":      {"memory", "4M"},
		"other hello": {"--mask-handshake=1", "memory", "4M"},
		"block sizes": {"--filter=blocksize-policy", "memory", "4M", "blocksize-minimum=1024", "blocksize-preferred=4096", "blocksize-maximum=16K", "blocksize-error-policy=error"},
		"delayed":     {"--filter=delay", "memory", "4M", "rdelay=1ms", "wdelay=1ms"},
		"one at once": {"--filter=noparallel", "memory", "4M"},
		"multi-conn":  {"--filter=multi-conn", "memory", "4M", "multi-conn-mode=emulate"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			modelAgainst(t, nbdkit(t, args...))
		})
	}
}

func TestNbdkitKinds(t *testing.T) {
	needs(t, "nbdkit")
	p := make([]byte, 1000)
	c := dialReal(t, nbdkit(t, "--no-sr", "pattern", "1M"), Options{Contexts: []string{BaseAllocation}})
	if err := c.ReadAt(t.Context(), p, 8); err != nil || p[15] != 8+8 || len(c.Contexts()) != 0 {
		t.Errorf("simple replies: %v, %v", err, p[:16])
	}
	for name, args := range map[string][]string{"oldstyle": {"-o", "null", "1M"}, "newstyle, not fixed": {"--mask-handshake=0", "null", "1M"}} {
		if _, err := Dial(t.Context(), nbdkit(t, args...), Options{}); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c := dialReal(t, nbdkit(t, "-r", "memory", "1M"), Options{}); !c.ReadOnly() {
		t.Error("a read-only export is not known as one")
	}
}

// Errors of single requests are those requests'.
func TestNbdkitErrors(t *testing.T) {
	c := dialReal(t, nbdkit(t, "--filter=error", "memory", "1M", "error-pread=EIO", "error-pread-rate=50%", "error-pwrite=ENOSPC", "error-pwrite-rate=50%"), Options{})
	var good, bad int
	for i := range 400 {
		err, want := c.ReadAt(t.Context(), make([]byte, 512), 0), EIO
		if i%2 == 0 {
			err, want = c.WriteAt(t.Context(), make([]byte, 512), 0, 0), ENOSPC
		}
		switch {
		case err == nil:
			good++
		case errors.Is(err, want):
			bad++
		default:
			t.Fatal(err)
		}
	}
	if good == 0 || bad == 0 {
		t.Errorf("%d good, %d bad", good, bad)
	}
}

func TestNbdkitCancelled(t *testing.T) {
	c := dialReal(t, nbdkit(t, "--filter=delay", "memory", "1M", "rdelay=1"), Options{})
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		if err := c.ReadAt(ctx, make([]byte, 65536), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		cancel()
	}
	if err := c.WriteAt(t.Context(), []byte{1}, 0, FUA); err != nil {
		t.Error(err)
	}
}

func qemuNBD(t *testing.T, args ...string) URI {
	t.Helper()
	needs(t, "qemu-nbd", "qemu-img", "qemu-io")
	uri := URI{Network: "unix", Address: filepath.Join(shortDir(t), "q")}
	startServer(t, uri.Address, "qemu-nbd", append([]string{"-t", "-e", "8", "--discard=unmap", "-k", uri.Address}, args...)...)
	return uri
}

func TestModelAgainstQemuNBD(t *testing.T) {
	needs(t, "qemu-nbd", "qemu-img")
	raw := openFile(t, 4<<20)
	qcow2 := filepath.Join(t.TempDir(), "v.qcow2")
	run(t, "qemu-img", "create", "-f", "qcow2", qcow2, "4M")
	for format, path := range map[string]string{"raw": raw.f.Name(), "qcow2": qcow2} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			modelAgainst(t, qemuNBD(t, "-f", format, path))
		})
	}
}

// A persistent dirty bitmap tells exactly what was written since it was made.
func TestDirtyBitmap(t *testing.T) {
	needs(t, "qemu-nbd", "qemu-img", "qemu-io")
	qcow2 := filepath.Join(t.TempDir(), "v.qcow2")
	run(t, "qemu-img", "create", "-f", "qcow2", qcow2, "16M")
	run(t, "qemu-io", "-c", "write -P 1 0 4M", qcow2)
	run(t, "qemu-img", "bitmap", "--add", "-g", "64k", qcow2, "mark")
	run(t, "qemu-io", "-c", "write -P 2 1M 64k", "-c", "write -P 3 2100k 4k", "-c", "write -P 4 10M 128k", qcow2)
	uri := qemuNBD(t, "-f", "qcow2", "-r", "-B", "mark", qcow2)
	c := dialReal(t, uri, Options{Contexts: []string{BaseAllocation, "qemu:dirty-bitmap:"}})
	if got := fmt.Sprint(c.Contexts()); got != "[base:allocation qemu:dirty-bitmap:mark]" {
		t.Fatalf("contexts %s", got)
	}
	got, err := c.Status(t.Context(), "qemu:dirty-bitmap:mark", 0, c.Size())
	if err != nil {
		t.Fatal(err)
	}
	var dirty []Extent
	for _, e := range got {
		if e.Flags != 0 {
			dirty = append(dirty, e)
		}
	}
	if want := "[{1048576 65536 1} {2097152 65536 1} {10485760 131072 1}]"; fmt.Sprint(dirty) != want {
		t.Errorf("dirty %v, want %s", dirty, want)
	}
	all, err := c.Status(t.Context(), BaseAllocation, 0, c.Size())
	if err != nil || fmt.Sprint(all) != "[{0 4194304 0} {4194304 6291456 3} {10485760 131072 0} {10616832 6160384 3}]" {
		t.Errorf("allocation %v, %v", all, err)
	}
	p := make([]byte, 4096)
	if err := c.ReadAt(t.Context(), p, 2100<<10); err != nil || p[0] != 3 {
		t.Errorf("read %d, %v", p[0], err)
	}
}

// A server that is killed and started again is found.
func TestQemuNBDRestarts(t *testing.T) {
	needs(t, "qemu-nbd")
	disk := image(t, 8<<20)
	socket := filepath.Join(shortDir(t), "q")
	args := []string{"-f", "raw", "-r", "-k", socket, disk} // ends with its last client
	startServer(t, socket, "qemu-nbd", args...)
	c := dialReal(t, URI{Network: "unix", Address: socket}, Options{})
	p := make([]byte, 4096)
	if err := c.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	link := c.slots[0].link
	link.nc.Close()
	<-link.finished
	eventually(t, "qemu-nbd is gone", func() bool {
		_, err := os.Stat(socket)
		return os.IsNotExist(err)
	})
	startServer(t, socket, "qemu-nbd", args...)
	q := make([]byte, 4096)
	if err := c.ReadAt(t.Context(), q, 0); err != nil || !bytes.Equal(p, q) {
		t.Errorf("after the restart: %v", err)
	}
}
