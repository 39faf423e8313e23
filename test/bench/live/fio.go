package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// diskSize is that of each server's disk. With all that a backup keeps of what
// is overwritten, it must stay below the share of the memory from which on Linux
// makes writers wait for the real disk: servers are compared, not disks.
const diskSize = 1 << 30

// fioJob is one way of using a disk.
type fioJob struct {
	name, rw, bs string
	depth        int
}

func fioJobs() []fioJob {
	return []fioJob{
		{"random read, 4 KiB, depth 1", "randread", "4k", 1}, {"random read, 4 KiB, depth 32", "randread", "4k", 32},
		{"random write, 4 KiB, depth 1", "randwrite", "4k", 1}, {"random write, 4 KiB, depth 32", "randwrite", "4k", 32},
		{"read, 1 MiB, depth 4", "read", "1m", 4}, {"write, 1 MiB, depth 4", "write", "1m", 4},
	}
}

// fio runs one job and returns MiB a second.
func fio(ctx context.Context, uri string, j fioJob, more ...string) (float64, error) {
	args := append([]string{"120", "fio", "--output-format=json", "--name=x", "--ioengine=nbd", "--uri=" + uri, "--size=" + fmt.Sprint(diskSize),
		"--rw=" + j.rw, "--bs=" + j.bs, fmt.Sprint("--iodepth=", j.depth), "--randrepeat=0", "--norandommap"}, more...)
	out, err := exec.CommandContext(ctx, "timeout", args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return 0, fmt.Errorf("fio %s: %w", j.name, err)
	}
	_, text, _ := strings.Cut(string(out), "\n") // fio says first whom it is connected to
	var r struct {
		Jobs []struct{ Read, Write struct{ Bw float64 } }
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil || len(r.Jobs) != 1 {
		return 0, fmt.Errorf("%w in fio's output: %.200s", err, out)
	}
	return (r.Jobs[0].Read.Bw + r.Jobs[0].Write.Bw) / 1024, nil
}

// served is one server's disk.
type served struct {
	name, uri string
	volume    string                          // cairn's id of it
	during    func(ctx context.Context) error // runs beside, until ctx ends; may be nil
}

// Names of the table's columns.
const (
	plain    = "cairn, no point yet"
	tracking = "cairn, tracking"
	backing  = "cairn, during full backups"
	qemuNBD  = "qemu-nbd"
	nbdkit   = "nbdkit file"
)

func names() []string { return []string{plain, tracking, backing, qemuNBD, nbdkit} }

// measureServers measures all jobs on all servers, in turns.
func (r *results) measureServers(ctx context.Context, work string) (err error) {
	disks, stop, err := startServers(ctx, r.conf, work)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	for n := range r.conf.runs {
		for _, j := range fioJobs() {
			if !strings.Contains(j.name, r.conf.only) {
				continue
			}
			for i := range disks {
				d := disks[(i+n)%len(disks)]
				syscall.Sync()
				got, err := d.measure(ctx, j, r.conf.seconds)
				if err != nil {
					return fmt.Errorf("%s: %w", d.name, err)
				}
				r.add(j.name, d.name, got)
				fmt.Fprintf(os.Stderr, "run %d/%d %-30s %-28s %8.1f MiB/s\n", n+1, r.conf.runs, j.name, d.name, got)
			}
		}
	}
	return nil
}

func (d served) measure(ctx context.Context, j fioJob, seconds int) (float64, error) {
	beside, end := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		if d.during == nil {
			done <- nil
			return
		}
		done <- d.during(beside)
	}()
	got, err := fio(ctx, d.uri, j, "--time_based", fmt.Sprint("--runtime=", seconds))
	end()
	return got, errors.Join(err, <-done)
}

// startServers starts all servers, each with disks that are written whole.
func startServers(ctx context.Context, conf config, work string) (disks []served, stop func() error, err error) {
	var running []*process
	stop = func() (err error) {
		for _, p := range running {
			err = errors.Join(err, p.stop())
		}
		return err
	}
	for _, tool := range []struct {
		name string
		argv func(socket, disk string) []string
	}{
		{qemuNBD, func(socket, disk string) []string {
			return []string{"qemu-nbd", "-t", "-e", "8", "-f", "raw", "-k", socket, disk}
		}},
		{nbdkit, func(socket, disk string) []string { return []string{"nbdkit", "-f", "-U", socket, "file", disk} }},
	} {
		disk, socket := filepath.Join(work, tool.argv("", "")[0]+".raw"), filepath.Join(work, tool.argv("", "")[0])
		if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, diskSize)); err != nil {
			return nil, stop, err
		}
		argv := tool.argv(socket, disk)
		p, err := start(ctx, socket, argv[0], argv[1:]...)
		if err != nil {
			return nil, stop, err
		}
		running = append(running, p)
		disks = append(disks, served{name: tool.name, uri: "nbd+unix:///?socket=" + socket})
	}
	c, err := startCairn(ctx, conf.cairn, filepath.Join(work, "c"))
	if err != nil {
		return nil, stop, err
	}
	running = append(running, c.process)
	ours, err := cairnDisks(ctx, c)
	if err != nil {
		return nil, stop, err
	}
	disks = append(ours, disks...)
	for _, d := range disks {
		if _, err := fio(ctx, d.uri, fioJob{"fill", "write", "1m", 4}); err != nil {
			return nil, stop, fmt.Errorf("%s: %w", d.name, err)
		}
	}
	for _, d := range ours[1:] { // their tracking begins with a point
		if _, err := c.point(ctx, d.volume, false); err != nil {
			return nil, stop, err
		}
	}
	return disks, stop, nil
}

// cairnDisks are three volumes: one that never has a point, one that has one,
// and one of which points are taken all the time.
func cairnDisks(ctx context.Context, c *rig) ([]served, error) {
	var out []served
	for _, name := range []string{plain, tracking, backing} {
		id, err := c.newVolume(ctx, diskSize)
		if err != nil {
			return nil, err
		}
		uri, err := c.uri(ctx, id)
		if err != nil {
			return nil, err
		}
		d := served{name: name, uri: uri, volume: id}
		if name == backing {
			d.during = func(ctx context.Context) error {
				for ctx.Err() == nil {
					if _, err := c.point(context.WithoutCancel(ctx), id, true); err != nil {
						return err
					}
				}
				return nil
			}
		}
		out = append(out, d)
	}
	return out, nil
}
