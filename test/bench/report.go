package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"cairn/internal/extent"
)

// median of one value over the runs; of two middle ones the smaller.
func median[T cmp.Ordered](runs []cycle, value func(cycle) T) T {
	values := make([]T, 0, len(runs))
	for _, c := range runs {
		values = append(values, value(c))
	}
	slices.Sort(values)
	return values[(len(values)-1)/2]
}

// column is one measure of one step.
type column struct {
	title string
	value func(cycle) float64
	unit  string // "s" or "MiB"
}

// table is one step.
type table struct {
	title   string
	columns []column
}

func seconds(d time.Duration) float64  { return d.Seconds() }
func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }
func ms(d time.Duration) string        { return number3(1000 * d.Seconds()) }
func mebi(n int64) float64             { return float64(n) / (1 << 20) }

func stepTable(title string, of func(cycle) usage, repo func(cycle) int64) table {
	t := table{title: title, columns: []column{
		{"wall", func(c cycle) float64 { return seconds(of(c).wall) }, "s"},
		{"cpu", func(c cycle) float64 { return seconds(of(c).cpu) }, "s"},
		{"peak memory", func(c cycle) float64 { return mebi(of(c).anon) }, "MiB"},
	}}
	if repo != nil {
		t.columns = append(t.columns, column{"repository", func(c cycle) float64 { return mebi(repo(c)) }, "MiB"})
	}
	return t
}

func tables() []table {
	return []table{
		stepTable("Full: the first day", func(c cycle) usage { return c.full }, func(c cycle) int64 { return c.repoFull }),
		stepTable("Second: the next day", func(c cycle) usage { return c.second }, func(c cycle) int64 { return c.repoSecond }),
		stepTable("Restore: the second day to a new place", func(c cycle) usage { return c.restore }, nil),
	}
}

// bestPeer is the least value of a column among the named ones.
func bestPeer(results map[string][]cycle, names []string, col column) float64 {
	best := -1.0
	for _, name := range names {
		if v := median(results[name], col.value); best < 0 || v < best {
			best = v
		}
	}
	return best
}

func render(t table, names []string, results map[string][]cycle) string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s\n\n| |", t.title)
	for _, col := range t.columns {
		fmt.Fprintf(&b, " %s (%s) |", col.title, col.unit)
	}
	b.WriteString("\n|---|" + strings.Repeat("---:|", len(t.columns)) + "\n")
	for _, name := range names {
		fmt.Fprintf(&b, "| %s |", name)
		for _, col := range t.columns {
			fmt.Fprintf(&b, " %s |", number3(median(results[name], col.value)))
		}
		b.WriteString("\n")
	}
	renderRatio(&b, "cairn ÷ best of qemu-img, restic and borg", t, names, results, func(name string) bool {
		return name != "cairn" && !isFloor(name)
	})
	renderRatio(&b, "cairn ÷ cp, the floor", t, names, results, isFloor)
	b.WriteString("\n")
	return b.String()
}

func renderRatio(b *strings.Builder, title string, t table, names []string, results map[string][]cycle, peer func(string) bool) {
	var peers []string
	for _, name := range names {
		if peer(name) {
			peers = append(peers, name)
		}
	}
	if len(peers) == 0 {
		return
	}
	fmt.Fprintf(b, "| **%s** |", title)
	for _, col := range t.columns {
		best := bestPeer(results, peers, col)
		if best <= 0 {
			b.WriteString(" – |")
			continue
		}
		fmt.Fprintf(b, " **%.2f** |", median(results["cairn"], col.value)/best)
	}
	b.WriteString("\n")
}

// number3 shows three digits that matter.
func number3(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func report(ctx context.Context, conf config, e *everything) (string, error) {
	var b strings.Builder
	disk := e.disk
	b.WriteString("# Measured beside the others\n\n")
	b.WriteString("Written by `make bench`; do not edit. Numbers of one machine differ from those of the next: compare the ratios, which come from one run.\n\n")
	fmt.Fprintf(&b, "%s, %s. The disk: ext4 on %d GiB, %.0f MiB of data (programs, libraries and documents of the machine, logs, a table, random bytes), seed %d; on the second day %.1f %% of the data differs (counted in 4 KiB blocks). Medians of %d runs in turns, page cache warm, syncfs part of every step, every restore compared byte by byte.\n\n",
		time.Now().UTC().Format("2 January 2006"), machine(), conf.gib, mebi(disk.data), conf.seed,
		100*float64(extent.Total(disk.changed))/float64(disk.data), conf.runs)
	b.WriteString("| | version |\n|---|---|\n")
	for _, t := range allTools(conf.cairn) {
		fmt.Fprintf(&b, "| %s | %s |\n", t.name(), t.version(ctx))
	}
	b.WriteString("\nPeak memory is anonymous memory (RssAnon), sampled every 20 ms and summed over all processes of the tool; cairn's is server and command line together. cairn and restic encrypt and compress as they do by default, borg uses repokey-blake2 and lz4; \"borg fixed chunks\" is borg as its documentation recommends for disk images. cp and qemu-img neither encrypt nor deduplicate and keep a whole file a day. cairn's repository is all of its data folder, database and index included, but for the 64 MiB that it keeps in reserve for a full disk.\n\n")
	renderGoals(&b, e)
	for _, t := range tables() {
		b.WriteString(render(t, e.names, e.results))
	}
	roll := e.cairn(func(c cycle) float64 { return seconds(c.rollback.wall) })
	fmt.Fprintf(&b, "## Rollback in place\n\ncairn puts the disk back to the first day in %s s, comparing all of it and writing what differs. The others have no such step.\n\n", number3(roll))
	renderFloor(&b, e)
	return b.String(), ctx.Err()
}

func renderFloor(b *strings.Builder, e *everything) {
	f := e.floor
	b.WriteString("## The physical floor\n\nWhat the machine needs at least, measured in the same run, on all cores:\n\n| | bytes (MiB) | time (s) |\n|---|---:|---:|\n")
	for _, row := range []struct {
		what  string
		bytes int64
		took  time.Duration
	}{
		{"read the data from the page cache", f.data, f.read},
		{"hash it (BLAKE3, chunk by chunk)", f.data, f.hash},
		{"compress it (zstd, frames of four chunks)", f.data, f.encode},
		{"decode the frames and compare", f.coded, f.decode},
		{"write as many bytes as the repository holds, durably", f.repo, f.write},
		{"write as many bytes as the data, durably (a restore)", f.data, f.plain},
	} {
		fmt.Fprintf(b, "| %s | %s | %s |\n", row.what, number3(mebi(row.bytes)), number3(seconds(row.took)))
	}
	b.WriteString("\n| job | floor (s) | cairn (s) | times | rest (s) | of it idle cores (s) |\n|---|---:|---:|---:|---:|---:|\n")
	for _, row := range []struct {
		job   string
		floor time.Duration
		of    func(cycle) usage
	}{
		{"full: read, hash, compress, decode", f.full(), func(c cycle) usage { return c.full }},
		{"second, every byte read: read, hash", f.second(), func(c cycle) usage { return c.second }},
		{"restore: decode and hash, or write", f.restore(), func(c cycle) usage { return c.restore }},
		{"rollback: read, hash", f.second(), func(c cycle) usage { return c.rollback }},
	} {
		wall := e.cairn(func(c cycle) float64 { return seconds(row.of(c).wall) })
		idle := e.cairn(func(c cycle) float64 { return seconds(row.of(c).wall - row.of(c).cpu/time.Duration(runtime.NumCPU())) })
		fmt.Fprintf(b, "| %s | %s | %s | %.1f | %s | %s |\n", row.job, number3(seconds(row.floor)), number3(wall), wall/seconds(row.floor),
			number3(wall-seconds(row.floor)), number3(idle))
	}
	b.WriteString("\nThe rest that is not idle: copies into the page cache, sealing and opening (AES-GCM), content hashes of packs, what changed on the second day, the server's and the command line's own work. Idle is mostly the job's begin and end: a request, some transactions, the last pack and the tree written one after the other, the final syncs.\n")
}

// machine says in a few words what this was measured on.
func machine() string {
	model := "unknown processor"
	info, _ := os.ReadFile("/proc/cpuinfo") // without it the model stays unknown
	if _, rest, ok := strings.Cut(string(info), "model name"); ok {
		if _, rest, ok = strings.Cut(rest, ":"); ok {
			model, _, _ = strings.Cut(strings.TrimSpace(rest), "\n")
		}
	}
	var sys syscall.Sysinfo_t
	memory := "unknown memory"
	if err := syscall.Sysinfo(&sys); err == nil {
		memory = fmt.Sprintf("%d GiB memory", sys.Totalram*uint64(sys.Unit)>>30)
	}
	return fmt.Sprintf("%s, %d cores, %s, %s", model, runtime.NumCPU(), memory, runtime.Version())
}
