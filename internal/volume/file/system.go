package file

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// heldBySystem fails with errs.Busy if the kernel itself uses the volume: a
// loop device on it, or, for a device, a mount of it or one of its
// partitions. O_EXCL and leases would refuse most of these too, without being
// able to say why.
func heldBySystem(id string, st *unix.Stat_t, writing bool) error {
	loops, err := loopsOn(st)
	if err != nil {
		return ioFailure(id, "examine", err)
	}
	for _, l := range loops {
		if writing || !l.readOnly {
			return busy(id, nil, fmt.Sprintf("is attached to loop device %s; detach it (losetup -d)", l.name))
		}
	}
	if !isDevice(st) {
		return nil
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ioFailure(id, "examine", err)
	}
	defer f.Close()
	devices := append(partitionsOf(st.Rdev), st.Rdev)
	at, err := mountedAt(f, func(source string, dev uint64) bool {
		for _, d := range devices {
			if d == dev || deviceOf(source) == d {
				return true
			}
		}
		return false
	})
	if err != nil {
		return ioFailure(id, "examine", err)
	}
	if at != "" {
		return busy(id, fmt.Errorf("mounted at %s", at), "is mounted; unmount it")
	}
	return nil
}

// loop is one loop device.
type loop struct {
	name     string // loop3
	backing  string // path of what it stands on
	readOnly bool
}

// loopDevices lists the attached loop devices.
func loopDevices() ([]loop, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var out []loop
	for _, f := range files {
		path, err := os.ReadFile(f)
		if err != nil {
			continue // detached meanwhile
		}
		dir := filepath.Dir(filepath.Dir(f))
		ro, err := os.ReadFile(filepath.Join(dir, "ro"))
		out = append(out, loop{
			name:     filepath.Base(dir),
			backing:  strings.TrimSuffix(strings.TrimSuffix(string(path), "\n"), " (deleted)"),
			readOnly: err == nil && strings.TrimSpace(string(ro)) == "1",
		})
	}
	return out, nil
}

// loopsOn lists the loop devices that stand on the file or device of st.
func loopsOn(st *unix.Stat_t) ([]loop, error) {
	all, err := loopDevices()
	var on []loop
	for _, l := range all {
		var b unix.Stat_t
		if unix.Stat(l.backing, &b) != nil {
			continue
		}
		want, _ := identityOf(st)
		if got, _ := identityOf(&b); got == want {
			on = append(on, l)
		}
	}
	return on, err
}

// mountedAt returns the first mount point whose source or device is wanted,
// "" if there is none. Format: proc_pid_mountinfo(5).
func mountedAt(mountinfo io.Reader, wanted func(source string, dev uint64) bool) (string, error) {
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		head, tail, _ := strings.Cut(lines.Text(), " - ")
		fields, source := strings.Fields(head), strings.Fields(tail)
		if len(fields) < 5 {
			continue
		}
		// A filesystem that spans devices (btrfs) has a number of its own:
		// there only the source names one of them.
		var from string
		if len(source) > 1 {
			from = source[1]
		}
		if wanted(from, parseDevice(fields[2])) {
			return fields[4], nil
		}
	}
	return "", lines.Err()
}

// partitionsOf lists the device numbers of a whole disk's partitions.
func partitionsOf(rdev uint64) []uint64 {
	marks, err := filepath.Glob(filepath.Join(sysOf(rdev), "*", "partition"))
	if err != nil {
		return nil
	}
	var out []uint64
	for _, m := range marks {
		if dev, err := os.ReadFile(filepath.Join(filepath.Dir(m), "dev")); err == nil {
			out = append(out, parseDevice(strings.TrimSpace(string(dev))))
		}
	}
	return out
}

// parseDevice reads "8:1"; 0 if it is no device number.
func parseDevice(s string) uint64 {
	a, b, _ := strings.Cut(s, ":")
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	if err1 != nil || err2 != nil {
		return 0
	}
	return unix.Mkdev(uint32(major), uint32(minor))
}

// deviceOf is the number of the block device at path, 0 if there is none.
func deviceOf(path string) uint64 {
	var st unix.Stat_t
	if !strings.HasPrefix(path, "/") || unix.Stat(path, &st) != nil || !isDevice(&st) {
		return 0
	}
	return st.Rdev
}

func sysOf(rdev uint64) string {
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(rdev), unix.Minor(rdev))
}

// deviceWrites counts the sectors that a block device was made to write or
// discard since it appeared. It is how we notice a writer that ignores every
// lock, since a device has no mtime. ok=false: the kernel does not count.
// Format: Documentation/block/stat.rst, fields 7 and 14.
func deviceWrites(st *unix.Stat_t) (sectors uint64, ok bool) {
	dir := sysOf(st.Rdev)
	// A disk's own switch, a partition's disk's. Joined by hand: dir is a
	// symbolic link, whose parent filepath.Join would get wrong.
	for _, q := range []string{"/queue/iostats", "/../queue/iostats"} {
		if on, err := os.ReadFile(dir + q); err == nil && strings.TrimSpace(string(on)) == "0" {
			return 0, false
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(text))
	for _, i := range []int{6, 13} {
		if i >= len(fields) {
			break // before Linux 4.18 discards are not counted
		}
		n, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			return 0, false
		}
		sectors += n
	}
	return sectors, len(fields) > 6
}
