package main

import (
	"fmt"
	"strings"

	"cairn/internal/extent"
)

// goal is one line of the table that the issue "Engine" sets.
type goal struct {
	job   string
	what  string
	got   float64
	limit float64
	how   string // how got and limit came about, in numbers
}

// flat is what may lie between two equal times of some milliseconds.
const flat = 1.25

func (g goal) met() bool { return g.got <= g.limit }

// everything is what one run of the bench measured.
type everything struct {
	disk     *testDisk
	names    []string // of the tools
	results  map[string][]cycle
	floor    floor
	tracking tracking
	chain    chain
	big      big
}

// peers are the tools that keep points, and those that are the floor.
func (e *everything) peers() (peers, floors []string) {
	for _, n := range e.names {
		switch {
		case isFloor(n):
			floors = append(floors, n)
		case n != "cairn":
			peers = append(peers, n)
		}
	}
	return peers, floors
}

// isFloor tells cp, which keeps whole files, neither encrypted nor
// deduplicated: it is the floor of the disk, not a peer.
func isFloor(name string) bool { return strings.HasPrefix(name, "cp ") }

func (e *everything) cairn(value func(cycle) float64) float64 {
	return median(e.results["cairn"], value)
}

// best is the least value among tools.
func (e *everything) best(names []string, value func(cycle) float64) float64 {
	return bestPeer(e.results, names, column{value: value})
}

// ratio is a goal that compares with the best of some tools.
func (e *everything) ratio(job, what string, limit float64, mine, theirs func(cycle) float64, unit string, names []string) goal {
	m, t := e.cairn(mine), e.best(names, theirs)
	return goal{job, what, m / t, limit, fmt.Sprintf("%s ÷ %s %s", number3(m), number3(t), unit)}
}

func (e *everything) goals() []goal {
	full := func(c cycle) float64 { return seconds(c.full.wall) }
	second := func(c cycle) float64 { return seconds(c.second.wall) }
	restore := func(c cycle) float64 { return seconds(c.restore.wall) }
	rollback := func(c cycle) float64 { return seconds(c.rollback.wall) }
	size := func(c cycle) float64 { return mebi(c.repoFull) }
	growth := func(c cycle) float64 { return mebi(c.repoSecond - c.repoFull) }
	peers, cp := e.peers()
	t, differ := e.tracking, float64(extent.Total(e.disk.changed))
	written := e.cairn(func(c cycle) float64 { return float64(c.rolledBack) })
	out := []goal{
		e.ratio("full", "time ÷ best peer's", 0.70, full, full, "s", peers),
		e.ratio("full", "repository ÷ smallest peer's", 1.10, size, size, "MiB", peers),
		e.ratio("second, every byte read", "time ÷ best peer's", 0.30, second, second, "s", peers),
		e.ratio("the second day", "growth ÷ smallest peer's", 1.12, growth, growth, "MiB", peers),
		{"second, changes known", "s", seconds(t.Second), seconds(t.limit()),
			fmt.Sprintf("limit: 1.2 × %s s of a full × %.1f %% changed + 0.05 s", number3(seconds(t.Full)), 100*t.share())},
		{"nothing changed", "s", seconds(t.Nothing), 0.05, "at the engine, like the line above"},
		{"nothing changed", "bytes stored", float64(t.NothingBytes), 4095, "both copies of the one blob"},
		e.ratio("restore to a new file", "time ÷ best peer's", 0.60, restore, restore, "s", peers),
		e.ratio("restore to a new file", "time ÷ (cp --sparse=always + fsync)", 1.50, restore, restore, "s", cp),
		e.ratio("rollback in place", "time ÷ best peer's restore", 0.25, rollback, restore, "s", peers),
		{"rollback in place", "bytes written ÷ bytes that differ", written / differ, 1, fmt.Sprintf("%.0f and %.0f, in pages of 4 KiB", written, differ)},
	}
	c := e.chain
	out = append(out,
		goal{"n-th incremental", fmt.Sprintf("the %dth ÷ the 10th", c.Points), ratio(c.Late, c.Early), flat,
			fmt.Sprintf("%s and %s ms, medians of %d pairs, the %dth and the 10th in their middle", ms(c.Late), ms(c.Early), c.Pairs, c.Points)},
		goal{"n-th incremental", fmt.Sprintf("restore of the %dth ÷ of the 10th", c.Points), ratio(c.RestoreLate, c.RestoreEarly), flat,
			fmt.Sprintf("%s and %s ms", ms(c.RestoreLate), ms(c.RestoreEarly))},
	)
	return append(out, e.memoryGoals()...)
}

func (e *everything) memoryGoals() []goal {
	peak := func(of func(cycle) usage) float64 {
		var most float64
		for _, c := range e.results["cairn"] {
			most = max(most, mebi(of(c).anon))
		}
		return most
	}
	const limit = 192
	out := []goal{{"memory", "MiB, any job above", max(
		peak(func(c cycle) usage { return c.full }), peak(func(c cycle) usage { return c.second }),
		peak(func(c cycle) usage { return c.restore }), peak(func(c cycle) usage { return c.rollback })), limit, "server and command line"}}
	for _, s := range e.big.Steps {
		out = append(out, goal{"memory", "MiB, " + s.Name, mebi(s.Anon), limit,
			fmt.Sprintf("volume of %.1f TiB with %d extents, index of %.0f M entries; %s s", float64(e.big.Size)/(1<<40), e.big.Extents, float64(e.big.Entries)/1e6, number3(seconds(s.Wall)))})
	}
	return append(out, goal{"memory", "s to open the repository", seconds(e.big.Open), 0.1, fmt.Sprintf("index of %.0f M entries", float64(e.big.Entries)/1e6)})
}

func renderGoals(b *strings.Builder, e *everything) {
	b.WriteString("## The table\n\n| job | measured as | | must be at most | | |\n|---|---|---:|---:|---|---|\n")
	for _, g := range e.goals() {
		verdict := "met"
		if !g.met() {
			verdict = "**missed**"
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s |\n", g.job, g.what, number3(g.got), number3(g.limit), verdict, g.how)
	}
	b.WriteString("\n")
}
