package virtvolume

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"cairn/internal/libvirt"
	"cairn/internal/libvirt/libvirttest"
	"cairn/internal/volume"
	"cairn/internal/volume/volumetest"
)

// Disks of stopped machines, each of a machine of its own.
func TestConformance(t *testing.T) {
	daemon := libvirttest.Start(t)
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			volumetest.Run(t, func(t *testing.T) volumetest.Harness {
				dir, err := os.MkdirTemp("", "cv")
				ok(t, err)
				t.Cleanup(func() { ok(t, os.RemoveAll(dir)) })
				return harness(t, daemon, dir, format)
			})
		})
	}
}

func harness(t *testing.T, daemon libvirttest.Daemon, dir, format string) volumetest.Harness {
	config := Config{Dir: filepath.Join(dir, "v"), Daemon: daemon.Daemon}
	open := func(t testing.TB) volume.Driver {
		t.Helper()
		d, err := New(config)
		ok(t, err)
		return d
	}
	domains, files := map[string]rpc.Domain{}, map[string]string{}
	define := func(t testing.TB, size int64) volume.Spec {
		t.Helper()
		name := fmt.Sprintf("%s-%d", filepath.Base(dir), len(domains))
		file := filepath.Join(dir, name)
		out, err := exec.Command("qemu-img", "create", "-q", "-f", format, file, fmt.Sprint(size)).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		xml := fmt.Sprintf(`<domain type='qemu'><name>%s</name><memory unit='MiB'>32</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><devices><disk type='file' device='disk'><driver name='qemu' type='%s'/><source file='%s'/><target dev='vda' bus='virtio'/></disk></devices></domain>`, name, format, file)
		var dom rpc.Domain
		ok(t, daemon.Do(t.Context(), func(l *rpc.Libvirt) (err error) {
			dom, err = l.DomainDefineXML(xml)
			return err
		}))
		d, k := libvirt.Domain{UUID: uuid.UUID(dom.UUID)}, libvirt.Disk{Target: "vda"}
		s := volume.Spec{ID: d.VolumeID(k), Path: d.DiskPath(k), Identity: d.DiskPath(k), SizeBytes: size}
		domains[s.ID], files[s.ID] = dom, file
		return s
	}
	undefine := func(t testing.TB, s volume.Spec) {
		t.Helper()
		ok(t, daemon.Do(t.Context(), func(l *rpc.Libvirt) error { return l.DomainUndefineFlags(domains[s.ID], 0) }))
	}
	h := volumetest.Harness{
		Driver: open(t),
		New:    define,
		Absent: func(t testing.TB) volume.Spec {
			s := define(t, 1<<20)
			undefine(t, s)
			return s
		},
		Restart: open,
	}
	if format == "raw" {
		h.Change = func(t testing.TB, s volume.Spec, buf []byte, off int64) {
			f, err := os.OpenFile(files[s.ID], os.O_WRONLY, 0)
			ok(t, err)
			_, err = f.WriteAt(buf, off)
			ok(t, err)
			ok(t, f.Close())
		}
	}
	return h
}
