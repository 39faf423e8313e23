package httpapi_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/internal/httpapi"
)

func TestBodyLimit(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	target := zone + "/volume_snapshots"
	fill := func(n int) string {
		head, tail := `{"resources":["vol-A"],"snapshot_name":"n","padding":"`, `"}`
		return head + strings.Repeat("x", n-len(head)-len(tail)) + tail
	}
	if a := s.do(t, "POST", target, "", fill(1<<20)); a.StatusCode != http.StatusOK {
		t.Errorf("exactly 1 MiB: %d %s", a.StatusCode, a.body)
	}
	f.take()
	large, huge := fill(1<<20+1), fill(12<<20)
	for says, raw := range map[string]string{
		"a byte more":   rawRequest("POST", target, "Host: localhost\r\n", large),
		"chunked":       rawRequest("POST", target, "Host: localhost\r\nTransfer-Encoding: chunked\r\n", "") + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(large), large),
		"much more":     rawRequest("POST", target, "Host: localhost\r\n", huge),
		"chunked, more": rawRequest("POST", target, "Host: localhost\r\nTransfer-Encoding: chunked\r\n", "") + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(huge), huge),
		"GET":           rawRequest("GET", target, "Host: localhost\r\n", large),
		"asked in vain": rawRequest("POST", target, "Host: localhost\r\nExpect: 100-continue\r\nContent-Length: 2000000\r\n", ""),
	} {
		a, err := try("tcp", s.tcp, "POST", raw)
		if err != nil {
			t.Errorf("%s: %v", says, err)
			continue
		}
		if a.StatusCode != http.StatusRequestEntityTooLarge || a.cut != nil || !a.Close {
			t.Errorf("%s: %s, %v, close %v", says, a.Status, a.cut, a.Close)
		}
		checkError(t, a, "1100")
	}
	for says, target := range map[string]string{"404": "/nothing", "zone": "/v2/zone/x/volume_snapshots", "405": zone + "/jobs"} {
		a, err := try("tcp", s.tcp, "POST", rawRequest("POST", target, "Host: localhost\r\n", huge))
		if err != nil {
			t.Errorf("%s with a large body: %v", says, err)
			continue
		}
		if a.StatusCode/100 != 4 || a.cut != nil {
			t.Errorf("%s with a large body: %s, %v", says, a.Status, a.cut)
		}
	}
	if calls := f.take(); calls != nil {
		t.Errorf("the service was called: %v", calls)
	}
}

func TestBodyThatStops(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	c, err := net.Dial("tcp", s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST %s/volume_snapshots HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{", zone)
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest || f.take() != nil {
		t.Errorf("half a body: %s", resp.Status)
	}
}

func TestConcurrencyLimit(t *testing.T) {
	f := newFake()
	f.block = make(chan struct{})
	s := serve(t, f, func(c *httpapi.Config) { c.MaxConcurrent, c.MaxStreams = 2, 1 })
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			if a := s.do(t, "GET", zone+"/jobs", "", ""); a.StatusCode != http.StatusOK {
				t.Errorf("a call within the limit: %d", a.StatusCode)
			}
		})
	}
	for reached := 0; reached < 2; time.Sleep(time.Millisecond) {
		reached += len(f.take())
	}
	a := s.do(t, "GET", zone+"/jobs", "", "")
	if a.StatusCode != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" {
		t.Errorf("one too many: %s", a.Status)
	}
	checkError(t, a, "5100")
	if a := s.do(t, "GET", "/healthz", "", ""); a.StatusCode != http.StatusOK {
		t.Errorf("healthz of a busy server: %d", a.StatusCode)
	}

	lines, leave := s.follow(t, zone+"/notifier/stream") // streams have a limit of their own
	event(t, lines)
	a = s.do(t, "GET", zone+"/notifier/stream", "", "")
	if a.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one stream too many: %s", a.Status)
	}
	checkError(t, a, "5100")
	leave()
	close(f.block)
	wait.Wait()
	if a := s.do(t, "GET", zone+"/jobs", "", ""); a.StatusCode != http.StatusOK {
		t.Errorf("afterwards: %d", a.StatusCode)
	}
}

func TestForeignPages(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	for _, c := range []struct {
		says, method, headers string
		status                int
	}{
		{"a program", "POST", "Host: " + s.tcp, 200},
		{"localhost", "POST", "Host: localhost:7480", 200},
		{"localhost in capitals, no port", "POST", "Host: LOCALHOST", 200},
		{"127.0.0.0/8", "POST", "Host: 127.9.8.7:1", 200},
		{"IPv6", "POST", "Host: [::1]:7480", 200},
		{"IPv6 without a port", "POST", "Host: [::1]", 200},
		{"own page", "POST", "Host: localhost:7480\r\nOrigin: http://localhost:7480\r\nSec-Fetch-Site: same-origin", 200},
		{"own page of an old browser", "POST", "Host: localhost:7480\r\nOrigin: http://localhost:7480", 200},
		{"typed by the operator", "POST", "Host: localhost:7480\r\nSec-Fetch-Site: none", 200},
		{"another site", "POST", "Host: localhost:7480\r\nOrigin: http://evil.example\r\nSec-Fetch-Site: cross-site", 403},
		{"another port", "POST", "Host: localhost:7480\r\nOrigin: http://localhost:3000\r\nSec-Fetch-Site: same-site", 403},
		{"another site, old browser", "POST", "Host: localhost:7480\r\nOrigin: http://evil.example", 403},
		{"a sandboxed page", "POST", "Host: localhost:7480\r\nOrigin: null", 403},
		{"another site may link to a GET", "GET", "Host: localhost:7480\r\nSec-Fetch-Site: cross-site", 200},
		{"DNS rebinding", "POST", "Host: evil.example:7480", 403},
		{"DNS rebinding, reading", "GET", "Host: evil.example:7480\r\nSec-Fetch-Site: same-origin", 403},
		{"a name that only looks like it", "GET", "Host: localhost.evil.example", 403},
		{"a network address", "GET", "Host: 192.168.1.1:7480", 403},
		{"a number that only looks like it", "GET", "Host: 127.0.0.1.evil.example", 403},
	} {
		a := send(t, "tcp", s.tcp, c.method, rawRequest(c.method, zone+"/volume_snapshots", c.headers+"\r\n", `{"resources":["vol-A"],"snapshot_name":"n"}`))
		called := len(f.take())
		if a.StatusCode != c.status || (called == 1) != (c.status == 200) {
			t.Errorf("%s: %d, %d calls\n%s", c.says, a.StatusCode, called, a.body)
		}
		if c.status == 403 {
			checkError(t, a, "1400")
		}
	}
	raw := "GET " + zone + "/jobs HTTP/1.0\r\n\r\n"
	if a := send(t, "tcp", s.tcp, "GET", raw); a.StatusCode != http.StatusOK {
		t.Errorf("HTTP/1.0 without a Host: %d", a.StatusCode)
	}
	if a := s.doUnix(t, "GET", zone+"/jobs", "", ""); a.StatusCode != http.StatusOK {
		t.Errorf("any Host on the unix socket: %d", a.StatusCode)
	}
}

// What net/http refuses before any handler runs is JSON too.
func TestProtocolErrors(t *testing.T) {
	f := newFake()
	s := serve(t, f, nil)
	for _, c := range []struct {
		says, raw string
		status    int
	}{
		{"bad escape in the path", rawRequest("GET", zone+"/volume_snapshots/%zz", "Host: localhost\r\n", ""), 400},
		{"space in the address", rawRequest("GET", zone+"/volume_snapshots?snapshots=['a', 'b']", "Host: localhost\r\n", ""), 400},
		{"no Host", rawRequest("GET", zone+"/jobs", "", ""), 400},
		{"no HTTP at all", "hello\r\n\r\n", 400},
		{"headers too large", rawRequest("GET", zone+"/jobs", "Host: localhost\r\nX: "+strings.Repeat("x", 80<<10)+"\r\n", ""), 431},
		{"unknown encoding", rawRequest("POST", zone+"/jobs", "Host: localhost\r\nTransfer-Encoding: rot13\r\n", ""), 501},
		{"unknown expectation", rawRequest("POST", zone+"/jobs", "Host: localhost\r\nExpect: miracles\r\n", ""), 417},
	} {
		a := send(t, "tcp", s.tcp, "GET", c.raw)
		if a.StatusCode != c.status || a.cut != nil {
			t.Errorf("%s: %s, %v\n%s", c.says, a.Status, a.cut, a.body)
		}
		checkError(t, a, "1100")
		if !validUUID(a.Header.Get("X-Request-Id")) {
			t.Errorf("%s: X-Request-Id %q", c.says, a.Header.Get("X-Request-Id"))
		}
	}
	if calls := f.take(); calls != nil {
		t.Errorf("the service was called: %v", calls)
	}
}

// One connection serves request after request, refused ones in between.
func TestConnectionIsKept(t *testing.T) {
	s := serve(t, newFake(), nil)
	c, err := net.Dial("tcp", s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	for i, raw := range []string{
		rawRequest("POST", zone+"/volume_snapshots", "Host: localhost\r\n", `{{{`),
		rawRequest("GET", "/nothing", "Host: localhost\r\n", strings.Repeat("x", 100_000)),
		rawRequest("GET", zone+"/volume_snapshots?limit=x", "Host: localhost\r\n", "ignored"),
		rawRequest("GET", zone+"/volume_snapshots", "Host: localhost\r\n", ""),
	} {
		if _, err := io.WriteString(c, raw); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
}

func TestHealthOfARestrictedServer(t *testing.T) {
	f := newFake()
	f.refused = "the database is old"
	s := serve(t, f, nil)
	want := `{"status":"restricted","version":"1.2.3","reason":"the database is old"}`
	if a := s.do(t, "GET", "/healthz", "", ""); a.StatusCode != http.StatusOK || strings.TrimSpace(string(a.body)) != want {
		t.Errorf("%s %s, want %s", a.Status, a.body, want)
	}
}
