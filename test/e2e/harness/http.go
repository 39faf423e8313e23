package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// callLimit bounds one call, so that a server that hangs fails a test instead
// of stopping all of them.
const callLimit = 2 * time.Minute

// Client speaks HTTP to one address of one server.
type Client struct {
	base string
	zone string // path prefix of all zone calls
	hc   *http.Client

	// Answered, if set, is told of each whole answer before anybody else sees
	// it, on the goroutine that asked.
	Answered func(Response)
}

func newClient(base, socket string) *Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	if socket != "" {
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}
	}
	return &Client{base: base, zone: "/v2/zone/ac1", hc: &http.Client{Transport: tr}}
}

// Response is a whole answer.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
	Call   string // method and path, for messages
}

// Request is a call spelled out. Path is absolute when it starts with a
// slash, else below /v2/zone/ac1/.
type Request struct {
	Method string
	Path   string
	Body   string
	Header http.Header
	Host   string
}

// Do sends a request as it is. Nothing is escaped or added, so that odd but
// real requests arrive as written.
func (c *Client) Do(t TB, r Request) Response {
	t.Helper()
	resp, err := c.Try(r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, r.Path, err)
	}
	return resp
}

// Try is Do for calls that may find no server.
func (c *Client) Try(r Request) (Response, error) {
	var body io.Reader
	if r.Body != "" {
		body = strings.NewReader(r.Body)
	}
	hr, cancel, err := c.newRequest(r, body)
	if err != nil {
		return Response{}, err
	}
	defer cancel()
	resp, err := c.hc.Do(hr)
	if err != nil {
		return Response{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return Response{}, fmt.Errorf("read the answer: %w", err)
	}
	return c.answer(Response{Status: resp.StatusCode, Header: resp.Header, Body: b, Call: r.Method + " " + r.Path}), nil
}

func (c *Client) answer(r Response) Response {
	if c.Answered != nil {
		c.Answered(r)
	}
	return r
}

func (c *Client) newRequest(r Request, body io.Reader) (*http.Request, context.CancelFunc, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	hr, err := http.NewRequestWithContext(ctx, r.Method, c.base+c.path(r.Path), body)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	for k, vs := range r.Header {
		hr.Header[k] = vs
	}
	hr.Host = r.Host
	return hr, cancel, nil
}

func (c *Client) path(p string) string {
	if strings.HasPrefix(p, "/") {
		return p
	}
	return c.zone + "/" + p
}

// Get is a GET of a path.
func (c *Client) Get(t TB, path string) Response {
	t.Helper()
	return c.Do(t, Request{Method: http.MethodGet, Path: path})
}

// Send marshals body and sends it as JSON.
func (c *Client) Send(t TB, method, path string, body any) Response {
	t.Helper()
	r, err := c.TrySend(method, path, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

// TrySend is Send for calls that may find no server.
func (c *Client) TrySend(method, path string, body any) (Response, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return Response{}, err
	}
	return c.Try(Request{Method: method, Path: path, Body: string(b),
		Header: http.Header{"Content-Type": {"application/json"}}})
}

// Upload sends a stream of known or unknown (-1) length.
func (c *Client) Upload(t TB, path string, body io.Reader, length int64) Response {
	t.Helper()
	hr, cancel, err := c.newRequest(Request{Method: http.MethodPost, Path: path}, body)
	if err != nil {
		t.Fatalf("POST %s: %v", path, err)
	}
	defer cancel()
	hr.ContentLength = length
	hr.Header.Set("Content-Type", "application/octet-stream")
	resp, err := c.hc.Do(hr)
	if err != nil {
		t.Fatalf("POST %s: %v", path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("POST %s: read the answer: %v", path, err)
	}
	return c.answer(Response{Status: resp.StatusCode, Header: resp.Header, Body: b, Call: "POST " + path})
}

// Stream hands a 200's body to fn while it arrives. Another status gives the
// answer instead, and fn is not called.
func (c *Client) Stream(t TB, path string, fn func(body io.Reader) error) Response {
	t.Helper()
	hr, cancel, err := c.newRequest(Request{Method: http.MethodGet, Path: path}, nil)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	defer cancel()
	resp, err := c.hc.Do(hr)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	defer resp.Body.Close()
	out := Response{Status: resp.StatusCode, Header: resp.Header, Call: "GET " + path}
	if resp.StatusCode == http.StatusOK {
		if err := fn(resp.Body); err != nil {
			t.Fatalf("GET %s: %v", path, err)
		}
		return out
	}
	if out.Body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatalf("GET %s: read the answer: %v", path, err)
	}
	return out
}

// Into decodes a 200 answer.
func (r Response) Into(t TB, v any) {
	t.Helper()
	if r.Status != http.StatusOK {
		t.Fatalf("%s: answered %d %s, want 200", r.Call, r.Status, r.Body)
	}
	dec := json.NewDecoder(bytes.NewReader(r.Body))
	if err := dec.Decode(v); err != nil {
		t.Fatalf("%s: answer is not JSON: %v\n%s", r.Call, err, r.Body)
	}
}

// Object decodes any JSON object, whatever the status.
func (r Response) Object(t TB) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(r.Body, &m); err != nil {
		t.Fatalf("%s: answer %d is not a JSON object: %v\n%s", r.Call, r.Status, err, r.Body)
	}
	return m
}

// APIError is the body of every answer that is not 2xx.
type APIError struct {
	Code      *string `json:"code"`
	Message   *string `json:"message"`
	Detail    *string `json:"detail"`
	RequestID *string `json:"request_id"`
}

// WantError checks status, code and the shape of an error answer, and
// returns its message.
func (r Response) WantError(t TB, status int, code string) string {
	t.Helper()
	if r.Status != status {
		t.Errorf("%s: answered %d %s, want %d", r.Call, r.Status, r.Body, status)
		return ""
	}
	var e APIError
	if err := json.Unmarshal(r.Body, &e); err != nil {
		t.Errorf("%s: error body is not the JSON of API.md §5: %v\n%s", r.Call, err, r.Body)
		return ""
	}
	if e.Code == nil || e.Message == nil || e.Detail == nil || e.RequestID == nil {
		t.Errorf("%s: error body lacks one of code, message, detail, request_id: %s", r.Call, r.Body)
		return ""
	}
	if *e.Code != code {
		t.Errorf("%s: code %q (%s), want %q", r.Call, *e.Code, *e.Message, code)
	}
	if *e.Message == "" || *e.RequestID == "" {
		t.Errorf("%s: empty message or request_id: %s", r.Call, r.Body)
	}
	return *e.Message
}
