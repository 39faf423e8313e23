package libvirt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"cairn/internal/errs"
)

const head = `<domain type='kvm'><name>db</name><uuid>8f2e6bd1-5b0c-4d1f-9d4e-0f6a3b1c2d3e</uuid><memory unit='KiB'>2097152</memory><vcpu placement='static'>2</vcpu><devices>`

// What is read of a description, and of each disk that cannot be, why.
func TestParseDomain(t *testing.T) {
	d, err := parseDomain(head + `
		<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a.qcow2'/><target dev='vda' bus='virtio'/><serial>one</serial></disk>
		<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/b'/><target dev='vdb'/></disk>
		<disk type='file' device='cdrom'><source file='/cd.iso'/><target dev='sda'/><readonly/></disk>
		<disk type='file' device='disk'><source file='/c'/><target dev='vdc'/><serial>one</serial></disk>
		<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
		</devices></domain>`)
	if err != nil {
		t.Fatal(err)
	}
	want := Domain{
		UUID: uuid.MustParse("8f2e6bd1-5b0c-4d1f-9d4e-0f6a3b1c2d3e"), Name: "db", CPUs: 2, Memory: 2 << 30, Agent: true,
		Disks: []Disk{
			{Target: "vda", Serial: "one", Path: "/a.qcow2", Format: "qcow2"},
			{Target: "vdb", Path: "/dev/vg/b", Format: "raw"},
			{Target: "vdc", Serial: "one", Path: "/c", Format: "raw", Problem: "has the same serial number as vda, so the guest cannot tell them apart"},
		},
	}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Error(diff)
	}
	// Ids are the same in all versions to come: points hang on them.
	if got := d.InstanceID() + " " + d.VolumeID(d.Disks[0]) + " " + d.VolumeID(d.Disks[1]); got != "ins-0BLIWC69 vol-S8UQAHAX vol-G1WDW5FU" {
		t.Errorf("ids %s", got)
	}
}

func TestProblems(t *testing.T) {
	for xml, word := range map[string]string{
		`<disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='p/i'/><target dev='vda'/></disk>`:                               "network",
		`<disk type='volume' device='disk'><driver type='raw'/><source pool='p' volume='v'/><target dev='vda'/></disk>`:                                      "volume",
		`<disk type='block' device='lun'><driver type='raw'/><source dev='/dev/sdb'/><target dev='sda'/></disk>`:                                             "lun",
		`<disk type='file' device='disk'><driver type='vmdk'/><source file='/a'/><target dev='vda'/></disk>`:                                                 "vmdk",
		`<disk type='file' device='disk'><driver type='raw'/><source file='/a'><slices><slice type='storage' offset='1' size='2'/></slices></source></disk>`: "slice",
		`<disk type='file' device='disk'><driver type='qcow2'/><source file='/a'><encryption format='luks'/></source><target dev='vda'/></disk>`:             "encrypted",
		`<disk type='file' device='disk'><driver type='raw'/><source file='/a'/><target dev='vda'/><transient/></disk>`:                                      "transient",
		`<disk type='file' device='disk'><driver type='raw'/><source file='/a'/><target dev='vda'/><shareable/></disk>`:                                      "shared",
		`<disk type='file' device='disk'><driver type='raw'/><source file='/a'/><target dev='vda'/><readonly/></disk>`:                                       "read-only",
		`<disk type='file' device='disk'><driver type='raw'/><target dev='vda'/></disk>`:                                                                     "no medium",
	} {
		d, err := parseDomain(head + xml + "</devices></domain>")
		if err != nil || len(d.Disks) != 1 || !strings.Contains(d.Disks[0].Problem, word) {
			t.Errorf("%s: %+v, %v; want a problem that says %q", xml, d.Disks, err, word)
		}
	}
	for _, bad := range []string{"", "<domain>", "<domain><name>x</name></domain>", strings.Replace(head, "2097152", "x", 1) + "</devices></domain>", strings.Replace(head, "KiB", "furlong", 1) + "</devices></domain>", strings.Replace(head, ">2<", ">two<", 1) + "</devices></domain>"} {
		if d, err := parseDomain(bad); !errs.Is(err, errs.Unavailable) {
			t.Errorf("%q is read as %+v, %v", bad, d, err)
		}
	}
}

// A file that is two disks is named in both, however it is called.
func TestSharedFiles(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "a.raw"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	disks := func(paths ...string) (out []Disk) {
		for i, p := range paths {
			out = append(out, Disk{Target: fmt.Sprintf("vd%c", 'a'+i), Path: p})
		}
		return out
	}
	all := []Domain{
		{Name: "one", Disks: disks(file, "/not/there")},
		{Name: "two", Disks: disks("/its/own", link, "")},
		{Name: "three", Disks: disks("/not/./there", "", "/twice", "/twice")},
	}
	nameShared(all)
	want := [][]string{
		{"disk vdb of domain two", "disk vda of domain three"},
		{"", "disk vda of domain one", ""},
		{"disk vdb of domain one", "", "disk vdd of domain three", "disk vdc of domain three"},
	}
	for i, dom := range all {
		for n, k := range dom.Disks {
			if w := want[i][n]; (w == "") != (k.Problem == "") || !strings.Contains(k.Problem, w) {
				t.Errorf("%s %s: %q, want %q", dom.Name, k.Target, k.Problem, w)
			}
		}
	}
}

func TestParse(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	for in, want := range map[string]Daemon{
		"qemu:///system":                     {"qemu:///system", systemSocket},
		"qemu+unix:///system":                {"qemu:///system", systemSocket},
		"qemu:///session":                    {"qemu:///session", "/run/user/7/libvirt/libvirt-sock"},
		"qemu:///system?socket=/tmp/here/it": {"qemu:///system", "/tmp/here/it"},
		"qemu+unix:///session?socket=/a%20b": {"qemu:///session", "/a b"},
	} {
		if got, err := Parse(in); err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "qemu", "qemu:///", "qemu://host/system", "qemu+ssh://host/system", "qemu+tls:///system", "xen:///system", "test:///default", "qemu:///system?socket=here", "qemu:///embed", "%"} {
		if got, err := Parse(bad); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q is taken as %+v, %v", bad, got, err)
		}
	}
}
