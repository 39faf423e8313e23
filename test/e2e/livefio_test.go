package e2e

import (
	"fmt"
	"os/exec"
	"sync"
	"testing"

	"cairn/test/e2e/harness"
)

// fioSize is no multiple of a cluster, and more than the areas take.
const fioSize = 48<<20 + 3*4096

// fioArea is a part of a volume, written by a fio of its own.
type fioArea struct {
	name string
	args []string
}

// Blocks are written and trimmed again while others are under way, but by
// serialize_overlap never one twice at once: which of them came last only the
// server would know.
var fioAreas = []fioArea{
	{"overlapping", []string{"--rw=randwrite", "--bs=4k", "--norandommap", "--iodepth=16", "--offset=0", "--size=8m", "--io_size=16m"}},
	{"mixed sizes", []string{"--rw=randwrite", "--bsrange=512-128k", "--iodepth=8", "--offset=8m", "--size=16m"}},
	{"trimmed and written", []string{"--rw=trimwrite", "--bs=16k", "--iodepth=4", "--offset=24m", "--size=4m"}},
	{"in four", []string{"--rw=randwrite", "--bs=8k", "--iodepth=16", "--numjobs=4", "--offset=28m", "--offset_increment=3m", "--size=3m"}},
}

// fioTrims is written before by the test, and zeros afterwards, which the test
// looks at: fio 3.33 checks no trims, and its randtrimwrite writes nothing.
var fioTrims = fioArea{"trimmed", []string{"--rw=randtrim", "--bs=4k", "--iodepth=8", fmt.Sprint("--offset=", trimmedOff), fmt.Sprint("--size=", trimmedLen)}}

const (
	trimmedOff = 40 << 20
	trimmedLen = 8 << 20
)

// run runs fio on a volume. With an equal seed it writes the same.
func (a fioArea) run(t *testing.T, uri string, seed uint32, more ...string) error {
	args := append([]string{"120", "fio", "--name=area", "--ioengine=nbd", "--uri=" + uri,
		"--serialize_overlap=1", "--group_reporting", fmt.Sprint("--randseed=", seed)}, append(a.args, more...)...)
	cmd := exec.CommandContext(t.Context(), "timeout", args...)
	cmd.Dir = t.TempDir() // fio leaves files behind
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("fio, %s, seed %d, %q: %w\n%s", a.name, seed, more, err, out)
	}
	return nil
}

var (
	fioWrites   = []string{"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"}
	fioVerifies = append([]string{"--verify_only"}, fioWrites...)
)

// fio runs a program for each area at once; trims: for the one of trims too.
func fio(t *testing.T, uri string, seed uint32, trims bool, args []string) {
	var all sync.WaitGroup
	for _, area := range fioAreas {
		all.Go(func() {
			if err := area.run(t, uri, seed, args...); err != nil {
				t.Error(err)
			}
		})
	}
	if trims {
		if err := fioTrims.run(t, uri, seed); err != nil {
			t.Error(err)
		}
	}
	all.Wait()
}

// TestLiveFio lets fio write and check what it wrote while points are taken as
// fast as their jobs end. A clone of the last point has everything, too.
func TestLiveFio(t *testing.T) {
	needs(t, "fio", "qemu-io")
	t.Parallel()
	passes := 1
	if harness.Long() {
		passes = 8
	}
	rng := harness.Rand(harness.Seed(t))
	srv := serve(t, "--max-chain", "10000")
	id := srv.API().CreateVolume(t, "fio", fioSize)
	uri := srv.Local().MustVolume(t, id).NBDURIs[0]
	var points []string
	var seed uint32
	for range passes {
		seed = rng.Uint32()
		fillTrimmed(t, srv, id, uint64(seed))
		points = append(points, takeBeside(t, srv, id, 100, func() { fio(t, uri, seed, true, fioWrites) })...)
		fio(t, uri, seed, false, fioVerifies)
	}
	if t.Failed() {
		return
	}
	t.Logf("%d points beside %d passes of %d programs", len(points), passes, len(fioAreas))
	want := read(t, srv, id)
	trimmed := want.Clone()
	trimmed.Write(make([]byte, trimmedLen), trimmedOff)
	if !want.Equal(trimmed) {
		t.Error("what was trimmed is no zeros")
	}
	points = append(points, srv.API().Create(t, "last", false, id)...)
	for i, point := range points {
		cbt := "tracked"
		if i == 0 {
			cbt = "scan"
		}
		if s := srv.API().MustSnapshot(t, point); s.Status != "available" || s.CBT != cbt {
			t.Errorf("point %d of %d is %s, cbt %s, want %s", i, len(points), s.Status, s.CBT, cbt)
		}
	}
	last := points[len(points)-1]
	srv.API().WantContent(t, "volume_snapshots", last, want)
	clone := srv.API().Clone(t, last, "clone")
	uri = srv.Local().MustVolume(t, clone).NBDURIs[0]
	fio(t, uri, seed, false, fioVerifies)
	program(t, "qemu-io", "-f", "raw", "-c", "write 1M 512", uri)
	if err := fioAreas[0].run(t, uri, seed, fioVerifies...); err == nil {
		t.Error("fio finds no fault with a sector that somebody else wrote")
	}
	srv.API().WantContent(t, "volume_snapshots", srv.API().Create(t, "whole", true, id)[0], want)
	srv.API().ScrubClean(t)
}

// fillTrimmed writes to the area that will be trimmed.
func fillTrimmed(t *testing.T, srv *harness.Server, id string, seed uint64) {
	t.Helper()
	p := make([]byte, trimmedLen)
	harness.Noise(p, seed)
	c := (&liveRig{srv: srv}).dial(t, id)
	if err := c.WriteAt(t.Context(), p, trimmedOff, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// takeBeside runs fn and takes points of a volume meanwhile, each as soon as
// the last one's job has ended, at least one and at most some.
func takeBeside(t *testing.T, srv *harness.Server, id string, most int, fn func()) (points []string) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	t.Cleanup(func() { <-done }) // also when a point fails the test
	for {
		points = append(points, srv.API().Create(t, "beside", false, id)...)
		select {
		case <-done:
			return points
		default:
		}
		if len(points) == most {
			<-done
			return points
		}
	}
}

// read is what a client reads of a volume.
func read(t *testing.T, srv *harness.Server, id string) *harness.Image {
	t.Helper()
	l := &liveRig{srv: srv}
	c := l.dial(t, id)
	p := make([]byte, c.Size())
	if err := c.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	m := harness.NewImage(int64(len(p)))
	m.Write(p, 0)
	return m
}

// needs skips the test unless other people's programs are there.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("skipped: %s is not installed", p)
		}
	}
}
