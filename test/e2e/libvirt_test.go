package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"cairn/internal/libvirt/libvirttest"
	"cairn/test/e2e/guest"
	"cairn/test/e2e/harness"
)

// foreignLook is far above the seconds after which the server looks for domains
// again.
const foreignLook = time.Minute

// domainRig is a server beside a libvirt daemon that has one domain: a qcow2 with
// a guest, and a raw disk.
type domainRig struct {
	machineRig
	t        *testing.T
	daemon   libvirttest.Daemon
	dom      rpc.Domain
	dir      string // of its disks and console
	instance string
	volume   string
}

// domainXML is the domain. cache=none: what the guest has synced is in the files.
const domainXML = `<domain type='qemu'>
  <name>web</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%[1]s/system.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%[1]s/data.raw'/><target dev='vdb' bus='virtio'/></disk>
    <serial type='unix'><source mode='bind' path='%[1]s/console'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='none'/>
  </devices>
</domain>`

const foreignData = 16 << 20

func newDomainRig(t *testing.T) *domainRig {
	t.Helper()
	daemon := libvirttest.Start(t)
	dir, err := os.MkdirTemp("", "dom") // sockets' names are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	r := &domainRig{t: t, daemon: daemon, dir: dir}
	raw := guest.Disk(t, guest.DiskConfig())
	convert := exec.CommandContext(t.Context(), "qemu-img", "convert", "-O", "qcow2", raw, r.file("system.qcow2"))
	if out, err := convert.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", convert, err, out)
	}
	if err := os.WriteFile(r.file("data.raw"), make([]byte, foreignData), 0o600); err != nil {
		t.Fatal(err)
	}
	r.dom = daemon.Define(t, fmt.Sprintf(domainXML, dir))
	r.do(func(l *rpc.Libvirt) error { return l.DomainCreate(r.dom) })
	r.srv = serve(t, "--libvirt", daemon.URI, "--stop-grace", "2m")
	t.Cleanup(func() { r.deleteAll(t) })
	return r
}

func (r *domainRig) file(name string) string { return filepath.Join(r.dir, name) }

func (r *domainRig) do(call func(l *rpc.Libvirt) error) {
	r.t.Helper()
	if err := r.daemon.Do(r.t.Context(), call); err != nil {
		r.t.Fatal(err)
	}
}

// description is the domain as its owner wrote it.
func (r *domainRig) description() (text string) {
	r.t.Helper()
	r.do(func(l *rpc.Libvirt) (err error) {
		text, err = l.DomainGetXMLDesc(r.dom, rpc.DomainXMLInactive|rpc.DomainXMLSecure)
		return err
	})
	return text
}

func (r *domainRig) checkpoints() (n int) {
	r.t.Helper()
	r.do(func(l *rpc.Libvirt) error {
		all, _, err := l.DomainListAllCheckpoints(r.dom, 1, 0)
		n = len(all)
		return err
	})
	return n
}

// instances are those that have a name and are shown.
func (r *domainRig) instances(name string) (ids []string) {
	r.t.Helper()
	var page struct {
		Instances []struct {
			ID   string `json:"instance_id"`
			Name string `json:"instance_name"`
		}
	}
	r.api().Get(r.t, "instances?limit=100").Into(r.t, &page)
	for _, m := range page.Instances {
		if m.Name == name {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// await waits until the server has seen the domain.
func (r *domainRig) await() {
	r.t.Helper()
	if !harness.Poll(foreignLook, func() bool { return len(r.instances("web")) == 1 }) {
		r.t.Fatal("the domain is no instance")
	}
	r.instance = r.instances("web")[0]
	volumes := r.api().Volumes(r.t, nil)
	if len(volumes) != 1 || volumes[0].Name != "web vdb" || volumes[0].Driver != "libvirt" || volumes[0].SizeBytes != foreignData {
		r.t.Fatalf("its volumes: %+v", volumes)
	}
	r.volume = volumes[0].ID
}

// booted waits until the domain's guest has booted and its agent runs.
func (r *domainRig) booted() machineShell {
	r.t.Helper()
	g, err := guest.Dial(r.file("console"), machineBoot)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = g.Close() }) // only a console
	shell := machineShell{r.t, g}
	shell.awaitAgent()
	// The daemon learns of the agent a moment after it runs.
	if !harness.Poll(machineBoot, func() bool {
		return r.daemon.Do(r.t.Context(), func(l *rpc.Libvirt) error {
			_, err := l.QEMUDomainAgentCommand(r.dom, `{"execute":"guest-ping"}`, 5, 0)
			return err
		}) == nil
	}) {
		r.t.Fatal("the agent does not answer")
	}
	return shell
}

// killQEMU is kill -9 of the domain's QEMU.
func (r *domainRig) killQEMU() {
	r.t.Helper()
	// Its pid is of the daemon's namespace: what it has open tells which it is.
	out, err := exec.CommandContext(r.t.Context(), "pgrep", "-f", "qemu-system.*"+r.file("system.qcow2")).Output()
	if err != nil {
		r.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		r.t.Fatalf("%q is not one process", out)
	}
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	if !harness.Poll(machineBoot, func() (off bool) {
		r.do(func(l *rpc.Libvirt) error {
			active, err := l.DomainIsActive(r.dom)
			off = active == 0
			return err
		})
		return off
	}) {
		r.t.Fatal("a domain whose QEMU is dead still runs")
	}
}

// both takes a point of both disks and tells what was used for each.
func (r *domainRig) both(name string) (points []string, cbt [2]string) {
	r.t.Helper()
	points = r.api().Create(r.t, name, false, r.instance, r.volume)
	for n, id := range points {
		cbt[n] = r.api().MustSnapshot(r.t, id).CBT
	}
	return points, cbt
}

func (r *domainRig) content(id string) []byte {
	r.t.Helper()
	content, status := r.api().Export(r.t, "volume_snapshots", id)
	if status != http.StatusOK {
		r.t.Fatalf("export of %s: %d", id, status)
	}
	return content
}

// increment takes a point of both disks while the guest is up and its filesystem
// is not mounted, as a freeze itself writes to one that is. It must hold what a
// full point of then does.
func (r *domainRig) increment(g machineShell, name string) (points []string, cbt [2]string) {
	r.t.Helper()
	g.must("umount /mnt")
	points, cbt = r.both(name)
	for n, id := range r.api().Create(r.t, name+", whole", true, r.instance, r.volume) {
		if !bytes.Equal(r.content(points[n]), r.content(id)) {
			r.t.Errorf("%s: increment %s is not what a full point holds", name, points[n])
		}
	}
	g.must("mount -t ext4 /dev/vda2 /mnt")
	return points, cbt
}

// TestLibvirt takes a domain that somebody else made through all that the server
// does with machines, and leaves it as it was.
func TestLibvirt(t *testing.T) {
	t.Parallel()
	r := newDomainRig(t)
	api := r.api()
	r.await()
	before := r.description()
	g := r.booted()
	r.wantStatus(t, r.instance, "running")
	g.must("echo one >/mnt/state; echo data | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null; sync")
	bootSum := g.must(fmt.Sprintf("head -c %d /dev/vda | md5sum", bootArea))
	dataSum := g.must("md5sum </dev/vdb")

	// While it writes.
	g.must("(n=0; while [ ! -e /run/quiet ]; do n=$((n+1)); echo $n >/mnt/busy.$((n%20)); sync; done) >/dev/null 2>&1 &")
	first, cbt := r.both("one")
	if cbt != [2]string{"scan", "scan"} {
		t.Errorf("the first points used %v", cbt)
	}
	for _, id := range first {
		if s := api.MustSnapshot(t, id); s.Consistency != "filesystem" {
			t.Errorf("the point: %+v", s)
		}
	}
	if got := md5sum(t, r.checkFS(t, "volume_snapshots", first[0])); !strings.HasPrefix(bootSum, got) {
		t.Errorf("the point's boot area has the sum %s, the guest said %s", got, bootSum)
	}
	if got := md5sum(t, r.content(first[1])); !strings.HasPrefix(dataSum, got) {
		t.Errorf("the point of the data disk has the sum %s, the guest said %s", got, dataSum)
	}

	// Increments: of the qcow2 what its bitmap says, of the raw disk a scan.
	g.must("touch /run/quiet; sleep 1; echo two >/mnt/state; echo more | dd of=/dev/vdb bs=1M seek=5 conv=notrunc,fsync 2>/dev/null; sync")
	second, cbt := r.increment(g, "two")
	if cbt != [2]string{"tracked", "scan"} {
		t.Errorf("the increments used %v", cbt)
	}

	// A server that dies takes nothing with it.
	r.srv.Kill(t)
	r.srv.Run(t)
	if _, cbt := r.increment(g, "after kill -9 of the server"); cbt[0] != "tracked" {
		t.Errorf("after kill -9 of the server %v was used", cbt)
	}

	// Nor does a QEMU that dies, whose bitmaps are worth nothing.
	g.must("echo three >/mnt/state; sync")
	r.killQEMU()
	r.wantStatus(t, r.instance, "stopped")
	r.job(t, "instances/start", map[string]any{"instances": r.instance})
	if _, cbt := r.increment(r.booted(), "after kill -9 of QEMU"); cbt[0] != "scan" {
		t.Errorf("after kill -9 of QEMU %v was used", cbt)
	}

	// Rolled back, both at once; the guest boots anew, and nothing is tracked.
	if j := api.Apply(t, first...); j.Info != "" {
		t.Errorf("the guest was to end by itself; the job says %q", j.Info)
	}
	if n := r.checkpoints(); n != 0 {
		t.Errorf("after a rollback the domain has %d checkpoints", n)
	}
	g = r.booted()
	if got := g.must("cat /mnt/state; md5sum </dev/vdb"); !strings.HasPrefix(got, "one\n") || !strings.HasSuffix(got, dataSum) {
		t.Errorf("rolled back the guest says %q", got)
	}
	third, cbt := r.increment(g, "rolled back")
	if cbt[0] != "scan" || api.MustSnapshot(t, third[0]).ParentID != first[0] {
		t.Errorf("after a rollback %v was used", cbt)
	}

	// Its owner makes the disks larger: the next points are fulls of all of them.
	for target, size := range map[string]uint64{"vda": 2 * guest.DiskSize, "vdb": 2 * foreignData} {
		r.do(func(l *rpc.Libvirt) error { return l.DomainBlockResize(r.dom, target, size, rpc.DomainBlockResizeBytes) })
	}
	g.must("for i in $(seq 100); do [ $(cat /sys/block/vdb/size) = 65536 ] && exit 0; sleep 0.1; done; exit 1")
	g.must("echo end | dd of=/dev/vdb bs=1M seek=31 conv=fsync 2>/dev/null")
	largeSum := g.must("md5sum </dev/vdb")
	larger, _ := r.both("larger")
	for n, size := range []int64{2 * guest.DiskSize, 2 * foreignData} {
		if s := api.MustSnapshot(t, larger[n]); s.Type != "IS_FULL" || s.VirtualSize != size {
			t.Errorf("a point of a disk that grew: %+v", s)
		}
	}
	if got := md5sum(t, r.content(larger[1])); !strings.HasPrefix(largeSum, got) {
		t.Errorf("the point of the data disk that grew has the sum %s, the guest said %s", got, largeSum)
	}

	// A stopped domain stays stopped. What comes of a smaller point is zeros.
	r.job(t, "instances/stop", map[string]any{"instances": r.instance})
	r.wantStatus(t, r.instance, "stopped")
	api.Apply(t, second...)
	r.wantStatus(t, r.instance, "stopped")
	stopped, _ := r.both("stopped")
	if want := append(r.content(second[1]), make([]byte, foreignData)...); !bytes.Equal(r.content(stopped[1]), want) {
		t.Error("the data disk of the stopped domain is not as it was rolled back")
	}

	// Machines and volumes of ours come of its points.
	image := r.job(t, "volume_snapshots/capture_instance/"+first[0], map[string]any{"image_name": "golden"}).ResourceIDs[0]
	if got := r.shell(t, r.run(t, image, "ours")).must("cat /mnt/state"); got != "one" {
		t.Errorf("a machine of its image holds %q", got)
	}
	clone := api.Clone(t, first[1], "clone")
	if content, _ := api.Export(t, "volume_snapshots", api.Create(t, "clone", false, clone)[0]); !strings.HasPrefix(dataSum, md5sum(t, content)) {
		t.Error("a clone of the data disk's point is not what the guest had")
	}

	// What is its owner's to change is refused; to delete it is to forget it.
	said := api.Send(t, http.MethodPost, "volumes/attach", map[string]any{"instance_id": r.instance, "volumes": []string{clone}}).WantError(t, http.StatusConflict, "1400")
	if !strings.Contains(said, "virsh attach-disk") {
		t.Errorf("the attach was refused with %q", said)
	}
	api.OK(t, api.Do(t, harness.Request{Method: http.MethodDelete, Path: "instances/" + r.instance}).Begin(t))
	if left := r.instances("web"); len(left) != 0 {
		t.Errorf("a forgotten domain is shown as %v", left)
	}
	if after := r.description(); after != before {
		t.Errorf("the domain was\n%s\nand is\n%s", before, after)
	}
	api.ScrubClean(t)
}
