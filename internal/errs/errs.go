// Package errs is the one error type that crosses rooms.
//
// Invariants:
//   - Msg is written for the user: it names the object, says what to do, and
//     holds no secret; Err is for the log and never leaves the process;
//   - Kind alone decides HTTP status, exit code and whether a retry makes sense.
package errs

import (
	"errors"
	"fmt"
)

// Kind classifies an error. The HTTP mapping lives in httpapi, in one function.
type Kind uint8

// The kinds. The comment gives the wire status and code of API.md §5.
const (
	Internal    Kind = iota // 500, 5000: our fault
	Invalid                 // 400, 1100: the request can never work
	Denied                  // 403, 1400: not from here, not yours
	NotFound                // 404, 2100
	Exists                  // 409, 2110: the name or identity is taken
	Conflict                // 409, 1400: the object's state forbids it
	Busy                    // 409, 1400: in a transition; message ends in "please try later"
	Depends                 // 409, 5400: something depends on it
	TooLarge                // 413, 1100
	Quota                   // 429, 2500
	Unavailable             // 503, 5100: a resource we need does not answer now
	Corrupt                 // 500, 5000: stored bytes failed their check; never retried
	Full                    // 503, 5100: no space left where we must write
)

var kindNames = [...]string{
	"Internal", "Invalid", "Denied", "NotFound", "Exists", "Conflict", "Busy",
	"Depends", "TooLarge", "Quota", "Unavailable", "Corrupt", "Full",
}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Error is an error with a kind and a sentence for the user.
type Error struct {
	Kind Kind
	Msg  string // for the user: names the object, says what to do
	Err  error  // for the log; may be nil
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Msg
	}
	if e.Msg == "" {
		return e.Err.Error()
	}
	return e.Msg + ": " + e.Err.Error()
}

// Unwrap returns the cause for errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Err }

// New makes an error of kind k; the formatted text is shown to users.
func New(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Msg: fmt.Sprintf(format, args...)}
}

// Wrap gives err a kind and a sentence for the user. It keeps err for the log.
func Wrap(k Kind, err error, format string, args ...any) *Error {
	return &Error{Kind: k, Msg: fmt.Sprintf(format, args...), Err: err}
}

// KindOf is the kind of the outermost *Error in err's chain, else Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is reports whether err carries kind k anywhere in its chain.
func Is(err error, k Kind) bool {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return false
		}
		if e.Kind == k {
			return true
		}
		err = e.Err
	}
	return false
}

// Message is the sentence for the user: Msg of the outermost *Error that has
// one, else a neutral text, so that paths and causes stay in the log.
func Message(err error) string {
	var e *Error
	for errors.As(err, &e) {
		if e.Msg != "" {
			return e.Msg
		}
		if e.Err == nil {
			break
		}
		err = e.Err
	}
	return "an internal error happened; the server's log has the details under this request or job id"
}
