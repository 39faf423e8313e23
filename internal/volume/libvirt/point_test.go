package virtvolume

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"go.uber.org/goleak"

	"cairn/internal/errs"
	"cairn/internal/libvirt"
	"cairn/internal/libvirt/libvirttest"
	"cairn/internal/volume"
)

// checks of each model: each opens a disk some ten times, by a process.
const checks = "8"

func TestMain(m *testing.M) {
	flag.Parse()
	given := os.Getenv("CAIRN_LONG") == "1"
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if !given {
		if err := flag.Set("rapid.checks", checks); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

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

const (
	diskSize = 4 << 20
	block    = 64 << 10
)

// machine is a domain whose guest is the test: it writes through QEMU's own
// device, as a guest does.
type machine struct {
	t      *testing.T
	daemon libvirttest.Daemon
	dom    libvirt.Domain
	disks  [][]byte // what each holds
}

// rig is a daemon, machines and a driver.
type rig struct {
	libvirttest.Daemon
	config   Config
	d        *Driver
	machines []*machine
}

func newRig(t *testing.T, names ...string) *rig {
	t.Helper()
	r := &rig{Daemon: libvirttest.Start(t)}
	dir, err := os.MkdirTemp("", "cv")
	ok(t, err)
	t.Cleanup(func() { ok(t, os.RemoveAll(dir)) })
	r.config = Config{Dir: filepath.Join(dir, "v"), Daemon: r.Daemon.Daemon}
	r.d = r.open(t)
	for _, name := range names {
		r.machines = append(r.machines, r.machine(t, dir, name))
	}
	return r
}

func (r *rig) open(t *testing.T) *Driver {
	t.Helper()
	d, err := New(r.config)
	ok(t, err)
	return d
}

// machine runs one with a qcow2 disk, a raw one, and one that nobody asks for.
func (r *rig) machine(t *testing.T, dir, name string) *machine {
	t.Helper()
	disks := ""
	for i, format := range []string{"qcow2", "raw", "raw"} {
		file := filepath.Join(dir, fmt.Sprint(name, i))
		out, err := exec.Command("qemu-img", "create", "-q", "-f", format, file, fmt.Sprint(diskSize)).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		disks += fmt.Sprintf(`<disk type='file' device='disk'><driver name='qemu' type='%s'/><source file='%s'/><target dev='vd%c' bus='virtio'/></disk>`, format, file, 'a'+i)
	}
	r.Define(t, fmt.Sprintf(`<domain type='qemu'><name>%s</name><memory unit='MiB'>32</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><devices>%s<memballoon model='none'/></devices></domain>`, name, disks))
	all, err := r.Domains(t.Context())
	ok(t, err)
	m := &machine{t: t, daemon: r.Daemon}
	for _, dom := range all {
		if dom.Name == name {
			m.dom = dom
		}
	}
	for range 2 {
		m.disks = append(m.disks, make([]byte, diskSize))
	}
	m.start()
	return m
}

func (m *machine) call(call func(*rpc.Libvirt) error) {
	m.t.Helper()
	ok(m.t, m.daemon.Do(m.t.Context(), call))
}

func (m *machine) start() {
	m.t.Helper()
	m.call(func(l *rpc.Libvirt) error { return l.DomainCreate(m.dom.Handle()) })
}

// write is the guest's.
func (m *machine) write(disk int, b byte, off, n int64) {
	m.t.Helper()
	said := ""
	m.call(func(l *rpc.Libvirt) (err error) {
		command := fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "write -P %d %d %d"`, disk, b, off, n)
		said, err = l.QEMUDomainMonitorCommand(m.dom.Handle(), command, 1)
		return err
	})
	if strings.Contains(said, "rror") || strings.Contains(said, "failed") {
		m.t.Fatalf("a guest's write: %s", said)
	}
	copy(m.disks[disk][off:off+n], bytes.Repeat([]byte{b}, int(n)))
}

// kill ends QEMU as a crash does, and boots the machine anew.
func (m *machine) kill() {
	m.t.Helper()
	// Its pid is of the daemon's namespace.
	out, err := exec.Command("pgrep", "-f", "qemu-system.*guest="+m.dom.Name+",").Output()
	ok(m.t, err)
	p, err := os.FindProcess(atoi(m.t, strings.TrimSpace(string(out))))
	ok(m.t, err)
	ok(m.t, p.Kill())
	for {
		active := int32(0)
		m.call(func(l *rpc.Libvirt) (err error) {
			active, err = l.DomainIsActive(m.dom.Handle())
			return err
		})
		if active == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	m.start()
}

func atoi(t *testing.T, s string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatalf("%q is not one process", s)
	}
	return n
}

func (m *machine) spec(disk int) volume.Spec {
	p := m.dom.DiskPath(m.dom.Disks[disk])
	return volume.Spec{ID: m.dom.VolumeID(m.dom.Disks[disk]), Path: p, Identity: p, SizeBytes: diskSize}
}

func (m *machine) state() (state rpc.DomainState) {
	m.t.Helper()
	m.call(func(l *rpc.Libvirt) error {
		s, _, err := l.DomainGetState(m.dom.Handle(), 0)
		state = rpc.DomainState(s)
		return err
	})
	return state
}

// checkpoints are the names of the machine's.
func (m *machine) checkpoints() (names []string) {
	m.t.Helper()
	m.call(func(l *rpc.Libvirt) error {
		all, _, err := l.DomainListAllCheckpoints(m.dom.Handle(), 1, 0)
		for _, c := range all {
			names = append(names, c.Name)
		}
		return err
	})
	return names
}

// shows compares a source with what it must show.
func shows(t *testing.T, what string, s volume.Source, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if s.Size() != diskSize {
		t.Fatalf("%s: %d bytes", what, s.Size())
	}
	for off := int64(0); ; {
		r, err := s.Data(t.Context(), off)
		if errors.Is(err, io.EOF) {
			break
		}
		ok(t, err)
		ok(t, s.ReadAt(t.Context(), got[r.Off:r.End()], r.Off))
		off = r.End()
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: the source does not show its moment", what)
	}
}

// covers demands that Changed lists all that differs, and not everything.
func covers(t *testing.T, what string, s volume.Source, base volume.Checkpoint, was, is []byte) {
	t.Helper()
	listed := make([]bool, diskSize/block)
	for off := int64(0); ; {
		r, err := s.Changed(t.Context(), base, off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for at := r.Off / block; at*block < r.End(); at++ {
			listed[at] = true
		}
		off = r.End()
	}
	count := 0
	for i, l := range listed {
		if differs := !bytes.Equal(was[i*block:(i+1)*block], is[i*block:(i+1)*block]); differs && !l {
			t.Errorf("%s: block %d changed and is not listed", what, i)
		}
		if l {
			count++
		}
	}
	if count == len(listed) {
		t.Errorf("%s: everything is listed", what)
	}
}

// Points of two machines with guests that write meanwhile: each is one moment of
// all its disks, changes are told since the last point that was settled, and not
// after QEMU died, whatever was cancelled between.
func TestPoints(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	r := newRig(t, "one", "two")
	ctx := t.Context()
	scribble := func() {
		for _, m := range r.machines {
			for disk := range m.disks {
				for range 1 + random.IntN(3) {
					m.write(disk, byte(1+random.IntN(255)), random.Int64N(diskSize/block)*block, block)
				}
			}
		}
	}
	type base struct {
		at      volume.Checkpoint
		content []byte
	}
	bases := map[string]base{} // by volume, of qcow2 disks
	told, scanned := 0, 0
	for round := range 12 {
		scribble()
		machines := r.machines[random.IntN(2):][:1]
		if random.IntN(2) == 0 {
			machines = r.machines
		}
		if round == 6 {
			r.machines[0].kill()
			delete(bases, r.machines[0].spec(0).ID)
		}
		if round == 9 {
			r.d = r.open(t) // the next process
		}
		var specs []volume.Spec
		var moments [][]byte
		for _, m := range machines {
			for disk := range m.disks {
				specs = append(specs, m.spec(disk))
				moments = append(moments, bytes.Clone(m.disks[disk]))
			}
		}
		hold := fmt.Sprint("hold-", round)
		inside := false
		var within func(context.Context) error
		if random.IntN(2) == 0 {
			within = func(context.Context) error {
				inside = true
				for _, m := range machines {
					if s := m.state(); s != rpc.DomainPaused {
						t.Errorf("in the moment a machine is in state %d", s)
					}
				}
				return nil
			}
		}
		in, err := r.d.Freeze(ctx, hold, specs, within)
		ok(t, err)
		if inside != (within != nil) {
			t.Error("the moment was not told of")
		}
		scribble()
		var checkpoints []volume.Checkpoint
		for i, s := range specs {
			what := fmt.Sprintf("round %d, %s", round, s.Path)
			shows(t, what, in.Source(i), moments[i])
			b, known := bases[s.ID]
			if known {
				covers(t, what, in.Source(i), b.at, b.content, moments[i])
				told++
				_, err := in.Source(i).Audit(ctx, b.at)
				ok(t, err)
			}
			if _, err := in.Source(i).Changed(ctx, "another", 0); !errors.Is(err, volume.ErrNoBase) {
				t.Errorf("%s: changes since what never was: %v", what, err)
			}
			if !known {
				if _, err := in.Source(i).Changed(ctx, b.at, 0); !errors.Is(err, volume.ErrNoBase) {
					t.Errorf("%s: changes are told since nothing: %v", what, err)
				}
				scanned++
			}
			checkpoints = append(checkpoints, volume.Checkpoint(fmt.Sprint(s.ID, "@", round)))
		}
		ok(t, in.Check(ctx))
		if random.IntN(3) > 0 {
			ok(t, in.Settle(ctx, checkpoints, func() error { return nil }))
			for i, s := range specs {
				if i%2 == 0 { // the qcow2 one
					bases[s.ID] = base{checkpoints[i], moments[i]}
				}
			}
		}
		ok(t, in.Close())
		ok(t, r.d.Drop(ctx, hold))
		for _, m := range r.machines {
			if s := m.state(); s != rpc.DomainRunning {
				t.Errorf("round %d: afterwards a machine is in state %d", round, s)
			}
			if c := m.checkpoints(); len(c) > 1 {
				t.Errorf("round %d: checkpoints %v stayed", round, c)
			}
		}
	}
	if left, err := os.ReadDir(filepath.Join(r.config.Dir, "holds")); err != nil || len(left) > 0 {
		t.Errorf("holds %v, %v stayed", left, err)
	}
	t.Logf("changes were told %d times, everything was read %d times", told, scanned)
	if told == 0 || scanned == 0 {
		t.Error("one of the two never happened")
	}
}

// clean demands that nothing is left in machines, and that they run.
func (r *rig) clean(t *testing.T) {
	t.Helper()
	for _, m := range r.machines {
		if s := m.state(); s != rpc.DomainRunning {
			t.Errorf("machine %s is in state %d", m.dom.Name, s)
		}
		if c := m.checkpoints(); len(c) > 0 {
			t.Errorf("checkpoints %v stayed", c)
		}
		if text, err := r.d.backupOf(t.Context(), m.dom); err != nil || text != "" {
			t.Errorf("a backup stayed: %v %s", err, text)
		}
	}
	if left, err := os.ReadDir(filepath.Join(r.config.Dir, "holds")); err != nil || len(left) > 0 {
		t.Errorf("holds %v, %v stayed", left, err)
	}
}

// ended waits until an instant is one no more.
func ended(t *testing.T, in volume.Instant) {
	t.Helper()
	for in.Check(t.Context()) == nil {
		time.Sleep(10 * time.Millisecond)
	}
}

// What a machine or its owner does to a point, and a scratch that is full, fail
// the point; never the guest.
func TestPointsFail(t *testing.T) {
	r := newRig(t, "one")
	ctx, m := t.Context(), r.machines[0]
	specs := []volume.Spec{m.spec(0), m.spec(1)}
	m.write(0, 1, 0, diskSize)
	m.write(1, 2, 0, diskSize)

	// Its owner ends the backup.
	in, err := r.d.Freeze(ctx, "a", specs, nil)
	ok(t, err)
	m.call(func(l *rpc.Libvirt) error { return l.DomainAbortJob(m.dom.Handle()) })
	ended(t, in) // it is told to, and does so later
	refused(t, in.Check(ctx), errs.Unavailable, "one")
	refused(t, in.Source(0).ReadAt(ctx, make([]byte, 512), 0), errs.Unavailable, "one")
	ok(t, in.Close())

	// QEMU dies.
	in, err = r.d.Freeze(ctx, "b", specs, nil)
	ok(t, err)
	m.kill()
	refused(t, in.Check(ctx), errs.Unavailable, "one")
	ok(t, in.Close())

	// Its owner has a backup of his own.
	m.call(func(l *rpc.Libvirt) error {
		return l.DomainBackupBegin(m.dom.Handle(), `<domainbackup mode='pull'><server transport='unix' socket='`+filepath.Join(r.config.Dir, "mine")+`'/></domainbackup>`, nil, 0)
	})
	_, err = r.d.Freeze(ctx, "c", specs, nil)
	refused(t, err, errs.Busy, "one")
	m.call(func(l *rpc.Libvirt) error { return l.DomainAbortJob(m.dom.Handle()) })
	for text := "?"; text != ""; {
		text, err = r.d.backupOf(ctx, m.dom)
		ok(t, err)
	}

	// The moment is refused by whoever shares it.
	no := errors.New("no")
	if _, err := r.d.Freeze(ctx, "d", specs, func(context.Context) error { return no }); !errors.Is(err, no) {
		t.Errorf("Freeze: %v", err)
	}
	if s := m.state(); s != rpc.DomainRunning {
		t.Errorf("the machine is in state %d", s)
	}

	// Scratch is full.
	r.config.ScratchBytes = 1 << 20
	r.d = r.open(t)
	in, err = r.d.Freeze(ctx, "e", specs, nil)
	ok(t, err)
	m.write(0, 3, 0, diskSize)
	m.write(1, 4, 0, diskSize)
	ended(t, in)
	refused(t, in.Check(ctx), errs.Full, "one", "--scratch")
	m.write(0, 5, 0, diskSize) // the guest goes on
	ok(t, in.Close())
	r.clean(t)
}
