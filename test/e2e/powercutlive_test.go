package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/test/e2e/harness"
	"cairn/test/e2e/powercut"
)

const (
	// livePowerDisk is large enough for scratch, which leaves 256 MiB free.
	livePowerDisk = 768 << 20
	// livePowerSize is of two regions of write intent, the second of them a
	// small one, and ends within a page.
	livePowerSize = 16<<20 + 5<<16 + 3<<12 + sectorSize
)

// TestPowerCutLive runs a server whose live volumes have clients that write,
// zero, trim and flush while points are taken, volumes are rolled back, cloned
// and filled, on a disk that logs what reaches it, and then cuts the power at
// many moments of that one run. After each cut the server starts in another
// boot of the machine. Every sector then holds what was flushed last or what
// was sent later; what is still the repository's reads right; points are what
// they were; the next point is the volume, whatever tracking knew; and it goes
// on, also over kill -9 in the same boot.
func TestPowerCutLive(t *testing.T) {
	t.Parallel()
	p := newLivePower(t)
	begin := time.Now()
	history := p.play(t)
	t.Logf("%d steps in %v: %d log entries, %d flushes; clients sent %v", len(p.steps), time.Since(begin), history.Entries(), history.Flushes(), p.sent())
	most := 24
	if harness.Long() {
		most = 160
	}
	begin = time.Now()
	cuts := p.cuts(history, most)
	for n, c := range cuts {
		if err := p.cut(history, n, c); err != nil {
			p.report(t, history, c, err)
			if p.seen["failed"]++; p.seen["failed"] == 3 {
				break
			}
		}
	}
	t.Logf("%d cuts in %v: %v", len(cuts), time.Since(begin), p.seen)
	must := []string{"at a flush", "volume not all there", "point tracked"}
	if harness.Long() { // fewer cuts may miss these
		must = append(must, "torn at 512", "torn at 4096", "some writes lost", "filled after a cut", "point scanned", "job resumed")
	}
	for _, m := range must {
		if p.seen[m] == 0 {
			t.Errorf("of no cut it could be said: %s", m)
		}
	}
}

// TestPowerCutLiveCatches cuts the power of servers that break what they
// promise: that must be found, or the cuts would prove nothing of one that
// keeps it.
func TestPowerCutLiveCatches(t *testing.T) {
	if !harness.Long() {
		t.Skip("skipped: only with CAIRN_LONG=1")
	}
	t.Parallel()
	for _, lie := range []struct {
		name string
		tell func(p *livePower)
	}{
		{"syncs nothing", func(p *livePower) { p.syncsNothing = true }},
		{"takes a power cut for a kill", func(p *livePower) { p.sameBoot = true }},
	} {
		t.Run(lie.name, func(t *testing.T) {
			p := newLivePower(t)
			lie.tell(p)
			history := p.play(t)
			cuts, caught := p.cuts(history, 20), 0
			for n, c := range cuts {
				if err := p.cut(history, n, c); err != nil {
					if caught++; caught == 1 {
						t.Logf("caught: %v: %v", c, err)
					}
				}
			}
			t.Logf("%d log entries, %d flushes: %d of %d cuts caught it", history.Entries(), history.Flushes(), caught, len(cuts))
			if caught == 0 {
				t.Error("it survived every cut")
			}
		})
	}
}

// livePower is one run of a server with live volumes on a disk, and the cuts
// of it.
type livePower struct {
	srv    *harness.Server
	disk   *powercut.Disk
	boot   string // file that the server takes for the boot's id
	r      *rand.Rand
	seen   map[string]int // for the report
	steps  []liveStep
	vols   []*liveVolume
	points []*livePoint

	syncsNothing bool // from the first step on
	sameBoot     bool // a power cut does not change the boot's id
}

func newLivePower(t *testing.T) *livePower {
	p := &livePower{disk: powercut.New(t, livePowerDisk), r: harness.Rand(harness.Seed(t)), seen: map[string]int{}}
	dir := t.TempDir()
	p.boot = filepath.Join(dir, "boot_id")
	p.newBoot(t)
	bin := filepath.Join(dir, "cairn-of-a-boot")
	script := fmt.Sprintf(ofABoot, p.disk.Mount, p.boot)
	if err := os.WriteFile(bin, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(p.boot)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(bin, "cat", "/proc/sys/kernel/random/boot_id").CombinedOutput(); err != nil || string(out) != string(want) {
		t.Skipf("skipped: a process cannot be shown another boot's id here: %v: %s", err, out)
	}
	cairn := filepath.Join(dir, "cairn")
	if err := os.WriteFile(cairn, []byte(fmt.Sprintf("#!/bin/sh\nexec %q %q \"$@\"\n", bin, builder.Path(t))), 0o700); err != nil {
		t.Fatal(err)
	}
	p.srv = harness.NewServer(t, cairn, filepath.Join(p.disk.Mount, "data"), filepath.Join(dir, "server.log"))
	return p
}

// ofABoot runs a program that takes a file for the id of the machine's boot,
// in a mount namespace of its own. That must not keep other tests' disks
// mounted, whose mounts it has copies of.
const ofABoot = `#!/bin/sh
set -eu
exec unshare --mount --propagation private sh -euc '
mount --bind "$2" /proc/sys/kernel/random/boot_id
mine=$1
shift 2
mounts=$(cat /proc/self/mounts)
while read -r dev at type _; do
	case "$dev $type" in /dev/loop*|*" fuse"*) [ "$at" = "$mine" ] || umount -l "$at" ;; esac
done <<END
$mounts
END
exec "$@"
' sh %q %q "$@"
`

// newBoot gives the machine another boot's id.
func (p *livePower) newBoot(t harness.TB) {
	t.Helper()
	id := fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x\n", p.r.Uint32(), p.r.IntN(1<<16), p.r.IntN(1<<12), p.r.IntN(1<<12), p.r.Int64N(1<<48))
	if err := os.WriteFile(p.boot, []byte(id), 0o600); err != nil {
		t.Fatalf("%v", err)
	}
}

// run starts the server, with a number of MiB a second at which it fills.
func (p *livePower) run(t harness.TB, fillRate int) {
	t.Helper()
	p.srv.Extra = []string{"--reserve", "8", "--low-space", "0", "--scrub-every", "0", "--fill-rate", fmt.Sprint(fillRate)}
	p.srv.Run(t)
}

// sent counts what clients did.
func (p *livePower) sent() string {
	var out []string
	for i, v := range p.vols {
		writes, flushes := 0, 0
		for _, l := range v.lives {
			writes, flushes = writes+len(l.all), flushes+len(l.flushes)
		}
		out = append(out, fmt.Sprintf("volume %d: %d writes, %d flushes, %d lives", i+1, writes, flushes, len(v.lives)))
	}
	return strings.Join(out, "; ")
}

// cuts are where the power goes: one in each step, the others anywhere since
// there is a volume, at flushes and behind them, in the order of the log.
func (p *livePower) cuts(h *powercut.History, most int) []powercut.Cut {
	var cuts []powercut.Cut
	some := func(first, last int) {
		flush := first + p.r.IntN(last-first+1)
		if p.r.IntN(3) == 0 {
			cuts = append(cuts, powercut.Cut{Flushes: flush})
		} else {
			cuts = append(cuts, h.Random(p.r, flush))
		}
	}
	for _, s := range p.steps[1:] {
		some(h.FlushesBefore(s.asked), h.FlushesBefore(s.done))
	}
	for len(cuts) < most {
		some(h.FlushesBefore(p.steps[0].done), h.Flushes())
	}
	slices.SortStableFunc(cuts, func(a, b powercut.Cut) int { return a.Flushes - b.Flushes })
	return cuts
}

// cut shows the disk after a cut and says what is wrong with it.
func (p *livePower) cut(h *powercut.History, n int, c powercut.Cut) (err error) {
	switch {
	case c.Later == 0:
		p.seen["at a flush"]++
	case c.Torn == 0:
		p.seen["some writes lost"]++
	default:
		p.seen[fmt.Sprintf("torn at %d", c.Torn)]++
	}
	if err := h.Show(c); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, attempt(p.srv.Kill), h.Hide()) }()
	return attempt(func(t harness.TB) { p.survives(t, n, liveCut{c.Flushes, h.Reached(c)}) })
}

// report keeps what a failure needs.
func (p *livePower) report(t *testing.T, h *powercut.History, c powercut.Cut, err error) {
	t.Helper()
	during := "no step"
	for _, s := range p.steps {
		if h.FlushesBefore(s.done) > c.Flushes && s.asked < h.Reached(c) {
			during = s.what
			break
		}
	}
	t.Errorf("%v, during %s: %v", c, during, err)
	if p.seen["failed"] > 0 {
		return
	}
	image := filepath.Join(os.TempDir(), "cairn-powercutlive-failed.img")
	if err := h.Keep(c, image); err != nil {
		t.Logf("the disk could not be kept: %v", err)
		return
	}
	t.Logf("the disk after this cut is kept in %s; it belongs to %s", image, p.disk.Mount)
}
