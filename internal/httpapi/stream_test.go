package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/errs"
	"cairn/internal/httpapi"
	"cairn/internal/job"
	"cairn/internal/service"
)

// follow opens an event stream and returns its lines.
func (s *server) follow(t *testing.T, target string) (lines *bufio.Scanner, leave func()) {
	t.Helper()
	c, err := net.Dial("tcp", s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, s.tcp)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s, Content-Type %q", resp.Status, resp.Header.Get("Content-Type"))
	}
	return bufio.NewScanner(resp.Body), func() { c.Close() }
}

// event reads one event's lines.
func event(t *testing.T, lines *bufio.Scanner) string {
	t.Helper()
	var out []string
	for lines.Scan() {
		if lines.Text() == "" {
			return strings.Join(out, "\n")
		}
		out = append(out, lines.Text())
	}
	t.Fatalf("the stream ended: %v", lines.Err())
	return ""
}

func TestEvents(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	lines, _ := s.follow(t, zone+"/notifier/stream")
	if e := event(t, lines); e != "event:hb\ndata:" {
		t.Fatalf("first came %q", e)
	}
	elsewhere := f.job
	elsewhere.Zone = "ac2"
	working := f.job
	working.Status = job.Working
	f.feed <- f.job
	f.feed <- elsewhere
	f.feed <- working
	for _, status := range []string{"pending", "working"} {
		e := event(t, lines)
		data, ok := strings.CutPrefix(e, "event:message\ndata:")
		if !ok || strings.Contains(data, "\n") {
			t.Fatalf("not a message: %q", e)
		}
		if o := parse(t, data).(map[string]any); o["job_id"] != jobID || o["status"] != status || o["zone"] != "ac1" {
			t.Errorf("want status %s in zone ac1: %s", status, data)
		}
	}
}

func TestEventsBeat(t *testing.T) {
	s := serve(t, newFake(), func(c *httpapi.Config) { c.Heartbeat = time.Millisecond })
	lines, leave := s.follow(t, zone+"/notifier/stream")
	for range 5 {
		if e := event(t, lines); e != "event:hb\ndata:" {
			t.Fatalf("%q", e)
		}
	}
	leave() // goleak sees to it that the handler leaves too
}

func TestEventsEndWithTheServer(t *testing.T) {
	s := serve(t, newFake(), nil)
	lines, _ := s.follow(t, zone+"/notifier/stream")
	event(t, lines)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		t.Fatalf("an event stream holds up the server: %v", err)
	}
	if lines.Scan() {
		t.Errorf("after the end came %q", lines.Text())
	}
}

func TestEventsOfHEAD(t *testing.T) {
	s := serve(t, newFake(), nil)
	if a := s.do(t, "HEAD", zone+"/notifier/stream", "", ""); a.StatusCode != http.StatusOK || a.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%d %q", a.StatusCode, a.Header.Get("Content-Type"))
	}
}

func TestExports(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	doc := document(t, s)
	const size = 300_001
	for _, c := range []struct {
		target string
		call   made
		name   string
		data   string
		length int64
	}{
		{"/volumes/vol-A/export", made{"ExportVolume", "ac1/vol-A"}, "vol-A.raw", "r", size},
		{"/volumes/vol-A/export?format=raw", made{"ExportVolume", "ac1/vol-A"}, "vol-A.raw", "r", size},
		{"/volumes/vol-A/export?format=qcow2", made{"ExportVolume", "ac1/vol-A"}, "vol-A.qcow2", "q", -1},
		{"/volume_snapshots/ss-A/export", made{"ExportSnapshot", "ac1/ss-A"}, "ss-A.raw", "r", size},
		{"/snapshots/:ss-A/export?format=qcow2", made{"ExportSnapshot", "ac1/ss-A"}, "ss-A.qcow2", "q", -1},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			f.image = newImage(size, -1)
			a := s.do(t, method, zone+c.target, "", "")
			if a.StatusCode != http.StatusOK || a.ContentLength != c.length || a.cut != nil {
				t.Errorf("%s %s: %s, length %d, %v", method, c.target, a.Status, a.ContentLength, a.cut)
			}
			if d := a.Header.Get("Content-Disposition"); d != `attachment; filename="`+c.name+`"` {
				t.Errorf("%s: Content-Disposition %s", c.target, d)
			}
			want := ""
			if method == "GET" {
				want = strings.Repeat(c.data, size)
			}
			if string(a.body) != want {
				t.Errorf("%s %s: %d bytes, not the volume's", method, c.target, len(a.body))
			}
			if diff := cmp.Diff([]made{c.call}, f.take()); diff != "" {
				t.Errorf("%s: %s", c.target, diff)
			}
			checkDocumented(t, doc, method, zone+c.target, a)
			<-f.image.closed
		}
	}
	for _, target := range []string{"/volumes/vol-A/export?format=vmdk", "/volumes/:volume_id/export", "/volume_snapshots/ss-A,ss-B/export"} {
		a := s.do(t, "GET", zone+target, "", "")
		if a.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d", target, a.StatusCode)
		}
		checkError(t, a, "1100")
	}
	if calls := f.take(); calls != nil {
		t.Errorf("the service was called: %v", calls)
	}
	f.err = errs.New(errs.NotFound, "volume vol-A does not exist")
	a := s.do(t, "GET", zone+"/volumes/vol-A/export", "", "")
	checkError(t, a, "2100")
}

func TestExportThatFails(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	for _, format := range []string{"raw", "qcow2"} {
		for _, after := range []int64{1, 100, 4096, 200_000, 299_999} {
			f.image = newImage(300_000, after)
			a, err := try("tcp", s.tcp, "GET", rawRequest("GET", zone+"/volumes/vol-A/export?format="+format, "Host: localhost\r\n", ""))
			<-f.image.closed
			if err == nil && a.cut == nil {
				t.Errorf("%s: a stream that broke after %d bytes was taken for whole", format, after)
			}
		}
		f.image = newImage(300_000, 0)
		a := s.do(t, "GET", zone+"/volumes/vol-A/export?format="+format, "", "")
		<-f.image.closed
		if a.StatusCode != http.StatusInternalServerError || a.Header.Get("Content-Disposition") != "" {
			t.Errorf("%s: a failure before the first byte: %s", format, a.Status)
		}
		checkError(t, a, "5000")
	}
	if !strings.Contains(s.log.String(), "chunk 7 is unreadable") {
		t.Error("the log lacks the cause")
	}
}

func TestExportWhoseReaderLeaves(t *testing.T) {
	f := newFake()
	f.image = newImage(200_000, 100_000)
	f.image.block = true
	s := serve(t, f, nil)
	c, err := net.Dial("tcp", s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET %s/volumes/vol-A/export?format=qcow2 HTTP/1.1\r\nHost: %s\r\n\r\n", zone, s.tcp)
	if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	c.Close()
	<-f.image.closed // else the volume stays held
}

func TestImport(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	doc := document(t, s)
	data := strings.Repeat("0123456789abcdef", 1<<17) // 2 MiB: no JSON body may be so large
	target := zone + "/volumes/import?volume_name=a%20b&volume_type=4"
	want := []made{{"ImportVolume", service.ImportVolume{Origin: here, Name: "a b", Type: 4, SizeBytes: int64(len(data))}}}
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(data), data)
	for says, raw := range map[string]string{
		"length":            rawRequest("POST", target, "Host: localhost\r\n", data),
		"length and size":   rawRequest("POST", target+fmt.Sprintf("&size_bytes=%d", len(data)), "Host: localhost\r\n", data),
		"chunked with size": rawRequest("POST", target+fmt.Sprintf("&size_bytes=%d", len(data)), "Host: localhost\r\nTransfer-Encoding: chunked\r\n", "") + chunked,
		"a form":            rawRequest("POST", target, "Host: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n", data),
	} {
		f.stored = nil
		a := send(t, "tcp", s.tcp, "POST", raw)
		if a.StatusCode != http.StatusOK || !bytes.Equal(f.stored, []byte(data)) {
			t.Errorf("%s: %s, %d bytes stored\n%s", says, a.Status, len(f.stored), a.body)
		}
		if diff := cmp.Diff(want, f.take()); diff != "" {
			t.Errorf("%s: %s", says, diff)
		}
		checkDocumented(t, doc, "POST", target, a)
	}
	for says, raw := range map[string]string{
		"no size":           rawRequest("POST", target, "Host: localhost\r\nTransfer-Encoding: chunked\r\n", "") + "0\r\n\r\n",
		"sizes that differ": rawRequest("POST", target+"&size_bytes=3", "Host: localhost\r\n", data),
		"size 0":            rawRequest("POST", target+"&size_bytes=0", "Host: localhost\r\nTransfer-Encoding: chunked\r\n", "") + "0\r\n\r\n",
		"size in words":     rawRequest("POST", target+"&size_bytes=ten", "Host: localhost\r\n", data),
		"type in words":     rawRequest("POST", zone+"/volumes/import?volume_name=v&volume_type=ssd", "Host: localhost\r\n", data),
	} {
		a := send(t, "tcp", s.tcp, "POST", raw)
		if a.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", says, a.Status)
		}
		checkError(t, a, "1100")
	}
	if calls := f.take(); calls != nil {
		t.Errorf("the service was called: %v", calls)
	}
	f.err = errs.New(errs.Full, "no space is left for the volume; free some")
	a := send(t, "tcp", s.tcp, "POST", rawRequest("POST", target, "Host: localhost\r\n", data))
	checkError(t, a, "5100")
}
