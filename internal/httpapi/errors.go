package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"cairn/internal/errs"
)

// Wire codes (API.md §5).
const (
	codeInvalid     = "1100"
	codeDenied      = "1400"
	codeNotFound    = "2100"
	codeExists      = "2110"
	codeQuota       = "2500"
	codeInternal    = "5000"
	codeUnavailable = "5100"
	codeDepends     = "5400"
)

// wireError is the body of every answer that is not 2xx.
type wireError struct {
	_         struct{} `additionalProperties:"true"`
	Code      string   `json:"code" example:"2100" doc:"1100 bad parameter · 1400 denied, or the state forbids it · 2100 not found · 2110 exists · 2500 quota · 5000 internal · 5100 busy · 5400 something depends on it"`
	Message   string   `json:"message" doc:"The kind of error, a comma, and a sentence that names the object and what to do."`
	Detail    string   `json:"detail" doc:"The parameter at fault, if one is."`
	RequestID string   `json:"request_id" doc:"Also in the X-Request-Id header and in the server's log."`

	status int
}

// Error and GetStatus make it huma's StatusError, so that huma writes it as it is.
func (e *wireError) Error() string { return e.Message }

// GetStatus is the HTTP status.
func (e *wireError) GetStatus() int { return e.status }

// GetHeaders tells a client that was turned away when to come back.
func (e *wireError) GetHeaders() http.Header {
	if e.status == http.StatusServiceUnavailable {
		return http.Header{"Retry-After": {"1"}}
	}
	return nil
}

// statusOf maps a kind to HTTP. It is the only place that does.
func statusOf(k errs.Kind) (status int, code string) {
	switch k {
	case errs.Invalid:
		return http.StatusBadRequest, codeInvalid
	case errs.Denied:
		return http.StatusForbidden, codeDenied
	case errs.NotFound:
		return http.StatusNotFound, codeNotFound
	case errs.Exists:
		return http.StatusConflict, codeExists
	case errs.Conflict, errs.Busy:
		return http.StatusConflict, codeDenied
	case errs.Depends:
		return http.StatusConflict, codeDepends
	case errs.TooLarge:
		return http.StatusRequestEntityTooLarge, codeInvalid
	case errs.Quota:
		return http.StatusTooManyRequests, codeQuota
	case errs.Unavailable, errs.Full:
		return http.StatusServiceUnavailable, codeUnavailable
	default: // Internal, Corrupt, and kinds this file does not know yet
		return http.StatusInternalServerError, codeInternal
	}
}

// parameterError says which parameter of the request is at fault.
type parameterError struct {
	parameter string
	err       *errs.Error
	status    int // 0: the kind's
}

func (e *parameterError) Error() string { return e.err.Error() }
func (e *parameterError) Unwrap() error { return e.err }

// badParameter makes the error for a request that can never work.
func badParameter(parameter, format string, args ...any) error {
	return &parameterError{parameter: parameter, err: errs.New(errs.Invalid, format, args...)}
}

// newWireError encodes err for the request in ctx.
func newWireError(ctx context.Context, err error) *wireError {
	k := errs.KindOf(err)
	status, code := statusOf(k)
	e := &wireError{
		Code:      code,
		Message:   fmt.Sprintf("%s, %s", k, errs.Message(err)),
		RequestID: requestOf(ctx).id,
		status:    status,
	}
	var p *parameterError
	if errors.As(err, &p) {
		e.Detail = p.parameter
		if p.status != 0 {
			e.status = p.status
		}
	}
	return e
}

// writeError answers outside of huma: the router's errors and those of the
// limits before it.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	requestOf(r.Context()).err = err
	e := newWireError(r.Context(), err)
	writeWireError(w, e)
}

func writeWireError(w http.ResponseWriter, e *wireError) {
	body, err := json.Marshal(e)
	if err != nil { // four strings always encode
		panic(err)
	}
	h := w.Header()
	for _, name := range []string{"Content-Disposition", "Content-Encoding", "Cache-Control", "ETag"} {
		h.Del(name)
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	for name, values := range e.GetHeaders() {
		h[name] = values
	}
	w.WriteHeader(e.status)
	// A client that went away does not read the answer: nothing to do.
	_, _ = w.Write(body)
}
