// Package extent holds byte ranges of a volume.
package extent

import (
	"cmp"
	"slices"
)

// Range is the half-open byte range [Off, Off+Len) of a volume.
type Range struct {
	Off int64 // bytes from the volume's start
	Len int64 // bytes, never negative
}

// End is the first byte after the range.
func (r Range) End() int64 { return r.Off + r.Len }

// Normalize sorts rs, drops empty ranges and joins those that touch or
// overlap. It works in place and returns the shortened slice.
func Normalize(rs []Range) []Range {
	rs = slices.DeleteFunc(rs, func(r Range) bool { return r.Len <= 0 })
	slices.SortFunc(rs, func(a, b Range) int { return cmp.Compare(a.Off, b.Off) })
	out := rs[:0]
	for _, r := range rs {
		if n := len(out); n > 0 && r.Off <= out[n-1].End() {
			out[n-1].Len = max(out[n-1].End(), r.End()) - out[n-1].Off
			continue
		}
		out = append(out, r)
	}
	return out
}

// Align widens every range to multiples of unit (a power of two) and
// normalizes; the result is cut at size.
func Align(rs []Range, unit, size int64) []Range {
	out := make([]Range, 0, len(rs))
	for _, r := range rs {
		if r.Len <= 0 || r.Off >= size {
			continue
		}
		off := r.Off &^ (unit - 1)
		end := min((r.End()+unit-1)&^(unit-1), size)
		out = append(out, Range{Off: off, Len: end - off})
	}
	return Normalize(out)
}

// Total is the number of bytes in rs, which must be normalized.
func Total(rs []Range) int64 {
	var n int64
	for _, r := range rs {
		n += r.Len
	}
	return n
}
