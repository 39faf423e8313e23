package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/test/e2e/guest"
	"cairn/test/e2e/harness"
)

const (
	// machineBoot is far above the seconds that a guest takes to boot.
	machineBoot = 3 * time.Minute
	// bootArea is what a guest never writes to: its boot sector and its first
	// partition.
	bootArea = guest.DataOffset
)

// machineRig is a server with an image and the machines that run from it.
type machineRig struct {
	srv   *harness.Server
	image string
}

func newMachineRig(t *testing.T, extra ...string) *machineRig {
	t.Helper()
	disk := guest.Disk(t, guest.DiskConfig())
	r := &machineRig{srv: serve(t, extra...)}
	// Machines outlive their server: they must not outlive the test.
	t.Cleanup(func() { r.deleteAll(t) })
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	q := url.Values{"image_name": {"tiny"}, "size_bytes": {fmt.Sprint(guest.DiskSize)}}
	r.image = r.api().OK(t, r.api().Upload(t, "images/import?"+q.Encode(), f, guest.DiskSize).Begin(t)).ResourceIDs[0]
	return r
}

func (r *machineRig) api() *harness.Client { return r.srv.API() }

func (r *machineRig) deleteAll(t *testing.T) {
	if r.srv.PID() == 0 {
		r.srv.Run(t)
	}
	r.api().WaitAll(t)
	var page struct {
		Instances []struct {
			ID string `json:"instance_id"`
		}
	}
	r.api().Get(t, "instances?limit=100").Into(t, &page)
	for _, m := range page.Instances {
		j := r.api().Do(t, harness.Request{Method: http.MethodDelete, Path: "instances/" + m.ID}).Begin(t)
		r.api().OK(t, j)
	}
}

// start posts a call that starts a job, and waits.
func (r *machineRig) job(t *testing.T, path string, body map[string]any) harness.Job {
	t.Helper()
	return r.api().OK(t, r.api().Send(t, http.MethodPost, path, body).Begin(t))
}

// run runs a machine.
func (r *machineRig) run(t *testing.T, image, name string) string {
	t.Helper()
	return r.job(t, "instances", map[string]any{"instance": map[string]any{
		"image_id": image, "instance_name": name, "cpu": 1, "memory": 192,
	}}).ResourceIDs[0]
}

func (r *machineRig) wantStatus(t *testing.T, id, want string) {
	t.Helper()
	var page struct {
		Instances []struct {
			Status string
		}
	}
	r.api().Get(t, "instances?instances="+id).Into(t, &page)
	if len(page.Instances) != 1 || page.Instances[0].Status != want {
		t.Fatalf("instance %s: %+v, want it %s", id, page.Instances, want)
	}
}

// machineShell runs commands in a machine's guest.
type machineShell struct {
	t *testing.T
	*guest.Remote
}

// shell waits until a machine's guest has booted.
func (r *machineRig) shell(t *testing.T, id string) machineShell {
	t.Helper()
	g, err := guest.Dial(filepath.Join(r.srv.Dir, "volumes", "machines", id, "console"), machineBoot)
	if err != nil {
		t.Fatalf("%v\nits console: %s", err, r.console(t, id))
	}
	t.Cleanup(func() { _ = g.Close() }) // only a console
	return machineShell{t, g}
}

func (g machineShell) must(command string) string {
	g.t.Helper()
	out, err := g.Must(command)
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

// awaitAgent waits until the guest's agent runs, so that it can be frozen.
func (g machineShell) awaitAgent() {
	g.t.Helper()
	g.must("for i in $(seq 100); do pidof qemu-ga >/dev/null && exit 0; sleep 0.2; done; cat /run/agent.log; exit 1")
}

func (r *machineRig) console(t *testing.T, id string) string {
	t.Helper()
	text := r.api().Get(t, "instances/"+id+"/console?from=-4000")
	return string(text.Body)
}

// checkFS exports a point and has e2fsck look at its data filesystem: it must be
// clean as it is, if the guest was at rest.
func (r *machineRig) checkFS(t *testing.T, kind, id string) (boot []byte) {
	t.Helper()
	content, status := r.api().Export(t, kind, id)
	if status != http.StatusOK || len(content) != guest.DiskSize {
		t.Fatalf("export of %s: %d, %d bytes", id, status, len(content))
	}
	data := filepath.Join(t.TempDir(), "data.ext4")
	if err := os.WriteFile(data, content[guest.DataOffset:], 0o600); err != nil {
		t.Fatal(err)
	}
	// A journal is left to be replayed, as the guest goes on; then nothing may be
	// wrong.
	for _, args := range [][]string{{"-fp", data}, {"-fn", data}} {
		out, err := exec.CommandContext(t.Context(), "e2fsck", args...).CombinedOutput()
		if exit, ok := err.(*exec.ExitError); err != nil && !(ok && exit.ExitCode() == 1 && args[0] == "-fp") {
			t.Fatalf("e2fsck %v of %s: %v\n%s", args[0], id, err, out)
		}
	}
	return content[:bootArea]
}

// TestMachine is a machine's life: it is run from an image, backed up while it
// writes, rolled back around a restart, captured, and survives its server.
func TestMachine(t *testing.T) {
	t.Parallel()
	r := newMachineRig(t, "--stop-grace", "2m")
	api := r.api()
	m := r.run(t, r.image, "web")
	r.wantStatus(t, m, "running")
	g := r.shell(t, m)
	g.must("echo one >/mnt/state; sync")
	bootSum := g.must(fmt.Sprintf("head -c %d /dev/vda | md5sum", bootArea))

	// While it writes.
	g.must("(n=0; while :; do n=$((n+1)); echo $n >/mnt/busy.$((n%20)); sync; done) >/dev/null 2>&1 &")
	g.awaitAgent()
	point := api.Create(t, "one", false, m)[0]
	s := api.MustSnapshot(t, point)
	if s.Resource.Type != "instance" || s.Consistency != "filesystem" {
		t.Errorf("the point: %+v", s)
	}
	boot := r.checkFS(t, "volume_snapshots", point)
	if got := md5sum(t, boot); !strings.HasPrefix(bootSum, got) {
		t.Errorf("the point's boot area has the sum %s, the guest said %s", got, bootSum)
	}

	// The server dies; the machine does not, nor does it lose anything.
	r.srv.Kill(t)
	time.Sleep(time.Second)
	r.srv.Run(t)
	before := g.must("cat /proc/sys/kernel/random/boot_id; sync; cat /mnt/state")
	if !strings.HasSuffix(before, "one") {
		t.Errorf("after kill -9 of the server the guest says %q", before)
	}
	r.wantStatus(t, m, "running")

	// Hot-plug.
	v := api.CreateVolume(t, "data", 16<<20)
	r.job(t, "volumes/attach", map[string]any{"instance_id": m, "volumes": []string{v}})
	g.must("for i in $(seq 50); do [ -b /dev/vdb ] && exit 0; sleep 0.1; done; exit 1")
	if got := g.must("cat /sys/block/vdb/serial; echo; cat /sys/block/vdb/size"); !strings.HasPrefix(got, v) || !strings.HasSuffix(got, "32768") {
		t.Errorf("the volume in the guest: %q", got)
	}
	g.must("mkfs.ext4 -q /dev/vdb && mkdir -p /tmp/b && mount /dev/vdb /tmp/b && echo data >/tmp/b/data && sync")
	both := api.Create(t, "both", false, m, v)
	g.must("echo two >/mnt/state; echo later >/tmp/b/data; sync")
	r.job(t, "volumes/resize", map[string]any{"volumes": []string{v}, "size_bytes": 32 << 20})

	// Rolled back: both at once, and the guest boots anew.
	if j := api.Apply(t, append([]string{point}, both[1])...); j.Info != "" {
		t.Errorf("the guest was to end by itself; the job says %q", j.Info)
	}
	g = r.shell(t, m)
	after := g.must("cat /proc/sys/kernel/random/boot_id; cat /mnt/state")
	if strings.Split(after, "\n")[0] == strings.Split(before, "\n")[0] || !strings.HasSuffix(after, "one") {
		t.Errorf("after the rollback the guest says %q, before %q", after, before)
	}
	if got := g.must("mkdir -p /tmp/b && mount /dev/vdb /tmp/b && cat /tmp/b/data && umount /tmp/b; cat /sys/block/vdb/size"); got != "data\n65536" {
		t.Errorf("the volume holds %q", got)
	}
	r.job(t, "volumes/detach", map[string]any{"volumes": []string{v}})
	g.must("for i in $(seq 50); do [ -b /dev/vdb ] || exit 0; sleep 0.1; done; exit 1")
	api.DeleteVolumes(t, v)

	// An image of it, and a machine of that.
	image := r.job(t, "volume_snapshots/capture_instance/"+both[0], map[string]any{"image_name": "golden"}).ResourceIDs[0]
	api.DeleteSnapshots(t, point)
	r.checkFS(t, "images", image)
	second := r.run(t, image, "second")
	if got := r.shell(t, second).must("cat /mnt/state"); got != "one" {
		t.Errorf("the second machine holds %q", got)
	}

	// Off and on.
	g.must("echo three >/mnt/state; sync")
	if j := r.job(t, "instances/stop", map[string]any{"instances": []string{m, second}}); j.Info != "" {
		t.Errorf("the stop says %q", j.Info)
	}
	r.wantStatus(t, m, "stopped")
	r.job(t, "instances/start", map[string]any{"instances": m})
	if got := r.shell(t, m).must("cat /mnt/state"); got != "three" {
		t.Errorf("after off and on: %q", got)
	}
	api.ScrubClean(t)
}

// TestMachineThatDoesNotObey has guests that ignore the power button, have no
// agent, or lose their QEMU.
func TestMachineThatDoesNotObey(t *testing.T) {
	t.Parallel()
	r := newMachineRig(t, "--stop-grace", "2s")
	api := r.api()
	m := r.run(t, r.image, "deaf")
	g := r.shell(t, m)
	g.awaitAgent()
	g.must("killall acpid; echo one >/mnt/state; sync")
	point := api.Create(t, "one", false, m)[0]
	g.must("kill -STOP $(pidof qemu-ga); echo two >/mnt/state; sync")
	silent := api.Create(t, "the agent is silent", false, m)[0]
	g.must("kill -9 $(pidof qemu-ga); while pidof qemu-ga; do sleep 0.1; done")
	without := api.Create(t, "there is no agent", false, m)[0]
	r.signalQEMU(t, m, "STOP")
	halted := api.Create(t, "nothing of the machine answers", false, m)[0]
	r.signalQEMU(t, m, "CONT")
	for id, want := range map[string]string{point: "filesystem", silent: "crash", without: "crash", halted: "crash"} {
		if s := api.MustSnapshot(t, id); s.Consistency != want {
			t.Errorf("%s: consistency %s, want %s", s.Name, s.Consistency, want)
		}
		r.checkFS(t, "volume_snapshots", id)
	}
	if j := api.Apply(t, point); !strings.Contains(j.Info, m) || !strings.Contains(j.Info, "power cut") {
		t.Errorf("a guest that ignores its power button was rolled back; the job says %q", j.Info)
	}
	if got := r.shell(t, m).must("cat /mnt/state"); got != "one" {
		t.Errorf("rolled back the guest says %q", got)
	}
	// Its monitor is gone: it is ended all the same.
	r.signalQEMU(t, m, "STOP")
	if j := api.Apply(t, point); !strings.Contains(j.Info, "power cut") {
		t.Errorf("a machine without a monitor was rolled back; the job says %q", j.Info)
	}
	r.shell(t, m).must("cat /mnt/state")
	// kill -9 of its QEMU: the machine is seen to be off, and comes back.
	r.signalQEMU(t, m, "KILL")
	if !harness.Poll(machineBoot, func() bool {
		var page struct{ Instances []struct{ Status string } }
		api.Get(t, "instances?instances="+m).Into(t, &page)
		return page.Instances[0].Status == "stopped"
	}) {
		t.Fatal("a machine whose QEMU is dead still counts as running")
	}
	third := api.Create(t, "three", false, m)[0]
	r.checkFS(t, "volume_snapshots", third)
	r.job(t, "instances/start", map[string]any{"instances": m})
	if got := r.shell(t, m).must("cat /mnt/state"); got != "one" {
		t.Errorf("after kill -9 of QEMU: %q", got)
	}
}

// signalQEMU sends a signal to the process that a machine's own pid file names,
// after a look that it is what it should be.
func (r *machineRig) signalQEMU(t *testing.T, id, signal string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.srv.Dir, "volumes", "machines", id, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(b))
	line, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
	if err != nil || !bytes.Contains(line, []byte("guest="+id)) {
		t.Fatalf("process %s is not the machine's: %q, %v", pid, line, err)
	}
	if out, err := exec.CommandContext(t.Context(), "kill", "-"+signal, pid).CombinedOutput(); err != nil {
		t.Fatalf("kill -%s %s: %v %s", signal, pid, err, out)
	}
}

func md5sum(t *testing.T, b []byte) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "md5sum")
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))[0]
}

// TestMachineRounds writes files in a guest, takes points and rolls back, again
// and again: files are what they were, and their filesystem is whole.
func TestMachineRounds(t *testing.T) {
	t.Parallel()
	rounds := 3
	if harness.Long() {
		rounds = 50
	}
	rng := harness.Rand(harness.Seed(t))
	r := newMachineRig(t, "--stop-grace", "1m")
	api := r.api()
	m := r.run(t, r.image, "rounds")
	g := r.shell(t, m)
	g.awaitAgent()
	sums := map[string]string{} // of the files at a point
	var points []string
	for round := range rounds {
		// Files that a point must have, and others that are written meanwhile.
		sum := g.must(fmt.Sprintf(`cd /mnt && mkdir -p kept && n=%d
			while [ $n -gt 0 ]; do n=$((n-1))
				dd if=/dev/urandom of=kept/$((($n*7+%d)%%30)) bs=1k count=$((n*37%%500+1)) 2>/dev/null
			done; rm -f kept/%d; sync; cat kept/* | md5sum`, 5+rng.IntN(10), rng.IntN(30), rng.IntN(30)))
		g.must("(while [ ! -e /run/stop ]; do dd if=/dev/urandom of=/mnt/noise bs=64k count=20; sync; done; rm /run/stop; : >/run/stopped) >/dev/null 2>&1 &")
		point := api.Create(t, fmt.Sprint("round ", round), rng.IntN(8) == 0, m)[0]
		g.must(": >/run/stop; while [ ! -e /run/stopped ]; do sleep 0.1; done; rm /run/stopped")
		if got := api.MustSnapshot(t, point).Consistency; got != "filesystem" {
			t.Errorf("round %d: the point is %s", round, got)
		}
		sums[point] = sum
		points = append(points, point)
		r.checkFS(t, "volume_snapshots", point)
		if rng.IntN(2) == 0 && round < rounds-1 {
			continue
		}
		back := points[rng.IntN(len(points))]
		if j := api.Apply(t, back); j.Info != "" {
			t.Errorf("round %d: the apply says %q", round, j.Info)
		}
		g = r.shell(t, m)
		if got := g.must("cat /mnt/kept/* | md5sum"); got != sums[back] {
			t.Fatalf("round %d: rolled back to %s the files have the sum %s, want %s", round, back, got, sums[back])
		}
		g.awaitAgent()
	}
	// Stopped: what changes tell equals what reading everything tells.
	r.job(t, "instances/stop", map[string]any{"instances": m})
	increment := api.Create(t, "increment", false, m)[0]
	full := api.Create(t, "full", true, m)[0]
	one, _ := api.Export(t, "volume_snapshots", increment)
	other, _ := api.Export(t, "volume_snapshots", full)
	if s := api.MustSnapshot(t, increment); s.CBT != "tracked" || !bytes.Equal(one, other) {
		t.Errorf("the increment (%s) and a full of the same moment differ", s.CBT)
	}
	api.ScrubClean(t)
}
