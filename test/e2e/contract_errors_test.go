package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"cairn/test/e2e/harness"
)

func errorRows() []row {
	bad := func(says, method, path, body string, want int, code, msg string) row {
		return refused(row{says: says, method: method, path: path, body: body, want: want, code: code, msg: msg})
	}
	rows := []row{
		bad("broken JSON", "POST", "volume_snapshots", `{"resources":[`, 400, "1100", ""),
		bad("no JSON at all", "POST", "volume_snapshots", `resources=vol-1`, 400, "1100", ""),
		bad("two JSON documents", "POST", "volume_snapshots", `{"snapshot_name":"x"}{"resources":["{a}"]}`, 400, "1100", ""),
		bad("a body that is no object", "POST", "volume_snapshots", `[1,2]`, 400, "1100", ""),
		bad("an empty body", "POST", "volume_snapshots", ``, 400, "1100", ""),
		bad("a wrong type in the body", "POST", "volume_snapshots", `{"resources":["{a}"],"snapshot_name":7}`, 400, "1100", ""),
		bad("a list of wrong things", "POST", "volume_snapshots", `{"resources":[{"id":"{a}"}],"snapshot_name":"x"}`, 400, "1100", ""),
		bad("unknown zone", "GET", "/v2/zone/nowhere/volume_snapshots", ``, 404, "2100", "nowhere"),
		bad("unknown zone, POST", "POST", "/v2/zone/nowhere/volume_snapshots", `{"resources":["{a}"],"snapshot_name":"x"}`, 404, "2100", "nowhere"),
		bad("router 404", "GET", "/nothing/here", ``, 404, "2100", ""),
		bad("router 404 in a zone", "GET", "nothing", ``, 404, "2100", ""),
		bad("the root", "GET", "/", ``, 404, "2100", ""),
		bad("run: an unknown image", "POST", "instances", `{"instance":{"image_id":"img-NOTTHERE","instance_name":"x"}}`, 404, "2100", "img-NOTTHERE"),
		bad("run: a volume for an image", "POST", "instances", `{"instance":{"image_id":"{a}","instance_name":"x"}}`, 400, "1100", "id of a volume"),
		bad("start: an unknown instance", "POST", "instances/start", `{"instances":["ins-NOTTHERE"]}`, 404, "2100", "ins-NOTTHERE"),
		bad("instance delete: an unknown one", "DELETE", "instances/ins-NOTTHERE", ``, 404, "2100", "ins-NOTTHERE"),
		bad("image delete: an unknown one", "DELETE", "images/img-NOTTHERE", ``, 404, "2100", "img-NOTTHERE"),
		bad("attach: an unknown instance", "POST", "volumes/attach", `{"instance_id":"ins-NOTTHERE","volumes":["{a}"]}`, 404, "2100", "ins-NOTTHERE"),
		bad("attach: nothing", "POST", "volumes/attach", `{}`, 400, "1100", "instance_id"),
		bad("detach: nothing", "POST", "volumes/detach", `{}`, 400, "1100", "volumes"),
		bad("detach: what is not attached", "POST", "volumes/detach", `{"volumes":["{a}"]}`, 409, "1400", "not attached"),
		bad("lease: nothing named", "POST", "lease", `{}`, 400, "1100", "resources"),
		bad("lease: an unknown point", "POST", "lease", `{"resources":["ss-NOTTHERE"]}`, 404, "2100", "ss-NOTTHERE"),
		bad("lease: a volume", "POST", "lease", `{"resources":["vol-NOTTHERE"]}`, 400, "1100", "id of a volume"),
		bad("a bad escape in the query", "GET", "volume_snapshots?search_word=%zz", ``, 400, "1100", ""),
		{says: "router 405 is JSON and says what is allowed", do: func(t *testing.T, f *fixture) {
			for _, path := range []string{"volume_snapshots/apply", "volumes", "jobs"} {
				r := f.api().Do(t, harness.Request{Method: "PATCH", Path: path, Body: "{}"})
				r.WantError(t, http.StatusMethodNotAllowed, "1100")
				if r.Header.Get("Allow") == "" {
					t.Errorf("405 of %s without Allow", path)
				}
			}
		}},
		{says: "the message names the kind, the object and ends well; request_id is in the header too", do: func(t *testing.T, f *fixture) {
			r := f.api().Get(t, "job/00000000-0000-0000-0000-000000000000")
			msg, id := r.WantError(t, 404, "2100"), r.Object(t)["request_id"]
			if !regexp.MustCompile(`^[A-Z]\w+, .+`).MatchString(msg) {
				t.Errorf("message %q is not `<Kind>, <sentence>`", msg)
			}
			if r.Header.Get("X-Request-Id") != id {
				t.Errorf("X-Request-Id %q, request_id %v", r.Header.Get("X-Request-Id"), id)
			}
		}},
		{says: "a body over 1 MiB: 413, answered before the connection closes", do: bodyTooLarge},
		{says: "a body of 1 MiB less a little is read", do: func(t *testing.T, f *fixture) {
			body := `{"description":"","pad":"` + strings.Repeat("x", 1<<20-200) + `"}`
			if r := f.api().Do(t, harness.Request{Method: "PUT", Path: "volume_snapshots/" + f.ids["{bfull}"], Body: body}); r.Status != 204 {
				t.Errorf("answered %d %s", r.Status, r.Body)
			}
		}},
	}
	return rows
}

// bodyTooLarge writes more than is allowed over a plain socket and reads the
// answer only afterwards, as simple clients do.
func bodyTooLarge(t *testing.T, f *fixture) {
	for _, size := range []int{1<<20 + 1, 3 << 20} {
		c, err := net.Dial("tcp", f.srv.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		head := fmt.Sprintf("POST /v2/zone/ac1/volume_snapshots HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", f.srv.Addr, size)
		body := bytes.Repeat([]byte{'x'}, size)
		if _, err := c.Write(append([]byte(head), body...)); err != nil {
			t.Logf("body of %d bytes: the server stopped reading: %v", size, err)
		}
		answer := make([]byte, 4096)
		n, err := io.ReadAtLeast(c, answer, 12)
		if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 413")) || !bytes.Contains(answer[:n], []byte(`"1100"`)) && !bytes.Contains(answer[:n], []byte("application/json")) {
			t.Errorf("body of %d bytes: %v, answer %q", size, err, answer[:n])
		}
	}
	r := f.api().Send(t, "PUT", "volume_snapshots/"+f.ids["{bfull}"], map[string]string{"description": strings.Repeat("x", 2<<20)})
	r.WantError(t, http.StatusRequestEntityTooLarge, "1100")
}

func guardRows() []row {
	return []row{
		{says: "/healthz", method: "GET", path: "/healthz", want: 200, check: func(t *testing.T, _ *fixture, r harness.Response) {
			if m := r.Object(t); m["status"] != "ok" || m["version"] == nil {
				t.Errorf("answered %s", r.Body)
			}
		}},
		{says: "/openapi.json is OpenAPI 3.1 and knows the seven calls", method: "GET", path: "/openapi.json", want: 200,
			check: func(t *testing.T, _ *fixture, r harness.Response) {
				m := r.Object(t)
				if v, _ := m["openapi"].(string); !strings.HasPrefix(v, "3.1") {
					t.Errorf("openapi %v", m["openapi"])
				}
				paths, _ := m["paths"].(map[string]any)
				for _, p := range []string{"", "/apply", "/capture_instance", "/create_volume"} {
					found := false
					for path := range paths {
						found = found || strings.Contains(path, "/volume_snapshots"+p)
					}
					if !found {
						t.Errorf("no path with /volume_snapshots%s", p)
					}
				}
			}},
		{says: "/docs is a page that loads nothing from elsewhere", method: "GET", path: "/docs", want: 200,
			check: func(t *testing.T, _ *fixture, r harness.Response) {
				if m := regexp.MustCompile(`(?:src|href)\s*=\s*"(?:https?:)?//`).Find(r.Body); m != nil || !bytes.Contains(r.Body, []byte("<html")) {
					t.Errorf("%q in %s", m, r.Body)
				}
			}},
		{says: "a foreign Host header (DNS rebinding): 403", do: func(t *testing.T, f *fixture) {
			f.api().Do(t, harness.Request{Method: "GET", Path: "volume_snapshots", Host: "evil.example"}).WantError(t, 403, "1400")
		}},
		refused(row{says: "a cross-origin POST: 403", method: "POST", path: "volume_snapshots", body: `{"resources":["{a}"],"snapshot_name":"x"}`,
			header: http.Header{"Origin": {"http://evil.example"}, "Sec-Fetch-Site": {"cross-site"}}, want: 403, code: "1400"}),
		{says: "localhost as Host is fine", do: func(t *testing.T, f *fixture) {
			_, port, err := net.SplitHostPort(f.srv.Addr)
			if err != nil {
				t.Fatal(err)
			}
			if r := f.api().Do(t, harness.Request{Method: "GET", Path: "volumes", Host: "localhost:" + port}); r.Status != 200 {
				t.Errorf("answered %d %s", r.Status, r.Body)
			}
		}},
		{says: "the same API on the unix socket, mode 0600", do: func(t *testing.T, f *fixture) {
			fi, err := os.Stat(f.srv.Socket())
			if err != nil || fi.Mode().Perm() != 0o600 || fi.Mode().Type() != os.ModeSocket {
				t.Errorf("socket: %v %v", fi, err)
			}
			r := f.srv.Local().Get(t, "volume_snapshots?resource_id="+f.ids["{b}"])
			lists("{bfull}")(t, f, r)
		}},
		{says: "the key file has mode 0600", do: func(t *testing.T, f *fixture) {
			if fi, err := os.Stat(f.srv.Dir + "/repo.key"); err != nil || fi.Mode().Perm() != 0o600 {
				t.Errorf("repo.key: %v %v", fi, err)
			}
		}},
		{says: "any address but loopback: refuses to start and says why", do: func(t *testing.T, f *fixture) {
			for _, addr := range []string{"0.0.0.0:0", ":0", "192.0.2.1:7480"} {
				cmd := exec.Command(f.srv.Bin, "serve", "--data-dir", t.TempDir(), "--listen", addr)
				cmd.Env = harness.CleanEnv()
				out, err := cmd.CombinedOutput()
				if err == nil || !strings.Contains(string(out), "loopback") {
					t.Errorf("--listen %s: %v\n%s", addr, err, out)
				}
			}
		}},
		{says: "a second server on the same folder: refuses to start", do: func(t *testing.T, f *fixture) {
			cmd := exec.Command(f.srv.Bin, "serve", "--data-dir", f.srv.Dir, "--listen", "127.0.0.1:0")
			cmd.Env = harness.CleanEnv()
			if out, err := cmd.CombinedOutput(); err == nil {
				t.Errorf("two servers on one folder:\n%s", out)
			}
			f.api().Get(t, "volumes").Object(t)       // the first one is unharmed
			f.srv.Local().Get(t, "volumes").Object(t) // and so is its socket
		}},
		{says: "the log holds request, job, snapshot and volume ids", do: func(t *testing.T, f *fixture) {
			p := f.freshPoint(t)
			log := f.srv.Log(t)
			for _, want := range []string{p.id, p.volume} {
				if !strings.Contains(log, want) {
					t.Errorf("the log does not mention %s", want)
				}
			}
		}},
	}
}
