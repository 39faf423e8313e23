package e2e

import (
	"crypto/md5"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/test/e2e/guest"
	"cairn/test/e2e/harness"
)

const (
	guestVolume = 96 << 20
	writerFile  = 40_000  // bytes of each file of the writer
	sureFile    = 600_000 // bytes of each other file
)

// guestFS is an ext4 on a managed volume that a guest has mounted on /mnt,
// and what must be in it.
type guestFS struct {
	srv    *harness.Server
	volume string
	guest  *guest.Guest
	dev    string // in the guest

	now     content
	files   int // made so far, for names
	writers int // started so far
}

// content is what is in the filesystem at one moment.
type content struct {
	sure map[string]string // file to md5
	// A writer was busy in this folder; "" = none. It makes files 1, 2, 3 …,
	// each synced, then named. Those up to least must be there, none beyond
	// most can be.
	folder      string
	least, most int
}

func (c content) clone() content {
	c.sure = maps.Clone(c.sure)
	return c
}

// fileSum is the md5 of what the guest's `yes NAME | head -c SIZE` prints.
func fileSum(name string, size int) string {
	line := name + "\n"
	b := strings.Repeat(line, size/len(line)+1)[:size]
	return fmt.Sprintf("%x", md5.Sum([]byte(b)))
}

// connectLine is what `cairn volume connect` prints for a kind of client.
func (f *guestFS) connectLine(t *testing.T, server, client string) string {
	t.Helper()
	o := console{f.srv.Bin, "", server}.ok(t, "volume", "connect", f.volume)
	for line := range strings.Lines(o.out) {
		if rest, ok := strings.CutPrefix(line, client+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	t.Fatalf("%s prints nothing for %s:\n%s", o.call, client, o.out)
	return ""
}

// format makes the filesystem.
func (f *guestFS) format(t *testing.T) {
	t.Helper()
	f.guest.Must(t, "mkfs.ext4 -q "+f.dev)
	f.now = content{sure: map[string]string{}}
}

// mount mounts a filesystem that must be whole: after the journal's replay a
// full check finds nothing, and all files are what they should be.
func (f *guestFS) mount(t *testing.T) {
	t.Helper()
	out, code := f.guest.Run(t, "e2fsck -p "+f.dev)
	if code > 1 {
		t.Fatalf("e2fsck -p ended with %d:\n%s", code, out)
	}
	t.Logf("e2fsck -p: %d %s", code, strings.ReplaceAll(strings.TrimSpace(out), "\n", "; "))
	f.guest.Must(t, "e2fsck -fn "+f.dev)
	f.guest.Must(t, "mount -t ext4 "+f.dev+" /mnt")
	f.check(t)
}

func (f *guestFS) unmount(t *testing.T) {
	t.Helper()
	f.guest.Must(t, "umount /mnt")
}

// check compares the files with what must be there, which is certain from
// then on.
func (f *guestFS) check(t *testing.T) {
	t.Helper()
	got := map[string]string{}
	// The file that a writer had not named yet may be anything.
	for line := range strings.Lines(f.guest.Must(t, "cd /mnt && find . -type f ! -name new -exec md5sum {} +")) {
		sum, name, ok := strings.Cut(strings.TrimSpace(line), "  ./")
		if !ok {
			t.Fatalf("md5sum printed %q", line)
		}
		got[name] = sum
	}
	if folder := f.now.folder; folder != "" {
		n := 0
		for name := range got {
			if strings.HasPrefix(name, folder+"/") {
				n++
			}
		}
		if n < f.now.least || n > f.now.most {
			t.Fatalf("%s has %d files, want %d to %d", folder, n, f.now.least, f.now.most)
		}
		f.written(n)
	}
	for name, sum := range f.now.sure {
		if got[name] != sum {
			t.Errorf("%s has md5 %q, want %s", name, got[name], sum)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s is there, but is of another moment", name)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// written notes that the writer made exactly n files.
func (f *guestFS) written(n int) {
	for i := range n {
		name := fmt.Sprintf("%s/%d", f.now.folder, i+1)
		f.now.sure[name] = fileSum(name, writerFile)
	}
	f.now.folder = ""
}

// add writes a file and syncs it.
func (f *guestFS) add(t *testing.T) {
	t.Helper()
	f.files++
	name := fmt.Sprintf("file%d", f.files)
	f.guest.Must(t, fmt.Sprintf("yes %[1]s | head -c %[2]d >/mnt/%[1]s && sync", name, sureFile))
	f.now.sure[name] = fileSum(name, sureFile)
}

// writerScript runs with -e in the folder $1 of /mnt until /run/stop appears.
const writerScript = `
cd /mnt && mkdir $1
n=0
while [ ! -e /run/stop ]; do
	n=$((n + 1))
	echo $n >/run/new && mv /run/new /run/begun
	yes $1/$n | head -c 40000 >$1/new
	sync $1/new
	mv $1/new $1/$n
	sync $1
	echo $n >/run/new && mv /run/new /run/acked
done
`

// startWriter lets a writer write until stopWriter.
func (f *guestFS) startWriter(t *testing.T) {
	t.Helper()
	f.writers++
	f.now.folder = fmt.Sprintf("writer%d", f.writers)
	f.guest.Must(t, "rm -f /run/stop /run/ended && echo 0 >/run/begun && echo 0 >/run/acked && cat >/run/writer <<'END'\n"+writerScript+"END\n"+
		"(sh -e /run/writer "+f.now.folder+" >/run/said 2>&1; echo $? >/run/ended) &")
	f.progress(t, 3)
}

// progress waits until the writer made some more files. The guest does the
// waiting, as commands would slow the writer down.
func (f *guestFS) progress(t *testing.T, more int) {
	t.Helper()
	f.guest.Must(t, fmt.Sprintf(`read -r n </run/acked
want=$((n + %d)) tries=0
while [ $n -lt $want ]; do
	tries=$((tries + 1))
	if [ -e /run/ended ] || [ $tries = 300 ]; then
		echo "$n files, want $want"; cat /run/said /run/ended; exit 1
	fi
	sleep 0.2
	read -r n </run/acked
done`, more))
}

// counter is how many files the writer has begun, or is done with.
func (f *guestFS) counter(t *testing.T, which string) int {
	t.Helper()
	n, err := strconv.Atoi(f.guest.Must(t, "cat /run/"+which))
	if err != nil {
		t.Fatalf("counter of the writer: %v", err)
	}
	return n
}

// stopWriter ends the writer, which must have met no error.
func (f *guestFS) stopWriter(t *testing.T) {
	t.Helper()
	f.guest.Must(t, `touch /run/stop
tries=0
until [ -s /run/ended ]; do
	tries=$((tries + 1))
	if [ $tries = 300 ]; then echo "the writer does not end"; exit 1; fi
	sleep 0.2
done
read -r code </run/ended
if [ $code != 0 ]; then echo "the writer ended with $code"; cat /run/said; exit 1; fi`)
	f.written(f.counter(t, "acked"))
}

// guestPoint is a point, and what was in the filesystem at its moment.
type guestPoint struct {
	id string
	content
}

// point takes a point while the writer writes.
func (f *guestFS) point(t *testing.T) *guestPoint {
	t.Helper()
	f.add(t)
	p := &guestPoint{content: f.now.clone()}
	p.least = f.counter(t, "acked")
	p.id = f.srv.API().Create(t, "while written", false, f.volume)[0]
	p.most = f.counter(t, "begun")
	return p
}

// rollBack makes the volume, which no client has, a point's.
func (f *guestFS) rollBack(t *testing.T, p *guestPoint) {
	t.Helper()
	f.alone(t)
	f.srv.API().OK(t, f.srv.API().Send(t, http.MethodPost, "volume_snapshots/apply",
		map[string]any{"snapshots": []string{p.id}}).Begin(t))
	f.now = p.clone()
}

// alone waits until the server knows that its clients have gone.
func (f *guestFS) alone(t *testing.T) {
	t.Helper()
	if !harness.Poll(10*time.Second, func() bool { return f.srv.API().MustVolume(t, f.volume).Clients == 0 }) {
		t.Fatal("clients that hung up are still connected")
	}
}

// trim deletes all files: what they took is given back to the server's disk.
func (f *guestFS) trim(t *testing.T) {
	t.Helper()
	const files = 10
	for range files {
		f.add(t)
	}
	before := f.allocated(t)
	f.guest.Must(t, "rm -r /mnt/file* /mnt/writer* && sync && fstrim /mnt")
	clear(f.now.sure)
	after := f.allocated(t)
	t.Logf("the volume took %d KiB, and %d KiB after fstrim", before>>10, after>>10)
	if before-after < files*sureFile/2 {
		t.Errorf("fstrim gave %d bytes back, though files of %d were deleted", before-after, files*sureFile)
	}
}

// allocated is how much of the server's disk the volume's file takes.
func (f *guestFS) allocated(t *testing.T) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(f.srv.Dir, "volumes", f.volume+".raw"), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}
