package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/blobstore/file"
	"cairn/internal/errs"
	"cairn/internal/repo"
)

// openPTY makes a terminal: what is written to keyboard is typed at tty.
func openPTY(t *testing.T) (keyboard, tty *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo terminal here: %v", err)
	}
	t.Cleanup(func() { keyboard.Close() })
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return keyboard, tty
}

// awaitEcho waits until the terminal shows what is typed, or does not.
func awaitEcho(t *testing.T, tty *os.File, want bool) {
	t.Helper()
	for range 6000 {
		s, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		if (s.Lflag&unix.ECHO != 0) == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the terminal's echo never became %t", want)
}

// newFolder makes a folder as a server leaves it: a repository and its key.
func newFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	store, err := file.Open(filepath.Join(dir, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	key := repo.NewKey()
	if err := writeKey(filepath.Join(dir, "repo.key"), key); err != nil {
		t.Fatal(err)
	}
	if err := repo.Init(t.Context(), store, key, time.Now()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A passphrase is not shown while it is typed, and after Ctrl-C the terminal is
// as it was.
func TestPassphraseIsNotShown(t *testing.T) {
	dir := newFolder(t)
	keyboard, tty := openPTY(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "key", "add", "--data-dir", dir, "--new-passphrase")
	cmd.Args[0] = "cairn" // see TestMain
	cmd.Stdin = tty
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitEcho(t, tty, false)
	if _, err := keyboard.WriteString("secret typed words\n"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer // up to the second question
	for b := make([]byte, 100); !strings.Contains(out.String(), "again"); {
		n, err := stderr.Read(b)
		if out.Write(b[:n]); err != nil {
			t.Fatalf("%v after %q", err, &out)
		}
	}
	awaitEcho(t, tty, false)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if _, err := out.ReadFrom(stderr); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("Ctrl-C: exit %d, %v\n%s", code, err, &out)
	}
	awaitEcho(t, tty, true)
	fd := int(keyboard.Fd()) // which makes it blocking
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	shown := make([]byte, 100)
	if n, err := unix.Read(fd, shown); n > 0 || err != unix.EAGAIN {
		t.Errorf("the terminal shows %q, %v", shown[:max(n, 0)], err)
	}
	if strings.Contains(out.String(), "typed") {
		t.Errorf("the output is %q", &out)
	}
}

// What root writes into another user's repository, that user's server could
// not read.
func TestRootKeepsOutOfOthersFolders(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be refused")
	}
	dir := newFolder(t)
	o, err := openOffline(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(dir, "repo"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if _, err := openOffline(dir); !errs.Is(err, errs.Denied) || !strings.Contains(err.Error(), "65534") {
		t.Errorf("got %v", err)
	}
}
