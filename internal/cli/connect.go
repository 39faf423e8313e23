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
it: QEMU, the kernel's client (nbd-client), nbdfuse, and fstab. Any number of
connections may be made. The URI stays the same over restarts of the server and
over a rollback, but for one with --force.

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
		return errs.New(errs.Conflict, "volume %s is %s: use its own file or device; only managed volumes are served", v.ID, v.Driver)
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
	kernel := fmt.Sprintf("nbd-client -unix %s /dev/nbd0 -name %s -persist", quote(socket), name)
	table := fmt.Sprintf("nbd0 %s %s unix,persist", socket, name)
	if socket == "" {
		kernel = fmt.Sprintf("nbd-client %s %s /dev/nbd0 -name %s -persist", u.Hostname(), u.Port(), name)
		table = fmt.Sprintf("nbd0 %s %s port=%s,persist", u.Hostname(), name, u.Port())
	}
	drive, options := ",discard=unmap", ""
	if readOnly {
		drive, options = ",readonly=on", "ro,norecovery,"
	}
	return s.printPairs([]pair{
		{"uri", uri},
		{"qemu", "qemu-system-x86_64 … -drive file=" + quote(uri) + ",format=raw,if=virtio" + drive},
		{"kernel", kernel},
		{"nbdfuse", "nbdfuse " + mark(readOnly, "-r ") + "/mnt/" + id + " " + quote(uri)},
		{"nbdtab", table},
		{"fstab", "/dev/nbd0 /mnt ext4 " + options + "_netdev,nofail,x-systemd.requires=nbd@nbd0.service 0 " + passOf(readOnly)},
	})
}

// passOf is fstab's order of file system checks; what cannot be written to is
// not checked.
func passOf(readOnly bool) string {
	if readOnly {
		return "0"
	}
	return "2"
}

// quote makes a word of s for a shell.
func quote(s string) string {
	if !strings.ContainsAny(s, " ?&'\"$\\*()<>|;`") {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
