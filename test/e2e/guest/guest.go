// Package guest runs a small Linux machine in QEMU for tests: a kernel of
// Debian, busybox, and the programs that a test names, all in an initramfs.
// It boots in a few seconds, without KVM, root or a disk, and runs commands
// that the test sends over a serial port.
//
// The kernel is unpacked from its package into tmp/guest of the repository,
// never installed. A test is skipped, with the reason, where the packages or
// QEMU cannot be had.
//
// Invariants:
//   - a QEMU ends with its test, also when that is killed;
//   - every boot and every command ends within a limit; one that does not
//     fails the test and shows the kernel's last words.
package guest

import (
	"bufio"
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Config is what one guest has.
type Config struct {
	// Modules of the kernel beyond virtio's, each with its parameters if it
	// has any: "ext4", "nbd nbds_max=1". What they need comes with them.
	Modules []string
	// Programs of the host or of Packages, by name, with their libraries.
	Programs []string
	// Packages of Debian that have some of the programs or libraries. They
	// are fetched into the cache and not installed.
	Packages []string
	// Files of the host by their path in the guest. Those that may be
	// executed there are programs, too.
	Files map[string]string
	// QEMU has further arguments: disks, ports, a QMP socket.
	QEMU []string
	// Network connects eth0 to a network with only the host in it, whose
	// loopback is at Host.
	Network bool
}

// Host is the address of the host's loopback in a guest with Network.
const Host = "10.0.2.2"

const (
	bootLimit    = 2 * time.Minute // takes 3 s where nobody else runs
	commandLimit = 2 * time.Minute
	stopLimit    = 30 * time.Second
)

//go:embed init.sh
var initScript []byte

// Guest is one machine. Its methods may be called by several goroutines.
type Guest struct {
	dir  string
	cmd  *exec.Cmd
	gone chan struct{} // closed when QEMU has ended

	shell
}

// Start boots a guest, which ends with the test at the latest.
func Start(t testing.TB, config Config) *Guest {
	t.Helper()
	p := find(t, config, nil)
	g := &Guest{dir: t.TempDir(), gone: make(chan struct{})}
	initramfs := filepath.Join(g.dir, "initramfs")
	if err := p.pack(initramfs, config); err != nil {
		t.Fatalf("make the guest's initramfs: %v", err)
	}
	args := append([]string{
		// KVM that is there need not work; TCG always does.
		"-accel", "tcg", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", p.kernel.image, "-initrd", initramfs, "-append", "console=ttyS0 quiet panic=-1 no_timer_check",
		"-serial", "file:" + g.console(), "-serial", "stdio",
	}, config.QEMU...)
	if config.Network {
		args = append(args, "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=")
	}
	g.cmd = exec.Command(p.qemu, args...)
	// A test binary that is killed must not leave guests behind.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	g.boot(t)
	return g
}

// boot starts QEMU and waits until the guest takes commands.
func (g *Guest) boot(t testing.TB) {
	t.Helper()
	var stderr bytes.Buffer
	g.cmd.Stderr = &stderr
	in, err := g.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, w, err := os.Pipe() // not StdoutPipe, which Wait closes under the reader
	if err != nil {
		t.Fatal(err)
	}
	g.cmd.Stdout = w
	g.shell.in, g.shell.out = in, bufio.NewReader(out)
	err = g.cmd.Start()
	_ = w.Close() // QEMU has its own
	if err != nil {
		t.Fatalf("start %s: %v", g.cmd, err)
	}
	go func() {
		_ = g.cmd.Wait() // how it ended does not matter; what it said does
		close(g.gone)
	}()
	t.Cleanup(func() {
		g.Kill()
		_ = out.Close() // only read from
		if t.Failed() {
			t.Logf("end of the guest's console:\n%s", g.consoleTail())
		}
	})
	if line, err := g.line(bootLimit); line != "ready" {
		g.Kill()
		t.Fatalf("the guest did not boot: it said %q, %v\nQEMU: %s", line, err, stderr.String())
	}
}

// Run runs a command of busybox's shell and returns what it printed, to both
// outputs, and its exit code. What it leaves running goes on.
func (g *Guest) Run(t testing.TB, command string) (output string, code int) {
	t.Helper()
	late := time.AfterFunc(commandLimit, g.Kill)
	defer late.Stop()
	output, code, err := g.shell.run(command)
	if err != nil {
		t.Fatalf("the guest did not end %q: %v", command, err)
	}
	return output, code
}

// Must is Run for a command that has to succeed; the output comes without the
// last line's end.
func (g *Guest) Must(t testing.TB, command string) string {
	t.Helper()
	out, code := g.Run(t, command)
	if code != 0 {
		t.Fatalf("in the guest %q ended with %d:\n%s", command, code, out)
	}
	return strings.TrimSuffix(out, "\n")
}

// line reads a line from the guest; one that is late loses its QEMU.
func (g *Guest) line(limit time.Duration) (string, error) {
	late := time.AfterFunc(limit, g.Kill)
	line, err := g.shell.out.ReadString('\n')
	if !late.Stop() {
		err = fmt.Errorf("not within %v", limit)
	}
	return strings.TrimSuffix(line, "\n"), err
}

// Stop switches the guest off, without a sync or an unmount.
func (g *Guest) Stop(t testing.TB) {
	t.Helper()
	if _, err := g.shell.send("poweroff -f"); err != nil {
		t.Fatalf("the guest cannot be told to stop: %v", err)
	}
	timer := time.NewTimer(stopLimit)
	defer timer.Stop()
	select {
	case <-g.gone:
	case <-timer.C:
		g.Kill()
		t.Fatalf("the guest did not switch off within %v", stopLimit)
	}
}

// Kill is kill -9 of its QEMU, after which that is gone.
func (g *Guest) Kill() {
	_ = g.cmd.Process.Kill() // that it has ended already is as well
	<-g.gone
}

func (g *Guest) console() string { return filepath.Join(g.dir, "console") }

// consoleTail is what the kernel said last.
func (g *Guest) consoleTail() string {
	b, err := os.ReadFile(g.console())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-16000):])
}
