package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"cairn/internal/errs"
)

const (
	// maxBody bounds a JSON body (API.md §5).
	maxBody = 1 << 20
	// drainBody is how much of a body that was too large is still read after
	// the answer, so that a client that writes everything before it reads
	// gets to see the answer and not a reset connection.
	drainBody    = 16 << 20
	drainTimeout = 5 * time.Second
	// bodyTimeout bounds the sending of a JSON body.
	bodyTimeout = 30 * time.Second
)

// request is what is known of one request; handlers find it in their context.
// It belongs to the request's goroutine.
type request struct {
	id    string
	local bool
	err   error // why it was refused, for the log
	attrs []slog.Attr

	body   io.Reader // of an import
	length int64     // of body; -1: not said
	kind   string    // of body: the Content-Type
}

func (r *request) note(attrs ...slog.Attr) { r.attrs = append(r.attrs, attrs...) }

type requestKey struct{}

func requestOf(ctx context.Context) *request {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		return r
	}
	return &request{}
}

// front stands before the router: identity, origin, limits, panics, routing
// errors and the log.
type front struct {
	mux     *http.ServeMux
	zones   []string
	log     *slog.Logger
	origins *http.CrossOriginProtection
	calls   chan struct{} // one token per request
	streams chan struct{} // one token per import, export or event stream
}

func newFront(cfg Config, mux *http.ServeMux) *front {
	calls, streams := cfg.MaxConcurrent, cfg.MaxStreams
	if calls <= 0 {
		calls = 512
	}
	if streams <= 0 {
		streams = 128
	}
	return &front{
		mux: mux, zones: slices.Clone(cfg.Zones), log: cfg.Log,
		origins: http.NewCrossOriginProtection(),
		calls:   make(chan struct{}, calls), streams: make(chan struct{}, streams),
	}
}

func (f *front) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	start := time.Now()
	req := &request{id: uuid.NewString(), local: isLocal(r.Context())}
	r = r.WithContext(context.WithValue(r.Context(), requestKey{}, req))
	w := &writer{ResponseWriter: rw}
	w.Header().Set("X-Request-Id", req.id)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	defer func() {
		cause := recover()
		if cause != nil {
			f.panicked(w, r, cause)
		}
		f.report(w, r, req, time.Since(start), cause != nil)
		if cause != nil && (w.cut || isAbort(cause)) {
			panic(http.ErrAbortHandler) // net/http closes the connection
		}
	}()
	if err := f.serve(w, r, req); err != nil {
		refuse(w, r, err)
	}
}

// refuse answers a request whose body was not read.
func refuse(w *writer, r *http.Request, err error) {
	// Up to here net/http itself reads on before it closes.
	const readByServer = 256 << 10
	if r.ContentLength >= 0 && r.ContentLength <= readByServer {
		writeError(w, r, err)
		return
	}
	// Not every ResponseWriter (a test's recorder) can.
	_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/1: answer first, read on
	w.Header().Set("Connection", "close")
	writeError(w, r, err)
	drain(w, r)
}

// panicked answers in the place of a handler that panicked. An answer that
// has begun is cut.
func (f *front) panicked(w *writer, r *http.Request, cause any) {
	if isAbort(cause) {
		return // a stream that broke; its handler has noted why
	}
	f.log.ErrorContext(r.Context(), "a handler panicked",
		"request_id", requestOf(r.Context()).id, "panic", fmt.Sprint(cause), "stack", string(debug.Stack()))
	if w.status != 0 {
		w.cut = true
		return
	}
	writeError(w, r, errs.New(errs.Internal, ""))
}

// isAbort tells a handler's wish to cut the connection from a bug.
func isAbort(cause any) bool {
	err, ok := cause.(error)
	return ok && errors.Is(err, http.ErrAbortHandler)
}

// report writes the one log line of a request.
func (f *front) report(w *writer, r *http.Request, req *request, took time.Duration, cut bool) {
	level := slog.LevelInfo
	attrs := append([]slog.Attr{
		slog.String("request_id", req.id), slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.Int("status", w.status), slog.Int64("bytes", w.bytes), slog.Duration("took", took), slog.Bool("local", req.local),
	}, req.attrs...)
	if req.err != nil {
		attrs = append(attrs, slog.String("error", req.err.Error()))
	}
	if w.status >= 500 || cut {
		level = slog.LevelError
	}
	f.log.LogAttrs(r.Context(), level, "request", attrs...)
}

// serve refuses r with an error, or answers it.
func (f *front) serve(w *writer, r *http.Request, req *request) error {
	if err := f.checkOrigin(r, req); err != nil {
		return err
	}
	if err := normalize(r); err != nil {
		return err
	}
	_, pattern := f.mux.Handler(r)
	if pattern == "" {
		return f.unrouted(w, r)
	}
	if err := f.checkZone(r.URL); err != nil {
		return err
	}
	if r.URL.Path == "/healthz" { // must answer above all when everything is busy
		f.mux.ServeHTTP(w, r)
		return nil
	}
	stream, sends := streaming(pattern)
	tokens := f.calls
	if stream {
		tokens = f.streams
	}
	select {
	case tokens <- struct{}{}:
		defer func() { <-tokens }()
	default:
		return errs.New(errs.Unavailable, "the server is busy with %d requests of this kind; please try later", cap(tokens))
	}
	if sends {
		req.body, req.length, w.upload = r.Body, r.ContentLength, true
		req.kind = r.Header.Get("Content-Type")
		_ = http.NewResponseController(w).EnableFullDuplex()
		f.mux.ServeHTTP(w, r)
		if w.status >= 300 { // refused, perhaps while the client still sends
			drain(w, r)
		}
		return nil
	}
	return f.serveJSON(w, r)
}

// serveJSON reads the body whole before the router sees the request. Whatever
// the client calls it, it is JSON.
func (f *front) serveJSON(w *writer, r *http.Request) error {
	if r.ContentLength > maxBody {
		return errTooLarge()
	}
	rc := http.NewResponseController(w)
	// Not every ResponseWriter (a test's recorder) has deadlines.
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	switch {
	case len(body) > maxBody:
		return errTooLarge()
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.Header().Set("Connection", "close")
		return badParameter("body", "the body did not arrive within %s; send it at once", bodyTimeout)
	case err != nil:
		w.Header().Set("Connection", "close")
		return &parameterError{parameter: "body", err: errs.Wrap(errs.Invalid, err, "the body could not be read; send it whole")}
	}
	_ = rc.SetReadDeadline(time.Time{})
	if len(bytes.TrimSpace(body)) == 0 || r.Method == http.MethodGet || r.Method == http.MethodHead {
		body = []byte("{}")
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	r.Header.Set("Content-Type", "application/json")
	f.mux.ServeHTTP(w, r)
	return nil
}

func errTooLarge() error {
	return errs.New(errs.TooLarge, "the body is larger than %d bytes; send less in one call", maxBody)
}

// drain sends what is answered and reads on for a while.
func drain(w *writer, r *http.Request) {
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	if r.Header.Get("Expect") != "" {
		return // the client has not begun to send
	}
	_ = rc.SetReadDeadline(time.Now().Add(drainTimeout))
	_, _ = io.CopyN(io.Discard, r.Body, drainBody)
}

// checkOrigin refuses what a web page in the operator's browser could send:
// requests from another origin, and foreign host names (DNS rebinding). No
// browser reaches the unix socket.
func (f *front) checkOrigin(r *http.Request, req *request) error {
	if req.local {
		return nil
	}
	if !isLoopback(r.Host) {
		return errs.New(errs.Denied, "the Host header %q is not this server; call it as localhost or 127.0.0.1", clip(r.Host))
	}
	if err := f.origins.Check(r); err != nil {
		return errs.Wrap(errs.Denied, err, "a web page of another origin sent this request; call the API from a program or from a page of this server")
	}
	return nil
}

// isLoopback reports whether a Host header names this machine. HTTP/1.0
// clients send none; browsers always do.
func isLoopback(host string) bool {
	if host == "" {
		return true
	}
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// normalize makes one spelling of a path, so that the router never answers
// with a redirect: no empty segments, no trailing slash, and /snapshots as
// the alias that it is.
func normalize(r *http.Request) error {
	if _, _, err := parseQuery(r.URL.RawQuery); err != nil {
		return err
	}
	var raw, plain []string
	for segment := range strings.SplitSeq(r.URL.EscapedPath(), "/") {
		name, err := url.PathUnescape(segment)
		if err != nil || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
			return badParameter("path", "the path holds a broken escape; percent-encode UTF-8")
		}
		if name == "." || name == ".." {
			return errs.New(errs.NotFound, "there is no %s; /docs lists every call", clip(r.URL.Path))
		}
		if name != "" {
			raw, plain = append(raw, url.PathEscape(name)), append(plain, name)
		}
	}
	if len(plain) >= 4 && plain[0] == "v2" && plain[1] == "zone" && plain[3] == "snapshots" {
		raw[3], plain[3] = "volume_snapshots", "volume_snapshots"
	}
	u := *r.URL
	u.Path, u.RawPath = "/"+strings.Join(plain, "/"), "/"+strings.Join(raw, "/")
	r.URL = &u
	return nil
}

// checkZone refuses unknown zones. Jobs are found whatever the zone.
func (f *front) checkZone(u *url.URL) error {
	segments := strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	if len(segments) < 4 || segments[0] != "v2" || segments[1] != "zone" || segments[3] == "job" {
		return nil
	}
	zone, err := url.PathUnescape(segments[2])
	if err != nil || !slices.Contains(f.zones, zone) {
		return errs.New(errs.NotFound, "zone %s does not exist; this server has %s", clip(zone), strings.Join(f.zones, ", "))
	}
	return nil
}

// unrouted answers what no route takes: OPTIONS, a wrong method, or nothing
// there.
func (f *front) unrouted(w *writer, r *http.Request) error {
	var allow []string
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete} {
		other := *r
		other.Method = method
		if _, pattern := f.mux.Handler(&other); pattern != "" {
			allow = append(allow, method)
		}
	}
	if len(allow) == 0 || notYet(r.URL.Path) {
		return errs.New(errs.NotFound, "there is no %s; /docs lists every call", clip(r.URL.Path))
	}
	allow = append(allow, http.MethodOptions)
	w.Header().Set("Allow", strings.Join(allow, ", "))
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return &parameterError{
		parameter: "method", status: http.StatusMethodNotAllowed,
		err: errs.New(errs.Invalid, "%s does not take %s; use %s", clip(r.URL.Path), clip(r.Method), strings.Join(allow, ", ")),
	}
}

// notYet tells the calls that need machines, which come later, from a volume
// of that name: no id looks so.
func notYet(path string) bool {
	return strings.HasSuffix(path, "/volumes/attach") || strings.HasSuffix(path, "/volumes/detach")
}

// writer remembers what was answered.
type writer struct {
	http.ResponseWriter
	status int // 0: nothing yet
	bytes  int64
	cut    bool
	upload bool // the client may still be sending when it is refused
}

func (w *writer) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	if w.upload && status >= 300 {
		w.Header().Set("Connection", "close")
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
