package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"cairn/client"
)

// salvaged is a whole answer to a salvage of content.
func salvaged(content []byte, report string) string {
	return "--edge\r\nContent-Type: application/octet-stream\r\nContent-Length: " + fmt.Sprint(len(content)) + "\r\n\r\n" + string(content) +
		"\r\n--edge\r\nContent-Type: application/json\r\n\r\n" + report + "\r\n--edge--\r\n"
}

func sendParts(body string, then func()) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/zone/ac1/volume_snapshots/ss-1/export" || r.URL.RawQuery != "salvage=1" {
			http.Error(w, "{}", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", `multipart/mixed; boundary="edge"`)
		_, _ = io.WriteString(w, body)
		w.(http.Flusher).Flush()
		if then != nil {
			then()
		}
	}
}

const salvageReport = `{"snapshot_id":"ss-1","size_bytes":300000,"bad_bytes":5,"joined":false,"bad_ranges":[{"offset":7,"length":5,"cause":"damaged"}]}`

func TestSalvage(t *testing.T) {
	content := bytes.Repeat([]byte("\r\n--edg"), 300_000/7)
	s, err := dial(t, sendParts(salvaged(content, salvageReport), nil)).SalvageSnapshot(t.Context(), "ss-1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, content) || s.SizeBytes != int64(len(content)) {
		t.Errorf("%d bytes of %d, %v", len(got), s.SizeBytes, err)
	}
	r := s.Report()
	if r.Snapshot != "ss-1" || r.BadBytes != 5 || len(r.BadRanges) != 1 || r.BadRanges[0] != (client.BadRange{Offset: 7, Length: 5, Cause: client.Damaged}) {
		t.Errorf("%+v", r)
	}
	if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the end: %d, %v", n, err)
	}
}

// However the stream is cut, it is no whole: not at any byte, and not even when
// the server ends it in an orderly way too early.
func TestSalvageCut(t *testing.T) {
	body := salvaged([]byte("the volume's bytes"), salvageReport)
	for n := range len(body) {
		// Behind the closing boundary's dashes nothing more is told.
		ordered := n >= strings.Index(body, "--edge--")+len("--edge--")
		for _, abort := range []bool{true, false} {
			if !abort && ordered {
				continue
			}
			then := func() {}
			if abort {
				then = func() { panic(http.ErrAbortHandler) }
			}
			s, err := dial(t, sendParts(body[:n], then)).SalvageSnapshot(t.Context(), "ss-1")
			if err == nil {
				_, err = io.ReadAll(s)
				_ = s.Close()
			}
			if !errors.Is(err, client.ErrUnreachable) {
				t.Fatalf("cut to %d bytes (abort=%t) of %q: %v", n, abort, body, err)
			}
		}
	}
}

func TestSalvageRefusesWhatItIsNot(t *testing.T) {
	content := []byte("the volume's bytes")
	for name, serve := range map[string]http.HandlerFunc{
		"an export":       func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) },
		"no JSON":         sendParts(salvaged(content, "<html>"), nil),
		"no length":       sendParts(strings.Replace(salvaged(content, "{}"), "Content-Length", "X-Length", 1), nil),
		"a wrong length":  sendParts(strings.Replace(salvaged(content, "{}"), "Content-Length: 18", "Content-Length: 17", 1), nil),
		"one part":        sendParts("--edge\r\nContent-Length: 1\r\n\r\nx\r\n--edge--\r\n", nil),
		"three parts":     sendParts(strings.Replace(salvaged(content, "{}"), "--edge--", "--edge\r\n\r\nmore\r\n--edge--", 1), nil),
		"an endless list": sendParts(salvaged(content, `{"x":"`+strings.Repeat("x", 33<<20)+`"}`), nil),
	} {
		s, err := dial(t, serve).SalvageSnapshot(t.Context(), "ss-1")
		if err == nil {
			_, err = io.ReadAll(s)
			_ = s.Close()
		}
		if err == nil {
			t.Errorf("%s: taken for a salvage", name)
		}
	}
	_, err := dial(t, sendParts("", nil)).SalvageSnapshot(t.Context(), "ss-2")
	if !client.IsStatus(err, http.StatusNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestSalvageEndedByCaller(t *testing.T) {
	blocked := make(chan struct{})
	c := dial(t, sendParts(salvaged([]byte("begin"), salvageReport)[:80], func() { <-blocked }))
	defer close(blocked)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := c.SalvageSnapshot(ctx, "ss-1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cancel()
	if _, err := io.ReadAll(s); !errors.Is(err, context.Canceled) || errors.Is(err, client.ErrUnreachable) {
		t.Error(err)
	}
}
