package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/client"
)

// call is what a server saw of one request.
type call struct{ Method, URI, Body string }

// recorder answers everything with status and body and keeps what it saw.
type recorder struct {
	status int
	body   string
	calls  []call
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	b, _ := io.ReadAll(req.Body)
	r.calls = append(r.calls, call{req.Method, req.URL.RequestURI(), string(b)})
	w.WriteHeader(r.status)
	_, _ = io.WriteString(w, r.body)
}

func dial(t *testing.T, h http.Handler, opts ...client.Option) *client.Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := client.New(srv.URL, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

const jobBody = `{"job_id":"j1","status":"pending","action":"X","resource_ids":["a"],"create_time":"2026-11-23T08:00:00Z","begin_time":""}`

func TestEveryCallOnTheWire(t *testing.T) {
	name, empty := "new", ""
	volumeType := 3
	tests := []struct {
		what string
		do   func(context.Context, *client.Client) (any, error)
		want call
	}{
		{"health", func(ctx context.Context, c *client.Client) (any, error) { return c.Health(ctx) },
			call{"GET", "/healthz", ""}},
		{"list snapshots", func(ctx context.Context, c *client.Client) (any, error) {
			return c.Snapshots(ctx, client.SnapshotFilter{
				IDs: []string{"ss-1", "ss-2"}, ResourceID: "vol-1", Type: client.Full, Status: []string{"deleted", "ceased"},
				Search: "a b&c", RootID: "ss-0", Offset: 5, Limit: 7,
			})
		}, call{"GET", "/v2/zone/z1/volume_snapshots?limit=7&offset=5&resource_id=vol-1&root_id=ss-0&search_word=a+b%26c&snapshot_type=IS_FULL&snapshots=ss-1%2Css-2&status=deleted%2Cceased&verbose=1", ""}},
		{"create snapshots", func(ctx context.Context, c *client.Client) (any, error) {
			return c.CreateSnapshots(ctx, client.CreateSnapshots{Resources: []string{"vol-1"}, Name: "n", Description: "d", Full: true})
		}, call{"POST", "/v2/zone/z1/volume_snapshots", `{"description":"d","is_full":1,"resources":["vol-1"],"snapshot_name":"n"}`}},
		{"delete snapshots", func(ctx context.Context, c *client.Client) (any, error) {
			return c.DeleteSnapshots(ctx, "ss-1", "ss-2")
		},
			call{"DELETE", "/v2/zone/z1/volume_snapshots/ss-1%2Css-2", ""}},
		{"plan delete", func(ctx context.Context, c *client.Client) (any, error) { return c.PlanDeleteSnapshots(ctx, "ss-1") },
			call{"DELETE", "/v2/zone/z1/volume_snapshots/ss-1?dry_run=1", ""}},
		{"apply", func(ctx context.Context, c *client.Client) (any, error) { return c.ApplySnapshots(ctx, "ss-1", "ss-2") },
			call{"POST", "/v2/zone/z1/volume_snapshots/apply", `{"snapshots":["ss-1","ss-2"]}`}},
		{"create volume from", func(ctx context.Context, c *client.Client) (any, error) {
			return c.CreateVolumeFromSnapshot(ctx, "ss-1", client.CloneSnapshot{VolumeName: "n", OnDemand: true})
		}, call{"POST", "/v2/zone/z1/volume_snapshots/create_volume/ss-1", `{"volume_name":"n","on_demand":true}`}},
		{"capture instance", func(ctx context.Context, c *client.Client) (any, error) {
			return c.CaptureInstanceFromSnapshot(ctx, "ss-1", "n")
		}, call{"POST", "/v2/zone/z1/volume_snapshots/capture_instance/ss-1", `{"image_name":"n"}`}},
		{"rename snapshot", func(ctx context.Context, c *client.Client) (any, error) {
			return nil, c.RenameSnapshot(ctx, "ss-1", client.Rename{Name: &name})
		}, call{"PUT", "/v2/zone/z1/volume_snapshots/ss-1", `{"snapshot_name":"new"}`}},
		{"list volumes", func(ctx context.Context, c *client.Client) (any, error) {
			return c.Volumes(ctx, client.VolumeFilter{IDs: []string{"vol-1"}, Type: &volumeType, Status: []string{"available"}, Search: "x", Limit: 2})
		}, call{"GET", "/v2/zone/z1/volumes?limit=2&search_word=x&status=available&volume_type=3&volumes=vol-1", ""}},
		{"create volumes", func(ctx context.Context, c *client.Client) (any, error) {
			return c.CreateVolumes(ctx, client.CreateVolumes{Name: "n", SizeBytes: 1 << 30, Count: 2})
		}, call{"POST", "/v2/zone/z1/volumes", `{"count":2,"size_bytes":1073741824,"volume_name":"n","volume_type":0}`}},
		{"register", func(ctx context.Context, c *client.Client) (any, error) {
			return c.RegisterVolume(ctx, client.RegisterVolume{Path: "/a", Name: "n"})
		}, call{"POST", "/v2/zone/z1/volumes/register", `{"path":"/a","volume_name":"n"}`}},
		{"resize", func(ctx context.Context, c *client.Client) (any, error) { return c.ResizeVolumes(ctx, 4096, "vol-1") },
			call{"POST", "/v2/zone/z1/volumes/resize", `{"size_bytes":4096,"volumes":["vol-1"]}`}},
		{"fill", func(ctx context.Context, c *client.Client) (any, error) {
			return nil, c.FillVolumes(ctx, "vol-1", "vol-2")
		}, call{"POST", "/v2/zone/z1/volumes/fill", `{"volumes":["vol-1","vol-2"]}`}},
		{"serve", func(ctx context.Context, c *client.Client) (any, error) {
			_, err := c.ServeSnapshot(ctx, "ss-1")
			return nil, err
		}, call{"POST", "/v2/zone/z1/volume_snapshots/serve/ss-1", ""}},
		{"unserve", func(ctx context.Context, c *client.Client) (any, error) {
			return nil, c.UnserveSnapshot(ctx, "ss-1", true)
		}, call{"DELETE", "/v2/zone/z1/volume_snapshots/serve/ss-1?force=1", ""}},
		{"delete volumes", func(ctx context.Context, c *client.Client) (any, error) {
			return c.DeleteVolumes(ctx, "vol-1", "vol-2")
		},
			call{"DELETE", "/v2/zone/z1/volumes/vol-1%2Cvol-2", ""}},
		{"rename volume", func(ctx context.Context, c *client.Client) (any, error) {
			return nil, c.RenameVolume(ctx, "vol-1", client.Rename{Description: &empty})
		}, call{"PUT", "/v2/zone/z1/volumes/vol-1", `{"description":""}`}},
		{"import", func(ctx context.Context, c *client.Client) (any, error) {
			return c.ImportVolume(ctx, client.ImportVolume{Name: "n", SizeBytes: 3}, strings.NewReader("abc"))
		}, call{"POST", "/v2/zone/z1/volumes/import?size_bytes=3&volume_name=n&volume_type=0", "abc"}},
		{"job", func(ctx context.Context, c *client.Client) (any, error) { return c.Job(ctx, "j/1") },
			call{"GET", "/v2/zone/z1/job/j%2F1", ""}},
		{"jobs", func(ctx context.Context, c *client.Client) (any, error) {
			return c.Jobs(ctx, client.JobFilter{Status: []string{"failed"}, ResourceID: "vol-1", Offset: 1, Limit: 2})
		}, call{"GET", "/v2/zone/z1/jobs?limit=2&offset=1&resource_id=vol-1&status=failed", ""}},
		{"cancel", func(ctx context.Context, c *client.Client) (any, error) { return c.CancelJob(ctx, "j1") },
			call{"POST", "/v2/zone/z1/job/j1/cancel", ""}},
		{"scrub", func(ctx context.Context, c *client.Client) (any, error) { return c.Scrub(ctx, client.Scrub{}) },
			call{"POST", "/v2/zone/z1/repository/scrub", ""}},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			r := &recorder{status: 200, body: jobBody}
			got, err := tt.do(t.Context(), dial(t, r, client.WithZone("z1")))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]call{tt.want}, r.calls); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
			if j, ok := got.(client.Job); ok && (j.ID != "j1" || j.ResourceIDs[0] != "a" || !j.BeginTime.IsZero()) {
				t.Errorf("decoded %+v", j)
			}
		})
	}
}

func TestUnfinishedJobs(t *testing.T) {
	c := dial(t, &recorder{status: 200, body: "[" + jobBody + "]"})
	jobs, err := c.UnfinishedJobs(t.Context())
	if err != nil || len(jobs) != 1 || jobs[0].ID != "j1" {
		t.Fatalf("%+v, %v", jobs, err)
	}
}

// Objects of the API must survive decoding and encoding: -o json and other
// programs show them again.
func TestObjectsRoundTrip(t *testing.T) {
	tests := []struct {
		into any
		wire string
	}{
		{&client.SnapshotPage{}, `{"snapshots":[{"snapshot_id":"ss-1","snapshot_name":"n","description":"","snapshot_type":"IS_FULL","status":"available","transition_status":"","create_time":"2016-07-15T16:20:05Z","status_time":"2016-07-15T16:20:05Z","snapshot_time":"","is_taken":1,"is_head":0,"head_chain":1,"root_id":"ss-1","parent_id":"self","size":1,"total_size":2,"total_count":3,"lastest_snapshot_time":"2016-07-15T16:20:05Z","resource":{"resource_id":"vol-1","resource_type":"volume","resource_name":"x"},"virtual_size":1048576,"size_bytes":77,"unique_bytes":0,"progress":0.5,"consistency":"crash","group_id":"g","cbt":"scan","reason":"first","damaged":0,"tags":[],"nbd_uris":["nbd://h/ss-1"],"clients":1}],"total_count":1}`},
		{&client.VolumePage{}, `{"volumes":[{"volume_id":"vol-1","volume_name":"n","volume_type":2,"description":"","size":1,"size_bytes":77,"status":"available","transition_status":"","create_time":"2016-07-15T16:20:05Z","status_time":"","instance":{"device":"","instance_id":"","instance_name":""},"driver":"registered","path":"/a","mixed_job":"","zone":"ac1","nbd_uris":["nbd://h/v"],"clients":2,"missing_bytes":3,"on_demand":1}],"total_count":1}`},
		{&client.JobPage{}, `{"jobs":[{"job_id":"j","id_prefix":"","action":"CreateSnapshots","request_id":"r","status":"failed","create_time":"2016-07-15T16:20:05Z","begin_time":"","finished_time":"","info":"i","extra":"","zone":"ac1","resource_ids":["ss-1"],"progress":0.25,"done_bytes":1,"total_bytes":4,"error":{"code":"5000","message":"m"}}],"total_count":1}`},
		{&client.DeletePlan{}, `{"snapshots":["ss-1"],"freed_bytes":5}`},
	}
	for _, tt := range tests {
		if err := json.Unmarshal([]byte(tt.wire), tt.into); err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(tt.into)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.wire, string(got)); diff != "" {
			t.Errorf("%T (-want +got):\n%s", tt.into, diff)
		}
	}
}

func TestErrors(t *testing.T) {
	tests := []struct {
		name, body   string
		status       int
		want         client.Error
		wantSentence string
	}{
		{"of the API", `{"code":"2100","message":"NotFound, snapshot ss-1 does not exist","detail":"d","request_id":"r"}`, 404,
			client.Error{Status: 404, Code: "2100", Message: "NotFound, snapshot ss-1 does not exist", Detail: "d", RequestID: "r"},
			"snapshot ss-1 does not exist"},
		{"code as number", `{"code":2100,"message":"m"}`, 404, client.Error{Status: 404, Code: "2100", Message: "m"}, "m"},
		{"comma in a sentence", `{"code":"1","message":"the disk, it is full"}`, 503,
			client.Error{Status: 503, Code: "1", Message: "the disk, it is full"}, "the disk, it is full"},
		{"a proxy's page", "<h1>Bad Gateway</h1>", 502,
			client.Error{Status: 502, Message: "the server answered 502 Bad Gateway without a reason", Detail: "<h1>Bad Gateway</h1>"},
			"the server answered 502 Bad Gateway without a reason"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := dial(t, &recorder{status: tt.status, body: tt.body}).Job(t.Context(), "j")
			var got *client.Error
			if !errors.As(err, &got) {
				t.Fatalf("got %v", err)
			}
			if diff := cmp.Diff(tt.want, *got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got.Sentence() != tt.wantSentence {
				t.Errorf("sentence %q", got.Sentence())
			}
			if !client.IsStatus(err, tt.status) || client.IsStatus(err, 200) {
				t.Error("IsStatus")
			}
		})
	}
}

func TestNotACairnServer(t *testing.T) {
	for _, body := range []string{"<html>", `{"hello":1}`, ""} {
		_, err := dial(t, &recorder{status: 200, body: body}).Job(t.Context(), "j")
		if err == nil || !strings.Contains(err.Error(), "does not answer like a Cairn server") {
			t.Errorf("%q: %v", body, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	for _, bad := range []string{"", "127.0.0.1:7480", "unix://", "http://", "ftp://x", "http://x?y=1", "http://%zz"} {
		if _, err := client.New(bad); err == nil || !strings.Contains(err.Error(), "http://HOST:PORT or unix://PATH") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for server, local := range map[string]bool{client.DefaultServer: false, "https://h/base/": false, "unix:///a/b": true} {
		c, err := client.New(server)
		if err != nil || c.Local() != local || c.Server() != server || c.Zone() != client.DefaultZone {
			t.Errorf("%q: %+v, %v", server, c, err)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{status: 200, body: `{"status":"ok","version":"v9"}`}
	srv := &http.Server{Handler: r}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	c, err := client.New("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := c.Health(t.Context())
	if err != nil || h.Version != "v9" {
		t.Fatalf("%+v, %v", h, err)
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp := "http://" + l.Addr().String()
	_ = l.Close()
	for _, server := range []string{tcp, "unix://" + filepath.Join(t.TempDir(), "none")} {
		c, err := client.New(server)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Health(t.Context())
		if !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), server) || strings.Contains(err.Error(), "healthz") {
			t.Errorf("%s: %v", server, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Health(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, client.ErrUnreachable) {
			t.Errorf("%s, ended by the caller: %v", server, err)
		}
	}
}

// pages serves n snapshots by the rules of API.md §2, with a cap on limit.
func pages(n int, shift *int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		offset, limit := 0, 20
		_, _ = fmt.Sscan(r.FormValue("offset"), &offset)
		_, _ = fmt.Sscan(r.FormValue("limit"), &limit)
		limit = min(limit, 100)
		p := client.SnapshotPage{TotalCount: n}
		for i := offset; i < min(offset+limit, n); i++ {
			p.Snapshots = append(p.Snapshots, client.Snapshot{ID: fmt.Sprintf("ss-%d", i-*shift)})
		}
		*shift *= 2
		_ = json.NewEncoder(w).Encode(p)
	}
}

func TestAllSnapshots(t *testing.T) {
	tests := []struct {
		name                       string
		n, offset, limit, wantRows int
		shift                      int
	}{
		{"none", 0, 0, 0, 0, 0},
		{"one page", 100, 0, 0, 100, 0},
		{"three pages", 250, 0, 0, 250, 0},
		{"limit over a page", 250, 0, 120, 120, 0},
		{"limit within a page", 250, 0, 3, 3, 0},
		{"offset", 250, 240, 0, 10, 0},
		{"offset past the end", 250, 300, 5, 0, 0},
		{"rows shift: none comes twice", 150, 0, 0, 149, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, pages(tt.n, &tt.shift))
			p, err := c.AllSnapshots(t.Context(), client.SnapshotFilter{Offset: tt.offset, Limit: tt.limit})
			if err != nil || len(p.Snapshots) != tt.wantRows || p.TotalCount != tt.n || p.Snapshots == nil {
				t.Fatalf("%d rows of %d, %v", len(p.Snapshots), p.TotalCount, err)
			}
			seen := map[string]bool{}
			for _, s := range p.Snapshots {
				if seen[s.ID] {
					t.Fatalf("%s came twice", s.ID)
				}
				seen[s.ID] = true
			}
		})
	}
}

func TestLookupOfAbsent(t *testing.T) {
	c := dial(t, &recorder{status: 200, body: `{"total_count":0}`})
	if _, err := c.Snapshot(t.Context(), "ss-1"); !client.IsStatus(err, 404) || !strings.Contains(err.Error(), "ss-1") {
		t.Error(err)
	}
	if _, err := c.Volume(t.Context(), "vol-1"); !client.IsStatus(err, 404) || !strings.Contains(err.Error(), "vol-1") {
		t.Error(err)
	}
}

func TestExportWholeOrError(t *testing.T) {
	content := bytes.Repeat([]byte("cairn"), 100_000)
	tests := []struct {
		name   string
		serve  http.HandlerFunc
		whole  bool
		length int64
	}{
		{"raw", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content)
		}, true, int64(len(content))},
		{"unknown length", func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(content)
		}, true, -1},
		{"raw, cut", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content[:len(content)/2])
			panic(http.ErrAbortHandler)
		}, false, int64(len(content))},
		{"unknown length, cut", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(content)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, false, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e, err := dial(t, tt.serve).ExportSnapshot(t.Context(), "ss-1", client.Raw)
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			if e.SizeBytes != tt.length {
				t.Errorf("length %d, want %d", e.SizeBytes, tt.length)
			}
			got, err := io.ReadAll(e)
			switch {
			case tt.whole && (err != nil || !bytes.Equal(got, content)):
				t.Errorf("%d bytes, %v", len(got), err)
			case !tt.whole && (!errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), "cut")):
				t.Errorf("a cut stream passed as whole: %d bytes, %v", len(got), err)
			}
		})
	}
}

func TestExportEndedByCaller(t *testing.T) {
	c := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "begin")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	ctx, cancel := context.WithCancel(t.Context())
	e, err := c.ExportVolume(ctx, "vol-1", client.Qcow2)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	cancel()
	if _, err := io.ReadAll(e); !errors.Is(err, context.Canceled) || errors.Is(err, client.ErrUnreachable) {
		t.Error(err)
	}
}

func TestImportLengths(t *testing.T) {
	broken := errors.New("bad sector")
	tests := []struct {
		name string
		r    io.Reader
		size int64
		want string // of the error; "" = none
	}{
		{"exact", strings.NewReader("abcd"), 4, ""},
		{"empty", strings.NewReader(""), 0, ""},
		{"short", strings.NewReader("abc"), 4, "the stream ended after 3 bytes, 4 were announced"},
		{"long", strings.NewReader("abcde"), 4, "longer than the 4 bytes announced"},
		{"unreadable", io.MultiReader(strings.NewReader("ab"), failing{broken}), 4, "bad sector"},
		{"unreadable at the end", io.MultiReader(strings.NewReader("abcd"), failing{broken}), 4, "bad sector"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				if err != nil || int64(len(b)) != r.ContentLength {
					panic(http.ErrAbortHandler)
				}
				_, _ = io.WriteString(w, jobBody)
			}))
			_, err := c.ImportVolume(t.Context(), client.ImportVolume{Name: "n", SizeBytes: tt.size}, tt.r)
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, client.ErrUnreachable) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// A refusal must come through whole although the body was never read.
func TestImportRefused(t *testing.T) {
	c := dial(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, `{"code":"2110","message":"Exists, n is taken"}`)
	}))
	sent := &counter{r: bytes.NewReader(make([]byte, 8<<20))}
	_, err := c.ImportVolume(t.Context(), client.ImportVolume{Name: "n", SizeBytes: 8 << 20}, sent)
	if !client.IsStatus(err, http.StatusConflict) {
		t.Fatal(err)
	}
	if sent.n != 0 {
		t.Errorf("%d bytes were sent to a server that refuses", sent.n)
	}
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
