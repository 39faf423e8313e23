package cli

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// printTable writes a header and rows, aligned, without lines: columns can be
// cut with awk.
func (a *app) printTable(header []string, rows [][]string) error {
	t := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatUpper
	t.SetStyle(style)
	t.AppendHeader(cells(header))
	for _, r := range rows {
		t.AppendRow(cells(r))
	}
	return a.printLines(t.Render())
}

// pair is one line of an object's description.
type pair struct{ key, value string }

// printPairs describes one object. Lines without a value are left out.
func (a *app) printPairs(pairs []pair) error {
	width := 0
	for _, p := range pairs {
		if p.value != "" {
			width = max(width, len(p.key))
		}
	}
	var b strings.Builder
	for _, p := range pairs {
		if p.value != "" {
			fmt.Fprintf(&b, "%-*s  %s\n", width, p.key, printable(p.value))
		}
	}
	return a.printLines(strings.TrimSuffix(b.String(), "\n"))
}

func (a *app) printLines(s string) error {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	_, err := fmt.Fprintln(a.Out, strings.Join(lines, "\n"))
	return err
}

func cells(values []string) table.Row {
	row := make(table.Row, len(values))
	for i, v := range values {
		row[i] = printable(v)
	}
	return row
}

// printable keeps what a server sends from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// dash stands for an empty cell, so that columns stay countable.
func dash(s string) string { return firstOf(s, "-") }

func mark(b bool, s string) string {
	if b {
		return s
	}
	return ""
}

// more tells on stderr that a list goes on behind the page shown.
func (s *session) more(offset, shown, total int) {
	if next := offset + shown; shown > 0 && next < total {
		s.note("%d of %d shown; --offset %d shows the next", shown, total, next)
	}
}
