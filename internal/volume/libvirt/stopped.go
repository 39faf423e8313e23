package virtvolume

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
	"cairn/internal/libvirt"
	"cairn/internal/nbd"
)

// server is a qemu-nbd of a disk whose machine is stopped. It ends with its last
// connection, so also with this process.
type server struct {
	cmd    *exec.Cmd
	ended  chan struct{} // closed when it has
	client *nbd.Client
}

// serveWait is how long a qemu-nbd may take to listen.
const serveWait = 20 * time.Second

// serve opens a disk by its file. QEMU's locks keep the machine of a file, not of
// a device, from starting while it is writable; one that is only read keeps nobody
// from anything. errs.Busy: somebody else has the file open that is to be written.
func (d *Driver) serve(ctx context.Context, p place, k libvirt.Disk, dir string, writable bool) (*server, error) {
	socket := filepath.Join(dir, k.Target+".nbd")
	// Never a shell, and a path that begins with - or holds a colon is one.
	args := []string{"--socket=" + socket, "--shared=4", "--discard=unmap", "--cache=writeback", "--export-name=" + k.Target}
	if writable {
		args = append(args, "--format="+k.Format, "--", fileName(k.Path))
	} else {
		args = append(args, "--read-only", "--image-opts", sharedOptions(k))
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "qemu-nbd", args...)
	// Until somebody connects it would outlive this process.
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var said strings.Builder
	cmd.Stderr = &said
	s := &server{cmd: cmd, ended: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(s.ended)
		// What dies is, for Pdeathsig, the thread that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it says why it ended, or was told to
		}
	}()
	if err := <-started; err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "volume %s: qemu-nbd cannot be run (Debian: apt install qemu-utils), so the disk of a stopped machine cannot be read", p.id)
	}
	dialing, cancel := context.WithTimeout(ctx, serveWait)
	defer cancel()
	for {
		c, err := nbd.Dial(dialing, nbd.URI{Network: "unix", Address: socket, Export: k.Target}, nbd.Options{Contexts: []string{nbd.BaseAllocation}, Attempts: 1})
		if err == nil {
			s.client = c
			return s, nil
		}
		select {
		case <-s.ended:
			return nil, p.unopened(said.String())
		case <-dialing.Done():
			s.stop()
			return nil, errors.Join(p.unopened("it does not listen"), context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// unopened explains what qemu-nbd said. Paths are in the wrapped error only.
func (p place) unopened(said string) error {
	err := errors.New("qemu-nbd: " + strings.TrimSpace(said))
	if strings.Contains(said, "lock") {
		return errs.Wrap(errs.Busy, err, "volume %s: somebody has its disk %s open; its machine may have been started, please try later", p.id, p.target)
	}
	return errs.Wrap(errs.Unavailable, err, "volume %s: its disk %s cannot be opened; see the server's log", p.id, p.target)
}

// stop ends the server whatever it does.
func (s *server) stop() {
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.ended
}

// close lets go of the disk: when it returns nothing has it open.
func (s *server) close() error {
	err := s.client.Close()
	select {
	case <-s.ended:
	case <-time.After(serveWait):
		s.stop()
	}
	return err
}
