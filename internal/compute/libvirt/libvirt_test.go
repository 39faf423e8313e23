package libvirt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"cairn/internal/compute"
	"cairn/internal/compute/computetest"
	"cairn/internal/errs"
	"cairn/internal/libvirt"
	"cairn/internal/libvirt/libvirttest"
	"cairn/test/e2e/guest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refused(t testing.TB, err error, kind errs.Kind, words ...string) {
	t.Helper()
	if !errs.Is(err, kind) {
		t.Errorf("got %v, want %v", err, kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not name %q", err, w)
		}
	}
}

// description is a domain of one raw disk, with a console and an agent's channel.
func description(name, disk, console string) string {
	return fmt.Sprintf(`<domain type='qemu'>
  <name>%s</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>
    <serial type='unix'><source mode='bind' path='%s'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='none'/>
  </devices>
</domain>`, name, disk, console)
}

// rig is a daemon with one machine.
type rig struct {
	libvirttest.Daemon
	d   *Driver
	id  string
	dom rpc.Domain
}

func newRig(t *testing.T, disk, console string) *rig {
	t.Helper()
	daemon := libvirttest.Start(t)
	r := &rig{Daemon: daemon, d: New(daemon.Daemon, nil)}
	t.Cleanup(func() { ok(t, r.d.Close()) })
	r.dom = daemon.Define(t, description("web", disk, console))
	r.id = libvirt.Domain{UUID: uuid.UUID(r.dom.UUID)}.InstanceID()
	return r
}

func (r *rig) state(t *testing.T, want compute.State) {
	t.Helper()
	m, err := r.d.Describe(t.Context(), r.id)
	ok(t, err)
	if m.State != want {
		t.Errorf("the machine is %v, want %v", m.State, want)
	}
}

// emptyDisk boots nothing: its machine is deaf.
func emptyDisk(t *testing.T) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk.raw")
	ok(t, errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 64<<20)))
	return disk
}

// The suite of all drivers of machines that others make.
func TestForeignSuite(t *testing.T) {
	computetest.RunForeign(t, func(t *testing.T) computetest.Foreign {
		r := newRig(t, emptyDisk(t), filepath.Join(t.TempDir(), "con"))
		dom := libvirt.Domain{UUID: uuid.UUID(r.dom.UUID)}
		return computetest.Foreign{
			Driver: r.d,
			Again:  func(*testing.T) compute.Driver { return New(r.Daemon.Daemon, nil) },
			Machine: compute.Spec{
				ID: r.id, Name: "web", CPUs: 1, Memory: 192 << 20,
				Disks: []compute.Disk{{ID: r.id, URI: dom.DiskPath(libvirt.Disk{Target: "vda"}), Device: "vda"}},
			},
			Kept: r.description,
			Remove: func(t *testing.T) {
				ok(t, r.Do(t.Context(), func(l *rpc.Libvirt) error { return l.DomainUndefineFlags(r.dom, 0) }))
			},
		}
	})
}

// A guest that hears nothing, or cannot, is ended by force.
func TestDeafMachine(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, emptyDisk(t), filepath.Join(t.TempDir(), "con"))
	ok(t, r.d.Start(ctx, r.id))
	stopped, err := r.d.Stop(ctx, r.id, 300*time.Millisecond)
	ok(t, err)
	if !stopped.Forced {
		t.Error("a deaf machine ended by itself")
	}
	r.state(t, compute.Stopped)
	ok(t, r.d.Start(ctx, r.id))
	ok(t, r.Do(ctx, func(l *rpc.Libvirt) error { return l.DomainSuspend(r.dom) }))
	r.state(t, compute.Paused)
	_, err = r.d.Stop(ctx, r.id, time.Hour) // one that is paused hears nothing
	ok(t, err)
	r.state(t, compute.Stopped)
}

func (r *rig) description(t *testing.T) (text string) {
	t.Helper()
	ok(t, r.Do(t.Context(), func(l *rpc.Libvirt) (err error) {
		text, err = l.DomainGetXMLDesc(r.dom, rpc.DomainXMLInactive)
		return err
	}))
	return text
}

// What must not be done is refused, and what cannot be says why.
func TestRefusals(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, emptyDisk(t), filepath.Join(t.TempDir(), "con"))
	ok(t, r.d.Start(ctx, r.id))

	// Its agent's channel is there, and nobody listens: it is told at once.
	_, err := r.d.Freeze(ctx, r.id, time.Second)
	refused(t, err, errs.Unavailable, "web", "agent")

	// A domain without a definition would be gone when it has ended.
	ok(t, r.Do(ctx, func(l *rpc.Libvirt) error { return l.DomainUndefineFlags(r.dom, 0) }))
	_, err = r.d.Stop(ctx, r.id, 0)
	refused(t, err, errs.Conflict, "web", "transient")
	r.state(t, compute.Running)

	// A domain whose disk is gone does not start, and says so.
	disk := emptyDisk(t)
	lost := r.Define(t, description("lost", disk, filepath.Join(t.TempDir(), "con2")))
	ok(t, os.Remove(disk))
	refused(t, r.d.Start(ctx, libvirt.Domain{UUID: uuid.UUID(lost.UUID)}.InstanceID()), errs.Unavailable, disk)

	away, err := libvirt.Parse("qemu:///system?socket=" + filepath.Join(t.TempDir(), "none"))
	ok(t, err)
	_, err = New(away, nil).List(ctx)
	refused(t, err, errs.Unavailable, "libvirtd")
}

// A real guest ends when it is asked, and its filesystems rest when its agent is.
func TestGuest(t *testing.T) {
	ctx := t.Context()
	console := filepath.Join(t.TempDir(), "con")
	r := newRig(t, guest.Disk(t, guest.DiskConfig()), console)
	ok(t, r.d.Start(ctx, r.id))
	g, err := guest.Dial(console, 2*time.Minute)
	ok(t, err)
	defer func() { ok(t, g.Close()) }()
	must := func(command string) string {
		t.Helper()
		out, err := g.Must(command)
		ok(t, err)
		return out
	}
	must("for i in $(seq 100); do pidof qemu-ga >/dev/null && exit 0; sleep 0.2; done; exit 1")
	freeze := func(limit time.Duration) compute.Frozen {
		t.Helper()
		// The daemon learns of the agent a moment after it runs.
		for {
			f, err := r.d.Freeze(ctx, r.id, limit)
			if err == nil {
				return f
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}

	f := freeze(time.Minute)
	must("(echo x >/mnt/x; sync; touch /run/written) >/dev/null 2>&1 &")
	time.Sleep(time.Second)
	must("[ ! -e /run/written ]") // it waits
	ok(t, f.Thaw(ctx))
	ok(t, f.Thaw(ctx))
	must("for i in $(seq 100); do [ -e /run/written ] && exit 0; sleep 0.1; done; exit 1")

	// Who does not thaw is thawed, and told.
	f = freeze(200 * time.Millisecond)
	must("for i in $(seq 100); do sync && echo y >/mnt/y && exit 0; done; exit 1")
	refused(t, f.Thaw(ctx), errs.Unavailable, "web")

	// Somebody else thawed it.
	f = freeze(time.Minute)
	ok(t, r.Do(ctx, func(l *rpc.Libvirt) error {
		_, err := l.DomainFsthaw(r.dom, nil, 0)
		return err
	}))
	refused(t, f.Thaw(ctx), errs.Unavailable, "did not stay frozen")

	// A machine that is paused cannot hear; when it goes on, so does its guest,
	// whether the watchdog was at it or its Thaw.
	for _, limit := range []time.Duration{200 * time.Millisecond, time.Minute} {
		f = freeze(limit)
		ok(t, r.Do(ctx, func(l *rpc.Libvirt) error { return l.DomainSuspend(r.dom) }))
		if limit < time.Second {
			time.Sleep(2 * limit)
		}
		refused(t, f.Thaw(ctx), errs.Unavailable, "web")
		ok(t, r.Do(ctx, func(l *rpc.Libvirt) error { return l.DomainResume(r.dom) }))
		must("for i in $(seq 100); do sync && echo z >/mnt/z && exit 0; done; exit 1")
	}

	stopped, err := r.d.Stop(ctx, r.id, 2*time.Minute)
	ok(t, err)
	if stopped.Forced {
		t.Error("a guest that hears its power button was ended by force")
	}
	r.state(t, compute.Stopped)
}
