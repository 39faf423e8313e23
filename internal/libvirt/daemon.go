package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	rpc "github.com/digitalocean/go-libvirt"

	"cairn/internal/errs"
)

// systemSocket is where libvirtd, or virtqemud in its place, listens for the
// machines of the whole host.
const systemSocket = "/run/libvirt/libvirt-sock"

// Daemon is where a libvirt daemon is found.
type Daemon struct {
	uri    string // as libvirt takes it, without parameters of ours
	socket string
}

// Parse reads a URI as virsh takes it: qemu:///system or qemu:///session, with
// ?socket=PATH for a daemon that listens elsewhere. errs.Invalid: any other;
// disks are read as files of this machine, so the daemon must be on it.
func Parse(uri string) (Daemon, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return Daemon{}, errs.Wrap(errs.Invalid, err, "%q is not a libvirt URI; give qemu:///system or qemu:///session", uri)
	}
	d := Daemon{uri: u.Scheme + "://" + u.Path, socket: u.Query().Get("socket")}
	switch {
	case u.Scheme != "qemu" && u.Scheme != "qemu+unix", u.Host != "", u.Path != "/system" && u.Path != "/session":
		return Daemon{}, errs.New(errs.Invalid, "libvirt URI %q is not one of this machine; give qemu:///system or qemu:///session", uri)
	case d.socket != "" && !filepath.IsAbs(d.socket):
		return Daemon{}, errs.New(errs.Invalid, "libvirt URI %q: socket %q is no absolute path", uri, d.socket)
	}
	d.uri = strings.Replace(d.uri, "qemu+unix:", "qemu:", 1)
	if d.socket == "" {
		d.socket = systemSocket
		if u.Path == "/session" {
			d.socket = filepath.Join(runtimeDir(), "libvirt", "libvirt-sock")
		}
	}
	return d, nil
}

// runtimeDir is where a user's own daemon listens.
func runtimeDir() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return dir
	}
	return fmt.Sprintf("/run/user/%d", os.Getuid())
}

func (d Daemon) String() string { return d.uri }

// Do calls the daemon on a connection of its own, which ends with ctx or when
// call returns. errs.Unavailable: it does not answer; errs.NotFound: there is no
// such domain; errs.Conflict: it is in no state for that. The daemon's own words
// are in the error.
func (d Daemon) Do(ctx context.Context, call func(*rpc.Libvirt) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	nc, err := (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "libvirt does not answer at %s; is libvirtd running, and may this user talk to it?", d.socket)
	}
	// The library knows no contexts: its calls end with their connection.
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	l := rpc.NewWithDialer(dialed{nc})
	if err := l.ConnectToURI(rpc.ConnectURI(d.uri)); err != nil {
		return d.failure(ctx, errors.Join(err, ignoreClosed(nc.Close())))
	}
	err = call(l)
	// Not Disconnect, which asks the daemon and waits for what it says.
	closed := ignoreClosed(nc.Close())
	<-l.Disconnected()
	if err != nil {
		return d.failure(ctx, err)
	}
	return closed
}

// dialed is a connection that is there already.
type dialed struct{ nc net.Conn }

func (d dialed) Dial() (net.Conn, error) { return d.nc, nil }

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// failure gives an error of a call its kind.
func (d Daemon) failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	var own *errs.Error
	if errors.As(err, &own) {
		return err
	}
	var said rpc.Error
	if !errors.As(err, &said) {
		return errs.Wrap(errs.Unavailable, err, "the connection to libvirt at %s broke; its log may say why", d.socket)
	}
	kind := errs.Unavailable
	switch rpc.ErrorNumber(said.Code) {
	case rpc.ErrNoDomain, rpc.ErrNoDomainCheckpoint, rpc.ErrNoDomainBackup:
		kind = errs.NotFound
	case rpc.ErrOperationInvalid:
		kind = errs.Conflict
	}
	return errs.Wrap(kind, err, "libvirt: %s", said.Message)
}
