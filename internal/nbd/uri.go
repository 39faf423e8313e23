package nbd

import (
	"net"
	"net/url"
	"strconv"
	"strings"

	"cairn/internal/errs"
)

// URI says where an export is.
type URI struct {
	Network string // "tcp" or "unix"
	Address string // host:port, or the absolute path of the socket
	Export  string // may be empty: the server's default export
}

const (
	defaultPort   = "10809"
	maxSocketPath = 107 // sun_path without its NUL
)

// ParseURI reads nbd://HOST[:PORT]/EXPORT and nbd+unix:///EXPORT?socket=PATH,
// by the NBD project's doc/uri.md, and nothing else: what it cannot honour
// (TLS, users, unknown parameters) is errs.Invalid rather than left out.
func ParseURI(s string) (URI, error) {
	u, err := url.Parse(s)
	if err != nil {
		return URI{}, errs.New(errs.Invalid, "this is no NBD URI; write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return URI{}, errs.New(errs.Invalid, "the parameters of the NBD URI cannot be read; percent-encode them")
	}
	switch u.Scheme {
	case "nbd", "nbd+unix":
	case "nbds", "nbds+unix":
		return URI{}, errs.New(errs.Invalid, "%s:// (TLS) is not supported yet; use nbd+unix://, or nbd:// through a tunnel", u.Scheme)
	default:
		return URI{}, errs.New(errs.Invalid, "an NBD URI begins with nbd:// or nbd+unix://, not with %q", u.Scheme+":")
	}
	if strings.Contains(s, "#") {
		return URI{}, errs.New(errs.Invalid, "an NBD URI has no fragment; write a # in a name as %%23")
	}
	export, err := exportOf(u)
	if err != nil {
		return URI{}, err
	}
	out := URI{Export: export}
	if u.Scheme == "nbd" {
		out.Network = "tcp"
		out.Address, err = tcpAddress(u, query)
	} else {
		out.Network = "unix"
		out.Address, err = socketPath(u, query)
	}
	if err != nil {
		return URI{}, err
	}
	return out, nil
}

func exportOf(u *url.URL) (string, error) {
	export := strings.TrimPrefix(u.Path, "/")
	switch {
	case u.Opaque != "":
		return "", errs.New(errs.Invalid, "an NBD URI has two slashes after %s:", u.Scheme)
	case u.User != nil:
		return "", errs.New(errs.Invalid, "an NBD URI has no user: remove what stands before the @")
	case len(export) > maxStringLen || !cleanString(export):
		return "", errs.New(errs.Invalid, "the export's name in the NBD URI is longer than %d bytes, or not UTF-8 without NUL", maxStringLen)
	}
	return export, nil
}

func tcpAddress(u *url.URL, query url.Values) (string, error) {
	for name := range query {
		return "", errs.New(errs.Invalid, "an nbd:// URI has no parameter %q here", name)
	}
	host, port := u.Hostname(), u.Port()
	if strings.Contains(host, ":") && !strings.HasPrefix(u.Host, "[") {
		return "", errs.New(errs.Invalid, "an IPv6 address in an NBD URI stands in brackets: nbd://[::1]:PORT/EXPORT")
	}
	if host == "" {
		return "", errs.New(errs.Invalid, "the NBD URI names no host; write nbd://HOST:PORT/EXPORT")
	}
	if port == "" {
		if strings.HasSuffix(u.Host, ":") {
			return "", errs.New(errs.Invalid, "the NBD URI has a colon but no port after it")
		}
		port = defaultPort
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || !cleanString(host) {
		return "", errs.New(errs.Invalid, "the NBD URI's host or port is not possible: %q", u.Host)
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

func socketPath(u *url.URL, query url.Values) (string, error) {
	if u.Host != "" {
		return "", errs.New(errs.Invalid, "an nbd+unix URI has three slashes before the export: nbd+unix:///EXPORT?socket=PATH")
	}
	for name := range query {
		if name != "socket" {
			return "", errs.New(errs.Invalid, "an nbd+unix:// URI has no parameter %q here", name)
		}
	}
	if len(query["socket"]) != 1 {
		return "", errs.New(errs.Invalid, "an nbd+unix URI names its socket once: nbd+unix:///EXPORT?socket=PATH")
	}
	path := query.Get("socket")
	if !strings.HasPrefix(path, "/") || len(path) > maxSocketPath || strings.Contains(path, "\x00") {
		return "", errs.New(errs.Invalid, "the socket in the NBD URI must be an absolute path of at most %d bytes", maxSocketPath)
	}
	return path, nil
}

// String is the URI as ParseURI reads it.
func (u URI) String() string {
	out := url.URL{Scheme: "nbd", Host: u.Address, Path: "/" + u.Export}
	if u.Network == "unix" {
		out.Scheme, out.Host = "nbd+unix", ""
		out.RawQuery = url.Values{"socket": {u.Address}}.Encode()
		// The authority is empty, but must stand there.
		return "nbd+unix://" + out.EscapedPath() + "?" + out.RawQuery
	}
	return out.String()
}
