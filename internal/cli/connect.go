package cli

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"cairn/client"
	"cairn/internal/errs"
)

func (a *app) volumeConnect() *cobra.Command {
	return &cobra.Command{
		Use: "connect VOLUME", Short: "Show how to use a managed volume as a block device", Args: arity(1, 1),
		Long: `Show the NBD URI of a managed volume, and ready lines for programs that use
it: QEMU, qemu-nbd and nbd-client, which make /dev/nbd0 of it, nbdfuse, and
nbdtab and fstab, which go by nbd-client. Any number of connections may be made.
The URI stays the same over restarts of the server and over a rollback, but for
one with --force.

While the server restarts, QEMU and qemu-nbd wait up to 5 minutes and go on.
With nbd-client, even with its -persist, requests then fail at once, and a
filesystem must be unmounted, attached again and checked.

Through the server's unix socket this is the URI of its other socket, for
programs on the same host; else one of --nbd-listen.`,
		Example:           "  cairn volume connect data --server unix://DIR/cairn.sock\n  nbdinfo \"$(cairn volume connect data -o json | jq -r .uri)\"",
		ValidArgsFunction: a.completeVolumes(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			id, err := s.volume(ctx, args[0])
			if err != nil {
				return err
			}
			v, err := s.client.Volume(ctx, id)
			if err != nil {
				return err
			}
			return s.printConnection(v)
		}),
	}
}

// connection is the answer of connect as JSON.
type connection struct {
	URI  string   `json:"uri"`
	URIs []string `json:"uris"`
}

func (s *session) printConnection(v client.Volume) error {
	switch {
	case len(v.NBDURIs) > 0:
	case v.Driver != "managed":
		return errs.New(errs.Conflict, "volume %s is %s: use its own file, device or export; only managed volumes are served", v.ID, v.Driver)
	case v.Status != "available" && v.Status != "in-use" || v.TransitionStatus != "" || v.MixedJob != "":
		return errs.New(errs.Busy, "volume %s is %s and takes no clients now; please try later", v.ID, volumeState(v))
	case !s.client.Local():
		return errs.New(errs.Conflict, "volume %s is served to programs on the server's host only; ask with --server unix://DIR/cairn.sock there, or start the server with --nbd-listen", v.ID)
	default:
		return errs.New(errs.Unavailable, "volume %s is not served; the server's log says why", v.ID)
	}
	return s.printURIs(v.ID, v.NBDURIs, false)
}

// printURIs shows how programs use an export; the first URI is the best.
func (s *session) printURIs(id string, uris []string, readOnly bool) error {
	uri := uris[0]
	if s.output == outputJSON {
		return s.printJSON(connection{URI: uri, URIs: uris})
	}
	u, err := url.Parse(uri)
	if err != nil {
		return fmt.Errorf("the server answered with the URI %q: %w", uri, err)
	}
	name, socket := strings.TrimPrefix(u.Path, "/"), u.Query().Get("socket")
	server := "server.type=unix,server.path=" + qemuValue(socket)
	kernel := fmt.Sprintf("nbd-client -unix %s /dev/nbd0 -name %s", quote(socket), name)
	table := fmt.Sprintf("nbd0 %s %s unix", socket, name)
	if socket == "" {
		server = "server.type=inet,server.host=" + qemuValue(u.Hostname()) + ",server.port=" + u.Port()
		kernel = fmt.Sprintf("nbd-client %s %s /dev/nbd0 -name %s", u.Hostname(), u.Port(), name)
		table = fmt.Sprintf("nbd0 %s %s port=%s", u.Hostname(), name, u.Port())
	}
	drive, device, fuse, mount, check := "discard=unmap", "--discard=unmap", "", "", "2"
	if readOnly {
		// A file system check cannot write to it, nor can a mount replay a journal.
		drive, device, fuse, mount, check = "readonly=on", "--read-only", "-r ", "ro,norecovery,", "0"
	}
	return s.printPairs([]pair{
		{"uri", uri},
		{"qemu", "qemu-system-x86_64 … -drive file=" + quote(qemuValue(uri)) + ",file.reconnect-delay=" + reconnectDelay + ",format=raw,if=virtio," + drive},
		{"qemu-nbd", "qemu-nbd --fork --connect=/dev/nbd0 " + device + " --image-opts " + quote("driver=nbd,"+server+",export="+name+",reconnect-delay="+reconnectDelay)},
		{"nbd-client", kernel},
		{"nbdfuse", "nbdfuse " + fuse + "/mnt/" + id + " " + quote(uri)},
		{"nbdtab", table},
		{"fstab", "/dev/nbd0 /mnt ext4 " + mount + "_netdev,nofail,x-systemd.requires=nbd@nbd0.service 0 " + check},
	})
}

// reconnectDelay is for how many seconds QEMU's client holds requests while it
// tries to reach the server again; by itself it would fail them at once.
const reconnectDelay = "300"

// qemuValue is s as a value in a list of QEMU's options.
func qemuValue(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// quote makes a word of s for a shell.
func quote(s string) string {
	if !strings.ContainsAny(s, " ?&'\"$\\*()<>|;`") {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
