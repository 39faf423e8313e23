package nbdvolume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"cairn/internal/errs"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

// The parameter of a registered URI by which the owner says that dirty bitmaps
// named cairn-… may be believed. It is ours: it never goes to a server.
const (
	trustKey   = "cairn-bitmaps"
	trustValue = "trust"
)

// place is where a volume's export is.
type place struct {
	id    string // vol-…, for messages; "" while it is being examined
	uri   nbd.URI
	trust bool // bitmaps may be believed
}

// parse reads a URI as it is registered. No part of one that has an @ is ever
// shown or kept: where a password was not encoded, nobody can tell how much of
// the rest is part of it.
func parse(text string) (place, error) {
	p := place{}
	if strings.Contains(text, "@") {
		return p, errs.New(errs.Invalid, "the URI cannot be registered: an @ stands in it. NBD has no users, so remove one with its password; if the @ belongs to the export's name write it as %%40")
	}
	plain, trust, err := takeTrust(text)
	if err != nil {
		return p, err
	}
	p.trust = trust
	if p.uri, err = nbd.ParseURI(plain); err != nil {
		return p, errs.Wrap(errs.Invalid, err, "%s cannot be registered: %s", shown(text), errs.Message(err))
	}
	return p, nil
}

// takeTrust takes our own parameter out of a URI; all else stays as it is, for
// nbd.ParseURI to judge.
func takeTrust(text string) (plain string, trust bool, err error) {
	head, query, _ := strings.Cut(text, "?")
	var kept []string
	for parameter := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(parameter, "=")
		switch {
		case key != trustKey:
			kept = append(kept, parameter)
		case trust || value != trustValue:
			return "", false, errs.New(errs.Invalid, "%s cannot be registered: the parameter %s can only be %q, once; leave it out where bitmaps may not be believed", shown(text), trustKey, trustValue)
		default:
			trust = true
		}
	}
	if !trust {
		return text, false, nil
	}
	if len(kept) > 0 {
		head += "?" + strings.Join(kept, "&")
	}
	return head, true, nil
}

// canonical is the same place by the name that all its names have in common,
// as far as a look at this machine can tell.
func (p place) canonical() (place, error) {
	if p.uri.Network != "unix" {
		host, zone, zoned := strings.Cut(p.uri.Address, "%") // interfaces have case
		p.uri.Address = strings.ToLower(host)
		if zoned {
			p.uri.Address += "%" + zone
		}
		return p, nil
	}
	path, err := filepath.EvalSymlinks(p.uri.Address)
	if err != nil {
		return p, probeFailure(p, err)
	}
	p.uri.Address = path
	if _, err := nbd.ParseURI(p.uri.String()); err != nil { // it may be too long now
		return p, errs.Wrap(errs.Invalid, err, "%s cannot be registered by the real path of its socket: %s", shown(p.String()), errs.Message(err))
	}
	return p, nil
}

// String is the URI as parse reads it.
func (p place) String() string {
	out := strings.ReplaceAll(p.uri.String(), "@", "%40") // of an export's name
	switch {
	case !p.trust:
		return out
	case strings.Contains(out, "?"):
		return out + "&" + trustKey + "=" + trustValue
	}
	return out + "?" + trustKey + "=" + trustValue
}

func (p place) identity() string { return "nbd:" + p.uri.String() }

// locate finds the place of a registered volume.
func locate(s volume.Spec) (place, error) {
	if !nameOK(s.ID) {
		return place{}, errs.New(errs.Internal, "%q cannot name a volume", s.ID)
	}
	p, err := parse(s.Path)
	if err != nil || p.identity() != s.Identity {
		return place{}, errs.Wrap(errs.Internal, err, "volume %s has no usable URI in the database", s.ID)
	}
	p.id = s.ID
	return p, nil
}

// shown is a URI for messages: without parameters that are none of NBD's. It
// has no user, see parse.
func shown(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "the URI"
	}
	out := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	if socket := u.Query().Get("socket"); socket != "" {
		out.RawQuery = url.Values{"socket": {socket}}.Encode()
	}
	const most = 300
	s := out.String()
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// refuseOwn refuses what this server serves itself: a volume would be a second
// volume of its own.
func (d *Driver) refuseOwn(ctx context.Context, uri nbd.URI) error {
	refuse := errs.New(errs.Invalid, "that is this server itself, and what it serves is a volume already; use that one")
	if uri.Network == "unix" {
		at, err := os.Stat(uri.Address)
		if err != nil {
			return nil //nolint:nilerr // dialing tells
		}
		for _, own := range d.cfg.OwnSockets {
			if st, err := os.Stat(own); err == nil && os.SameFile(at, st) {
				return refuse
			}
		}
		return nil
	}
	host, port, err := net.SplitHostPort(uri.Address)
	if err != nil {
		return fmt.Errorf("split %q: %w", uri.Address, err)
	}
	if _, own, err := net.SplitHostPort(d.cfg.OwnAddress); err != nil || own != port {
		return nil //nolint:nilerr // it does not listen there
	}
	addrs, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return nil //nolint:nilerr // dialing tells
	}
	for _, a := range addrs {
		// The server listens on loopback only, and 0.0.0.0 leads there too.
		if a.IP.IsLoopback() || a.IP.IsUnspecified() {
			return refuse
		}
	}
	return nil
}

// probeFailure says why what somebody wants to register cannot be reached.
func probeFailure(p place, err error) error {
	at := shown(p.String())
	dns, isDNS := errors.AsType[*net.DNSError](err)
	switch {
	case isDNS && dns.IsNotFound:
		return errs.Wrap(errs.NotFound, err, "the host of %s is not known; correct the URI", at)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ECONNREFUSED):
		return errs.Wrap(errs.NotFound, err, "no NBD server is at %s; start it, or correct the URI", at)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return errs.Wrap(errs.Denied, err, "this server may not open the socket of %s; change its permissions", at)
	case errors.Is(err, syscall.ENOTSOCK), errors.Is(err, syscall.EPROTOTYPE):
		return errs.Wrap(errs.Invalid, err, "no NBD server listens at %s", at)
	case errs.Is(err, errs.NotFound):
		return errs.Wrap(errs.NotFound, err, "the NBD server of %s has no such export; correct the name of the export", at)
	case errs.Is(err, errs.Invalid), errs.Is(err, errs.Denied):
		return errs.Wrap(errs.KindOf(err), err, "%s cannot be registered: %s", at, errs.Message(err))
	}
	return errs.Wrap(errs.Unavailable, err, "the NBD server of %s does not answer as one; is it running?", at)
}
