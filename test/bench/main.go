// Command bench measures cairn beside cp, qemu-img, restic and borg on a disk
// that it generates, and writes docs/BENCH.md. `make bench` runs it.
//
// Invariants:
//   - all tools see the same bytes, the same warm page cache and a file system
//     without dirty pages, in turns, in one run of this program;
//   - a step ends when its bytes are on the disk: syncfs is part of every step;
//   - a restore that is not equal, byte by byte, ends the bench with an error.
//
// Environment: CAIRN_BENCH_GB (disk size, default 8), CAIRN_BENCH_RUNS
// (default 3), CAIRN_BENCH_SEED (default 1), CAIRN_BENCH_ENTRIES (millions of
// entries of the large index, default 50).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

type config struct {
	cairn string // the binary
	out   string // the report
	dir   string // parent of the work folder
	gib   int64
	runs  int
	seed  uint64

	entries int64 // of the large index
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// parse also returns the one measurement that a child process is for.
func parse() (config, string, error) {
	var c config
	flag.StringVar(&c.cairn, "cairn", "bin/cairn", "the binary to measure")
	flag.StringVar(&c.out, "out", "docs/BENCH.md", "where the report goes")
	flag.StringVar(&c.dir, "dir", "tmp", "where the work folder is made and removed again")
	job := flag.String("child", "", "used by the bench itself: one measurement in this process")
	flag.Parse()
	if *job != "" {
		return c, *job, nil
	}
	gib, err1 := number("CAIRN_BENCH_GB", 8)
	runs, err2 := number("CAIRN_BENCH_RUNS", 3)
	seed, err3 := number("CAIRN_BENCH_SEED", 1)
	entries, err4 := number("CAIRN_BENCH_ENTRIES", 50)
	c.gib, c.runs, c.seed, c.entries = gib, int(runs), uint64(seed), entries*1_000_000
	return c, "", errors.Join(err1, err2, err3, err4)
}

func number(name string, byDefault int64) (int64, error) {
	s := os.Getenv(name)
	if s == "" {
		return byDefault, nil
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%s=%q is not a positive number", name, s)
	}
	return n, nil
}

func run(ctx context.Context) (err error) {
	conf, job, err := parse()
	if err != nil {
		return err
	}
	if job != "" {
		return child(ctx, job, flag.Args())
	}
	if conf.cairn, err = filepath.Abs(conf.cairn); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("run it as root: the disk is filled through a loop mount")
	}
	if conf.dir, err = filepath.Abs(conf.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(conf.dir, 0o755); err != nil {
		return err
	}
	// Sparse copies of three days, restic's restore without holes, repositories.
	if err := needSpace(conf.dir, conf.gib*5<<30); err != nil {
		return err
	}
	work, err := os.MkdirTemp(conf.dir, "bench-")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, os.RemoveAll(work))
		_ = os.Remove(conf.dir) // unless others keep something there
	}()

	e, err := measureEverything(ctx, conf, work)
	if err != nil {
		return err
	}
	text, err := report(ctx, conf, e)
	if err != nil {
		return err
	}
	fmt.Print(text)
	return os.WriteFile(conf.out, []byte(text), 0o644)
}

func measureEverything(ctx context.Context, conf config, work string) (*everything, error) {
	e := &everything{}
	var err error
	if e.disk, err = generate(ctx, conf, work); err != nil {
		return nil, fmt.Errorf("generate the disk: %w", err)
	}
	for _, t := range allTools(conf.cairn) {
		e.names = append(e.names, t.name())
	}
	if err := touchMemory(math.MaxInt64); err != nil {
		return nil, fmt.Errorf("touch the memory: %w", err)
	}
	if e.results, err = measureAll(ctx, conf, work, e.disk); err != nil {
		return nil, err
	}
	if e.floor, err = measureFloor(ctx, work, e.disk, e.results); err != nil {
		return nil, fmt.Errorf("measure the floor: %w", err)
	}
	if e.tracking, err = measureTracking(ctx, work, e.disk); err != nil {
		return nil, err
	}
	if e.chain, err = measureChain(ctx, work, e.disk); err != nil {
		return nil, err
	}
	if e.big, err = measureBig(ctx, conf, work, e.disk.path); err != nil {
		return nil, fmt.Errorf("measure a large repository: %w", err)
	}
	return e, nil
}

// freeMemory is what nobody uses, not even as page cache.
func freeMemory() (bytes int64, err error) {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(info), "MemFree:")
	if _, err := fmt.Sscan(rest, &bytes); err != nil {
		return 0, fmt.Errorf("find the free memory: %w", err)
	}
	return bytes << 10, nil
}

// touchMemory has memory written to once, up to four fifths of what is free. A
// virtual machine is given its memory when it first touches it, and may give
// back what nobody uses for some seconds. Getting a page takes ten times as
// long as using it: 3 s of a restore of a gigabyte that takes 1.3 s else.
func touchMemory(most int64) error {
	free, err := freeMemory()
	if err != nil {
		return err
	}
	m, err := syscall.Mmap(-1, 0, int(min(most, free/10*8)), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_POPULATE)
	if err != nil {
		return err
	}
	return syscall.Munmap(m)
}

func needSpace(dir string, need int64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return fmt.Errorf("statfs: %w", err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("%d GiB free are needed, %d are there; CAIRN_BENCH_GB makes it smaller", need>>30, free>>30)
	}
	return nil
}

// measureAll runs every tool conf.runs times, in turns, each time starting
// with the next one, so that a slow minute of the machine hits all alike.
func measureAll(ctx context.Context, conf config, work string, disk *testDisk) (map[string][]cycle, error) {
	tools := allTools(conf.cairn)
	results := make(map[string][]cycle)
	for r := range conf.runs {
		for i := range tools {
			t := tools[(i+r)%len(tools)]
			c, err := runCycle(ctx, t, filepath.Join(work, "run"), disk)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", t.name(), err)
			}
			results[t.name()] = append(results[t.name()], c)
			fmt.Fprintf(os.Stderr, "run %d/%d %-20s full %6.2fs  second %6.2fs  restore %6.2fs\n", r+1, conf.runs,
				t.name(), c.full.wall.Seconds(), c.second.wall.Seconds(), c.restore.wall.Seconds())
		}
	}
	return results, nil
}
