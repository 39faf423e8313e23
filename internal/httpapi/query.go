package httpapi

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
)

// inner lets lenient embed a huma.Context, which has a method Context.
type inner huma.Context

// lenient answers Query with every spelling of a list joined by commas.
type lenient struct {
	inner
	query url.Values
	order []string
}

// Unwrap lets humago find its own context.
func (l *lenient) Unwrap() huma.Context { return l.inner }

// Query is the first value of a scalar, or all of a list's.
func (l *lenient) Query(name string) string {
	for _, p := range l.Operation().Parameters {
		if p.Name == name && p.In == "query" && p.Schema.Type == huma.TypeArray {
			var all []string
			for _, v := range queryValues(l.query, l.order, name) {
				all = append(all, splitList(v)...)
			}
			return strings.Join(all, ",")
		}
	}
	return l.query.Get(name)
}

func lenientQuery(ctx huma.Context, next func(huma.Context)) {
	u := ctx.URL()
	query, order, err := parseQuery(u.RawQuery)
	if err != nil { // normalize has refused it already
		panic(err)
	}
	next(&lenient{inner: ctx, query: query, order: order})
}

// parseQuery reads a query string, keeping the order of its keys. Stray & and
// ? are ignored; what cannot be decoded is an error, never dropped.
func parseQuery(raw string) (url.Values, []string, error) {
	values := url.Values{}
	var order []string
	for pair := range strings.SplitSeq(strings.TrimRight(raw, "?&"), "&") {
		if pair == "" {
			continue
		}
		key, value, _ := strings.Cut(pair, "=")
		k, err := url.QueryUnescape(key)
		if err != nil {
			return nil, nil, badParameter("query", "the query holds the broken escape %s; write a percent sign as %%25", quoteEscape(err))
		}
		v, err := url.QueryUnescape(value)
		if err != nil {
			return nil, nil, badParameter(k, "the value of %s holds the broken escape %s; write a percent sign as %%25", clip(k), quoteEscape(err))
		}
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return nil, nil, badParameter("query", "the query is not UTF-8; send UTF-8, percent-encoded")
		}
		if _, ok := values[k]; !ok {
			order = append(order, k)
		}
		values[k] = append(values[k], v)
	}
	return values, order, nil
}

func quoteEscape(err error) string {
	var e url.EscapeError
	if errors.As(err, &e) {
		return fmt.Sprintf("%q", string(e))
	}
	return "(unknown)"
}

// queryValues finds every occurrence of a list parameter: name, name[],
// name[0], name.1.
func queryValues(q url.Values, order []string, name string) []string {
	var out []string
	for _, key := range order {
		if key == name || isIndexed(key, name) {
			out = append(out, q[key]...)
		}
	}
	return out
}

func isIndexed(key, name string) bool {
	rest, ok := strings.CutPrefix(key, name)
	if !ok {
		return false
	}
	if rest == "[]" {
		return true
	}
	digits, ok := strings.CutPrefix(rest, ".")
	if !ok {
		if digits, ok = strings.CutPrefix(rest, "["); ok {
			digits, ok = strings.CutSuffix(digits, "]")
		}
	}
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}

// integer is an integer in a query, kept as it came so that we word the error.
type integer string

// Schema documents an integer.
func (integer) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeInteger, Format: "int64"}
}

// natural reads a number that is not negative; "" is def. What does not fit
// is as good as the largest: an offset past every end, a limit to be clamped.
func (s integer) natural(parameter string, def int) (int, error) {
	t := strings.TrimSpace(string(s))
	if t == "" {
		return def, nil
	}
	if strings.Trim(t, "0123456789") != "" {
		return 0, badParameter(parameter, "%s is %q; send a whole number that is not negative", parameter, clip(t))
	}
	n, err := strconv.Atoi(t)
	if errors.Is(err, strconv.ErrRange) {
		return math.MaxInt, nil
	}
	return n, err
}

// int64 reads a number that must fit; "" is ok=false.
func (s integer) int64(parameter string) (n int64, ok bool, err error) {
	t := strings.TrimSpace(string(s))
	if t == "" {
		return 0, false, nil
	}
	n, err = strconv.ParseInt(t, 10, 64)
	if err != nil {
		return 0, false, badParameter(parameter, "%s is %q; send a whole number", parameter, clip(t))
	}
	return n, true, nil
}

// page reads offset and limit.
func page(offset, limit integer, def int) (from, count int, err error) {
	const longest = 100
	from, err = offset.natural("offset", 0)
	if err != nil {
		return 0, 0, err
	}
	count, err = limit.natural("limit", def)
	return from, min(count, longest), err
}

// flag reads a yes or no in a query. A flag that decides whether something is
// destroyed is never guessed.
func flag(parameter, s string) (bool, error) {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "", "0", "false":
		return false, nil
	case "1", "true":
		return true, nil
	}
	return false, badParameter(parameter, "%s is %q; send 1 or 0", parameter, clip(s))
}

// words checks a list against what is allowed.
func words[T ~string](parameter string, in []string, allowed ...T) ([]T, error) {
	var out []T
	for _, s := range in {
		found := false
		for _, a := range allowed {
			found = found || string(a) == s
		}
		if !found {
			return nil, badParameter(parameter, "%s cannot be %q; it is one of %s", parameter, clip(s), joinWords(allowed))
		}
		out = append(out, T(s))
	}
	return out, nil
}

func joinWords[T ~string](in []T) string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = string(s)
	}
	return strings.Join(out, ", ")
}
