package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
)

// This file holds the leniencies of API.md §4. A decoder either understands
// or names the parameter; none guesses.

// maxIDs bounds one call's list, so that a body of a megabyte cannot make a
// statement with two hundred thousand values.
const maxIDs = 1000

// Body is a JSON request body of type T. huma sees T in the document and
// leaves decoding to us: its own errors name Go types.
type Body[T any] struct {
	value T
	err   error
}

// Schema documents T.
func (Body[T]) Schema(r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[T](), true, "")
}

func (b *Body[T]) decode(data []byte) { b.err = decodeObject(data, &b.value) }

// get is what the client sent.
func (b *Body[T]) get() (T, error) { return b.value, b.err }

// decodeObject reads one JSON object into v. Nothing and null count as {}.
func decodeObject(data []byte, v any) error {
	data = bytes.TrimSpace(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")))
	if len(data) == 0 {
		return nil
	}
	if !utf8.Valid(data) {
		return badParameter("body", "the body is not UTF-8; send UTF-8 JSON")
	}
	err := json.Unmarshal(data, v)
	if err == nil {
		return nil
	}
	var field *parameterError
	var syntax *json.SyntaxError
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &field):
		return field
	case errors.As(err, &syntax):
		return badParameter("body", "the body is not valid JSON (%s, at byte %d); send one JSON object", syntax, syntax.Offset)
	case errors.As(err, &mismatch) && mismatch.Field == "":
		return badParameter("body", "the body is a JSON %s; send a JSON object", mismatch.Value)
	case errors.As(err, &mismatch):
		return badParameter(mismatch.Field, "%s cannot be a JSON %s; send a %s", mismatch.Field, mismatch.Value, jsonName(mismatch.Type))
	}
	return badParameter("body", "the body is not valid JSON; send one JSON object")
}

func jsonName(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Slice:
		return "list of strings"
	}
	return "number"
}

// stringList is a list in a body: an array of strings, or one string.
type stringList []string

// Schema documents both forms.
func (stringList) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{OneOf: []*huma.Schema{
		{Type: huma.TypeArray, Items: &huma.Schema{Type: huma.TypeString}},
		{Type: huma.TypeString, Description: "a list of one"},
	}}
}

// UnmarshalJSON accepts an array of strings, one string, or null.
func (l *stringList) UnmarshalJSON(data []byte) error {
	*l = nil
	if len(data) > 0 && data[0] == '"' {
		var one string
		if err := json.Unmarshal(data, &one); err != nil {
			return err
		}
		*l = stringList{one}
		return nil
	}
	var many []*string
	if err := json.Unmarshal(data, &many); err != nil {
		return badParameter("body", "a list in the body holds something that is not a string; send a list of ids like [\"vol-ABCDEFGH\"]")
	}
	for _, s := range many {
		if s != nil {
			*l = append(*l, *s)
		}
	}
	return nil
}

// fullness is is_full. The zero value lets the rules decide.
type fullness bool

// Schema documents what is accepted. The numbers are floats because that is
// what a JSON number decodes to.
func (fullness) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Description: "1: a full; 0 or absent: the system decides",
		OneOf: []*huma.Schema{
			{Type: huma.TypeInteger, Enum: []any{0.0, 1.0}},
			{Type: huma.TypeBoolean},
			{Type: huma.TypeString, Enum: []any{"", "0", "1", "IS_FULL", "IS_INCREMENTAL", "IS_AUTO", "IS_AUTH"}},
			{Type: "null"},
		},
	}
}

// UnmarshalJSON accepts every spelling of API.md §4.
func (f *fullness) UnmarshalJSON(data []byte) error {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		v = err // a number beyond every float
	}
	switch v {
	case nil, false, 0.0, "", "0", "IS_INCREMENTAL", "IS_AUTO", "IS_AUTH":
		*f = false
	case true, 1.0, "1", "IS_FULL":
		*f = true
	default:
		return badParameter("is_full", "is_full is neither 0 nor 1; send 1 for a full, or 0 to let the system decide")
	}
	return nil
}

// wholeNumber is an integer in a body; a string of digits is one too.
type wholeNumber int64

// Schema documents both forms.
func (wholeNumber) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{OneOf: []*huma.Schema{
		{Type: huma.TypeInteger, Format: "int64"},
		{Type: huma.TypeString, Pattern: "^-?[0-9]+$"},
	}}
}

// UnmarshalJSON accepts 7 and "7".
func (n *wholeNumber) UnmarshalJSON(data []byte) error {
	s := strings.TrimSuffix(strings.TrimPrefix(string(data), `"`), `"`)
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return badParameter("body", "%s is not a whole number that fits here; send one like 10", clip(string(data)))
	}
	*n = wholeNumber(v)
	return nil
}

// clip shortens what a client sent before it is echoed.
func clip(s string) string {
	const longest = 80
	if utf8.RuneCountInString(s) <= longest {
		return s
	}
	return string([]rune(s)[:longest]) + "…"
}

// splitList reads one query value: a,b or ['a', 'b'] or ["a","b"].
func splitList(value string) []string {
	value = strings.TrimSpace(value)
	if inner, ok := strings.CutPrefix(value, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok {
			value = inner
		}
	}
	var out []string
	for item := range strings.SplitSeq(value, ",") {
		item = strings.TrimSpace(item)
		if n := len(item); n >= 2 && (item[0] == '\'' || item[0] == '"') && item[n-1] == item[0] {
			item = strings.TrimSpace(item[1 : n-1])
		}
		if item != "" {
			out = append(out, item)
		}
	}
	return out
}

// cleanID strips the colon of a path template, and says ok=false to what is
// no id at all: nothing, or a template's placeholder like :snapshot_id. Every
// real id holds a hyphen, no placeholder does.
func cleanID(s string) (id string, ok bool) {
	s = strings.TrimSpace(s)
	rest, colon := strings.CutPrefix(s, ":")
	if rest == "" {
		return "", false
	}
	if colon && isWord(rest) {
		return "", false
	}
	return rest, true
}

func isWord(s string) bool {
	for _, c := range s {
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// cleanIDs cleans each id and drops placeholders and duplicates, keeping order.
func cleanIDs(parameter string, in []string) ([]string, error) {
	out := make([]string, 0, len(in))
	seen := make(map[string]bool, len(in))
	for _, s := range in {
		id, ok := cleanID(s)
		if !ok || seen[id] {
			continue
		}
		seen[id] = true
		out = append(out, id)
	}
	if len(out) > maxIDs {
		return nil, badParameter(parameter, "%s names %d ids; name at most %d in one call", parameter, len(out), maxIDs)
	}
	return out, nil
}

// needIDs is cleanIDs for a call that cannot work without one.
func needIDs(parameter, example string, in []string) ([]string, error) {
	out, err := cleanIDs(parameter, in)
	if err == nil && len(out) == 0 {
		err = badParameter(parameter, "%s names no id; name at least one, like %s", parameter, example)
	}
	return out, err
}

// pathOrOther takes ids from the path, or from the query or body; when both
// hold some they must be the same set.
func pathOrOther(parameter, example, path string, other []string) ([]string, error) {
	fromPath, err := cleanIDs("path", splitList(path))
	if err != nil {
		return nil, err
	}
	fromOther, err := cleanIDs(parameter, other)
	if err != nil {
		return nil, err
	}
	switch {
	case len(fromPath) == 0 && len(fromOther) == 0:
		return nil, badParameter(parameter, "the call names no id; put one into the path or into %s, like %s", parameter, example)
	case len(fromPath) == 0:
		return fromOther, nil
	case len(fromOther) == 0 || sameSet(fromPath, fromOther):
		return fromPath, nil
	}
	return nil, badParameter(parameter, "the path names %s but %s names %s; name the same ids or only one of the two",
		clip(strings.Join(fromPath, ",")), parameter, clip(strings.Join(fromOther, ",")))
}

// pathOrBody is pathOrOther for calls about exactly one object.
func pathOrBody(parameter, example, path, body string) (string, error) {
	ids, err := pathOrOther(parameter, example, path, []string{body})
	if err != nil {
		return "", err
	}
	if len(ids) > 1 {
		return "", badParameter(parameter, "the path names %d ids; this call takes exactly one", len(ids))
	}
	return ids[0], nil
}

// sameSet compares lists without duplicates.
func sameSet(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	in := make(map[string]bool, len(a))
	for _, s := range a {
		in[s] = true
	}
	for _, s := range b {
		if !in[s] {
			return false
		}
	}
	return true
}
