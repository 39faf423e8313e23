package nbd

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"cairn/internal/errs"
)

// Errno is an error as the protocol can say it. A Backend may return one, also
// wrapped; the client's methods return errors that wrap the server's.
type Errno uint32

// The errors that the protocol has. Their values are its own.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

var errnoTexts = map[Errno]string{
	EPERM:     "EPERM, not permitted",
	EIO:       "EIO, input or output error",
	ENOMEM:    "ENOMEM, out of memory",
	EINVAL:    "EINVAL, invalid request",
	ENOSPC:    "ENOSPC, no space left",
	EOVERFLOW: "EOVERFLOW, value too large",
	ENOTSUP:   "ENOTSUP, not supported",
	ESHUTDOWN: "ESHUTDOWN, the export is shutting down",
}

func (e Errno) Error() string {
	if s, ok := errnoTexts[e]; ok {
		return s
	}
	return fmt.Sprintf("NBD error %d", uint32(e))
}

// kind is what the error is to the rest of the product.
func (e Errno) kind() errs.Kind {
	switch e {
	case EPERM:
		return errs.Denied
	case ENOSPC:
		return errs.Full
	case EINVAL, EOVERFLOW, ENOTSUP:
		return errs.Invalid
	}
	return errs.Unavailable
}

// errnoOf says err to a client: an Errno in its chain, else the system's
// error, else the kind; what is none of them is EIO.
func errnoOf(err error) Errno {
	if own, ok := errors.AsType[Errno](err); ok {
		return own
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return ESHUTDOWN
	}
	if system, ok := errors.AsType[syscall.Errno](err); ok {
		switch system {
		case syscall.EPERM, syscall.EACCES, syscall.EROFS:
			return EPERM
		case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
			return ENOSPC
		case syscall.ENOMEM:
			return ENOMEM
		case syscall.EINVAL:
			return EINVAL
		case syscall.EOPNOTSUPP:
			return ENOTSUP
		case syscall.ESHUTDOWN:
			return ESHUTDOWN
		}
		return EIO
	}
	switch errs.KindOf(err) {
	case errs.Full, errs.Quota:
		return ENOSPC
	case errs.Denied:
		return EPERM
	case errs.Invalid:
		return EINVAL
	}
	return EIO
}

// remark is what a client may read about err: the sentence for users, if
// somebody wrote one.
func remark(err error) string {
	if _, ok := errors.AsType[*errs.Error](err); !ok {
		return ""
	}
	s := errs.Message(err)
	return s[:min(len(s), 512)]
}
