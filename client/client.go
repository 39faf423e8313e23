// Package client talks to a Cairn server over its REST API, by TCP or by the
// server's unix socket.
//
//	c, err := client.New("unix:///var/lib/cairn/cairn.sock")
//	job, err := c.CreateSnapshots(ctx, client.CreateSnapshots{Resources: []string{"vol-ABCD1234"}, Name: "nightly"})
//	job, err = c.WaitJob(ctx, job.ID, nil)
//	if err == nil { err = job.Err() }
//
// Invariants:
//   - a call that fails gives an *Error (the server answered) or an error for
//     which errors.Is(err, ErrUnreachable) holds (it did not), or ctx's error;
//   - nothing that changes the server is ever sent twice;
//   - a stream that was cut reads as an error, never as a shorter whole.
//
// A Client may be used by any number of goroutines.
package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// DefaultServer is where a server listens unless it was told otherwise.
	DefaultServer = "http://127.0.0.1:7480"
	// DefaultZone is the zone of a server that was not told other names.
	DefaultZone = "ac1"

	dialTimeout = 10 * time.Second
	// maxAnswer bounds the memory one JSON answer can take. The largest are
	// a page of 100 rows and a scrub's report of 1000 findings.
	maxAnswer = 32 << 20
)

// Client is a connection pool to one zone of one server.
type Client struct {
	server string // as the caller gave it, for messages
	base   string // scheme and host of the requests, without a final slash
	socket string // path of the unix socket; "" over TCP
	zone   string
	http   *http.Client
}

// Option changes a new Client.
type Option func(*Client)

// WithZone chooses the zone; the default is DefaultZone.
func WithZone(zone string) Option { return func(c *Client) { c.zone = zone } }

// WithHTTPClient sends requests by h. For a unix:// server its transport must
// dial the socket by itself.
func WithHTTPClient(h *http.Client) Option { return func(c *Client) { c.http = h } }

// New makes a client of the server at http://host:port, https://host:port or
// unix:///path/of/the/socket. It does not connect yet.
func New(server string, opts ...Option) (*Client, error) {
	c := &Client{server: server, zone: DefaultZone}
	scheme, rest, found := strings.Cut(server, "://")
	switch {
	case !found || rest == "":
		return nil, fmt.Errorf("server %q is not an address: say http://HOST:PORT or unix://PATH", server)
	case scheme == "unix":
		c.socket = rest
		c.base = "http://localhost"
	case scheme == "http" || scheme == "https":
		u, err := url.Parse(server)
		if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, fmt.Errorf("server %q is not an address: say http://HOST:PORT or unix://PATH", server)
		}
		c.base = strings.TrimRight(server, "/")
	default:
		return nil, fmt.Errorf("server %q has the unknown scheme %q: say http://HOST:PORT or unix://PATH", server, scheme)
	}
	for _, o := range opts {
		o(c)
	}
	if c.http == nil {
		c.http = &http.Client{Transport: c.transport()}
	}
	return c, nil
}

// transport has no timeout over a whole exchange, since exports take hours;
// callers bound theirs by the context.
func (c *Client) transport() *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	t := &http.Transport{
		DialContext:         dialer.DialContext,
		TLSHandshakeTimeout: dialTimeout,
		Proxy:               http.ProxyFromEnvironment,
		MaxIdleConnsPerHost: 8,
		IdleConnTimeout:     90 * time.Second,
		// An import asks before it sends: a refusal costs no upload.
		ExpectContinueTimeout: 2 * time.Second,
		// The length of a raw export must stay visible.
		DisableCompression: true,
	}
	if c.socket != "" {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", c.socket)
		}
	}
	return t
}

// Server is the address that New was given.
func (c *Client) Server() string { return c.server }

// Zone is the zone that the client's calls go to.
func (c *Client) Zone() string { return c.zone }

// Local reports whether the client uses the server's unix socket, which alone
// accepts calls that name a path on the server.
func (c *Client) Local() bool { return c.socket != "" }

// Close drops idle connections. Running calls go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request is one exchange.
type request struct {
	method string
	path   []string // below the zone; each element is escaped
	query  url.Values
	body   any // encoded as JSON; nil: none

	root       bool      // path is below the server, not below the zone
	stream     io.Reader // instead of body: sent as it is
	streamSize int64     // -1: not known
	kind       string    // of stream; default application/octet-stream
	accept     string    // default application/json
}

func (c *Client) url(r request) string {
	var b strings.Builder
	b.WriteString(c.base)
	if !r.root {
		b.WriteString("/v2/zone/" + url.PathEscape(c.zone))
	}
	for _, p := range r.path {
		b.WriteString("/" + url.PathEscape(p))
	}
	if len(r.query) > 0 {
		b.WriteString("?" + r.query.Encode())
	}
	return b.String()
}

// do sends the request and returns an answer with a 2xx status, whose body
// the caller closes. All other answers become an *Error.
func (c *Client) do(ctx context.Context, r request) (*http.Response, error) {
	var body io.Reader
	if r.body != nil {
		b, err := json.Marshal(r.body)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	if r.stream != nil {
		body = r.stream
		if r.streamSize == 0 {
			body = http.NoBody // else net/http takes the length for unknown
		}
	}
	req, err := http.NewRequestWithContext(ctx, r.method, c.url(r), body)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	if r.accept != "" {
		req.Header.Set("Accept", r.accept)
	}
	switch {
	case r.stream != nil:
		req.ContentLength = r.streamSize
		req.Header.Set("Content-Type", cmp.Or(r.kind, "application/octet-stream"))
		req.Header.Set("Expect", "100-continue")
	case r.body != nil:
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		defer resp.Body.Close()
		return nil, errorOf(resp)
	}
	return resp, nil
}

// call sends the request and decodes the answer into out, unless out is nil.
func (c *Client) call(ctx context.Context, r request, out any) error {
	resp, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return c.transportError(ctx, err)
	}
	if len(b) > maxAnswer {
		return fmt.Errorf("the answer of %s to %s %s is over %d bytes", c.server, r.method, strings.Join(r.path, "/"), maxAnswer)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s does not answer like a Cairn server: %w", c.server, err)
	}
	return nil
}

// Health is the server's answer about itself.
type Health struct {
	Status  string `json:"status"` // ok, or restricted: nothing can be changed
	Version string `json:"version"`
	Reason  string `json:"reason"` // why it is restricted
}

// Health asks whether the server serves, and which version it is.
func (c *Client) Health(ctx context.Context) (Health, error) {
	var h Health
	err := c.call(ctx, request{method: http.MethodGet, root: true, path: []string{"healthz"}}, &h)
	return h, err
}
