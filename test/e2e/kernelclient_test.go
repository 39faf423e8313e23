package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/test/e2e/guest"
	"cairn/test/e2e/harness"
)

// kernelRig is a guest whose kernel is the client of a volume.
type kernelRig struct {
	guestFS
	host, port string // of the server, for the guest
}

func newKernelRig(t *testing.T) *kernelRig {
	t.Helper()
	addr := harness.FreeAddr(t)
	k := &kernelRig{}
	k.srv = serve(t, "--nbd-listen", addr)
	k.volume = k.srv.API().CreateVolume(t, "disk", guestVolume)
	k.dev = "/dev/nbd0"
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	k.host, k.port = guest.Host, port
	k.guest = guest.Start(t, guest.Config{
		Modules:  []string{"ext4", "nbd nbds_max=1"},
		Programs: []string{"mkfs.ext4", "e2fsck", "nbd-client", "qemu-nbd"},
		Packages: []string{"nbd-client", "libnl-3-200", "libnl-genl-3-200"},
		Files:    map[string]string{"/etc/mke2fs.conf": "/etc/mke2fs.conf", "/host/bin/nbdnetlink": buildNetlink(t)},
		Network:  true,
	})
	return k
}

// buildNetlink builds the command that attaches by netlink.
func buildNetlink(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "nbdnetlink")
	cmd := exec.Command("go", "build", "-o", bin, "cairn/test/e2e/guest/nbdnetlink")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // the guest has no libraries for it
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return bin
}

// connectLine is what `cairn volume connect` prints for a client that is the
// guest.
func (k *kernelRig) connectLine(t *testing.T, client string) string {
	t.Helper()
	return strings.ReplaceAll(k.guestFS.connectLine(t, k.srv.BaseURL(), client), "127.0.0.1", k.host)
}

func (k *kernelRig) attach(t *testing.T) {
	t.Helper()
	k.guest.Must(t, k.connectLine(t, "nbd-client"))
}

func (k *kernelRig) detach(t *testing.T) {
	t.Helper()
	k.guest.Must(t, "nbd-client -d "+k.dev)
}

// TestKernelClient mounts an ext4 on a volume that a real kernel's own NBD
// client has attached.
func TestKernelClient(t *testing.T) {
	t.Parallel()
	k := newKernelRig(t)
	k.attach(t)
	k.format(t)
	k.detach(t)
	// Each goes on with what the one before left.
	_ = t.Run("rollbacks", k.rollbacks) &&
		t.Run("restarts", k.restarts) &&
		t.Run("restarts behind qemu-nbd", k.restartsBehindQEMU) &&
		t.Run("trim", k.trim)
}

// rollbacks takes points under a writer and rolls back to any of them: each
// time the filesystem is whole and as it was at the point's moment.
func (k *kernelRig) rollbacks(t *testing.T) {
	rounds := 3
	if harness.Long() {
		rounds = 20
	}
	rng := harness.Rand(harness.Seed(t))
	var points []*guestPoint
	for range rounds {
		k.attach(t)
		k.mount(t)
		k.startWriter(t)
		for range 2 {
			points = append(points, k.point(t))
			k.progress(t, 1)
		}
		k.stopWriter(t)
		k.add(t)
		k.unmount(t)
		k.detach(t)
		k.rollBack(t, points[rng.IntN(len(points))])
	}
	k.attach(t)
	k.mount(t)
	k.unmount(t)
	k.detach(t)
}

// restarts kills the server with -9 under a mounted filesystem. The kernel
// holds requests until it is given a new connection, and repeats them there:
// the writer notices nothing, and all that it was told is synced is there.
func (k *kernelRig) restarts(t *testing.T) {
	server := k.host + " " + k.port + " " + k.volume
	// What was sent on a connection that died is repeated when its 3 s are
	// over, and not before.
	k.guest.Must(t, "nbdnetlink connect "+server+" 0 300 3")
	k.guest.Must(t, "touch /run/attached; (while [ -e /run/attached ]; do nbdnetlink reconnect "+server+" 0; sleep 0.5; done) &")
	k.killUnder(t)
	k.guest.Must(t, "rm /run/attached")
	k.detach(t)
	k.wholeAgain(t)
}

// restartsBehindQEMU is restarts where qemu-nbd in between holds and repeats
// the requests, and the kernel knows nothing of it.
func (k *kernelRig) restartsBehindQEMU(t *testing.T) {
	k.guest.Must(t, k.connectLine(t, "qemu-nbd"))
	k.killUnder(t)
	k.guest.Must(t, "qemu-nbd --disconnect "+k.dev)
	k.wholeAgain(t)
}

// killUnder kills and starts the server some times under a writer.
func (k *kernelRig) killUnder(t *testing.T) {
	t.Helper()
	kills := 2
	if harness.Long() {
		kills = 20
	}
	k.mount(t)
	k.startWriter(t)
	for range kills {
		k.srv.Kill(t)
		k.srv.Run(t)
		k.progress(t, 2)
	}
	k.stopWriter(t)
	k.unmount(t)
}

// wholeAgain checks the filesystem with nothing of it cached.
func (k *kernelRig) wholeAgain(t *testing.T) {
	t.Helper()
	k.alone(t)
	k.attach(t)
	k.mount(t)
	k.unmount(t)
	k.detach(t)
}

func (k *kernelRig) trim(t *testing.T) {
	k.attach(t)
	k.mount(t)
	k.guestFS.trim(t)
	k.unmount(t)
	k.detach(t)
	k.wholeAgain(t)
}
