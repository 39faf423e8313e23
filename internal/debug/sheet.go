package debug

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// column is one column of a list. A cell that is longer than its width pushes
// the others: rows are printed as they come, so that a tree of any size costs
// no memory and head(1) sees its beginning at once.
type column struct {
	name  string
	width int // negative: to the right
}

// sheet writes one answer: fields and lists, as text for people or as one JSON
// document. The first error stays and is end's.
type sheet struct {
	w       *bufio.Writer
	asJSON  bool
	columns []column // of the list that is open
	key     string   // its name
	open    bool     // a list is open
	rows    int      // of the list that is open
	begun   bool     // something was written
	err     error
}

func newSheet(w io.Writer, asJSON bool) *sheet {
	return &sheet{w: bufio.NewWriter(w), asJSON: asJSON}
}

func (s *sheet) print(format string, args ...any) {
	if s.err == nil {
		_, s.err = fmt.Fprintf(s.w, format, args...)
	}
}

func (s *sheet) encode(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil && s.err == nil {
		s.err = fmt.Errorf("encode the answer: %w", err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// member begins a key of the document.
func (s *sheet) member(key string) {
	s.close()
	if s.begun {
		s.print(",\n  %q: ", key)
	} else {
		s.print("{\n  %q: ", key)
	}
	s.begun = true
}

// field writes one value; text is its form for people, "" for its own.
func (s *sheet) field(key string, value any, text string) {
	if s.asJSON {
		s.member(key)
		s.print("%s", s.encode(value))
		return
	}
	s.behind()
	if text == "" {
		text = fmt.Sprint(value)
	}
	s.print("%-14s  %s\n", strings.ReplaceAll(key, "_", " "), printable(text))
}

// behind begins what stands behind a list for people.
func (s *sheet) behind() {
	if s.open {
		s.close()
		s.print("\n")
	}
	s.begun = true
}

// note is a paragraph for people only.
func (s *sheet) note(format string, args ...any) {
	if s.asJSON {
		return
	}
	s.behind()
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		s.print("%s\n", printable(strings.TrimSuffix(line, "\n")))
	}
}

// list begins a list of rows. For people the columns' names stand above its
// first row.
func (s *sheet) list(key string, columns ...column) {
	if s.asJSON {
		s.member(key)
		s.print("[")
	} else {
		s.close()
		if s.begun {
			s.print("\n")
		}
		s.columns, s.key = columns, key
	}
	s.open, s.rows, s.begun = true, 0, true
}

// row adds a row to the list that is open: value to a document, cells for
// people.
func (s *sheet) row(value any, cells ...string) {
	s.rows++
	if !s.asJSON {
		if s.rows == 1 {
			names := make([]string, len(s.columns))
			for i, c := range s.columns {
				names[i] = strings.ToUpper(c.name)
			}
			s.cells(names)
		}
		s.cells(cells)
		return
	}
	if s.rows > 1 {
		s.print(",")
	}
	s.print("\n    %s", s.encode(value))
}

func (s *sheet) cells(cells []string) {
	var b strings.Builder
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		if i > 0 {
			b.WriteString("  ")
		}
		fmt.Fprintf(&b, "%*s", -s.columns[i].width, printable(c))
	}
	s.print("%s\n", strings.TrimRight(b.String(), " "))
}

// close ends the list that is open.
func (s *sheet) close() {
	if !s.open {
		return
	}
	s.open = false
	if !s.asJSON {
		if s.rows == 0 {
			s.print("no %s\n", strings.ReplaceAll(s.key, "_", " "))
		}
		return
	}
	if s.rows > 0 {
		s.print("\n  ")
	}
	s.print("]")
}

// end ends the answer and tells what went wrong in writing it.
func (s *sheet) end() error {
	s.close()
	if s.asJSON {
		if !s.begun {
			s.print("{")
		}
		s.print("\n}\n")
	}
	if s.err == nil {
		s.err = s.w.Flush()
	}
	return s.err
}

// printable keeps names from the repository from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
