package httpapi

import (
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// A list must come out the same in every spelling, and cleaning twice must
// change nothing.
func FuzzQueryList(f *testing.F) {
	for _, seed := range []string{
		"", "?", "&", "snapshots=a,b", "snapshots=ss-A&snapshots=ss-B", "snapshots[]=ss-A&snapshots%5B%5D=ss-B",
		"snapshots[0]=ss-A&snapshots.1=ss-B", "snapshots=%5B'ss-A',%20'ss-B'%5D", `snapshots=["ss-A","ss-B"]`,
		"snapshots=:snapshot_id", "snapshots=:ss-A", "snapshots=%zz", "snapshots=%ff", "snapshots[=x&snapshots.=y&snapshots]=z",
		"snapshots=''''&snapshots='&snapshots=[", "snapshots=[[a]]", "snapshots=+%20,+", "=x&&==&snapshots",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		query, order, err := parseQuery(raw)
		if err != nil {
			return
		}
		var items []string
		for _, v := range queryValues(query, order, "snapshots") {
			if !utf8.ValidString(v) {
				t.Fatalf("%q is not UTF-8", v)
			}
			items = append(items, splitList(v)...)
		}
		for _, item := range items {
			if item == "" || strings.Contains(item, ",") {
				t.Fatalf("item %q of %q", item, raw)
			}
		}
		ids, err := cleanIDs("snapshots", items)
		if err != nil {
			return
		}
		for i, id := range ids {
			if id == "" || slices.Contains(ids[:i], id) {
				t.Fatalf("id %q of %q", id, ids)
			}
		}
		// What was read, written again in one plain spelling, reads the same.
		if slices.ContainsFunc(items, func(s string) bool { return strings.ContainsAny(s, `[]'"`) || strings.TrimSpace(s) != s }) {
			return
		}
		again, againOrder, err := parseQuery("snapshots[]=" + url.QueryEscape(strings.Join(items, ",")))
		if err != nil {
			t.Fatal(err)
		}
		var second []string
		for _, v := range queryValues(again, againOrder, "snapshots") {
			second = append(second, splitList(v)...)
		}
		if !slices.Equal(items, second) {
			t.Fatalf("%q became %q", items, second)
		}
	})
}

// is_full is one of the spellings of API.md §4, or refused.
func FuzzIsFull(f *testing.F) {
	full := []string{`1`, `"1"`, `true`, `"IS_FULL"`}
	auto := []string{`0`, `"0"`, `false`, `null`, `""`, `"IS_INCREMENTAL"`, `"IS_AUTO"`, `"IS_AUTH"`}
	for _, seed := range slices.Concat(full, auto, []string{`2`, `-1`, `1.0`, `1e0`, `"true"`, `[]`, `[1]`, `{}`, `1e999`, `" 1"`, `tru`, ``}) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var body createSnapshotsBody
		err := decodeObject([]byte(`{"is_full":`+text+`}`), &body)
		if strings.Contains(text, ",") { // more keys than one
			return
		}
		var v any
		if json.Unmarshal([]byte(text), &v) != nil {
			if err == nil && utf8.ValidString(text) {
				t.Fatalf("%q is not JSON but was taken", text)
			}
			return
		}
		if n, ok := v.(float64); ok && (n == 0 || n == 1) { // 1.0 is 1
			if err != nil || bool(body.IsFull) != (n == 1) {
				t.Fatalf("%q: %v, %v", text, body.IsFull, err)
			}
			return
		}
		plain := strings.TrimSpace(text)
		if s, ok := v.(string); ok { // "\u0031" is "1"
			quoted, qerr := json.Marshal(s)
			if qerr != nil {
				t.Fatal(qerr)
			}
			plain = string(quoted)
		}
		switch {
		case slices.Contains(full, plain):
			if err != nil || !bool(body.IsFull) {
				t.Fatalf("%q: %v, %v", text, body.IsFull, err)
			}
		case slices.Contains(auto, plain):
			if err != nil || bool(body.IsFull) {
				t.Fatalf("%q: %v, %v", text, body.IsFull, err)
			}
		case err == nil:
			t.Fatalf("%q was taken as %v", text, body.IsFull)
		}
	})
}

// A body is understood or refused with a parameterError; nothing panics.
func FuzzBody(f *testing.F) {
	for _, seed := range []string{
		"", "null", "{}", "[]", "7", `"x"`, "\xef\xbb\xbf{}", `{"resources":["vol-A"],"snapshot_name":"n"}`,
		`{"resources":"vol-A"}`, `{"resources":[null]}`, `{"resources":[1]}`, `{"resources":{}}`, `{"snapshot_name":7}`, "{\"snapshot_name\":\"\xff\"}",
		`{"size":"10"}`, `{"size":1.5}`, `{"size":"\u0031"}`, `{"size":null}`, `{"size":1e3}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var create createSnapshotsBody
		var volume createVolumesBody
		var rename renameSnapshotBody
		for _, v := range []any{&create, &volume, &rename} {
			err := decodeObject(data, v)
			if err == nil {
				continue
			}
			var p *parameterError
			if !errors.As(err, &p) || p.parameter == "" || p.err.Msg == "" || !utf8.ValidString(p.err.Msg) {
				t.Fatalf("%q: %#v", data, err)
			}
		}
	})
}

// A path and a query together name the same set or are refused.
func FuzzPathIDs(f *testing.F) {
	for _, seed := range [][2]string{{"ss-A", ""}, {":snapshot_id", "ss-A"}, {"ss-A,ss-B", "ss-B,ss-A"}, {":", ":x"}, {"::ss-A", "[ss-A]"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, path, query string) {
		ids, err := pathOrOther("snapshot", "ss-A", path, splitList(query))
		if err != nil {
			return
		}
		if len(ids) == 0 || slices.Contains(ids, "") {
			t.Fatalf("%q and %q name %q", path, query, ids)
		}
		for _, id := range ids {
			if !strings.Contains(path+query, id) {
				t.Fatalf("%q comes from neither %q nor %q", id, path, query)
			}
		}
	})
}

// Whatever net/http writes, a handler's answer passes unchanged.
func FuzzProtocolError(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request",
		"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n431",
		"HTTP/1.1 417 Expectation Failed\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nDate: x\r\n\r\n",
		"HTTP/1.1 \r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n", "", "\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		answer := protocolError(p)
		if answer == nil {
			return
		}
		if _, body, ok := strings.Cut(string(answer), "\r\n\r\n"); !ok || !json.Valid([]byte(body)) {
			t.Fatalf("%q became %q", p, answer)
		}
	})
}
