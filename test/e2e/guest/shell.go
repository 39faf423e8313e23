package guest

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// shell runs commands in a guest over a serial port: a line with a tag and the
// command, and for an answer a line with the tag, the exit code and the number
// of bytes that follow. Whatever else comes over the port is passed over.
type shell struct {
	mu  sync.Mutex // one command at a time
	in  io.Writer
	out *bufio.Reader
}

// send tells the guest a command and returns its tag.
func (s *shell) send(command string) (tag string, err error) {
	tag = rand.Text()
	_, err = fmt.Fprintf(s.in, "%s %s\n", tag, base64.StdEncoding.EncodeToString([]byte(command)))
	return tag, err
}

func (s *shell) run(command string) (output string, code int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	tag, err := s.send(command)
	if err != nil {
		return "", 0, err
	}
	return s.answer(tag)
}

// answer reads the answer to the command of a tag.
func (s *shell) answer(tag string) (output string, code int, err error) {
	for {
		line, err := s.out.ReadString('\n')
		if err != nil {
			return "", 0, err
		}
		at := strings.Index(line, "done "+tag+" ")
		if at < 0 {
			continue
		}
		var size int
		if _, err := fmt.Sscanf(line[at+len("done "+tag+" "):], "%d %d", &code, &size); err != nil {
			return "", 0, fmt.Errorf("the guest answered %q: %w", line, err)
		}
		b := make([]byte, size)
		_, err = io.ReadFull(s.out, b)
		return string(b), code, err
	}
}

// Remote is a guest that somebody else runs, from a disk of WriteDisk's, and
// whose serial port is a unix socket. It is for one goroutine.
type Remote struct {
	nc net.Conn
	shell
}

// Dial connects to the socket and waits until the guest takes commands. limit
// bounds that, and every command.
func Dial(socket string, limit time.Duration) (*Remote, error) {
	deadline := time.Now().Add(limit)
	for {
		r, err := dial(socket)
		if err == nil {
			if err = r.greet(min(greetLimit, time.Until(deadline))); err == nil {
				return r, nil
			}
			_ = r.Close() // it was not of use
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("the guest behind %s takes no commands within %v: %w", socket, limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// greetLimit is after which a guest is spoken to anew: what it was told before
// it listened is lost.
const greetLimit = time.Second

// dial connects by way of the folder: a socket's path may have 107 bytes only.
func dial(socket string) (*Remote, error) {
	dir, err := os.Open(filepath.Dir(socket))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	nc, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(socket)))
	if err != nil {
		return nil, err
	}
	return &Remote{nc: nc, shell: shell{in: nc, out: bufio.NewReader(nc)}}, nil
}

func (r *Remote) greet(limit time.Duration) error {
	if err := r.nc.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	// The first line ends whatever half a line somebody else left there.
	if _, err := io.WriteString(r.in, "\n"); err != nil {
		return err
	}
	_, _, err := r.run("true")
	return err
}

// Run is Guest.Run.
func (r *Remote) Run(command string) (output string, code int, err error) {
	if err := r.nc.SetDeadline(time.Now().Add(commandLimit)); err != nil {
		return "", 0, err
	}
	return r.run(command)
}

// Must is Run for a command that has to succeed.
func (r *Remote) Must(command string) (output string, err error) {
	output, code, err := r.Run(command)
	if err == nil && code != 0 {
		err = fmt.Errorf("in the guest %q ended with %d: %s", command, code, output)
	}
	return strings.TrimSuffix(output, "\n"), err
}

// Close leaves the guest alone.
func (r *Remote) Close() error { return r.nc.Close() }
