package repo

import (
	"fmt"
	"time"

	"cairn/internal/errs"
	"cairn/internal/repo/pack"
)

// This file holds the tagged fields of manifests and of the journal
// (FORMAT.md §7).

const critical = 0x8000

// fieldWriter appends fields; the caller keeps the order of tags.
type fieldWriter struct{ b []byte }

func (w *fieldWriter) field(tag uint16, v []byte) {
	w.b = le.AppendUint16(w.b, tag)
	w.b = le.AppendUint32(w.b, uint32(len(v)))
	w.b = append(w.b, v...)
}
func (w *fieldWriter) str(tag uint16, s string) { w.field(tag, []byte(s)) }
func (w *fieldWriter) num(tag uint16, n int64)  { w.field(tag, le.AppendUint64(nil, uint64(n))) }

// opt leaves an empty field out.
func (w *fieldWriter) opt(tag uint16, s string) {
	if s != "" {
		w.str(tag, s)
	}
}

func (w *fieldWriter) optNum(tag uint16, n int64) {
	if n != 0 {
		w.num(tag, n)
	}
}

func (w *fieldWriter) optTime(tag uint16, t time.Time) { w.optNum(tag, unixMicro(t)) }

func flagNum(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// unixMicro is a time as the journal has it: 0 is none.
func unixMicro(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromUnixMicro(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

// fieldReader takes known fields out of the map; the first error stays. what
// names the thing that is read.
type fieldReader struct {
	what   string
	fields map[uint16][]byte
	err    error
}

// readFields splits b into its fields. Their bytes alias b.
func readFields(what string, b []byte) *fieldReader {
	d := &fieldReader{what: what, fields: make(map[uint16][]byte, 32)}
	last := -1
	for len(b) > 0 {
		if len(b) < 6 || int64(len(b)) < 6+int64(le.Uint32(b[2:])) {
			d.fail("is cut")
			return d
		}
		tag, n := le.Uint16(b), int(le.Uint32(b[2:]))
		if int(tag) <= last {
			d.fail("has fields out of order")
			return d
		}
		last = int(tag)
		d.fields[tag] = b[6 : 6+n]
		b = b[6+n:]
	}
	return d
}

// fail notes damage, if it is the first.
func (d *fieldReader) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s %s", pack.ErrDamaged, d.what, fmt.Sprintf(format, args...))
	}
}

// end refuses critical fields that nobody took.
func (d *fieldReader) end() error {
	if d.err != nil {
		return d.err
	}
	for tag := range d.fields {
		if tag&critical != 0 {
			return errs.New(errs.Conflict, "%s has the field %#04x, which this program does not know; use a newer program", d.what, tag)
		}
	}
	return nil
}

// take takes a field that must be there.
func (d *fieldReader) take(tag uint16) []byte {
	v, ok := d.fields[tag]
	if !ok {
		d.fail("lacks field %#04x", tag)
	}
	delete(d.fields, tag)
	return v
}

func (d *fieldReader) str(tag uint16) string { return string(d.take(tag)) }

func (d *fieldReader) num(tag uint16) int64 {
	v := d.take(tag)
	if len(v) != 8 {
		d.fail("has no number in field %#04x", tag)
		return 0
	}
	return int64(le.Uint64(v))
}

// flag takes a number that is 0 or 1.
func (d *fieldReader) flag(tag uint16) bool {
	n := d.num(tag)
	if n != 0 && n != 1 {
		d.fail("has neither 0 nor 1 in field %#04x", tag)
	}
	return n == 1
}

// opt takes a field that is empty if it is not there.
func (d *fieldReader) opt(tag uint16) string {
	v := d.fields[tag]
	delete(d.fields, tag)
	return string(v)
}

func (d *fieldReader) optNum(tag uint16) int64 {
	if _, ok := d.fields[tag]; !ok {
		return 0
	}
	return d.num(tag)
}

func (d *fieldReader) optFlag(tag uint16) bool {
	if _, ok := d.fields[tag]; !ok {
		return false
	}
	return d.flag(tag)
}

func (d *fieldReader) optTime(tag uint16) time.Time { return fromUnixMicro(d.optNum(tag)) }
