// Package powercut is a disk with a volatile cache whose power can be cut at
// any moment, again and again, after one run.
//
// A program runs on a real ext4 whose disk logs every write and every flush.
// Afterwards the log is replayed up to any flush, with none, some or parts of
// the writes that came after it, and what ext4 makes of that is mounted where
// the program's disk was.
//
// Needs root, qemu-nbd, nbdfuse and a loop device. Everything lies in memory;
// what is mounted and started is taken down even if the test process is killed.
// For one goroutine.
package powercut

import (
	"bufio"
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

//go:embed stack.sh
var stackScript string

// stackLimit bounds each wait for the stack of devices.
const stackLimit = 60 * time.Second

// Position is a moment of the log: how many bytes it had. An entry that was
// durable at that moment ends at or before it.
type Position int64

// Disk is the ext4 and its log.
type Disk struct {
	Mount string // where the program finds its filesystem

	dir    string
	loop   loopDevice // the same for the run and for every cut, as a disk is after a reboot
	stack  *exec.Cmd
	stdin  io.WriteCloser
	lines  chan string // what the stack says
	stderr bytes.Buffer
	log    *os.File
}

// Missing says what this machine lacks for a Disk; "" = nothing.
func Missing() string {
	if os.Getuid() != 0 {
		return "mounting needs root"
	}
	for _, tool := range []string{"qemu-nbd", "nbdfuse", "losetup", "mkfs.ext4", "mountpoint", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "no " + tool + " here (scripts/setup.sh test-long installs it)"
		}
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			return "no " + dev + " here"
		}
	}
	return ""
}

// New makes and mounts a disk of the given size and takes it down with the
// test. It skips the test if the machine lacks something.
func New(t testing.TB, sizeBytes int64) *Disk {
	t.Helper()
	if lacks := Missing(); lacks != "" {
		t.Skip("skipped: " + lacks)
	}
	dir, err := os.MkdirTemp("/dev/shm", "cairn-powercut-")
	if err != nil {
		t.Skipf("skipped: no folder in memory: %v", err)
	}
	d := &Disk{Mount: filepath.Join(dir, "mnt"), dir: dir, lines: make(chan string, 4)}
	t.Cleanup(func() { d.remove(t) })
	if d.loop, err = addLoop(); err != nil {
		t.Skipf("skipped: no loop device can be made here: %v", err)
	}
	d.stack = exec.Command("bash", "-c", stackScript, "stack.sh", dir, fmt.Sprint(sizeBytes), d.loop.path())
	// Ctrl-C reaches the test only; the stack then sees the end of its stdin.
	d.stack.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.stack.Stderr = &d.stderr
	// Its tools have its stderr, too; a killed one must not hold up Wait.
	d.stack.WaitDelay = stackLimit
	if d.stdin, err = d.stack.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := d.stack.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.stack.Start(); err != nil {
		t.Fatalf("start the stack of devices: %v", err)
	}
	go func() {
		defer close(d.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			d.lines <- s.Text()
		}
	}()
	if said := d.hear(); said != "ready" {
		err := d.end()
		t.Skipf("skipped: no logged ext4 can be made here: %q, %v: %s", said, err, d.stderr.String())
	}
	if d.log, err = os.Open(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	return d
}

// hear is the next line of the stack; "" when it has ended or says nothing.
func (d *Disk) hear() string {
	timer := time.NewTimer(stackLimit)
	defer timer.Stop()
	select {
	case line := <-d.lines:
		return strings.TrimSpace(line)
	case <-timer.C:
		return ""
	}
}

// end lets the stack clean up and waits for it.
func (d *Disk) end() error {
	if d.stack == nil || d.stack.Process == nil {
		return nil
	}
	_ = d.stdin.Close() // the end of its stdin is what it waits for
	for d.hear() != "" {
	}
	err := d.stack.Wait()
	d.stack = nil
	return err
}

func (d *Disk) remove(t testing.TB) {
	if err := d.end(); err != nil {
		t.Errorf("take the disk down: %v: %s", err, d.stderr.String())
	}
	if d.log != nil {
		_ = d.log.Close() // only read
	}
	if d.loop != 0 {
		if err := d.loop.remove(); err != nil {
			t.Errorf("remove the loop device: %v", err)
		}
	}
	if err := os.RemoveAll(d.dir); err != nil {
		t.Errorf("remove the disk: %v", err)
	}
}

// Now is the present moment. Whatever the disk had made durable before the
// call lies before it; some that is not durable may, too.
func (d *Disk) Now() (Position, error) {
	st, err := d.log.Stat()
	if err != nil {
		return 0, fmt.Errorf("measure the log: %w", err)
	}
	return Position(st.Size()), nil
}

// Finish unmounts the disk for good and gives what it logged. It checks that
// the whole log, replayed, is the disk to the last byte.
func (d *Disk) Finish() (*History, error) {
	if _, err := io.WriteString(d.stdin, "down\n"); err != nil {
		return nil, err
	}
	if said := d.hear(); said != "down" {
		return nil, fmt.Errorf("the disk does not come down: %q: %s", said, d.stderr.String())
	}
	entries, err := readLog(d.log)
	if err != nil {
		return nil, err
	}
	h := &History{disk: d, entries: entries}
	for i, e := range entries {
		if e.flush {
			h.flushes = append(h.flushes, i)
		}
	}
	return h, h.checkWhole()
}
