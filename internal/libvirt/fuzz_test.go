package libvirt

import (
	"strings"
	"testing"
)

// FuzzParseDomain gives what libvirt could say: it is refused or has ids, and each
// disk that can be read a file.
func FuzzParseDomain(f *testing.F) {
	f.Add(head + `<disk type='file' device='disk'><driver type='qcow2'/><source file='/a'/><target dev='vda'/><serial>s</serial></disk></devices></domain>`)
	f.Add(head + `<disk type='block'><source dev='/dev/x'/><target dev='vdb'/><shareable/></disk><channel><target name='org.qemu.guest_agent.0'/></channel></devices></domain>`)
	f.Add("<domain/>")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDomain(text)
		if err != nil {
			return
		}
		if id := d.InstanceID(); !strings.HasPrefix(id, "ins-") || len(id) != 12 {
			t.Errorf("instance %q", id)
		}
		for _, k := range d.Disks {
			if id := d.VolumeID(k); !strings.HasPrefix(id, "vol-") || len(id) != 12 {
				t.Errorf("volume %q", id)
			}
			if k.Problem == "" && (k.Path == "" || k.Format != "raw" && k.Format != "qcow2") {
				t.Errorf("disk %+v is read", k)
			}
		}
	})
}
