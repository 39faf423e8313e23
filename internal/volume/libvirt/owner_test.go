package virtvolume

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"cairn/internal/errs"
	"cairn/internal/libvirt/libvirttest"
	"cairn/internal/volume"
)

// This file is what owners do to their machines and disks between points and
// during them.

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// define makes a domain of disks, each "format type path", and finds it.
func (r *rig) define(t *testing.T, name string, disks ...string) *machine {
	t.Helper()
	all := ""
	for i, d := range disks {
		f := strings.Fields(d)
		attr := map[string]string{"file": "file", "block": "dev"}[f[1]]
		all += fmt.Sprintf(`<disk type='%s' device='disk'><driver name='qemu' type='%s'/><source %s='%s'/><target dev='vd%c' bus='virtio'/></disk>`, f[1], f[0], attr, f[2], 'a'+i)
	}
	r.Define(t, fmt.Sprintf(`<domain type='qemu'><name>%s</name><memory unit='MiB'>32</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><devices>%s<memballoon model='none'/></devices></domain>`, name, all))
	m := &machine{t: t, daemon: r.Daemon}
	for range disks {
		m.disks = append(m.disks, make([]byte, diskSize))
	}
	m.look(t, name)
	return m
}

// look takes note of how the domain is now.
func (m *machine) look(t *testing.T, name string) {
	t.Helper()
	all, err := m.daemon.Domains(t.Context())
	ok(t, err)
	for _, dom := range all {
		if dom.Name == name {
			m.dom = dom
		}
	}
}

// untold demands that a point of a disk shows it, and tells no changes since base.
func (r *rig) untold(t *testing.T, what string, m *machine, disk int, base volume.Checkpoint) {
	t.Helper()
	in, err := r.d.Freeze(t.Context(), "untold", []volume.Spec{m.spec(disk)}, nil)
	ok(t, err)
	shows(t, what, in.Source(0), m.disks[disk])
	if _, err := in.Source(0).Changed(t.Context(), base, 0); !errors.Is(err, volume.ErrNoBase) {
		t.Errorf("%s: changes are told: %v", what, err)
	}
	ok(t, in.Close())
}

// A bitmap is believed in only in the file and the domain in which it began.
func TestFilesAreExchanged(t *testing.T) {
	r := newRig(t)
	dir := filepath.Dir(r.config.Dir)
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"a", "b"} {
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", file(name), fmt.Sprint(diskSize))
	}
	m := r.define(t, "one", "qcow2 file "+file("a"), "qcow2 file "+file("b"))
	point := func(hold string) {
		t.Helper()
		m.start()
		m.write(0, 1, 0, 8*block)
		m.write(1, 2, 0, 8*block)
		r.point(t, m, hold, "x", "x")
		m.stop()
	}

	point("p1")
	m.start() // nothing happens: it is told
	in, err := r.d.Freeze(t.Context(), "told", []volume.Spec{m.spec(0)}, nil)
	ok(t, err)
	if _, err := in.Source(0).Changed(t.Context(), "x", 0); errors.Is(err, volume.ErrNoBase) {
		t.Error("after a clean stop changes are not told")
	}
	ok(t, in.Close())
	m.stop()

	// Two disks change places.
	for _, names := range [][2]string{{"a", "c"}, {"b", "a"}, {"c", "b"}} {
		ok(t, os.Rename(file(names[0]), file(names[1])))
	}
	m.disks[0], m.disks[1] = m.disks[1], m.disks[0]
	m.start()
	r.untold(t, "another disk's file", m, 0, "x")
	m.stop()

	// A copy takes the file's place.
	point("p2")
	run(t, "cp", file("a"), file("c"))
	ok(t, os.Rename(file("c"), file("a")))
	m.start()
	r.untold(t, "a copy", m, 0, "x")
	m.stop()

	// The file is put back in place as it was, behind a point of the stopped machine.
	point("p3")
	run(t, "cp", file("a"), file("old"))
	was := bytes.Clone(m.disks[0])
	m.start()
	m.write(0, 9, 16*block, 4*block)
	m.stop()
	r.point(t, m, "stopped", "y", "y")
	run(t, "cp", file("old"), file("a"))
	m.disks[0] = was
	m.start()
	r.untold(t, "a disk of before", m, 0, "y")
	m.stop()

	// Two domains whose disks change places have bitmaps of one point.
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", file("d"), fmt.Sprint(diskSize))
	other := r.define(t, "two", "qcow2 file "+file("d"))
	for _, m := range []*machine{m, other} {
		m.start()
	}
	in, err = r.d.Freeze(t.Context(), "both", []volume.Spec{m.spec(0), other.spec(0)}, nil)
	ok(t, err)
	ok(t, in.Settle(t.Context(), []volume.Checkpoint{"z", "z"}, func() error { return nil }))
	ok(t, in.Close())
	other.write(0, 7, 0, block)
	m.stop()
	other.stop()
	run(t, "cp", file("d"), file("a")) // in place: it is the same file
	m.disks[0] = other.disks[0]
	m.start()
	r.untold(t, "another domain's content", m, 0, "z")
}

// A disk that was made smaller and larger again has lost what lay there.
func TestShrinksAndGrows(t *testing.T) {
	r := newRig(t, "one")
	m := r.machines[0]
	m.write(0, 1, 0, diskSize)
	resize := func(size uint64) {
		t.Helper()
		m.call(func(l *rpc.Libvirt) error {
			return l.DomainBlockResize(m.dom.Handle(), "vda", size, rpc.DomainBlockResizeBytes)
		})
	}
	r.point(t, m, "p", "a0", "a1")
	resize(diskSize / 2)
	if size, err := r.d.Size(t.Context(), m.spec(0)); err != nil || size != diskSize/2 {
		t.Errorf("its size is %d, %v", size, err)
	}
	resize(diskSize)
	clear(m.disks[0][diskSize/2:])
	r.untold(t, "a disk that was seen smaller", m, 0, "a0")

	// Between two looks only what is read for proof can show it.
	m.write(0, 1, 0, diskSize)
	r.point(t, m, "q", "b0", "b1")
	resize(diskSize / 2)
	resize(diskSize)
	in, err := r.d.Freeze(t.Context(), "r", []volume.Spec{m.spec(0)}, nil)
	ok(t, err)
	audited, err := in.Source(0).Audit(t.Context(), "b0")
	ok(t, err)
	if n := len(audited); n == 0 || audited[n-1].End() != diskSize {
		t.Errorf("audited is %v, not the end", audited)
	}
	ok(t, in.Close())
}

// A qcow2 disk of the first version has no bitmaps, and points all the same.
func TestOldDisk(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(filepath.Dir(r.config.Dir), "old")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", file, fmt.Sprint(diskSize))
	m := r.define(t, "old", "qcow2 file "+file)
	m.start()
	m.write(0, 3, block, block)
	in, err := r.d.Freeze(t.Context(), "p", []volume.Spec{m.spec(0)}, nil)
	ok(t, err)
	ok(t, in.Settle(t.Context(), []volume.Checkpoint{"a"}, func() error { return nil }))
	ok(t, in.Close())
	r.untold(t, "a disk of the first version", m, 0, "a")
	if c := m.checkpoints(); len(c) > 0 {
		t.Errorf("checkpoints %v", c)
	}
}

// What is read while scratch is full fails for that, not for nothing.
func TestReadsWithScratchFull(t *testing.T) {
	r := newRig(t, "one")
	ctx, m := t.Context(), r.machines[0]
	m.write(0, 1, 0, diskSize)
	r.config.ScratchBytes = 1 << 20
	r.d = r.open(t)
	in, err := r.d.Freeze(ctx, "p", []volume.Spec{m.spec(0)}, nil)
	ok(t, err)
	m.write(0, 2, 0, diskSize)
	for err == nil {
		err = in.Source(0).ReadAt(ctx, make([]byte, block), 0)
	}
	refused(t, err, errs.Full, "one", "--scratch")
	ok(t, in.Close())
}

// What is forgotten leaves nothing in its machine, running or stopped.
func TestForget(t *testing.T) {
	r := newRig(t, "one")
	ctx, m := t.Context(), r.machines[0]
	for _, stopped := range []bool{false, true} {
		r.point(t, m, "p", "a0", "a1")
		if c := m.checkpoints(); len(c) != 1 {
			t.Errorf("checkpoints %v", c)
		}
		in, err := r.d.Freeze(ctx, "q", []volume.Spec{m.spec(1)}, nil)
		ok(t, err)
		refused(t, r.d.Forget(ctx, m.spec(0)), errs.Busy, "one")
		ok(t, in.Close())
		if stopped {
			m.stop()
		}
		for range 2 {
			ok(t, r.d.Forget(ctx, m.spec(0)))
		}
		if c := m.checkpoints(); len(c) > 0 {
			t.Errorf("checkpoints %v stayed", c)
		}
		if !stopped {
			m.stop()
		}
		if names := m.bitmaps(0); len(names) > 0 {
			t.Errorf("bitmaps %v stayed", names)
		}
		m.start()
		r.untold(t, "a disk that was forgotten", m, 0, "a0")
	}
	m.stop()
	m.call(func(l *rpc.Libvirt) error { return l.DomainUndefineFlags(m.dom.Handle(), 0) })
	ok(t, r.d.Forget(ctx, m.spec(0)))
}

// What must not be overwritten is refused while the machine still runs.
func TestCheckTarget(t *testing.T) {
	r := newRig(t)
	ctx, dir := t.Context(), filepath.Dir(r.config.Dir)
	file := func(name string) string { return filepath.Join(dir, name) }
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", file("base"), fmt.Sprint(diskSize))
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", file("other"), fmt.Sprint(diskSize))
	m := r.define(t, "one", "qcow2 file "+file("base"))
	ok(t, r.d.CheckTarget(ctx, m.spec(0)))
	m.start()
	ok(t, r.d.CheckTarget(ctx, m.spec(0)))

	// Its next start is with another disk.
	xml := ""
	m.call(func(l *rpc.Libvirt) (err error) {
		xml, err = l.DomainGetXMLDesc(m.dom.Handle(), rpc.DomainXMLInactive)
		return err
	})
	r.Define(t, strings.Replace(xml, file("base"), file("other"), 1))
	refused(t, r.d.CheckTarget(ctx, m.spec(0)), errs.Conflict, "one", "vda", "definition")
	r.Define(t, xml)
	ok(t, r.d.CheckTarget(ctx, m.spec(0)))

	// Others are built on it, one on another.
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", file("clone"))
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", file("clone"), "-F", "qcow2", file("clone2"))
	clone := r.define(t, "clone", "qcow2 file "+file("clone2"))
	refused(t, r.d.CheckTarget(ctx, m.spec(0)), errs.Conflict, "clone", "vda", "built on")
	m.stop()
	_, err := r.d.OpenTarget(ctx, m.spec(0))
	refused(t, err, errs.Conflict, "clone", "vda", "built on")
	ok(t, r.d.CheckTarget(ctx, clone.spec(0)))
}

// loop is a device of a file that ends with the test.
func loop(t *testing.T, dir string) string {
	t.Helper()
	file := filepath.Join(dir, "device")
	ok(t, errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, diskSize)))
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop devices can be made here: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { run(t, "losetup", "--detach", device) })
	return device
}

// A disk that is a device: libvirt gives QEMU a node of its own of it, so no lock
// of ours keeps anybody from it, and its times tell of no write.
func TestDevice(t *testing.T) {
	daemon := libvirttest.StartIsolated(t)
	dir, err := os.MkdirTemp("", "cv")
	ok(t, err)
	t.Cleanup(func() { ok(t, os.RemoveAll(dir)) })
	r := &rig{Daemon: daemon, config: Config{Dir: filepath.Join(dir, "v"), Daemon: daemon.Daemon}}
	r.d = r.open(t)
	ctx := t.Context()
	m := r.define(t, "one", "raw block "+loop(t, dir))
	m.start()
	m.write(0, 1, 0, 8*block)
	r.untold(t, "while it runs", m, 0, "a")
	m.stop()
	r.untold(t, "while it is stopped", m, 0, "a")

	// It is started and stopped while it is read.
	in, err := r.d.Freeze(ctx, "p", []volume.Spec{m.spec(0)}, nil)
	ok(t, err)
	ok(t, in.Check(ctx))
	m.start()
	m.write(0, 2, 0, block)
	m.stop()
	if err := in.Check(ctx); !errors.Is(err, volume.ErrChanged) {
		t.Errorf("it was written to while it was read: %v", err)
	}
	ok(t, in.Close())

	// It is started while it is overwritten.
	target, err := r.d.OpenTarget(ctx, m.spec(0))
	ok(t, err)
	buf := bytes.Repeat([]byte{3}, block)
	ok(t, target.WriteAt(ctx, buf, 0))
	ok(t, target.Sync(ctx))
	m.start()
	refused(t, target.Sync(ctx), errs.Conflict, "one", "started")
	m.stop()
	refused(t, target.Sync(ctx), errs.Conflict, "one", "started") // for good
	ok(t, target.Close())
	target, err = r.d.OpenTarget(ctx, m.spec(0))
	ok(t, err)
	m.start()
	for deadline := time.Now().Add(time.Minute); target.WriteAt(ctx, buf, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it goes on beside the guest")
		}
	}
	refused(t, target.WriteAt(ctx, buf, 0), errs.Conflict, "one", "started")
	ok(t, target.Close())
}

// Snapshots of libvirt's: an internal one is no change, to go back to it needs the
// domain without checkpoints, an external one puts another file in the disk's place.
// Points are right after each.
func TestOwnersSnapshots(t *testing.T) {
	r := newRig(t)
	ctx, file := t.Context(), filepath.Join(filepath.Dir(r.config.Dir), "disk")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", file, fmt.Sprint(diskSize))
	m := r.define(t, "one", "qcow2 file "+file)
	m.start()
	snapshot := func(name string, flags rpc.DomainSnapshotCreateFlags) error {
		return r.Do(ctx, func(l *rpc.Libvirt) error {
			_, err := l.DomainSnapshotCreateXML(m.dom.Handle(), `<domainsnapshot><name>`+name+`</name></domainsnapshot>`, uint32(flags))
			return err
		})
	}
	point := func(at volume.Checkpoint) {
		t.Helper()
		in, err := r.d.Freeze(ctx, "hold-"+string(at), []volume.Spec{m.spec(0)}, nil)
		ok(t, err)
		shows(t, "a point", in.Source(0), m.disks[0])
		ok(t, in.Settle(ctx, []volume.Checkpoint{at}, func() error { return nil }))
		ok(t, in.Close())
	}
	m.write(0, 1, 0, diskSize)
	ok(t, snapshot("inside", 0))
	before := bytes.Clone(m.disks[0])
	m.write(0, 5, 4*block, block)
	point("a")
	revert := func(name string) error {
		return r.Do(ctx, func(l *rpc.Libvirt) error {
			s, err := l.DomainSnapshotLookupByName(m.dom.Handle(), name, 0)
			if err != nil {
				return err
			}
			return l.DomainRevertToSnapshot(s, 0)
		})
	}
	if err := revert("inside"); err == nil {
		t.Log("this libvirt goes back although there are checkpoints")
	} else {
		m.call(func(l *rpc.Libvirt) error { _ = l.DomainCreate(m.dom.Handle()); return nil }) // it may have ended
		in, err := r.d.Freeze(ctx, "refused", []volume.Spec{m.spec(0)}, nil)
		ok(t, err)
		shows(t, "a disk that was not put back", in.Source(0), m.disks[0])
		ok(t, in.Close())
		ok(t, r.d.Forget(ctx, m.spec(0)))
		ok(t, revert("inside"))
	}
	m.disks[0] = before
	r.untold(t, "a disk that was put back", m, 0, "a")
	point("b")

	ok(t, snapshot("outside", rpc.DomainSnapshotCreateDiskOnly|rpc.DomainSnapshotCreateAtomic))
	m.look(t, "one")
	m.write(0, 2, block, block)
	r.untold(t, "an overlay", m, 0, "b")
	point("c")
	was := bytes.Clone(m.disks[0])
	m.write(0, 3, 8*block, block)
	in, err := r.d.Freeze(ctx, "told", []volume.Spec{m.spec(0)}, nil)
	ok(t, err)
	covers(t, "an overlay", in.Source(0), "c", was, m.disks[0])
	ok(t, in.Close())
}
