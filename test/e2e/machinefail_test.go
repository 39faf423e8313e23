package e2e

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
)

// TestMachineScratchFills has a guest overwrite more during points than scratch can
// keep: such a point fails, and neither the guest nor the next point notices.
func TestMachineScratchFills(t *testing.T) {
	t.Parallel()
	r := newMachineRig(t, "--scratch", "1", "--yield", "1000", "--max-chain", "10000")
	api := r.api()
	m := r.run(t, r.image, "busy")
	g := r.shell(t, m)
	g.awaitAgent()
	g.must("dd if=/dev/urandom of=/mnt/big bs=1M count=24 2>/dev/null; sync")
	api.Create(t, "first", false, m)
	failed, most := 0, 40
	for n := 0; failed < 2; n++ {
		if n == most {
			t.Fatalf("of %d points %d failed", n, failed)
		}
		// From the end to the beginning: a point goes the other way.
		g.must("rm -f /run/quiet; (while [ ! -e /run/quiet ]; do for n in $(seq 23 -1 0); do dd if=/dev/urandom of=/mnt/big bs=1M count=1 seek=$n conv=notrunc,fsync 2>/dev/null || touch /run/broken; done; done; touch /run/calm) >/dev/null 2>&1 &")
		j := api.Wait(t, api.Send(t, http.MethodPost, "volume_snapshots", map[string]any{
			"resources": []string{m}, "snapshot_name": "busy", "is_full": "IS_FULL",
		}).Begin(t).ID)
		if j.Status == "failed" {
			failed++
			if !strings.Contains(j.Info, "the scratch space of 1 MiB is full") {
				t.Fatalf("the point failed, but says: %s", j.Info)
			}
		}
		g.must("touch /run/quiet; while [ ! -e /run/calm ]; do sleep 0.1; done; rm /run/calm; [ ! -e /run/broken ]")
		r.wantStatus(t, m, "running")
	}
	g.must("sync; umount /mnt; [ -z \"$(dmesg | grep -i 'i/o error')\" ]")
	next := api.Create(t, "next", false, m)[0]
	if s := api.MustSnapshot(t, next); s.CBT != "tracked" {
		t.Errorf("the next point: %+v", s)
	}
	whole := api.Create(t, "whole", true, m)[0]
	a, _ := api.Export(t, "volume_snapshots", next)
	b, status := api.Export(t, "volume_snapshots", whole)
	if status != http.StatusOK || !bytes.Equal(a, b) {
		t.Errorf("the increment after points that failed is not what a full point holds (%d)", status)
	}
	r.checkFS(t, "volume_snapshots", next)
	api.ScrubClean(t)
}
