package file

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"cairn/internal/volume"
)

// roleKey makes this test binary play another program.
const roleKey = "FILE_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleKey); role != "" {
		if err := play(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// play does what another program would do to a volume. It says "ready" when
// it has got hold of it, and lets go when its stdin ends.
func play(role string, args []string) error {
	path := args[0]
	mode := os.O_RDWR
	switch role {
	case "reader", "flock", "unleased":
		mode = os.O_RDONLY
	case "poke": // the write itself is the act: nothing to hold
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte("intruder"), 0)
		return errors.Join(err, f.Close())
	case "truncate":
		return os.Truncate(path, 100)
	}
	if role == "unleased" {
		return playUnleased(path, args[1])
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return err
	}
	switch role {
	case "reader", "writer":
	case "flock":
		err = unix.Flock(int(f.Fd()), unix.LOCK_SH)
	case "mapper": // keeps the mapping, not the descriptor
		if _, err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
			err = f.Close()
		}
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// playUnleased holds an instant as a user who may not take a lease, and tells
// what Check says when stdin ends.
func playUnleased(path, holds string) error {
	r, err := NewRegistered(holds)
	if err != nil {
		return err
	}
	ctx := context.Background()
	p, err := r.Probe(ctx, path)
	if err != nil {
		return err
	}
	in, err := r.Freeze(ctx, "unleased", []volume.Spec{{ID: "vol-UNLEASED", Path: p.Path, Identity: p.Identity}}, nil)
	if err != nil {
		return err
	}
	fmt.Println("ready", in.(*instant).sources[0].guard.leased)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	fmt.Println("check", errors.Is(in.Check(ctx), volume.ErrChanged))
	return in.Close()
}

// actor is another program at work.
type actor struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Scanner
	first string // its first line
}

// start runs a role until stop or the test's end.
func start(t *testing.T, role string, args ...string) *actor {
	t.Helper()
	return begin(t, role, command(t, role, args...))
}

func begin(t *testing.T, role string, cmd *exec.Cmd) *actor {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	ok(t, err)
	stdout, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	a := &actor{cmd: cmd, stdin: stdin, out: bufio.NewScanner(stdout)}
	t.Cleanup(func() { _ = stdin.Close(); _ = cmd.Wait() })
	if !a.out.Scan() || !strings.HasPrefix(a.out.Text(), "ready") {
		t.Fatalf("%s did not get ready: %q", role, a.out.Text())
	}
	a.first = a.out.Text()
	return a
}

// stop ends the actor and returns the rest of what it said.
func (a *actor) stop(t *testing.T) string {
	t.Helper()
	ok(t, a.stdin.Close())
	var rest []string
	for a.out.Scan() {
		rest = append(rest, a.out.Text())
	}
	ok(t, a.cmd.Wait())
	return strings.Join(rest, "\n")
}

// act runs a role that does one thing and ends.
func act(t *testing.T, role string, args ...string) {
	t.Helper()
	if out, err := command(t, role, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", role, err, out)
	}
}

func command(t *testing.T, role string, args ...string) *exec.Cmd {
	self, err := os.Executable()
	ok(t, err)
	// Not the test's context: it ends before clean-up closes stdin.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), roleKey+"="+role)
	return cmd
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
