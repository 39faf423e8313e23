package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"cairn/internal/journal"
)

// printRecovered tells people what became of everything. Points that came back
// as they were are only counted; -o json lists all.
func printRecovered(a recovered, out io.Writer) error {
	w := bufio.NewWriter(out)
	line := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	r := &a.Report
	line("journal    %s: %d blobs, %d entries%s", r.Journal.State, r.Journal.Blobs, r.Journal.Entries, until(r.Journal.WrittenAt))
	for _, p := range r.Journal.Problems {
		line("           %s", p)
	}
	line("snapshots  %d recovered, %d damaged, %d left out", r.Count(journal.Recovered), r.Count(journal.Damaged), r.Count(journal.LeftOut))
	for _, p := range r.Points {
		if p.Result != journal.Recovered || p.Reason != "" {
			line("           %s %s: %s", p.ID, p.Result, plain(p.Reason))
		}
	}
	kept := 0
	for _, v := range r.Volumes {
		if v.Result == journal.Recovered {
			kept++
		}
	}
	line("volumes    %d recovered, %d left out", kept, len(r.Volumes)-kept)
	for _, v := range r.Volumes {
		if v.Result != journal.Recovered || v.Reason != "" {
			line("           %s %s: %s", v.ID, v.Result, plain(v.Reason))
		}
	}
	line("packs      %d, %d bytes", r.Packs, r.Bytes)
	for _, n := range r.Notes {
		line("note       %s", plain(n))
	}
	switch {
	case a.Database != "":
		line("database   %s", a.Database)
		for _, p := range a.MovedAside {
			line("old one    %s", p)
		}
	case r.Blocked == "":
		line("database   not changed, as this was a trial")
	}
	return w.Flush()
}

func until(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return ", written until " + t.Format(time.RFC3339)
}

// plain keeps what a repository holds from steering the terminal.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
