package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/google/uuid"
)

// HeaderTimeout bounds the sending of a request's headers.
const HeaderTimeout = 10 * time.Second

// maxHeader bounds a request's headers, and with them a list in a query.
const maxHeader = 64 << 10

type localKey struct{}

// MarkLocal says that a connection's peer is on this machine and passed the
// socket's file mode: it may name paths on the server.
func MarkLocal(ctx context.Context) context.Context {
	return context.WithValue(ctx, localKey{}, true)
}

func isLocal(ctx context.Context) bool {
	local, ok := ctx.Value(localKey{}).(bool)
	return ok && local
}

type stopKey struct{}

// stopping is closed when the server begins to shut down. Without a server of
// NewServer it is never closed.
func stopping(ctx context.Context) <-chan struct{} {
	stop, ok := ctx.Value(stopKey{}).(context.Context)
	if !ok {
		return nil
	}
	return stop.Done()
}

// NewServer makes a server of h for any number of listeners, each wrapped by
// Listener. Connections of a unix socket are local. Shutdown ends event
// streams at once and waits for everything else, which may take as long as
// the longest export: give it a deadline and Close afterwards.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	stop, cancel := context.WithCancel(context.Background())
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: HeaderTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			ctx = context.WithValue(ctx, stopKey{}, stop)
			if c.LocalAddr().Network() == "unix" {
				ctx = MarkLocal(ctx)
			}
			return ctx
		},
	}
	s.RegisterOnShutdown(cancel)
	return s
}

// Listener makes the answers that net/http gives before any handler runs
// (a request line or a header that cannot be parsed, headers too large) JSON
// like all others.
func Listener(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c}, nil
}

// conn replaces the plain-text errors of net/http. That package writes each
// with one Write straight to the connection; no answer of a handler looks
// like one, for it always carries a Date.
type conn struct{ net.Conn }

// CloseWrite lets net/http close in an orderly way after an error.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

func (c *conn) Write(p []byte) (int, error) {
	answer := protocolError(p)
	if answer == nil {
		return c.Conn.Write(p)
	}
	if _, err := c.Conn.Write(answer); err != nil {
		return 0, err
	}
	return len(p), nil
}

// protocolError is the JSON answer to send in the place of p, or nil to send
// p itself.
func protocolError(p []byte) []byte {
	line, rest, ok := bytes.Cut(p, []byte("\r\n"))
	status, fits := bytes.CutPrefix(line, []byte("HTTP/1.1 "))
	if !ok || !fits || len(status) < 3 {
		return nil
	}
	expect := bytes.HasPrefix(status, []byte("417 ")) // no handler answers so
	if !expect && !bytes.HasPrefix(rest, []byte("Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")) {
		return nil
	}
	e := wireError{Code: codeInvalid, RequestID: uuid.NewString(), status: http.StatusBadRequest,
		Message: "Invalid, the request is not valid HTTP; check its first line, its escapes and its headers"}
	switch string(status[:3]) {
	case "431":
		e.status = http.StatusRequestHeaderFieldsTooLarge
		e.Message = fmt.Sprintf("Invalid, the address and headers are larger than %d bytes; name fewer ids in one call", maxHeader)
	case "417":
		e.status = http.StatusExpectationFailed
		e.Message = "Invalid, the Expect header asks for something unknown; leave it out"
	case "501":
		e.status = http.StatusNotImplemented
		e.Message = "Invalid, the Transfer-Encoding is unknown; use chunked or none"
	}
	body, err := json.Marshal(&e)
	if err != nil { // four strings always encode
		panic(err)
	}
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nX-Request-Id: %s\r\nConnection: close\r\n\r\n%s",
		e.status, http.StatusText(e.status), len(body), e.RequestID, body)
}
