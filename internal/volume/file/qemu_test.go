package file

import (
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/errs"
	"cairn/internal/volume"
)

// TestQEMULocks: QEMU and we keep each other out, both ways.
func TestQEMULocks(t *testing.T) {
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skip("skipped: qemu-io is not installed")
	}
	write := []string{"-f", "raw", "-c", "write -P 7 0 512"}
	read := []string{"-f", "raw", "-r", "-c", "read 0 512"}
	for _, c := range []struct {
		name            string
		writing         bool
		canWrite, canRd bool
	}{
		{"while frozen", false, false, true},
		{"while overwritten", true, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, s := registered(t)
			var in volume.Instant
			if c.writing {
				g, err := r.OpenTarget(t.Context(), s)
				ok(t, err)
				t.Cleanup(func() { ok(t, g.Close()) })
			} else if in = freeze(t, r, s); in.Durable() {
				t.Skip("skipped: temporary files are on a filesystem with reflinks")
			}
			// The reader first: a refused writer has opened the file for
			// writing before it asks the locks, which costs us the lease.
			wantQEMU(t, c.canRd, append(read, s.Path))
			if in != nil {
				ok(t, in.Check(t.Context()))
			}
			wantQEMU(t, c.canWrite, append(write, s.Path))
		})
	}
	r, s := registered(t)
	wantQEMU(t, true, append(write, s.Path)) // and when nobody holds it, it works
	ok(t, freeze(t, r, s).Close())
}

func wantQEMU(t *testing.T, works bool, args []string) {
	t.Helper()
	out, err := run(t, "qemu-io", args...)
	if works {
		if err != nil {
			t.Fatalf("qemu-io %v: %v\n%s", args, err, out)
		}
		return
	}
	if err == nil || !strings.Contains(out, "lock") {
		t.Fatalf("qemu-io %v was not kept out by a lock: %v\n%s", args, err, out)
	}
}

// TestRunningQEMU: a program of QEMU's that has the volume open.
func TestRunningQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-nbd"); err != nil {
		t.Skip("skipped: qemu-nbd is not installed")
	}
	for _, c := range []struct {
		name   string
		flags  []string
		freeze bool
	}{
		{"writing", nil, false},
		{"reading", []string{"--read-only"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, s := registered(t)
			serve(t, s.Path, c.flags)
			in, err := r.Freeze(t.Context(), "hold", []volume.Spec{s}, nil)
			if c.freeze {
				ok(t, err)
				ok(t, in.Check(t.Context()))
				ok(t, in.Close())
			} else {
				wantKind(t, err, errs.Busy, s)
			}
			_, err = r.OpenTarget(t.Context(), s)
			wantKind(t, err, errs.Busy, s)
		})
	}
	// The lock bytes alone, without the lease's help.
	r, s := registered(t)
	serve(t, s.Path, nil)
	n, err := open(place{id: s.ID, path: s.Path}, 0, false)
	ok(t, err)
	g := &guard{node: n}
	wantKind(t, g.control(g.lockQEMU), errs.Busy, s)
	ok(t, n.f.Close())
	_, err = r.Size(t.Context(), s)
	ok(t, err)
}

// serve runs qemu-nbd on a private socket until the test ends.
func serve(t *testing.T, path string, flags []string) {
	t.Helper()
	socket := join(t.TempDir(), "s")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "qemu-nbd", append([]string{"--persistent", "-f", "raw", "-k", socket}, append(flags, path)...)...)
	ok(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Signal(unix.SIGTERM); _ = cmd.Wait() })
	// It listens before it opens the volume, and greets afterwards.
	for range 500 {
		if greets(socket) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("qemu-nbd did not start")
}

func greets(socket string) bool {
	c, err := net.DialTimeout("unix", socket, 10*time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	_, err = c.Read(make([]byte, 1))
	return err == nil
}
