// Package libvirttest runs a libvirt daemon for tests: a real one, which sees
// nothing of the host's own and ends, with all its machines, when the test does.
package libvirttest

import (
	"context"
	_ "embed"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"cairn/internal/libvirt"
)

//go:embed daemon.sh
var script string

// Daemon is a libvirt daemon under test.
type Daemon struct {
	URI string // as libvirt.Parse takes it
	libvirt.Daemon
	socket string
}

// startTime is how long the daemon may take to answer; it asks QEMU what it can
// do first, which takes seconds.
const startTime = 2 * time.Minute

// Start runs a daemon until the test's end. It skips, and says why, where there
// is none or nobody may make namespaces.
func Start(t *testing.T) Daemon {
	t.Helper()
	return start(t, "")
}

// StartIsolated is Start of a daemon that gives each QEMU a /dev of its own, as
// libvirt does by itself.
func StartIsolated(t *testing.T) Daemon {
	t.Helper()
	return start(t, `"mount"`)
}

func start(t *testing.T, qemuNamespaces string) Daemon {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a libvirt daemon of its own needs root, for namespaces")
	}
	for _, name := range []string{"libvirtd", "virtlogd", "unshare", "qemu-system-x86_64"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed (Debian: apt install libvirt-daemon libvirt-daemon-driver-qemu qemu-system-x86)", name)
		}
	}
	namespaces := []string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc"}
	if out, err := exec.CommandContext(t.Context(), "unshare", append(namespaces, "true")...).CombinedOutput(); err != nil {
		t.Skipf("no namespaces can be made here: %v: %s", err, out)
	}
	// Not t.TempDir: names of sockets are short.
	dir, err := os.MkdirTemp("", "virt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	log, err := os.Create(filepath.Join(dir, "said"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), "unshare", append(namespaces, "bash", "-c", script, "daemon.sh", dir, qemuNamespaces)...)
	cmd.Stdout, cmd.Stderr = log, log
	stdin, err := cmd.StdinPipe() // the namespace ends with it, also if this process is killed
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it is killed, or its log says why it ended
	}()
	t.Cleanup(func() {
		err := stdin.Close()
		<-ended
		if err := errors.Join(err, log.Close()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("the daemon said:\n%s", said)
		}
	})
	d := Daemon{socket: filepath.Join(dir, "run", "libvirt-sock")}
	d.URI = "qemu:///system?socket=" + d.socket
	if d.Daemon, err = libvirt.Parse(d.URI); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startTime)
	defer cancel()
	for {
		err := d.Do(ctx, func(l *rpc.Libvirt) error {
			_, err := l.ConnectGetLibVersion()
			return err
		})
		if err == nil {
			return d
		}
		select {
		case <-ended:
			cancel()
		case <-time.After(50 * time.Millisecond):
		}
		if ctx.Err() != nil {
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("libvirtd does not answer: %v\n%s", err, said)
		}
	}
}

// Define makes a domain of its description.
func (d Daemon) Define(t *testing.T, xml string) rpc.Domain {
	t.Helper()
	var dom rpc.Domain
	d.do(t, func(l *rpc.Libvirt) (err error) {
		dom, err = l.DomainDefineXML(xml)
		return err
	})
	return dom
}

func (d Daemon) do(t *testing.T, call func(*rpc.Libvirt) error) {
	t.Helper()
	if err := d.Do(t.Context(), call); err != nil {
		t.Fatal(err)
	}
}
