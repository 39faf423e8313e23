// Command live measures volumes that are served to clients beside qemu-nbd and
// nbdkit on raw files of the same file system, and what no peer has: points
// under clients, clones and rollbacks. `make bench` runs it; it writes
// docs/BENCH-LIVE.md.
//
// Invariants:
//   - all servers serve disks of one size on one file system, written whole
//     before they are measured, and take turns in one run;
//   - one fio with one set of options measures them all;
//   - no figure is the best of many: medians, or percentiles of all.
//
// Environment: CAIRN_BENCH_LIVE_SECONDS (of one fio run, default 4),
// CAIRN_BENCH_LIVE_RUNS (default 3), CAIRN_BENCH_LIVE_GB (of the rolled back
// volume, default 8).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
)

type config struct {
	cairn   string // the binary
	out     string // the report
	dir     string // parent of the work folder
	seconds int
	runs    int
	gib     int
	only    string // fio jobs whose names have it, and nothing else; "": all there is
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

func parse() (config, error) {
	var c config
	flag.StringVar(&c.cairn, "cairn", "bin/cairn", "the binary to measure")
	flag.StringVar(&c.out, "out", "docs/BENCH-LIVE.md", "where the report goes")
	flag.StringVar(&c.dir, "dir", "tmp", "where the work folder is made and removed again")
	flag.StringVar(&c.only, "only", "", "only fio jobs whose names have this, without a report: for finding out why")
	flag.Parse()
	var errs [5]error
	c.seconds, errs[0] = number("CAIRN_BENCH_LIVE_SECONDS", 4)
	c.runs, errs[1] = number("CAIRN_BENCH_LIVE_RUNS", 3)
	c.gib, errs[2] = number("CAIRN_BENCH_LIVE_GB", 8)
	c.cairn, errs[3] = filepath.Abs(c.cairn)
	c.dir, errs[4] = filepath.Abs(c.dir)
	return c, errors.Join(errs[:]...)
}

func number(name string, byDefault int) (int, error) {
	s := os.Getenv(name)
	if s == "" {
		return byDefault, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%s=%q is not a positive number", name, s)
	}
	return n, nil
}

func run(ctx context.Context) (err error) {
	conf, err := parse()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(conf.dir, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(conf.dir, "live-")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, os.RemoveAll(work))
		_ = os.Remove(conf.dir) // unless others keep something there
	}()
	r := &results{conf: conf, tables: map[string]map[string][]float64{}}
	if err := r.measureServers(ctx, work); err != nil || conf.only != "" {
		return err
	}
	if err := r.measureInstants(ctx, work); err != nil {
		return err
	}
	text := r.report(ctx)
	fmt.Print(text)
	return os.WriteFile(conf.out, []byte(text), 0o644)
}
