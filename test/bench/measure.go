package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// usage is what one step took.
type usage struct {
	wall time.Duration
	cpu  time.Duration
	anon int64 // peak of anonymous memory, all processes of the tool together
}

// cycle is one tool's run through both days and back.
type cycle struct {
	full, second, restore usage
	rollback              usage // in place; only of tools that can
	rolledBack            int64 // bytes that the rollback wrote or zeroed
	repoFull, repoSecond  int64
}

const stepLimit = time.Hour

// sampleEvery is short against any step and long against the cost of a sample.
const sampleEvery = 20 * time.Millisecond

// measured runs a command, and its server's share if server is not 0, until
// what they wrote is on the disk below dir.
func measured(ctx context.Context, dir string, server int, env []string, argv ...string) (u usage, stdout []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = dir
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	before, err := cpuOf(server)
	if err != nil {
		return u, nil, err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return u, nil, err
	}
	stop, peak := make(chan struct{}), make(chan int64)
	go func() { peak <- samplePeak(stop, cmd.Process.Pid, server) }()
	err = cmd.Wait()
	close(stop)
	u.anon = <-peak
	if err != nil {
		return u, nil, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(complaints.Bytes()))
	}
	if err := syncDir(dir); err != nil {
		return u, nil, err
	}
	u.wall = time.Since(begin)
	after, err := cpuOf(server)
	if err != nil {
		return u, nil, err
	}
	u.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime() + after - before
	return u, out.Bytes(), nil
}

// syncDir writes out the file system that holds dir.
func syncDir(dir string) (err error) {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return unix.Syncfs(int(f.Fd()))
}

// cpuOf is the processor time a process has used; 0 for pid 0.
func cpuOf(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// Fields count from after the command's name, which may hold anything:
	// utime and stime are 14 and 15 of proc(5), in ticks of 10 ms.
	fields := bytes.Fields(p[bytes.LastIndexByte(p, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("stat of process %d is cut", pid)
	}
	user, err1 := strconv.ParseInt(string(fields[11]), 10, 64)
	system, err2 := strconv.ParseInt(string(fields[12]), 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// samplePeak watches the processes and their descendants until stop.
func samplePeak(stop <-chan struct{}, pids ...int) int64 {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	var peak int64
	for {
		var sum int64
		for _, pid := range pids {
			sum += anonOf(pid)
		}
		peak = max(peak, sum)
		select {
		case <-stop:
			return peak
		case <-tick.C:
		}
	}
}

// anonOf sums RssAnon over a process and its descendants. A process that is
// gone meanwhile counts nothing.
func anonOf(pid int) int64 {
	if pid == 0 {
		return 0
	}
	var sum int64
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if _, rest, ok := bytes.Cut(status, []byte("RssAnon:")); ok {
		if fields := bytes.Fields(rest[:min(len(rest), 40)]); len(fields) > 0 {
			kib, _ := strconv.ParseInt(string(fields[0]), 10, 64)
			sum = kib << 10
		}
	}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		children, _ := os.ReadFile(list)
		for _, child := range strings.Fields(string(children)) {
			if n, err := strconv.Atoi(child); err == nil {
				sum += anonOf(n)
			}
		}
	}
	return sum
}

// stored is the space that a folder or file takes on the disk.
func stored(paths ...string) (int64, error) {
	var sum int64
	for _, p := range paths {
		err := filepath.WalkDir(p, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st syscall.Stat_t
			if err := syscall.Lstat(path, &st); err != nil {
				return err
			}
			sum += st.Blocks * 512
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return sum, nil
}

// runCycle gives a tool an empty folder and takes it through both days.
func runCycle(ctx context.Context, t tool, dir string, disk *testDisk) (c cycle, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := disk.setDay(0); err != nil {
		return c, err
	}
	s, err := t.start(ctx, dir, disk.path)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	for day, step := range []*usage{&c.full, &c.second} {
		if err := disk.setDay(day); err != nil {
			return c, err
		}
		if err := settle(dir, disk.path); err != nil {
			return c, err
		}
		if *step, err = s.backup(ctx, day); err != nil {
			return c, err
		}
		size, err := stored(s.repository()...)
		if err != nil {
			return c, err
		}
		if day == 0 {
			c.repoFull = size
		} else {
			c.repoSecond = size
		}
	}
	if err := settle(dir, disk.path); err != nil {
		return c, err
	}
	if c.restore, err = s.restore(ctx); err != nil {
		return c, err
	}
	path, err := s.restored(ctx)
	if err != nil {
		return c, err
	}
	if err := mustEqual(ctx, path, disk.days[1]); err != nil {
		return c, err
	}
	if r, ok := s.(rollbacker); ok {
		if c.rollback, err = r.rollback(ctx); err != nil {
			return c, err
		}
		if c.rolledBack, err = r.rolledBack(); err != nil {
			return c, err
		}
		return c, mustEqual(ctx, disk.path, disk.days[0])
	}
	return c, nil
}

// settle leaves no dirty pages behind, has memory ready, and has the disk in
// the page cache.
func settle(dir, disk string) error {
	if err := syncDir(dir); err != nil {
		return err
	}
	if err := touchMemory(touched); err != nil {
		return err
	}
	return readData(disk, func([]byte) {})
}

// touched is more than any step writes into the page cache.
const touched = 4 << 30

func mustEqual(ctx context.Context, got, want string) error {
	diff, err := differences(ctx, got, want)
	if err != nil {
		return fmt.Errorf("compare the restore: %w", err)
	}
	if len(diff) > 0 {
		return fmt.Errorf("the restore is wrong: %d ranges differ, the first at byte %d", len(diff), diff[0].Off)
	}
	return nil
}
