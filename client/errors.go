package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// ErrUnreachable says that no answer came: nobody listens at the address, or
// the connection broke. Whether a change was made is then unknown.
var ErrUnreachable = errors.New("the server cannot be reached")

// Error is an answer of the server that is not a success.
type Error struct {
	Status    int    // HTTP status
	Code      string // API.md §5: 1100 bad parameter, 2100 not found …
	Message   string // "<Kind>, <a sentence>"
	Detail    string
	RequestID string // finds the request in the server's log
}

func (e *Error) Error() string { return e.Message }

// Sentence is the message without its leading kind.
func (e *Error) Sentence() string {
	if kind, rest, ok := strings.Cut(e.Message, ", "); ok && rest != "" && !strings.ContainsAny(kind, " :") {
		return rest
	}
	return e.Message
}

// IsStatus reports whether err is the server's answer with that HTTP status.
func IsStatus(err error, status int) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == status
}

// errorOf reads an answer that is no success, whoever gave it: a proxy's page
// must not be lost either.
func errorOf(resp *http.Response) *Error {
	e := &Error{Status: resp.StatusCode, RequestID: resp.Header.Get("X-Request-Id")}
	b, readErr := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var wire struct {
		Code      text   `json:"code"`
		Message   string `json:"message"`
		Detail    string `json:"detail"`
		RequestID string `json:"request_id"`
	}
	if err := json.Unmarshal(b, &wire); readErr == nil && err == nil && wire.Message != "" {
		e.Code, e.Message, e.Detail = string(wire.Code), wire.Message, wire.Detail
		if wire.RequestID != "" {
			e.RequestID = wire.RequestID
		}
		return e
	}
	e.Message = fmt.Sprintf("the server answered %d %s without a reason", resp.StatusCode, http.StatusText(resp.StatusCode))
	e.Detail = strings.TrimSpace(string(b[:min(len(b), 500)]))
	return e
}

// transportError words what went wrong below HTTP. The caller's own ending
// of ctx is not the server's fault.
func (c *Client) transportError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var source *sourceError
	if errors.As(err, &source) {
		return source
	}
	return &unreachable{server: c.server, err: err}
}

// unreachable is ErrUnreachable with the address and the reason.
type unreachable struct {
	server string
	err    error
}

func (u *unreachable) Error() string {
	reason := u.err
	var wrapped *url.Error
	if errors.As(reason, &wrapped) {
		reason = wrapped.Err // without method and URL, which the user did not type
	}
	var op *net.OpError
	if errors.As(reason, &op) && op.Op == "dial" {
		reason = op.Err
	}
	return fmt.Sprintf("the server at %s cannot be reached: %v", u.server, reason)
}

func (u *unreachable) Is(target error) bool { return target == ErrUnreachable }

func (u *unreachable) Unwrap() error { return u.err }

// notFound is what a lookup by list answers for an id that is simply absent.
func notFound(kind, id, zone string) *Error {
	return &Error{
		Status: http.StatusNotFound, Code: "2100",
		Message: fmt.Sprintf("NotFound, %s %s does not exist in zone %s; list shows those that do", kind, id, zone),
	}
}
