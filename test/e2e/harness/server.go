package harness

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// startLimit bounds the wait for a server to answer. It is far above what a
// start takes, so that only a server that hangs runs into it.
const startLimit = 60 * time.Second

// stopLimit bounds the wait for a clean stop.
const stopLimit = 60 * time.Second

// Server is one data folder and the process that serves it, if any.
type Server struct {
	Dir    string // its --data-dir
	Addr   string // its --listen address, the same after each restart
	Bin    string
	Extra  []string // further flags of cairn serve
	Starts int

	log  *os.File
	cmd  *exec.Cmd
	dead chan error // gets cmd.Wait's answer, once
	tcp  *Client
	unix *Client
}

// Start runs a server on a new folder below root ("" = the test's own
// temporary folder) and ends it with the test.
func Start(t testing.TB, bin, root string, extra ...string) *Server {
	t.Helper()
	if root == "" {
		root = t.TempDir()
	}
	s := NewServer(t, bin, filepath.Join(root, "data"), filepath.Join(root, "server.log"), extra...)
	s.Run(t)
	return s
}

// NewServer is Start without the start, for a log that lies elsewhere.
func NewServer(t testing.TB, bin, dir, logPath string, extra ...string) *Server {
	t.Helper()
	s := &Server{Dir: dir, Bin: bin, Extra: extra}
	f, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatalf("open the server's log: %v", err)
	}
	s.log = f
	s.Addr = FreeAddr(t)
	s.tcp = newClient(s.BaseURL(), "")
	s.unix = newClient("http://cairn.sock", s.Socket())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the server's log:\n%s", tail(logPath, 6000))
			s.dump(t)
		}
		s.Kill(t)
		_ = f.Close() // only a log
	})
	return s
}

// BaseURL is http://host:port.
func (s *Server) BaseURL() string { return "http://" + s.Addr }

// Socket is the path of the server's unix socket.
func (s *Server) Socket() string { return filepath.Join(s.Dir, "cairn.sock") }

// API speaks over TCP.
func (s *Server) API() *Client { return s.tcp }

// Local speaks over the unix socket.
func (s *Server) Local() *Client { return s.unix }

// Run starts the process and waits until it answers.
func (s *Server) Run(t TB) {
	t.Helper()
	args := append([]string{"serve", "--data-dir", s.Dir, "--listen", s.Addr}, s.Extra...)
	s.cmd = exec.Command(s.Bin, args...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.Env = CleanEnv()
	// A test binary that is killed must not leave servers behind.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", s.Bin, err)
	}
	s.Starts++
	dead := make(chan error, 1)
	go func(c *exec.Cmd) { dead <- c.Wait() }(s.cmd)
	s.dead = dead
	var died error
	ready := Poll(startLimit, func() bool {
		select {
		case err := <-dead:
			died = fmt.Errorf("it ended at once: %v", err)
			return true
		default:
		}
		resp, err := s.tcp.hc.Get(s.BaseURL() + "/healthz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close() // only the status matters
		return resp.StatusCode == http.StatusOK
	})
	if died != nil {
		s.cmd = nil
		t.Fatalf("cairn %q did not start: %v\n%s", args, died, tail(s.log.Name(), 4000))
	}
	if !ready {
		t.Fatalf("cairn %q did not answer /healthz within %v", args, startLimit)
	}
}

// PID is the process id, 0 when it is not running.
func (s *Server) PID() int {
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Kill is kill -9 and waits for the process to be gone.
func (s *Server) Kill(t TB) {
	t.Helper()
	if s.cmd == nil {
		return
	}
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("kill -9 %d: %v", s.cmd.Process.Pid, err)
	}
	<-s.dead
	s.gone()
}

// dump ends a server with SIGQUIT and logs what its goroutines were at.
func (s *Server) dump(t testing.TB) {
	if s.cmd == nil {
		return
	}
	size := len(s.Log(t))
	if err := s.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		return // it has ended
	}
	timer := time.NewTimer(stopLimit)
	defer timer.Stop()
	select {
	case <-s.dead:
		s.gone()
	case <-timer.C:
	}
	const most = 60000
	stacks := s.Log(t)[size:]
	t.Logf("its goroutines:\n%s", stacks[:min(most, len(stacks))])
}

// Stop is SIGTERM; a server that does not end cleanly fails the test.
func (s *Server) Stop(t TB) {
	t.Helper()
	if s.cmd == nil {
		return
	}
	pid := s.cmd.Process.Pid
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("SIGTERM to %d: %v", pid, err)
	}
	timer := time.NewTimer(stopLimit)
	defer timer.Stop()
	select {
	case err := <-s.dead:
		s.gone()
		if err != nil {
			t.Fatalf("after SIGTERM the server ended with %v, want exit code 0", err)
		}
	case <-timer.C:
		t.Fatalf("the server did not end within %v of a SIGTERM", stopLimit)
	}
}

func (s *Server) gone() {
	s.cmd = nil
	s.tcp.hc.CloseIdleConnections()
	s.unix.hc.CloseIdleConnections()
}

// Log is what the server has written so far.
func (s *Server) Log(t TB) string {
	t.Helper()
	b, err := os.ReadFile(s.log.Name())
	if err != nil {
		t.Fatalf("read the server's log: %v", err)
	}
	return string(b)
}

// CleanEnv is the environment without cairn's own variables, so that a
// developer's settings change no test.
func CleanEnv(add ...string) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !bytes.HasPrefix([]byte(kv), []byte("CAIRN_")) {
			env = append(env, kv)
		}
	}
	return append(env, add...)
}

// FreeAddr finds a loopback port that nobody listens on. Somebody may take it
// before the server does; then the start fails loudly.
func FreeAddr(t TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("find a free port: %v", err)
	}
	defer l.Close()
	return l.Addr().String()
}

func tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if len(b) > n {
		b = b[len(b)-n:]
	}
	return string(b)
}
