package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/compute"
	"cairn/internal/errs"
	"cairn/internal/qmp"
)

const (
	startLimit   = time.Minute      // until the monitor answers
	monitorLimit = 10 * time.Second // for one command
	askLimit     = time.Second      // to say whether it runs; a list waits for that
	quitLimit    = 5 * time.Second  // for QEMU to write out and end
	look         = 20 * time.Millisecond
	askAgain     = 3 * time.Second // a guest that still boots misses the button
)

// pid is the process that holds the machine's pid file locked, as QEMU does
// from before it opens a disk until it ends; 0: none does.
func (m *machine) pid() (int, error) {
	f, err := os.OpenFile(filepath.Join(m.dir, pidFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err != nil {
		return 0, fmt.Errorf("ask for the lock on %s: %w", f.Name(), err)
	}
	if l.Type == unix.F_UNLCK {
		return 0, nil
	}
	return int(l.Pid), nil
}

// ended waits until no process is the machine, at most as long as limit.
func (m *machine) ended(ctx context.Context, limit time.Duration) (bool, error) {
	deadline := time.Now().Add(limit)
	for {
		pid, err := m.pid()
		if err != nil || pid == 0 {
			return pid == 0, err
		}
		if time.Now().After(deadline) {
			return false, nil
		}
		select {
		case <-time.After(look):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// inside calls fn with a path to the machine's folder that is short enough for
// a socket in it.
func (m *machine) inside(fn func(dir string) error) error {
	f, err := os.Open(m.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return fn(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// monitor connects to the machine's monitor. The machine's lock is held.
func (m *machine) monitor(ctx context.Context) (c *qmp.Client, err error) {
	ctx, cancel := context.WithTimeout(ctx, monitorLimit)
	defer cancel()
	err = m.inside(func(dir string) error {
		c, err = qmp.Dial(ctx, filepath.Join(dir, monitorSocket))
		return err
	})
	return c, err
}

// with calls fn with the monitor of a machine that runs.
func (m *machine) with(ctx context.Context, fn func(ctx context.Context, c *qmp.Client) error) error {
	c, err := m.monitor(ctx)
	if err != nil {
		return err
	}
	return errors.Join(fn(ctx, c), c.Close())
}

// status asks a machine what it is doing.
func status(ctx context.Context, c *qmp.Client) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, monitorLimit)
	defer cancel()
	var s struct{ Status string }
	err := c.Do(ctx, "query-status", nil, &s)
	return s.Status, err
}

// doing is the state of a machine whose process lives. If somebody talks to its
// monitor now, or it does not answer soon, it counts as running.
func (m *machine) doing(ctx context.Context) compute.State {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if !m.TryLock() {
		return compute.Running
	}
	defer m.Unlock()
	state := compute.Running
	err := m.with(ctx, func(ctx context.Context, c *qmp.Client) error {
		s, err := status(ctx, c)
		if err == nil && s != "running" {
			state = compute.Paused
		}
		return err
	})
	if pid, lost := m.pid(); err != nil && lost == nil && pid == 0 {
		return compute.Stopped // it ended while we asked
	}
	return state
}

// Start runs a machine.
func (d *Driver) Start(ctx context.Context, id string) error {
	return d.change(ctx, id, func(m *machine, s compute.Spec, runs bool) error {
		if runs {
			return m.resume(ctx)
		}
		if err := check(s); err != nil {
			return err
		}
		accel, err := d.acceleration(ctx)
		if err != nil {
			return err
		}
		args, err := arguments(s, accel)
		if err != nil {
			return err
		}
		if err := m.spawn(ctx, d.binary, args); err != nil {
			return err
		}
		d.log.Info("machine started", "machine", id, "acceleration", accel, "disks", len(s.Disks))
		return nil
	})
}

// resume lets a paused machine go on.
func (m *machine) resume(ctx context.Context) error {
	return m.with(ctx, func(ctx context.Context, c *qmp.Client) error {
		s, err := status(ctx, c)
		if err != nil || s == "running" {
			return err
		}
		return c.Do(ctx, "cont", nil, nil)
	})
}

// spawn starts the process and waits until its machine runs. If it fails there
// is no process any more.
func (m *machine) spawn(ctx context.Context, binary string, args []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// What an earlier process listened on would answer nobody.
	for _, name := range []string{monitorSocket, agentSocket, consoleSocket} {
		if err := os.Remove(filepath.Join(m.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	out, err := os.OpenFile(filepath.Join(m.dir, processLog), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), binary, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.dir, out, out
	// It outlives us, and whatever is sent to our terminal.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return errs.Wrap(errs.Unavailable, err, "%s cannot be started", binary)
	}
	dead := make(chan error, 1)
	go func() { dead <- cmd.Wait() }() // also so that it is no zombie later
	err = m.running(ctx, dead)
	if err != nil {
		// By its handle: it may be too young to have its pid file.
		_ = cmd.Process.Kill() // or it has ended
		select {
		case end := <-dead:
			dead <- end // it is known by err already
		case <-time.After(quitLimit):
		}
	}
	return err
}

// running waits until the machine of a new process runs, or the process is dead.
func (m *machine) running(ctx context.Context, dead chan error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		err := m.with(ctx, func(ctx context.Context, c *qmp.Client) error {
			s, err := status(ctx, c)
			if err == nil && s != "running" {
				err = fmt.Errorf("it is %s", s)
			}
			return err
		})
		if err == nil {
			return nil
		}
		select {
		case err := <-dead:
			dead <- err
			return errs.Wrap(errs.Unavailable, err, "the machine did not start: %s", m.lastWords())
		case <-ctx.Done():
			return errs.Wrap(errs.Unavailable, err, "the machine does not run after %v: %s", startLimit, m.lastWords())
		case <-time.After(look):
		}
	}
}

// lastWords is the last thing that QEMU said.
func (m *machine) lastWords() string {
	b, err := os.ReadFile(filepath.Join(m.dir, processLog))
	if err != nil {
		return "and its log cannot be read"
	}
	b = bytes.TrimSpace(b)
	if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
		b = b[i+1:]
	}
	const most = 300
	if len(b) == 0 {
		return "it said nothing"
	}
	return strings.ToValidUTF8(string(b[:min(len(b), most)]), "?")
}

// Stop ends a machine.
func (d *Driver) Stop(ctx context.Context, id string, grace time.Duration) (compute.Stop, error) {
	m, _, err := d.there(id)
	if err != nil {
		return compute.Stop{}, err
	}
	m.Lock()
	defer m.Unlock()
	return m.stop(ctx, grace, d.log)
}

func (m *machine) stop(ctx context.Context, grace time.Duration, log *slog.Logger) (compute.Stop, error) {
	pid, err := m.pid()
	if err != nil || pid == 0 {
		return compute.Stop{}, err
	}
	if grace > 0 {
		ended, err := m.askToEnd(ctx, grace)
		if err != nil || ended {
			return compute.Stop{}, err
		}
	}
	log.Info("ending a machine's process", "dir", filepath.Base(m.dir), "pid", pid, "grace", grace)
	return compute.Stop{Forced: true}, m.end(ctx)
}

// askToEnd presses the button until the guest ends, or grace is over.
func (m *machine) askToEnd(ctx context.Context, grace time.Duration) (ended bool, err error) {
	deadline := time.Now().Add(grace)
	for {
		err := m.with(ctx, func(ctx context.Context, c *qmp.Client) error { return c.Do(ctx, "system_powerdown", nil, nil) })
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		left := time.Until(deadline)
		if err != nil {
			left = min(left, look) // it ends now, or cannot be asked
		}
		ended, waitErr := m.ended(ctx, min(left, askAgain))
		if waitErr != nil || ended || err != nil || time.Now().After(deadline) {
			return ended, waitErr
		}
	}
}

// end ends the process: by its monitor, so that it closes its disks, else by a
// signal to exactly this process.
func (m *machine) end(ctx context.Context) error {
	quitCtx, cancel := context.WithTimeout(ctx, quitLimit)
	defer cancel()
	err := m.with(quitCtx, func(ctx context.Context, c *qmp.Client) error { return c.Do(ctx, "quit", nil, nil) })
	wait := quitLimit
	if err != nil && !errs.Is(err, errs.Unavailable) {
		wait = look
	}
	if ended, err := m.ended(ctx, wait); err != nil || ended {
		return err
	}
	pid, err := m.pid()
	if err != nil || pid == 0 {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	if err == nil {
		defer func() { _ = unix.Close(fd) }() // nothing was written through it
		// The descriptor is of a process; it is the machine's if it still has the
		// lock now.
		if now, err := m.pid(); err != nil || now != pid {
			return err
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	ended, err := m.ended(ctx, startLimit)
	if err == nil && !ended {
		err = errs.New(errs.Unavailable, "process %d of the machine in %s does not end; it may wait for a disk of the host", pid, m.dir)
	}
	return err
}
