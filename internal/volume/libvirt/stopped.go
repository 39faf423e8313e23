package virtvolume

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
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

// serve opens a disk by its file. QEMU's locks keep its machine from starting
// while it is writable. errs.Busy: somebody has the file open for writing.
func (d *Driver) serve(ctx context.Context, p place, k libvirt.Disk, dir string, writable bool) (*server, error) {
	socket := filepath.Join(dir, k.Target+".nbd")
	// Never a shell, and a path that begins with - or holds a colon is one.
	args := []string{"--socket=" + socket, "--shared=4", "--format=" + k.Format, "--discard=unmap", "--cache=writeback", "--export-name=" + k.Target}
	if !writable {
		args = append(args, "--read-only")
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "qemu-nbd", append(args, "--", fileName(k.Path))...)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "volume %s: qemu-nbd cannot be run (Debian: apt install qemu-utils), so the disk of a stopped machine cannot be read", p.id)
	}
	s := &server{cmd: cmd, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		_ = cmd.Wait() // it says why it ended, or was told to
	}()
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

// fileName is a path as QEMU takes it: it is absolute, so no option; a colon
// would make it a protocol.
func fileName(path string) string {
	if strings.Contains(path, ":") {
		return "file:" + path
	}
	return path
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

// print tells whether anybody wrote to a file: all times and sizes of it.
type print struct {
	ino, size, blocks uint64
	mtime, ctime      unix.Timespec
}

func printOf(path string) (print, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return print{}, err
	}
	return print{st.Ino, uint64(st.Size), uint64(st.Blocks), st.Mtim, st.Ctim}, nil
}
