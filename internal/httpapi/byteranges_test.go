package httpapi_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/extent"
)

// part is one part of a multipart/byteranges body with the boundary "edge".
func part(contentRange, content string) string {
	return "--edge\r\nContent-Range: " + contentRange + "\r\n\r\n" + content + "\r\n"
}

const lastEdge = "--edge--\r\n"

func sendParts(t *testing.T, s *server, size, body string) answer {
	t.Helper()
	target := zone + "/volumes/import?volume_name=v&size_bytes=" + size
	head := rawRequest("POST", target, "Host: localhost\r\nContent-Type: multipart/byteranges; boundary=edge\r\nTransfer-Encoding: chunked\r\n", "")
	return send(t, "tcp", s.tcp, "POST", head+fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body))
}

func TestImportOfRanges(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	doc := document(t, s)
	wild := strings.Repeat("\r\n--edg\r\n--edgeX", 9000) // nearly a boundary, again and again
	tests := []struct {
		name   string
		size   int
		body   string
		ranges []extent.Range
	}{
		{"all zeros", 1 << 20, lastEdge, nil},
		{"one in the middle", 1 << 20, part("bytes 70000-70004/1048576", "hello") + lastEdge, []extent.Range{{Off: 70000, Len: 5}}},
		{"neighbours, up to the end", 10, part("bytes 2-4/10", "abc") + part("bytes 5-9/10", "defgh") + lastEdge, []extent.Range{{Off: 2, Len: 3}, {Off: 5, Len: 5}}},
		{"what looks like a boundary", len(wild), part(fmt.Sprintf("bytes 0-%d/%d", len(wild)-1, len(wild)), wild) + lastEdge, []extent.Range{{Off: 0, Len: int64(len(wild))}}},
		{"words before and behind", 3, "preamble\r\n" + part("bytes 0-2/3", "abc") + lastEdge + "epilogue", []extent.Range{{Off: 0, Len: 3}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := sendParts(t, s, fmt.Sprint(tt.size), tt.body)
			if a.StatusCode != http.StatusOK {
				t.Fatalf("%s\n%s", a.Status, a.body)
			}
			checkDocumented(t, doc, "POST", zone+"/volumes/import?volume_name=v&size_bytes=1", a)
			if diff := cmp.Diff(tt.ranges, f.ranges); diff != "" {
				t.Error(diff)
			}
			want := make([]byte, tt.size)
			rest := tt.body
			for _, r := range tt.ranges {
				_, rest, _ = strings.Cut(rest, "\r\n\r\n")
				copy(want[r.Off:r.End()], rest)
			}
			if !bytes.Equal(f.stored, want) {
				t.Error("other bytes were stored")
			}
		})
	}
}

func TestImportOfBadRanges(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	for says, tt := range map[string]struct{ size, body string }{
		"cut before the first part":  {"10", ""},
		"cut within a header":        {"10", "--edge\r\nContent-Ra"},
		"cut within a part":          {"10", "--edge\r\nContent-Range: bytes 0-4/10\r\n\r\nab"},
		"cut behind a part":          {"10", part("bytes 0-4/10", "abcde")},
		"cut within the last edge":   {"10", part("bytes 0-4/10", "abcde") + "--edge-"},
		"a part that is too short":   {"10", part("bytes 0-4/10", "abcd") + lastEdge},
		"a part that is too long":    {"10", part("bytes 0-4/10", "abcdef") + lastEdge},
		"another size":               {"10", part("bytes 0-4/11", "abcde") + lastEdge},
		"no size":                    {"10", part("bytes 0-4/*", "abcde") + lastEdge},
		"past the end":               {"10", part("bytes 6-10/10", "abcde") + lastEdge},
		"backwards":                  {"10", part("bytes 4-0/10", "abcde") + lastEdge},
		"negative":                   {"10", part("bytes -4-0/10", "abcde") + lastEdge},
		"more than a number":         {"10", part("bytes 0-99999999999999999999/10", "abcde") + lastEdge},
		"no range":                   {"10", part("", "abcde") + lastEdge},
		"another unit":               {"10", part("lines 0-4/10", "abcde") + lastEdge},
		"something behind the range": {"10", part("bytes 0-4/10x", "abcde") + lastEdge},
		"no size_bytes":              {"", part("bytes 0-4/10", "abcde") + lastEdge},
	} {
		a := sendParts(t, s, tt.size, tt.body)
		if a.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s\n%s", says, a.Status, a.body)
		}
		checkError(t, a, "1100")
	}
	a := send(t, "tcp", s.tcp, "POST", rawRequest("POST", zone+"/volumes/import?volume_name=v&size_bytes=1", "Host: localhost\r\nContent-Type: multipart/byteranges\r\n", lastEdge))
	checkError(t, a, "1100")
	if !strings.Contains(string(a.body), "no boundary") {
		t.Errorf("without a boundary: %s", a.body)
	}
}
