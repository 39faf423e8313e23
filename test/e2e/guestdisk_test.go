package e2e

import (
	"os/exec"
	"strings"
	"testing"

	"cairn/test/e2e/guest"
	"cairn/test/e2e/harness"
)

// TestGuestDisk has a volume as the disk of a virtual machine: QEMU is the
// client, with its own reconnecting, and the guest sees virtio.
func TestGuestDisk(t *testing.T) {
	t.Parallel()
	rounds, kills := 1, 2
	if harness.Long() {
		rounds, kills = 6, 5
	}
	rng := harness.Rand(harness.Seed(t))
	f := &guestFS{srv: serve(t), dev: "/dev/vda"}
	f.volume = f.srv.API().CreateVolume(t, "disk", guestVolume)
	f.bootDisk(t)
	f.format(t)
	var points []*guestPoint
	for range rounds {
		f.mount(t)
		f.startWriter(t)
		for range kills {
			points = append(points, f.point(t))
			f.progress(t, 1)
			f.srv.Kill(t)
			f.srv.Run(t)
			f.progress(t, 2)
		}
		f.stopWriter(t)
		f.unmount(t)
		f.mount(t) // umount leaves nothing of the disk in the guest's memory
		f.unmount(t)
		f.guest.Stop(t)
		f.rollBack(t, points[rng.IntN(len(points))])
		f.bootDisk(t)
	}
	f.mount(t)
	f.trim(t)
	f.unmount(t)
	f.mount(t)
	f.guest.Stop(t)
}

// bootDisk boots a guest with the volume for its disk, in the words that
// `cairn volume connect` has for that.
func (f *guestFS) bootDisk(t *testing.T) {
	t.Helper()
	line := f.connectLine(t, "unix://"+f.srv.Socket(), "qemu")
	_, args, ok := strings.Cut(line, "…")
	if !ok {
		t.Fatalf("the line for QEMU is %q", line)
	}
	words, err := exec.Command("sh", "-c", "printf '%s\n' "+args).Output() // as a shell splits them
	if err != nil {
		t.Fatalf("split %q: %v", args, err)
	}
	f.guest = guest.Start(t, guest.Config{
		Modules:  []string{"ext4"},
		Programs: []string{"mkfs.ext4", "e2fsck"},
		Files:    map[string]string{"/etc/mke2fs.conf": "/etc/mke2fs.conf"},
		QEMU:     strings.Fields(string(words)),
	})
}
