package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// results is what one run of the bench measured.
type results struct {
	conf   config
	tables map[string]map[string][]float64 // MiB/s of each run, by job and server
	instants
	machineFigures
}

func (r *results) add(job, name string, v float64) {
	if r.tables[job] == nil {
		r.tables[job] = map[string][]float64{}
	}
	r.tables[job][name] = append(r.tables[job][name], v)
}

// percentile of values, p in 0..1.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[int(p*float64(len(sorted)-1)+0.5)]
}

func median(values []float64) float64 { return percentile(values, 0.5) }

// goal is one line of the table that the issue "Live" sets.
type goal struct {
	what, unit string
	got, limit float64
	most       bool // the limit is the most; else the least
	how        string
}

func (g goal) met() bool { return g.most == (g.got <= g.limit) || g.got == g.limit }

func (r *results) goals() []goal {
	var out []goal
	for _, c := range []struct {
		name  string
		limit float64
	}{{plain, 0.9}, {tracking, 0.85}, {backing, 0.6}} {
		for _, j := range fioJobs() {
			mine, best := median(r.tables[j.name][c.name]), 0.0
			for _, peer := range []string{qemuNBD, nbdkit} {
				best = max(best, median(r.tables[j.name][peer]))
			}
			out = append(out, goal{what: c.name + ": " + j.name, unit: "÷ better peer", got: mine / best, limit: c.limit,
				how: fmt.Sprintf("%.0f ÷ %.0f MiB/s", mine, best)})
		}
	}
	const ms = 1000
	return append(out,
		goal{"freeze: writes wait, p50", "ms", ms * median(r.pauses), 10, true, fmt.Sprintf("of %d points under %d writers of 4 KiB", len(r.pauses), writers)},
		goal{"freeze: writes wait, p99", "ms", ms * percentile(r.pauses, 0.99), 10, true, ""},
		goal{"clone: call to first read, p50", "ms", ms * median(r.firstReads), 50, true, fmt.Sprintf("of %d, job and connection included", len(r.firstReads))},
		goal{"clone: call to first read, p99", "ms", ms * percentile(r.firstReads, 0.99), 50, true, ""},
		goal{"serve a point: call to first read, p50", "ms", ms * median(r.served), 50, true, fmt.Sprintf("of %d, connection included", len(r.served))},
		goal{"serve a point: call to first read, p99", "ms", ms * percentile(r.served, 0.99), 50, true, ""},
		goal{fmt.Sprintf("rollback of %d GiB: call to first read", r.conf.gib), "s", r.rollback, 1, true, fmt.Sprintf("%.1f %% changed", 100*r.changed)},
		goal{"point of 1 TiB, nothing changed", "s", median(r.nothing), 0.5, true, fmt.Sprintf("call to end of job, median of %d", len(r.nothing))},
	)
}

func (r *results) report(ctx context.Context) string {
	var b strings.Builder
	b.WriteString("# Live volumes, measured\n\n")
	b.WriteString("Written by `make bench`; do not edit. Numbers of one machine differ from those of the next: compare the ratios, which come from one run.\n\n")
	fmt.Fprintf(&b, "%s, %d cores, %s. Disks of %d GiB on one file system, in the page cache, written whole before; %s for %d s a job through the unix socket, medians of %d runs in turns.\n\n",
		time.Now().UTC().Format("2 January 2006"), runtime.NumCPU(), runtime.Version(), diskSize>>30, version(ctx, "fio"), r.conf.seconds, r.conf.runs)
	fmt.Fprintf(&b, "Peers: %s; %s.\n\n", version(ctx, "qemu-nbd"), version(ctx, "nbdkit"))
	b.WriteString("## The table\n\n| | unit | measured | limit | | |\n|---|---|---:|---:|---|---|\n")
	for _, g := range r.goals() {
		verdict, sign := "met", "≥"
		if g.most {
			sign = "≤"
		}
		if !g.met() {
			verdict = "**missed**"
		}
		fmt.Fprintf(&b, "| %s | %s | %.2f | %s %v | %s | %s |\n", g.what, g.unit, g.got, sign, g.limit, verdict, g.how)
	}
	fmt.Fprintf(&b, "\nOf the writes that overlap a point's job, which copies what is overwritten and has the same cores, the longest took %.1f ms (median of the points; p99 %.1f). Without points the longest of %d took %.1f ms, p99 %.2f. A point took %.0f ms.\n",
		1000*median(r.longest), 1000*percentile(r.longest, 0.99), len(r.calm), 1000*percentile(r.calm, 1), 1000*percentile(r.calm, 0.99), 1000*median(r.pointsTook))
	b.WriteString("\n## MiB a second\n\n| |")
	for _, name := range names() {
		fmt.Fprintf(&b, " %s |", name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---:|", len(names())) + "\n")
	for _, j := range fioJobs() {
		fmt.Fprintf(&b, "| %s |", j.name)
		for _, name := range names() {
			fmt.Fprintf(&b, " %.0f |", median(r.tables[j.name][name]))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n\"During full backups\" means that one full point after the other is taken of the very volume meanwhile, on the same cores. All cairn volumes are in one server, which is idle but for the volume that is measured.\n")
	r.machineFigures.report(&b)
	return b.String()
}

// version is the first line that a program says of itself.
func version(ctx context.Context, name string) string {
	out, err := exec.CommandContext(ctx, name, "--version").Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", name, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}
