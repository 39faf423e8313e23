package nbd

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// needs skips the test unless the programs are there.
func needs(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

// run runs a program of somebody else's within a minute.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func try(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "timeout", append([]string{"60", name}, args...)...).CombinedOutput()
	return string(out), err
}

// startServer starts somebody else's server and waits until it listens: its
// socket is a file before that.
func startServer(t testing.TB, socket string, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 500 {
		if listens(t, socket) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s does not listen on %s", name, socket)
}

// listens asks the kernel, as a connection would end a server that serves only
// one client.
func listens(t testing.TB, socket string) bool {
	t.Helper()
	sockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	const accepts = "00010000" // __SO_ACCEPTCON of include/linux/net.h
	for line := range strings.Lines(string(sockets)) {
		f := strings.Fields(line)
		if len(f) == 8 && f[3] == accepts && f[7] == socket {
			return true
		}
	}
	return false
}

func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

type fioJob struct {
	name, rw, bs string
	depth        int
}

// fio measures one job on a socket's default export, for some seconds.
func fio(b *testing.B, socket string, j fioJob, seconds int) (iops, mibs float64) {
	b.Helper()
	out := run(b, "fio", "--output-format=json", "--name=x", "--ioengine=nbd", "--uri=nbd+unix:///?socket="+socket,
		"--rw="+j.rw, "--bs="+j.bs, fmt.Sprint("--iodepth=", j.depth), fmt.Sprint("--runtime=", seconds), "--time_based", "--randseed=7", "--size=512m")
	var r struct {
		Jobs []struct{ Read, Write struct{ Iops, Bw float64 } }
	}
	_, out, _ = strings.Cut(out, "\n") // fio says first whom it is connected to
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r.Jobs) != 1 {
		b.Fatalf("%v in fio's output: %.200s", err, out)
	}
	job := r.Jobs[0]
	return job.Read.Iops + job.Write.Iops, (job.Read.Bw + job.Write.Bw) / 1024
}

// BenchmarkFio puts the server beside qemu-nbd and nbdkit, each on a raw file
// of its own in the page cache (a second write of a page is cheaper than the
// first), in turn. Run it with -benchtime 1x; with TMPDIR on a tmpfs it
// measures the servers and not the disk.
func BenchmarkFio(b *testing.B) {
	needs(b, "fio", "qemu-nbd", "nbdkit")
	const size = 512 << 20
	var disks []*file
	for range 3 {
		disk := openFile(b, size)
		if err := fillFile(disk, size); err != nil {
			b.Fatal(err)
		}
		disks = append(disks, disk)
	}
	ours := serve(b, Limits{})
	ours.add(everything("", size), disks[0])
	dir := shortDir(b)
	qemu, kit := filepath.Join(dir, "q"), filepath.Join(dir, "k")
	startServer(b, qemu, "qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", qemu, disks[1].f.Name())
	startServer(b, kit, "nbdkit", "-f", "-U", kit, "file", disks[2].f.Name())
	for _, j := range []fioJob{
		{"randread-4k-1", "randread", "4k", 1}, {"randread-4k-32", "randread", "4k", 32},
		{"randwrite-4k-1", "randwrite", "4k", 1}, {"randwrite-4k-32", "randwrite", "4k", 32},
		{"read-1m-1", "read", "1m", 1}, {"read-1m-8", "read", "1m", 8},
		{"write-1m-1", "write", "1m", 1}, {"write-1m-8", "write", "1m", 8},
	} {
		for _, s := range []struct{ name, socket string }{{"ours", ours.path}, {"qemu-nbd", qemu}, {"nbdkit", kit}} {
			b.Run(j.name+"/"+s.name, func(b *testing.B) {
				var iops, mibs float64
				for b.Loop() {
					iops, mibs = fio(b, s.socket, j, 2)
				}
				b.ReportMetric(iops, "iops")
				b.ReportMetric(mibs, "MiB/s")
			})
		}
	}
}

func fillFile(disk *file, size int64) error {
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(i*7 + i>>9)
	}
	for off := int64(0); off < size; off += int64(len(p)) {
		if _, err := disk.f.WriteAt(p, off); err != nil {
			return err
		}
	}
	return nil
}
